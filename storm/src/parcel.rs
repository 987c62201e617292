//! Messages that say who put them, and of which every byte can be checked.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bits of a message's number within its producer's.
pub(crate) const SEQUENCE_BITS: u32 = 40;

/// The id of the message that a producer puts as its `sequence`th.
pub(crate) fn id(producer: u64, sequence: u64) -> u64 {
    producer << SEQUENCE_BITS | sequence
}

/// An id's producer and sequence.
pub(crate) fn parts(id: u64) -> (u64, u64) {
    (id >> SEQUENCE_BITS, id & ((1 << SEQUENCE_BITS) - 1))
}

/// How long messages are. A message's length follows from its id, so that one which was cut is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sizes {
    /// 8 to 200 bytes.
    Small,
    /// Mostly up to 16 KiB, some up to 300 KB.
    Mixed,
    /// Mostly up to 1 MB, some 16 MB.
    Large,
}

impl Sizes {
    fn len(self, id: u64) -> usize {
        let mut random = fastrand::Rng::with_seed(id);
        match (self, random.u8(..)) {
            (Sizes::Small, _) | (Sizes::Mixed, ..150) => random.usize(8..=200),
            (Sizes::Mixed, 150..240) => random.usize(100..16_500),
            (Sizes::Mixed, _) => random.usize(16_000..300_000),
            (Sizes::Large, ..4) => 16 << 20,
            (Sizes::Large, 4..80) => random.usize(8..40_000),
            (Sizes::Large, _) => random.usize(40_000..1_000_000),
        }
    }
}

fn mix(id: u64) -> u64 {
    (id ^ 0x5bd1_e995_9d1f_ab3b).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A message's bytes.
#[derive(Debug, Default)]
pub(crate) struct Parcel(pub(crate) Vec<u8>);

impl Parcel {
    pub(crate) fn new(id: u64, sizes: Sizes) -> Self {
        let len = sizes.len(id);
        let mut bytes = Vec::with_capacity(len + 8);
        bytes.extend_from_slice(&id.to_le_bytes());
        let mut word = mix(id);
        while bytes.len() < len {
            word = word.wrapping_add(0x0101_0101_0101_0101);
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(len);
        Parcel(bytes)
    }
}

/// The id of a message, after each of its bytes was looked at.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(bytes: &[u8], sizes: Sizes) -> Result<u64, String> {
    let (first, rest) = bytes.split_first_chunk().ok_or("torn message: it has no id")?;
    let id = u64::from_le_bytes(*first);
    if bytes.len() != sizes.len(id) {
        return Err(format!("torn message {id:#x}: {} bytes long, not {}", bytes.len(), sizes.len(id)));
    }
    let mut word = mix(id);
    for (index, chunk) in rest.chunks(8).enumerate() {
        word = word.wrapping_add(0x0101_0101_0101_0101);
        if *chunk != word.to_le_bytes()[..chunk.len()] {
            return Err(format!("torn message {id:#x}: other bytes from byte {} on", 8 + 8 * index));
        }
    }
    Ok(id)
}

/// The bytes of a message as they lie in a queue of `Parcel`s.
pub(crate) fn borrowed(message: &[u8]) -> Result<&[u8], String> {
    postcard::from_bytes(message).map_err(|error| format!("torn message: {error}"))
}

impl Serialize for Parcel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Parcel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Parcel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Parcel, E> {
                Ok(Parcel(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_torn_is_found_out() {
        for sizes in [Sizes::Small, Sizes::Mixed] {
            for id in 0..200 {
                let whole = Parcel::new(id, sizes).0;
                assert_eq!(check(&whole, sizes), Ok(id));
                assert!(check(&whole[..whole.len() - 1], sizes).is_err());
                if whole.len() > 8 {
                    let mut torn = whole.clone();
                    *torn.last_mut().unwrap() ^= 1;
                    assert!(check(&torn, sizes).is_err());
                }
            }
        }
    }
}

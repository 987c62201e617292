//! How the bytes of a handle name a descriptor.

use procession_sys::identity::Identity;

use super::error::OpenError;

/// How a handle's bytes refer to its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdRef {
    /// The n-th descriptor that travels with the message.
    Attached(u32),
    /// A descriptor number in a process that keeps it open.
    Held {
        /// Whose descriptor.
        holder: Identity,
        /// Its number there.
        fd: u32,
    },
}

impl FdRef {
    /// The size in bytes of the encoded form.
    pub const LEN: usize = 12;

    /// Twelve bytes: the holder's identity (0 for an attached one), then the number, little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (holder, number) = match self {
            FdRef::Attached(index) => (0, index),
            FdRef::Held { holder, fd } => (holder.to_bits(), fd),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&holder.to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`OpenError::Malformed`] for an impossible holder.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Result<Self, OpenError> {
        let mut holder = [0; 8];
        holder.copy_from_slice(&bytes[..8]);
        let holder = u64::from_le_bytes(holder);
        let mut number = [0; 4];
        number.copy_from_slice(&bytes[8..]);
        let number = u32::from_le_bytes(number);
        if holder == 0 {
            return Ok(FdRef::Attached(number));
        }
        let holder = Identity::from_bits(holder).ok_or(OpenError::Malformed("impossible process"))?;
        Ok(FdRef::Held { holder, fd: number })
    }
}

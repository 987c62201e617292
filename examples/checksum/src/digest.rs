//! The hash of one file, part by part.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Space for a read.
pub(crate) type Buffer = Box<[u8; CHUNK]>;

pub(crate) fn buffer() -> Buffer {
    Box::new([0; CHUNK])
}

/// Where in a file the hashing stands, so that any process can go on from there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Device and inode: another file may have the path by now.
    file: (u64, u64),
    offset: u64,
    state: Vec<u8>,
}

/// What hashing a part of a file led to.
pub(crate) enum Step {
    /// The file's end, and so its hash.
    End(Hash),
    /// More to read.
    More(Checkpoint),
}

/// Hashes up to `limit` bytes (or one read more) of the file at `path`, going on after the checkpoint. Returns
/// the number of bytes too. `buffer` is space for a read.
pub(crate) fn hash_part(
    path: &Path,
    after: Option<&Checkpoint>,
    limit: u64,
    buffer: &mut Buffer,
) -> io::Result<(Step, u64)> {
    let mut file = File::open(path)?;
    let identity = identity(&file.metadata()?);
    let (mut hasher, start) = match after.filter(|checkpoint| checkpoint.file == identity) {
        Some(checkpoint) => (restore(&checkpoint.state)?, checkpoint.offset),
        None => (Sha256::new(), 0),
    };
    if start > 0 {
        file.seek(SeekFrom::Start(start))?;
    }
    let mut read = 0;
    while read < limit {
        match file.read(&mut buffer[..]) {
            Ok(0) => return Ok((Step::End(hasher.finalize().into()), read)),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                read += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let state = hasher.serialize().to_vec();
    Ok((Step::More(Checkpoint { file: identity, offset: start + read, state }), read))
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn restore(state: &[u8]) -> io::Result<Sha256> {
    let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "the state of a hash is damaged");
    let state = SerializedState::<Sha256>::try_from(state).map_err(|_| wrong(()))?;
    Sha256::deserialize(&state).map_err(|_| wrong(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash by parts of at most `limit` bytes, and how many there were.
    fn by_parts(path: &Path, limit: u64, mut between: impl FnMut()) -> (Hash, u32) {
        let (mut checkpoint, mut parts) = (None, 0);
        loop {
            parts += 1;
            match hash_part(path, checkpoint.as_ref(), limit, &mut buffer()).expect("the file can be read").0
            {
                Step::End(hash) => return (hash, parts),
                Step::More(next) => checkpoint = Some(next),
            }
            between();
        }
    }

    #[test]
    fn parts_give_the_hash_of_the_whole() {
        let dir = tempfile::tempdir().expect("a folder to work in");
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3 * CHUNK + 1).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("a file to read");
        let whole: Hash = Sha256::digest(&bytes).into();
        assert_eq!(by_parts(&path, u64::MAX, || ()), (whole, 1));
        assert_eq!(by_parts(&path, CHUNK as u64, || ()), (whole, 4));
    }

    #[test]
    fn another_file_of_the_same_name_is_hashed_from_its_beginning() {
        let dir = tempfile::tempdir().expect("a folder to work in");
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        std::fs::write(&path, vec![1; 2 * CHUNK]).expect("a file to read");
        std::fs::write(&other, vec![2; 2 * CHUNK]).expect("a file to read");
        let mut replaced = false;
        let (hash, _) = by_parts(&path, CHUNK as u64, || {
            if !replaced {
                std::fs::rename(&other, &path).expect("the file can be replaced");
                replaced = true;
            }
        });
        assert_eq!(hash, <Hash>::from(Sha256::digest(vec![2; 2 * CHUNK])));
    }
}

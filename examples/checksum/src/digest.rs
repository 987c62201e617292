//! The hash of one file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Hashes the file at `path`, and tells `progress` how many bytes each step read.
pub(crate) fn hash_file(path: &Path, mut progress: impl FnMut(u64)) -> io::Result<Hash> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                progress(length as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_adds_up_to_the_size() {
        let dir = tempfile::tempdir().expect("a folder to work in");
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 2 * CHUNK + 1]).expect("a file to read");
        let mut seen = 0;
        hash_file(&path, |bytes| seen += bytes).expect("the file can be read");
        assert_eq!(seen, 2 * CHUNK as u64 + 1);
    }
}

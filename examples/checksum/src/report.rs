//! What the program prints, byte for byte as GNU `sha256sum` does.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::digest::Hash;

/// A file or folder that could not be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) path: PathBuf,
    pub(crate) reason: io::Error,
}

/// Writes one line: the hash, two blanks, the path. A path with a backslash, newline or carriage return is
/// escaped, and its line begins with a backslash. All other bytes of a path are written as they are.
pub(crate) fn write_line(mut out: impl Write, hash: &Hash, path: &Path) -> io::Result<()> {
    let path = path.as_os_str().as_bytes();
    let escape = |byte: &u8| match byte {
        b'\\' => Some(br"\\"),
        b'\n' => Some(br"\n"),
        b'\r' => Some(br"\r"),
        _ => None,
    };
    let mut line = Vec::with_capacity(2 * hash.len() + path.len() + 4);
    if path.iter().any(|byte| escape(byte).is_some()) {
        line.push(b'\\');
    }
    for byte in hash {
        write!(line, "{byte:02x}")?;
    }
    line.extend_from_slice(b"  ");
    for byte in path {
        match escape(byte) {
            Some(escaped) => line.extend_from_slice(escaped),
            None => line.push(*byte),
        }
    }
    line.push(b'\n');
    out.write_all(&line)
}

/// The message for something that could not be read: `checksum: path: reason`.
pub(crate) fn complaint(unreadable: &Unreadable) -> String {
    format!("checksum: {}: {}", name(&unreadable.path), reason(&unreadable.reason))
}

/// A path for a message: quoted with escapes when it holds what a terminal would act on, or what is no text.
pub(crate) fn name(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => format!("{path:?}"),
    }
}

/// An error's text as the system's tools print it, without Rust's error number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn line(path: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_line(&mut out, &[0xab; 32], Path::new(OsStr::from_bytes(path))).expect("writing to memory");
        out
    }

    fn expected(mark: &str, path: &[u8]) -> Vec<u8> {
        [mark.as_bytes(), "ab".repeat(32).as_bytes(), b"  ", path, b"\n"].concat()
    }

    #[test]
    fn plain_paths_are_written_as_they_are() {
        assert_eq!(line(b"-a b\xff\t*"), expected("", b"-a b\xff\t*"));
    }

    #[test]
    fn what_would_break_a_line_is_escaped() {
        assert_eq!(line(b"a\nb"), expected(r"\", br"a\nb"));
        assert_eq!(line(b"a\rb"), expected(r"\", br"a\rb"));
        assert_eq!(line(b"a\\nb"), expected(r"\", br"a\\nb"));
    }

    #[test]
    fn reasons_read_as_the_system_says_them() {
        let missing = io::Error::from_raw_os_error(2);
        assert_eq!(reason(&missing), "No such file or directory");
        let unreadable = Unreadable { path: "a\nb".into(), reason: missing };
        assert_eq!(complaint(&unreadable), "checksum: \"a\\nb\": No such file or directory");
    }
}

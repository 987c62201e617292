//! Running the program and comparing its output.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A program that has not ended by then hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(300);

pub(crate) fn checksum() -> Command {
    Command::new(env!("CARGO_BIN_EXE_checksum"))
}

/// Runs a program to its end, and kills it where it hangs.
pub(crate) fn run(command: &mut Command) -> Output {
    let child = start(command);
    finish(child, &format!("{command:?}"))
}

/// Starts a program whose output is to be seen.
pub(crate) fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the program and for all others that can write to its output, and kills it where it hangs.
pub(crate) fn finish(mut child: Child, name: &str) -> Output {
    let mut readers = Vec::new();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    readers.push(std::thread::spawn(move || read_all(&mut out)));
    readers.push(std::thread::spawn(move || read_all(&mut err)));
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > WATCHDOG => {
                child.kill().unwrap();
                panic!(
                    "{name} hangs; standard error: {}",
                    String::from_utf8_lossy(&readers.remove(1).join().unwrap())
                );
            }
            None => sleep(Duration::from_millis(5)),
        }
    };
    let stderr = readers.remove(1).join().unwrap();
    let stdout = readers.remove(0).join().unwrap();
    Output { status, stdout, stderr }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What `sha256sum` prints for the regular files below `dir`, sorted by path.
pub(crate) fn expected(dir: &Path) -> Vec<u8> {
    let found = run(Command::new("find").arg(dir).args(["-type", "f", "-print0"])).stdout;
    let mut paths: Vec<&[u8]> = found.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    paths.sort_unstable();
    let mut lines = Vec::new();
    for some in paths.chunks(1000) {
        let output =
            run(Command::new("sha256sum").arg("--").args(some.iter().map(|path| OsStr::from_bytes(path))));
        lines.extend_from_slice(&output.stdout);
    }
    assert!(!lines.is_empty(), "there is something to compare with");
    lines
}

#[track_caller]
pub(crate) fn assert_same(output: &Output, expected: &[u8]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    // Not `assert_eq`: megabytes of numbers tell nobody anything.
    if output.stdout != expected {
        let lines = |bytes: &[u8]| {
            bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        let (got, wanted) = (lines(&output.stdout), lines(expected));
        let at = got
            .iter()
            .zip(&wanted)
            .position(|(got, wanted)| got != wanted)
            .unwrap_or(got.len().min(wanted.len()));
        let show = |lines: &[Vec<u8>]| lines.get(at).map(|line| String::from_utf8_lossy(line).into_owned());
        panic!("line {at} of {} is {:?}, not {:?} of {}", got.len(), show(&got), show(&wanted), wanted.len());
    }
}

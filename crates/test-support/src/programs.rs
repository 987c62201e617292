//! Programs that a test starts: Python, and the test itself once more.

use std::process::{Child, Command, Stdio};

/// Python, which these tests need, with a script and its arguments.
pub fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", script]);
    command
}

/// Starts Python.
pub fn start(command: &mut Command) -> Child {
    command.spawn().expect("the tests need python3 on the PATH")
}

/// Runs only the calling test, in a process of its own, with `ROLE` set.
pub fn rerun(role: &str) -> Command {
    let test = std::thread::current().name().expect("tests run in named threads").to_owned();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env("ROLE", role)
        .stdin(Stdio::null())
        // Its total is part of this program's.
        .stdout(Stdio::null());
    command
}

/// The arguments with which a test program runs one test that stands for a program, and is ignored otherwise. `module` is
/// the `module_path!()` of where the test is.
pub fn only(module: &str, test: &str) -> [String; 4] {
    let name = match module.split_once("::") {
        Some((_, module)) => format!("{module}::{test}"),
        None => test.to_owned(),
    };
    ["--exact".into(), name, "--ignored".into(), "--nocapture".into()]
}

/// Sends this process's standard error nowhere: what follows is meant to go wrong.
pub fn stderr_silenced() {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    rustix::stdio::dup2_stderr(null).unwrap();
}

/// Whether the kernel keeps the status of a child that something else has collected: Linux 6.15 or newer.
pub fn kernel_keeps_status() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// Set in the process that [`rerun`] starts.
pub fn role() -> Option<String> {
    std::env::var("ROLE").ok()
}

/// Ends a child that a failed test would leave behind.
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// A directory of its own, removed with all in it.
pub struct Scratch(pub std::path::PathBuf);

/// A new directory.
pub fn scratch(name: &str) -> Scratch {
    let path = std::env::temp_dir().join(format!("procession-{name}-{}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    Scratch(path)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

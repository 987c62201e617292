//! The storm itself: it finds what is wrong when something is, and leaves nothing when nothing is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Ends the test program, saying where, should a test hang.
fn watchdog(test: &'static str) {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(300));
        eprintln!("watchdog: {test} hangs");
        std::process::abort();
    });
}

/// A folder for temporary files that no other process uses, so that what is left there, and who knows of it, is known.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("procession-storm-test-{}-{name}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        Folder(folder)
    }

    fn storm(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_procession-storm"))
            .args(arguments)
            .env("TMPDIR", &self.0)
            .output()
            .expect("the storm runs")
    }

    /// Processes that were started with this folder in their environment.
    fn processes(&self) -> Vec<String> {
        let wanted = format!("TMPDIR={}", self.0.display());
        let processes = fs::read_dir("/proc").expect("/proc");
        let names = processes.filter_map(|process| process.ok()?.file_name().into_string().ok());
        names
            .filter(|name| name.parse::<u32>().is_ok())
            .filter(|name| {
                let environment = fs::read(Path::new("/proc").join(name).join("environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            })
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_good_run_leaves_nothing() {
    watchdog("a_good_run_leaves_nothing");
    let folder = Folder::new("good");
    for kind in ["tasks", "pipes", "pools"] {
        let output = folder.storm(&["--seconds", "1", "--seed", "7", "--only", kind]);
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("seed 7") && text.contains(kind), "{text}");
    }
    let left: Vec<_> = fs::read_dir(&folder.0).expect("the folder").collect();
    assert!(left.is_empty(), "{left:?}");
    // The fork server and the watcher end when they find that the storm has.
    while !folder.processes().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All that a storm starts, at whatever depth, ends with it.
#[test]
fn a_killed_storm_leaves_no_process() {
    watchdog("a_killed_storm_leaves_no_process");
    let folder = Folder::new("killed");
    for kind in ["mixed", "pipes"] {
        let mut storm = Command::new(env!("CARGO_BIN_EXE_procession-storm"))
            .args(["--seconds", "100", "--only", kind])
            .env("TMPDIR", &folder.0)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the storm runs");
        while folder.processes().len() < 5 {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        storm.kill().expect("kill");
        storm.wait().expect("wait");
        while !folder.processes().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn every_fault_is_found() {
    watchdog("every_fault_is_found");
    for (kind, fault, finding) in [
        ("small", "lose", "are lost"),
        ("small", "repeat", "was delivered before"),
        ("small", "invent", "which nobody put"),
        ("small", "tear", "torn message"),
        ("tasks", "lose", "neither done nor handed out again"),
        ("tasks", "repeat", "was done 2 times"),
        ("small", "hang", "has been without progress"),
        ("lock", "intrude", "in the section"),
    ] {
        let folder = Folder::new(&format!("{kind}-{fault}"));
        // It ends with the turn in which the fault was made, which on a busy machine may not be the first.
        let output = folder.storm(&["--seconds", "60", "--only", kind, "--break", fault]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{kind}, {fault}: {text}");
        let leaves = || {
            let storm = fs::read_dir(&folder.0).ok()?.next()?.ok()?.path();
            let turn = fs::read_dir(storm).ok()?.flatten().find(|entry| entry.path().is_dir())?.path();
            let read = |name: &str| fs::read_to_string(turn.join(name)).ok();
            Some((turn.join("log-0").exists(), read("faults.txt")?, read("state.txt")?))
        };
        let (logs, faults, state) = leaves().expect("a folder with what was found");
        assert!(logs && faults.contains(finding), "{kind}, {fault}: {faults}\n{text}");
        assert!(text.contains(finding) && text.contains("seed "), "{kind}, {fault}: {text}");
        assert!(state.contains("held by"), "{kind}, {fault}: {state}");
    }
}

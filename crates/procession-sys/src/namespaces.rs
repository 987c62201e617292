//! Tests of liveness where `/proc` hides processes, counts time otherwise, shows another
//! namespace's processes, or is missing.
//!
//! Each test runs itself again in namespaces of its own. That takes root; elsewhere they say that
//! they are skipped.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, getpid};

use super::identity::{Identity, pid_namespace};
use super::instance::{Instance, tests::by_start};
use super::{process, procfs};

/// The variable that tells a test that it has been run again, and for which processes.
const PEERS: &str = "PROCESSION_PEERS";

/// The processes that the test was run again for; `None` in the first run, which has run it again
/// by then.
fn peers(
    name: &str,
    unshare: &[&str],
    script: &str,
    living: impl FnOnce() -> Vec<Identity>,
) -> Option<Vec<Identity>> {
    if let Ok(peers) = std::env::var(PEERS) {
        return Some(
            peers.split(' ').filter_map(|bits| Identity::from_bits(bits.parse().unwrap_or(0))).collect(),
        );
    }
    let possible = Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: {name}: it needs root, and unshare {}", unshare.join(" "));
        return None;
    }
    let peers: Vec<_> = living().iter().map(|process| process.to_bits().to_string()).collect();
    let again = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &format!("{script}\nexec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("namespaces::{name}")])
        .env(PEERS, peers.join(" "))
        .output()
        .unwrap();
    let output = [again.stdout, again.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(again.status.success() && output[0].contains("1 passed"), "{}", output.concat());
    None
}

/// This process by all that can be known of it.
fn all_of_this_process() -> Vec<Identity> {
    let others = [by_start(getpid()), Instance::ANY].map(|instance| Identity::new(getpid(), instance));
    [&[Identity::current()], &others[..]].concat()
}

fn started() -> (Child, Pid) {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = Pid::from_child(&child);
    (child, pid)
}

/// Kills a child and waits until it is a zombie.
fn kill(child: &mut Child) {
    let pidfd = process::open(child.id()).unwrap();
    child.kill().unwrap();
    assert!(process::wait_ended(&pidfd, super::clock::Deadline::Never).unwrap());
}

#[test]
fn processes_that_proc_hides_live() {
    let (mut zombie, pid) = started();
    let all = || {
        let (mut gone, number) = started();
        let dead = [
            Identity::of_pid(pid).unwrap(),
            Identity::new(pid, by_start(pid)),
            Identity::new(number, by_start(number)),
        ];
        kill(&mut zombie);
        gone.kill().and_then(|()| gone.wait()).unwrap();
        [all_of_this_process(), dead.to_vec()].concat()
    };
    let script = "mount --make-rprivate / && mount -t proc -o hidepid=2 proc /proc || exit";
    let peers = peers("processes_that_proc_hides_live", &["-m"], script, all);
    zombie.kill().and_then(|()| zombie.wait()).unwrap();
    let Some(peers) = peers else { return };
    // SAFETY: no pointers but null, which stands for no groups.
    let dropped = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(65534, 65534, 65534) == 0
            && libc::setresuid(65534, 65534, 65534) == 0
    };
    assert!(dropped);
    let (living, dead) = peers.split_at(3);
    let hidden = format!("/proc/{}", living[0].pid().as_raw_nonzero());
    assert!(!std::path::Path::new(&hidden).exists(), "it is hidden");
    for process in living {
        assert!(process.is_alive() && process.open().is_ok(), "{process:?}");
    }
    for process in dead {
        assert!(!process.is_alive(), "{process:?}");
    }
    assert_eq!(Identity::of_pid(living[0].pid()).unwrap(), living[0]);
}

#[test]
fn processes_of_another_time_namespace_live() {
    let unshare = ["-T", "--boottime", "100000", "--monotonic", "5000", "-f"];
    let name = "processes_of_another_time_namespace_live";
    let Some(peers) = peers(name, &unshare, "", all_of_this_process) else { return };
    for process in &peers {
        assert!(process.is_alive(), "{process:?}");
    }
    assert_eq!(Identity::new(peers[1].pid(), by_start(peers[1].pid())), peers[1]);
}

#[test]
fn processes_live_where_proc_shows_another_pid_namespace() {
    let name = "processes_live_where_proc_shows_another_pid_namespace";
    if peers(name, &["-p", "-f"], "", Vec::new).is_none() {
        return;
    }
    assert!(!procfs::has_our_pids());
    let (mut child, pid) = started();
    let by_time = Identity::from_bits(Identity::new(pid, Instance::ANY).to_bits() ^ (1 << 22)).unwrap();
    let known = [Identity::of_pid(pid).unwrap(), by_time];
    for process in known {
        assert!(process.is_alive(), "{process:?}");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(process.maps(std::os::fd::AsFd::as_fd(&file)), "it cannot be known");
    }
    kill(&mut child);
    assert!(known.iter().all(|process| !process.is_alive()));
    child.wait().unwrap();
    assert!(known.iter().all(|process| !process.is_alive()));
    assert!(pid_namespace().is_ok());
}

#[test]
fn processes_live_without_proc() {
    let (name, script) = ("processes_live_without_proc", "umount -l /proc || exit");
    let Some(peers) = peers(name, &["-m"], script, all_of_this_process) else { return };
    for process in &peers {
        assert!(process.is_alive() && process.open().is_ok(), "{process:?}");
    }
    assert!(Identity::current().is_alive());
    // Linux 6.11 and newer need no /proc for it.
    if let Err(error) = pid_namespace() {
        assert!(error.to_string().contains("/proc is not mounted"), "{error}");
    }
    let (one, other) = std::io::pipe().unwrap();
    let duplicate =
        Identity::current().duplicate_descriptor(std::os::fd::AsRawFd::as_raw_fd(&one) as u32).unwrap();
    let inodes = [rustix::fs::fstat(&one), rustix::fs::fstat(&duplicate)].map(|about| about.unwrap().st_ino);
    assert_eq!(inodes[0], inodes[1]);
    drop((one, other));
    let gone = Identity::current().duplicate_descriptor(u32::MAX).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
    let error = process::thread_count().unwrap_err();
    assert!(error.to_string().contains("/proc is not mounted"), "{error}");
}

//! fork, wait and exit by hand, each in a process without threads.

use std::time::Duration;

use procession::Process;
use procession::process::{self, ExitStatus, Fork, WaitError, WaitFor, WaitOptions};
use test_support::{eventually, process_state, watchdog};

fn single_threaded(function: fn(())) {
    if let Err(error) = Process::spawn(function, ()).unwrap().join() {
        panic!("{error}");
    }
}

/// Forks a child that ends with what the function returns.
fn child(function: impl FnOnce() -> i32) -> process::Child {
    match process::fork().unwrap() {
        Fork::Child => process::exit(function()),
        Fork::Parent(child) => child,
    }
}

#[test]
fn fork_and_wait() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        let me = process::getpid();
        let mut number = 1;
        let first = child(|| {
            number += 1;
            i32::from(process::getppid() != me || process::getpid() == me || number != 2)
        });
        assert_eq!(process::wait().unwrap(), (first.pid(), ExitStatus::Exited(0)));
        assert_eq!(number, 1);
        let codes: Vec<_> = (1..4).map(|code| child(|| code)).collect();
        let mut ended: Vec<_> = codes.iter().map(|_| process::wait().unwrap()).collect();
        ended.sort_by_key(|(_, status)| status.code());
        let expected: Vec<_> =
            codes.iter().zip(1..).map(|(child, code)| (child.pid(), ExitStatus::Exited(code))).collect();
        assert_eq!(ended, expected);
        assert!(matches!(process::wait(), Err(WaitError::NoChild)));
    });
}

#[test]
fn waitpid_waits_for_the_one_that_is_asked_for() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        let sleeper = child(|| {
            std::thread::sleep(Duration::from_secs(3600));
            0
        });
        let quick = child(|| 4);
        assert_eq!(process::waitpid(sleeper.pid(), WaitOptions::NoHang).unwrap(), None);
        let ended = process::waitpid(quick.pid(), WaitOptions::Block).unwrap();
        assert_eq!(ended, Some((quick.pid(), ExitStatus::Exited(4))));
        assert!(matches!(process::waitpid(quick.pid(), WaitOptions::Block), Err(WaitError::NoChild)));
        for none in [0, 1 << 31, u32::MAX] {
            assert!(matches!(process::waitpid(none, WaitOptions::NoHang), Err(WaitError::NoChild)));
        }
        assert_eq!(process::waitpid(WaitFor::Group(0), WaitOptions::NoHang).unwrap(), None);
        assert!(sleeper.is_alive());
        sleeper.kill().unwrap();
        assert_eq!(sleeper.wait().unwrap().signal(), Some(9));
        assert!(!sleeper.is_alive());
        assert!(matches!(process::waitpid(WaitFor::Any, WaitOptions::NoHang), Err(WaitError::NoChild)));
    });
}

#[test]
fn a_zombie_stays_until_it_is_waited_for() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        // Also next to a process of the library's own, which is collected.
        let process = Process::spawn(|_: ()| 1, ()).unwrap();
        let zombie = child(|| 0);
        eventually("it is a zombie", || process_state(zombie.pid()).is_some_and(|(state, _)| state == 'Z'));
        assert_eq!(process.join().unwrap(), 1);
        assert_eq!(process_state(zombie.pid()).unwrap().0, 'Z');
        assert_eq!(process::wait().unwrap().0, zombie.pid());
        assert!(process_state(zombie.pid()).is_none());
    });
}

#[test]
fn with_sigchld_ignored_there_are_no_zombies() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        process::ignore_sigchld().unwrap();
        let children: Vec<_> = (0..20).map(|code| child(|| code)).collect();
        assert!(matches!(process::wait(), Err(WaitError::NoChild)));
        for (child, code) in children.iter().zip(0..) {
            assert!(process_state(child.pid()).is_none());
            // Where the kernel keeps the status it is known all the same.
            match child.wait() {
                Ok(status) => assert_eq!(status, ExitStatus::Exited(code)),
                Err(error) => assert!(matches!(error, WaitError::NoChild), "{error}"),
            }
        }
        process::restore_sigchld().unwrap();
        let kept = child(|| 3);
        assert_eq!(process::wait().unwrap(), (kept.pid(), ExitStatus::Exited(3)));
    });
}

#[test]
fn an_orphan_by_double_fork() {
    let _watchdog = watchdog();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
    // SAFETY: clears close-on-exec of a descriptor of this test.
    assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }, 0);
    let starter = Process::spawn(
        |number: i32| {
            let middle = child(|| match process::fork().unwrap() {
                Fork::Parent(_) => 0,
                Fork::Child => {
                    let middle = process::parent().unwrap();
                    eventually("its parent is gone", || process::getppid() != middle.pid());
                    // SAFETY: the inherited pipe, which nothing else in this process refers to.
                    let mut pipe: std::fs::File = unsafe { std::os::fd::FromRawFd::from_raw_fd(number) };
                    std::io::Write::write_all(&mut pipe, process::getppid().to_string().as_bytes()).unwrap();
                    0
                }
            });
            assert!(middle.wait().unwrap().success());
            middle.pid()
        },
        number,
    )
    .unwrap();
    let pid = starter.pid();
    let middle = starter.join().unwrap_or_else(|error| panic!("{error}"));
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    let parent: u32 = text.parse().unwrap();
    assert!(parent != pid && parent != middle);
}

#[test]
fn a_forked_child_that_returns_reports_nothing() {
    let _watchdog = watchdog();
    // The copy runs on out of the function as well; only the process itself gives the result.
    let process = Process::spawn(
        |_: ()| match process::fork().unwrap() {
            Fork::Child => "copy".to_string(),
            Fork::Parent(copy) => {
                assert_eq!(copy.wait().unwrap(), ExitStatus::Exited(0));
                "process".to_string()
            }
        },
        (),
    )
    .unwrap();
    assert_eq!(process.join().unwrap_or_else(|error| panic!("{error}")), "process");
}

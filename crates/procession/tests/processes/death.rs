//! Which processes end with which, when one is killed or exits.

use std::fs;
use std::io::{BufRead, Read};
use std::time::Duration;

use procession::process::{self, JoinError, JoinSet, StartError, StartMethod};
use procession::{Event, Process, Queue};
use test_support::{AmongThreads, eventually, fork_among_threads, has_ended, watchdog};

const METHODS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];

/// For longer than any test runs, but not beyond: a test that fails must not leave its program waiting at exit.
fn sleep_until_killed(_: ()) {
    std::thread::sleep(Duration::from_secs(150));
}

/// A file for what the processes of one test have to say.
struct Notes(String);

impl Notes {
    fn new(test: &str) -> Notes {
        let path = std::env::temp_dir().join(format!("procession-{test}-{}", std::process::id()));
        let path = path.to_str().unwrap().to_string();
        fs::write(&path, "").unwrap();
        Notes(path)
    }

    fn read(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }

    fn numbers(&self) -> Vec<u32> {
        self.read().split_ascii_whitespace().map(|n| n.parse().unwrap()).collect()
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn note(path: &str, text: &str) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(format!("{text}\n").as_bytes()).unwrap();
}

#[test]
fn daemons_die_with_a_killed_parent_and_others_do_not() {
    let _watchdog = watchdog();
    let notes = Notes::new("killed-parent");
    let parent = Process::spawn(
        |path: String| {
            let mut pids = Vec::new();
            for method in METHODS {
                for daemon in [true, false] {
                    let child = Process::builder(sleep_until_killed, ()).daemon(daemon).start_method(method);
                    pids.push(child.start().unwrap().pid().to_string());
                }
            }
            let child = Process::builder(sleep_until_killed, ()).daemon(true);
            pids.push(child.start_method(StartMethod::Fork).start().unwrap().pid().to_string());
            note(&path, &pids.join(" "));
            sleep_until_killed(());
        },
        notes.0.clone(),
    )
    .unwrap();
    eventually("all have started", || notes.numbers().len() == 5);
    let pids = notes.numbers();
    assert!(pids.iter().all(|pid| !has_ended(*pid)));
    parent.kill().unwrap();
    assert!(matches!(parent.join(), Err(JoinError::Killed { signal: 9, .. })));
    for daemon in [pids[0], pids[2], pids[4]] {
        eventually("the daemon is gone", || has_ended(daemon));
    }
    for survivor in [pids[1], pids[3]] {
        assert!(!has_ended(survivor));
        // SAFETY: a signal to a process of this test.
        assert_eq!(unsafe { libc::kill(survivor as i32, libc::SIGKILL) }, 0);
    }
}

#[test]
fn a_daemon_whose_parent_died_before_it_began_ends() {
    let _watchdog = watchdog();
    for _ in 0..10 {
        let notes = Notes::new("dead-parent");
        let parent = Process::spawn(
            |path: String| {
                let child = Process::builder(sleep_until_killed, ()).daemon(true).start().unwrap();
                note(&path, &child.pid().to_string());
                fork_among_threads().unwrap();
                // Both the parent and its copy die here; the daemon has hardly been executed.
                // SAFETY: a signal to this very process.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            },
            notes.0.clone(),
        )
        .unwrap();
        assert!(parent.join().is_err());
        let daemon = notes.numbers()[0];
        eventually("the daemon is gone", || has_ended(daemon));
    }
}

/// Who is killed while it starts its fork server, or a worker in it, wants nothing any more: that is no complaint.
#[test]
fn a_parent_that_is_killed_in_start_leaves_no_complaint() {
    let _watchdog = watchdog();
    let pipe = std::env::temp_dir().join(format!("procession-complaints-{}", std::process::id()));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let path = pipe.to_str().unwrap().to_string();
    for delay in 0..60 {
        let parent = Process::spawn(
            |(path, delay): (String, u64)| {
                rustix::stdio::dup2_stderr(fs::OpenOptions::new().write(true).open(path).unwrap()).unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(delay * 100));
                    // SAFETY: a signal to this very process.
                    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                });
                let child = Process::builder(sleep_until_killed, ()).daemon(true);
                drop(child.start_method(StartMethod::ForkServer).start());
                sleep_until_killed(());
            },
            (path.clone(), delay),
        )
        .unwrap();
        // To the end: all that the parent has started is gone.
        let complaints = fs::read_to_string(&pipe).unwrap();
        assert!(matches!(parent.join(), Err(JoinError::Killed { signal: 9, .. })));
        assert_eq!(complaints, "");
    }
    fs::remove_file(pipe).unwrap();
}

#[test]
fn a_daemon_outlives_the_thread_that_started_it() {
    let _watchdog = watchdog();
    for method in METHODS {
        let start = move || {
            let begun = Event::new().unwrap();
            let work = |begun: Event| {
                begun.set();
                sleep_until_killed(());
            };
            let daemon = Process::builder(work, begun.clone()).daemon(true).start_method(method).start();
            // What a new process does first is done before the thread ends.
            begun.wait(None);
            daemon
        };
        let daemon = std::thread::spawn(start).join().unwrap().unwrap();
        assert!(daemon.join_timeout(Duration::from_millis(300)).unwrap().is_none(), "{method:?}");
        daemon.terminate().unwrap();
        assert!(matches!(daemon.join(), Err(JoinError::Killed { signal: 15, .. })));
    }
}

#[test]
fn at_exit_children_are_joined_and_daemons_ended() {
    let _watchdog = watchdog();
    for method in StartMethod::ALL {
        let notes = Notes::new("exit");
        let parent = Process::spawn(
            |(path, method): (String, StartMethod)| {
                let late = |path: String| {
                    std::thread::sleep(Duration::from_millis(300));
                    note(&path, "2");
                };
                drop(Process::builder(late, path.clone()).start_method(method).start().unwrap());
                let daemon = |path: String| {
                    // Even one that ignores SIGTERM.
                    // SAFETY: the disposition of a signal of this process.
                    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                    note(&path, "1");
                    sleep_until_killed(());
                };
                let daemon =
                    Process::builder(daemon, path.clone()).daemon(true).start_method(method).start().unwrap();
                eventually("the daemon ignores SIGTERM", || fs::read_to_string(&path).unwrap().contains('1'));
                daemon.pid()
            },
            (notes.0.clone(), method),
        )
        .unwrap();
        let daemon = parent.join().unwrap();
        assert!(has_ended(daemon), "{method:?}");
        assert_eq!(notes.numbers(), [1, 2], "{method:?}");
    }
}

#[test]
fn a_released_process_is_not_waited_for() {
    let _watchdog = watchdog();
    let parent = Process::spawn(
        |_: ()| {
            let child = Process::spawn(sleep_until_killed, ()).unwrap();
            let pid = child.pid();
            assert_eq!(process::active_children().len(), 1);
            child.detach();
            assert_eq!(process::active_children().len(), 0);
            pid
        },
        (),
    )
    .unwrap();
    let child = parent.join().unwrap();
    assert!(!has_ended(child));
    // SAFETY: a signal to a process of this test.
    assert_eq!(unsafe { libc::kill(child as i32, libc::SIGKILL) }, 0);
}

/// Starts a process that is stopped before it has its order, and leaves it.
fn start_and_leave((method, pids, begun): (usize, Queue<u32>, Queue<u32>)) {
    let child = Process::builder(|begun: Queue<u32>| begun.put(&1).unwrap(), begun);
    let child = child.start_method(StartMethod::ALL[method]).start().unwrap();
    // It has ended, perhaps.
    // SAFETY: a signal to a child that is not collected, or to none.
    unsafe { libc::kill(child.pid() as i32, libc::SIGSTOP) };
    pids.put(&child.pid()).unwrap();
    child.detach();
}

#[test]
fn a_released_process_begins_though_its_starter_exits_at_once() {
    let _watchdog = watchdog();
    for (method, name) in StartMethod::ALL.iter().enumerate() {
        let (pids, begun) = (Queue::unbounded().unwrap(), Queue::unbounded().unwrap());
        let starter = Process::spawn(start_and_leave, (method, pids.clone(), begun.clone())).unwrap();
        let child = pids.get().unwrap();
        // It waits, unless the child was stopped only when it had its order.
        let exited = starter.join_timeout(Duration::from_millis(300)).unwrap();
        // SAFETY: a signal that changes nothing for a process that is not stopped.
        unsafe { libc::kill(child as i32, libc::SIGCONT) };
        assert_eq!(begun.get_timeout(Duration::from_secs(60)).unwrap(), 1, "{name:?}");
        if exited.is_none() {
            starter.join().unwrap();
        }
    }
}

#[test]
fn the_fork_server_ends_with_a_killed_program() {
    let _watchdog = watchdog();
    let notes = Notes::new("server");
    let program = Process::spawn(
        |path: String| {
            let server = Process::builder(|_: ()| process::getppid(), ());
            let server = server.start_method(StartMethod::ForkServer).start().unwrap().join().unwrap();
            note(&path, &server.to_string());
            sleep_until_killed(());
        },
        notes.0.clone(),
    )
    .unwrap();
    eventually("the server has started", || notes.numbers().len() == 1);
    let server = notes.numbers()[0];
    assert!(!has_ended(server));
    program.kill().unwrap();
    eventually("the server is gone", || has_ended(server));
}

#[test]
fn output_is_written_once_and_whole() {
    let _watchdog = watchdog();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
    // SAFETY: clears close-on-exec of a descriptor of this test.
    assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }, 0);
    let process = Process::spawn(
        |number: i32| {
            // SAFETY: standard output becomes the inherited pipe.
            unsafe { libc::dup2(number, 1) };
            print!("parent ");
            let child = Process::fork(|| print!("child ")).unwrap();
            child.join().unwrap();
            match process::fork().unwrap() {
                process::Fork::Child => {
                    print!("by hand ");
                    process::exit(0)
                }
                process::Fork::Parent(child) => assert!(child.wait().unwrap().success()),
            }
            print!("end");
        },
        number,
    )
    .unwrap();
    process.join().unwrap_or_else(|error| panic!("{error}"));
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "parent child by hand end");
}

#[test]
fn an_inherited_handle_is_refused_in_a_forked_child() {
    let _watchdog = watchdog();
    let process = Process::spawn(
        |_: ()| {
            let sibling = Process::spawn(|n: u32| n, 5).unwrap();
            let child = Process::fork(|| {
                assert!(process::active_children().is_empty());
                matches!(sibling.join(), Err(JoinError::NotAChild { .. }))
            });
            assert!(child.unwrap().join().unwrap());
            sibling.join().unwrap()
        },
        (),
    )
    .unwrap();
    assert_eq!(process.join().unwrap_or_else(|error| panic!("{error}")), 5);
}

/// What a program that ends with a waiting child says, and that it says so once.
#[test]
fn an_exit_that_waits_for_children_says_for_which() {
    let _watchdog = watchdog();
    for method in StartMethod::ALL {
        let (mut said, stderr) = std::io::pipe().unwrap();
        let gate = Event::new().unwrap();
        let parent = Process::forking(|| {
            rustix::stdio::dup2_stderr(stderr).unwrap();
            let wait = |gate: Event| assert!(gate.wait(None));
            let child = Process::builder(wait, gate.clone()).name("worker").start_method(method);
            child.among_threads().start().unwrap().pid()
        });
        let parent = parent.among_threads().start().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(&mut said).read_line(&mut line).unwrap();
        gate.set();
        let child = parent.join().unwrap();
        assert!(line.contains(&format!("worker (pid {child})")), "{line}");
        assert!(line.contains(&format!("(pid {}) is ending", parent.pid())), "{line}");
    }
}

#[test]
fn processes_of_a_set_end_with_it() {
    let _watchdog = watchdog();
    for method in StartMethod::ALL {
        let started = Process::forking(|| {
            let mut set = JoinSet::new();
            let stubborn = |ready: Event| {
                // SAFETY: the disposition of a signal of this process.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                ready.set();
                sleep_until_killed(());
            };
            let ready = Event::new().unwrap();
            let builder = Process::builder(stubborn, ready.clone()).start_method(method);
            set.start(builder).unwrap();
            set.start(
                Process::builder(|_: Event| sleep_until_killed(()), ready.clone()).start_method(method),
            )
            .unwrap();
            assert!(ready.wait(None));
            let pids: Vec<u32> = set.iter().map(Process::pid).collect();
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _set = set;
                std::panic::resume_unwind(Box::new("a bug"));
            }));
            assert!(caught.is_err());
            assert!(pids.iter().all(|pid| has_ended(*pid)));
            assert!(process::active_children().is_empty());
            pids.len()
        });
        assert_eq!(started.among_threads().start().unwrap().join().unwrap(), 2, "{method:?}");
    }
}

#[test]
fn processes_of_a_set_end_with_a_killed_parent() {
    let _watchdog = watchdog();
    let notes = Notes::new("set");
    let parent = Process::spawn(
        |path: String| {
            let mut set = JoinSet::new();
            let pid = set.spawn(sleep_until_killed, ()).unwrap().pid();
            note(&path, &pid.to_string());
            sleep_until_killed(());
        },
        notes.0.clone(),
    )
    .unwrap();
    eventually("the process has started", || notes.numbers().len() == 1);
    parent.kill().unwrap();
    assert!(matches!(parent.join(), Err(JoinError::Killed { .. })));
    eventually("the process is gone", || has_ended(notes.numbers()[0]));
}

#[test]
fn a_set_gives_results_in_order_and_ends_the_others_at_the_first_failure() {
    let _watchdog = watchdog();
    let slow_first = |n: u64| {
        std::thread::sleep(Duration::from_millis(if n == 0 { 100 } else { 0 }));
        n * n
    };
    let mut set = JoinSet::new();
    for n in 0..3 {
        set.spawn(slow_first, n).unwrap();
    }
    assert_eq!((set.len(), set.is_empty()), (3, false));
    assert_eq!(set.join_all().unwrap(), [0, 1, 4]);

    let mut set = JoinSet::new();
    set.spawn(sleep_until_killed, ()).unwrap();
    let sleeper = set.iter().next().unwrap().pid();
    set.spawn(|()| std::process::exit(3), ()).unwrap();
    assert!(matches!(set.join_all(), Err(JoinError::Exited { code: 3, .. })));
    assert!(has_ended(sleeper));

    let mut set = JoinSet::new();
    let pid = set.spawn(|n: u32| n, 5).unwrap().pid();
    let (joined, result) = set.join_next().unwrap();
    assert_eq!((joined, result.unwrap()), (pid, 5));
    assert!(set.join_next().is_none());
    assert!(set.join_all().unwrap().is_empty());
    let detached = JoinSet::new().start(Process::builder(|n: u32| n, 5).detached(true)).map(drop);
    assert!(matches!(detached, Err(StartError::Invalid(_))));
}

#[test]
fn a_forked_childs_copy_of_a_set_is_empty() {
    let _watchdog = watchdog();
    let parent = Process::forking(|| {
        let mut set = JoinSet::new();
        let gate = Event::new().unwrap();
        set.spawn(|gate: Event| assert!(gate.wait(None)), gate.clone()).unwrap();
        let child = Process::fork(|| {
            assert!(set.is_empty());
            assert!(set.join_next().is_none());
            set.spawn(|n: u32| assert_eq!(n, 1), 1).unwrap();
            set.join_next().unwrap().1.is_ok()
        });
        assert!(child.unwrap().join().unwrap());
        assert_eq!(set.len(), 1);
        gate.set();
        set.join_all().unwrap().len()
    });
    assert_eq!(parent.among_threads().start().unwrap().join().unwrap(), 1);
}

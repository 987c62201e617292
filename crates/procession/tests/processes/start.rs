//! Starting, joining and ending processes, by each start method.

use std::collections::HashMap;
use std::time::Duration;

use procession::Process;
use procession::process::{self, ExitStatus, JoinError, StartError, StartMethod};
use procession_core::shm::transfer;
use test_support::{
    AmongThreads, descriptors, eventually, kernel_keeps_status, process_state, stderr_silenced, watchdog,
};

/// The methods that work in a process with threads, as a test is.
const WITH_THREADS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];

/// Runs the function in a process without threads, where forking is allowed, and fails with its panic.
fn single_threaded(function: fn(())) {
    if let Err(error) = Process::spawn(function, ()).unwrap().join() {
        panic!("{error}");
    }
}

fn add((a, b): (u64, u64)) -> u64 {
    a + b
}

#[test]
fn a_function_gives_its_result() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let process = Process::builder(add, (40, 2)).start_method(method).start().unwrap();
        assert_eq!(process.join().unwrap(), 42, "{method:?}");
        assert_eq!(process.exitcode(), Some(0));
        assert!(!process.is_alive());
        assert!(matches!(process.join(), Err(JoinError::Taken { .. })));
    }
}

#[test]
fn closures_and_function_pointers_work() {
    let _watchdog = watchdog();
    let closure = Process::spawn(|text: String| text.to_uppercase(), "loud".to_string()).unwrap();
    assert_eq!(closure.join().unwrap(), "LOUD");
    let pointers: [fn((u64, u64)) -> u64; 2] = [add, |(a, b)| a * b];
    let results: Vec<u64> =
        pointers.into_iter().map(|f| Process::spawn(f, (6, 7)).unwrap().join().unwrap()).collect();
    assert_eq!(results, [13, 42]);
}

#[test]
fn structured_values_travel() {
    let _watchdog = watchdog();
    let words: HashMap<String, Vec<u32>> = [("a".into(), vec![1, 2]), ("b".into(), vec![])].into();
    let process = Process::spawn(
        |words: HashMap<String, Vec<u32>>| {
            let total: Result<u32, String> = Ok(words.values().flatten().sum());
            (words, total)
        },
        words.clone(),
    );
    assert_eq!(process.unwrap().join().unwrap(), (words, Ok(3)));
}

#[test]
fn large_arguments_and_results_travel() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let big = "0123456789abcdefghijklmnopqrstuvwxyz!".repeat((50 << 20) / 37);
        let process = Process::builder(|big: String| big, big.clone()).start_method(method).start().unwrap();
        assert!(process.join().unwrap() == big, "{method:?}");
    }
}

#[test]
fn a_child_that_is_stopped_and_killed_does_not_block_a_large_start() {
    let _watchdog = watchdog();
    // Killed before it can have read its arguments, most likely; in either case nothing hangs.
    for _ in 0..5 {
        let process = Process::spawn(|big: String| big.len(), "x".repeat(8 << 20)).unwrap();
        process.kill().unwrap();
        match process.join() {
            Err(JoinError::Killed { signal: 9, .. }) | Ok(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_panic_is_an_error_with_its_message_and_place() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let process = Process::builder(
            |n: i32| {
                stderr_silenced();
                panic!("number {n} is bad")
            },
            13,
        )
        .name("judge")
        .start_method(method)
        .start()
        .unwrap();
        let process: Process<()> = process;
        match process.join().unwrap_err() {
            JoinError::Panicked { name, pid, message, location } => {
                assert_eq!((name.as_str(), message.as_str()), ("judge", "number 13 is bad"));
                assert_eq!(pid, process.pid());
                assert!(location.unwrap().contains(file!()));
            }
            other => panic!("{other}"),
        }
        assert_eq!(process.exit_status(), Some(ExitStatus::Exited(101)));
        assert!(process.join().unwrap_err().to_string().contains("panicked at"));
    }
}

#[test]
fn a_killed_process_is_an_error_with_its_signal() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        for (signal, name) in [(15, "terminate"), (9, "kill"), (2, "interrupt")] {
            let process = Process::builder(sleep_until_killed, ()).start_method(method).start().unwrap();
            assert!(process.join_timeout(Duration::from_millis(10)).unwrap().is_none());
            assert!(process.is_alive());
            assert_eq!(process.exit_status(), None);
            // A worker of the fork server takes Ctrl-C once it is on its own.
            if signal == 2 {
                eventually("it is on its own", || runs_its_function(process.pid()));
            }
            match name {
                "terminate" => process.terminate(),
                "kill" => process.kill(),
                _ => process.interrupt(),
            }
            .unwrap();
            match process.join().unwrap_err() {
                JoinError::Killed { signal: found, pid, .. } => {
                    assert_eq!((found, pid), (signal, process.pid()), "{method:?}");
                }
                other => panic!("{name}, {method:?}: {other}"),
            }
            assert_eq!(process.exitcode(), Some(-signal), "{method:?}");
            // To a process that is gone signals do nothing.
            process.kill().unwrap();
        }
    }
}

/// For longer than any test runs, but not beyond: a test that fails must not leave its program waiting at exit.
fn sleep_until_killed(_: ()) {
    std::thread::sleep(Duration::from_secs(150));
}

/// Whether it sleeps in `nanosleep` rather than waiting for its order.
fn runs_its_function(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at.contains("nanosleep"))
}

#[test]
fn an_exit_code_is_handed_on() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let process =
            Process::builder(|code: i32| std::process::exit(code), 7).start_method(method).start().unwrap();
        let process: Process<()> = process;
        assert!(matches!(process.join(), Err(JoinError::Exited { code: 7, .. })));
        assert_eq!(process.exitcode(), Some(7));
        let process: Process<()> =
            Process::builder(|code: i32| process::exit(code), 0).start_method(method).start().unwrap();
        assert!(matches!(process.join(), Err(JoinError::Exited { code: 0, .. })));
    }
}

#[test]
fn names_and_parents_are_known() {
    let _watchdog = watchdog();
    let who = |_: ()| {
        let current = process::current();
        let parent = process::parent().unwrap();
        assert!(parent.is_alive());
        parent.pidfd().unwrap();
        (
            current.name().to_string(),
            current.pid(),
            current.is_daemon(),
            parent.pid(),
            parent.name().to_string(),
        )
    };
    for method in WITH_THREADS {
        let process =
            Process::builder(who, ()).name("scribe").daemon(true).start_method(method).start().unwrap();
        let expected =
            ("scribe".into(), process.pid(), true, std::process::id(), process::current().name().to_string());
        assert_eq!(process.join().unwrap(), expected, "{method:?}");
    }
    assert_eq!(process::current().name(), "MainProcess");
    assert!(process::parent().is_none());
}

#[test]
fn default_names_count_along_the_family() {
    let _watchdog = watchdog();
    let family = |_: ()| {
        let own = process::current().name().to_string();
        let name = |_: ()| process::current().name().to_string();
        let first = Process::spawn(name, ()).unwrap();
        let second = Process::builder(name, ()).start_method(StartMethod::Fork).start();
        // The reaper is no hindrance to a fork.
        (own, first.join().unwrap(), second.unwrap().join().unwrap())
    };
    let process = Process::spawn(family, ()).unwrap();
    let (own, first, second) = process.join().unwrap();
    assert_eq!(own, process.name());
    assert!(own.starts_with("Process-"));
    assert_eq!((first, second), (format!("{own}:1"), format!("{own}:2")));
}

#[test]
fn forked_processes_are_copies() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        let mut list = vec![1, 2];
        let borrowed = &mut list;
        let process = Process::fork(move || {
            borrowed.push(3);
            borrowed.clone()
        })
        .unwrap();
        assert_eq!(process.join().unwrap(), [1, 2, 3]);
        assert_eq!(list, [1, 2], "the child's changes never show in the parent");

        let process = Process::builder(add, (1, 2)).start_method(StartMethod::Fork).start().unwrap();
        assert_eq!(process.join().unwrap(), 3);

        let process = Process::fork(|| {
            stderr_silenced();
            panic!("forked")
        });
        let error = Process::<()>::join(&process.unwrap()).unwrap_err();
        assert!(matches!(error, JoinError::Panicked { message, .. } if message == "forked"));

        let process: Process<()> = Process::fork(|| process::exit(9)).unwrap();
        assert!(matches!(process.join(), Err(JoinError::Exited { code: 9, .. })));

        let process = Process::forking(|| sleep_until_killed(())).name("sleeper").start().unwrap();
        process.kill().unwrap();
        assert!(matches!(process.join(), Err(JoinError::Killed { signal: 9, .. })));
        assert!(matches!(
            Process::forking(|| 1).start_method(StartMethod::Spawn).start(),
            Err(StartError::NeedsFork)
        ));
    });
}

#[test]
fn a_fork_is_refused_while_there_are_threads() {
    let _watchdog = watchdog();
    match Process::fork(|| 1) {
        Err(StartError::Threads { threads }) => assert!(threads >= 2),
        other => panic!("{other:?}"),
    }
    assert!(matches!(process::fork(), Err(StartError::Threads { .. })));
    let allowed = Process::forking(|| 1).among_threads().start().unwrap();
    assert_eq!(allowed.join().unwrap(), 1);
    single_threaded(|()| {
        // As soon as the thread is gone forking works again.
        std::thread::spawn(|| {}).join().unwrap();
        assert_eq!(Process::fork(|| 1).unwrap().join().unwrap(), 1);
    });
}

#[test]
fn two_hundred_at_once() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let processes: Vec<_> = (0..200_u32)
            .map(|n| Process::builder(|n: u32| n * 2, n).start_method(method).start().unwrap())
            .collect();
        for (n, process) in processes.iter().enumerate() {
            assert_eq!(process.join().unwrap() as usize, n * 2, "{method:?}");
        }
    }
}

#[test]
fn starts_from_many_threads_at_once() {
    let _watchdog = watchdog();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            scope.spawn(move || {
                for n in 0..5 {
                    let method = WITH_THREADS[((thread + n) % 2) as usize];
                    let process = Process::builder(add, (thread, n)).start_method(method).start().unwrap();
                    assert_eq!(process.join().unwrap(), thread + n);
                }
            });
        }
    });
}

#[test]
fn nothing_is_left_open_and_no_zombie_remains() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        let round = || {
            for method in StartMethod::ALL {
                for n in 0..70 {
                    let process = Process::builder(add, (n, 1)).start_method(method).start().unwrap();
                    if n % 2 == 0 {
                        assert_eq!(process.join().unwrap(), n + 1);
                    }
                }
            }
            eventually("all have ended", || process::active_children().is_empty());
        };
        round();
        let before = descriptors();
        round();
        eventually("as much is open as before", || descriptors() == before);
        let me = std::process::id();
        for entry in std::fs::read_dir("/proc").unwrap() {
            if let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse()
                && let Some((state, parent)) = process_state(pid)
            {
                assert!(parent != me || state != 'Z', "{pid} is a zombie");
            }
        }
    });
}

#[test]
fn an_unjoined_process_is_collected_promptly() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let process = Process::builder(add, (1, 1)).start_method(method).start().unwrap();
        let pid = process.pid();
        eventually("it is gone without a call of ours", || process_state(pid).is_none());
        assert_eq!(process.join().unwrap(), 2);
        assert_eq!(process.exitcode(), Some(0));
    }
}

#[test]
fn ignoring_sigchld_does_not_break_join() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        process::ignore_sigchld().unwrap();
        for method in StartMethod::ALL {
            let process = Process::builder(add, (2, 3)).start_method(method).start().unwrap();
            assert_eq!(process.join().unwrap(), 5, "{method:?}");
            assert_eq!(process.exitcode(), Some(0), "{method:?}");
            let process = Process::builder(sleep_until_killed, ()).start_method(method).start().unwrap();
            process.kill().unwrap();
            assert!(process.join().is_err());
            let status = process.exit_status().unwrap();
            let known = if kernel_keeps_status() { Some(9) } else { status.signal() };
            assert_eq!(status.signal(), known, "{method:?}: {status}");
        }
    });
}

#[test]
fn a_program_that_waits_itself_does_not_break_join() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        let thief = std::thread::spawn(|| {
            let mut stolen = 0;
            for _ in 0..2000 {
                let mut status = 0;
                // SAFETY: the status is a number on the stack.
                stolen += i32::from(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } > 0);
                std::thread::sleep(Duration::from_micros(50));
            }
            stolen
        });
        while !thief.is_finished() {
            let process = Process::spawn(|n: u64| n + 1, 1).unwrap();
            assert_eq!(process.join().unwrap(), 2);
            assert_eq!(process.exitcode(), Some(0));
            let killed = Process::spawn(sleep_until_killed, ()).unwrap();
            killed.kill().unwrap();
            assert!(killed.join().is_err());
            if kernel_keeps_status() {
                assert_eq!(killed.exitcode(), Some(-9));
            }
        }
        thief.join().unwrap();
    });
}

#[test]
fn a_detached_process_is_nobodys_child() {
    let _watchdog = watchdog();
    let starter = std::process::id();
    let mut methods = WITH_THREADS.to_vec();
    methods.push(StartMethod::Fork);
    for method in methods {
        let process = Process::builder(|_: ()| (process::getppid(), process::parent().unwrap().pid()), ())
            .detached(true)
            .among_threads()
            .start_method(method)
            .start()
            .unwrap();
        let (kernels, ours) = process.join().unwrap();
        assert_ne!(kernels, starter, "{method:?}");
        assert_eq!(ours, starter, "{method:?}");
        assert_eq!(process.exitcode(), Some(0));
    }
    let killed = Process::builder(sleep_until_killed, ()).detached(true).start().unwrap();
    assert!(!process::active_children().iter().any(|child| child.pid() == killed.pid()));
    killed.kill().unwrap();
    assert!(killed.join().is_err());
    assert!(process::detach(add, (1, 2)).unwrap() > 1);
    assert!(matches!(
        Process::builder(add, (1, 2)).detached(true).daemon(true).start(),
        Err(StartError::Invalid(_))
    ));
}

#[test]
fn the_fork_server_is_started_again() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        let start = || {
            let server = |_: ()| process::getppid();
            Process::builder(server, ()).start_method(StartMethod::ForkServer).start().unwrap()
        };
        let server = start().join().unwrap();
        assert_eq!(start().join().unwrap(), server, "the server stays");
        let sleeper =
            Process::builder(sleep_until_killed, ()).start_method(StartMethod::ForkServer).start().unwrap();
        // SAFETY: a signal to a process of this test.
        assert_eq!(unsafe { libc::kill(server as i32, libc::SIGKILL) }, 0);
        let other = start().join().unwrap();
        assert_ne!(other, server);
        // A worker whose server died can still be ended and joined.
        assert!(sleeper.is_alive());
        sleeper.kill().unwrap();
        let error = sleeper.join().unwrap_err();
        assert!(matches!(error, JoinError::Killed { signal: 9, .. }), "{error}");
        // A forked child has a server of its own.
        let childs = Process::fork(|| start().join().unwrap()).unwrap().join().unwrap();
        assert_ne!(childs, other);
        assert_eq!(start().join().unwrap(), other);
    });
}

#[test]
fn the_default_start_method_is_the_starters() {
    let _watchdog = watchdog();
    assert_eq!(process::default_start_method(), StartMethod::Spawn);
    single_threaded(|()| {
        process::set_default_start_method(StartMethod::ForkServer);
        let process = Process::spawn(|_: ()| (process::default_start_method(), process::getppid()), ());
        let (method, parent) = process.unwrap().join().unwrap();
        assert_eq!(method, StartMethod::ForkServer);
        assert_ne!(parent, std::process::id());
    });
}

#[test]
fn running_out_of_descriptors_is_an_error() {
    let _watchdog = watchdog();
    single_threaded(|()| {
        for method in StartMethod::ALL {
            // What stays open from a method's first use is open before the count.
            Process::builder(add, (1, 1)).start_method(method).start().unwrap().join().unwrap();
            eventually("it is forgotten", || process::active_children().is_empty());
            let before = descriptors();
            let mut held: Vec<std::fs::File> = Vec::new();
            let limit = libc::rlimit { rlim_cur: before as u64 + 20, rlim_max: 4096 };
            // SAFETY: the limit is read only.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
            while let Ok(file) = std::fs::File::open("/dev/null") {
                held.push(file);
            }
            for left in 0..6 {
                match Process::builder(add, (1, 1)).start_method(method).start() {
                    Ok(process) => assert_eq!(process.join().unwrap(), 2, "{left} left"),
                    Err(StartError::System { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
                held.pop();
            }
            drop(held);
            assert_eq!(
                Process::builder(add, (1, 1)).start_method(method).start().unwrap().join().unwrap(),
                2
            );
            eventually("nothing is left open", || {
                process::active_children().is_empty() && descriptors() <= before
            });
        }
    });
}

#[test]
fn the_childs_surroundings_are_in_order() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        let process = Process::builder(
            |_: ()| {
                assert!(std::env::var_os("PROCESSION_CHILD").is_none());
                assert_eq!(std::env::args_os().count(), 1);
                let name = std::env::args_os().next().unwrap();
                let name = std::path::Path::new(&name).file_name().unwrap().to_string_lossy().into_owned();
                let command = std::fs::read_to_string("/proc/self/comm").unwrap();
                assert!(name.starts_with(command.trim_end()), "{command}");
                // Standard input is empty.
                assert_eq!(std::io::stdin().lines().count(), 0);
                // SIGPIPE is an error of writing, not the process's end.
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                assert!(std::io::Write::write(&mut { writer }, b"x").is_err());
                // Threads, with names, panics that are caught, and a hook of one's own.
                let thread = std::thread::Builder::new().name("inner".into());
                let name = thread.spawn(|| std::thread::current().name().map(String::from)).unwrap();
                assert_eq!(name.join().unwrap().as_deref(), Some("inner"));
                std::panic::set_hook(Box::new(|_| {}));
                assert!(std::panic::catch_unwind(|| panic!("caught")).is_err());
                1
            },
            (),
        );
        assert_eq!(process.start_method(method).start().unwrap().join().unwrap_or_else(|e| panic!("{e}")), 1);
    }
}

#[test]
fn what_a_result_cannot_be_is_an_error() {
    let _watchdog = watchdog();
    #[derive(Debug)]
    struct Stubborn;
    impl serde::Serialize for Stubborn {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("will not go"))
        }
    }
    impl<'de> serde::Deserialize<'de> for Stubborn {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("will not come"))
        }
    }
    assert!(matches!(Process::spawn(|_: Stubborn| (), Stubborn), Err(StartError::Arguments(_))));
    let process = Process::spawn(|_: ()| Stubborn, ()).unwrap();
    assert!(matches!(process.join(), Err(JoinError::Result { .. })));
    assert!(matches!(process.join(), Err(JoinError::Result { .. })), "an error is not taken away");
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Either {
    Number(u64),
}

#[test]
fn types_that_could_not_be_read_back_are_said_to_be_so() {
    let _watchdog = watchdog();
    let refused = Process::spawn(|_: Either| (), Either::Number(1));
    assert!(matches!(refused, Err(StartError::Arguments(text)) if text.contains("could not be read back")));
    // Before the function has run.
    let refused = Process::spawn(|_: ()| Either::Number(1), ());
    assert!(matches!(refused, Err(StartError::Result(text)) if text.contains("could not be read back")));
}

#[test]
fn children_have_children() {
    let _watchdog = watchdog();
    fn generation(left: u32) -> u32 {
        if left == 0 {
            return 0;
        }
        let method = StartMethod::ALL[left as usize % 3];
        let child = Process::builder(generation, left - 1)
            .daemon(left.is_multiple_of(2))
            .start_method(method)
            .start();
        1 + child.unwrap().join().unwrap()
    }
    // A daemon has a reaper from its start, which a fork in it does not mind.
    assert_eq!(Process::spawn(generation, 6).unwrap().join().unwrap(), 6);
}

/// A descriptor that is serialised as this library's handles are.
struct Handle(std::os::fd::OwnedFd);

impl serde::Serialize for Handle {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let transit =
            transfer::attach(std::os::fd::AsFd::as_fd(&self.0)).map_err(serde::ser::Error::custom)?;
        transit.expect("starting a process carries descriptors").to_bytes().serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Handle {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let transit = procession_core::shm::FdRef::from_bytes(<_>::deserialize(deserializer)?);
        transit.and_then(transfer::receive).map(Handle).map_err(serde::de::Error::custom)
    }
}

#[test]
fn handles_travel_both_ways() {
    let _watchdog = watchdog();
    for method in WITH_THREADS {
        // More than one message carries, and a body that lies outside of the message.
        let (readers, writers): (Vec<Handle>, Vec<Handle>) = (0..400)
            .map(|_| std::io::pipe().unwrap())
            .map(|(reader, writer)| (Handle(reader.into()), Handle(writer.into())))
            .unzip();
        let write = |(writers, padding): (Vec<Handle>, String)| {
            assert_eq!(padding.len(), 1 << 20);
            for (n, writer) in writers.iter().enumerate() {
                let mut writer = std::fs::File::from(writer.0.try_clone().unwrap());
                std::io::Write::write_all(&mut writer, n.to_string().as_bytes()).unwrap();
            }
            let (reader, writer) = std::io::pipe().unwrap();
            std::io::Write::write_all(&mut { writer }, b"from the child").unwrap();
            Handle(reader.into())
        };
        let process = Process::builder(write, (writers, "x".repeat(1 << 20))).start_method(method);
        let result = process.start().unwrap().join().unwrap_or_else(|error| panic!("{error}"));
        let read = |reader: Handle| std::io::read_to_string(std::fs::File::from(reader.0)).unwrap();
        assert_eq!(read(result), "from the child");
        for (n, reader) in readers.into_iter().enumerate() {
            assert_eq!(read(reader), n.to_string(), "{method:?}");
        }
    }
}

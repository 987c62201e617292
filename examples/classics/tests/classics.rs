//! Each program prints what it promises.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// A program that has not ended by then hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The lines of a program that ended well, together with what it left behind: until nobody can write any more.
#[track_caller]
fn lines(program: &str) -> Vec<String> {
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (send, receive) = channel();
    thread::spawn(move || {
        let stderr = thread::spawn(move || text(&mut err));
        let stdout = text(&mut out);
        // The test may have given up.
        let _ = send.send((stdout, stderr.join().unwrap()));
    });
    let (stdout, stderr) = match receive.recv_timeout(WATCHDOG) {
        Ok(output) => output,
        Err(RecvTimeoutError::Timeout) => {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{program} hangs");
        }
        Err(RecvTimeoutError::Disconnected) => panic!("the output of {program} cannot be read"),
    };
    let status = child.wait().unwrap();
    assert!(status.success(), "{program}: {status}\n{stdout}\n{stderr}");
    assert_eq!(stderr, "");
    stdout.lines().map(str::to_owned).collect()
}

fn text(from: &mut impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// The numbers at the `#` of the pattern, when the line is otherwise the same.
fn scan(pattern: &str, line: &str) -> Option<Vec<u32>> {
    let mut parts = pattern.split('#');
    let mut rest = line.strip_prefix(parts.next()?)?;
    let mut numbers = Vec::new();
    for part in parts {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        numbers.push(rest[..digits].parse().ok()?);
        rest = rest[digits..].strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

/// As [`scan`] for all lines in their order.
#[track_caller]
fn scan_all(patterns: &[&str], lines: &[String]) -> Vec<u32> {
    assert_eq!(lines.len(), patterns.len(), "{lines:#?}");
    let numbers = patterns
        .iter()
        .zip(lines)
        .map(|(pattern, line)| scan(pattern, line).unwrap_or_else(|| panic!("{line:?} is not {pattern:?}")));
    numbers.flatten().collect()
}

/// The lines of one speaker, who starts each with this.
fn of(speaker: &str, lines: &[String]) -> Vec<String> {
    lines.iter().filter(|line| line.starts_with(speaker)).cloned().collect()
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[test]
fn bounded_queue() {
    assert_eq!(
        lines(env!("CARGO_BIN_EXE_bounded_queue")),
        [
            "put 1: 1 of 3 in the queue, full: false",
            "put 2: 2 of 3 in the queue, full: false",
            "put 3: 3 of 3 in the queue, full: true",
            "put_timeout 4: still full after 500ms",
            "try_put 4: the queue is full",
            "get 1: 2 of 3 in the queue, empty: false",
            "get 2: 1 of 3 in the queue, empty: false",
            "get 3: 0 of 3 in the queue, empty: true",
            "get_timeout: still empty after 500ms",
            "try_get: the queue is empty",
        ]
    );
}

#[test]
fn polling_reader() {
    let lines = lines(env!("CARGO_BIN_EXE_polling_reader"));
    assert_eq!(lines.len(), 7, "{lines:#?}");
    assert_eq!(of("writer", &lines), ["writer: put alpha", "writer: put beta", "writer: put gamma"]);
    assert_eq!(of("reader", &lines), ["reader: got alpha", "reader: got beta", "reader: got gamma"]);
    assert_eq!(lines[6], "main: the reader got 3 messages");
}

#[test]
fn joinable_queue() {
    let lines = lines(env!("CARGO_BIN_EXE_joinable_queue"));
    assert_eq!(of("main", &lines), ["main: 6 tasks put", "main: all tasks are done, 0 are left"]);
    assert_eq!(lines.last().unwrap(), "main: all tasks are done, 0 are left");
    let done = of("consumer", &lines);
    assert_eq!(done.len(), 6, "{lines:#?}");
    let mut tasks: Vec<u32> = done
        .iter()
        .flat_map(|line| scan("consumer #: task # is done", line).unwrap()[1..].to_vec())
        .collect();
    tasks.sort_unstable();
    assert_eq!(tasks, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn sentinels() {
    let lines = lines(env!("CARGO_BIN_EXE_sentinels"));
    assert_eq!(lines.len(), 13, "{lines:#?}");
    let mut numbers = Vec::new();
    for consumer in 1..=3 {
        let mut said = of(&format!("consumer {consumer}"), &lines);
        assert_eq!(said.pop().unwrap(), format!("consumer {consumer}: got the sentinel"));
        numbers.extend(said.iter().map(|line| scan("consumer #: got #", line).unwrap()[1]));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(lines[12], "main: all consumers together: 45; left in the queue: 0");
}

#[test]
fn fork() {
    let lines = lines(env!("CARGO_BIN_EXE_fork"));
    let patterns = [
        "before: process #, money 100",
        "child: process #, parent #, money 150",
        "parent: process #, child #, money 70",
    ];
    let pids = scan_all(&patterns, &lines);
    let (parent, child) = (pids[0], pids[1]);
    assert_ne!(parent, child);
    assert_eq!(pids, [parent, child, parent, parent, child]);
}

#[test]
fn exit_status() {
    let lines = lines(env!("CARGO_BIN_EXE_exit_status"));
    let patterns = [
        "parent: child # is to exit with 7",
        "parent: child # exited with 7",
        "parent: child # sleeps, waitpid says None",
        "parent: child # was ended by signal 9",
        "parent: there is no child process to wait for",
    ];
    let pids = scan_all(&patterns, &lines);
    assert_eq!(pids[0], pids[1]);
    assert_eq!(pids[2], pids[3]);
    assert_ne!(pids[1], pids[2]);
}

#[test]
fn orphan() {
    let lines = lines(env!("CARGO_BIN_EXE_orphan"));
    let patterns = [
        "main: process #",
        "main: the process in the middle ended with exit code 0",
        "main: process # is on its own",
    ];
    let mains = scan_all(&patterns, &of("main", &lines));
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let orphan = scan_all(&["orphan: process #, has another parent: true"], &of("orphan", &lines));
    let detached = scan_all(&["detached: process #, has another parent: true"], &of("detached", &lines));
    assert_eq!(mains[1], detached[0]);
    assert!(orphan[0] != mains[0] && detached[0] != mains[0]);
}

#[test]
fn ignored_sigchld() {
    let lines = lines(env!("CARGO_BIN_EXE_ignored_sigchld"));
    let patterns = [
        "SIGCHLD as usual",
        "child # ended, its state is Z: a zombie",
        "child # was waited for: exit code 0",
        "SIGCHLD ignored",
        "child # ended and is forgotten",
        "wait: there is no child process to wait for",
    ];
    let pids = scan_all(&patterns, &lines);
    assert_eq!(pids[0], pids[1]);
}

#[test]
fn process() {
    let lines = lines(env!("CARGO_BIN_EXE_process"));
    assert_eq!(lines.len(), 9, "{lines:#?}");
    let main = scan_all(&["MainProcess: process #"], &lines[..1]);
    let greeter = scan_all(&["greeter: process #, parent #"], &of("greeter", &lines));
    let patterns = [
        "main: started greeter, process #, daemon: false",
        "main: greeter returned \"hello hello hello\"",
        "main: greeter is alive: false, exit code Some(0)",
        "main: started sleeper, process #, daemon: true",
        "main: sleeper is alive: true, exit code None",
    ];
    let said = of("main", &lines);
    let pids = scan_all(&patterns, &said[..5]);
    assert_eq!(greeter, [pids[0], main[0]]);
    let ended = &said[5];
    assert!(ended.starts_with(&format!("main: process sleeper (pid {}) was killed by ", pids[1])), "{ended}");
    assert_eq!(said[6], "main: sleeper is alive: false, exit code Some(-15)");
}

#[test]
fn pipe() {
    assert_eq!(
        lines(env!("CARGO_BIN_EXE_pipe")),
        [
            "child: received \"to\"",
            "parent: \"to\" has 2 letters",
            "child: received \"and\"",
            "parent: \"and\" has 3 letters",
            "child: received \"fro again\"",
            "parent: \"fro again\" has 9 letters",
            "child: the other end is closed",
        ]
    );
}

#[test]
fn requests() {
    let lines = lines(env!("CARGO_BIN_EXE_requests"));
    let handled = [
        "handler: 1 + 10 = 11",
        "handler: 2 + 20 = 22",
        "handler: 3 + 30 = 33",
        "handler: no request for 2 s",
    ];
    assert_eq!(of("handler", &lines), handled);
    let asked = ["main: request 1", "main: request 2", "main: request 3", "main: 3 requests were handled"];
    assert_eq!(of("main", &lines), asked);
    assert_eq!(lines.last().unwrap(), "main: 3 requests were handled");
}

#[test]
fn value() {
    let lines = lines(env!("CARGO_BIN_EXE_value"));
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert_eq!(lines[0], "before: 500");
    assert_eq!(sorted(lines[1..3].to_vec()), ["1000 times +3: done", "1000 times -2: done"]);
    assert_eq!(lines[3], "after: 1500");
}

#[test]
fn array() {
    assert_eq!(
        lines(env!("CARGO_BIN_EXE_array")),
        [
            "before: [1, 2, 3, 4, 5]",
            "after: [-1, 4, 9, 16, 25]",
            "element 0 of 5: -1",
            "element 1 of 5: 4",
            "element 2 of 5: 9",
            "element 3 of 5: 16",
            "element 4 of 5: 25",
            "the last one set: 0",
        ]
    );
}

#[test]
fn semaphore() {
    let lines = lines(env!("CARGO_BIN_EXE_semaphore"));
    assert_eq!(lines.len(), 14, "{lines:#?}");
    assert_eq!([&lines[0], &lines[13]], ["3 seats are free", "3 seats are free"]);
    let (mut inside, mut visits) = (Vec::new(), Vec::new());
    for line in &lines[1..13] {
        if let Some(visitor) = scan("visitor # comes in", line) {
            inside.extend_from_slice(&visitor);
            visits.extend(visitor);
        } else {
            let left = scan("visitor # leaves", line).unwrap();
            assert!(inside.contains(&left[0]), "{line}");
            inside.retain(|visitor| *visitor != left[0]);
        }
        assert!(inside.len() <= 3, "{inside:?}");
    }
    assert_eq!(inside, []);
    visits.sort_unstable();
    assert_eq!(visits, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn manager() {
    assert_eq!(
        lines(env!("CARGO_BIN_EXE_manager")),
        [
            "log: [\"anna\", \"bo\", \"carla\"]",
            "carla has Some(5) letters, all together Some(11)",
            "best: Some((\"carla\", 50))",
            "visit: Ok(())",
            "in the queue: \"hello\", visitors: Some(1)",
            "objects: 4",
            "after the end: true",
        ]
    );
}

#[test]
fn pool() {
    let lines = lines(env!("CARGO_BIN_EXE_pool"));
    let expected = [
        "map: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        "apply: 49",
        "apply_async: 64, ready: true",
        "imap_unordered: [0, 1, 4, 9, 16]",
        "several arguments: [8, 9]",
        "a result that may be missing: [Some(5), None]",
        "the first of endlessly many: [0, 1, 4]",
    ];
    assert_eq!(lines[..7], expected);
    let failed = "a task failed: the worker of the call at examples/classics/src/bin/pool.rs:#:#, process #, died: \
                  exit code 7; retries(n) begins a task again, n times at most";
    scan_all(&[failed, "the pool goes on: 81"], &lines[7..]);
}

#[test]
fn pool_queue() {
    assert_eq!(
        lines(env!("CARGO_BIN_EXE_pool_queue")),
        ["the workers put [-5, -4, -3, -2, -1]", "a worker made a queue of 3, 1 and 2"]
    );
}

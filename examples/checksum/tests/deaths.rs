//! Processes that die, and output that nobody reads.

mod support;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use support::{WATCHDOG, assert_same, checksum, expected, finish, run, start};

const PAUSE: Duration = Duration::from_millis(1);

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

/// The program's workers.
fn workers(program: &Child) -> Vec<u32> {
    // Of each thread: a pool's own starts the workers that take the place of others.
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", program.id())) else { return Vec::new() };
    let children = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let children: Vec<String> = children.collect();
    children.iter().flat_map(|pids| pids.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
}

/// The files below `dir` that a process has open; none when it has ended.
fn open_files(pid: u32, dir: &Path) -> Vec<PathBuf> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let files = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    files.filter(|path| path.starts_with(dir)).collect()
}

/// Looks until there is an answer.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < WATCHDOG, "{what}: not in sight");
        sleep(PAUSE);
    }
}

/// A folder with `count` files of `size` bytes each, and its path as `/proc` shows it.
fn tree(count: usize, size: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..count {
        fs::File::create(dir.path().join(format!("file-{n}"))).unwrap().set_len(size + n as u64).unwrap();
    }
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

#[test]
fn workers_that_others_kill_are_replaced() {
    let (_dir, path) = tree(24, 8 << 20);
    let expected = expected(&path);
    let program = start(checksum().args(["--workers", "3"]).arg(&path));
    let mut killed = Vec::new();
    while killed.len() < 2 {
        let busy = wait_for("a worker with a file", || {
            assert!(!workers(&program).is_empty() || killed.is_empty(), "the program ended too early");
            workers(&program)
                .into_iter()
                .find(|worker| !killed.contains(worker) && !open_files(*worker, &path).is_empty())
        });
        kill_process(pid(busy), Signal::KILL).unwrap();
        killed.push(busy);
    }
    let output = finish(program, "checksum with killed workers");
    assert_same(&output, &expected);
    let summary = String::from_utf8(output.stderr).unwrap();
    assert!(summary.ends_with(" with 3 workers, 2 died\n"), "{summary}");
}

#[test]
fn a_file_that_workers_die_of_is_given_up() {
    given_up(&[]);
}

#[test]
fn a_pool_gives_a_file_up_that_workers_die_of() {
    given_up(&["--pool"]);
}

fn given_up(form: &[&str]) {
    let (_dir, path) = tree(3, 100);
    let expected = expected(&path);
    let doomed = path.join("doomed");
    fs::File::create(&doomed).unwrap().set_len(64 << 30).unwrap();
    let mut program = start(checksum().args(["--workers", "2"]).args(form).arg(&path));
    let mut killed = 0;
    let started = Instant::now();
    while program.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < WATCHDOG, "it does not give up after {killed} deaths");
        for worker in workers(&program) {
            if open_files(worker, &path).contains(&doomed) {
                kill_process(pid(worker), Signal::KILL).unwrap();
                killed += 1;
                // Not the same one twice.
                wait_for("its end", || open_files(worker, &path).is_empty().then_some(()));
            }
        }
        sleep(PAUSE);
    }
    let output = finish(program, "checksum with a deadly file");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(output.stdout, expected);
    let complaint =
        format!("checksum: {}: given up: 3 workers died while they hashed it\n", doomed.display());
    assert!(stderr.starts_with(&complaint), "{stderr}");
    // One that dies between two parts leaves both, and the deaths of each are counted. A pool counts for each part alone, and
    // knows of no other deaths.
    assert!(killed >= 3, "{killed}");
    let died = if form.is_empty() { killed } else { 3 };
    assert!(stderr.ends_with(&format!(", {died} died\n")), "{stderr}");
}

#[test]
fn few_big_files_are_open_at_once() {
    let (_dir, path) = tree(16, 24 << 20);
    let expected = expected(&path);
    let program = start(checksum().args(["--workers", "12"]).arg(&path));
    wait_for("twelve workers", || (workers(&program).len() == 12).then_some(()));
    let (mut most, mut looks) = (0, 0);
    loop {
        // Stopped, they open and close nothing while they are looked at.
        let stopped: Vec<u32> = workers(&program)
            .into_iter()
            .filter(|worker| kill_process(pid(*worker), Signal::STOP).is_ok())
            .collect();
        for worker in &stopped {
            wait_for("a stopped worker", || matches!(state(*worker), 'T' | 'Z' | '-').then_some(()));
        }
        let open = stopped.iter().map(|worker| open_files(*worker, &path).len()).sum();
        for worker in &stopped {
            // It may have ended.
            let _ = kill_process(pid(*worker), Signal::CONT);
        }
        assert!(open <= 8, "{open} big files are open");
        most = most.max(open);
        looks += 1;
        if stopped.is_empty() {
            break;
        }
        sleep(10 * PAUSE);
    }
    assert!(most > 1, "nothing was seen in {looks} looks");
    assert_same(&finish(program, "checksum with many workers"), &expected);
}

/// The state of a process as `ps` shows it; `-` when there is none.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// However the program is ended, none of its processes stays: [`finish`] waits until nobody can write.
#[test]
fn a_program_that_is_ended_leaves_nothing_behind() {
    let (_dir, path) = tree(4, 8 << 30);
    for chaos in [false, true] {
        for (signal, group) in
            [(Signal::INT, true), (Signal::INT, false), (Signal::TERM, false), (Signal::KILL, false)]
        {
            let mut command = checksum();
            command.process_group(0).args(["--workers", "3"]).args(chaos.then_some("--chaos")).arg(&path);
            let program = start(&mut command);
            wait_for("a busy worker", || {
                workers(&program).into_iter().find(|worker| !open_files(*worker, &path).is_empty())
            });
            let target = pid(program.id());
            if group { kill_process_group(target, signal) } else { kill_process(target, signal) }.unwrap();
            let output = finish(program, &format!("{command:?} after {signal:?}"));
            assert_eq!(output.status.signal(), Some(signal.as_raw()));
            assert_eq!(output.stdout, b"");
            assert_eq!(output.stderr, b"");
        }
    }
}

#[test]
fn output_that_nobody_reads_is_no_complaint() {
    let (_dir, path) = tree(3, 100);
    let mut program = start(checksum().arg("--quiet").arg(&path));
    drop(program.stdout.take());
    let mut stderr = program.stderr.take().unwrap();
    let status = program.wait().unwrap();
    assert_eq!(std::io::read_to_string(&mut stderr).unwrap(), "");
    assert_eq!(status.code(), Some(141));

    let expected = expected(&path);
    let shell = |line: &str| {
        run(Command::new("sh").args(["-c", line, "sh", env!("CARGO_BIN_EXE_checksum")]).arg(&path))
    };
    let output = shell(r#""$1" "$2" 2>&-"#);
    assert_same(&output, &expected);
    let output = shell(r#""$1" "$2" >/dev/full"#);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "checksum: standard output: No space left on device\n");
}

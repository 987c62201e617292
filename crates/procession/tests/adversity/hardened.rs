//! Programs with privileges, and on hardened systems: setuid, capabilities, another loader, no
//! `/proc`, no `/dev/shm`.
//!
//! Tests that need root, or namespaces, say that they are skipped where they cannot run.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use procession::process::StartError;
use procession::sync::CreateError;
use procession::{Event, Lock, Pipe, Process, Queue, SharedMemory, StartMethod, Value};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{geteuid, getuid};
use test_support::{AmongThreads, eventually, has_ended, only, watchdog};

/// The user that has no privileges.
const NOBODY: u32 = 65534;
/// How the library tells a new process where its connection is.
const MARKER: &str = "PROCESSION_CHILD";

fn is_root(test: &str) -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: {test}: it needs root");
    }
    is_root
}

/// A copy of this program that every user may execute, as far as its mode allows.
struct Copy(PathBuf);

impl Copy {
    fn new(mode: u32) -> Copy {
        let name = format!("procession-hardened-{}-{}", std::process::id(), fastrand::u64(..));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.join("program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        Copy(program)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// What a program printed; it must have run its one test.
fn output_of(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    text
}

fn as_nobody(command: &mut Command) -> &mut Command {
    command.uid(NOBODY).gid(NOBODY)
}

/// What this program is told as a new process, up to where it says which descriptor.
fn copy_of_the_library() -> String {
    let value = |_: ()| {
        let environment = fs::read("/proc/self/environ").unwrap();
        let entries = environment.split(|byte| *byte == 0);
        let mut own = entries.filter_map(|entry| entry.strip_prefix(format!("{MARKER}=").as_bytes()));
        String::from_utf8(own.next_back().unwrap().to_vec()).unwrap()
    };
    let value = Process::spawn(value, ()).unwrap().join().unwrap();
    value.split('-').next().unwrap().to_owned()
}

/// A connection as the library makes it, and what a process is told that inherits its second end.
fn connection(copy: &str) -> (OwnedFd, OwnedFd, String) {
    let (mine, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let inode = rustix::fs::fstat(&theirs).unwrap().st_ino;
    let marker = format!("{copy}-{}-{inode}", theirs.as_raw_fd());
    (mine, theirs, marker)
}

/// What the process at the other end has sent, now that it is gone.
fn received(end: impl AsFd) -> Vec<u8> {
    let mut bytes = vec![0; 1000];
    let len = rustix::io::read(end, &mut bytes).unwrap_or(0);
    bytes.truncate(len);
    bytes
}

#[test]
#[ignore = "a program that others run"]
fn its_main_runs() {
    println!("main runs as {} for {}", geteuid().as_raw(), getuid().as_raw());
}

#[test]
fn a_variable_alone_gives_no_orders() {
    let _watchdog = watchdog();
    let copy = copy_of_the_library();
    let file = fs::File::open("/dev/null").unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let (_mine, theirs, _) = connection(&copy);
    let values = [
        "3".to_owned(),
        format!("{copy}-1000-1"),
        format!("{copy}--1-1"),
        format!("{copy}-{}-1", file.as_raw_fd()),
        // A connection, and not the one that it names.
        format!("{copy}-{}-1", theirs.as_raw_fd()),
        format!("{:016x}-{}-1", 1, theirs.as_raw_fd()),
    ];
    for value in values {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let output = output_of(program.args(only(module_path!(), "its_main_runs")).env(MARKER, &value));
        assert!(output.contains("main runs"), "{value}: {output}");
    }
}

#[test]
fn the_connection_of_another_process_gives_no_orders() {
    let _watchdog = watchdog();
    let copy = copy_of_the_library();
    let (mine, theirs, marker) = connection(&copy);
    rustix::io::write(&mine, &[0; 16]).unwrap();
    // A shell is its parent. It does not run `main` either: it may have been meant for a program
    // that has been killed.
    let program = Command::new("sh")
        .args(["-c", "\"$@\"; code=$?; exit $code", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(only(module_path!(), "its_main_runs"))
        .env(MARKER, &marker)
        .output()
        .unwrap();
    drop(theirs);
    assert_eq!(program.status.code(), Some(1), "{program:?}");
    assert!(!String::from_utf8_lossy(&program.stdout).contains("main runs"));
    assert_eq!(received(&mine), [], "it has read no order");
    // The parent's is read: what it says is damaged.
    let (mine, theirs, marker) = connection(&copy);
    rustix::net::sockopt::set_socket_passcred(&theirs, true).unwrap();
    rustix::io::write(&mine, &[0; 16]).unwrap();
    let mut program = Command::new(std::env::current_exe().unwrap());
    let status = program.args(only(module_path!(), "its_main_runs")).env(MARKER, &marker).status().unwrap();
    drop(theirs);
    assert_eq!(status.code(), Some(1));
    assert!(String::from_utf8_lossy(&received(&mine)).contains("its order"));
}

#[test]
fn the_connection_of_another_user_gives_no_orders() {
    if !is_root("the_connection_of_another_user_gives_no_orders") {
        return;
    }
    let _watchdog = watchdog();
    let copy = copy_of_the_library();
    let run = |copy: String| {
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::seteuid(NOBODY) }, 0);
        let (_mine, _theirs, marker) = connection(&copy);
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::seteuid(0) }, 0);
        let mut program = Command::new(std::env::current_exe().unwrap());
        output_of(program.args(only(module_path!(), "its_main_runs")).env(MARKER, &marker))
    };
    let output = Process::spawn(run, copy).unwrap().join().unwrap();
    assert!(output.contains("main runs as 0 for 0"), "{output}");
}

#[test]
fn a_setuid_program_takes_no_orders() {
    if !is_root("a_setuid_program_takes_no_orders") {
        return;
    }
    let _watchdog = watchdog();
    let setuid = Copy::new(0o4755);
    let (mine, _theirs, marker) = connection(&copy_of_the_library());
    let mut program = Command::new(&setuid.0);
    let output =
        output_of(as_nobody(&mut program).args(only(module_path!(), "its_main_runs")).env(MARKER, &marker));
    if !output.contains("main runs as 0 for 65534") {
        assert!(output.contains("main runs as 65534"), "{output}");
        eprintln!(
            "SKIPPED: a_setuid_program_takes_no_orders: setuid has no effect in the folder for temporary files"
        );
    }
    drop(mine);
}

fn add((a, b): (u32, u32)) -> u32 {
    a + b
}

/// Why no process could be started by executing the program once more. One can be forked.
fn reason() -> &'static str {
    let fork = Process::builder(add, (1, 2)).start_method(StartMethod::Fork).among_threads();
    assert_eq!(fork.start().unwrap().join().unwrap(), 3);
    let reasons = [StartMethod::Spawn, StartMethod::ForkServer].map(|method| {
        match Process::builder(add, (1, 2)).start_method(method).start() {
            Err(StartError::GainsPrivileges { reason }) => reason,
            other => panic!("{method:?}: {other:?}"),
        }
    });
    assert_eq!(reasons[0], reasons[1]);
    reasons[0]
}

#[test]
#[ignore = "a program that others run"]
fn cannot_start_processes() {
    println!("reason: {}", reason());
}

fn become_nobody() {
    // SAFETY: no pointers but null, which stands for no groups.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
            && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
    };
    assert!(done);
}

#[test]
#[ignore = "a program that others run"]
fn gives_up_root_and_cannot_start_processes() {
    assert_eq!(Process::spawn(add, (1, 2)).unwrap().join().unwrap(), 3);
    become_nobody();
    println!("reason: {}", reason());
}

#[test]
fn a_program_that_would_gain_privileges_says_so() {
    if !is_root("a_program_that_would_gain_privileges_says_so") {
        return;
    }
    let _watchdog = watchdog();
    let setuid = Copy::new(0o4755);
    let mount = rustix::fs::statvfs(&setuid.0).unwrap();
    if mount.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID) || rustix::thread::no_new_privs().unwrap()
    {
        eprintln!("SKIPPED: a_program_that_would_gain_privileges_says_so: setuid has no effect here");
        return;
    }
    let run = |copy: &Copy, test| {
        let mut program = Command::new(&copy.0);
        program.args(only(module_path!(), test));
        program
    };
    let output = output_of(as_nobody(&mut run(&setuid, "cannot_start_processes")));
    assert!(output.contains("reason: its effective user"), "{output}");
    let output = output_of(&mut run(&setuid, "gives_up_root_and_cannot_start_processes"));
    assert!(output.contains("reason: its file is setuid"), "{output}");
    let capable = Copy::new(0o755);
    // Version 2 with the effective bit, and CAP_NET_BIND_SERVICE, number 10, among the permitted
    // ones.
    let words: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::setxattr(&capable.0, "security.capability", &value, flags) {
        eprintln!(
            "SKIPPED: part of a_program_that_would_gain_privileges_says_so: files have no capabilities: {error}"
        );
        return;
    }
    let output = output_of(as_nobody(&mut run(&capable, "cannot_start_processes")));
    assert!(output.contains("reason: its file has capabilities"), "{output}");
}

#[test]
fn a_fork_server_does_not_work_for_another_user() {
    if !is_root("a_fork_server_does_not_work_for_another_user") {
        return;
    }
    let _watchdog = watchdog();
    let users = |_: ()| {
        let user = || {
            let worker =
                Process::builder(|_: ()| geteuid().as_raw(), ()).start_method(StartMethod::ForkServer);
            worker.start().unwrap().join().unwrap()
        };
        let before = [user(), user()];
        become_nobody();
        (before, [user(), user()])
    };
    let users = Process::spawn(users, ()).unwrap().join().unwrap();
    assert_eq!(users, ([0, 0], [NOBODY, NOBODY]));
}

fn wait_for_ever() {
    loop {
        std::thread::park();
    }
}

#[test]
fn daemons_that_give_up_root_end_with_a_parent_that_is_killed() {
    if !is_root("daemons_that_give_up_root_end_with_a_parent_that_is_killed") {
        return;
    }
    let _watchdog = watchdog();
    let started = Queue::<u32>::unbounded().unwrap();
    let run = |started: Queue<u32>| {
        let wait = |started: Queue<u32>| {
            become_nobody();
            started.put(&std::process::id()).unwrap();
            wait_for_ever();
        };
        let _daemons = StartMethod::ALL.map(|method| {
            let daemon = Process::builder(wait, started.clone()).daemon(true).start_method(method);
            daemon.among_threads().start().unwrap()
        });
        wait_for_ever();
    };
    let parent = Process::spawn(run, started.clone()).unwrap();
    let daemons: Vec<u32> = StartMethod::ALL.iter().map(|_| started.get().unwrap()).collect();
    parent.kill().unwrap();
    assert!(parent.join().is_err());
    for daemon in daemons {
        eventually("the daemon is gone", || has_ended(daemon));
    }
}

#[test]
#[ignore = "a program that others run"]
fn starts_processes() {
    std::env::set_current_dir("/").unwrap();
    let queue = Queue::unbounded().unwrap();
    for method in StartMethod::ALL {
        let put = |queue: Queue<Queue<u32>>| {
            let inner = Queue::unbounded().unwrap();
            inner.put(&7).unwrap();
            queue.put(&inner).unwrap();
            // A process that the new one starts in turn.
            Process::spawn(add, (1, 2)).unwrap().join().unwrap()
        };
        let process = Process::builder(put, queue.clone()).start_method(method).among_threads();
        assert_eq!(process.start().unwrap().join().unwrap(), 3);
        println!("started by {method:?}");
    }
}

#[test]
fn a_program_that_its_loader_starts_works() {
    let _watchdog = watchdog();
    let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let Some(loader) = loader.into_iter().find(|loader| Path::new(loader).exists()) else {
        eprintln!("SKIPPED: a_program_that_its_loader_starts_works: no loader is known here");
        return;
    };
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(loader);
    command.args(["--library-path", "/nowhere"]).arg(Path::new(".").join(program.file_name().unwrap()));
    command.args(only(module_path!(), "starts_processes")).current_dir(program.parent().unwrap());
    assert_eq!(output_of(&mut command).matches("started by").count(), StartMethod::ALL.len());
}

#[test]
fn a_program_that_its_user_cannot_read_works() {
    if !is_root("a_program_that_its_user_cannot_read_works") {
        return;
    }
    let _watchdog = watchdog();
    let copy = Copy::new(0o711);
    let mut program = Command::new(&copy.0);
    let output = output_of(as_nobody(&mut program).args(only(module_path!(), "starts_processes")));
    assert_eq!(output.matches("started by").count(), StartMethod::ALL.len());
}

/// Runs one of the tests that stand for programs in namespaces of its own, after a shell script.
fn in_namespaces(name: &str, unshare: &[&str], script: &str, test: &str) -> Option<String> {
    let possible = Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: {name}: it needs root, and unshare {}", unshare.join(" "));
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", &format!("{script}\nexec \"$@\""), "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(only(module_path!(), test));
    Some(output_of(&mut command))
}

#[test]
#[ignore = "a program that others run"]
fn does_what_it_can_without_proc() {
    let (queue, lock) = (Queue::<Queue<u8>>::unbounded(), Lock::new());
    for made in [queue.as_ref().err().map(ToString::to_string), lock.as_ref().err().map(ToString::to_string)]
    {
        assert!(made.is_none_or(|error| error.contains("/proc is not mounted")));
    }
    drop((Value::new(1), Event::new(), Pipe::one_way::<u8>()));
    if let (Ok(queue), Ok(lock)) = (queue, lock) {
        let taken = Queue::unbounded().unwrap();
        let work = |(queue, taken, lock): (Queue<Queue<u8>>, Queue<()>, Lock)| {
            let _guard = lock.lock();
            let inner = Queue::unbounded().unwrap();
            inner.put(&7).unwrap();
            queue.put(&inner).unwrap();
            // The receiver has the handle opened while its sender lives.
            taken.get().unwrap();
        };
        let builder = Process::builder(work, (queue.clone(), taken.clone(), lock));
        let process = builder.start_method(StartMethod::Fork).among_threads().start().unwrap();
        assert_eq!(queue.get().unwrap().get().unwrap(), 7);
        taken.put(&()).unwrap();
        process.join().unwrap();
        println!("objects work");
    }
    let error = Process::spawn(add, (1, 2)).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("/proc is not mounted"), "{text}");
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn without_proc_errors_name_it() {
    let _watchdog = watchdog();
    let script = "umount -l /proc || exit";
    in_namespaces("without_proc_errors_name_it", &["-m"], script, "does_what_it_can_without_proc");
}

#[test]
fn where_proc_shows_another_pid_namespace_processes_work() {
    let _watchdog = watchdog();
    let name = "where_proc_shows_another_pid_namespace_processes_work";
    if let Some(output) = in_namespaces(name, &["-p", "-f"], "", "starts_processes") {
        assert_eq!(output.matches("started by").count(), StartMethod::ALL.len());
    }
}

#[test]
#[ignore = "a program that others run"]
fn cannot_use_dev_shm() {
    let name = format!("hardened-{}", std::process::id());
    match Queue::<u8>::builder().create(&name) {
        Err(error @ CreateError::System { .. }) => {
            let text = chain(&error);
            assert!(text.contains("/dev/shm"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(Queue::<u8>::open(&name), Err(procession::sync::OpenError::NotFound { .. })));
    let text = chain(&SharedMemory::create(&name, 1).unwrap_err());
    assert!(text.contains("/dev/shm"), "{text}");
    // Objects without a name need no directory.
    assert!(Queue::<u8>::unbounded().unwrap().put(&1).is_ok());
}

#[test]
#[ignore = "a program that others run"]
fn cannot_use_dev_shm_as_nobody() {
    become_nobody();
    cannot_use_dev_shm();
}

#[test]
fn what_is_wrong_with_dev_shm_is_said() {
    let _watchdog = watchdog();
    let name = "what_is_wrong_with_dev_shm_is_said";
    for (script, test) in [
        ("mount -t tmpfs none /dev && mknod /dev/null c 1 3 || exit", "cannot_use_dev_shm"),
        ("mount -t tmpfs -o ro none /dev/shm || exit", "cannot_use_dev_shm"),
        ("mount -t tmpfs -o mode=755 none /dev/shm || exit", "cannot_use_dev_shm_as_nobody"),
    ] {
        in_namespaces(name, &["-m"], script, test);
    }
}

//! Why a process could not be started, joined or waited for.

use std::io;

use procession_sys::process::ExitStatus;

/// A process could not be started. Nothing is left behind: no process, no descriptor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system refused: out of processes, memory or descriptors.
    #[error("cannot start a process: {action}: {cause}")]
    System {
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// The program has other threads, and what they have locked would stay locked in a forked process for ever.
    #[error(
        "cannot fork: this process has {threads} threads; fork before starting threads, use the start method \
         spawn or forkserver, or allow it with allow_threads()"
    )]
    Threads {
        /// How many threads there are.
        threads: usize,
    },
    /// The program has guards over shared memory, which the forked process would share: locked
    /// values and arrays, messages and reservations in a queue's memory. See [`fork`](super::fork).
    #[error(
        "cannot fork: this process has {guards} guards over shared memory (locked values, messages in place, \
         reservations), whose memory the new process would share; drop them first, or use the start method \
         spawn or forkserver"
    )]
    Guards {
        /// How many.
        guards: usize,
    },
    /// An argument could not be serialised.
    #[error("cannot start a process: an argument cannot be serialised: {0}")]
    Arguments(String),
    /// The function's result could not be read.
    #[error("cannot start a process: its result could not be handed over: {0}")]
    Result(String),
    /// The function is not part of the program's executable, so that the new process could not find it.
    #[error(
        "cannot start a process: the function {function} is in a shared library, not in the program itself; \
         only the start method fork can run it"
    )]
    NotInProgram {
        /// The function's type.
        function: &'static str,
    },
    /// A closure that captures values can only run in a forked process.
    #[error("cannot start a process: a closure of Process::forking needs the start method fork")]
    NeedsFork,
    /// Settings that contradict each other.
    #[error("cannot start a process: {0}")]
    Invalid(&'static str),
    /// Executing this program gives it privileges that its caller does not have. A program that
    /// gains them takes no orders: any user that may execute it could choose what it does.
    #[error(
        "cannot start a process: executing this program once more would give it privileges, and then it takes no \
         orders from its caller: {reason}; use the start method fork"
    )]
    GainsPrivileges {
        /// How it would gain them.
        reason: &'static str,
    },
    /// This program was started as a new process by this library, but its start-up code did not run.
    #[error(
        "cannot start a process: this one was started for a function that it never received; the program's \
         start-up functions (.init_array) do not run here"
    )]
    StartupSkipped,
}

impl StartError {
    /// For `map_err`: the system refused this step.
    pub(super) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| StartError::System { action, cause: cause.into() }
    }
}

/// A process did not give its function's result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The function panicked.
    #[error("process {name} (pid {pid}) panicked{}: {message}", at(.location))]
    Panicked {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// The panic's message.
        message: String,
        /// File, line and column of the panic, unless the function replaced the panic hook.
        location: Option<String>,
    },
    /// A signal ended the process before its function returned.
    #[error("process {name} (pid {pid}) was killed by {}", ExitStatus::Signaled { signal: *.signal, core_dumped: false })]
    Killed {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// The signal's number.
        signal: i32,
    },
    /// The process exited by itself before its function returned.
    #[error("process {name} (pid {pid}) exited with code {code} before its function returned")]
    Exited {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// The exit code.
        code: i32,
    },
    /// The process ended before its function returned; how cannot be known.
    #[error(
        "process {name} (pid {pid}) ended before its function returned; its exit status was collected elsewhere"
    )]
    Unknown {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
    },
    /// The new process could not read its arguments.
    #[error("process {name} (pid {pid}) could not read its arguments: {message}")]
    Arguments {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// What was wrong with them.
        message: String,
    },
    /// The function's result could not be serialised, sent or read.
    #[error("the result of process {name} (pid {pid}) cannot be handed over: {message}")]
    Result {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// What was wrong with it.
        message: String,
    },
    /// The new process could not begin.
    #[error("process {name} (pid {pid}) could not begin: {message}")]
    Begin {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// Why.
        message: String,
    },
    /// An earlier join took the result.
    #[error("the result of process {name} (pid {pid}) has been taken by an earlier join")]
    Taken {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
    },
    /// Only the process that started another one can join it.
    #[error("process {name} (pid {pid}) was started by another process, and only that one can join it")]
    NotAChild {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
    },
    /// The system refused to wait.
    #[error("cannot wait for process {name} (pid {pid}): {cause}")]
    System {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// What the system said.
        cause: io::Error,
    },
}

fn at(location: &Option<String>) -> String {
    location.as_ref().map_or_else(String::new, |location| format!(" at {location}"))
}

/// There was no child to wait for, or waiting failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// No such child: there is none, it has been waited for already, or SIGCHLD is ignored.
    #[error("there is no child process to wait for")]
    NoChild,
    /// The system refused.
    #[error("cannot wait for a child process: {0}")]
    System(io::Error),
}

impl From<io::Error> for WaitError {
    fn from(error: io::Error) -> Self {
        if error.raw_os_error() == Some(rustix::io::Errno::CHILD.raw_os_error()) {
            WaitError::NoChild
        } else {
            WaitError::System(error)
        }
    }
}

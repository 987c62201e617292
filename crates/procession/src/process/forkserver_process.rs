//! The fork server: a small process without threads that forks workers for a program.
//!
//! It is an orphan on purpose (nobody's `wait` finds it) that watches the program's pidfd and ends with it. The program
//! sends one end of a new connection for each worker; the server answers with the worker's pid and pidfd, and
//! when the worker has ended it says how over that same connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use procession_sys::clock::Deadline;
use procession_sys::credentials::Credentials;
use procession_sys::identity::Identity;
use procession_sys::process::{self, Children, ForkSide};
use procession_sys::signals::{self, Disposition};
use rustix::io::Errno;
use rustix::process::Signal;

use super::FAILURE_CODE;
use super::child_record::reap;
use super::control_channel::{Channel, Received};
use super::wire::{Report, encode};

/// The answer to a request: the worker's pid, or the number of the error.
pub(super) type Answer = Result<u32, i32>;

struct Worker {
    pidfd: OwnedFd,
    channel: Channel,
}

/// Lives as the fork server. Returns in each worker that it forks, with the worker's connection.
pub(super) fn serve(control: Channel, program: Identity, client: Credentials) -> Channel {
    match Serving::new(control, program, client).and_then(Serving::run) {
        Ok(Some(worker)) => worker,
        Ok(None) => process::exit_now(0),
        Err(_) => process::exit_now(FAILURE_CODE),
    }
}

struct Serving {
    control: Channel,
    program: OwnedFd,
    /// The program's process and its user, whose requests alone are heard.
    client: Credentials,
    workers: Vec<Worker>,
    interrupt_was_ignored: bool,
}

impl Serving {
    fn new(control: Channel, program: Identity, client: Credentials) -> io::Result<Serving> {
        process::set_command_name(b"procession-fork");
        // Ctrl-C is for the program and its workers: a program that survives it keeps its server.
        let interrupt_was_ignored = signals::set_disposition(Signal::INT, Disposition::Ignore)?;
        let program = program.open()?;
        Ok(Serving { control, program, client, workers: Vec::new(), interrupt_was_ignored })
    }

    /// The connection of a worker, in that; `None` when the program has ended.
    fn run(mut self) -> io::Result<Option<Channel>> {
        loop {
            let mut fds: Vec<BorrowedFd<'_>> = vec![self.program.as_fd(), self.control.as_fd()];
            fds.extend(self.workers.iter().map(|worker| worker.pidfd.as_fd()));
            match process::wait_readable(&fds, Deadline::Never)? {
                Some(0) => return Ok(None),
                Some(1) => match self.control.try_receive() {
                    Ok(Received::End) => return Ok(None),
                    Ok(Received::Nothing) => {}
                    // The program has become another user, which this process must not serve.
                    Ok(Received::Message(message))
                        if message.sender.is_some_and(|sender| {
                            sender.pid == self.client.pid && sender.uid != self.client.uid
                        }) =>
                    {
                        self.refuse(&Errno::PERM.into())?;
                    }
                    // From a process that the program forked, which has a copy of its end.
                    Ok(Received::Message(message)) if message.sender != Some(self.client) => {}
                    Ok(Received::Message(mut message)) => {
                        let channel = message.descriptors.pop().map(Channel::from_received);
                        let channel = channel.ok_or(io::ErrorKind::InvalidData)?;
                        if let Some(worker) = self.answer(channel)? {
                            return Ok(Some(worker));
                        }
                    }
                    // Out of descriptors: the worker's end did not arrive.
                    Err(error) => self.refuse(&error)?,
                },
                _ => self.collect(),
            }
        }
    }

    /// Forks a worker, and returns the connection in that.
    fn answer(&mut self, channel: Channel) -> io::Result<Option<Channel>> {
        // SAFETY: the fork server has one thread and no guard.
        match unsafe { process::fork() } {
            Ok(ForkSide::Child) => {
                if !self.interrupt_was_ignored {
                    signals::set_disposition(Signal::INT, Disposition::Default)?;
                }
                return Ok(Some(channel));
            }
            Ok(ForkSide::Parent { child }) => match process::open(child) {
                Ok(pidfd) => {
                    let answer: Answer = Ok(child);
                    self.control.send(&encode(&answer)?, &[pidfd.as_fd()], Some(self.program.as_fd()))?;
                    self.workers.push(Worker { pidfd, channel });
                }
                Err(error) => {
                    self.refuse(&error)?;
                    // It ends when it finds its connection closed, which the program does on a refusal.
                    drop(channel);
                    reap(child);
                }
            },
            Err(error) => self.refuse(&error)?,
        }
        Ok(None)
    }

    fn refuse(&self, error: &io::Error) -> io::Result<()> {
        let answer: Answer = Err(error.raw_os_error().unwrap_or(0));
        self.control.send(&encode(&answer)?, &[], Some(self.program.as_fd()))
    }

    fn collect(&mut self) {
        self.workers.retain(|worker| {
            match process::wait_id(Children::Pidfd(worker.pidfd.as_fd()), false, false) {
                Ok(Some((_, status))) => {
                    // Nobody wants to know: the program has dropped the process.
                    let _ = Report::Status(status).send(&worker.channel);
                    false
                }
                Ok(None) => true,
                Err(_) => false,
            }
        });
    }
}

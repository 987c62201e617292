//! The fork server: a small process without threads that forks workers for a program.
//!
//! It is an orphan on purpose (nobody's `wait` finds it) that watches the program's pidfd and ends with it. The program
//! sends one end of a new connection for each worker; the server answers with the worker's pid and pidfd, and
//! when the worker has ended it says how over that same connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procession_sys::clock::Deadline;
use procession_sys::credentials::Credentials;
use procession_sys::identity::Identity;
use procession_sys::process::{self, Children, ForkSide};
use procession_sys::signals::{self, Disposition};

use super::control_channel::{Channel, Received};
use rustix::io::Errno;
use rustix::process::Signal;

use super::error::StartError;
use super::running::Origin;
use super::start::{self, Fresh};
use super::wire::{Order, Report, decode, encode};
use super::{FAILURE_CODE, child};

/// A program's connection to its server.
pub(super) struct Server {
    channel: Channel,
    pidfd: Arc<OwnedFd>,
    /// A forked child must not talk to its parent's server.
    owner: u32,
    /// Whose processes the server forks. A program that has become another user needs another
    /// server.
    user: User,
}

/// The effective user and group, and the real ones.
type User = [u32; 4];

fn user() -> User {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    [geteuid().as_raw(), getegid().as_raw(), getuid().as_raw(), getgid().as_raw()]
}

/// The answer to a request: the worker's pid, or the number of the error.
type Answer = Result<u32, i32>;

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

/// This process's server, if it has one.
pub(super) fn lock() -> MutexGuard<'static, Option<Server>> {
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if server.as_ref().is_some_and(|server| server.owner != process::getpid()) {
        *server = None;
    }
    server
}

/// Has the server fork a worker. Starts the server first unless there is one that lives.
pub(super) fn fork_worker() -> Result<Fresh, StartError> {
    let mut current = lock();
    // A server that is killed between two looks costs one more attempt; a program that kills its servers as
    // fast as they start gets an error.
    for _ in 0..3 {
        let server = match current.take() {
            Some(server)
                if server.user == user()
                    && !process::wait_ended(&server.pidfd, Deadline::Now).unwrap_or(false) =>
            {
                server
            }
            _ => Server::start()?,
        };
        let (channel, theirs) = Channel::pair().map_err(StartError::system("making its connection"))?;
        match server.request(&theirs) {
            Ok(Some((pid, pidfd))) => {
                let origin = Origin::Worker { server: Arc::clone(&server.pidfd) };
                *current = Some(server);
                return Ok(Fresh { pid, pidfd, channel, origin });
            }
            Ok(None) => {}
            Err(error) => {
                *current = Some(server);
                return Err(StartError::System { action: "forking in the fork server", cause: error });
            }
        }
    }
    Err(StartError::System {
        action: "asking the fork server",
        cause: io::Error::new(io::ErrorKind::BrokenPipe, "it was killed again and again"),
    })
}

impl Server {
    fn start() -> Result<Server, StartError> {
        let fresh = start::execute()?;
        let failed = StartError::system("starting the fork server");
        let order = Order::Serve { program: Identity::current().to_bits() };
        match encode(&order).and_then(|order| fresh.channel.send(&order, &[], Some(fresh.pidfd.as_fd()))) {
            Ok(()) => {}
            // It was killed; waiting for it to detach says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                fresh.abandon();
                return Err(failed(error));
            }
        }
        let fresh = fresh.detached()?;
        Ok(Server {
            channel: fresh.channel,
            pidfd: Arc::new(fresh.pidfd),
            owner: process::getpid(),
            user: user(),
        })
    }

    /// A new worker's pid and pidfd; `None` when the server is gone.
    fn request(&self, theirs: &Channel) -> io::Result<Option<(u32, OwnedFd)>> {
        match self.channel.send(b"fork", &[theirs.as_fd()], Some(self.pidfd.as_fd())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
            Err(error) => return Err(error),
        }
        let Some(mut message) = self.channel.receive(Some(self.pidfd.as_fd()))? else { return Ok(None) };
        let (answer, _) = decode::<Answer>(&message.body)?;
        let pid = answer.map_err(io::Error::from_raw_os_error)?;
        match message.descriptors.pop() {
            Some(pidfd) => Ok(Some((pid, pidfd))),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "no pidfd in the answer")),
        }
    }
}

struct Worker {
    pidfd: OwnedFd,
    channel: Channel,
}

/// Lives as the fork server.
pub(super) fn serve(control: Channel, program: Identity, client: Credentials) -> ! {
    let result = Serving::new(control, program, client).and_then(Serving::run);
    process::exit_now(if result.is_ok() { 0 } else { FAILURE_CODE })
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

    fn run(mut self) -> io::Result<()> {
        loop {
            let mut fds: Vec<BorrowedFd<'_>> = vec![self.program.as_fd(), self.control.as_fd()];
            fds.extend(self.workers.iter().map(|worker| worker.pidfd.as_fd()));
            match process::wait_readable(&fds, Deadline::Never)? {
                Some(0) => return Ok(()),
                Some(1) => match self.control.try_receive() {
                    Ok(Received::End) => return Ok(()),
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
                        self = self.answer(channel)?;
                    }
                    // Out of descriptors: the worker's end did not arrive.
                    Err(error) => self.refuse(&error)?,
                },
                _ => self.collect(),
            }
        }
    }

    fn answer(mut self, channel: Channel) -> io::Result<Serving> {
        // SAFETY: the fork server has one thread and no guard.
        match unsafe { process::fork() } {
            Ok(ForkSide::Child) => {
                let (interrupt_was_ignored, client) = (self.interrupt_was_ignored, self.client);
                drop(self);
                if !interrupt_was_ignored {
                    signals::set_disposition(Signal::INT, Disposition::Default)?;
                }
                child::named_after_program();
                child::obey(channel, client)
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
                    start::reap(child);
                }
            },
            Err(error) => self.refuse(&error)?,
        }
        Ok(self)
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

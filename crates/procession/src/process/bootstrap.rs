//! What happens in a new process.

use std::any::Any;
use std::cell::RefCell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};

use procession_sys::clock::Deadline;
use procession_sys::credentials::Credentials;
use procession_sys::identity::Identity;
use procession_sys::process::{self, ForkSide};
use procession_sys::signals::{self, Disposition};

use rustix::process::Signal;

use super::control_channel::Channel;
use super::order::{Order, Settings};
use super::wire::{Report, decode};
use super::{FAILURE_CODE, PANIC_CODE, exit, forkserver_process, reaper, state};

/// How a process came to be, which says what is its own to do at its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Birth {
    /// The program was executed for it, or for the fork server whose copy it is: its exit handlers are its own.
    Executed,
    /// A copy of a program that goes on elsewhere.
    Forked,
}

/// A program that was executed for a function: does what its parent says.
pub(super) fn begin(channel: Channel, parent: Credentials) -> ! {
    // As Rust does before main.
    if let Err(error) = process::open_standard_streams() {
        complain(&format!("a closed standard stream cannot be opened: {error}"));
    }
    if let Err(error) = signals::set_disposition(Signal::PIPE, Disposition::Ignore) {
        complain(&format!("SIGPIPE cannot be ignored: {error}"));
    }
    name_after_program();
    obey(channel, parent)
}

/// Shows the process as the program that it runs, not as `exe`.
fn name_after_program() {
    if let Some(program) = std::env::args_os().next() {
        let name = std::path::Path::new(&program).file_name().unwrap_or(&program);
        process::set_command_name(name.as_encoded_bytes());
    }
}

/// Waits for the starter's order and carries it out. A process that is to be the fork server goes on
/// in each of its workers, which wait for orders of their own.
fn obey(mut channel: Channel, starter: Credentials) -> ! {
    loop {
        let message = loop {
            match channel.receive(None) {
                Ok(Some(message)) if message.sender == Some(starter) => break message,
                // Another process has a copy of the starter's end: one that it forked, and that may
                // have become another user.
                Ok(Some(_)) => {}
                // The starter has ended or withdrawn: no process is left to report to.
                Ok(None) => process::exit_now(FAILURE_CODE),
                Err(error) => fail(&channel, format!("reading its order: {error}")),
            }
        };
        match decode(&message.body) {
            Ok((Order::Run { task, settings }, arguments)) => {
                live(channel, settings, Birth::Executed, || task.run(arguments, message.descriptors))
            }
            Ok((Order::Serve { program }, _)) => match Identity::from_bits(program) {
                Some(program) => {
                    detach(&channel);
                    channel = forkserver_process::serve(channel, program, starter);
                    name_after_program();
                }
                None => fail(&channel, "its program is no process".into()),
            },
            Err(error) => fail(&channel, format!("reading its order: {error}")),
        }
    }
}

/// Lives as the process of these settings: runs the function, reports, exits.
pub(super) fn live(
    channel: Channel,
    settings: Settings,
    birth: Birth,
    function: impl FnOnce() -> Report,
) -> ! {
    if settings.detached {
        detach(&channel);
    }
    if birth == Birth::Executed && !settings.defers_interrupts {
        signals::unblock_all();
    }
    let daemon = settings.daemon;
    let begun = state::lock().become_process(settings, birth == Birth::Forked, channel);
    let begun = begun.and_then(|()| if daemon { reaper::ensure() } else { Ok(()) });
    let report = match begun {
        Ok(()) => run(function),
        Err(error) => Report::Begin(format!("watching its parent: {error}")),
    };
    let code = match &report {
        Report::Returned { .. } => 0,
        Report::Panicked { .. } => PANIC_CODE,
        _ => FAILURE_CODE,
    };
    // None in a process that the function forked and that returned from it.
    let channel = state::lock().report.take();
    if let Some(channel) = channel {
        match report.send(&channel) {
            Ok(()) => {}
            // The starter is gone or no longer wants it.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                // The next message is short and needs no memory or descriptors.
                if Report::Result(error.to_string()).send(&channel).is_err() {
                    complain(&format!("the result cannot be handed over: {error}"));
                }
            }
        }
    }
    exit::exit(code)
}

thread_local! {
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that was caught.
pub(crate) struct Panic {
    /// Its message.
    pub(crate) message: String,
    /// Where, unless the function replaced the hook.
    pub(crate) location: Option<String>,
}

fn run(function: impl FnOnce() -> Report) -> Report {
    // The hook can be changed only outside of a panic: a fork in a destructor may be inside of one.
    if !std::thread::panicking() {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // A thread that ends has no place for it.
            let _ = LOCATION.try_with(|place| place.replace(panic.location().map(ToString::to_string)));
            report(panic);
        }));
    }
    caught(function).unwrap_or_else(|Panic { message, location }| Report::Panicked { message, location })
}

/// Runs a function whose panic is to be reported, in a process that this library started.
pub(crate) fn caught<R>(function: impl FnOnce() -> R) -> Result<R, Panic> {
    panic::catch_unwind(AssertUnwindSafe(function)).map_err(|payload| {
        let message = message(&*payload);
        // What the payload does when it is dropped is not ours to run here.
        std::mem::forget(payload);
        Panic { message, location: LOCATION.try_with(RefCell::take).ok().flatten() }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).into()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is no text".into()
    }
}

/// Goes on in a copy whose parent is no longer the starter, and reports that.
fn detach(channel: &Channel) {
    let result = process::open_self().and_then(|me| {
        // SAFETY: a new process, which has one thread and no guard.
        Ok(match unsafe { process::fork() }? {
            ForkSide::Parent { .. } => process::exit_now(0),
            ForkSide::Child => {
                process::wait_ended(&me, Deadline::Never).and_then(|_| process::open_self())?
            }
        })
    });
    let result = result.and_then(|pidfd| Report::Detached { pid: process::getpid(), pidfd }.send(channel));
    if let Err(error) = result {
        fail(channel, format!("detaching: {error}"));
    }
}

fn fail(channel: &Channel, message: String) -> ! {
    match Report::Begin(message.clone()).send(channel) {
        Ok(()) => {}
        // The starter is gone, which may be what failed: nobody waits for this process.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(_) => complain(&message),
    }
    process::exit_now(FAILURE_CODE)
}

/// To standard error, where there is nobody else to tell.
fn complain(message: &str) {
    // Nowhere is left to report a failure of this.
    let _ = writeln!(std::io::stderr(), "procession: process {}: {message}", process::getpid());
}

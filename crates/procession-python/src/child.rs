//! Child processes: how they ended, and forking them for a pool.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use procession_sys::clock::Deadline;
use procession_sys::process::{self, Children, ExitStatus, ForkSide};
use procession_sys::sibling::{self, Side};
use procession_sys::signals;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Descriptor>()?;
    module.add_function(wrap_pyfunction!(collect_child, module)?)?;
    module.add_function(wrap_pyfunction!(read_status, module)?)?;
    module.add_function(wrap_pyfunction!(can_fork_siblings, module)?)?;
    module.add_function(wrap_pyfunction!(fork_template, module)?)?;
    module.add_function(wrap_pyfunction!(fork_sibling, module)?)
}

/// Borrows a descriptor for one system call.
///
/// # Errors
/// `ValueError` for a negative number.
pub(crate) fn borrowed<'fd>(fd: i32) -> PyResult<BorrowedFd<'fd>> {
    if fd < 0 {
        return Err(PyValueError::new_err("a negative number is no descriptor"));
    }
    // SAFETY: it is not -1. A number that is closed, or another file's, makes the system call fail
    // or ask that file; no memory depends on which file it is.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A descriptor that is open while this object exists.
#[pyclass(frozen, module = "procession._procession")]
struct Descriptor(OwnedFd);

#[pymethods]
impl Descriptor {
    /// Owns an open descriptor.
    #[new]
    fn new(number: i32) -> PyResult<Self> {
        borrowed(number)?;
        // SAFETY: the caller gives the descriptor to this object. No memory depends on which file
        // it is.
        Ok(Descriptor(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Calls a built-in function that opens a descriptor, or several, and returns an object for
    /// each. No Python code runs in between, so that a signal's handler that raises leaves none
    /// open.
    #[staticmethod]
    #[pyo3(signature = (open, *args))]
    fn of<'py>(open: &Bound<'py, PyAny>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        let py = open.py();
        let opened = open.call1(args)?;
        let own = |number| Bound::new(py, Descriptor::new(number)?);
        if let Ok(numbers) = opened.cast::<PyTuple>() {
            let all = numbers.iter().map(|number| own(number.extract()?)).collect::<PyResult<Vec<_>>>()?;
            return Ok(PyTuple::new(py, all)?.into_any());
        }
        Ok(own(opened.extract()?)?.into_any())
    }

    #[getter]
    fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Collects the exit status of this process's child, if it has ended, into `popen.returncode`. If
/// it is not this process's child, or something else has collected it, asks the kernel what it
/// remembers. False if the child has ended and its status is unknown.
///
/// No Python code runs between collecting the status and storing it, so no thread and no signal
/// handler misses it.
#[pyfunction(name = "_collect_child")]
fn collect_child(popen: &Bound<'_, PyAny>, pid: u32, pidfd: i32) -> PyResult<bool> {
    let py = popen.py();
    let returncode = intern!(py, "returncode");
    if !popen.getattr(returncode)?.is_none() {
        return Ok(true);
    }
    let pidfd = borrowed(pidfd)?;
    let status = match process::wait_id(Children::Pidfd(pidfd), false, false) {
        Ok(None) => return Ok(true),
        Ok(Some((_, status))) => Some(status),
        Err(error) if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => {
            if !process::wait_ended(pidfd, Deadline::Now)? {
                return Ok(true);
            }
            // An error is an older kernel's, which remembers nothing.
            process::collected_status(pidfd).ok().flatten().or_else(|| process::zombie_status(pid, pidfd))
        }
        Err(error) => return Err(error.into()),
    };
    match status.and_then(ExitStatus::exitcode) {
        Some(code) => popen.setattr(returncode, code).map(|()| true),
        None => Ok(false),
    }
}

/// Reads an exit status as a forkserver writes it, once `fd` is readable, into `popen.returncode`.
/// False at the end of file.
///
/// No Python code runs between reading and storing it: only one thread can read it.
#[pyfunction(name = "_read_status")]
fn read_status(popen: &Bound<'_, PyAny>, fd: i32) -> PyResult<bool> {
    let returncode = intern!(popen.py(), "returncode");
    if !popen.getattr(returncode)?.is_none() {
        return Ok(true);
    }
    let mut code = [0; 8];
    match rustix::io::read(borrowed(fd)?, &mut code) {
        Ok(8) => popen.setattr(returncode, i64::from_ne_bytes(code)).map(|()| true),
        Ok(_) => Ok(false),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// Whether `_fork_sibling` can work here.
#[pyfunction(name = "_can_fork_siblings")]
fn can_fork_siblings() -> bool {
    sibling::is_supported()
}

/// Forks as `os.fork`, but the new process first waits for `requests` to become readable. Until
/// then it runs no Python code and touches next to no memory, which would be copied. It exits when
/// the process of `parent`, a pidfd, has ended. With `by_kernel`, for a caller that is its
/// process's first thread, the kernel kills it then. All signals are blocked in it.
#[pyfunction(name = "_fork_template")]
fn fork_template(_py: Python<'_>, requests: i32, parent: i32, by_kernel: bool) -> PyResult<u32> {
    let (requests, parent) = (borrowed(requests)?, borrowed(parent)?);
    // SAFETY: this thread holds the interpreter's lock and calls the interpreter's functions for
    // both sides of a fork, so this is `os.fork`. A program may call that at any time, and the
    // classes of this module expect it.
    let forked = unsafe {
        ffi::PyOS_BeforeFork();
        let mask = signals::block_all();
        let forked = process::fork();
        if let Ok(ForkSide::Child) = forked {
            await_request(requests, parent, by_kernel);
            ffi::PyOS_AfterFork_Child();
        } else {
            mask.restore();
            ffi::PyOS_AfterFork_Parent();
        }
        forked
    };
    match forked? {
        ForkSide::Child => Ok(0),
        ForkSide::Parent { child } => Ok(child),
    }
}

/// Returns when there is a request, and exits when there will be none.
fn await_request(requests: BorrowedFd<'_>, parent: BorrowedFd<'_>, by_kernel: bool) {
    if by_kernel {
        // For a template that is stopped when its parent is killed; the others notice that below.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
    let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut watched = [watch(parent), watch(requests)];
    while let Err(Errno::INTR) = poll(&mut watched, None) {}
    if !watched[0].revents().is_empty() || watched[1].revents().is_empty() {
        process::exit_now(0);
    }
}

/// Forks as `os.fork`, but the new process is a child of this one's parent. Returns its pid and a
/// pidfd for it; in the new process 0 and -1. This process must have one thread.
#[pyfunction(name = "_fork_sibling")]
fn fork_sibling(_py: Python<'_>) -> PyResult<(u32, i32)> {
    // SAFETY: this thread holds the interpreter's lock and calls the interpreter's functions for
    // both sides of a fork, so this is `os.fork`. A program may call that at any time, and the
    // classes of this module expect it.
    let forked = unsafe {
        ffi::PyOS_BeforeFork();
        let forked = sibling::fork();
        match forked {
            Ok(Side::Sibling) => ffi::PyOS_AfterFork_Child(),
            _ => ffi::PyOS_AfterFork_Parent(),
        }
        forked
    };
    match forked? {
        Side::Sibling => Ok((0, -1)),
        Side::Caller { sibling, pidfd } => Ok((sibling, pidfd.into_raw_fd())),
    }
}

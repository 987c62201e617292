//! Children of plain forks, beside the threads of other tests.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A forked child; killed and reaped when dropped.
pub struct Child {
    pid: i32,
    reaped: bool,
}

/// Runs `work` in a forked child, which ends with status 0, or 1 when it panics.
pub fn fork(work: impl FnOnce()) -> Child {
    // What is made once a process must not be half-made by another thread when the fork copies it.
    let me = procession_sys::identity::Identity::current().pid();
    procession_sys::cpu::count();
    procession_sys::memory::limit();
    // SAFETY: the child runs only `work` and leaves with `_exit`.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: plain system calls.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != me.as_raw_nonzero().get() {
                    libc::_exit(1);
                }
            }
            let result = catch_unwind(AssertUnwindSafe(work));
            if let Err(cause) = &result {
                let text = cause
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| cause.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic");
                let line = format!("child: {text}\n");
                // SAFETY: a valid buffer.
                unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
            }
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        pid => Child { pid, reaped: false },
    }
}

impl Child {
    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// SIGKILL, and waits until it is dead.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.reap(0);
    }

    /// SIGSTOP, and waits until it has stopped.
    pub fn stop(&mut self) {
        self.signal(libc::SIGSTOP);
        let status = self.reap(libc::WUNTRACED);
        assert!(libc::WIFSTOPPED(status), "the child ended before it was stopped");
        self.reaped = false;
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    pub fn join(mut self) {
        let status = self.reap(0);
        assert_eq!(status, 0, "the child {} failed (wait status)", self.pid);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        assert!(!self.reaped);
        // SAFETY: the child is not reaped, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    fn reap(&mut self, options: i32) -> i32 {
        let mut status = 0;
        loop {
            // SAFETY: a valid place for the status.
            match unsafe { libc::waitpid(self.pid, &mut status, options) } {
                -1 if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
                -1 => panic!("waitpid: {}", std::io::Error::last_os_error()),
                _ => break,
            }
        }
        self.reaped = true;
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(libc::SIGKILL);
            self.reap(0);
        }
    }
}

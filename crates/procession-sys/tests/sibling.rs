//! Forking on behalf of the parent.

use procession_sys::clock::Deadline;
use procession_sys::process::{self, Children, ExitStatus, ForkSide};
use procession_sys::sibling::{self, Side};

/// What a process checks exits with this.
const RIGHT: i32 = 7;

/// Whether the C library knows the id of this thread, which the clock of a thread is made of.
fn is_known_to_the_c_library() -> bool {
    let mut clock = 0;
    // SAFETY: the library writes one number.
    let asked = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    // SAFETY: no preconditions.
    asked == 0 && !(clock >> 3) == unsafe { libc::gettid() }
}

#[test]
fn a_sibling_is_a_child_of_the_callers_parent() {
    let me = process::getpid();
    // SAFETY: there are no guards, and the child calls only what is sound in a copy of one thread.
    let ForkSide::Parent { child: template } = unsafe { process::fork() }.unwrap() else {
        // SAFETY: there are no guards.
        let code = match unsafe { sibling::fork() } {
            Ok(Side::Sibling) => {
                let right = process::getppid() == me && is_known_to_the_c_library();
                // It can have threads and children of its own.
                let thread = std::thread::spawn(is_known_to_the_c_library).join();
                // SAFETY: there are no guards, and no other thread.
                match unsafe { process::fork() } {
                    Ok(ForkSide::Child) => process::exit_now(i32::from(!is_known_to_the_c_library())),
                    Ok(ForkSide::Parent { child }) => {
                        let ended = process::wait_id(Children::Pid(child), true, false);
                        let ended = ended.ok().flatten().is_some_and(|(_, status)| status.success());
                        if right && ended && thread.unwrap_or(false) { RIGHT } else { 1 }
                    }
                    Err(_) => 1,
                }
            }
            Ok(Side::Caller { sibling, pidfd }) => {
                // It is no child of this process.
                let is_child = process::wait_id(Children::Pid(sibling), false, false).is_ok();
                let ended = process::wait_ended(&pidfd, Deadline::Never).unwrap_or(false);
                if ended && !is_child { 0 } else { 1 }
            }
            Err(_) => 1,
        };
        process::exit_now(code);
    };
    let (_, status) = process::wait_id(Children::Pid(template), true, false).unwrap().unwrap();
    assert_eq!(status, ExitStatus::Exited(0));
    let (sibling, status) = process::wait_id(Children::Any, true, false).unwrap().unwrap();
    assert_ne!(sibling, template);
    assert_eq!(status, ExitStatus::Exited(RIGHT));
}

//! Programs that have more privileges than the user that runs them: setuid, setgid, or with file
//! capabilities.

use rustix::fs::{StatVfsMountFlags, getxattr, stat, statvfs};
use rustix::process::{DumpableBehavior, dumpable_behavior, getegid, geteuid, getgid, getuid};
use rustix::thread::{CapabilitySet, capabilities, no_new_privs};

const PROGRAM: &str = "/proc/self/exe";

/// Whether this program was started with privileges that its caller does not have. Then nothing
/// that the caller chose may decide what it does: no variable, and no descriptor.
pub fn is_secure() -> bool {
    // SAFETY: it only looks a number up.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether this process can change its user or group. True where it is unknown.
pub fn may_change_user() -> bool {
    let (mut users, mut groups) = ([0; 3], [0; 3]);
    let [[real, effective, saved], [real_group, effective_group, saved_group]] = [&mut users, &mut groups];
    // SAFETY: each pointer is to an id that the call writes.
    let known = unsafe {
        libc::getresuid(real, effective, saved) == 0
            && libc::getresgid(real_group, effective_group, saved_group) == 0
    };
    let is_one = |ids: [u32; 3]| ids[0] == ids[1] && ids[1] == ids[2];
    let capable = capabilities(None)
        .map_or(true, |sets| sets.permitted.intersects(CapabilitySet::SETUID | CapabilitySet::SETGID));
    !known || !is_one(users) || !is_one(groups) || capable
}

/// Whether processes of the same user may open this process's descriptors. They may not after it
/// has changed its user or group, unless they are root's: it is not dumpable then.
pub fn is_dumpable() -> bool {
    dumpable_behavior().map_or(true, |behavior| behavior == DumpableBehavior::Dumpable)
}

/// Why a program that this process executes once more would be [secure](is_secure), if it would.
pub fn gained_by_executing() -> Option<&'static str> {
    if getuid() != geteuid() || getgid() != getegid() {
        return Some("its effective user or group is not its real one (setuid, setgid, seteuid)");
    }
    // What cannot be looked at cannot be executed either.
    let about = stat(PROGRAM).ok()?;
    let grants = !no_new_privs().unwrap_or(false)
        && !statvfs(PROGRAM).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::NOSUID));
    if !grants {
        return None;
    }
    let (mode, user, group) = (about.st_mode, about.st_uid, about.st_gid);
    let is_group = mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0 && group != getegid().as_raw();
    if is_group || (mode & libc::S_ISUID != 0 && user != geteuid().as_raw()) {
        return Some("its file is setuid or setgid");
    }
    let mut no_value = [0_u8; 64];
    let has_capabilities = getxattr(PROGRAM, "security.capability", &mut no_value).is_ok_and(|len| len > 0);
    (has_capabilities && !geteuid().is_root()).then_some("its file has capabilities")
}

//! Which process, and which user, is at the other end of a local socket.

use std::io;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::socket::Received;

/// A process and its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process's id; 0 for one of another pid namespace.
    pub pid: i32,
    /// Its user: the effective one of a peer, the real one of a sender.
    pub uid: u32,
}

/// The process that called `connect`, `listen` or `socketpair` for the other end of a local socket,
/// as the kernel has it.
///
/// # Errors
/// What the kernel reported.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `found` and `len` outlive the call; the kernel writes at most `len` bytes of a
    // `ucred`, which any bytes are a valid value of. (rustix's form cannot express the pid 0 of a
    // foreign namespace.)
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Credentials { pid: found.pid, uid: found.uid })
}

/// The effective user of this process.
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Room for the control messages of a packet: descriptors, up to the kernel's `SCM_MAX_FD`, and
/// credentials.
const CONTROL_WORDS: usize = 160;

/// Receives a packet without waiting, appends the descriptors that came with it, closed on exec,
/// and returns its sender. The kernel names the sender where the receiving socket has `SO_PASSCRED`
/// set.
///
/// # Errors
/// `WouldBlock` when there is none yet; else what the kernel reported.
pub fn receive_from(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<(Received, Option<Credentials>)> {
    let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`: no buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let bytes = loop {
        // SAFETY: the message points to buffers of the lengths given, which outlive the call.
        let bytes = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
        match usize::try_from(bytes) {
            Ok(bytes) => break bytes,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let mut sender = None;
    // SAFETY: the kernel has written whole control messages into the buffer, which is aligned for
    // their heads. It reports their length, and the macros stay inside that. Each descriptor in
    // them is new and this process's. (rustix's form of the credentials cannot express the pid 0 of
    // another namespace.)
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(about) = head.as_ref() {
            let data = libc::CMSG_DATA(head);
            #[allow(clippy::unnecessary_cast, reason = "musl has another type for it")]
            let len = (about.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            match (about.cmsg_level, about.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for index in 0..len / size_of::<i32>() {
                        let number = data.cast::<i32>().add(index).read_unaligned();
                        descriptors.push(OwnedFd::from_raw_fd(number));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if len >= size_of::<libc::ucred>() => {
                    let found = data.cast::<libc::ucred>().read_unaligned();
                    sender = Some(Credentials { pid: found.pid, uid: found.uid });
                }
                _ => {}
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
    }
    let descriptors_lost = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok((Received { bytes, descriptors_lost }, sender))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::set_socket_passcred;

    #[test]
    fn a_packet_says_who_sent_it() {
        let (one, other) = super::super::socket::pair().unwrap();
        set_socket_passcred(&other, true).unwrap();
        rustix::io::write(&one, b"hello").unwrap();
        let mut buffer = [0; 8];
        let mut descriptors = Vec::new();
        let (received, sender) = receive_from(&other, &mut buffer, &mut descriptors).unwrap();
        assert_eq!((received.bytes, descriptors.len()), (5, 0));
        let me = Credentials { pid: std::process::id() as i32, uid: rustix::process::getuid().as_raw() };
        assert_eq!(sender, Some(me));
        let error = receive_from(&other, &mut buffer, &mut descriptors).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

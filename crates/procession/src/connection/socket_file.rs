//! The file of a listening local socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::socket::{self, Endpoint};
use rustix::fd::OwnedFd;

use super::address::Address;
use super::error::ListenError;

/// How long another listener may take to be made in the same directory.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket file, removed by the process that made it, unless it has become another's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// The file itself: device and inode.
    file: (u64, u64),
    owner: Identity,
}

impl SocketFile {
    /// Listens at `path`. Replaces the file of a listener that is gone.
    pub(super) fn listen(
        path: &Path,
        address: &Address,
        backlog: u32,
    ) -> Result<(OwnedFd, SocketFile), ListenError> {
        let system = |action| move |cause| ListenError::System { address: address.clone(), action, cause };
        // Made absolute, so that it is found again after the program has changed its directory.
        let absolute = std::path::absolute(path).map_err(system("finding the path"))?;
        let directory = absolute.parent().unwrap_or(Path::new("/"));
        // Of two processes that replace the same left-over file, the second would remove the first one's
        // new file.
        let _lock = socket::lock_directory(directory, Deadline::after(PATIENCE))
            .map_err(system("locking the directory"))?;
        let endpoint = Endpoint::Path(path.into());
        let socket = match socket::listen(&endpoint, backlog) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_left_over(path, address)?;
                socket::listen(&endpoint, backlog)
            }
            other => other,
        }
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
            io::ErrorKind::InvalidFilename => ListenError::PathTooLong(address.clone()),
            _ => system("binding a socket")(cause),
        })?;
        let found = absolute.symlink_metadata().map_err(system("looking at the new socket file"))?;
        let file = (found.dev(), found.ino());
        Ok((socket, SocketFile { path: absolute, file, owner: Identity::current() }))
    }
}

/// Removes the file at `path` if it is a socket that no process has.
fn remove_left_over(path: &Path, address: &Address) -> Result<(), ListenError> {
    let system = |action| move |cause| ListenError::System { address: address.clone(), action, cause };
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.into())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("looking at the file that is there")(error)),
    }
    match socket::is_bound(path) {
        Ok(true) => Err(ListenError::InUse(address.clone())),
        Ok(false) => std::fs::remove_file(path).map_err(system("removing a dead listener's socket file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system("asking whether somebody listens")(error)),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.owner != Identity::current() {
            return;
        }
        match self.path.symlink_metadata() {
            Ok(found) if (found.dev(), found.ino()) == self.file => {
                if let Err(error) = std::fs::remove_file(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket file");
                }
            }
            // Removed or replaced by somebody else.
            _ => {}
        }
    }
}

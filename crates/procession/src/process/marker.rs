//! The environment variable of a process that this library has started.

use std::any::TypeId;
use std::hash::{Hash, Hasher};

use super::control_channel::Ticket;

/// The variable that tells a new process where it finds its control connection: [`marker`].
pub(super) const MARKER: &str = "PROCESSION_CHILD";

/// The value of [`MARKER`] for a process that inherits the connection.
pub(super) fn marker(ticket: Ticket) -> String {
    format!("{:016x}-{}-{}", copy(), ticket.number, ticket.inode)
}

/// Whether this process was started by this library, and its code before `main` has not run.
pub(super) fn startup_was_skipped() -> bool {
    std::env::var(MARKER).is_ok_and(|value| ticket(&value).is_some())
}

/// Reads what [`marker`] has made; `None` for what another copy of this library has made.
pub(super) fn ticket(value: &str) -> Option<Ticket> {
    let mut fields = value.split('-');
    let mut field = || fields.next();
    let (maker, number, inode) = (field()?, field()?, field()?);
    let is_ours = u64::from_str_radix(maker, 16).ok()? == copy() && field().is_none();
    is_ours.then_some(Ticket { number: number.parse().ok()?, inode: inode.parse().ok()? })
}

/// Tells this copy of the library from others in the same program, of another version, say.
fn copy() -> u64 {
    struct Here;
    let mut hash = std::hash::DefaultHasher::new();
    TypeId::of::<Here>().hash(&mut hash);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_by_its_own_copy() {
        let made = Ticket { number: 3, inode: 1234 };
        let value = marker(made);
        assert_eq!(ticket(&value), Some(made));
        let other = format!("{:016x}-3-1234", copy() ^ 1);
        for foreign in [other.as_str(), "", "3", "-", &format!("{value}-1"), &value[..18]] {
            assert_eq!(ticket(foreign), None, "{foreign}");
        }
    }
}

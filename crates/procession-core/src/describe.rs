//! Shared state in plain words, for who has to find out why a program does not go on.
//!
//! A description takes no lock and trusts nothing that it reads, so that it works on an object that is wedged or damaged. While
//! others use the object, its lines are of slightly different moments.

use std::fmt::{self, Display, Formatter};

use procession_sys::identity::Identity;

/// Displays what `write` writes.
pub(crate) struct Description<F>(pub(crate) F);

impl<F: Fn(&mut Formatter<'_>) -> fmt::Result> Display for Description<F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        (self.0)(f)
    }
}

/// A process, and whether it lives.
pub(crate) struct Who(pub(crate) Option<Identity>);

impl Display for Who {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("nobody"),
            Some(process) if process.is_alive() => write!(f, "pid {}, which lives", process.pid()),
            Some(process) => write!(f, "pid {}, which is DEAD", process.pid()),
        }
    }
}

/// Whom a word names that holds 0 or an identity, with a state above it.
pub(crate) struct Holder(pub(crate) u64);

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let identity = Identity::from_bits(self.0 & ((1 << Identity::BITS) - 1));
        match identity {
            None if self.0 != 0 => write!(f, "{:#x}, which is no process", self.0),
            _ => Who(identity).fmt(f),
        }
    }
}

//! The files of `procession-core/src/objects` that need no more than words, compiled here with loom's.

#[allow(dead_code, unreachable_pub, reason = "what is not explored is not called")]
#[path = "../../../crates/procession-core/src/objects/owned.rs"]
mod owned;
#[path = "../../../crates/procession-core/src/objects/wait_for.rs"]
mod wait_for;

use self::wait_for::wait_for;

use crate::sync::Spinner;
use owned::{Acquisition, Owned, Recursive};
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

/// As `Lock`, of `objects/lock.rs`.
#[derive(Debug, Default)]
pub(crate) struct Lock(Owned);

impl Lock {
    /// Takes the lock; whether its last owner died with it.
    pub(crate) fn acquire(&self) -> bool {
        let me = Identity::current().to_bits();
        self.0.take(me, true, &Spinner::new(), Deadline::Never) != Acquisition::Acquired
    }

    /// Releases it.
    pub(crate) fn release(&self) {
        self.0.give();
    }

    /// Releases it if the caller took it; whether it did.
    pub(crate) fn release_if_mine(&self) -> bool {
        self.0.give_if(Identity::current().to_bits())
    }
}

/// As `RLock`, of `objects/rlock.rs`.
#[derive(Debug, Default)]
pub(crate) struct RLock(Recursive);

impl RLock {
    /// Takes the lock; whether its last owner died with it.
    pub(crate) fn acquire(&self) -> bool {
        self.0.acquire(true, &Spinner::new(), Deadline::Never) != Acquisition::Acquired
    }

    /// Releases it once; whether the caller had it.
    pub(crate) fn release(&self) -> bool {
        self.0.release()
    }

    /// How often the caller has it.
    pub(crate) fn depth(&self) -> u64 {
        self.0.depth()
    }
}

//! What a new process is told over the control connection.

use procession_sys::identity::Identity;
use serde::{Deserialize, Serialize};

use super::start_method::StartMethod;
use super::task_ref::TaskRef;

/// The first message to a new process. For [`Order::Run`] the arguments follow it in the same message.
#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// Run a function.
    Run { task: TaskRef, settings: Settings },
    /// Be the fork server of a program.
    Serve { program: u64 },
}

/// Who the new process is.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) name: String,
    /// Its number among its parent's children, after its parent's numbers.
    pub(super) lineage: Vec<u32>,
    pub(super) daemon: bool,
    pub(super) detached: bool,
    /// SIGINT is blocked when its function is called, which sees to it.
    pub(super) defers_interrupts: bool,
    pub(super) parent: ParentRecord,
    pub(super) start_method: StartMethod,
}

/// The process that started this one.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ParentRecord {
    /// [`Identity::to_bits`]
    pub(super) identity: u64,
    pub(super) name: String,
}

impl ParentRecord {
    pub(super) fn identity(&self) -> Option<Identity> {
        Identity::from_bits(self.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::decode;
    use super::super::wire::tests::bytes;
    use super::*;
    use crate::hostile::target;

    #[test]
    fn orders_of_any_bytes() {
        target((0..4u8, bytes()), |(number, bytes)| {
            let _ = decode::<Order>(&bytes).map(drop);
            let _ = decode::<Order>(&[&[number], &bytes[..]].concat()).map(drop);
        });
    }
}

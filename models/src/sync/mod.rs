//! The files of `procession-core/src/sync`, compiled here with loom's words.

pub(crate) mod atomic;
#[allow(dead_code, unreachable_pub, reason = "what is not explored is not called")]
#[path = "../../../crates/procession-core/src/sync/robust.rs"]
pub(crate) mod robust;
#[allow(dead_code, unreachable_pub, reason = "what is not explored is not called")]
#[path = "../../../crates/procession-core/src/sync/wait.rs"]
pub(crate) mod wait;

pub(crate) use robust::Robust;
pub(crate) use wait::{Lookout, SLICE, Slices, Spinner, WaitQueue};

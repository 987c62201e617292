//! What the core promises, within one process and with forked ones.

mod bytes;
mod interrupt;
mod mapping;
mod pool;
mod queue;
mod watch;

//! Processes: how they start, end, and take others with them.

mod death;
mod posix;
mod start;
mod thread_end;

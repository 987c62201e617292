//! A flag to wait for.

use std::time::Duration;

use procession_core::objects;

use super::{CreateError, deadline};
use crate::handle::{one_handle, travels};

/// A flag between processes, as Python's `multiprocessing.Event`. Nobody owns it: no death changes it.
#[derive(Clone, Debug)]
pub struct Event(objects::Event);

travels!(Event);

impl Event {
    /// An event whose flag is clear.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new() -> Result<Self, CreateError> {
        objects::Event::new().map(Event)
    }

    /// Sets the flag. All who wait are released, even if it is cleared again at once.
    pub fn set(&self) {
        self.0.set();
    }

    /// Clears the flag.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.0.is_set()
    }

    /// Waits until the flag is set, `None` for as long as it takes; false when the time was up first.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> bool {
        self.0.wait(deadline(timeout))
    }

    one_handle!(|handle| objects::Event::open(handle).map(Event));

    fn core(&self) -> &objects::Event {
        &self.0
    }
}

//! The kinds of shared objects.

use std::fmt;

/// What a mapping holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum Kind {
    /// A queue: control words, rings and blocks.
    Queue = 1,
    /// Many small objects: locks, values, events.
    Arena = 2,
}

impl Kind {
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        [Kind::Queue, Kind::Arena].into_iter().find(|kind| *kind as u32 == raw)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Queue => "queue",
            Kind::Arena => "lock, value or array",
        })
    }
}

//! Handles that were serialised for a message which then was not put.
//!
//! Their sender keeps a descriptor for each until it is opened, so that one in bytes which nobody will ever see has to be
//! taken back.

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::handed_out::{self, Exportable};
use super::header::ObjectId;

thread_local! {
    /// How many tallies there are, one within another: a message may put another one while it is serialised.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// How many entries there are.
    static LEN: Cell<usize> = const { Cell::new(0) };
    /// No destructor: an exit handler may send handles. Empty, without memory, outside of tallies.
    static ENTRIES: RefCell<ManuallyDrop<Vec<Entry>>> =
        const { RefCell::new(ManuallyDrop::new(Vec::new())) };
}

/// What became of the message that a handle was serialised for.
pub(super) enum Fate {
    /// It was put into this queue.
    Put(ObjectId),
    /// It was not put.
    TakenBack,
}

enum Entry {
    /// An object, whose header counts its handles.
    Sent(Arc<dyn Exportable>),
    /// Another handle, whose module is told what became of its message.
    Other(Box<dyn FnOnce(Fate)>),
}

/// Notes the handles that this thread serialises. Dropped, by an error or a panic, it takes them back; [`Tally::keep`]
/// forgets them: their message is on its way. Costs next to nothing for a message without handles.
#[derive(Debug)]
#[must_use = "dropping it takes back the handles that were serialised since"]
pub struct Tally {
    start: usize,
    /// Belongs to its thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Tally {
    /// Begins to note handles.
    #[inline]
    pub fn begin() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Tally { start: LEN.get(), _not_send: std::marker::PhantomData }
    }

    /// How far it has come, for [`Tally::keep_until`].
    pub fn mark(&self) -> usize {
        LEN.get()
    }

    /// The message with all these handles was put into the queue `carrier`.
    #[inline]
    pub fn keep(self, carrier: ObjectId) {
        if LEN.get() != self.start {
            self.keep_until(LEN.get(), carrier);
        }
    }

    /// Counts the handles as opened: this process has their objects open for as long as any process
    /// may open them.
    pub fn keep_held(self) {
        for entry in take(self.start) {
            if let Entry::Sent(object) = entry {
                object.header().note_opened();
            }
        }
    }

    /// What was noted before the mark was put into `carrier`; what came after it was not.
    pub fn keep_until(self, mark: usize, carrier: ObjectId) {
        take_back(take(mark.max(self.start)));
        for entry in take(self.start) {
            match entry {
                Entry::Sent(object) => handed_out::carried(object.id(), carrier),
                Entry::Other(settle) => settle(Fate::Put(carrier)),
            }
        }
    }
}

impl Drop for Tally {
    #[inline]
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if LEN.get() != self.start {
            take_back(take(self.start));
        }
    }
}

/// The entries from `start` on.
fn take(start: usize) -> Vec<Entry> {
    LEN.set(start);
    ENTRIES.with_borrow_mut(|entries| match start {
        0 => std::mem::take(&mut **entries),
        _ => entries.split_off(start),
    })
}

fn take_back(entries: Vec<Entry>) {
    for entry in entries {
        match entry {
            // As if it had been opened: nobody will.
            Entry::Sent(object) => object.header().note_opened(),
            Entry::Other(settle) => settle(Fate::TakenBack),
        }
    }
}

fn note(entry: Entry) {
    let len = ENTRIES.with_borrow_mut(|entries| {
        entries.push(entry);
        entries.len()
    });
    LEN.set(len);
}

/// A handle of the object was serialised.
pub(super) fn sent(object: impl FnOnce() -> Arc<dyn Exportable>) {
    if DEPTH.get() != 0 {
        note(Entry::Sent(object()));
    }
}

/// A handle was serialised that only `settle` knows, which is told what became of its message.
pub(super) fn sent_with(settle: impl FnOnce(Fate) + 'static) {
    if DEPTH.get() != 0 {
        note(Entry::Other(Box::new(settle)));
    }
}

/// A handle was serialised that nobody but its own library knows: `take_back` runs if its message is not put.
pub fn sent_otherwise(take_back: impl FnOnce() + 'static) {
    sent_with(|fate| {
        if let Fate::TakenBack = fate {
            take_back();
        }
    });
}

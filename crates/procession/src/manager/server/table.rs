//! A dict or namespace.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

use super::objects::{Objects, Stored};
use crate::manager::wire::{Answer, Bytes, Refusal, TableOperation};

/// Values by their keys' bytes.
#[derive(Default)]
pub(super) struct Table {
    entries: HashMap<Vec<u8>, Entry>,
    /// Grows with each change.
    clock: u64,
}

struct Entry {
    /// When the key came: the order in which entries are listed.
    since: u64,
    /// When the value came; never 0.
    version: u64,
    value: Stored,
}

impl Table {
    /// Carries an operation out. What is to be dropped afterwards, without a lock, goes to `waste`.
    pub(super) fn apply(
        &mut self,
        operation: TableOperation,
        objects: &Objects,
        waste: &mut Vec<Stored>,
    ) -> Result<Answer<Stored>, Refusal> {
        use TableOperation as Op;
        let one = |entry: &Entry| (entry.value.clone(), entry.version);
        Ok(match operation {
            Op::Get(Bytes(key)) => Answer::One(self.entries.get(&key).map(one)),
            Op::Contains(Bytes(key)) => Answer::Bool(self.entries.contains_key(&key)),
            Op::Set(Bytes(key), value) => {
                waste.extend(self.set(key, objects.keep(value)?));
                Answer::Done
            }
            Op::Swap(Bytes(key), value) => {
                let old = self.set(key, objects.keep(value)?);
                Answer::One(old.map(|old| (old, 0)))
            }
            Op::GetOrInsert(Bytes(key), value) => {
                if let Some(entry) = self.entries.get(&key) {
                    return Ok(Answer::One(Some(one(entry))));
                }
                let value = objects.keep(value)?;
                self.set(key, value.clone());
                Answer::One(Some((value, self.clock)))
            }
            Op::Exchange(Bytes(key), version, value) => {
                let is = self.entries.get(&key).map_or(0, |entry| entry.version) == version;
                if is {
                    waste.extend(self.set(key, objects.keep(value)?));
                }
                Answer::Bool(is)
            }
            Op::Remove(Bytes(key)) => {
                Answer::One(self.entries.remove(&key).map(|entry| (entry.value, entry.version)))
            }
            Op::Keys => Answer::Keys(self.sorted().into_iter().map(|(key, _)| key).collect()),
            Op::Values => {
                let values = self.sorted().into_iter().map(|(_, entry)| entry.value.clone());
                Answer::Many(values.collect(), 0)
            }
            Op::Items => {
                let items = self.sorted().into_iter().map(|(key, entry)| (key, entry.value.clone()));
                Answer::Pairs(items.collect())
            }
            Op::Extend(pairs) => {
                let kept = pairs.into_iter().map(|(key, value)| Ok((key, objects.keep(value)?)));
                for (Bytes(key), value) in kept.collect::<Result<Vec<_>, Refusal>>()? {
                    waste.extend(self.set(key, value));
                }
                Answer::Done
            }
            Op::Clear => {
                self.clock += 1;
                waste.extend(std::mem::take(&mut self.entries).into_values().map(|entry| entry.value));
                Answer::Done
            }
            Op::Len => Answer::Count(self.entries.len() as u64),
        })
    }

    /// Sets a value; the old one.
    fn set(&mut self, key: Vec<u8>, value: Stored) -> Option<Stored> {
        self.clock += 1;
        let version = self.clock;
        match self.entries.entry(key) {
            Place::Occupied(mut place) => {
                let since = place.get().since;
                Some(place.insert(Entry { since, version, value }).value)
            }
            Place::Vacant(place) => {
                place.insert(Entry { since: version, version, value });
                None
            }
        }
    }

    /// The entries in the order in which their keys came.
    fn sorted(&self) -> Vec<(Bytes, &Entry)> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(_, entry)| entry.since);
        entries.into_iter().map(|(key, entry)| (Bytes(key.clone()), entry)).collect()
    }
}

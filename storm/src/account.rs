//! What the logs add up to, and whether that may be. Every message, task and count is looked at.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Acquire;

use crate::board::{Board, Slot, entries};
use crate::parcel::{SEQUENCE_BITS, parts};

/// What an entry means: its top bits. A plain message's entry is its id alone.
pub(crate) mod tag {
    const SHIFT: u32 = 60;
    pub(crate) const RECEIVED: u64 = 1 << SHIFT;
    /// A task that was handed out before.
    pub(crate) const RECEIVED_AGAIN: u64 = 2 << SHIFT;
    /// A task that is about to be given back.
    pub(crate) const DROPPED: u64 = 3 << SHIFT;
    pub(crate) const DONE: u64 = 4 << SHIFT;
    /// A task that is about to be taken for good.
    pub(crate) const FOR_GOOD: u64 = 5 << SHIFT;
    /// So many tasks were reported as lost by a join.
    pub(crate) const LOST: u64 = 6 << SHIFT;
    /// A value of the guarded counter.
    pub(crate) const COUNTED: u64 = 7 << SHIFT;
    /// The pid of a lock's owner that died.
    pub(crate) const OWNER_DIED: u64 = 8 << SHIFT;
    pub(crate) const MASK: u64 = 15 << SHIFT;
}

/// What was found for a turn, or the sum over several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Messages whose put returned, or counts under a lock.
    pub(crate) acknowledged: u64,
    pub(crate) lost_allowed: u64,
    pub(crate) lost: u64,
    pub(crate) repeated_allowed: u64,
    pub(crate) repeated: u64,
    /// Owners of locks that died and of which somebody was told.
    pub(crate) told: u64,
    /// Everything that may not be.
    pub(crate) faults: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        self.acknowledged += other.acknowledged;
        self.lost_allowed += other.lost_allowed;
        self.lost += other.lost;
        self.repeated_allowed += other.repeated_allowed;
        self.repeated += other.repeated;
        self.told += other.told;
        self.faults.extend_from_slice(&other.faults);
    }

    fn fault(&mut self, fault: String) {
        // The first ones tell what is wrong; a million more do not.
        if self.faults.len() < 20 {
            self.faults.push(fault);
        }
    }
}

/// What the entries of a turn are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Book {
    /// Plain messages.
    Messages,
    /// Tasks.
    Tasks,
    /// Counts under a lock.
    Counts,
    /// Nothing to add up: what the processes saw they have checked themselves.
    Nothing,
}

/// Adds up a turn whose processes have all ended.
pub(crate) fn audit(board: &Board, book: Book) -> std::io::Result<Tally> {
    let mut tally = Tally::default();
    match book {
        Book::Messages => messages(board, &mut tally)?,
        Book::Tasks => tasks(board, &mut tally)?,
        Book::Counts => counts(board, &mut tally)?,
        Book::Nothing => {
            tally.acknowledged = slots(board).map(|(_, slot)| slot.puts().0).sum::<u64>();
            tally.acknowledged += slots(board).map(|(_, slot)| slot.inside.load(Acquire) / 2).sum::<u64>();
            tally.acknowledged += board.head().generation.load(Acquire);
        }
    }
    Ok(tally)
}

fn slots(board: &Board) -> impl Iterator<Item = (u64, &Slot)> {
    (0..board.count()).map(|number| (number, board.slot(number)))
}

/// A process that did not end as it should was killed.
fn died(slot: &Slot) -> bool {
    slot.ended.load(Acquire) == 0
}

/// For each process that put: how often each of its messages was seen.
struct Puts(Vec<Vec<u32>>);

impl Puts {
    fn of(board: &Board) -> Self {
        Puts(
            slots(board)
                .map(|(_, slot)| {
                    let (acknowledged, under_way) = slot.puts();
                    vec![0; (acknowledged + under_way) as usize]
                })
                .collect(),
        )
    }

    /// Counts a message; how often it was seen before. `None` when nobody can have put it.
    fn see(&mut self, id: u64) -> Option<u32> {
        let (producer, sequence) = parts(id);
        let count = self.0.get_mut(producer as usize)?.get_mut(sequence as usize)?;
        *count += 1;
        Some(*count - 1)
    }
}

fn messages(board: &Board, tally: &mut Tally) -> std::io::Result<()> {
    let mut puts = Puts::of(board);
    let mut deaths_in_get = 0;
    for (number, slot) in slots(board) {
        if died(slot) {
            tally.lost_allowed += slot.taking.load(Acquire);
            deaths_in_get += u64::from(slot.taking.load(Acquire) != 0);
        }
        let mut last: HashMap<u64, u64> = HashMap::new();
        for id in entries(board, number)? {
            let (producer, sequence) = parts(id);
            match puts.see(id) {
                None => tally.fault(format!("process {number} has {id:#x}, which nobody put")),
                Some(0) => {}
                Some(_) => {
                    tally.repeated += 1;
                    tally.fault(format!("process {number} has {id:#x}, which was delivered before"));
                }
            }
            if let Some(before) = last.insert(producer, sequence)
                && before >= sequence
            {
                tally.fault(format!(
                    "process {number} has message {sequence} of {producer} after its message {before}"
                ));
            }
        }
    }
    for (number, slot) in slots(board) {
        let (acknowledged, _) = slot.puts();
        tally.acknowledged += acknowledged;
        let all = &puts.0[number as usize];
        // Of a batch under way there is a beginning in the queue: what is before one that was seen was put.
        let put = all.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
        let seen = &all[..put.max(acknowledged as usize)];
        tally.lost += seen.iter().filter(|count| **count == 0).count() as u64;
        // What one get takes of a producer's messages are neighbours.
        let runs = seen.chunk_by(|a, b| (*a == 0) == (*b == 0)).filter(|run| run[0] == 0).count() as u64;
        if runs > deaths_in_get {
            tally.fault(format!("messages of {number} are lost in {runs} places, by {deaths_in_get} deaths"));
        }
    }
    if tally.lost > tally.lost_allowed {
        tally
            .fault(format!("{} messages are lost, of which the dead had {}", tally.lost, tally.lost_allowed));
    }
    Ok(())
}

/// What became of one task.
#[derive(Clone, Copy, Default)]
struct Fate {
    received: u32,
    dropped: u32,
    done: u32,
    /// Deaths with the task in hand.
    orphaned: u32,
    /// Deaths after which it may be done without a word, or be lost.
    settled_by_death: u32,
}

fn tasks(board: &Board, tally: &mut Tally) -> std::io::Result<()> {
    let mut puts = Puts::of(board);
    let mut fates: HashMap<u64, Fate> = HashMap::new();
    let (mut reported, mut may_be_lost) = (0, 0);
    for (number, slot) in slots(board) {
        let mut last: HashMap<u64, u64> = HashMap::new();
        let mut in_hand: Option<(u64, bool)> = None;
        for entry in entries(board, number)? {
            let (kind, id) = (entry & tag::MASK, entry & !tag::MASK);
            if kind == tag::LOST {
                reported += id;
                continue;
            }
            let fate = fates.entry(id).or_default();
            match kind {
                tag::RECEIVED | tag::RECEIVED_AGAIN => {
                    if puts.see(id).is_none() {
                        tally.fault(format!("process {number} has task {id:#x}, which nobody put"));
                    }
                    fate.received += 1;
                    in_hand = Some((id, false));
                    let (producer, sequence) = parts(id);
                    if kind == tag::RECEIVED
                        && let Some(before) = last.insert(producer, sequence)
                        && before >= sequence
                    {
                        tally.fault(format!(
                            "process {number} has task {sequence} of {producer} after its task {before}"
                        ));
                    }
                }
                tag::DROPPED => {
                    fate.dropped += 1;
                    in_hand = None;
                }
                tag::FOR_GOOD => in_hand = Some((id, true)),
                tag::DONE => {
                    fate.done += 1;
                    in_hand = None;
                }
                _ => tally.fault(format!("process {number} has an entry {entry:#x} that means nothing")),
            }
        }
        if let Some((id, for_good)) = in_hand
            && died(slot)
        {
            let fate = fates.entry(id).or_default();
            fate.orphaned += 1;
            if for_good || slot.finishing.load(Acquire) == id + 1 {
                fate.settled_by_death += 1;
            }
            may_be_lost += u64::from(for_good);
        }
    }
    for (id, fate) in &fates {
        if fate.done > 1 {
            tally.fault(format!("task {id:#x} was done {} times", fate.done));
        }
        if fate.received > 0 && fate.done == 0 && fate.settled_by_death == 0 {
            tally.fault(format!("task {id:#x} was received and neither done nor handed out again"));
        }
        let again = fate.received.saturating_sub(1).saturating_sub(fate.dropped);
        let allowed = fate.orphaned;
        tally.repeated += u64::from(again);
        tally.repeated_allowed += u64::from(allowed);
        if again > allowed {
            tally.fault(format!("task {id:#x} was handed out {} times: {again} too many", fate.received));
        }
    }
    for (number, slot) in slots(board) {
        let (acknowledged, _) = slot.puts();
        tally.acknowledged += acknowledged;
        let seen = &puts.0[number as usize][..acknowledged as usize];
        for (sequence, _) in seen.iter().enumerate().filter(|(_, count)| **count == 0) {
            tally.lost += 1;
            tally.fault(format!("task {:#x} was never delivered", number << SEQUENCE_BITS | sequence as u64));
        }
    }
    let lost = fates.values().filter(|fate| fate.done == 0).count() as u64;
    let finished_by_the_dead =
        slots(board).filter(|(_, slot)| died(slot) && slot.finishing.load(Acquire) != 0).count() as u64;
    tally.lost += lost.saturating_sub(finished_by_the_dead);
    tally.lost_allowed += may_be_lost;
    if reported > may_be_lost {
        tally.fault(format!("joins reported {reported} lost tasks, and the dead had {may_be_lost}"));
    }
    Ok(())
}

fn counts(board: &Board, tally: &mut Tally) -> std::io::Result<()> {
    let end = board.head().counter.load(Acquire);
    let mut seen = vec![0u32; end as usize + 1];
    let mut told: HashMap<u64, u64> = HashMap::new();
    for (number, _) in slots(board) {
        for entry in entries(board, number)? {
            let value = entry & !tag::MASK;
            match entry & tag::MASK {
                tag::COUNTED => match seen.get_mut(value as usize) {
                    None => tally.fault(format!("process {number} counted {value}, beyond the end of {end}")),
                    Some(count) => *count += 1,
                },
                tag::OWNER_DIED => *told.entry(value).or_default() += 1,
                _ => tally.fault(format!("process {number} has an entry {entry:#x} that means nothing")),
            }
        }
    }
    // A count that nobody noted is that of a process which died between the two.
    for (_, slot) in slots(board).filter(|(_, slot)| died(slot)) {
        if let Some(count) = seen.get_mut(slot.intent.load(Acquire) as usize)
            && *count == 0
        {
            *count = 1;
        }
    }
    for (value, count) in seen.iter().enumerate().skip(1) {
        match count {
            0 => {
                tally.lost += 1;
                tally.fault(format!("the count of {value} was made by nobody"));
            }
            1 => {}
            _ => {
                tally.repeated += u64::from(*count) - 1;
                tally.fault(format!("the count of {value} was made {count} times: two were in the section"));
            }
        }
    }
    for (pid, times) in &told {
        // A pid may have come again within the turn; a death is told once for each.
        let deaths = slots(board).filter(|(_, slot)| slot.identity.load(Acquire) & 0x3f_ffff == *pid).count();
        if *times > deaths as u64 {
            tally.fault(format!("the death of pid {pid} was told {times} times"));
        }
    }
    tally.told = told.values().sum();
    tally.acknowledged = end;
    Ok(())
}

//! A queue's shared state in plain words.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use procession_sys::identity::Identity;

use super::Queue;
use crate::describe::{Description, Holder, Who};
use crate::ring::layout::{BlockState, Segment};
use crate::ring::{Ring, Side};
use crate::sync::Robust;
use crate::sync::atomic::Ordering::Relaxed;

/// Lists longer than this are cut: their beginning tells enough.
const LISTED: usize = 40;

impl Queue {
    /// The queue's state in plain words: settings, how many messages wait and where, who holds each internal lock and
    /// whether that process lives, who has messages and owes tasks, how much memory is in use for what. For who has
    /// to find out why a program does not go on.
    ///
    /// Takes no lock, changes nothing and does not wait, so that it can be had of a queue that is wedged or damaged. While others use the
    /// queue, its lines are of slightly different moments.
    pub fn describe(&self) -> impl Display + '_ {
        Description(|f: &mut Formatter<'_>| {
            let ring = &self.shared.ring;
            settings(ring, f)?;
            positions(ring, f)?;
            locks(ring, f)?;
            watchers(ring, f)?;
            blocks(ring, f)?;
            accounts(ring, f)
        })
    }
}

fn settings(ring: &Ring, f: &mut Formatter<'_>) -> fmt::Result {
    let settings = ring.settings();
    let kind = if settings.joinable { "queue of tasks" } else { "queue" };
    write!(f, "{kind} {:?}: ", ring.id())?;
    match settings.max_messages {
        0 => write!(f, "no bound on messages")?,
        max => write!(f, "at most {max} messages")?,
    }
    write!(f, ", at most {} bytes", settings.max_bytes)?;
    writeln!(f, "{}", if settings.abandonable { ", abandonable" } else { "" })?;
    let state = match ring.shutdown_state() {
        0 => "open",
        1 => "shut down: no more puts",
        2 => "shut down at once: no more puts and gets",
        _ => "in an impossible state of shutdown",
    };
    let wanted = ring.control().settings.sweep_wanted.load(Relaxed);
    writeln!(f, "  {state}{}", if wanted == 0 { "" } else { "; somebody is to look for what the dead left" })
}

fn positions(ring: &Ring, f: &mut Formatter<'_>) -> fmt::Result {
    let control = ring.control();
    let (head, tail) = (ring.head(), ring.tail());
    let put = Segment::from_bits(control.put.segment.load(Relaxed));
    let get = Segment::from_bits(control.get.segment.load(Relaxed));
    writeln!(f, "  {} messages wait in the ring", tail.messages_since(head))?;
    writeln!(f, "  tail: message {}, unit {}, in segment {put}", tail.count, tail.position)?;
    writeln!(f, "  head: message {}, unit {}, in segment {get}", head.count, head.position)?;
    if tail.position.wrapping_sub(head.position) > u32::MAX / 2 {
        writeln!(f, "  the head is AHEAD of the tail")?;
    }
    let mut block = get.block;
    for _ in 0..LISTED {
        let Ok(descriptor) = ring.descriptor(block) else {
            return writeln!(f, "  segment {block} does NOT exist");
        };
        let bytes = 1u64.checked_shl(descriptor.class.load(Relaxed)).unwrap_or(0);
        writeln!(f, "  segment in block {block}: {bytes} bytes")?;
        if block == put.block {
            return Ok(());
        }
        match descriptor.successor.load(Relaxed).checked_sub(1) {
            Some(successor) => block = successor,
            None => return writeln!(f, "  the chain of segments ENDS before the producers' one"),
        }
    }
    writeln!(f, "  …")
}

impl Display for Segment {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from unit {})", self.block, self.base)
    }
}

fn locks(ring: &Ring, f: &mut Formatter<'_>) -> fmt::Result {
    let control = ring.control();
    let lock = |f: &mut Formatter<'_>, name: &str, lock: &Robust| {
        let (word, arrivals) = lock.state();
        writeln!(f, "  {name} lock: held by {}; up to {arrivals} wait for it", Holder(word))
    };
    lock(f, "put", &control.put.lock)?;
    lock(f, "get", &control.get.lock)?;
    lock(f, "memory", &control.memory.lock)?;
    let waiting = &control.waiting;
    let (get, put, join) =
        (waiting.not_empty.arrivals(), waiting.not_full.arrivals(), waiting.all_done.arrivals());
    writeln!(f, "  asleep, at most: {get} for a message, {put} for room, {join} for all tasks to be done")
}

fn watchers(ring: &Ring, f: &mut Formatter<'_>) -> fmt::Result {
    for (side, what) in [(Side::Messages, "a message"), (Side::Room, "room")] {
        for (owner, armed) in ring.watched_by(side).take(LISTED) {
            let armed = if armed { "to be told of the next" } else { "readable" };
            writeln!(f, "  a descriptor to wait for {what}: of {}; {armed}", Holder(owner))?;
        }
    }
    Ok(())
}

/// The blocks of one state that one process has.
struct Group {
    state: BlockState,
    owner: Option<Identity>,
    blocks: u64,
    /// Of memory that they have.
    bytes: u64,
}

fn blocks(ring: &Ring, f: &mut Formatter<'_>) -> fmt::Result {
    let memory = &ring.control().memory;
    let (used, cached) = (memory.used.load(Relaxed), memory.cached.load(Relaxed));
    let count = ring.descriptor_count();
    writeln!(f, "  memory: {used} bytes in use, of which {cached} are kept for later; {count} blocks")?;
    let Ok(blocks) = ring.blocks() else {
        return writeln!(f, "    more blocks than there is MEMORY for");
    };
    let mut groups: BTreeMap<(u8, u64), Group> = BTreeMap::new();
    let mut odd = 0;
    for block in blocks {
        let Ok(descriptor) = ring.descriptor(block) else {
            writeln!(f, "    block {block} and those after it CANNOT be found")?;
            break;
        };
        let Some((state, owner)) = descriptor.state() else {
            odd += 1;
            continue;
        };
        let key = (state as u8, owner.map_or(0, Identity::to_bits));
        let group = groups.entry(key).or_insert(Group { state, owner, blocks: 0, bytes: 0 });
        group.blocks += 1;
        group.bytes = group.bytes.saturating_add(descriptor.reserved.load(Relaxed));
    }
    if odd != 0 {
        writeln!(f, "    {odd} blocks in an IMPOSSIBLE state")?;
    }
    for Group { state, owner, blocks, bytes } in groups.values().take(LISTED) {
        let what = match state {
            BlockState::Free => "free",
            BlockState::Writing => "being written",
            BlockState::Queued => "large messages that wait",
            BlockState::Taken => "large messages being read",
            BlockState::Held => "deliveries not acknowledged",
            BlockState::HeldCopy => "small deliveries not acknowledged",
            BlockState::Returned => "deliveries to be handed out again",
            BlockState::Unused => "left to the next sweep",
            BlockState::Owed => "deliveries taken for good, not declared done",
            BlockState::Segment => "segments of the ring",
        };
        write!(f, "    {blocks} {what}, {bytes} bytes")?;
        match owner {
            Some(_) => writeln!(f, ": {}", Who(*owner))?,
            None => writeln!(f)?,
        }
    }
    if groups.len() > LISTED {
        writeln!(f, "    …")?;
    }
    Ok(())
}

fn accounts(ring: &Ring, f: &mut Formatter<'_>) -> fmt::Result {
    if !ring.settings().joinable {
        return Ok(());
    }
    let memory = &ring.control().memory;
    let (held, returned, owed) =
        (memory.held.load(Relaxed), memory.returned.load(Relaxed), memory.owed.load(Relaxed));
    writeln!(f, "  unfinished tasks: {}", ring.unfinished())?;
    writeln!(
        f,
        "    {held} deliveries out, of which {returned} to be handed out again and {owed} taken for good"
    )?;
    let in_use = || ring.accounts().iter().filter(|account| account.owner.load(Relaxed) != 0);
    for account in in_use().take(LISTED) {
        let (taken, done) = ((account.taken.load(Relaxed) >> 32) as u32, account.done.load(Relaxed) as u32);
        let (balance, lost) = (taken.wrapping_sub(done) as i32, account.lost.load(Relaxed));
        writeln!(
            f,
            "    account of {}: took {taken}, declared {done} done, owes {balance}, of which {lost} by earlier owners",
            Holder(account.owner.load(Relaxed))
        )?;
    }
    if in_use().count() > LISTED {
        writeln!(f, "    …")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::queue::{Queue, QueueOptions};
    use crate::sync::atomic::Ordering;
    use procession_sys::clock::Deadline;

    fn queue_with_everything() -> Queue {
        let queue = Queue::create(&QueueOptions::new().joinable(true).max_messages(10)).unwrap();
        for _ in 0..3 {
            queue.put(&[7; 50_000], Deadline::Now).unwrap();
        }
        queue.put(b"small", Deadline::Now).unwrap();
        queue
    }

    #[test]
    fn what_a_queue_holds_is_told() {
        let queue = queue_with_everything();
        let delivery = queue.get_delivery(Deadline::Now).unwrap();
        let message = queue.get_message(Deadline::Now).unwrap();
        queue.readable_fd().unwrap();
        queue.writable_fd().unwrap();
        let text = queue.describe().to_string();
        let me = std::process::id();
        for line in [
            "at most 10 messages",
            "open",
            "2 messages wait in the ring",
            "put lock: held by nobody",
            &format!("a descriptor to wait for a message: of pid {me}, which lives; readable"),
            &format!("a descriptor to wait for room: of pid {me}, which lives; readable"),
            &format!("1 deliveries not acknowledged, 53248 bytes: pid {me}, which lives"),
            &format!("1 large messages being read, 53248 bytes: pid {me}, which lives"),
            "unfinished tasks: 4",
            &format!("account of pid {me}, which lives: took 1, declared 0 done, owes 1"),
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        drop((delivery, message));
        while queue.get_message(Deadline::Now).is_ok() {}
        let armed =
            format!("a descriptor to wait for a message: of pid {me}, which lives; to be told of the next");
        assert!(queue.describe().to_string().contains(&armed));
    }

    /// Also with its locks held, and whatever its words say.
    #[test]
    fn a_wedged_or_damaged_queue_is_described() {
        let queue = queue_with_everything();
        let ring = &queue.shared.ring;
        let control = ring.control();
        {
            let _get = ring.get_session(Deadline::Now).unwrap();
            let _put = ring.put_session(Deadline::Now).unwrap();
            let me = format!("put lock: held by pid {}, which lives", std::process::id());
            assert!(queue.describe().to_string().contains(&me));
        }
        for word in [0, 1, u64::MAX, 1 << 63, 0x1234_5678_9abc_def0] {
            control.put.segment.store(word, Ordering::Relaxed);
            control.get.segment.store(!word, Ordering::Relaxed);
            control.put.tail.store(word, Ordering::Relaxed);
            control.get.head.store(!word, Ordering::Relaxed);
            control.memory.tables[1].store(word, Ordering::Relaxed);
            control.memory.descriptors.store(word as u32 & 0xfff, Ordering::Relaxed);
            control.settings.shutdown.store(word as u32, Ordering::Relaxed);
            for account in ring.accounts() {
                account.owner.store(word, Ordering::Relaxed);
                account.taken.store(word, Ordering::Relaxed);
            }
            for block in 0..4 {
                let descriptor = ring.descriptor_slot(block).unwrap();
                descriptor.class.store(word as u32, Ordering::Relaxed);
                descriptor.successor.store(word as u32, Ordering::Relaxed);
                descriptor.reserved.store(word, Ordering::Relaxed);
            }
            assert!(!queue.describe().to_string().is_empty());
        }
        std::mem::forget(queue);
    }
}

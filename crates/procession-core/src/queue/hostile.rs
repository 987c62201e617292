//! Queues whose memory a peer wrote to.

mod single;

use std::fs::File;
use std::mem::offset_of;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::hostile::{dead, elsewhere, scribble, target, value, word};
use crate::ring::layout::{
    ACCOUNTS_AT, Account, CLASSES, Control, DESCRIPTORS_AT, Descriptor, Segment, TABLES, UNIT, WATCHERS_AT,
    Watcher, Watchers,
};

/// A queue that has been used for a while.
#[derive(Clone, Debug)]
struct Setup {
    joinable: bool,
    bounded: bool,
    /// Messages of some bytes, before and after those that follow.
    small: u8,
    /// Beyond the first segment.
    grown: bool,
    large: u8,
    /// Messages taken, of which large ones stay in use.
    taken: u8,
    /// Deliveries: by this process, given back, owed, and held by a process that died.
    held: u8,
    returned: u8,
    owed: u8,
    dead: bool,
}

/// What happens to it.
#[derive(Clone, Debug)]
enum Step {
    /// A word, by its number in the table of fields, becomes a value.
    Word { field: u16, index: u8, kind: u8, random: u64 },
    /// Any bytes anywhere in the file's first part.
    Bytes { at: u32, bytes: Vec<u8> },
    /// The file grows, without memory.
    Grow { bits: u8 },
    /// Words that agree with each other, about what is not there.
    Forge { what: u8, block: u8, bits: u8, random: u64 },
    /// The file loses memory.
    Punch { at: u32, pages: u8 },
    /// The victim does something.
    Use { what: u8, size: u8 },
}

fn setup() -> impl Strategy<Value = Setup> {
    let counts = (0..40u8, 0..4u8, 0..6u8, 0..4u8, 0..3u8, 0..3u8);
    (any::<[bool; 3]>(), prop::bool::weighted(0.2), counts).prop_map(
        |([joinable, bounded, dead], grown, (small, large, taken, held, returned, owed))| Setup {
            joinable,
            bounded,
            small,
            grown,
            large,
            taken,
            held,
            returned,
            owed,
            dead,
        },
    )
}

fn mutation() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => any::<(u16, u8, u8, u64)>()
            .prop_map(|(field, index, kind, random)| Step::Word { field, index, kind, random }),
        4 => (0..400_000u32, vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Step::Bytes { at, bytes }),
        1 => (18..47u8).prop_map(|bits| Step::Grow { bits }),
        6 => any::<(u8, u8, u8, u64)>()
            .prop_map(|(what, block, bits, random)| Step::Forge { what, block, bits, random }),
        1 => (0..100u32, 1..20u8).prop_map(|(at, pages)| Step::Punch { at, pages }),
    ]
}

fn action() -> impl Strategy<Value = Step> {
    any::<(u8, u8)>().prop_map(|(what, size)| Step::Use { what, size })
}

/// The words of a queue: name, place in the file, size in bytes.
fn fields(file: &File, index: u8) -> Vec<(&'static str, u64, usize)> {
    let mut fields = Vec::new();
    macro_rules! control {
        ($($field:ident . $word:ident: $size:expr),* $(,)?) => {
            $(fields.push((
                concat!(stringify!($field), ".", stringify!($word)),
                offset_of!(Control, $field.$word) as u64,
                $size,
            ));)*
        };
    }
    control!(
        settings.max_messages: 4, settings.joinable: 4, settings.max_bytes: 8, settings.shutdown: 4,
        settings.sweep_wanted: 4, settings.waits_for_bytes: 4, put.lock: 8, put.segment: 8, put.in_use_from: 4, put.known_gets: 4,
        put.reserved: 8, put.armed: 8, put.tail: 8, get.lock: 8, get.segment: 8, get.known_tail: 8, get.armed: 8, get.head: 8,
        memory.lock: 8, memory.end: 8, memory.descriptors: 4, memory.used: 8, memory.cached: 8,
        memory.held: 8, memory.returned: 8, memory.owed: 8, memory.last_look: 8,
        waiting.not_empty: 8, waiting.not_full: 8, waiting.all_done: 8, waiting.bytes_free: 8,
    );
    let index = u64::from(index);
    let array =
        |name, at: usize, size: u64, len: usize| (name, at as u64 + index % len as u64 * size, size as usize);
    fields.push(array("memory.free", offset_of!(Control, memory.free), 4, CLASSES));
    fields.push(array("memory.tables", offset_of!(Control, memory.tables), 8, TABLES));
    fields.push(array("header", 0, 4, 16));
    // Few of them exist, and they matter most: several times in the table.
    for descriptor in [index % 2, index % 8, index % 64] {
        let at = DESCRIPTORS_AT + descriptor * size_of::<Descriptor>() as u64;
        macro_rules! descriptor {
            ($($word:ident: $size:expr),*) => {
                $(fields.push((
                    concat!("descriptor.", stringify!($word)),
                    at + offset_of!(Descriptor, $word) as u64,
                    $size,
                ));)*
            };
        }
        fields.push(("descriptor.state", at, 8));
        descriptor!(seq: 4, next_free: 4, len: 8, offset: 8, class: 4, attempts: 4, reserved: 8, charged: 8, successor: 4);
    }
    let account = ACCOUNTS_AT + index % 512 * size_of::<Account>() as u64;
    for (word, name) in
        ["account.owner", "account.taken", "account.done", "account.lost"].into_iter().enumerate()
    {
        fields.push((name, account + 8 * word as u64, 8));
        fields.push((name, ACCOUNTS_AT + 8 * word as u64, 8));
    }
    for side in [offset_of!(Watchers, messages), offset_of!(Watchers, room)] {
        // Few of them exist.
        let watcher = WATCHERS_AT + side as u64 + index % 3 * size_of::<Watcher>() as u64;
        fields.push(("watcher.owner", watcher + offset_of!(Watcher, owner) as u64, 8));
        fields.push(("watcher.inode", watcher + offset_of!(Watcher, inode) as u64, 8));
        fields.push(("watcher.descriptor", watcher + offset_of!(Watcher, descriptor) as u64, 4));
    }
    // Records, where consumers and producers will look next, and behind.
    for (segment, cursor) in [
        (offset_of!(Control, get.segment), offset_of!(Control, get.head)),
        (offset_of!(Control, put.segment), offset_of!(Control, put.tail)),
    ] {
        let segment = Segment::from_bits(word(file, segment as u64));
        let descriptor = DESCRIPTORS_AT + u64::from(segment.block % 64) * size_of::<Descriptor>() as u64;
        let start = word(file, descriptor + offset_of!(Descriptor, offset) as u64);
        let class = word(file, descriptor + offset_of!(Descriptor, class) as u64) as u32;
        let position = (word(file, cursor as u64) as u32).wrapping_sub(segment.base);
        let unit = u64::from(position) + index % 4;
        let at = start.wrapping_add(unit * UNIT % 1u64.checked_shl(class).unwrap_or(1).max(1));
        fields.extend([("record", at, 8), ("record.argument", at.wrapping_add(8), 8), ("record.len", at, 4)]);
    }
    fields
}

/// Makes the queue, and what of it this process has in its hands.
fn build(setup: &Setup) -> (Queue, Vec<Message>, Vec<Delivery>) {
    let mut options = QueueOptions::new().joinable(setup.joinable).max_bytes(256 << 20);
    if setup.bounded {
        options = options.max_messages(100);
    }
    let queue = Queue::create(&options).unwrap();
    let put = |bytes: &[u8]| {
        let _ = queue.put(bytes, Deadline::Now);
    };
    for i in 0..setup.small {
        put(&vec![i; usize::from(i) * 7]);
    }
    for i in 0..setup.large {
        put(&vec![i; (20_000 << (i % 4)) + usize::from(i)]);
    }
    if setup.grown {
        for _ in 0..3000 {
            put(&[7; 200]);
        }
    }
    for i in 0..setup.small / 2 {
        put(&vec![i; usize::from(i) * 3]);
    }
    let mut messages = Vec::new();
    for _ in 0..setup.taken {
        messages.extend(queue.get_message(Deadline::Now));
    }
    let mut deliveries = Vec::new();
    if setup.joinable {
        for _ in 0..setup.returned {
            drop(queue.get_delivery(Deadline::Now));
        }
        for _ in 0..setup.held {
            deliveries.extend(queue.get_delivery(Deadline::Now));
        }
        for _ in 0..setup.owed {
            let _ = queue.get_delivery(Deadline::Now).map(Delivery::into_vec);
        }
        if setup.dead {
            elsewhere(true, || std::mem::forget(queue.get_delivery(Deadline::Now)));
        }
    }
    (queue, messages, deliveries)
}

fn mutate(file: &File, step: &Step) {
    let size = file.metadata().unwrap().len();
    match step {
        Step::Word { field, index, kind, random } => {
            let fields = fields(file, *index);
            let (name, at, bytes) = fields[*field as usize % fields.len()];
            let (_, other, _) = fields[(random >> 8) as usize % fields.len()];
            let new = value(*kind, *random, word(file, at), word(file, other), size);
            eprintln!("{name} at {at} becomes {new:#x}");
            scribble(file, at, &new.to_le_bytes()[..bytes]);
        }
        Step::Bytes { at, bytes } => scribble(file, u64::from(*at), bytes),
        Step::Grow { bits } => {
            let _ = memory::grow(file, 1 << bits);
        }
        Step::Forge { what, block, bits, random } => forge(file, *what, *block, *bits, *random),
        Step::Punch { at, pages } => {
            let _ = memory::release(file, u64::from(*at) * 4096, u64::from(*pages) * 4096);
        }
        Step::Use { .. } => {}
    }
}

/// Writes several words that would be right together.
fn forge(file: &File, what: u8, block: u8, bits: u8, random: u64) {
    eprintln!("forged: {what} {block} {bits} {random:#x}");
    let store = |at: u64, value: u64, len: usize| scribble(file, at, &value.to_le_bytes()[..len]);
    let control = |at: usize| at as u64;
    let (tail, head) = (control(offset_of!(Control, put.tail)), control(offset_of!(Control, get.head)));
    let descriptor = DESCRIPTORS_AT + u64::from(block % 4) * size_of::<Descriptor>() as u64;
    let class = 12 + u64::from(bits) % 32;
    let _ = memory::grow(file, 4 << class);
    match what % 6 {
        // A block as large as the file, and a message that fills it or nearly.
        0 | 1 => {
            store(descriptor + offset_of!(Descriptor, class) as u64, class, 4);
            store(descriptor + offset_of!(Descriptor, offset) as u64, 2 << class, 8);
            store(descriptor + offset_of!(Descriptor, len) as u64, (1 << class) - (random % 4), 8);
            if what % 6 == 1 {
                let len = 1 << class;
                store(descriptor + offset_of!(Descriptor, reserved) as u64, len, 8);
                store(descriptor + offset_of!(Descriptor, charged) as u64, len, 8);
            }
        }
        // A backlog of empty messages, many times around the ring.
        2 => {
            let count = 1u64 << (bits % 32);
            let now = word(file, head);
            store(
                tail,
                now.wrapping_add(count << 32) & !0xffff_ffff | now.wrapping_add(count) & 0xffff_ffff,
                8,
            );
            store(control(offset_of!(Control, get.known_tail)), word(file, tail), 8);
        }
        // Nothing waits, and the end is far away.
        3 => {
            let place = (random % (1 << 27)) | word(file, tail) & !0xffff_ffff;
            store(tail, place, 8);
            store(head, place, 8);
            store(control(offset_of!(Control, put.in_use_from)), place, 4);
        }
        // As many blocks as fill tables, and tables for them.
        4 => {
            let tables = u64::from(bits) % TABLES as u64;
            store(control(offset_of!(Control, memory.descriptors)), 64 * ((1 << tables) - random % 2), 4);
            for table in 1..tables {
                store(control(offset_of!(Control, memory.tables)) + 8 * table, 2 << class, 8);
            }
        }
        // All sums are nothing, or everything.
        _ => {
            let sum = if random.is_multiple_of(2) { 0 } else { random };
            for at in [
                offset_of!(Control, memory.used),
                offset_of!(Control, memory.cached),
                offset_of!(Control, memory.held),
                offset_of!(Control, memory.returned),
                offset_of!(Control, memory.owed),
            ] {
                store(control(at), sum, 8);
            }
        }
    }
}

/// Does with the queue what programs do. Errors are what is to be expected.
fn act(queue: &Queue, messages: &mut Vec<Message>, deliveries: &mut Vec<Delivery>, what: u8, size: u8) {
    let soon = if size.is_multiple_of(2) { Deadline::Now } else { Deadline::after(Duration::from_millis(3)) };
    let len = usize::from(size);
    match what % 29 {
        0 | 1 => drop(queue.put(&vec![size; len], soon)),
        2 => drop(queue.put(&vec![size; 20_000 + len * 300], soon)),
        3 => drop(queue.put_many((0..100).map(|i| &b"0123456789"[..i % 10]), soon)),
        4 => drop(queue.reserve_until(len * 1000, soon)),
        5 => drop(queue.reserve_until(20_000 + len, soon).map(|mut space| {
            space.fill(size);
            space.commit(soon)
        })),
        6 | 7 | 11 => drop(queue.get(&mut Vec::new(), soon)),
        8..=10 => messages.extend(queue.get_message(soon)),
        12 => messages.extend(queue.get_many(len, soon).unwrap_or_default()),
        13 => drop(queue.get_many(usize::MAX, soon)),
        14 | 15 if queue.is_joinable() => deliveries.extend(queue.get_delivery(soon)),
        16 => drop(deliveries.pop().map(Delivery::done)),
        17 => drop(deliveries.pop()),
        18 => drop(deliveries.pop().map(Delivery::into_vec)),
        19 => drop(queue.task_done()),
        20 => drop(queue.join(soon)),
        21 => drop(messages.pop()),
        22 => {
            let _ =
                (queue.len(), queue.is_full(), queue.unfinished(), queue.memory_used(), format!("{queue:?}"));
        }
        23 => drop(queue.trim()),
        24 => drop(queue.shutdown(false)),
        25 if len < 40 => drop(queue.shutdown(true)),
        26 => drop(queue.readable_fd()),
        27 => drop(queue.writable_fd()),
        28 => drop(queue.describe().to_string()),
        _ => drop(queue.to_handle().map(|handle| Queue::from_handle(&handle))),
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

fn end(messages: Vec<Message>, deliveries: Vec<Delivery>) {
    let total: u64 = messages.iter().map(|message| sum(message)).sum();
    let total = total + deliveries.iter().map(|delivery| sum(delivery)).sum::<u64>();
    std::hint::black_box(total);
}

fn file_of(queue: &Queue) -> File {
    File::from(queue.shared.ring.fd().try_clone_to_owned().unwrap())
}

/// What the victim made the system set aside, beyond what it put there itself, is no more than a little.
struct Taken {
    file: File,
    before: u64,
}

impl Taken {
    fn since(queue: &Queue) -> Self {
        let file = file_of(queue);
        let before = memory::allocated(&file).unwrap();
        Taken { file, before }
    }

    fn check(&self) {
        let more = memory::allocated(&self.file).unwrap().saturating_sub(self.before);
        assert!(more <= 64 << 20, "{more} bytes more of shared memory");
    }
}

#[test]
fn words_that_change_between_calls() {
    let steps = vec(prop_oneof![1 => mutation(), 2 => action()], 3..30);
    target("queue::hostile::words_that_change_between_calls", 400, (setup(), steps), |(setup, steps)| {
        let (queue, mut messages, mut deliveries) = build(setup);
        let taken = Taken::since(&queue);
        for step in steps {
            match step {
                Step::Use { what, size } => act(&queue, &mut messages, &mut deliveries, *what, *size),
                other => mutate(&taken.file, other),
            }
        }
        end(messages, deliveries);
        drop(queue);
        taken.check();
    });
}

#[test]
fn a_queue_that_was_spoilt_before_it_is_opened() {
    let steps = (vec(mutation(), 1..5), vec(action(), 1..20));
    let name = "queue::hostile::a_queue_that_was_spoilt_before_it_is_opened";
    target(name, 300, (setup(), steps), |(setup, (mutations, actions))| {
        let (queue, messages, deliveries) = build(setup);
        let taken = Taken::since(&queue);
        // As if they were another's.
        std::mem::forget((messages, deliveries));
        for step in mutations {
            mutate(&taken.file, step);
        }
        let Ok(ring) = Ring::open(queue.shared.ring.fd().try_clone_to_owned().unwrap()) else { return };
        let opened = Queue { shared: Arc::new(Shared::new(ring, None).unwrap()) };
        let (mut messages, mut deliveries) = (Vec::new(), Vec::new());
        for step in actions {
            if let Step::Use { what, size } = step {
                act(&opened, &mut messages, &mut deliveries, *what, *size);
            }
        }
        end(messages, deliveries);
        taken.check();
    });
}

#[test]
fn a_peer_that_goes_on_writing() {
    let steps = (vec(mutation(), 1..6), vec(action(), 1..30), any::<bool>());
    let name = "queue::hostile::a_peer_that_goes_on_writing";
    target(name, 60, (setup(), steps), |(setup, (mutations, actions, threads))| {
        let (queue, mut messages, mut deliveries) = build(setup);
        let taken = Taken::since(&queue);
        let file = &taken.file;
        elsewhere(false, || {
            // Its standard error is the victim's, and much would be said there.
            let nothing = File::options().write(true).open("/dev/null").unwrap();
            rustix::stdio::dup2_stderr(&nothing).unwrap();
            let mut mutations = mutations.clone();
            let until = Instant::now() + Duration::from_millis(40);
            while Instant::now() < until {
                for step in &mut mutations {
                    if let Step::Word { kind, random, .. } = step {
                        *kind = kind.wrapping_add(1);
                        *random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
                    }
                    mutate(file, step);
                }
            }
        });
        let act_all = |queue: &Queue, messages: &mut Vec<Message>, deliveries: &mut Vec<Delivery>| {
            let until = Instant::now() + Duration::from_millis(45);
            while Instant::now() < until {
                for step in actions {
                    if let Step::Use { what, size } = step {
                        act(queue, messages, deliveries, *what, *size);
                    }
                }
                messages.truncate(8);
                deliveries.truncate(8);
            }
        };
        if *threads {
            // A lock whose word is spoilt lets both in.
            std::thread::scope(|scope| {
                scope.spawn(|| act_all(&queue, &mut Vec::new(), &mut Vec::new()));
                act_all(&queue, &mut messages, &mut deliveries);
            });
        } else {
            act_all(&queue, &mut messages, &mut deliveries);
        }
        end(messages, deliveries);
        drop(queue);
    });
}

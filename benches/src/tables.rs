//! Which contenders meet in which workload.

use std::time::Duration;

use procession_core::queue::INLINE_MAX;

use crate::contender::{Contender, Result};
use crate::ours::{self, Procession, Typed};
use crate::payload::Order;
use crate::peers::crossbeam::Crossbeam;
use crate::peers::iceoryx::{self, Iceoryx2};
use crate::peers::interprocess::LocalSocket;
use crate::peers::ipc_channel::{IpcBytes, IpcTyped};
use crate::peers::limits;
use crate::peers::pipe::Pipe;
use crate::peers::posix_mq::{self, PosixQueue};
use crate::peers::seqpacket::SeqPacket;
use crate::peers::shmem_ipc::ShmemIpc;
use crate::stage::Home::{self, Processes, Threads};
use crate::workload::{self, Encoded, Lanes, Sample, Stream};

/// What a workload's figures are.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Messages a second, of so many bytes where that is fixed; more is better.
    Rate(Option<usize>),
    /// Seconds a round trip, with a pause before each; less is better.
    Time(Duration),
    /// Share of one core; less is better.
    Share,
}

/// A workload and those who take part.
pub struct Table {
    /// What it is called in the output and for the filter.
    pub name: String,
    /// What its figures are.
    pub unit: Unit,
    /// The row that the others are compared with.
    pub reference: &'static str,
    /// The contenders.
    pub rows: Vec<Row>,
}

/// One contender in one workload.
pub struct Row {
    /// The contender's name.
    pub name: &'static str,
    /// Runs one trial with a number of messages or round trips.
    pub run: Box<dyn Fn(u64) -> Result<Sample>>,
}

fn row(name: &'static str, run: impl Fn(u64) -> Result<Sample> + 'static) -> Row {
    Row { name, run: Box::new(run) }
}

const OURS: &str = "procession";
type Ours = Procession<{ ours::BOUNDED }>;
const CROSSBEAM: &str = "crossbeam-channel, threads";
const CROSSBEAM_VEC: &str = "crossbeam-channel of Vec, threads";
const ICEORYX2: &str = "iceoryx2, in place";
const FUTEX: &str = "bare futex";
/// How long a side sleeps before each round trip that must find both asleep.
const PAUSE: Duration = Duration::from_millis(1);
/// Waiters in the idle workload.
const WAITERS: usize = 100;

/// All workloads; `watch` is how long idle waiters are watched.
pub fn all(watch: Duration) -> Vec<Table> {
    vec![
        one_to_one::<8>("1→1, 8 B", CROSSBEAM),
        one_to_one::<100>("1→1, 100 B", CROSSBEAM),
        one_to_one::<1024>("1→1, 1 KiB", CROSSBEAM),
        one_to_one::<{ 64 << 10 }>("1→1, 64 KiB", ICEORYX2),
        one_to_one::<{ 1 << 20 }>("1→1, 1 MiB", ICEORYX2),
        two_to_two(),
        ping_pong_awake(),
        ping_pong_asleep(),
        typed(),
        idle(watch),
    ]
}

fn bytes<C: Contender<[u8]>>(name: &'static str, home: Home, stream: Stream) -> Row {
    row(name, move |count| workload::stream::<[u8], C>(home, stream, count))
}

fn one_to_one<const N: usize>(name: &str, reference: &'static str) -> Table {
    let stream = Stream { producers: 1, consumers: 1, size: N };
    let mut rows = vec![
        bytes::<Ours>(OURS, Processes, stream),
        bytes::<Procession<{ ours::UNBOUNDED }>>("procession, unbounded", Processes, stream),
    ];
    if N > INLINE_MAX {
        rows.push(bytes::<Procession<{ ours::IN_PLACE }>>("procession, in place", Processes, stream));
    }
    if N <= 1024 {
        rows.push(bytes::<Crossbeam<[u8; N]>>(CROSSBEAM, Threads, stream));
    }
    rows.push(bytes::<Crossbeam<Vec<u8>>>(CROSSBEAM_VEC, Threads, stream));
    rows.push(bytes::<Iceoryx2<{ iceoryx::IN_PLACE }>>(ICEORYX2, Processes, stream));
    rows.push(bytes::<Iceoryx2<{ iceoryx::COPY_OUT }>>("iceoryx2, copied out", Processes, stream));
    rows.push(bytes::<ShmemIpc<N>>("shmem-ipc, in place", Processes, stream));
    rows.push(bytes::<IpcBytes>("ipc-channel", Processes, stream));
    if N <= 64 << 10 {
        rows.push(bytes::<SeqPacket>("Unix SEQPACKET", Processes, stream));
    }
    rows.push(bytes::<Pipe>("pipe + postcard", Processes, stream));
    rows.push(bytes::<LocalSocket>("interprocess", Processes, stream));
    if N <= posix_mq::MOST_BYTES {
        rows.push(bytes::<PosixQueue>("POSIX mq", Processes, stream));
    }
    Table { name: name.into(), unit: Unit::Rate(Some(N)), reference, rows }
}

fn two_to_two() -> Table {
    let stream = Stream { producers: 2, consumers: 2, size: 100 };
    Table {
        name: "2→2, 100 B, one queue".into(),
        unit: Unit::Rate(Some(stream.size)),
        reference: CROSSBEAM,
        rows: vec![
            bytes::<Ours>(OURS, Processes, stream),
            bytes::<Crossbeam<[u8; 100]>>(CROSSBEAM, Threads, stream),
            bytes::<Crossbeam<Vec<u8>>>(CROSSBEAM_VEC, Threads, stream),
            bytes::<PosixQueue>("POSIX mq", Processes, stream),
            bytes::<SeqPacket>("Unix SEQPACKET", Processes, stream),
        ],
    }
}

fn ping_pong<C: Contender<[u8]>>(name: &'static str, home: Home, pause: Duration) -> Row {
    row(name, move |count| workload::ping_pong::<C>(home, pause, count))
}

/// Those who take part whether the sides are awake or asleep.
fn ping_pong_blocking(pause: Duration) -> Vec<Row> {
    vec![
        ping_pong::<Ours>(OURS, Processes, pause),
        row(FUTEX, move |count| limits::futex(pause, count)),
        ping_pong::<Crossbeam<[u8; 8]>>(CROSSBEAM, Threads, pause),
        ping_pong::<Iceoryx2<{ iceoryx::EVENT }>>("iceoryx2 with events", Processes, pause),
        ping_pong::<ShmemIpc<8>>("shmem-ipc", Processes, pause),
        ping_pong::<IpcBytes>("ipc-channel", Processes, pause),
        ping_pong::<SeqPacket>("Unix SEQPACKET", Processes, pause),
        ping_pong::<Pipe>("pipe + postcard", Processes, pause),
        ping_pong::<LocalSocket>("interprocess", Processes, pause),
        ping_pong::<PosixQueue>("POSIX mq", Processes, pause),
    ]
}

fn ping_pong_awake() -> Table {
    let mut rows = ping_pong_blocking(Duration::ZERO);
    rows.insert(1, row("bare cache line, spinning", limits::cache_line));
    rows.push(ping_pong::<Iceoryx2<{ iceoryx::IN_PLACE }>>("iceoryx2, polling", Processes, Duration::ZERO));
    Table { name: "ping-pong, awake".into(), unit: Unit::Time(Duration::ZERO), reference: FUTEX, rows }
}

fn ping_pong_asleep() -> Table {
    Table {
        name: "ping-pong, asleep".into(),
        unit: Unit::Time(PAUSE),
        reference: FUTEX,
        rows: ping_pong_blocking(PAUSE),
    }
}

fn typed() -> Table {
    // The size only sets how many may wait.
    let stream = Stream { producers: 1, consumers: 1, size: 64 };
    let row_of = |name, home, run: fn(Home, Stream, u64) -> Result<Sample>| {
        row(name, move |count| run(home, stream, count))
    };
    Table {
        name: "typed, 5 fields".into(),
        unit: Unit::Rate(None),
        reference: "pipe + postcard",
        rows: vec![
            row("postcard alone, no queue", workload::postcard_alone),
            row_of("procession, Queue<Order>", Processes, workload::stream::<Order, Typed>),
            row_of("procession, bytes + postcard", Processes, workload::stream::<Order, Encoded<Ours>>),
            row_of(CROSSBEAM, Threads, workload::stream::<Order, Crossbeam<Order>>),
            row_of("pipe + postcard", Processes, workload::stream::<Order, Pipe>),
            row_of("Unix SEQPACKET + postcard", Processes, workload::stream::<Order, Encoded<SeqPacket>>),
            row_of("ipc-channel", Processes, workload::stream::<Order, IpcTyped>),
        ],
    }
}

fn idle_row<C: Contender<[u8]>>(name: &'static str, home: Home, lanes: Lanes, watch: Duration) -> Row {
    row(name, move |_| workload::idle::<C>(home, lanes, WAITERS, watch))
}

fn idle(watch: Duration) -> Table {
    Table {
        name: "100 idle waiters".into(),
        unit: Unit::Share,
        reference: "POSIX mq",
        rows: vec![
            idle_row::<Ours>(OURS, Processes, Lanes::Shared, watch),
            idle_row::<PosixQueue>("POSIX mq", Processes, Lanes::Shared, watch),
            idle_row::<SeqPacket>("Unix SEQPACKET", Processes, Lanes::Shared, watch),
            idle_row::<Crossbeam<[u8; 8]>>(CROSSBEAM, Threads, Lanes::Shared, watch),
            idle_row::<IpcBytes>("ipc-channel", Processes, Lanes::Own, watch),
        ],
    }
}

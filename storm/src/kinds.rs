//! The kinds of traffic: which objects, which roles, how many of each.

use std::fmt::Debug;
use std::time::Duration;

use procession::queue::Kind as QueueKind;
use procession::{Barrier, Condition, Event, JoinableQueue, Lock, Queue, RLock, Semaphore, Value};

use crate::account::Book;
use crate::parcel::{Parcel, Sizes};
use crate::roles::{
    Boss, Closed, Closer, Consumer, Guarded, Locker, Notifier, Pair, Party, PermitUser, PoolOwner, Producer,
    Role, Setter, Source, Tree, Waiter, Watcher, Worker,
};

/// A kind of traffic.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) book: Book,
    /// The longest time between two blows (kills, stops).
    pub(crate) gap: Duration,
    set_up: fn(&str) -> Result<Game, String>,
}

/// A place that is always taken: whoever leaves it is replaced.
pub(crate) struct Seat {
    pub(crate) role: Box<dyn Fn() -> Role>,
    /// Whether who sits there may be killed. The others are the survivors, who must never be without progress.
    pub(crate) mortal: bool,
}

/// The objects and seats of one turn.
pub(crate) struct Game {
    pub(crate) seats: Vec<Seat>,
    /// Whether all users are gone, to the process that ends the queue.
    pub(crate) closer: Option<Box<dyn Fn(bool) -> Role>>,
    /// The state of the shared objects in plain words: also tells who holds something that others wait for.
    pub(crate) describe: Box<dyn Fn() -> String>,
    /// Whether everybody needs everybody else to get on, whoever holds what.
    pub(crate) all_needed: bool,
}

impl Kind {
    /// Makes the objects. `tag` is a name that nobody else uses.
    pub(crate) fn set_up(&self, tag: &str) -> Result<Game, String> {
        (self.set_up)(tag).map_err(|error| format!("making the objects of {}: {error}", self.name))
    }
}

const FAST: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(60);

/// All of them, in the order in which they have their turns.
pub(crate) const ALL: [Kind; 19] = [
    Kind {
        name: "small",
        book: Book::Messages,
        gap: FAST,
        set_up: |_| plain(Sizes::Small, None, None, false),
    },
    Kind {
        name: "small-batches",
        book: Book::Messages,
        gap: FAST,
        set_up: |_| plain(Sizes::Small, None, None, true),
    },
    Kind {
        name: "small-bound-3",
        book: Book::Messages,
        gap: FAST,
        set_up: |_| plain(Sizes::Small, Some(3), None, false),
    },
    Kind {
        name: "mixed",
        book: Book::Messages,
        gap: FAST,
        set_up: |_| plain(Sizes::Mixed, None, None, true),
    },
    Kind {
        name: "mixed-named",
        book: Book::Messages,
        gap: FAST,
        set_up: |tag| plain(Sizes::Mixed, Some(100), Some(tag), true),
    },
    Kind {
        name: "large",
        book: Book::Messages,
        gap: FAST,
        set_up: |_| plain(Sizes::Large, Some(10), None, false),
    },
    Kind { name: "tasks", book: Book::Tasks, gap: FAST, set_up: |_| tasks(Sizes::Small, None, false) },
    Kind {
        name: "tasks-bound-1",
        book: Book::Tasks,
        gap: FAST,
        set_up: |_| tasks(Sizes::Small, Some(1), false),
    },
    Kind {
        name: "tasks-mixed",
        book: Book::Tasks,
        gap: FAST,
        set_up: |_| tasks(Sizes::Mixed, Some(50), false),
    },
    Kind {
        name: "tasks-for-good",
        book: Book::Tasks,
        gap: FAST,
        set_up: |_| tasks(Sizes::Mixed, None, true),
    },
    Kind {
        name: "lock",
        book: Book::Counts,
        gap: FAST,
        set_up: |_| locked(Guarded::Lock(made(Lock::new())?)),
    },
    Kind {
        name: "rlock",
        book: Book::Counts,
        gap: FAST,
        set_up: |_| locked(Guarded::RLock(made(RLock::new())?)),
    },
    Kind {
        name: "value",
        book: Book::Counts,
        gap: FAST,
        set_up: |_| locked(Guarded::Value(made(Value::new(0))?)),
    },
    Kind { name: "semaphore", book: Book::Nothing, gap: FAST, set_up: |_| permits() },
    Kind { name: "condition", book: Book::Counts, gap: FAST, set_up: |_| condition() },
    Kind { name: "event", book: Book::Nothing, gap: FAST, set_up: |_| event() },
    Kind { name: "barrier", book: Book::Nothing, gap: SLOW, set_up: |_| barrier() },
    Kind { name: "pipes", book: Book::Nothing, gap: FAST, set_up: |_| pipes() },
    Kind { name: "pools", book: Book::Nothing, gap: SLOW, set_up: |_| pools() },
];

fn made<T>(made: Result<T, impl ToString>) -> Result<T, String> {
    made.map_err(|error| error.to_string())
}

fn seats(
    count: usize,
    mortal: bool,
    role: impl Fn() -> Role + Clone + 'static,
) -> impl Iterator<Item = Seat> {
    (0..count).map(move |_| Seat { role: Box::new(role.clone()), mortal })
}

fn game(describe: impl Fn() -> String + 'static, seats: impl IntoIterator<Item = Seat>) -> Game {
    Game { seats: seats.into_iter().collect(), closer: None, describe: Box::new(describe), all_needed: false }
}

fn debug(object: impl Debug + 'static) -> impl Fn() -> String + 'static {
    move || format!("{object:?}")
}

fn build<Q: QueueKind>(
    builder: procession::queue::Builder<Q>,
    bound: Option<usize>,
    name: Option<&str>,
) -> Result<Q, String> {
    let builder = builder.max_bytes(2 << 30);
    let builder = match bound {
        Some(bound) => builder.bound(bound),
        None => builder,
    };
    match name {
        Some(name) => made(builder.create(name)),
        None => made(builder.build()),
    }
}

fn plain(sizes: Sizes, bound: Option<usize>, name: Option<&str>, batches: bool) -> Result<Game, String> {
    let queue: Queue<Parcel> = build(Queue::builder(), bound, name)?;
    let source = match name {
        Some(name) => Source::Name(name.into()),
        None => Source::Handle(queue.clone()),
    };
    let backlog = match sizes {
        Sizes::Small => 20_000,
        Sizes::Mixed => 2_000,
        Sizes::Large => 30,
    };
    let producer = Producer { queue: source.clone(), sizes, backlog };
    let consumer = Consumer { queue: source.clone(), sizes, batches };
    let put = {
        let producer = producer.clone();
        move || Role::Producer(producer.clone())
    };
    let get = {
        let consumer = consumer.clone();
        move || Role::Consumer(consumer.clone())
    };
    let mut game = game(
        move || queue.describe().to_string(),
        seats(1, false, put.clone())
            .chain(seats(2, true, put))
            .chain(seats(1, true, move || Role::Tree(Tree::Producer(producer.clone()))))
            .chain(seats(1, false, get.clone()))
            .chain(seats(2, true, get))
            .chain(seats(1, true, move || Role::Tree(Tree::Consumer(consumer.clone())))),
    );
    game.closer = Some(Box::new(move |last| {
        Role::Closer(Closer { queue: Closed::Plain(source.clone()), losses: false, last })
    }));
    Ok(game)
}

fn tasks(sizes: Sizes, bound: Option<usize>, for_good: bool) -> Result<Game, String> {
    let queue: JoinableQueue<Parcel> = build(JoinableQueue::builder(), bound, None)?;
    let boss = Boss { queue: queue.clone(), sizes, losses: for_good };
    let worker = Worker { queue: queue.clone(), sizes, for_good };
    let put = move || Role::Boss(boss.clone());
    let work = {
        let worker = worker.clone();
        move || Role::Worker(worker.clone())
    };
    let mut game = game(
        {
            let queue = queue.clone();
            move || queue.describe().to_string()
        },
        seats(1, false, put.clone())
            .chain(seats(2, true, put))
            .chain(seats(1, false, work.clone()))
            .chain(seats(2, true, work))
            .chain(seats(1, true, move || Role::Tree(Tree::Worker(worker.clone())))),
    );
    game.closer = Some(Box::new(move |last| {
        Role::Closer(Closer { queue: Closed::Tasks(queue.clone()), losses: for_good, last })
    }));
    Ok(game)
}

fn locked(lock: Guarded) -> Result<Game, String> {
    let guard = lock.clone();
    let describe = move || match &guard {
        Guarded::Lock(lock) => lock.describe().to_string(),
        Guarded::RLock(lock) => lock.describe().to_string(),
        Guarded::Value(value) => value.describe().to_string(),
    };
    let role = move || Role::Locker(Locker { lock: lock.clone() });
    Ok(game(describe, seats(2, false, role.clone()).chain(seats(4, true, role))))
}

fn permits() -> Result<Game, String> {
    let permits = 3;
    let semaphore = made(Semaphore::robust(permits))?;
    let describe = {
        let semaphore = semaphore.clone();
        move || semaphore.describe().to_string()
    };
    let role =
        move || Role::PermitUser(PermitUser { semaphore: semaphore.clone(), permits: u64::from(permits) });
    Ok(game(describe, seats(2, false, role.clone()).chain(seats(5, true, role))))
}

fn condition() -> Result<Game, String> {
    let condition = made(Condition::new())?;
    let describe = {
        let condition = condition.clone();
        move || condition.describe().to_string()
    };
    let notifier = {
        let condition = condition.clone();
        move || Role::Notifier(Notifier { condition: condition.clone() })
    };
    let waiter = move || Role::Waiter(Waiter { condition: condition.clone() });
    Ok(game(
        describe,
        seats(1, false, notifier.clone())
            .chain(seats(2, true, notifier))
            .chain(seats(2, false, waiter.clone()))
            .chain(seats(3, true, waiter)),
    ))
}

fn event() -> Result<Game, String> {
    let event = made(Event::new())?;
    let describe = debug(event.clone());
    let setter = {
        let event = event.clone();
        move || Role::Setter(Setter { event: event.clone() })
    };
    let watcher = move || Role::Watcher(Watcher { event: event.clone() });
    Ok(game(
        describe,
        seats(1, false, setter.clone())
            .chain(seats(1, true, setter))
            .chain(seats(2, false, watcher.clone()))
            .chain(seats(3, true, watcher)),
    ))
}

fn barrier() -> Result<Game, String> {
    let (barrier, mender) = (made(Barrier::new(4))?, made(Lock::new())?);
    let (shown, lock, ended) = (barrier.clone(), mender.clone(), barrier.clone());
    let describe = move || format!("{}the menders' {}", shown.describe(), lock.describe());
    let party = move || Role::Party(Party { barrier: barrier.clone(), mender: mender.clone() });
    let mut game = game(describe, seats(2, false, party.clone()).chain(seats(2, true, party)));
    game.all_needed = true;
    game.closer = Some(Box::new(move |last| {
        Role::Closer(Closer { queue: Closed::Barrier(ended.clone()), losses: false, last })
    }));
    Ok(game)
}

fn pipes() -> Result<Game, String> {
    let small = || Role::Pair(Pair { sizes: Sizes::Small });
    let mixed = || Role::Pair(Pair { sizes: Sizes::Mixed });
    let seats = seats(1, false, small)
        .chain(seats(1, false, mixed))
        .chain(seats(1, true, small))
        .chain(seats(1, true, mixed));
    Ok(Game { all_needed: true, ..game(|| "pipes have no shared state".into(), seats) })
}

/// Each has a pool of its own, whose workers it kills itself; those of an owner that is killed are to end with it.
fn pools() -> Result<Game, String> {
    let owner = |stops| move || Role::PoolOwner(PoolOwner { stops });
    Ok(game(
        || "each process has a pool of its own".into(),
        seats(1, false, owner(true)).chain(seats(1, true, owner(false))),
    ))
}

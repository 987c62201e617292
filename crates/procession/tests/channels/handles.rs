//! Every kind of handle, by every road to another process, and then used there and here.

use std::fmt::Debug;
use std::time::Duration;

use procession::queue::GetError;
use procession::shared::SharedMemoryError;
use procession::sync::{Acquisition, OpenError};
use procession::{
    Array, Barrier, BoundedSemaphore, Condition, Connection, Event, JoinableQueue, Lock, Pipe, Process,
    Queue, RLock, RawArray, RawValue, Receiver, Semaphore, Sender, SharedMemory, SimpleQueue, StartMethod,
    Value,
};
use procession_core::shm::transfer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use test_support::{AmongThreads, eventually, watchdog};

/// Something that travels, and what two processes that have it do with each other.
trait Kind: 'static {
    /// What stays, and what travels. The same, but for the ends of a pipe.
    type Here: Serialize + DeserializeOwned + 'static;
    type There: Serialize + DeserializeOwned + Debug + 'static;

    fn make() -> (Self::Here, Self::There);
    fn here(here: &Self::Here, turn: &Turn);
    fn there(there: &Self::There, turn: &Turn);
}

/// Whose turn it is.
type Turn = RawValue<u32>;

fn await_turn(turn: &Turn, number: u32) {
    eventually("the other's turn is over", || turn.get() >= number);
}

/// `kind!(Name: type that travels = how it is made; here; there)`: both ends have the same.
macro_rules! kind {
    ($name:ident: $type:ty = $make:expr; $here:expr; $there:expr) => {
        kind!($name: $type, $type = { let made: $type = $make; (again(&made), made) }; $here; $there);
    };
    ($name:ident: $here_type:ty, $there_type:ty = $make:expr; $here:expr; $there:expr) => {
        struct $name;
        impl Kind for $name {
            type Here = $here_type;
            type There = $there_type;

            fn make() -> (Self::Here, Self::There) {
                $make
            }
            fn here(here: &Self::Here, turn: &Turn) {
                let work: fn(&Self::Here, &Turn) = $here;
                work(here, turn);
            }
            fn there(there: &Self::There, turn: &Turn) {
                let work: fn(&Self::There, &Turn) = $there;
                work(there, turn);
            }
        }
    };
}

fn again<T: Clone>(handle: &T) -> T {
    handle.clone()
}

/// What one can hold: the other cannot then, until it is released.
macro_rules! exclusive {
    ($($name:ident: $type:ty = $make:expr, $held:expr;)*) => {$(
        kind!($name: $type = $make;
            |it, turn| {
                assert_eq!(it.acquire(None), $held);
                turn.set(1);
                await_turn(turn, 2);
                it.release().unwrap();
                await_turn(turn, 3);
                assert_ne!(it.try_acquire(), $held);
                turn.set(4);
            };
            |it, turn| {
                await_turn(turn, 1);
                assert_ne!(it.try_acquire(), $held);
                turn.set(2);
                assert_eq!(it.acquire(None), $held);
                turn.set(3);
                await_turn(turn, 4);
                it.release().unwrap();
            });
    )*};
}

exclusive! {
    Locks: Lock = Lock::new().unwrap(), Acquisition::Acquired;
    RLocks: RLock = RLock::new().unwrap(), Acquisition::Acquired;
    Semaphores: Semaphore = Semaphore::new(1).unwrap(), true;
    RobustSemaphores: Semaphore = Semaphore::robust(1).unwrap(), true;
    BoundedSemaphores: BoundedSemaphore = BoundedSemaphore::new(1).unwrap(), true;
    RobustBoundedSemaphores: BoundedSemaphore = BoundedSemaphore::robust(1).unwrap(), true;
}

/// What holds something that each changes and the other sees.
macro_rules! memory {
    ($($name:ident: $type:ty = $make:expr, |$it:ident, $value:ident| $get:expr, $set:expr;)*) => {$(
        kind!($name: $type = $make;
            |$it, turn| {
                eventually("the first value is here", || $get == 7);
                let $value = 8;
                $set;
                await_turn(turn, 1);
                assert_eq!($get, 9);
            };
            |$it, turn| {
                eventually("the other has changed it", || $get == 8);
                let $value = 9;
                $set;
                turn.set(1);
            });
    )*};
}

memory! {
    Values: Value<u64> = Value::new(7).unwrap(), |it, value| it.get().unwrap(), it.set(value).unwrap();
    Arrays: Array<i16> = Array::from_slice(&[7, 7, 7]).unwrap(),
        |it, value| it.get(2).unwrap(), it.update(|all| all.fill(value)).unwrap();
    RawValues: RawValue<u64> = RawValue::new(7).unwrap(), |it, value| it.get(), it.set(value);
    RawArrays: RawArray<u8> = RawArray::from_slice(&[7; 100]).unwrap(), |it, value| it.get(99), it.set(99, value);
    LargeArrays: RawArray<u8> = RawArray::from_slice(&vec![7; 3 << 20]).unwrap(),
        |it, value| it.get((3 << 20) - 1), it.set((3 << 20) - 1, value);
    Memory: Unlinking = Unlinking(SharedMemory::create_unnamed(100).inspect(|it| it.write(99, &[7])).unwrap()),
        |it, value| { let mut byte = [0]; it.0.read(99, &mut byte); byte[0] }, it.0.write(99, &[value]);
}

/// Shared memory whose name is free once this test is done with it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Unlinking(SharedMemory);

impl Drop for Unlinking {
    fn drop(&mut self) {
        // By the last of the test's processes that does it; the others find that it is done.
        if self.0.read_byte(99) == 9 {
            match self.0.unlink() {
                Ok(()) | Err(SharedMemoryError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

trait ReadByte {
    fn read_byte(&self, offset: usize) -> u8;
}

impl ReadByte for SharedMemory {
    fn read_byte(&self, offset: usize) -> u8 {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0]
    }
}

kind!(Queues: (Queue<String>, Queue<String>) = (Queue::bounded(1).unwrap(), Queue::unbounded().unwrap());
|(to, from), _| {
    to.put(&"there".into()).unwrap();
    assert_eq!(from.get().unwrap(), "here");
};
|(from, to), _| {
    assert_eq!(from.get().unwrap(), "there");
    to.put(&"here".into()).unwrap();
});

kind!(SimpleQueues: (SimpleQueue<u8>, SimpleQueue<u8>) = (SimpleQueue::new().unwrap(), SimpleQueue::new().unwrap());
|(to, from), _| {
    to.put(&1).unwrap();
    assert_eq!(from.get().unwrap(), 2);
};
|(from, to), _| {
    assert_eq!(from.get().unwrap(), 1);
    to.put(&2).unwrap();
});

kind!(JoinableQueues: (JoinableQueue<u8>, JoinableQueue<u8>)
= (JoinableQueue::bounded(2).unwrap(), JoinableQueue::unbounded().unwrap());
|(to, from), _| {
    to.put(&1).unwrap();
    to.join().unwrap();
    let answer = from.get().unwrap();
    assert_eq!(*answer, 2);
    answer.done().unwrap();
};
|(from, to), _| {
    let task = from.get().unwrap();
    assert_eq!(*task, 1);
    to.put(&2).unwrap();
    task.done().unwrap();
    to.join().unwrap();
});

kind!(Connections: Connection<u8, String>, Connection<String, u8> = Pipe::duplex().unwrap();
|end, _| {
    end.send(&1).unwrap();
    assert_eq!(end.recv().unwrap(), "here");
};
|end, _| {
    assert_eq!(end.recv().unwrap(), 1);
    end.send(&"here".into()).unwrap();
});

kind!(OneWayEnds: (Receiver<u8>, Sender<u8>), (Sender<u8>, Receiver<u8>) = {
    let ((to_here, there), (from_here, here)) = (Pipe::one_way().unwrap(), Pipe::one_way().unwrap());
    ((to_here, here), (there, from_here))
};
|(receiver, sender), _| {
    sender.send(&1).unwrap();
    assert_eq!(receiver.recv().unwrap(), 2);
};
|(sender, receiver), _| {
    assert_eq!(receiver.recv().unwrap(), 1);
    sender.send(&2).unwrap();
});

/// Each waits for the other under the condition's lock.
fn meet_under_condition(condition: &Condition, turn: &Turn, mine: u32, others: u32) {
    let _guard = condition.lock().unwrap();
    turn.set(turn.get() | mine);
    condition.notify_all().unwrap();
    assert!(condition.wait_for(|| turn.get() & others != 0, None).unwrap());
}

kind!(Conditions: Condition = Condition::new().unwrap();
    |it, turn| meet_under_condition(it, turn, 1, 2);
    |it, turn| meet_under_condition(it, turn, 2, 1));

kind!(ConditionsOnLocks: Condition = Condition::with_lock(&Lock::new().unwrap()).unwrap();
    |it, turn| meet_under_condition(it, turn, 1, 2);
    |it, turn| meet_under_condition(it, turn, 2, 1));

kind!(ConditionsOnRLocks: Condition = Condition::with_rlock(&RLock::new().unwrap()).unwrap();
    |it, turn| meet_under_condition(it, turn, 1, 2);
    |it, turn| meet_under_condition(it, turn, 2, 1));

kind!(Events: Event = Event::new().unwrap();
|it, turn| {
    it.set();
    eventually("the other has cleared it", || !it.is_set());
    turn.set(1);
};
|it, turn| {
    assert!(it.wait(None));
    it.clear();
    await_turn(turn, 1);
});

kind!(Barriers: Barrier = Barrier::new(2).unwrap();
|it, turn| {
    turn.set(1);
    it.wait(None).unwrap();
    it.wait(None).unwrap();
    assert_eq!(turn.get(), 2);
};
|it, turn| {
    it.wait(None).unwrap();
    assert_eq!(turn.get(), 1);
    turn.set(2);
    it.wait(None).unwrap();
});

macro_rules! every_kind {
    ($road:ident) => {
        every_kind!($road: Queues JoinableQueues SimpleQueues Connections OneWayEnds Values Arrays RawValues
            RawArrays LargeArrays Memory Locks RLocks Semaphores RobustSemaphores BoundedSemaphores
            RobustBoundedSemaphores Conditions ConditionsOnLocks ConditionsOnRLocks Events Barriers)
    };
    ($road:ident: $($kind:ident)*) => {$(
        // Shown when the test fails or hangs.
        println!("{}: {}", stringify!($road), stringify!($kind));
        $road::<$kind>();
    )*};
}

fn turn() -> Turn {
    RawValue::new(0).unwrap()
}

/// Has a new process use what it is given.
fn with_another<K: Kind>(here: &K::Here, there: K::There, method: StartMethod) {
    let turn = turn();
    let work = |(there, turn): (K::There, Turn)| K::there(&there, &turn);
    let process = Process::builder(work, (there, turn.clone())).daemon(true).start_method(method);
    let process = process.among_threads().start().unwrap();
    K::here(here, &turn);
    process.join().unwrap_or_else(|error| panic!("{error}"));
}

fn as_argument<K: Kind>() {
    for method in StartMethod::ALL {
        let (here, there) = K::make();
        with_another::<K>(&here, there, method);
    }
}

fn in_a_queue<K: Kind>() {
    let (queue, turn) = (Queue::<K::There>::unbounded().unwrap(), turn());
    let work = |(queue, turn): (Queue<K::There>, Turn)| K::there(&queue.get().unwrap(), &turn);
    let process = Process::builder(work, (queue.clone(), turn.clone())).daemon(true).start().unwrap();
    let (here, there) = K::make();
    queue.put(&there).unwrap();
    drop(there);
    K::here(&here, &turn);
    process.join().unwrap_or_else(|error| panic!("{error}"));
}

fn through_a_pipe<K: Kind>() {
    let ((receiver, sender), turn) = (Pipe::one_way::<K::There>().unwrap(), turn());
    let work = |(receiver, turn): (Receiver<K::There>, Turn)| K::there(&receiver.recv().unwrap(), &turn);
    let process = Process::builder(work, (receiver, turn.clone())).daemon(true).start().unwrap();
    let (here, there) = K::make();
    sender.send(&there).unwrap();
    drop(there);
    K::here(&here, &turn);
    process.join().unwrap_or_else(|error| panic!("{error}"));
}

/// The process that made it is gone when it is used.
fn as_a_result<K: Kind>() {
    let maker = Process::spawn(|()| K::make(), ()).unwrap();
    let (here, there) = maker.join().unwrap_or_else(|error| panic!("{error}"));
    with_another::<K>(&here, there, StartMethod::Spawn);
}

/// As in [`as_a_result`]; the descriptors lie in the pipe.
fn from_a_dead_sender<K: Kind>() {
    let (receiver, sender) = Pipe::one_way::<(K::Here, K::There)>().unwrap();
    let work = |sender: Sender<(K::Here, K::There)>| sender.send(&K::make()).unwrap();
    Process::spawn(work, sender).unwrap().join().unwrap();
    let (here, there) = receiver.recv().unwrap();
    with_another::<K>(&here, there, StartMethod::ForkServer);
}

/// In a queue lies only where its descriptor is to be found; the sender's keeper has it.
fn from_an_ended_sender<K: Kind>() {
    let queue = Queue::<(K::Here, K::There)>::unbounded().unwrap();
    let work = |queue: Queue<(K::Here, K::There)>| queue.put(&K::make()).unwrap();
    Process::spawn(work, queue.clone()).unwrap().join().unwrap();
    let (here, there) = queue.try_get().unwrap_or_else(|error| panic!("{error}"));
    with_another::<K>(&here, there, StartMethod::Fork);
}

/// A killed sender leaves no keeper.
fn of_a_killed_process<K: Kind>() {
    let queue = Queue::<K::There>::unbounded().unwrap();
    let work = |queue: Queue<K::There>| -> () {
        queue.put(&K::make().1).unwrap();
        procession_sys::process::kill_self()
    };
    let dead = Process::spawn(work, queue.clone()).unwrap();
    dead.join().unwrap_err();
    match queue.try_get() {
        Err(GetError::Handle(OpenError::Gone { pid })) => assert_eq!(pid, dead.pid()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(queue.try_get(), Err(GetError::Empty)), "the queue goes on");
}

macro_rules! tests {
    ($($road:ident $name:ident;)*) => {$(
        #[test]
        fn $name() {
            let _watchdog = watchdog();
            every_kind!($road);
        }
    )*};
}

tests! {
    as_argument every_handle_is_an_argument_under_every_start_method;
    in_a_queue every_handle_travels_in_a_queue;
    through_a_pipe every_handle_travels_through_a_pipe;
    as_a_result every_handle_is_a_result;
    from_a_dead_sender every_handle_in_a_pipe_outlives_its_sender;
    from_an_ended_sender every_handle_in_a_queue_outlives_a_sender_that_ends;
}

#[test]
fn a_handle_of_a_killed_process_is_a_typed_error() {
    let _watchdog = watchdog();
    // All but shared memory, whose name is not the process's.
    every_kind!(of_a_killed_process: Queues JoinableQueues SimpleQueues Connections OneWayEnds Values Arrays RawValues
        RawArrays LargeArrays Locks RLocks Semaphores RobustSemaphores BoundedSemaphores RobustBoundedSemaphores
        Conditions ConditionsOnLocks ConditionsOnRLocks Events Barriers);
}

#[test]
fn shared_memory_that_is_unlinked_on_its_way_is_a_typed_error() {
    let _watchdog = watchdog();
    let queue = Queue::<SharedMemory>::unbounded().unwrap();
    let memory = SharedMemory::create_unnamed(1).unwrap();
    queue.put(&memory).unwrap();
    memory.unlink().unwrap();
    match queue.try_get() {
        Err(GetError::Handle(OpenError::NotFound { name })) => assert_eq!(name, memory.name()),
        other => panic!("{other:?}"),
    }
    // Where only text comes back, it says what is missing.
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let process = Process::builder(|_: SharedMemory| (), memory.clone()).start_method(method).start();
        let error = process.unwrap().join().unwrap_err().to_string();
        assert!(error.contains(memory.name()), "{error}");
        let result = |memory: SharedMemory| {
            memory.unlink().unwrap();
            memory
        };
        let memory = SharedMemory::create_unnamed(1).unwrap();
        let process = Process::builder(result, memory.clone()).start_method(method).start();
        let error = process.unwrap().join().unwrap_err().to_string();
        assert!(error.contains(memory.name()), "{error}");
    }
}

type Many = (Vec<Lock>, Vec<Queue<u32>>, Vec<Sender<u32>>);

/// More handles than the 253 descriptors that the system carries at a time: 400 of one arena, 400 of one queue, and
/// 260 sockets, which need a descriptor each.
fn many() -> (Many, Vec<Receiver<u32>>) {
    let queue = Queue::unbounded().unwrap();
    let (receivers, senders) = (0..260).map(|_| Pipe::one_way().unwrap()).unzip();
    let locks = (0..400).map(|_| Lock::new().unwrap()).collect();
    ((locks, vec![queue; 400], senders), receivers)
}

fn use_many((locks, queues, senders): &Many) {
    for (n, lock) in locks.iter().enumerate() {
        assert_eq!(lock.locked(), n % 3 == 0);
        // Not all are locked.
        let _ = lock.release();
    }
    for (n, queue) in queues.iter().enumerate() {
        queue.put(&(n as u32)).unwrap();
    }
    for (n, sender) in senders.iter().enumerate() {
        sender.send(&(n as u32)).unwrap();
    }
}

fn check_many((locks, queues, _): &Many, receivers: &[Receiver<u32>]) {
    assert!(locks.iter().all(|lock| !lock.locked()));
    assert!((0..400).all(|n| queues[0].get().unwrap() == n));
    assert!(receivers.iter().enumerate().all(|(n, receiver)| receiver.recv().unwrap() == n as u32));
}

fn lock_every_third((locks, ..): &Many) {
    locks.iter().step_by(3).for_each(|lock| assert_eq!(lock.try_acquire(), Acquisition::Acquired));
}

#[test]
fn many_handles_in_one_message() {
    let _watchdog = watchdog();
    for method in StartMethod::ALL {
        let (all, receivers) = many();
        lock_every_third(&all);
        let shared = (all.0.clone(), vec![all.1[0].clone()], Vec::new());
        let process = Process::builder(|all| use_many(&all), all).start_method(method).among_threads();
        process.start().unwrap().join().unwrap_or_else(|error| panic!("{error}"));
        check_many(&shared, &receivers);
    }

    let (all, receivers) = many();
    let queue = Queue::<Many>::unbounded().unwrap();
    let process =
        Process::spawn(|queue: Queue<Many>| use_many(&queue.get().unwrap()), queue.clone()).unwrap();
    lock_every_third(&all);
    queue.put(&all).unwrap();
    process.join().unwrap_or_else(|error| panic!("{error}"));
    check_many(&all, &receivers);

    let (all, receivers) = many();
    let (there, here) = Pipe::one_way::<Many>().unwrap();
    let process = Process::spawn(|from: Receiver<Many>| use_many(&from.recv().unwrap()), there).unwrap();
    lock_every_third(&all);
    here.send(&all).unwrap();
    process.join().unwrap_or_else(|error| panic!("{error}"));
    check_many(&all, &receivers);

    let (all, receivers) = Process::spawn(|()| many(), ()).unwrap().join().unwrap();
    lock_every_third(&all);
    use_many(&all);
    check_many(&all, &receivers);
}

#[test]
fn objects_of_one_chunk_travel_with_one_descriptor() {
    let _watchdog = watchdog();
    let queue = Queue::<u8>::unbounded().unwrap();
    let all = (vec![Lock::new().unwrap(); 2], Event::new().unwrap(), queue.clone(), queue);
    let (bytes, descriptors) = transfer::collect(|| postcard::to_stdvec(&all));
    bytes.unwrap();
    // Another test may have filled the chunk in between.
    assert!((2..=3).contains(&descriptors.len()), "{} descriptors", descriptors.len());
}

#[test]
fn queues_in_queues_in_queues() {
    type Inner = Queue<u32>;
    type Middle = Queue<Inner>;
    let _watchdog = watchdog();
    let outer = Queue::<Middle>::unbounded().unwrap();
    let work = |outer: Queue<Middle>| {
        let middle = outer.get().unwrap();
        let inner = middle.get().unwrap();
        inner.put(&(inner.get().unwrap() + 1)).unwrap();
        let back = Middle::unbounded().unwrap();
        back.put(&inner).unwrap();
        outer.put(&back).unwrap();
        // What it made is open to others while it lives.
        middle.get_timeout(Duration::from_secs(60)).unwrap();
    };
    let process = Process::spawn(work, outer.clone()).unwrap();
    let (middle, inner) = (Middle::unbounded().unwrap(), Inner::unbounded().unwrap());
    inner.put(&41).unwrap();
    middle.put(&inner).unwrap();
    outer.put(&middle).unwrap();
    eventually("the process has taken it", || middle.is_empty() && !outer.is_empty());
    assert_eq!(outer.get().unwrap().get().unwrap().get().unwrap(), 42);
    middle.put(&inner).unwrap();
    process.join().unwrap();
}

/// Nobody else has the objects while they are on their way, and their sender makes others meanwhile.
#[test]
fn what_is_on_its_way_is_kept_and_its_place_is_not_used_again() {
    let _watchdog = watchdog();
    let road = Queue::<(Queue<u32>, Lock)>::unbounded().unwrap();
    let (queue, lock) = (Queue::unbounded().unwrap(), Lock::new().unwrap());
    queue.put(&7).unwrap();
    assert_eq!(lock.acquire(None), Acquisition::Acquired);
    road.put(&(queue.clone(), lock.clone())).unwrap();
    drop((queue, lock));
    let others: Vec<Lock> = (0..10).map(|_| Lock::new().unwrap()).collect();
    let receiver = Process::spawn(
        |road: Queue<(Queue<u32>, Lock)>| {
            let (queue, lock) = road.get().unwrap();
            (queue.get().unwrap(), lock.release().is_ok())
        },
        road,
    );
    assert_eq!(receiver.unwrap().join().unwrap(), (7, true));
    for other in others {
        assert!(other.release().is_err(), "it was never locked");
    }
}

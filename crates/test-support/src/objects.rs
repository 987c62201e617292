//! One object of each kind.

use std::sync::atomic::{AtomicU32, Ordering};

use procession::{
    Array, Barrier, BoundedSemaphore, Condition, Connection, Error, Event, JoinableQueue, Lock, Pipe, Queue,
    RLock, RawArray, RawValue, Receiver, Semaphore, Sender, SharedMemory, SimpleQueue, Value, process,
};
use serde::{Deserialize, Serialize};

/// One of each kind that travels.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is called after what it is")]
pub enum Object {
    Queue(Queue<Vec<u8>>),
    Bounded(Queue<Vec<u8>>),
    Joinable(JoinableQueue<u32>),
    Simple(SimpleQueue<u32>),
    Named(Queue<u32>),
    Duplex(Connection<u32, u32>),
    Receiver(Receiver<u32>),
    Sender(Sender<u32>),
    Lock(Lock),
    RLock(RLock),
    Semaphore(Semaphore),
    Robust(Semaphore),
    BoundedSemaphore(BoundedSemaphore),
    Condition(Condition),
    ConditionOnLock(Condition),
    Event(Event),
    Barrier(Barrier),
    Value(Value<u64>),
    Array(Array<u32>),
    RawValue(RawValue<u64>),
    LargeArray(RawArray<u8>),
    Memory(SharedMemory),
}

impl Object {
    /// How many there are.
    pub const KINDS: usize = 22;

    /// A new one, used once.
    pub fn new(kind: usize) -> Object {
        Object::try_new(kind).unwrap()
    }

    /// The same, where it may fail.
    pub fn try_new(kind: usize) -> Result<Object, Error> {
        Ok(match kind {
            0 => {
                let queue = Queue::unbounded()?;
                // A large message lies in a block of its own.
                queue.put_bytes(&[0; 100_000])?;
                Object::Queue(queue)
            }
            1 => Object::Bounded(Queue::bounded(1)?),
            2 => {
                let tasks = JoinableQueue::unbounded()?;
                tasks.put(&1)?;
                tasks.get()?.done()?;
                tasks.join()?;
                Object::Joinable(tasks)
            }
            3 => Object::Simple(SimpleQueue::new()?),
            4 => {
                // Each a name of its own: who has sent a handle uses the name until it looks which have been opened.
                static NUMBER: AtomicU32 = AtomicU32::new(0);
                let name = format!("leaks-{}-{}", process::getpid(), NUMBER.fetch_add(1, Ordering::Relaxed));
                Object::Named(Queue::builder().create(&name)?)
            }
            5 => {
                let (here, there) = Pipe::duplex::<u32, u32>()?;
                here.send(&1)?;
                Object::Duplex(there)
            }
            6 => Object::Receiver(Pipe::one_way()?.0),
            7 => Object::Sender(Pipe::one_way()?.1),
            8 => {
                let lock = Lock::new()?;
                drop(lock.lock()?);
                Object::Lock(lock)
            }
            9 => Object::RLock(RLock::new()?),
            10 => Object::Semaphore(Semaphore::new(1)?),
            11 => Object::Robust(Semaphore::robust(100)?),
            12 => Object::BoundedSemaphore(BoundedSemaphore::new(1)?),
            13 => Object::Condition(Condition::new()?),
            14 => Object::ConditionOnLock(Condition::with_lock(&Lock::new()?)?),
            15 => Object::Event(Event::new()?),
            16 => Object::Barrier(Barrier::new(2)?),
            17 => Object::Value(Value::new(1)?),
            18 => Object::Array(Array::new(100)?),
            19 => Object::RawValue(RawValue::new(1)?),
            20 => Object::LargeArray(RawArray::new(300_000)?),
            _ => Object::Memory(SharedMemory::create_unnamed(100)?),
        })
    }

    /// Lets go of it here; what has to be taken back by hand is.
    pub fn end(self) {
        if let Object::Memory(memory) = self {
            memory.unlink().unwrap();
        }
    }
}

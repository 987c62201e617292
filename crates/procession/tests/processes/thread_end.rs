//! The library used where a thread's or process's own values are already dropped: in exit handlers,
//! and in the destructors of thread-local values.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use procession::manager::{Manager, Service};
use procession::process::StartMethod;
use procession::{
    Barrier, Condition, Event, JoinableQueue, Lock, Pipe, Pool, Process, Queue, RLock, Semaphore, Value,
};

use test_support::watchdog;

type AnyError = Box<dyn std::error::Error>;
type Part<'a> = &'a dyn Fn() -> Result<(), AnyError>;

struct Adder(u64);

impl Service for Adder {
    const NAME: &'static str = "adder";
    type Arguments = u64;
    type Request = u64;
    type Response = u64;

    fn create(start: u64) -> Self {
        Adder(start)
    }

    fn handle(&mut self, number: u64) -> u64 {
        self.0 += number;
        self.0
    }
}

fn queues() -> Result<(), AnyError> {
    let queue = Queue::<(String, Vec<u64>)>::bounded(100)?;
    let message = ("text".to_owned(), vec![1; 100]);
    queue.put(&message)?;
    assert_eq!(queue.get()?, message);
    assert_eq!(queue.put_many([&message, &message])?, 2);
    assert_eq!(queue.get_many(10)?.len(), 2);
    let locks = Queue::<(Lock, Queue<u8>)>::unbounded()?;
    let sent = (Lock::new()?, Queue::unbounded()?);
    sent.1.put(&7)?;
    locks.put(&sent)?;
    locks.put_many([&sent])?;
    drop(sent);
    let (lock, inner) = locks.get()?;
    assert!(lock.try_acquire().is_held() && inner.get()? == 7);
    let tasks = JoinableQueue::<String>::unbounded()?;
    tasks.put(&"task".into())?;
    tasks.get()?.done()?;
    tasks.join()?;
    Ok(())
}

/// A message with a handle that is refused, and one that cannot be read: errors, with the queue as before.
fn failures() -> Result<(), AnyError> {
    let small = Queue::<(Lock, Vec<u8>)>::builder().max_bytes(256 << 10).build()?;
    assert!(small.put(&(Lock::new()?, vec![0; 1 << 20])).is_err());
    assert!(small.is_empty());
    let bytes = Queue::<String>::unbounded()?;
    bytes.put_bytes(&[200, 1])?;
    assert!(bytes.get().is_err());
    Ok(())
}

fn pipes() -> Result<(), AnyError> {
    let (ours, theirs) = Pipe::duplex::<(String, Queue<u8>), u32>()?;
    let queue = Queue::unbounded()?;
    queue.put(&3)?;
    ours.send(&("word".into(), queue))?;
    let (word, queue) = theirs.recv()?;
    theirs.send(&(word.len() as u32))?;
    assert_eq!((queue.get()?, ours.recv()?), (3, 4));
    let ends = Queue::unbounded()?;
    ends.put(&theirs)?;
    drop(theirs);
    let theirs = ends.get()?;
    theirs.send(&5)?;
    assert_eq!(ours.recv()?, 5);
    Ok(())
}

fn locks() -> Result<(), AnyError> {
    let (lock, rlock) = (Lock::new()?, RLock::new()?);
    drop((lock.lock().unwrap(), rlock.lock().unwrap()));
    let semaphore = Semaphore::new(1)?;
    drop(semaphore.enter());
    let condition = Condition::new()?;
    {
        let _held = condition.lock().unwrap();
        condition.notify_all()?;
        assert!(!condition.wait(Duration::from_millis(1))?);
    }
    let event = Event::new()?;
    event.set();
    assert!(event.wait(None));
    Barrier::new(1)?.wait(None)?;
    let value = Value::new(1_u64)?;
    value.update(|value| *value += 1).unwrap();
    assert_eq!(value.get().unwrap(), 2);
    Ok(())
}

fn managers(manager: &Manager) -> Result<(), AnyError> {
    let (list, dict) = (manager.list::<String>()?, manager.dict::<String, Queue<u8>>()?);
    list.extend([&"a".to_owned(), &"b".to_owned()])?;
    assert_eq!(list.to_vec()?, ["a", "b"]);
    let queue = Queue::unbounded()?;
    queue.put(&9)?;
    dict.set("queue", &queue)?;
    assert_eq!(dict.get("queue")?.ok_or("no queue")?.get()?, 9);
    let namespace = manager.namespace()?;
    namespace.set("list", &list)?;
    let lists = Queue::unbounded()?;
    lists.put(&list)?;
    assert!(lists.get()?.is_same(&list));
    assert_eq!(manager.create::<Adder>(&1)?.call(&2)?, 3);
    Ok(())
}

fn processes() -> Result<(), AnyError> {
    let process = Process::spawn(|(lock, word): (Lock, String)| (lock, word), (Lock::new()?, "x".into()))?;
    assert_eq!(process.join()?.1, "x");
    let pool = Pool::builder().workers(1).start_method(StartMethod::Spawn).build()?;
    assert_eq!(pool.map(|n: u64| n + 1, [1, 2])?, [2, 3]);
    pool.close()?;
    pool.join()?;
    Ok(())
}

fn use_everything(manager: &Manager) -> Result<(), String> {
    let parts: [(&str, Part<'_>); 6] = [
        ("queues", &queues),
        ("failures", &failures),
        ("pipes", &pipes),
        ("locks", &locks),
        ("managers", &|| managers(manager)),
        ("processes", &processes),
    ];
    for (name, part) in parts {
        match catch_unwind(AssertUnwindSafe(part)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("{name}: {error}")),
            Err(_) => return Err(format!("{name}: a panic")),
        }
    }
    Ok(())
}

fn manager() -> Manager {
    Manager::builder().register::<Adder>().start().unwrap()
}

/// Uses everything when its thread's values are dropped.
struct AtEnd(Option<(Manager, std::sync::mpsc::Sender<Result<(), String>>)>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some((manager, report)) = self.0.take() {
            report.send(use_everything(&manager)).unwrap();
        }
    }
}

thread_local! {
    /// The first thread-local value of its thread that needs a destructor, so the last to be dropped.
    static AT_END: RefCell<AtEnd> = const { RefCell::new(AtEnd(None)) };
}

#[test]
fn destructors_of_thread_locals_use_everything() {
    let _watchdog = watchdog();
    let (report, reported) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        AT_END.with_borrow_mut(|at_end| at_end.0 = Some((manager(), report.clone())));
        report.send(AT_END.with_borrow(|at_end| use_everything(&at_end.0.as_ref().unwrap().0))).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(reported.try_iter().collect::<Vec<_>>(), [Ok(()), Ok(())]);
}

static AT_EXIT: OnceLock<(Manager, Queue<Result<(), String>>)> = OnceLock::new();

extern "C" fn at_exit() {
    let (manager, reports) = AT_EXIT.get().unwrap();
    // A panic must not leave a C function.
    let put = catch_unwind(|| reports.put(&use_everything(manager)));
    if !matches!(put, Ok(Ok(()))) {
        std::process::abort();
    }
}

#[test]
fn exit_handlers_use_everything() {
    let _watchdog = watchdog();
    let program = |reports: Queue<Result<(), String>>| {
        let (manager, reports) = AT_EXIT.get_or_init(|| (manager(), reports));
        reports.put(&use_everything(manager)).unwrap();
        // SAFETY: the handler is a function of this program, and lets no panic out.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    };
    let reports = Queue::unbounded().unwrap();
    let process = Process::spawn(program, reports.clone()).unwrap();
    process.join().unwrap();
    assert_eq!(process.exitcode(), Some(0));
    assert_eq!([reports.try_get().unwrap(), reports.try_get().unwrap()], [Ok(()), Ok(())]);
}

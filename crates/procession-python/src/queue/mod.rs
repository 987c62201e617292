//! Queues.

pub(crate) mod batch;
pub(crate) mod errors;
mod get;
mod managed;
pub(crate) mod put;
mod unacked;

use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use procession_core::queue::{self as core, MAX_MESSAGES, QueueOptions};
use procession_sys::clock::Deadline;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use self::unacked::Unacked;
use crate::arguments::Block;
use crate::blocking::{block as wait, brief, deadline};
use crate::codec::Codec;
use crate::errors::shut_down_class;
use crate::errors::{create, open, send};
use crate::hooks::{Hooks, Own};
use crate::pycall;

/// What all queues of the package are made of: see `procession.queues`.
///
/// `__new__` takes any arguments and makes an object without a queue, so that subclasses may have an `__init__` of their own, which calls
/// `_create`, or `_open` with what `_handle` gave.
#[pyclass(subclass, frozen, name = "BaseQueue", module = "procession._procession")]
pub(crate) struct Queue {
    opened: OnceLock<Opened>,
    closed: AtomicBool,
    hooks: Hooks,
    /// Of a closed one.
    retired: OnceLock<core::Retired>,
}

/// What a queue has once it is made or opened.
struct Opened {
    core: core::Queue,
    codec: Codec,
    /// Whether what is taken has to be acknowledged, and what has not been yet.
    unacked: Option<Unacked>,
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Queue>()?;
    module.add_class::<managed::ManagedQueue>()?;
    module.add_function(wrap_pyfunction!(crate::codec::make_private, module)?)?;
    crate::codec::register(module)
}

impl Queue {
    fn nothing() -> Self {
        Queue {
            opened: OnceLock::new(),
            closed: AtomicBool::new(false),
            hooks: Hooks::none(),
            retired: OnceLock::new(),
        }
    }

    /// # Errors
    /// `RuntimeError` before `__init__`.
    #[inline]
    fn opened(&self) -> PyResult<&Opened> {
        self.opened.get().ok_or_else(uninitialised)
    }

    /// What `put` and `get` use.
    ///
    /// # Errors
    /// `ValueError` after `close`.
    #[inline]
    fn usable<'a>(this: &'a Bound<'_, Self>) -> PyResult<&'a Opened> {
        if this.get().closed.load(Ordering::Relaxed) {
            return Err(closed(this));
        }
        this.get().opened()
    }

    /// The method `put`, where a subclass, a test or a tool has its own.
    #[inline]
    fn replaced_put<'py>(this: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        static PUT: Own = Own::new("put");
        static MANAGED: Own = Own::new("put");
        this.get().replaced(this, &PUT, &MANAGED)
    }

    /// The method `get`, as `replaced_put`.
    #[inline]
    fn replaced_get<'py>(this: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        static GET: Own = Own::new("get");
        static MANAGED: Own = Own::new("get");
        this.get().replaced(this, &GET, &MANAGED)
    }

    #[inline]
    fn replaced<'py>(
        &self,
        this: &Bound<'py, Self>,
        own: &Own,
        managed: &Own,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.hooks.is_method_of::<Queue>(this.as_any(), own)? {
            return Ok(None);
        }
        match this.cast::<managed::ManagedQueue>() {
            Ok(managed_queue) => self.hooks.replaced(managed_queue, managed),
            Err(_) => self.hooks.replaced(this, own),
        }
    }

    fn set(&self, core: core::Queue, codec: Codec, redeliver: bool) -> PyResult<()> {
        let set = self.opened.set(Opened { core, codec, unacked: redeliver.then(Unacked::default) });
        set.map_err(|_| PyRuntimeError::new_err("the queue was initialised already"))
    }
}

#[cold]
fn uninitialised() -> PyErr {
    PyRuntimeError::new_err(
        "the queue is not initialised: a subclass's __init__ has to call the base class's",
    )
}

#[cold]
fn closed(this: &Bound<'_, Queue>) -> PyErr {
    match this.call_method0("_closed_error") {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// The bound that `maxsize` asks for, if any.
fn bound(maxsize: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    let size: i64 = match maxsize.extract() {
        Ok(size) => size,
        // As CPython, for numbers of all kinds. What cannot be compared is no number.
        Err(_) if maxsize.le(0).unwrap_or(false) => return Ok(None),
        Err(error) if error.is_instance_of::<PyOverflowError>(maxsize.py()) => {
            return Err(too_many(maxsize));
        }
        Err(_) => {
            let class = maxsize.get_type();
            return Err(PyTypeError::new_err(format!("maxsize must be an integer, not {class}")));
        }
    };
    match u32::try_from(size) {
        _ if size <= 0 => Ok(None),
        Ok(size) if size <= MAX_MESSAGES => Ok(Some(size as usize)),
        _ => Err(too_many(maxsize)),
    }
}

fn too_many(maxsize: &Bound<'_, PyAny>) -> PyErr {
    PyOverflowError::new_err(format!("maxsize of {maxsize} is above the most, {MAX_MESSAGES}"))
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_arguments, **_options))]
    fn new(_arguments: &Bound<'_, PyTuple>, _options: Option<&Bound<'_, PyDict>>) -> Self {
        Queue::nothing()
    }

    /// Makes the queue.
    #[allow(clippy::too_many_arguments, reason = "called from one place, by its Python class")]
    #[pyo3(signature = (maxsize, name, max_bytes, codec, joinable, redeliver, abandonable = false))]
    fn _create(
        &self,
        maxsize: &Bound<'_, PyAny>,
        name: Option<&str>,
        max_bytes: Option<u64>,
        codec: Codec,
        joinable: bool,
        redeliver: bool,
        abandonable: bool,
    ) -> PyResult<()> {
        let mut options = QueueOptions::new().joinable(joinable).abandonable(abandonable);
        if let Some(most) = bound(maxsize)? {
            options = options.max_messages(most);
        }
        if let Some(most) = max_bytes {
            options = options.max_bytes(most);
        }
        let core = match name {
            None => core::Queue::create(&options),
            Some(name) => core::Queue::create_named(name, &options),
        };
        self.set(core.map_err(create)?, codec, redeliver)
    }

    /// Opens the queue of that name.
    fn _open_named(&self, name: &str, codec: Codec, joinable: bool, redeliver: bool) -> PyResult<()> {
        let core = core::Queue::open_named(name).map_err(open)?;
        if core.is_joinable() != joinable {
            let class = if core.is_joinable() { "a JoinableQueue" } else { "a Queue" };
            return Err(PyValueError::new_err(format!("what has the name {name:?} is {class}")));
        }
        self.set(core, codec, redeliver)
    }

    /// Opens the queue that `_handle` told of.
    fn _open(&self, handle: &[u8], codec: Codec, redeliver: bool) -> PyResult<()> {
        self.set(core::Queue::from_handle(handle).map_err(open)?, codec, redeliver)
    }

    /// The bytes by which another process can open this queue, while this one lives.
    fn _handle<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.opened()?.core.to_handle().map_err(send)?))
    }

    /// Whether put and get are refused.
    #[getter(_closed)]
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The argument codec.
    #[getter]
    fn _codec(&self) -> PyResult<Option<&'static str>> {
        Ok(self.opened()?.codec.name())
    }

    /// Whether a death alone can make an object available, so that who waits by a descriptor has to look at times.
    #[getter]
    fn _notices_deaths(&self) -> PyResult<bool> {
        Ok(self.opened()?.core.is_joinable())
    }

    /// Whether a put waits for room in bytes, which a death alone can make.
    #[getter]
    fn _waits_for_bytes(&self) -> PyResult<bool> {
        Ok(self.opened()?.core.waits_for_bytes())
    }

    /// Whether get raises Abandoned when no process is left to put.
    #[getter]
    fn _abandonable(&self) -> PyResult<bool> {
        Ok(self.opened()?.core.is_abandonable())
    }

    /// Raises Abandoned if no process is left to put.
    fn _check_abandoned(&self, py: Python<'_>) -> PyResult<()> {
        let core = &self.opened()?.core;
        match brief(|| core.is_abandoned()).map_err(|error| errors::memory(error.into()))? {
            true => Err(errors::get(py, core::GetError::Abandoned)),
            false => Ok(()),
        }
    }

    /// Whether what this process gets is handed out again when it dies.
    #[getter]
    fn _redelivers(&self) -> PyResult<bool> {
        Ok(self.opened()?.unacked.is_some())
    }

    /// Says that an attribute of this object was set, which may hide a method.
    fn _hook(&self) {
        self.hooks.set();
    }

    fn _close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(opened) = self.opened.get() {
            self.retired.get_or_init(|| opened.core.retire());
        }
    }

    /// Put obj into the queue.
    ///
    /// If block is true and timeout is None, waits until there is room; with a timeout, at most so
    /// many seconds, and then raises queue.Full. If block is false, raises queue.Full at once when
    /// there is no room. Only a queue with a maxsize or max_bytes is ever full. One without
    /// max_bytes raises MemoryError when its messages would take more than half of the machine's or
    /// cgroup's memory. An object that has no room in an empty queue raises MemoryError at once. A
    /// process that is stopped inside the queue counts as no room once the time is up.
    ///
    /// When this returns, exactly one get will have the object, whatever becomes of this process. What cannot be pickled
    /// raises here, and nothing is queued.
    #[pyo3(signature = (obj, block = Block(true), timeout = None), text_signature = "($self, obj, block=True, timeout=None)")]
    fn put(
        this: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: Block,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        put::put(this, obj, deadline(block.0, timeout)?)
    }

    /// Put obj into the queue if there is room now. The same as put(obj, block=False).
    fn put_nowait(this: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(put) = Queue::replaced_put(this)? {
            return pycall::call(&put, (obj, false), None).map(drop);
        }
        put::put(this, obj, deadline(false, None)?)
    }

    /// Remove and return an object from the queue.
    ///
    /// If block is true and timeout is None, waits until there is one; with a timeout, at most so
    /// many seconds, and then raises queue.Empty. If block is false, raises queue.Empty at once
    /// when there is none. It also does that when the time is up and a process that is stopped
    /// inside the queue keeps others from what is there. While it waits for an object of an
    /// abandonable queue, raises Abandoned once no other living process can put one.
    ///
    /// An object that cannot be unpickled raises here and is gone; the next get has the next one. What a process has got is gone
    /// with it when it dies, unless the queue is a JoinableQueue with redelivery.
    #[pyo3(signature = (block = Block(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(this: &Bound<'py, Self>, block: Block, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        get::get(this, deadline(block.0, timeout)?)
    }

    /// Remove and return an object if there is one now. The same as get(block=False).
    fn get_nowait<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(get) = Queue::replaced_get(this)? {
            return pycall::call(&get, (false,), None);
        }
        get::get(this, deadline(false, None)?)
    }

    /// Put the objects that iterable yields, one after another; return how many. Takes the queue's lock and wakes the other side
    /// once for many, so that it is faster than as many puts.
    ///
    /// Waits for room as put does; timeout is for all of them. Objects of other processes may come in between. What the iterable,
    /// pickling or the queue raises (queue.Full, say) is raised with the number of objects that are in the queue by
    /// then as its attribute put_count.
    #[pyo3(signature = (iterable, block = Block(true), timeout = None), text_signature = "($self, iterable, block=True, timeout=None)")]
    fn put_many(
        this: &Bound<'_, Self>,
        iterable: &Bound<'_, PyAny>,
        block: Block,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        if Queue::replaced_put(this)?.is_some() {
            return this.call_method1("_put_each", (iterable, block.0, timeout))?.extract();
        }
        batch::put_many(this, iterable, deadline(block.0, timeout)?)
    }

    /// Remove and return a list of the objects that are there, at most max_n of them: all, if that
    /// is None. Waits for the first as get does, and for no other.
    ///
    /// If objects among them cannot be unpickled, the first one's exception is raised, with a list of the others as its
    /// attribute objects.
    #[pyo3(signature = (max_n = None, block = Block(true), timeout = None), text_signature = "($self, max_n=None, block=True, timeout=None)")]
    fn get_many<'py>(
        this: &Bound<'py, Self>,
        max_n: Option<usize>,
        block: Block,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        if Queue::replaced_get(this)?.is_some() {
            return Ok(this.call_method1("_get_each", (max_n, block.0, timeout))?.cast_into()?);
        }
        batch::get_many(this, max_n.unwrap_or(usize::MAX), deadline(block.0, timeout)?)
    }

    /// An iterator that gets objects until the queue is empty and has been shut down, or is
    /// abandoned.
    fn __iter__<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        if Queue::replaced_get(this)?.is_some() {
            return this.call_method0("_iterate");
        }
        Ok(Bound::new(this.py(), Objects { queue: this.clone().unbind() })?.into_any())
    }

    /// Return the number of objects in the queue, exact at an instant during the call.
    fn qsize(&self) -> PyResult<u64> {
        Ok(self.opened()?.core.len())
    }

    /// Return whether the queue has no objects, exact at an instant during the call. OSError for one that was used and closed.
    fn empty(this: &Bound<'_, Self>) -> PyResult<bool> {
        let empty = this.get().opened()?.core.is_empty();
        if this.get().is_closed() {
            return this.call_method1("_closed_empty", (empty,))?.extract();
        }
        Ok(empty)
    }

    /// Return whether the queue has as many objects as its maxsize allows, exact at an instant during the call.
    fn full(&self) -> PyResult<bool> {
        Ok(self.opened()?.core.is_full())
    }

    /// End the queue for all processes.
    ///
    /// Further puts raise ShutDown. Gets return what is there and then raise ShutDown; if immediate is true, they raise it at
    /// once, and what is queued is discarded. Whoever waits wakes.
    #[pyo3(signature = (immediate = false))]
    fn shutdown(&self, immediate: bool) -> PyResult<()> {
        let opened = self.opened()?;
        brief(|| opened.core.shutdown(immediate)).map_err(errors::memory)
    }

    /// Return how many bytes of memory the queue takes now, in use or kept for later messages.
    fn memory_used(&self) -> PyResult<u64> {
        Ok(self.opened()?.core.memory_used())
    }

    /// Return the queue's state in plain words: what waits, who holds its internal locks and whether that process lives, what the
    /// memory is used for. Takes no lock and does not wait, so that it tells why a program does not go on.
    fn describe(&self) -> PyResult<String> {
        Ok(self.opened()?.core.describe().to_string())
    }

    /// A descriptor that polls readable while a get has something to return; up to date after each call and after a get that found
    /// nothing. To be polled only. The same in all threads for as long as a handle lives; a forked child has its own.
    fn _readable_fd(&self) -> PyResult<i32> {
        let opened = self.opened()?;
        Ok(brief(|| opened.core.readable_fd()).map_err(errors::watch)?.as_raw_fd())
    }

    /// A descriptor that polls readable while a put need not wait. As `_readable_fd` else.
    fn _writable_fd(&self) -> PyResult<i32> {
        let opened = self.opened()?;
        Ok(brief(|| opened.core.writable_fd()).map_err(errors::watch)?.as_raw_fd())
    }

    /// Puts bytes that are a message already.
    fn _put_encoded(this: &Bound<'_, Self>, message: &[u8]) -> PyResult<()> {
        put::put_bytes(this.py(), &Queue::usable(this)?.core, message, deadline(true, None)?)
    }

    /// Takes a message as it is.
    fn _get_encoded<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyBytes>> {
        get::get_bytes(this, deadline(true, None)?)
    }

    /// Declares a task done.
    fn _task_done(&self) -> PyResult<()> {
        let opened = self.opened()?;
        if let Some(unacked) = &opened.unacked {
            return if unacked.done()? {
                Ok(())
            } else {
                Err(errors::task_done(core::TaskDoneError::TooMany))
            };
        }
        brief(|| opened.core.task_done()).map_err(errors::task_done)
    }

    /// The most messages, if there is a bound.
    #[getter]
    fn _bound(&self) -> PyResult<Option<u32>> {
        Ok(self.opened()?.core.max_messages())
    }

    /// How many tasks are not done.
    fn _unfinished(&self, py: Python<'_>) -> PyResult<u64> {
        match brief(|| self.opened().map(|opened| opened.core.join(Deadline::Now)))? {
            Ok(()) => Ok(0),
            Err(core::JoinError::Timeout { unfinished }) => Ok(unfinished),
            Err(error) => Err(errors::join(py, error)),
        }
    }

    /// Waits until all tasks are done, for `timeout` seconds at most. Returns whether they are.
    #[pyo3(signature = (timeout = None))]
    fn _join(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let core = &self.opened()?.core;
        let ended = wait(py, deadline(true, timeout)?, |deadline| match core.join(deadline) {
            Err(core::JoinError::Timeout { .. }) => None,
            ended => Some(ended),
        })?;
        match ended {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(error)) => Err(errors::join(py, error)),
        }
    }
}

/// An iterator over the objects that are put into a queue, until its end.
#[pyclass(frozen, name = "QueueIterator", module = "procession._procession")]
pub(crate) struct Objects {
    queue: Py<Queue>,
}

#[pymethods]
impl Objects {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.queue)
    }

    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match get::get(self.queue.bind(py), deadline(true, None)?) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.get_type(py).is(shut_down_class(py)?) => Ok(None),
            Err(error) if error.is_instance_of::<crate::errors::Abandoned>(py) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

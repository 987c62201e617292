//! The module `procession._procession`: Python classes over `procession-core`.
//!
//! Thin: a class holds a core object, converts arguments, and waits with the interpreter's lock released
//! (`blocking`). What is written in Python (contexts, managers, the names that programs import) is in `python/procession`.

mod arguments;
mod barrier;
mod block;
mod blocking;
mod child;
mod codec;
mod condition;
mod errors;
mod event;
mod fastcall;
mod handle;
mod handle_callbacks;
mod holder;
mod hooks;
mod init_once;
mod lock;
mod owner_death;
mod parent;
mod pool;
mod primitive;
mod pycall;
mod queue;
mod semaphore;
mod semlock;
mod value;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;

#[pymodule(gil_used = true)]
fn _procession(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::register(module)?;
    parent::register(module)?;
    child::register(module)?;
    handle_callbacks::register(module)?;
    module.add_class::<lock::LockBase>()?;
    module.add_class::<lock::Lock>()?;
    queue::register(module)?;
    pool::register(module)?;
    module.add_class::<lock::RLock>()?;
    module.add_class::<semaphore::Semaphore>()?;
    module.add_class::<semaphore::BoundedSemaphore>()?;
    module.add_class::<semlock::SemLock>()?;
    module.add_class::<condition::Condition>()?;
    module.add_class::<event::Event>()?;
    module.add_class::<barrier::Barrier>()?;
    module.add_class::<block::Block>()?;
    module.add_class::<value::SynchronizedBase>()?;
    module.add_class::<value::Synchronized>()?;
    module.add_function(wrap_pyfunction!(quicken, module)?)
}

/// Gives a class of the package the quick methods of the native class that it derives from.
///
/// The interpreter calls a method without a detour only on instances of the very class that it was
/// made for. So each class that programs use gets its own.
#[pyfunction(name = "_quicken")]
fn quicken(class: &Bound<'_, PyType>) -> PyResult<()> {
    if class.is_subclass_of::<lock::LockBase>()? {
        fastcall::quicken_lock::<lock::LockBase>(class)
    } else if class.is_subclass_of::<value::SynchronizedBase>()? {
        if class.is_subclass_of::<value::Synchronized>()? {
            fastcall::quicken_value::<value::SynchronizedBase>(class)?;
        }
        fastcall::quicken_get_lock::<value::SynchronizedBase>(class)?;
        fastcall::quicken_lock::<value::SynchronizedBase>(class)
    } else {
        Err(PyTypeError::new_err(format!("{class} is no class of a lock or value")))
    }
}

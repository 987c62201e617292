//! The module `procession._procession`: Python classes over `procession-core`.
//!
//! Thin: a class holds a core object, converts arguments, and waits with the interpreter's lock released
//! (`blocking`). What is written in Python (contexts, managers, the names that programs import) is in `python/procession`.

mod arguments;
mod barrier;
mod block;
mod blocking;
mod calls;
mod codec;
mod condition;
mod errors;
mod event;
mod handle;
mod lock;
mod made;
mod owner;
mod parent;
mod pool;
mod queue;
mod quick;
mod rlock;
mod semaphore;
mod semlock;
mod transit;
mod value;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
fn _procession(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::register(module)?;
    parent::register(module)?;
    transit::register(module)?;
    module.add_class::<lock::Lock>()?;
    queue::register(module)?;
    pool::register(module)?;
    module.add_class::<rlock::RLock>()?;
    module.add_class::<semaphore::Semaphore>()?;
    module.add_class::<semaphore::BoundedSemaphore>()?;
    module.add_class::<semlock::SemLock>()?;
    module.add_class::<condition::Condition>()?;
    module.add_class::<event::Event>()?;
    module.add_class::<barrier::Barrier>()?;
    module.add_class::<block::Block>()?;
    module.add_class::<value::SynchronizedBase>()?;
    module.add_class::<value::Synchronized>()?;
    let py = module.py();
    quick::quicken_lock::<lock::Lock>(py)?;
    quick::quicken_lock::<rlock::RLock>(py)?;
    quick::quicken_lock::<semaphore::Semaphore>(py)?;
    quick::quicken_lock::<value::SynchronizedBase>(py)?;
    quick::quicken_value::<value::SynchronizedBase, value::Synchronized>(py)?;
    Ok(())
}

//! The settings of a process to be started.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use procession_core::shm::transfer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StartError;
use super::handle::Process;
use super::order::{Order, Settings};
use super::start_method::StartMethod;
use super::task_ref::TaskRef;
use super::wire::{Report, encode};
use super::{exit, fork, forkserver, start, state};
use crate::codec::{Shape, append};
use crate::handle::with_reason;

/// The start method of processes for which none is chosen: [`StartMethod::Spawn`] unless changed. A started process
/// begins with its starter's.
pub fn default_start_method() -> StartMethod {
    state::lock().start_method
}

/// Changes [`default_start_method`] for this process.
pub fn set_default_start_method(method: StartMethod) {
    state::lock().start_method = method;
}

/// Settings of a process, from [`Process::builder`] or [`Process::forking`].
#[must_use = "the process starts with start()"]
pub struct Builder<'a, R> {
    task: Task<'a, R>,
    name: Option<String>,
    daemon: bool,
    detached: bool,
    allow_threads: bool,
    defers_interrupts: bool,
    start_method: Option<StartMethod>,
}

enum Task<'a, R> {
    Function(Box<dyn Function<R>>),
    Closure(Box<dyn FnOnce() -> R + 'a>),
}

/// A function with its arguments, for a new process or for a copy of this one.
trait Function<R> {
    fn order(&self, settings: &Settings) -> Result<(Vec<u8>, Vec<OwnedFd>), StartError>;
    fn call(self: Box<Self>) -> R;
}

struct Call<A, R> {
    function: fn(A) -> R,
    arguments: A,
}

impl<A, R> Function<R> for Call<A, R>
where
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    fn order(&self, settings: &Settings) -> Result<(Vec<u8>, Vec<OwnedFd>), StartError> {
        let order = Order::Run { task: TaskRef::new(self.function)?, settings: settings.clone() };
        let mut order = encode(&order).map_err(StartError::system("writing its order"))?;
        Shape::of::<A>().check::<A>().map_err(|problem| StartError::Arguments(problem.to_string()))?;
        let (written, descriptors) =
            transfer::collect(|| with_reason(|| append(&self.arguments, &mut order)));
        written.map_err(StartError::Arguments)?;
        Ok((order, descriptors))
    }

    fn call(self: Box<Self>) -> R {
        (self.function)(self.arguments)
    }
}

impl<'a, R: Serialize + DeserializeOwned + 'static> Builder<'a, R> {
    pub(super) fn function<A>(function: fn(A) -> R, arguments: A) -> Self
    where
        A: Serialize + DeserializeOwned + 'static,
    {
        Builder::new(Task::Function(Box::new(Call { function, arguments })))
    }

    pub(super) fn closure(closure: impl FnOnce() -> R + 'a) -> Self {
        Builder::new(Task::Closure(Box::new(closure)))
    }

    fn new(task: Task<'a, R>) -> Self {
        Builder {
            task,
            name: None,
            daemon: false,
            detached: false,
            allow_threads: false,
            defers_interrupts: false,
            start_method: None,
        }
    }

    /// Names the process; `Process-1`, `Process-2` … otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the process ends with this one: by SIGTERM, and SIGKILL a second later, when this one exits normally; by
    /// SIGKILL at once when this one ends in any other way, SIGKILL included. It does not end with the thread
    /// that started it. `false` unless told. Unlike in Python, a daemon may have children.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Whether the process is an orphan on purpose (a double fork): not a child of this one but of init or the nearest
    /// subreaper, neither waited for nor ended at exit. Its handle works as any other. It stays in this one's
    /// session and process group. `false` unless told.
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// Chooses the start method; the program's default otherwise.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = Some(method);
        self
    }

    /// Forks although this process has other threads or guards over shared memory. The forked
    /// process has none of the threads. A lock that one of them held stays locked, the memory
    /// allocator's own locks apart, and a function that needs it hangs. No effect with the other
    /// start methods.
    ///
    /// # Safety
    /// As [`fork_allowing_threads`](super::fork_allowing_threads), if the process is forked.
    pub unsafe fn allow_threads(mut self) -> Self {
        self.allow_threads = true;
        self
    }

    /// Leaves SIGINT blocked until the function unblocks it, so that Ctrl-C does not end the process before it has said what it makes
    /// of it. One that is forked has blocked what the thread has that starts it.
    pub(crate) fn defer_interrupts(mut self) -> Self {
        self.defers_interrupts = true;
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn start(self) -> Result<Process<R>, StartError> {
        if self.daemon && self.detached {
            return Err(StartError::Invalid(
                "a detached process cannot be a daemon, which ends with its starter",
            ));
        }
        // Before the function has run.
        let readable = Shape::of::<R>().check::<R>();
        readable.map_err(|problem| StartError::Result(problem.to_string()))?;
        exit::register()?;
        let (settings, default) = {
            let mut state = state::lock();
            let lineage = state.next_lineage();
            let name = self.name.unwrap_or_else(|| default_name(&lineage));
            let settings = Settings {
                name,
                lineage,
                daemon: self.daemon,
                detached: self.detached,
                defers_interrupts: self.defers_interrupts,
                parent: state.as_parent(),
                start_method: state.start_method,
            };
            (settings, state.start_method)
        };
        let method = match (&self.task, self.start_method) {
            (Task::Closure(_), None) => StartMethod::Fork,
            (_, chosen) => chosen.unwrap_or(default),
        };
        let make_copy = || match self.allow_threads {
            // SAFETY: as the caller of `allow_threads` promised.
            true => unsafe { fork::fork_unchecked() },
            false => fork::fork(),
        };
        let running = match (self.task, method) {
            (Task::Function(function), StartMethod::Fork) => {
                let forked = make_copy()?;
                fork::run_forked(forked, &settings, || Report::returned(&function.call()))?
            }
            (Task::Closure(closure), StartMethod::Fork) => {
                let forked = make_copy()?;
                fork::run_forked(forked, &settings, || Report::returned(&closure()))?
            }
            (Task::Closure(_), _) => return Err(StartError::NeedsFork),
            (Task::Function(function), _) => {
                let (order, descriptors) = function.order(&settings)?;
                let fresh = match method {
                    StartMethod::ForkServer => forkserver::fork_worker()?,
                    _ => start::execute()?,
                };
                let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                fresh.order(&settings, &order, &descriptors)?
            }
        };
        tracing::debug!(name = running.name, pid = running.pid, ?method, "started a process");
        Ok(Process::new(running))
    }
}

impl Process {
    /// Starts a process that runs `function(arguments)`, by the program's default start method
    /// ([`set_default_start_method`](super::set_default_start_method)), which is spawn unless changed.
    ///
    /// The function is a plain `fn` or a closure that captures nothing. Several arguments go as a
    /// tuple. Handles of this library among the arguments and in the result stay handles of the
    /// same object.
    ///
    /// A closure that captures is no `fn`, and does not compile. That includes values without
    /// bytes, which may prove something about the process that made them.
    ///
    /// ```compile_fail,E0308
    /// #[derive(Clone, Copy)]
    /// struct Initialized(());
    ///
    /// let proof = Initialized(());
    /// let child = procession::Process::spawn(move |()| drop(proof), ());
    /// ```
    ///
    /// Returns when the process exists; its function may not have begun.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn spawn<A, R>(function: fn(A) -> R, arguments: A) -> Result<Process<R>, StartError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        Process::builder(function, arguments).start()
    }

    /// Settings for a process that will run `function(arguments)`, see [`Process::spawn`].
    pub fn builder<A, R>(function: fn(A) -> R, arguments: A) -> Builder<'static, R>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        Builder::function(function, arguments)
    }

    /// Forks a process that runs `function`, which may capture and borrow anything: the process has a copy of
    /// everything this one has in memory, so its changes never show here. Only the result is serialised.
    ///
    /// # Errors
    /// [`StartError::Threads`] when this process has other threads. [`StartError::Guards`] when it
    /// has guards over shared memory, as for [`fork`](super::fork). [`Builder::allow_threads`]
    /// allows both. [`StartError::System`] when the system refused.
    pub fn fork<'a, F, R>(function: F) -> Result<Process<R>, StartError>
    where
        F: FnOnce() -> R + 'a,
        R: Serialize + DeserializeOwned + 'static,
    {
        Process::forking(function).start()
    }

    /// Settings for a process that will be forked to run `function`, see [`Process::fork`].
    pub fn forking<'a, F, R>(function: F) -> Builder<'a, R>
    where
        F: FnOnce() -> R + 'a,
        R: Serialize + DeserializeOwned + 'static,
    {
        Builder::closure(function)
    }
}

/// `Process-1:2` for the second child of the first.
fn default_name(lineage: &[u32]) -> String {
    let numbers: Vec<String> = lineage.iter().map(u32::to_string).collect();
    format!("Process-{}", numbers.join(":"))
}

impl<R> fmt::Debug for Builder<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("daemon", &self.daemon)
            .field("detached", &self.detached)
            .field("start_method", &self.start_method)
            .finish_non_exhaustive()
    }
}

/// Starts an orphan on purpose that runs `function(arguments)`, see [`Builder::detached`]; returns its pid.
///
/// # Errors
/// As [`Process::spawn`].
pub fn detach<A, R>(function: fn(A) -> R, arguments: A) -> Result<u32, StartError>
where
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    Ok(Builder::function(function, arguments).detached(true).start()?.pid())
}

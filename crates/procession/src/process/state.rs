//! What a process knows of itself and of the processes it started: the one state of this crate that
//! is global to a process.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use procession_core::shm::{mailbox, transfer};
use procession_sys::identity::Identity;
use procession_sys::process;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::child_record::ChildRecord;
use super::control_channel::Channel;
use super::hooks::{Background, Hooks};
use super::order::{ParentRecord, Settings};
use super::start_method::StartMethod;

/// The state of one process.
pub(super) struct State {
    /// The process whose state this is: in a forked child it is still the parent's. 0 before first use.
    owner: u32,
    pub(super) name: String,
    pub(super) lineage: Vec<u32>,
    pub(super) daemon: bool,
    pub(super) parent: Option<ParentRecord>,
    pub(super) start_method: StartMethod,
    /// Whether the process is a fork of a program that goes on elsewhere, whose exit handlers are not its own.
    pub(super) forked: bool,
    /// Where the process reports its function's result.
    pub(super) report: Option<Channel>,
    /// Children that have not been seen to end, detached ones included.
    pub(super) children: Vec<Arc<ChildRecord>>,
    /// What other parts of the library have registered; a forked child keeps that.
    hooks: Vec<&'static Hooks>,
    /// What has threads in this process and ends with it.
    background: Vec<Weak<dyn Background>>,
    started: u32,
    /// A daemon's parent.
    pub(super) watched_parent: Option<OwnedFd>,
    /// The epoll descriptor that the reaper waits on; present while there is one.
    pub(super) reaper: Option<Arc<OwnedFd>>,
}

static STATE: Mutex<State> = Mutex::new(State {
    owner: 0,
    name: String::new(),
    lineage: Vec::new(),
    daemon: false,
    parent: None,
    start_method: StartMethod::Spawn,
    forked: false,
    report: None,
    children: Vec::new(),
    hooks: Vec::new(),
    background: Vec::new(),
    started: 0,
    watched_parent: None,
    reaper: None,
});

/// This process's state. In a process that was forked without this library's doing, its own from now on.
pub(super) fn lock() -> MutexGuard<'static, State> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let me = process::getpid();
    if state.owner != me {
        if state.owner == 0 {
            state.name = "MainProcess".into();
            state.owner = me;
        } else {
            state.become_forked(None);
        }
    }
    state
}

impl State {
    /// Drops what belongs to the process that this one was forked from.
    pub(super) fn become_forked(&mut self, parent: Option<ParentRecord>) {
        self.owner = process::getpid();
        self.parent = parent;
        self.daemon = false;
        self.forked = true;
        self.report = None;
        self.children = Vec::new();
        self.background = Vec::new();
        self.started = 0;
        self.watched_parent = None;
        self.reaper = None;
        // Or the ends of pipes that the parent has sent would stay open for as long as this process lives.
        mailbox::forget_parents();
        transfer::forget_parents();
        self.hooks.iter().for_each(|hooks| (hooks.in_child)());
    }

    /// Takes on the identity of a started process. A daemon watches its parent from here on.
    ///
    /// # Errors
    /// The parent cannot be watched.
    pub(super) fn become_process(
        &mut self,
        settings: Settings,
        forked: bool,
        report: Channel,
    ) -> std::io::Result<()> {
        self.become_forked(None);
        self.forked = forked;
        self.report = Some(report);
        self.name = settings.name;
        self.lineage = settings.lineage;
        self.daemon = settings.daemon;
        self.start_method = settings.start_method;
        if settings.daemon {
            let parent = settings.parent.identity().ok_or(std::io::ErrorKind::InvalidData)?;
            match parent.open() {
                Ok(parent) => self.watched_parent = Some(parent),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => process::kill_self(),
                Err(error) => return Err(error),
            }
        }
        self.parent = Some(settings.parent);
        Ok(())
    }

    /// What this process is to its children.
    pub(super) fn as_parent(&self) -> ParentRecord {
        ParentRecord { identity: Identity::current().to_bits(), name: self.name.clone() }
    }

    /// The numbers of the next child.
    pub(super) fn next_lineage(&mut self) -> Vec<u32> {
        self.started += 1;
        let mut lineage = self.lineage.clone();
        lineage.push(self.started);
        lineage
    }

    /// Collects children that have ended and forgets them.
    pub(super) fn sweep(&mut self) {
        let reaper = self.reaper.as_deref();
        self.children.retain(|child| {
            let over = child.collect();
            if let (true, Some(reaper)) = (over, reaper) {
                // A forked process may hold a copy of the descriptor, so closing it would not be enough. Fails when
                // it was never added.
                let _ = epoll::delete(reaper, &child.pidfd);
            }
            !over
        });
    }

    /// The child with this pid that has not been seen to end.
    pub(super) fn child(&self, pid: u32) -> Option<Arc<ChildRecord>> {
        self.children.iter().find(|child| child.pid == pid).cloned()
    }

    /// How many threads of this process are this library's own.
    pub(super) fn own_threads(&self) -> usize {
        let others = self.background.iter().filter_map(Weak::upgrade).filter(|other| other.has_thread());
        usize::from(self.reaper.is_some()) + usize::from(mailbox::is_running()) + others.count()
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>, number: u32) -> std::io::Result<()> {
        let Some(reaper) = &self.reaper else { return Ok(()) };
        let data = EventData::new_u64(number.into());
        // Once: a process ends once, and the reaper must not spin over one that cannot be collected yet.
        match epoll::add(reaper, fd, data, EventFlags::IN | EventFlags::ONESHOT) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Calls the hooks from now on. Does nothing for those that were registered before.
pub(crate) fn register_hooks(hooks: &'static Hooks) {
    let mut state = lock();
    if !state.hooks.iter().any(|known| std::ptr::eq(*known, hooks)) {
        state.hooks.push(hooks);
    }
}

/// The hooks that are registered, to be called without the lock.
pub(super) fn hooks() -> Vec<&'static Hooks> {
    lock().hooks.clone()
}

/// Takes note of something that ends when the process exits.
pub(crate) fn register_background(background: Weak<dyn Background>) {
    let mut state = lock();
    state.background.retain(|other| other.strong_count() != 0);
    state.background.push(background);
}

/// What has registered so in this process.
pub(super) fn background() -> Vec<Arc<dyn Background>> {
    lock().background.iter().filter_map(Weak::upgrade).collect()
}

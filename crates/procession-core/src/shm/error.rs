//! Why shared memory could not be made or opened.

use std::io;

use super::kind::Kind;

/// A shared object could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The system refused: out of memory, of descriptors, or of mappings.
    #[error("cannot create the shared memory of a {kind}: {action}: {cause}")]
    System {
        /// What was to be made.
        kind: Kind,
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// A living process uses the name.
    #[error("the name {name:?} is taken: a living process uses it; open it, or choose another")]
    Taken {
        /// The name.
        name: String,
    },
    /// The name cannot be used: it is not one, or leads to something else.
    #[error("the name {name:?} cannot be used: {problem}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// A size or count that no object can have.
    #[error("cannot create {object}: {problem}")]
    Invalid {
        /// What was to be made, with its article.
        object: &'static str,
        /// What is wrong with the request.
        problem: String,
    },
}

/// A handle from elsewhere, or a named object, could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The process that handed the handle out was killed, or ended by `_exit`, and no process of
    /// this user has the object open.
    #[error(
        "the process {pid} that sent this handle was killed or ended by _exit, and no process of \
         this user has the object open; keep it open in one that lives, or use a named object"
    )]
    Gone {
        /// The sender.
        pid: u32,
    },
    /// The sender no longer has that object under the descriptor that the handle names.
    #[error("the handle refers to an object that its sender, process {pid}, does not hold")]
    NotHeld {
        /// The sender.
        pid: u32,
    },
    /// The handle was serialised with its descriptors attached, but is read without them.
    #[error(
        "the handle's descriptor did not come with it; read it with the function that matches its sender's"
    )]
    NotAttached,
    /// The bytes of a handle are damaged.
    #[error("not a handle: {0}")]
    Malformed(&'static str),
    /// No living process uses the name.
    #[error("there is nothing by the name {name:?}: nobody made it, or all that used it have ended")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The name cannot be used: it is not one, or leads to something else.
    #[error("the name {name:?} cannot be used: {problem}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// What was opened is not one of this library's objects.
    #[error("not a shared object of this library: {0}")]
    NotAnObject(&'static str),
    /// The object was made by another version of this library.
    #[error(
        "the object has layout version {found}, this library reads version {expected}; update the older program"
    )]
    Version {
        /// The version in the object.
        found: u32,
        /// The version of this library.
        expected: u32,
    },
    /// The object is of another kind.
    #[error("the object is a {found}, expected a {expected}")]
    Kind {
        /// What it is.
        found: Kind,
        /// What it should be.
        expected: Kind,
    },
    /// The queue was made for messages of another type, or for an earlier version of this one.
    #[error(
        "the queue was not made for messages of the type {expected} as it is in this program; use the same \
         definition in all programs that share the queue"
    )]
    Messages {
        /// The type that was to be opened.
        expected: &'static str,
    },
    /// The object was made in another pid namespace, where process ids mean other processes.
    #[error("the object belongs to another pid namespace (another container); both must share one")]
    PidNamespace,
    /// The object's own records contradict each other.
    #[error("the shared object is damaged: {0}")]
    Damaged(&'static str),
    /// The system refused.
    #[error("cannot open a shared object: {action}: {cause}")]
    System {
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl OpenError {
    /// For `map_err`: the system refused this step.
    pub fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| OpenError::System { action, cause: cause.into() }
    }
}

impl CreateError {
    /// For `map_err`: the system refused this step.
    pub fn system<E: Into<io::Error>>(kind: Kind, action: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| CreateError::System { kind, action, cause: cause.into() }
    }
}

//! The error of a value that cannot be serialised.

use std::fmt;

/// A value cannot be serialised, or its bytes could not be read back. Nothing was put or sent.
pub struct SerializeError(Box<Problem>);

#[derive(Debug)]
enum Problem {
    OutOfMemory,
    /// What the type's `Serialize` said.
    Refused(String),
    /// A field that `skip_serializing_if` left out.
    Skipped(&'static str),
    /// As [`super::Shape`] has it.
    Unsupported {
        type_name: &'static str,
        reason: &'static str,
    },
    Format(postcard::Error),
}

impl SerializeError {
    #[cold]
    pub(super) fn skipped(field: &'static str) -> Self {
        SerializeError(Box::new(Problem::Skipped(field)))
    }

    #[cold]
    pub(crate) fn unsupported<T: ?Sized>(reason: &'static str) -> Self {
        SerializeError(Box::new(Problem::Unsupported { type_name: std::any::type_name::<T>(), reason }))
    }

    /// Whether memory was short, as an error of the system.
    pub(crate) fn out_of_memory(&self) -> Option<std::io::Error> {
        matches!(*self.0, Problem::OutOfMemory).then(|| std::io::ErrorKind::OutOfMemory.into())
    }
}

impl From<postcard::Error> for SerializeError {
    #[cold]
    fn from(error: postcard::Error) -> Self {
        SerializeError(Box::new(match error {
            // Only the end of a vector that cannot grow says so.
            postcard::Error::SerializeBufferFull => Problem::OutOfMemory,
            error => Problem::Format(error),
        }))
    }
}

impl serde::ser::Error for SerializeError {
    #[cold]
    fn custom<T: fmt::Display>(message: T) -> Self {
        SerializeError(Box::new(Problem::Refused(message.to_string())))
    }
}

impl fmt::Display for SerializeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Problem::OutOfMemory => write!(f, "out of memory"),
            Problem::Refused(message) => f.write_str(message),
            Problem::Skipped(field) => write!(
                f,
                "the field {field} is left out by serde's skip_serializing_if, and its reader would take the next \
                 field for it; always serialise it"
            ),
            Problem::Unsupported { type_name, reason } => {
                write!(f, "a {type_name} could not be read back: {reason}")
            }
            Problem::Format(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for SerializeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SerializeError {}

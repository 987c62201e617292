//! Objects of types that a program registers.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CallError;
use super::reference::{Reference, proxy};
use super::value::check_readable;
use super::wire::{Answer, Kind, Operation};

/// A type whose objects live in a manager's process and answer requests.
///
/// The program that starts the manager registers it ([`Builder::register`](super::Builder::register)), and whoever
/// uses the manager makes objects by [`Manager::create`](super::Manager::create). Usually requests and responses are enums
/// with one variant for each thing that the object does. Handles and proxies may be parts of them.
///
/// An object is dropped, in the manager's process and on any thread of it, when nobody has a proxy of it any more, or when the manager is shut
/// down: then the oldest first, for a second altogether, and not one that is handling a request. One whose manager is killed
/// is not dropped; nor are those of a manager whose starter was killed.
///
/// ```
/// use procession::manager::{Manager, Service};
/// use serde::{Deserialize, Serialize};
///
/// struct Account(u64);
///
/// #[derive(Serialize, Deserialize)]
/// enum Request {
///     Deposit(u64),
///     Withdraw(u64),
/// }
///
/// impl Service for Account {
///     const NAME: &'static str = "account";
///     type Arguments = u64;
///     type Request = Request;
///     /// The balance; `None` if there is not so much in it.
///     type Response = Option<u64>;
///
///     fn create(balance: u64) -> Self {
///         Account(balance)
///     }
///
///     fn handle(&mut self, request: Request) -> Option<u64> {
///         self.0 = match request {
///             Request::Deposit(amount) => self.0 + amount,
///             Request::Withdraw(amount) => self.0.checked_sub(amount)?,
///         };
///         Some(self.0)
///     }
/// }
///
/// let manager = Manager::builder().register::<Account>().start()?;
/// let account = manager.create::<Account>(&10)?;
/// assert_eq!(account.call(&Request::Deposit(5))?, Some(15));
/// assert_eq!(account.call(&Request::Withdraw(20))?, None);
/// # Ok::<(), procession::Error>(())
/// ```
pub trait Service: Sized + Send + 'static {
    /// What the type is called between programs. Each type of a manager has a name of its own.
    const NAME: &'static str;
    /// What an object is made of.
    type Arguments: Serialize + DeserializeOwned;
    /// What an object can be asked.
    type Request: Serialize + DeserializeOwned;
    /// What it answers.
    type Response: Serialize + DeserializeOwned;

    /// Makes an object, in the manager's process.
    fn create(arguments: Self::Arguments) -> Self;

    /// Answers a request, in the manager's process, on a thread of the client's. An object handles one request at a time; others
    /// wait for it, so one that calls its own proxy never returns.
    ///
    /// A panic is an error of the call, [`CallError::Panicked`]; the object stays as the panic left it, and handles
    /// what comes next.
    fn handle(&mut self, request: Self::Request) -> Self::Response;
}

/// A proxy of an object of a registered type. See [the module](super) for what all proxies have in common.
pub struct Proxy<S> {
    reference: Arc<Reference>,
    types: PhantomData<fn() -> S>,
}

proxy!(Proxy<S>, 4, "service");

impl<S: Service> Proxy<S> {
    /// Has the object handle a request; its response. Waits as long as that takes.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Panicked`] when the handler did. Unless the error says so, it is not known whether a
    /// request was handled whose manager died.
    pub fn call(&self, request: &S::Request) -> Result<S::Response, CallError> {
        self.call_until(request, None)
    }

    /// As [`Proxy::call`], waiting for the response for `timeout` at most. A handler that is late goes on; its response is thrown
    /// away. A request of more than 100 KiB or so to a manager that is stopped is not sent before that goes on, whatever the timeout.
    ///
    /// # Errors
    /// As there; [`CallError::TimedOut`].
    pub fn call_timeout(&self, request: &S::Request, timeout: Duration) -> Result<S::Response, CallError> {
        self.call_until(request, Some(timeout))
    }

    fn call_until(&self, request: &S::Request, timeout: Option<Duration>) -> Result<S::Response, CallError> {
        let request = self.reference.encode(request)?;
        // Before the object has changed.
        check_readable::<S::Response>()?;
        let kind = Kind::Service(S::NAME.into());
        match self.reference.call(&kind, Operation::Service(request), timeout)? {
            Answer::One(Some((response, _))) => response.open(),
            _ => Err(self.reference.unexpected()),
        }
    }
}

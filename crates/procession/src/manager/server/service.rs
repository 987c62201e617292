//! Objects of registered types.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manager::client::Remote;
use crate::manager::error::CallError;
use crate::manager::service::Service;
use crate::manager::value::{Carriage, Form, Parcel, pack};
use crate::manager::wire::{Packed, Refusal};
use crate::process::{self, Panic};

/// An object of a registered type, whichever it is.
pub(super) trait Served: Send {
    /// Handles a request; the response.
    fn handle(
        &mut self,
        request: Packed,
        remote: &Arc<Remote>,
        carriage: Carriage,
        keep: &mut Keep<'_>,
    ) -> Result<(), Refusal>;
}

/// Takes a response while the objects that it refers to are there.
pub(super) type Keep<'a> = dyn FnMut(Packed) -> Result<(), Refusal> + 'a;

struct Adapter<S>(S);

impl<S: Service> Served for Adapter<S> {
    fn handle(
        &mut self,
        request: Packed,
        remote: &Arc<Remote>,
        carriage: Carriage,
        keep: &mut Keep<'_>,
    ) -> Result<(), Refusal> {
        let Adapter(service) = self;
        let response = caught(|| {
            let request = read::<S::Request>(remote, request)?;
            Ok(service.handle(request))
        })?;
        caught(|| {
            let packed = pack(remote.manager(), carriage, Form::Plain, &response).map_err(|error| {
                Refusal::Answer(format!("{}: {error}", std::any::type_name::<S::Response>()))
            })?;
            keep(packed)
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(remote: &Arc<Remote>, packed: Packed) -> Result<T, Refusal> {
    Parcel::of_client(remote, packed)
        .open()
        .map_err(|error: CallError| Refusal::Unreadable(error.to_string()))
}

/// Makes an object from its arguments.
type Maker = fn(&Arc<Remote>, Packed) -> Result<Box<dyn Served>, Refusal>;

/// The types that this manager's process has, by their names.
static REGISTERED: Mutex<BTreeMap<&'static str, Maker>> = Mutex::new(BTreeMap::new());

/// Registers a type: what the program that starts a manager has its process do.
pub(in crate::manager) fn register<S: Service>((): ()) {
    let make: Maker = |remote, arguments| {
        caught(|| Ok(Box::new(Adapter(S::create(read(remote, arguments)?))) as Box<dyn Served>))
    };
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).insert(S::NAME, make);
}

/// A new object of the type that is registered under the name.
pub(super) fn make(name: &str, remote: &Arc<Remote>, arguments: Packed) -> Result<Box<dyn Served>, Refusal> {
    let make = {
        let registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        registered.get(name).copied().ok_or_else(|| {
            Refusal::NotRegistered(registered.keys().map(|name| (*name).to_owned()).collect())
        })?
    };
    make(remote, arguments)
}

/// Runs a user's code.
fn caught<R>(run: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Refusal> {
    process::caught(run)
        .unwrap_or_else(|Panic { message, location }| Err(Refusal::Panicked { message, location }))
}

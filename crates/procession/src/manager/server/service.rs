//! Objects of registered types.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manager::client::ManagerClient;
use crate::manager::error::CallError;
use crate::manager::service::Service;
use crate::manager::value::{Form, HandleTransport, Received, encode};
use crate::manager::wire::{Encoded, Refusal};
use crate::process::{self, Panic};

/// An object of a registered type, whichever it is.
pub(super) trait Served: Send {
    /// Handles a request; the response.
    fn handle(
        &mut self,
        request: Encoded,
        client: &Arc<ManagerClient>,
        transport: HandleTransport,
        keep: &mut Keep<'_>,
    ) -> Result<(), Refusal>;
}

/// Takes a response while the objects that it refers to are there.
pub(super) type Keep<'a> = dyn FnMut(Encoded) -> Result<(), Refusal> + 'a;

struct Adapter<S>(S);

impl<S: Service> Served for Adapter<S> {
    fn handle(
        &mut self,
        request: Encoded,
        client: &Arc<ManagerClient>,
        transport: HandleTransport,
        keep: &mut Keep<'_>,
    ) -> Result<(), Refusal> {
        let Adapter(service) = self;
        let response = caught(|| {
            let request = read::<S::Request>(client, request)?;
            Ok(service.handle(request))
        })?;
        caught(|| {
            let encoded = encode(client.manager(), transport, Form::Plain, &response).map_err(|error| {
                Refusal::Answer(format!("{}: {error}", std::any::type_name::<S::Response>()))
            })?;
            keep(encoded)
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(client: &Arc<ManagerClient>, encoded: Encoded) -> Result<T, Refusal> {
    Received::of_client(client, encoded)
        .open()
        .map_err(|error: CallError| Refusal::Unreadable(error.to_string()))
}

/// Makes an object from its arguments.
type Maker = fn(&Arc<ManagerClient>, Encoded) -> Result<Box<dyn Served>, Refusal>;

/// The types that this manager's process has, by their names.
static REGISTERED: Mutex<BTreeMap<&'static str, Maker>> = Mutex::new(BTreeMap::new());

/// Registers a type: what the program that starts a manager has its process do.
pub(in crate::manager) fn register<S: Service>((): ()) {
    let make: Maker = |client, arguments| {
        caught(|| Ok(Box::new(Adapter(S::create(read(client, arguments)?))) as Box<dyn Served>))
    };
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).insert(S::NAME, make);
}

/// A new object of the type that is registered under the name.
pub(super) fn make(
    name: &str,
    client: &Arc<ManagerClient>,
    arguments: Encoded,
) -> Result<Box<dyn Served>, Refusal> {
    let make = {
        let registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        registered.get(name).copied().ok_or_else(|| {
            Refusal::NotRegistered(registered.keys().map(|name| (*name).to_owned()).collect())
        })?
    };
    make(client, arguments)
}

/// Runs a user's code.
fn caught<R>(run: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Refusal> {
    process::caught(run)
        .unwrap_or_else(|Panic { message, location }| Err(Refusal::Panicked { message, location }))
}

//! One connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::socket;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::Pid;

use super::objects::{Hosted, State, Stored};
use super::session::{Reading, Session};
use super::{ServerState, WakeReason};
use crate::connection::{Address, Connection, RecvError, SendError};
use crate::manager::value::HandleTransport;
use crate::manager::wire::{
    Answer, Machine, Number, Operation, Refusal, Reply, Request, VERSION, Welcome, token,
};

type Stream = Connection<Reply<Stored>, Request>;

/// Serves a connection in a thread of its own.
pub(super) fn attend(server: &Arc<ServerState>, stream: Stream, client: Option<Pid>) {
    let server = Arc::clone(server);
    if let Err(error) = super::thread(move || serve(&server, &stream, client)) {
        // The client finds its connection closed.
        tracing::warn!(%error, "a manager cannot serve a connection");
    }
}

/// Serves a connection to its end.
fn serve(server: &ServerState, stream: &Stream, client: Option<Pid>) {
    let process = match super::watch(client) {
        Ok(process) => process,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::warn!(%error, "a manager cannot watch a client");
            None
        }
    };
    let first = receive(stream, process.as_ref());
    match first {
        Some(Ok(Request::Begin { version, machine })) => {
            begin(server, stream, process, version, &machine);
        }
        Some(Ok(Request::Join { session })) => match server.sessions.find(session) {
            Some(session) => {
                // One descriptor a process is enough.
                drop(process);
                let reading = session.reading();
                if stream.send_as_other(&Ok(Answer::Done)).is_ok() {
                    CallConnection { server, stream, session: &session, unconfirmed: Vec::new() }
                        .serve(reading);
                }
            }
            None => drop(stream.send_as_other(&Err(Refusal::NoSession))),
        },
        Some(Ok(_)) => drop(stream.send_as_other(&Err(Refusal::NoSession))),
        Some(Err(problem)) => drop(stream.send_as_other(&Err(Refusal::Unreadable(problem)))),
        None => {}
    }
}

/// A session, to the end of its first connection.
fn begin(server: &ServerState, stream: &Stream, process: Option<OwnedFd>, version: u32, machine: &Machine) {
    if version != VERSION {
        drop(stream.send_as_other(&Err(Refusal::Version(VERSION))));
        return;
    }
    let transport = match (server.client.address(), *machine == server.machine) {
        (Address::Tcp { .. }, true) => HandleTransport::Tickets,
        (Address::Tcp { .. }, false) => HandleTransport::Nothing,
        _ => HandleTransport::Descriptors,
    };
    let session = Arc::new(Session::new(token(), transport, process));
    server.sessions.add(&session);
    let welcome = Welcome {
        manager: server.client.manager(),
        session: session.token,
        process: Identity::current().to_bits(),
        machine: server.machine.clone(),
    };
    if stream.send_as_other(&Ok(Answer::Welcome(welcome))).is_ok() {
        while let Some(Ok(request)) = receive(stream, session.process.as_ref()) {
            match request {
                Request::LetGo { objects, tickets } => {
                    session.let_go(&objects);
                    server.settle(&tickets);
                }
                _ => break,
            }
        }
    }
    server.sessions.end(&session);
    server.begin_grace(session.token);
}

/// The next request, or why it cannot be read; `None` when the client is gone.
fn receive(stream: &Stream, process: Option<&OwnedFd>) -> Option<Result<Request, String>> {
    loop {
        match stream.recv_timeout(Duration::ZERO) {
            Ok(request) => return Some(Ok(request)),
            Err(RecvError::Timeout) => {}
            Err(
                error @ (RecvError::Handle { .. }
                | RecvError::HandlesLost
                | RecvError::Deserialize { .. }
                | RecvError::Trailing { .. }
                | RecvError::OutOfMemory { .. }),
            ) => return Some(Err(error.to_string())),
            Err(_) => return None,
        }
        let mut fds = vec![PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
        fds.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
        if let Err(error) = socket::poll(&mut fds, Deadline::Never) {
            // Out of memory, which may pass.
            tracing::warn!(%error, "a manager cannot wait for a client");
            std::thread::sleep(super::PAUSE);
            continue;
        }
        // What it had sent before its end is carried out.
        if fds[0].revents().is_empty() {
            return None;
        }
    }
}

/// A connection for calls.
struct CallConnection<'a> {
    server: &'a ServerState,
    stream: &'a Stream,
    session: &'a Session,
    /// References that went with the last answer, which may not have been received.
    unconfirmed: Vec<(Number, u32)>,
}

impl<'a> CallConnection<'a> {
    fn serve(mut self, mut reading: Reading<'a>) {
        while let Some(request) = receive(self.stream, self.session.process.as_ref()) {
            // There until it has been carried out, though the client may have ended.
            let named = request.as_ref().map(Request::objects).unwrap_or_default();
            let named = self.server.objects.find_all(&named);
            drop(reading);
            self.unconfirmed.clear();
            let (reply, over) = match request {
                Ok(Request::Leave) => break,
                Ok(Request::Shutdown) => (Ok(Answer::Done), true),
                Ok(request) => (self.answer(request), false),
                Err(problem) => (Err(Refusal::Unreadable(problem)), false),
            };
            drop(named);
            // The next request may come as soon as this one is answered.
            reading = self.session.reading();
            let sent = self.send(&reply);
            if over {
                self.server.wake(WakeReason::Stop);
            }
            if sent.is_err() {
                break;
            }
        }
        self.session.let_go(&self.unconfirmed);
    }

    fn send(&mut self, reply: &Reply<Stored>) -> Result<(), SendError> {
        if let Ok(answer) = reply {
            self.grant(answer);
        }
        match self.stream.send_as_other(reply) {
            Err(error @ (SendError::Handle { .. } | SendError::Serialize { .. })) => {
                self.session.let_go(&self.unconfirmed);
                self.unconfirmed.clear();
                self.stream.send_as_other(&Err(Refusal::Answer(error.to_string())))
            }
            result => result,
        }
    }

    /// The references that the client is to have with an answer.
    fn grant(&mut self, answer: &Answer<Stored>) {
        let granted = &mut self.unconfirmed;
        match answer {
            Answer::One(Some((value, _))) => self.session.grant_all(value, granted),
            Answer::Many(values, _) => {
                values.iter().for_each(|value| self.session.grant_all(value, granted));
            }
            Answer::Pairs(pairs) => {
                pairs.iter().for_each(|(_, value)| self.session.grant_all(value, granted));
            }
            _ => {}
        }
    }

    /// A reference for the client.
    fn give(&mut self, object: &Arc<Hosted>) {
        self.session.grant(object);
        self.unconfirmed.push((object.number, 1));
    }

    fn answer(&mut self, request: Request) -> Reply<Stored> {
        let server = self.server;
        match request {
            Request::Make { kind, name, arguments } => {
                let object = server.make(kind, name, arguments)?;
                self.give(&object);
                Ok(Answer::Object(object.number))
            }
            Request::Open { object } => {
                let object = server.objects.find(object)?;
                self.give(&object);
                Ok(Answer::Done)
            }
            Request::Hold { object } => {
                let object = server.objects.find(object)?;
                let ticket = server.hold(object, self.session.token);
                if self.session.has_ended() {
                    server.begin_grace(self.session.token);
                }
                Ok(Answer::Ticket(ticket))
            }
            Request::Call { object, operation } => self.call(&server.objects.find(object)?, operation),
            Request::Forget { name } => Ok(Answer::Bool(server.forget(&name))),
            Request::Count => Ok(Answer::Count(server.objects.count() as u64)),
            Request::Begin { .. }
            | Request::Join { .. }
            | Request::LetGo { .. }
            | Request::Leave
            | Request::Shutdown => Err(Refusal::Unreadable("it is not for a connection for calls".into())),
        }
    }

    fn call(&self, object: &Arc<Hosted>, operation: Operation) -> Reply<Stored> {
        let objects = &self.server.objects;
        // Dropped after the object's lock.
        let mut waste = Vec::new();
        let mut state = object.state();
        match (&mut *state, operation) {
            (State::Table(table), Operation::Table(operation)) => table.apply(operation, objects, &mut waste),
            (State::Sequence(sequence), Operation::Sequence(operation)) => {
                sequence.apply(operation, objects, &mut waste)
            }
            (State::Service(service), Operation::Service(request)) => {
                let mut response = None;
                service.handle(request, &self.server.client, self.session.transport, &mut |encoded| {
                    response = Some(objects.keep(encoded)?);
                    Ok(())
                })?;
                Ok(Answer::One(response.map(|response| (response, 0))))
            }
            _ => Err(Refusal::Kind(object.kind.clone())),
        }
    }
}

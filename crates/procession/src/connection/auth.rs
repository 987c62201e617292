//! The challenge by which the two ends of a connection show each other that they have the same key.
//!
//! The protocol is that of CPython's `multiprocessing.connection`, in both its forms. One side sends
//! `#CHALLENGE#` and random bytes, the other answers with their HMAC, and gets `#WELCOME#` or `#FAILURE#`; then
//! they change places, the listener having begun. Up to CPython 3.11 the HMAC is MD5's, bare, over 20 bytes.
//! From 3.12 on a challenge begins with `{sha256}` or another digest's name, as does the answer; who knows only
//! the older form answers with MD5's bare 16 bytes, over all of the challenge.

use std::fmt;
use std::io::{self, IoSlice};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use procession_core::shm::ObjectId;
use procession_sys::clock::Deadline;
use procession_sys::socket::{self, Blocking};
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;

use super::channel::{Incoming, is_closed};
use super::error::{AuthenticationError, RecvError};

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";
/// No message of the protocol is longer.
const MAX_MESSAGE: usize = 256;
/// The length of a challenge of the older form.
const OLD_CHALLENGE: usize = 20;
/// The length of an answer of the older form.
const OLD_ANSWER: usize = 16;

/// A secret that both ends of an authenticated connection have.
///
/// Whoever has it can connect, and connect as a listener to those who look for one; it is never sent.
#[derive(Clone)]
pub struct AuthKey(Vec<u8>);

impl AuthKey {
    /// A key of these bytes, Python's `authkey`. An empty one is refused when it is used.
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        AuthKey(secret.into())
    }

    /// A key of 32 random bytes.
    pub fn random() -> Self {
        AuthKey([ObjectId::random().to_bytes(), ObjectId::random().to_bytes()].concat())
    }

    /// The key's bytes, to be handed to the other end in some safe way.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(…)")
    }
}

impl From<&str> for AuthKey {
    fn from(secret: &str) -> Self {
        AuthKey::new(secret)
    }
}

impl From<&[u8]> for AuthKey {
    fn from(secret: &[u8]) -> Self {
        AuthKey::new(secret)
    }
}

impl<const N: usize> From<&[u8; N]> for AuthKey {
    fn from(secret: &[u8; N]) -> Self {
        AuthKey::new(secret)
    }
}

/// The digests this side knows. CPython's default is SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digest {
    Md5,
    Sha256,
    Sha384,
}

impl Digest {
    /// Splits `{name}rest`.
    fn split(message: &[u8]) -> Option<(Digest, &[u8])> {
        [Digest::Md5, Digest::Sha256, Digest::Sha384]
            .into_iter()
            .find_map(|digest| Some((digest, message.strip_prefix(digest.prefix())?)))
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Digest::Md5 => b"{md5}",
            Digest::Sha256 => b"{sha256}",
            Digest::Sha384 => b"{sha384}",
        }
    }

    fn hmac(self, key: &AuthKey, message: &[u8]) -> Vec<u8> {
        match self {
            Digest::Md5 => with_message::<Hmac<md5::Md5>>(key, message).finalize().into_bytes().to_vec(),
            Digest::Sha256 => {
                with_message::<Hmac<sha2::Sha256>>(key, message).finalize().into_bytes().to_vec()
            }
            Digest::Sha384 => {
                with_message::<Hmac<sha2::Sha384>>(key, message).finalize().into_bytes().to_vec()
            }
        }
    }

    /// In constant time.
    fn verify(self, key: &AuthKey, message: &[u8], answer: &[u8]) -> bool {
        match self {
            Digest::Md5 => with_message::<Hmac<md5::Md5>>(key, message).verify_slice(answer),
            Digest::Sha256 => with_message::<Hmac<sha2::Sha256>>(key, message).verify_slice(answer),
            Digest::Sha384 => with_message::<Hmac<sha2::Sha384>>(key, message).verify_slice(answer),
        }
        .is_ok()
    }
}

fn with_message<M: Mac + KeyInit>(key: &AuthKey, message: &[u8]) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(&key.0).expect("an HMAC takes a key of any length");
    mac.update(message);
    mac
}

/// The answer to a challenge.
fn answer(key: &AuthKey, challenge: &[u8]) -> Result<Vec<u8>, AuthenticationError> {
    if challenge.len() == OLD_CHALLENGE {
        return Ok(Digest::Md5.hmac(key, challenge));
    }
    let (digest, random) = Digest::split(challenge)
        .ok_or(AuthenticationError::Protocol("its challenge asks for a digest other than MD5 and SHA-2"))?;
    if random.len() < OLD_CHALLENGE {
        return Err(AuthenticationError::Protocol("its challenge is too short"));
    }
    // All of the challenge, name included, so that nobody in between can replace the name.
    Ok([digest.prefix(), &digest.hmac(key, challenge)].concat())
}

/// Whether `answer` answers `challenge`.
fn is_answer(key: &AuthKey, challenge: &[u8], answer: &[u8]) -> bool {
    let (digest, hmac) = match answer.len() {
        OLD_ANSWER => (Digest::Md5, answer),
        _ => match Digest::split(answer) {
            Some(found) => found,
            None => return false,
        },
    };
    digest.verify(key, challenge, hmac)
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Challenges first.
    Listener,
    /// Challenges after it has answered.
    Client,
}

/// What is expected from the peer next.
enum Expected {
    Challenge,
    Answer { challenge: Vec<u8> },
    Welcome,
    Nothing,
}

/// A handshake under way, on a socket that carries nothing else yet.
pub(super) struct Handshake {
    key: AuthKey,
    role: Role,
    expected: Expected,
    incoming: Incoming,
}

impl Handshake {
    /// Begins: a listener sends its challenge.
    pub(super) fn new(key: &AuthKey, role: Role, socket: &OwnedFd) -> Result<Self, AuthenticationError> {
        let mut handshake = Handshake {
            key: key.clone(),
            role,
            expected: Expected::Challenge,
            incoming: Incoming::default(),
        };
        if role == Role::Listener {
            handshake.challenge(socket)?;
        }
        Ok(handshake)
    }

    /// Whether the peer has shown a listener that it has the key.
    pub(super) fn is_trusted(&self) -> bool {
        self.role == Role::Listener && !matches!(self.expected, Expected::Answer { .. })
    }

    /// Goes on as far as the peer's messages allow, without waiting; whether it is finished.
    pub(super) fn advance(&mut self, socket: &OwnedFd) -> Result<bool, AuthenticationError> {
        while !matches!(self.expected, Expected::Nothing) {
            // Descriptors of a peer that is not yet trusted are thrown away by the kernel.
            let message = match self.incoming.advance(socket, Some(MAX_MESSAGE), false) {
                Ok(Some(message)) => message.bytes,
                Ok(None) => return Ok(false),
                Err(RecvError::Closed | RecvError::Truncated { .. }) => {
                    return Err(AuthenticationError::Closed);
                }
                Err(RecvError::System(error)) => return Err(AuthenticationError::System(error)),
                Err(_) => return Err(AuthenticationError::Protocol("it sent something else")),
            };
            self.handle(&message, socket)?;
        }
        Ok(true)
    }

    /// Runs to the end or the deadline.
    pub(super) fn run(&mut self, socket: &OwnedFd, timeout: Duration) -> Result<(), AuthenticationError> {
        let deadline = Deadline::after(timeout);
        while !self.advance(socket)? {
            if !socket::wait(socket, PollFlags::IN, deadline).map_err(AuthenticationError::System)? {
                return Err(AuthenticationError::Timeout(timeout));
            }
        }
        Ok(())
    }

    fn handle(&mut self, message: &[u8], socket: &OwnedFd) -> Result<(), AuthenticationError> {
        match std::mem::replace(&mut self.expected, Expected::Nothing) {
            Expected::Challenge => {
                let challenge = message
                    .strip_prefix(CHALLENGE)
                    .ok_or(AuthenticationError::Protocol("it sent something else than a challenge"))?;
                send(socket, &answer(&self.key, challenge)?)?;
                self.expected = Expected::Welcome;
            }
            Expected::Answer { challenge } if is_answer(&self.key, &challenge, message) => {
                send(socket, WELCOME)?;
                if self.role == Role::Listener {
                    self.expected = Expected::Challenge;
                }
            }
            Expected::Answer { .. } => {
                send(socket, FAILURE)?;
                return Err(AuthenticationError::WrongKey);
            }
            Expected::Welcome if message == WELCOME => {
                if self.role == Role::Client {
                    self.challenge(socket)?;
                }
            }
            Expected::Welcome => return Err(AuthenticationError::Rejected),
            Expected::Nothing => {}
        }
        Ok(())
    }

    fn challenge(&mut self, socket: &OwnedFd) -> Result<(), AuthenticationError> {
        let (one, two) = (ObjectId::random().to_bytes(), ObjectId::random().to_bytes());
        let challenge = [Digest::Sha256.prefix(), &one, &two].concat();
        send(socket, &[CHALLENGE, &challenge].concat())?;
        self.expected = Expected::Answer { challenge };
        Ok(())
    }
}

/// Sends one of the protocol's messages. A few hundred bytes always fit into a new socket's buffer.
fn send(socket: &OwnedFd, message: &[u8]) -> Result<(), AuthenticationError> {
    let header = (message.len() as u32).to_be_bytes();
    let parts = [IoSlice::new(&header), IoSlice::new(message)];
    match socket::send(socket, &parts, &[], Blocking::Never) {
        Ok(sent) if sent == header.len() + message.len() => Ok(()),
        Ok(_) => Err(AuthenticationError::System(io::ErrorKind::WouldBlock.into())),
        Err(error) if is_closed(&error) => Err(AuthenticationError::Closed),
        Err(error) => Err(AuthenticationError::System(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_are_the_published_ones() {
        // RFC 2202, RFC 4231, test case 2.
        let (key, data) = (AuthKey::from("Jefe"), b"what do ya want for nothing?");
        assert_eq!(hex(&Digest::Md5.hmac(&key, data)), "750c783e6ab0b503eaa86e310a5db738");
        let sha256 = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&Digest::Sha256.hmac(&key, data)), sha256);
        let sha384 = "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e\
                      8e2240ca5e69e2c78b3239ecfab21649";
        assert_eq!(hex(&Digest::Sha384.hmac(&key, data)), sha384);
    }

    #[test]
    fn answers_follow_the_form_of_the_challenge() {
        let (key, other) = (AuthKey::from("a"), AuthKey::from("b"));
        for challenge in [&[b'x'; 20][..], b"{sha256}01234567890123456789", b"{md5}01234567890123456789"] {
            let given = answer(&key, challenge).unwrap();
            assert!(is_answer(&key, challenge, &given));
            assert!(!is_answer(&other, challenge, &given));
            assert!(!is_answer(&key, b"another", &given));
        }
        // An older peer answers a newer challenge with a bare MD5.
        let challenge = b"{sha256}01234567890123456789";
        assert!(is_answer(&key, challenge, &Digest::Md5.hmac(&key, challenge)));
        for challenge in [&b""[..], b"{sha256}short", b"{crc32}01234567890123456789", &[b'x'; 19]] {
            assert!(matches!(answer(&key, challenge), Err(AuthenticationError::Protocol(_))));
        }
        for wrong in [&b""[..], b"{sha256}", &[0; 16], &[0; 40]] {
            assert!(!is_answer(&key, challenge, wrong));
        }
    }

    #[test]
    fn a_key_does_not_show() {
        assert_eq!(format!("{:?}", AuthKey::from("secret")), "AuthKey(…)");
    }
}

//! Where a listener is.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use procession_sys::socket::Endpoint;
use serde::{Deserialize, Serialize};

/// Where a [`Listener`](super::Listener) is, for a [`Client`](super::Client) in another process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Address {
    /// A socket file, whose path has at most 107 bytes. Its permissions say who may connect. Python: the path.
    Unix(PathBuf),
    /// A name, of at most 107 bytes, in Linux's abstract namespace: no file, and gone with the listener, also
    /// when that is killed. Python: a zero byte and the name.
    Abstract(Vec<u8>),
    /// TCP. Python: `(host, port)`.
    Tcp {
        /// A name or an IP address.
        host: String,
        /// The port; 0 for a listener lets the system choose.
        port: u16,
    },
}

impl Address {
    /// A socket file.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Address::Unix(path.into())
    }

    /// A TCP port of a host. Listen at `"localhost"` unless other machines are to connect.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Address::Tcp { host: host.into(), port }
    }

    /// The sockets' addresses that this means. Asks the resolver for a host's.
    pub(super) fn resolve(&self) -> io::Result<Vec<Endpoint>> {
        Ok(match self {
            Address::Unix(path) => vec![Endpoint::Path(path.clone())],
            Address::Abstract(name) => vec![Endpoint::Abstract(name.clone())],
            Address::Tcp { host, port } => {
                (host.as_str(), *port).to_socket_addrs()?.map(Endpoint::Inet).collect()
            }
        })
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_well() {
        assert_eq!(Address::unix("/run/a").to_string(), "/run/a");
        assert_eq!(Address::Abstract(b"a\0".to_vec()).to_string(), "@a\\x00");
        assert_eq!(Address::tcp("localhost", 80).to_string(), "localhost:80");
        assert_eq!(Address::tcp("::1", 80).to_string(), "[::1]:80");
    }
}

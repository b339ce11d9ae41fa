//! `host:port` flags. Names are kept as names and resolved when they are dialled, since a compose file or a cluster
//! gives names whose addresses come later and change.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

/// Wait between attempts to resolve a name that is not known yet.
const RESOLVE_AGAIN: Duration = Duration::from_millis(250);

/// A host (name, IPv4, or IPv6 in brackets) and a port; checked in form, not resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Not of the form `host:port`.
    #[error(
        "{given:?} is not an address: write host:port, as in decode-1:7001, 10.0.0.2:7001 or [fd00::2]:7001"
    )]
    Form {
        /// What was given.
        given: String,
    },
    /// The name has no address.
    #[error("{address} cannot be resolved within {after:?}: {reason}")]
    Resolve {
        /// The address.
        address: String,
        /// The deadline.
        after: Duration,
        /// What the resolver said last.
        reason: String,
    },
}

impl HostPort {
    /// The name or address without the port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address behind the name, IPv4 first; tries again until the deadline.
    ///
    /// # Errors
    /// [`AddressError::Resolve`] with what the resolver said last.
    pub async fn resolve(&self, deadline: Duration) -> Result<SocketAddr, AddressError> {
        let end = Instant::now() + deadline;
        let mut reason = "no answer from the resolver".to_owned();
        loop {
            match tokio::time::timeout_at(end, tokio::net::lookup_host((self.host.as_str(), self.port))).await
            {
                Ok(Ok(found)) => match found.min_by_key(SocketAddr::is_ipv6) {
                    Some(address) => return Ok(address),
                    None => reason = "the name has no address".to_owned(),
                },
                Ok(Err(error)) => reason = error.to_string(),
                Err(_elapsed) => return Err(self.unresolved(deadline, reason)),
            }
            if Instant::now() + RESOLVE_AGAIN >= end {
                return Err(self.unresolved(deadline, reason));
            }
            tokio::time::sleep(RESOLVE_AGAIN).await;
        }
    }

    fn unresolved(&self, after: Duration, reason: String) -> AddressError {
        AddressError::Resolve { address: self.to_string(), after, reason }
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let form = || AddressError::Form { given: given.into() };
        let (host, port) = given.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse().map_err(|_| form())?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(form()),
            None => host,
        };
        let is_bare_v6 = !given.starts_with('[') && host.contains(':');
        if host.is_empty() || is_bare_v6 || host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(form());
        }
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// Where a peer that listens on `bound` can be reached by those who see it come from `seen`: a process that listens
/// on all interfaces (`0.0.0.0`) does not know its own address, but whoever it has dialled does.
pub fn reachable(bound: SocketAddr, seen: IpAddr) -> SocketAddr {
    let ip = if bound.ip().is_unspecified() { seen.to_canonical() } else { bound.ip() };
    SocketAddr::new(ip, bound.port())
}

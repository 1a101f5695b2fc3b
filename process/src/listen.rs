//! Addresses to listen on. `:PORT` is every address of the machine, be it of IPv6, of IPv4 or of both.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 1024;

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddress {
    /// A port of every address of the machine, written `:8080`.
    Every(u16),
    /// One address, written `127.0.0.1:8080` or `[::1]:8080`.
    One(SocketAddr),
}

/// A text that is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddressError(String);

impl fmt::Display for ListenAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(given) = self;
        write!(
            f,
            "must be :PORT, for every address, or IP:PORT, such as :8080, 127.0.0.1:8080 or [::1]:8080; it is {given:?}"
        )
    }
}

impl std::error::Error for ListenAddressError {}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        let wrong = |_| ListenAddressError(text.to_owned());
        match text.strip_prefix(':') {
            Some(port) => port.parse().map(Self::Every).map_err(wrong),
            None => text
                .parse()
                .map(Self::One)
                .map_err(|_| ListenAddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(port) => write!(f, ":{port}"),
            Self::One(address) => address.fmt(f),
        }
    }
}

impl ListenAddress {
    /// Listens. A kernel without IPv6 has only IPv4's addresses.
    pub async fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::One(address) => TcpListener::bind(address).await,
            Self::Every(port) => match every(port) {
                Err(error) if has_no_ipv6(&error) => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
                }
                listener => listener,
            },
        }
    }
}

/// Listens for both families with one socket, whatever the system's default for that is.
fn every(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether an error says that the kernel has no IPv6, or that it is switched off.
fn has_no_ipv6(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [
            rustix::io::Errno::AFNOSUPPORT,
            rustix::io::Errno::ADDRNOTAVAIL,
            rustix::io::Errno::NOPROTOOPT,
        ]
        .contains(&errno)
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in [":8080", ":0", "127.0.0.1:80", "0.0.0.0:9090", "[::1]:1"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in ["", ":", "8080", "localhost:80", "::1:80", ":65536", ":x"] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains(":PORT") && error.ends_with(&format!("{text:?}")));
        }
    }

    #[tokio::test]
    async fn every_address_is_of_both_families() {
        let listener = ListenAddress::Every(0).listen().await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        if std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|all| !all.is_empty()) {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port))
                .await
                .unwrap();
        }
        let taken = ListenAddress::Every(port).listen().await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_kernel_without_ipv6_is_told_from_a_port_that_is_taken() {
        for (errno, without) in [
            (rustix::io::Errno::AFNOSUPPORT, true),
            (rustix::io::Errno::ADDRNOTAVAIL, true),
            (rustix::io::Errno::ADDRINUSE, false),
            (rustix::io::Errno::ACCESS, false),
        ] {
            assert_eq!(has_no_ipv6(&errno.into()), without, "{errno:?}");
        }
    }
}

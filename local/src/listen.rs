//! The sockets that models are served on: the addresses that `--http` names, held from the start.

use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
};

use tokio::net::TcpSocket;

use super::LocalError;

/// The connections that a socket lets wait: as many as one that a sidecar opens by itself.
const BACKLOG: u32 = 1024;

/// Parses the value of `--http`: an address, or a name that stands for one.
pub fn address(given: &str) -> Result<SocketAddr, String> {
    let allowed = "HOST:PORT is needed, such as 127.0.0.1:8080, localhost:8080 or [::1]:8080";
    let Some((host, port)) = given.rsplit_once(':') else {
        return Err(format!("{given:?} has no port: {allowed}"));
    };
    if host.is_empty() || given.contains("://") || port.parse::<u16>().is_err() {
        return Err(format!("{given:?} is no address to listen on: {allowed}"));
    }
    let found = given.to_socket_addrs();
    let found: Vec<SocketAddr> = found
        .map_err(|error| format!("{host:?} is no host that is known here ({error}): {allowed}"))?
        .collect();
    // A name may stand for an address of each family; every client finds IPv4.
    let first = found.iter().find(|address| address.is_ipv4());
    let first = first.or(found.first()).copied();
    first.ok_or_else(|| format!("{host:?} stands for no address: {allowed}"))
}

fn listen(address: SocketAddr) -> io::Result<(SocketAddr, TcpListener)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of an earlier run may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    Ok((listener.local_addr()?, listener))
}

/// Listens on `first` and the next free ports after it. The sockets are passed to sidecars, so nobody else gets a port
/// while its sidecar starts, or starts again.
pub fn listeners(
    first: SocketAddr,
    count: usize,
) -> Result<Vec<(SocketAddr, TcpListener)>, LocalError> {
    let mut held = vec![listen(first).map_err(|source| LocalError::Listen {
        address: first,
        source,
    })?];
    let mut address = first;
    while held.len() < count {
        if first.port() != 0 {
            let port = address.port().checked_add(1);
            let port =
                port.ok_or_else(|| LocalError::Ports(io::ErrorKind::AddrNotAvailable.into()))?;
            address.set_port(port);
        }
        match listen(address) {
            Ok(bound) => held.push(bound),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => (),
            Err(source) => return Err(LocalError::Listen { address, source }),
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn models_listen_on_the_next_free_ports() {
        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = busy.local_addr().unwrap();
        let error = listeners(busy, 1).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("failed to listen on {busy}")),
            "{error}"
        );

        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let found = listeners(any, 3).unwrap();
        assert!(found.iter().all(|(address, _)| address.port() != 0));
        assert!(found[0].0 != found[1].0 && found[1].0 != found[2].0);
        let taken = TcpListener::bind(found[0].0).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);

        let mut before = busy;
        before.set_port(busy.port() - 1);
        if let Ok(found) = listeners(before, 2) {
            assert_eq!(found[0].0, before);
            assert!(found[1].0.port() > busy.port());
        }
    }

    #[test]
    fn an_address_may_be_a_name_and_what_is_none_is_told_what_is() {
        for (given, expected) in [
            ("localhost:8080", "127.0.0.1:8080"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(address(given), Ok(expected.parse().unwrap()));
        }
        for (given, expected) in [
            (
                "localhost",
                "\"localhost\" has no port: HOST:PORT is needed",
            ),
            ("8080", "\"8080\" has no port"),
            (
                ":8080",
                "\":8080\" is no address to listen on: HOST:PORT is needed",
            ),
            ("localhost:http", "is no address to listen on"),
            ("localhost:80800", "is no address to listen on"),
            ("http://localhost:8080", "is no address to listen on"),
            (
                "no-such-host.invalid:80",
                "\"no-such-host.invalid\" is no host that is known here",
            ),
        ] {
            let error = address(given).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(
                error.contains("such as 127.0.0.1:8080, localhost:8080"),
                "{error}"
            );
        }
    }
}

//! Redis URLs.

use std::{fmt, time::Duration};

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use crate::QueueError;

/// The silence after which a peer is probed, and the time between two probes. Without probes a half-open connection
/// would look alive for hours.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The port of a sentinel whose URL names none.
const PORT: &str = ":26379";

/// A Redis server, or the sentinels that know which server is the primary.
#[derive(Clone)]
pub(super) enum Address {
    Server(ConnectionInfo),
    Sentinels(Sentinels),
}

/// The sentinels that watch over a primary.
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) members: Vec<ConnectionInfo>,
    /// The primary's name among its sentinels.
    pub(super) primary: String,
    /// The user, password and database of the primary.
    login: RedisConnectionInfo,
    tls: bool,
}

impl Address {
    /// Parses `redis://`, `rediss://`, `unix://` as the Redis library does, and `redis+sentinel://` and
    /// `rediss+sentinel://`, which it does not know. Errors say what is wrong without repeating the URL, which may hold
    /// a password.
    pub(super) fn parse(url: &str) -> Result<Self, QueueError> {
        let (scheme, rest) = url.split_once(':').unwrap_or_default();
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        match scheme {
            "redis+sentinel" => Sentinels::parse(rest, "redis").map(Self::Sentinels),
            "rediss+sentinel" => Sentinels::parse(rest, "rediss").map(Self::Sentinels),
            "redis" | "rediss" | "valkey" | "valkeys" | "unix" | "redis+unix" | "valkey+unix" => {
                server(url).map(Self::Server)
            }
            _ => Err(QueueError::Url(
                "it must begin with redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://"
                    .to_owned(),
            )),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        match self {
            Self::Server(server) => is_tls(server),
            Self::Sentinels(sentinels) => sentinels.tls,
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(server) => write!(f, "Redis at {}", server.addr()),
            Self::Sentinels(Sentinels {
                members, primary, ..
            }) => {
                let members = members.iter().map(|member| member.addr().to_string());
                let members = members.collect::<Vec<_>>().join(", ");
                write!(f, "Redis {primary} of the sentinels at {members}")
            }
        }
    }
}

impl Sentinels {
    /// Parses `[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/PRIMARY[/DB][?OPTION=VALUE[&OPTION=VALUE]]`, whose user and
    /// password are the primary's; the options are `sentinelUsername` and `sentinelPassword`. Everything is put
    /// together to URLs of single servers, so that all is decoded as theirs is.
    fn parse(rest: &str, scheme: &str) -> Result<Self, QueueError> {
        let wrong = |message: &str| QueueError::Url(message.to_owned());
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = rest
            .split_once('/')
            .ok_or_else(|| wrong("the primary's name is missing: HOST:PORT[,HOST:PORT...]/NAME"))?;
        let (login, hosts) = match hosts.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), hosts),
        };
        let (primary, db) = path.split_once('/').unwrap_or((path, ""));
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if primary.is_empty() || !primary.bytes().all(allowed) {
            return Err(wrong(
                "the primary's name must be letters, digits, '-', '.' or '_', and there",
            ));
        }
        let (mut username, mut password) = ("", None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sentinelUsername", value)) => username = value,
                Some(("sentinelPassword", value)) => password = Some(value),
                _ => {
                    return Err(wrong(
                        "the options of sentinels are sentinelUsername and sentinelPassword",
                    ));
                }
            }
        }
        let user = match password {
            Some(password) => format!("{username}:{password}@"),
            None if username.is_empty() => String::new(),
            None => return Err(wrong("sentinelUsername is without sentinelPassword")),
        };
        let members = hosts
            .split(',')
            .map(|host| {
                // A host that is left out would be taken for the machine's own.
                if host.is_empty() || host.starts_with(':') {
                    return Err(wrong("one of the sentinels has no host"));
                }
                // Colons within brackets are those of an IPv6 address.
                let (_, end) = host.rsplit_once(']').unwrap_or(("", host));
                let port = if end.contains(':') { "" } else { PORT };
                server(&format!("{scheme}://{user}{host}{port}"))
            })
            .collect::<Result<_, _>>()?;
        let login = server(&format!("{scheme}://{login}redis/{db}"))?;
        Ok(Self {
            members,
            primary: primary.to_owned(),
            login: login.redis_settings().clone(),
            tls: scheme == "rediss",
        })
    }

    /// Returns the server at an address that a sentinel gave, with the primary's login.
    pub(super) fn server(&self, host: String, port: u16) -> Result<ConnectionInfo, QueueError> {
        let address = if self.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let info = address.into_connection_info().map_err(unusable)?;
        Ok(info
            .set_redis_settings(self.login.clone())
            .set_tcp_settings(tcp()))
    }
}

pub(super) fn is_tls(server: &ConnectionInfo) -> bool {
    matches!(server.addr(), ConnectionAddr::TcpTls { .. })
}

fn server(url: &str) -> Result<ConnectionInfo, QueueError> {
    let info = url.into_connection_info().map_err(unusable)?;
    if let ConnectionAddr::TcpTls { insecure: true, .. } = info.addr() {
        return Err(QueueError::Url(
            "#insecure is not supported: name the certificate's authority in a CA file".to_owned(),
        ));
    }
    Ok(info.set_tcp_settings(tcp()))
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn unusable(error: redis::RedisError) -> QueueError {
    QueueError::Url(error.to_string())
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true).set_keepalive(
        TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels(url: &str) -> Sentinels {
        match Address::parse(url).unwrap() {
            Address::Sentinels(sentinels) => sentinels,
            Address::Server(_) => panic!("{url} names sentinels"),
        }
    }

    fn addresses(sentinels: &Sentinels) -> Vec<String> {
        let members = sentinels.members.iter();
        members.map(|member| member.addr().to_string()).collect()
    }

    #[test]
    fn sentinels_are_told_from_the_primary_they_watch() {
        let plain = sentinels("redis+sentinel://one:1,two,[::1]:3,[::2]/queue");
        assert_eq!(
            addresses(&plain),
            ["one:1", "two:26379", "::1:3", "::2:26379"]
        );
        assert_eq!(plain.primary, "queue");
        assert_eq!(
            (plain.login.username(), plain.login.password()),
            (None, None)
        );

        let all = sentinels(
            "rediss+sentinel://me:p%40ss@one,two/queue/5?sentinelUsername=you&sentinelPassword=w%2Frd",
        );
        assert!(all.tls && is_tls(&all.members[0]));
        assert_eq!(all.login.username(), Some("me"));
        assert_eq!(all.login.password(), Some("p@ss"));
        assert_eq!(all.login.db(), 5);
        let sentinel = all.members[1].redis_settings();
        assert_eq!(
            (sentinel.username(), sentinel.password(), sentinel.db()),
            (Some("you"), Some("w/rd"), 0)
        );
        let server = all.server("10.0.0.1".to_owned(), 6379).unwrap();
        assert!(is_tls(&server));
        assert_eq!(server.redis_settings().password(), Some("p@ss"));
        let said = format!("{:?}", Address::Sentinels(all));
        assert!(!said.contains("p@ss") && !said.contains("p%40ss"), "{said}");
    }

    #[test]
    fn what_is_wrong_is_told_without_the_url() {
        for (url, part) in [
            (
                "redis+sentinel://:secret@one:1",
                "primary's name is missing",
            ),
            ("redis+sentinel://:secret@one:1/", "primary's name must be"),
            (
                "redis+sentinel://:secret@one:1/a b",
                "primary's name must be",
            ),
            ("redis+sentinel://:secret@/queue", "no host"),
            ("redis+sentinel://:secret@one,,two/queue", "no host"),
            ("redis+sentinel://:secret@:26379/queue", "no host"),
            ("redis+sentinel://:secret@one:port/queue", "did not parse"),
            ("redis+sentinel://:secret@one/queue/x", "database number"),
            ("redis+sentinel://one/queue?password=secret", "options of"),
            (
                "redis+sentinel://:secret@one/queue?sentinelUsername=me",
                "without sentinelPassword",
            ),
            ("rediss://:secret@redis/#insecure", "#insecure"),
            ("http://:secret@redis", "must begin with redis://"),
            ("secret", "must begin with redis://"),
            ("redis://:secret@redis:port", "did not parse"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}

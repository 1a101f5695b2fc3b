//! The command line and the environment: all of it is parsed, and every mistake told, before anything is bound.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use carpool_crds::Config;
use carpool_process::ListenAddress;
use carpool_queue::Endpoint;
use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::tls::Certificate;

/// The exit code for settings that can't be used: `EX_USAGE` of sysexits.h.
const BAD_USAGE: u8 = 64;

/// Takes requests for one model over HTTP and has its workers answer them in batches.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "carpool-sidecar", version)]
pub struct Args {
    /// The configuration that the operator writes, as YAML. It is read again when it changes.
    #[arg(long, env = "CARPOOL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "the brackets of a form, printed by --help as they stand here"
    )]
    /// The Redis that holds the queue: redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB], s for TLS; or
    /// redis[s]+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB], the primary that those sentinels know
    /// by this name; ?sentinelUsername=USER&sentinelPassword=PASSWORD at the end is for the sentinels.
    #[arg(
        long,
        env = "CARPOOL_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub redis_url: Option<String>,

    /// A file that holds the URL of --redis-url.
    #[arg(long, env = "CARPOOL_REDIS_URL_FILE", value_name = "FILE")]
    pub redis_url_file: Option<PathBuf>,

    /// The name of the Secret that the URL is from, where the configuration says which revision is fed in whose Redis.
    #[arg(long, env = "CARPOOL_REDIS_SECRET", value_name = "NAME")]
    pub redis_secret: Option<String>,

    /// A PEM file with the certificate authorities that Redis' certificate may come from, read again for each new
    /// connection. Default: `ca.crt` beside --redis-url-file, where there is one, or else the system's.
    #[arg(long, env = "CARPOOL_REDIS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<PathBuf>,

    /// The address at which requests are taken. Default: :8080, which is port 8080 of every address, of
    /// IPv6 and IPv4. `stdin`: the listening socket that standard input is, which whoever starts this proxy holds, too,
    /// so that no other process gets its port between two proxies.
    #[arg(long, env = "CARPOOL_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// A folder with the certificate `tls.crt`, with its chain, and its key `tls.key`, both PEM, as a Secret of the
    /// type kubernetes.io/tls is mounted: requests are taken by TLS. Both are read again when they change. Default: no
    /// TLS.
    #[arg(long, env = "CARPOOL_TLS_DIR", value_name = "FOLDER")]
    pub tls_dir: Option<PathBuf>,

    /// The address at which metrics, probes and the backlog are served. Default: :9090.
    #[arg(long, env = "CARPOOL_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<String>,

    /// The file to write this proxy's name and the address of its admin port to, as JSON, once it listens there. For
    /// --admin-listen with port 0.
    #[arg(long, env = "CARPOOL_ADMIN_ADDRESS_FILE", value_name = "FILE")]
    pub admin_address_file: Option<PathBuf>,

    /// The time for which requests are taken as before after the signal to stop, so that whoever balances load has time
    /// to forget this proxy. Default: 0s.
    #[arg(long, env = "CARPOOL_LAME_DUCK", value_name = "DURATION")]
    pub lame_duck: Option<String>,

    /// The name of this proxy, unique among those alive: the pod's.
    #[arg(long, env = "CARPOOL_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// The form of log lines: text or json. Default: text.
    #[arg(long, env = "CARPOOL_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// JSON for machines.
    Json,
}

/// The socket on which requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// A socket of the proxy's own, on this address.
    Address(ListenAddress),
    /// The socket that standard input is.
    Stdin,
}

/// The settings that the proxy works with, parsed and checked.
pub struct Settings {
    /// The configuration file, to be watched.
    pub config_file: PathBuf,
    /// The content of the configuration file.
    pub config: Config,
    /// The address of Redis.
    pub redis: Endpoint,
    /// The name of the Secret that the address is from, if there is one.
    pub redis_secret: Option<String>,
    /// The socket on which requests are taken.
    pub listen: Listen,
    /// The certificate with which requests are taken by TLS; `None` where they are without.
    pub certificate: Option<Certificate>,
    /// The address at which metrics, probes and the backlog are served.
    pub admin_listen: ListenAddress,
    /// The file to write the address of the admin port to.
    pub admin_address_file: Option<PathBuf>,
    /// The time for which requests are taken after the signal to stop.
    pub lame_duck: Duration,
    /// The proxy's name.
    pub name: String,
    /// The form of log lines.
    pub log_format: LogFormat,
}

/// The mistakes in the settings, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Parses the command line and the environment, and starts logging. Mistakes are told on standard error; the exit
    /// code is then 64, and 0 if help was all that was asked for.
    pub fn from_command_line() -> Result<Self, ExitCode> {
        let args = Args::try_parse().map_err(|error| {
            // An error is left aside: nobody reads a standard error that can't be written.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { BAD_USAGE } else { 0 })
        })?;
        let settings = Self::new(args).map_err(|error| {
            for line in &error.0 {
                eprintln!("carpool-sidecar: {line}");
            }
            ExitCode::from(BAD_USAGE)
        })?;
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        match settings.log_format {
            LogFormat::Text => logs.init(),
            LogFormat::Json => logs.json().init(),
        }
        Ok(settings)
    }

    /// Reads and checks everything that the arguments point to.
    pub fn new(args: Args) -> Result<Self, SettingsError> {
        let mut errors = Vec::new();
        let config_file = required(args.config, "--config", &mut errors);
        let place = args.redis_secret.as_deref();
        let config = config_file.as_deref().and_then(|file| {
            let config = Config::read(file).and_then(|config| {
                config.fed_at(place)?;
                Ok(config)
            });
            keep(config, &mut errors)
        });
        let redis = redis(
            args.redis_url.as_deref(),
            args.redis_url_file.as_deref(),
            args.redis_ca_file.as_deref(),
        );
        let redis = keep(redis, &mut errors);
        let listen = match args.listen.as_deref() {
            Some("stdin") => Some(Listen::Stdin),
            listen => {
                let listen = address("--listen", listen, ":8080");
                keep(listen, &mut errors).map(Listen::Address)
            }
        };
        let certificate = args.tls_dir.as_deref().map(|folder| {
            let read = Certificate::read(folder);
            keep(
                read.map_err(|error| format!("--tls-dir: {error}")),
                &mut errors,
            )
        });
        let admin_listen = args.admin_listen.as_deref();
        let admin_listen = address("--admin-listen", admin_listen, ":9090");
        let admin_listen = keep(admin_listen, &mut errors);
        let lame_duck = args.lame_duck.as_deref().unwrap_or("0s");
        let lame_duck = lame_duck.parse::<carpool_crds::Duration>();
        let lame_duck = keep(
            lame_duck.map_err(|error| format!("--lame-duck: {error}")),
            &mut errors,
        );
        let name = required(args.name, "--name", &mut errors)
            .and_then(|name| keep(check_name(name), &mut errors));
        let log_format = args.log_format.as_deref().unwrap_or("text");
        let log_format = LogFormat::from_str(log_format, false)
            .map_err(|_| format!("--log-format must be text or json, it is {log_format:?}"));
        let log_format = keep(log_format, &mut errors);

        let settings = (|| {
            Some(Self {
                config_file: config_file?,
                config: config?,
                redis: redis?,
                redis_secret: args.redis_secret,
                listen: listen?,
                certificate: match certificate {
                    Some(read) => Some(read?),
                    None => None,
                },
                admin_listen: admin_listen?,
                admin_address_file: args.admin_address_file,
                lame_duck: lame_duck?.0,
                name: name?,
                log_format: log_format?,
            })
        })();
        settings.ok_or(SettingsError(errors))
    }
}

/// Gives the value, or `None` and a note of its mistake.
fn keep<T>(value: Result<T, impl ToString>, errors: &mut Vec<String>) -> Option<T> {
    value.map_err(|error| errors.push(error.to_string())).ok()
}

fn required<T>(value: Option<T>, flag: &str, errors: &mut Vec<String>) -> Option<T> {
    keep(value.ok_or_else(|| format!("{flag} is missing")), errors)
}

fn redis(url: Option<&str>, file: Option<&Path>, ca: Option<&Path>) -> Result<Endpoint, String> {
    let connection = match (url, file) {
        (Some(url), None) => Endpoint::from_url(url),
        (None, Some(file)) => Endpoint::from_file(file),
        (None, None) => {
            return Err("either --redis-url or --redis-url-file is missing".to_owned());
        }
        (Some(_), Some(_)) => {
            return Err("--redis-url and --redis-url-file exclude each other".to_owned());
        }
    };
    connection
        .and_then(|connection| match ca {
            Some(ca) => connection.with_ca_file(ca),
            None => Ok(connection),
        })
        .map_err(|error| error.to_string())
}

fn address(flag: &str, given: Option<&str>, default: &str) -> Result<ListenAddress, String> {
    let parsed = given.unwrap_or(default).parse::<ListenAddress>();
    parsed.map_err(|error| format!("{flag} {error}"))
}

/// Refuses a name that could not be part of a Redis key, whose parts are separated by colons.
fn check_name(name: String) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=253).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(format!(
            "--name must be 1 to 253 letters, digits, '-', '.' or '_', it is {name:?}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_told_at_once() {
        let args = Args {
            config: Some("/nowhere/config.yaml".into()),
            redis_url: Some("http://redis".to_owned()),
            listen: Some("localhost".to_owned()),
            tls_dir: Some("/nowhere".into()),
            lame_duck: Some("soon".to_owned()),
            name: Some("a:b".to_owned()),
            log_format: Some("xml".to_owned()),
            ..Args::default()
        };
        let Err(SettingsError(lines)) = Settings::new(args) else {
            panic!("bad settings must be refused");
        };
        for (line, part) in lines.iter().zip([
            "/nowhere/config.yaml",
            "Redis URL",
            "--listen",
            "--tls-dir",
            "--lame-duck",
            "--name",
            "--log-format",
        ]) {
            assert!(line.contains(part), "{line:?} is not about {part}");
        }
        assert_eq!(lines.len(), 7, "{lines:?}");
    }

    #[test]
    fn a_ca_file_that_can_not_be_read_is_told() {
        let (url, ca) = (Some("rediss://redis"), Path::new("/nowhere/ca.crt"));
        let error = redis(url, None, Some(ca)).unwrap_err();
        assert!(error.contains("/nowhere/ca.crt"), "{error}");
        assert!(redis(url, None, None).is_ok());
    }

    #[test]
    fn what_is_missing_is_named() {
        let Err(SettingsError(lines)) = Settings::new(Args::default()) else {
            panic!("no settings must be refused");
        };
        assert_eq!(
            lines,
            [
                "--config is missing",
                "either --redis-url or --redis-url-file is missing",
                "--name is missing",
            ]
        );
    }
}

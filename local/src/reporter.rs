//! The lines that people read of one model.

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use carpool_crds::Loaded;
use carpool_scaling::Reason;
use indicatif::ProgressBar;

use super::{console::Console, metrics::Rates};

/// The state of a model at one moment.
pub struct Snapshot {
    /// Requests waiting and in flight; `None` when nobody could say.
    pub queue: Option<u64>,
    /// The load since the last snapshot.
    pub rates: Rates,
    /// Workers that are ready.
    pub ready: usize,
    /// Workers that the scaler asks for.
    pub wanted: usize,
    /// The scaler's reason for that number.
    pub reason: Reason,
}

/// Reports on one model to the console.
pub struct Reporter {
    console: Console,
    name: String,
    /// The URL where clients on this machine find the model.
    pub url: String,
    line: Option<ProgressBar>,
    shown: Option<(usize, usize)>,
    /// The message that workers last gave on how they serve the model.
    loaded: String,
}

impl Reporter {
    /// Returns the reporter of a model whose sidecar listens at `listen`, by TLS or without.
    pub fn new(console: Console, name: &str, listen: SocketAddr, tls: bool) -> Self {
        Self {
            line: console.live(),
            console,
            name: name.to_owned(),
            url: url(listen, tls),
            shown: None,
            loaded: String::new(),
        }
    }

    /// Prints a message with the model's name before it.
    pub fn say(&self, message: impl Display) {
        self.console.say(format_args!("{}: {message}", self.name));
    }

    /// Reports how workers serve the model, when that has changed: the worst of what they say.
    pub fn loaded(&mut self, loaded: &[Loaded]) {
        if let Some(message) = changed_message(&mut self.loaded, loaded) {
            self.say(message);
        }
    }

    /// Prints the model's addresses and an example of a request.
    pub fn announce(&self, admin: &str, status: &Path, curl: &str) {
        self.console.print(format_args!(
            "{}: {}\n  admin:  {admin}\n  status: {}\n  try:    {curl}",
            self.name,
            self.url,
            status.display(),
        ));
    }

    /// Renews the live line; without a terminal, prints a line when the number of workers has changed.
    pub fn show(&mut self, snapshot: &Snapshot) {
        let Snapshot {
            queue,
            rates,
            ready,
            wanted,
            reason,
        } = snapshot;
        let queue = queue.map_or("unknown".to_owned(), |queue| queue.to_string());
        if let Some(line) = &self.line {
            let batch = rates
                .batch
                .map_or("-".to_owned(), |rows| format!("{rows:.1}"));
            line.set_message(format!(
                "{}  queue {queue} · mean batch {batch} · workers {ready}/{wanted} · {:.0} requests/s",
                self.name, rates.requests,
            ));
        } else if self.shown != Some((*ready, *wanted)) {
            self.shown = Some((*ready, *wanted));
            self.say(format_args!(
                "workers {ready}/{wanted}, queue {queue}: {reason}"
            ));
        }
    }

    /// Removes the live line.
    pub fn close(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

/// Returns the worst message of the workers, if it is not empty and not the one that was given before.
fn changed_message(said: &mut String, loaded: &[Loaded]) -> Option<String> {
    let poorest = loaded.iter().min_by_key(|report| report.reason)?;
    if poorest.message == *said {
        return None;
    }
    said.clone_from(&poorest.message);
    Some(said.clone()).filter(|message| !message.is_empty())
}

/// Returns the URL where clients on this machine find what listens there.
fn url(mut listen: SocketAddr, tls: bool) -> String {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{listen}")
}

#[cfg(test)]
mod tests {
    use carpool_crds::LoadedReason;

    use super::*;

    #[test]
    fn how_the_model_is_served_is_told_once() {
        let report = |reason, message: &str| Loaded {
            revision: "r1".into(),
            sha256: "abc".into(),
            reason,
            message: message.into(),
        };
        let well = report(LoadedReason::Loaded, "");
        let unbatched = report(LoadedReason::Unbatched, "served unbatched");
        let mut said = String::new();
        assert_eq!(
            changed_message(&mut said, std::slice::from_ref(&well)),
            None
        );
        assert_eq!(changed_message(&mut said, &[]), None);
        let both = [unbatched, well.clone()];
        assert_eq!(
            changed_message(&mut said, &both).as_deref(),
            Some("served unbatched")
        );
        assert_eq!(changed_message(&mut said, &both), None);
        assert_eq!(
            changed_message(&mut said, &[]),
            None,
            "none is ready for a moment"
        );
        assert_eq!(changed_message(&mut said, &both), None);
        assert_eq!(changed_message(&mut said, &[well]), None, "nothing to tell");
        assert_eq!(
            changed_message(&mut said, &both).as_deref(),
            Some("served unbatched")
        );
    }

    #[test]
    fn a_url_can_be_opened_on_this_machine() {
        for (listen, expected) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
            ("10.0.0.7:80", "http://10.0.0.7:80"),
        ] {
            let listen = listen.parse().unwrap();
            assert_eq!(url(listen, false), expected);
            assert_eq!(url(listen, true), expected.replace("http", "https"));
        }
    }
}

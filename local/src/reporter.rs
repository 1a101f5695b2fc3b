//! What people are told of one model.

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use carpool_crds::Loaded;
use carpool_scaling::Reason;
use indicatif::ProgressBar;

use super::{console::Console, metrics::Rates};

/// What is worth telling of one moment.
pub struct Snapshot {
    /// Requests waiting and in flight; `None` when nobody could say.
    pub queue: Option<u64>,
    /// What happened since the last one.
    pub rates: Rates,
    /// Workers that are ready.
    pub ready: usize,
    /// Workers that are asked for.
    pub wanted: usize,
    /// Why so many.
    pub reason: Reason,
}

/// Tells people of one model.
pub struct Reporter {
    console: Console,
    name: String,
    /// Where clients on this machine find the model.
    pub url: String,
    line: Option<ProgressBar>,
    shown: Option<(usize, usize)>,
    /// What workers last said of how they serve the model.
    loaded: String,
}

impl Reporter {
    /// For the model of this name, whose sidecar listens there.
    pub fn new(console: Console, name: &str, listen: SocketAddr) -> Self {
        Self {
            line: console.live(),
            console,
            name: name.to_owned(),
            url: url(listen),
            shown: None,
            loaded: String::new(),
        }
    }

    /// Says something about the model.
    pub fn say(&self, message: impl Display) {
        self.console.say(format_args!("{}: {message}", self.name));
    }

    /// Tells how workers serve the model, once: that of the one that serves it in the poorest way.
    pub fn loaded(&mut self, loaded: &[Loaded]) {
        if let Some(message) = changed_message(&mut self.loaded, loaded) {
            self.say(message);
        }
    }

    /// Tells where the model is.
    pub fn announce(&self, admin: &str, status: &Path, curl: &str) {
        self.console.print(format_args!(
            "{}: {}\n  admin:  {admin}\n  status: {}\n  try:    {curl}",
            self.name,
            self.url,
            status.display(),
        ));
    }

    /// Renews the live line; without a terminal, tells when the number of workers has changed.
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

    /// Takes the live line away.
    pub fn close(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

/// What workers say of how they serve the model, if it is not what they said before.
fn changed_message(said: &mut String, loaded: &[Loaded]) -> Option<String> {
    let poorest = loaded.iter().min_by_key(|report| report.reason)?;
    if poorest.message == *said {
        return None;
    }
    said.clone_from(&poorest.message);
    Some(said.clone()).filter(|message| !message.is_empty())
}

/// Where clients on this machine find what listens there.
fn url(mut listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{listen}")
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
            assert_eq!(url(listen.parse().unwrap()), expected);
        }
    }
}

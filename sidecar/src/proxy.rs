//! The state that all requests share: the model served now, the queue, the metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use carpool_crds::{Config, ConfigError, Model};
use carpool_queue::{Limits, Producer};
use tokio::sync::watch;

use crate::{body_budget::BodyBudget, cors::Cors, error::Error, metrics::Metrics};

/// The time after which a client should ask again whether Redis is back.
const RETRY_REDIS: Duration = Duration::from_secs(1);

/// The model and the limits that a request is held against. A request keeps the one it began with, whatever is
/// configured meanwhile.
#[derive(Debug)]
pub struct Served {
    /// The model's name.
    pub name: String,
    /// The revision whose workers run the model.
    pub revision: Arc<str>,
    /// The description of what that revision takes and gives.
    pub model: Model,
    /// The longest that a request may take.
    pub timeout: Duration,
    /// The largest request body, in bytes.
    pub max_request_bytes: u64,
    /// The most rows of a request.
    pub max_rows: u32,
    /// The origins whose pages may read answers.
    pub cors: Cors,
}

impl Served {
    /// The part of a configuration that requests are held against.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            name: config.name.clone(),
            revision: config.serving.as_str().into(),
            model: config.model(&config.serving)?.clone(),
            timeout: config.queue.timeout.0,
            max_request_bytes: config.queue.max_request_bytes.0,
            max_rows: config.queue.max_rows_per_request,
            cors: Cors::new(&config.cors_allow_origins),
        })
    }

    /// Whether the client asked for this version, or for none.
    pub fn check_version(&self, version: Option<&str>) -> Result<(), Error> {
        match version {
            Some(given) if given != &*self.revision => Err(Error::UnknownVersion {
                given: given.to_owned(),
                name: self.name.clone(),
                serving: self.revision.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// The queue's bounds, as a configuration states them.
pub fn limits(config: &Config) -> Limits {
    Limits {
        max_length: config.queue.max_length.into(),
        max_bytes: config.queue.max_bytes.0,
        max_request_bytes: config.queue.max_request_bytes.0,
        lease: config.queue.lease.0,
    }
}

/// The error where Redis doesn't answer and no request is at stake.
pub fn redis_unreachable() -> Error {
    Error::Unreachable {
        retry_after: RETRY_REDIS,
    }
}

/// The state that all requests share.
pub struct Proxy {
    /// The way to the workers.
    pub producer: Producer,
    /// The metrics of the proxy.
    pub metrics: Metrics,
    /// The bytes of bodies that are being read.
    pub body_budget: BodyBudget,
    /// Whether this process is to stop.
    draining: AtomicBool,
    /// Whether Redis has answered once.
    reached: AtomicBool,
    served: watch::Sender<Arc<Served>>,
    /// The models served before, which may still have requests under way.
    previous: Mutex<Vec<Weak<Served>>>,
}

impl Proxy {
    /// Makes a proxy that serves the configuration's model.
    pub fn new(config: &Config, producer: Producer) -> Result<Self, ConfigError> {
        Ok(Self {
            producer,
            metrics: Metrics::default(),
            body_budget: BodyBudget::default(),
            draining: AtomicBool::default(),
            reached: AtomicBool::default(),
            served: watch::Sender::new(Arc::new(Served::new(config)?)),
            previous: Mutex::default(),
        })
    }

    /// The model and the limits that a request that comes now is held against.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.borrow())
    }

    /// Serves what another configuration says. Requests under way stay with what they began with.
    pub fn reload(&self, config: &Config) -> Result<(), ConfigError> {
        let next = Arc::new(Served::new(config)?);
        self.producer.set_limits(limits(config));
        let replaced = Arc::downgrade(&self.served.send_replace(next));
        let mut previous = self.previous();
        previous.retain(|served| served.strong_count() > 0);
        previous.push(replaced);
        Ok(())
    }

    /// The number of requests under way for revisions that were served before. They may not be in the queue yet, or
    /// come back to it, and the workers of their revision must not go before they are answered.
    pub fn open_of_previous(&self) -> BTreeMap<Arc<str>, u64> {
        let mut open = BTreeMap::new();
        for served in self.previous().iter().filter_map(Weak::upgrade) {
            // The count is less one, for one reference is this loop's; the others are requests.
            let requests = Arc::strong_count(&served) - 1;
            *open.entry(Arc::clone(&served.revision)).or_default() += requests as u64;
        }
        open
    }

    /// Whether clients should be sent here. All proxies share one Redis: if none were ready while it is away, a
    /// Service would refuse connections, and nobody would be there to say 503 and when to try again.
    pub async fn takes_requests(&self) -> Result<(), Error> {
        if self.reached.load(Ordering::Relaxed) {
            self.not_draining()
        } else {
            self.ready().await
        }
    }

    /// Whether a request that comes now can be answered; the reason why not is for the client.
    pub async fn ready(&self) -> Result<(), Error> {
        self.not_draining()?;
        if self.producer.ping().await {
            self.reached.store(true, Ordering::Relaxed);
            Ok(())
        } else {
            Err(redis_unreachable())
        }
    }

    /// Notes that this process is to stop. Requests are still answered, but better sent elsewhere.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Fails once this process is to stop.
    pub fn not_draining(&self) -> Result<(), Error> {
        if self.draining.load(Ordering::Relaxed) {
            Err(Error::Draining)
        } else {
            Ok(())
        }
    }

    fn previous(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Served>>> {
        self.previous.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

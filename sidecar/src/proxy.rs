//! The state that all requests share: the model served now, the queue, the metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use carpool_crds::{Config, ConfigError, Model, Priorities, Task};
use carpool_queue::{Caller, Class, Endpoint, Limits, Producer, QueueError};
use http::{HeaderMap, HeaderName};
use tokio::sync::watch;

use crate::{
    body_budget::BodyBudget, connections::Unread, cors::Cors, error::Error, metrics::Metrics,
};

/// The time after which a client should ask again whether Redis is back.
const RETRY_REDIS: Duration = Duration::from_secs(1);

/// The model and the limits that a request is held against. A request keeps the one it began with, whatever is
/// configured meanwhile.
#[derive(Debug)]
pub struct Served {
    /// UID of the resource, which a model that is made anew changes.
    pub uid: Arc<str>,
    /// The model's name.
    pub name: String,
    /// The revision whose workers run the model.
    pub revision: Arc<str>,
    /// The description of what that revision takes and gives.
    pub model: Model,
    /// The longest that a request may take.
    pub timeout: Duration,
    /// The longest that a request may take whose client comes back for the answer.
    pub async_timeout: Duration,
    /// The largest request body, in bytes.
    pub max_request_bytes: u64,
    /// The most rows of a request.
    pub max_rows: u32,
    /// The priorities that requests may have, if there are several.
    pub priorities: Option<Priorities>,
    /// The header that names a request's caller, if one does.
    pub fairness_key: Option<HeaderName>,
    /// The origins whose pages may read answers.
    pub cors: Cors,
}

impl Served {
    /// The part of a configuration that requests are held against, where the queue is in the Redis of this Secret.
    pub fn new(config: &Config, place: Option<&str>) -> Result<Self, ConfigError> {
        let revision = config.fed_at(place)?;
        Ok(Self {
            uid: config.uid.as_str().into(),
            name: config.name.clone(),
            revision: revision.into(),
            model: config.model(revision)?.clone(),
            timeout: config.queue.timeout.0,
            async_timeout: config.queue.async_timeout().0,
            max_request_bytes: config.queue.max_request_bytes.0,
            max_rows: config.queue.max_rows_per_request,
            priorities: config.queue.priorities,
            fairness_key: config
                .queue
                .fairness
                .as_ref()
                .and_then(|fairness| HeaderName::try_from(&fairness.key).ok()),
            cors: Cors::new(&config.cors_allow_origins),
        })
    }

    /// The class of a request with this priority, 0 where it names none. As with Triton, one that there is not is the
    /// default one.
    pub fn class(&self, priority: u64) -> Class {
        match (self.priorities, u8::try_from(priority)) {
            (Some(these), Ok(priority))
                if (1..=these.levels).contains(&priority) && priority != these.default =>
            {
                Class::Priority(priority)
            }
            _ => Class::Default,
        }
    }

    /// The caller of a request with these headers, where one is to be told from others.
    pub fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let value = headers.get(self.fairness_key.as_ref()?)?;
        Some(Caller::named(value.as_bytes()))
    }

    /// Refuses the name of another model.
    pub fn check_name(&self, given: &str) -> Result<(), Error> {
        if self.name == given {
            Ok(())
        } else {
            Err(Error::UnknownModel {
                given: given.to_owned(),
                name: self.name.clone(),
            })
        }
    }

    /// Refuses a request for a task that is not the model's.
    pub fn check_task(&self, wanted: Task) -> Result<(), Error> {
        let name = self.name.clone();
        match &self.model.text {
            Some(text) if text.task == wanted => Ok(()),
            Some(text) => Err(Error::OtherTask {
                name,
                task: text.task,
            }),
            None => Err(Error::NoText { name }),
        }
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
        result_ttl: config.queue.result_ttl().0,
        window: config.batching.max_batch_size.max(1) as usize,
    }
}

/// The error where Redis doesn't answer and no request is at stake.
pub fn redis_unreachable() -> Error {
    Error::Unreachable {
        retry_after: RETRY_REDIS,
    }
}

/// The way to the queue, whichever resource it belongs to.
#[derive(Debug, Clone)]
pub struct Access {
    /// The address of Redis.
    pub endpoint: Endpoint,
    /// The name of the Secret that the address is from, if there is one.
    pub secret: Option<String>,
    /// The name of this proxy.
    pub name: String,
}

impl Access {
    /// Starts the tasks that talk to Redis for a configuration's resource. Must be called inside a Tokio runtime.
    fn producer(&self, config: &Config) -> Result<Producer, QueueError> {
        Producer::start(
            self.endpoint.clone(),
            &config.uid,
            &self.name,
            limits(config),
        )
    }
}

/// The reason that a configuration can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration contradicts itself, or this proxy.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The queue's tasks can't be started.
    #[error("failed to start the queue: {0}")]
    Queue(#[from] QueueError),
}

/// The state that all requests share.
pub struct Proxy {
    access: Access,
    /// The way to the workers of the resource that is served.
    producer: watch::Sender<(Arc<str>, Producer)>,
    /// The metrics of the proxy.
    pub metrics: Metrics,
    /// The bytes of bodies that are being read.
    pub body_budget: BodyBudget,
    /// The bytes of answers that clients have not taken: as many as the queue may hold of requests.
    pub unread: Unread,
    /// Whether this process is to stop.
    draining: AtomicBool,
    /// Whether Redis has answered once.
    reached: AtomicBool,
    served: watch::Sender<Arc<Served>>,
    /// The models served before, which may still have requests under way.
    previous: Mutex<Vec<Weak<Served>>>,
}

impl Proxy {
    /// Makes a proxy that serves the configuration's model, and starts its queue's tasks.
    pub fn new(config: &Config, access: Access) -> Result<Self, ServeError> {
        let served = Served::new(config, access.secret.as_deref())?;
        let producer = access.producer(config)?;
        let metrics = Metrics::default();
        Ok(Self {
            access,
            producer: watch::Sender::new((Arc::clone(&served.uid), producer)),
            body_budget: BodyBudget::default(),
            unread: Unread::new(config.queue.max_bytes.0, metrics.unread.clone()),
            metrics,
            draining: AtomicBool::default(),
            reached: AtomicBool::default(),
            served: watch::Sender::new(Arc::new(served)),
            previous: Mutex::default(),
        })
    }

    /// The model and the limits that a request that comes now is held against.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.borrow())
    }

    /// The way to the workers of the resource that is served.
    pub fn producer(&self) -> Producer {
        self.producer.borrow().1.clone()
    }

    /// The way to the workers of the resource that a request began with. Fails once the resource is another one.
    pub fn producer_of(&self, served: &Served) -> Result<Producer, Error> {
        let producer = self.producer.borrow();
        if producer.0 == served.uid {
            Ok(producer.1.clone())
        } else {
            Err(Error::Replaced)
        }
    }

    /// Serves what another configuration says. Requests under way stay with what they began with, unless the resource was
    /// deleted and made anew: nobody will answer those of the one before, so they end.
    pub fn reload(&self, config: &Config) -> Result<(), ServeError> {
        let next = Arc::new(Served::new(config, self.access.secret.as_deref())?);
        self.unread.set_limit(config.queue.max_bytes.0);
        let before = self.producer.borrow().clone();
        if before.0 == next.uid {
            before.1.set_limits(limits(config));
        } else {
            let producer = self.access.producer(config)?;
            self.producer
                .send_replace((Arc::clone(&next.uid), producer));
            tracing::warn!(uid = config.uid, "the model was deleted and made anew");
            tokio::spawn(async move { before.1.shutdown(Duration::ZERO).await });
        }
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
        if self.producer().ping().await {
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

//! Leader election: of several operators, the one that holds the Lease leads.

use std::{thread, time::Duration};

use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{Api, Config, client::ClientBuilder};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::{
    runtime::Builder,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::timeout::TimeoutLayer;

use crate::calls::Calls;

/// The Lease that operators of one namespace contend for.
pub const LEASE: &str = "carpool-operator";
/// The time after which another takes over from a leader that was not heard of.
const LENGTH: Duration = Duration::from_secs(15);
/// The time before that at which the leader renews: soon enough to try again when it fails.
const GRACE: Duration = Duration::from_secs(10);
/// A call about the Lease that takes longer is tried anew, for the Lease runs out meanwhile.
const CALL: Duration = Duration::from_secs(3);
/// The time between two looks of a leader at whether it still is one.
const LOOK: Duration = Duration::from_secs(5);
/// The same after a look that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The time that giving the Lease back may take.
const RELEASE: Duration = Duration::from_secs(10);

/// The reason why a process does not lead.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no way to an API server.
    #[error("failed to make a Kubernetes client: {0}")]
    Client(#[from] kube::Error),
    /// The Lease can't be had.
    #[error("failed to contend for the Lease {LEASE}: {0}")]
    Contend(#[from] LeaseManagerError),
    /// The thread that renews it can't be started.
    #[error("failed to start the thread that renews the Lease {LEASE}: {0}")]
    Thread(#[from] std::io::Error),
    /// The Lease is or may be another operator's now, and two must not write.
    #[error("lost the Lease {LEASE}: another operator leads, or may")]
    Lost,
}

/// Participation of this process in the election. It has a thread and a connection of its own, so that a Lease is renewed
/// however busy the rest of the process is.
pub struct Leadership {
    leading: watch::Receiver<bool>,
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
}

impl Leadership {
    /// Begins to contend, as `identity`, for the Lease of a namespace.
    pub async fn contend(
        namespace: &str,
        identity: &str,
        calls: &Calls,
    ) -> Result<Self, LeaseError> {
        let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
        config.connect_timeout = Some(CALL);
        // Tried again here, with what is known by then; the client's own tries go on for longer than the Lease.
        config.default_retry = false;
        let (tell, leading) = watch::channel(false);
        let stop = CancellationToken::new();
        let (begin, first) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let contender = (namespace.to_owned(), identity.to_owned(), calls.clone());
        let stopped = stop.clone();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let (namespace, identity, calls) = &contender;
                    match Contender::new(config, namespace, identity, calls).await {
                        Ok(contender) => {
                            // Whoever waits for either has gone only where the process ends.
                            let _ = begin.send(Ok(()));
                            contender.run(&tell, &stopped).await;
                        }
                        Err(error) => drop(begin.send(Err(error))),
                    }
                });
                let _ = end.send(());
            })?;
        first.await.map_err(|_| LeaseError::Lost)??;
        Ok(Self {
            leading,
            stop,
            ended,
        })
    }

    /// Resolves once this process leads, or can't any more because its part in the contention has ended.
    pub async fn gained(&mut self) -> Result<(), LeaseError> {
        let gained = self.leading.wait_for(|leads| *leads).await;
        gained.map(drop).map_err(|_| LeaseError::Lost)
    }

    /// Resolves once another leads, or may.
    pub async fn lost(&mut self) {
        // The wait fails where the thread has ended, and nobody renews the Lease any more.
        let _ = self.leading.wait_for(|leads| !leads).await;
    }

    /// Gives the Lease back, so that another operator need not wait for it to run out.
    pub async fn release(self) {
        self.stop.cancel();
        if !matches!(timeout(RELEASE, self.ended).await, Ok(Ok(()))) {
            tracing::warn!("failed to give the Lease {LEASE} back; it runs out by itself");
        }
    }
}

/// The part of the contention that runs on its own thread.
struct Contender {
    api: Api<Lease>,
    identity: String,
    leading: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Contender {
    async fn new(
        config: Config,
        namespace: &str,
        identity: &str,
        calls: &Calls,
    ) -> Result<Self, LeaseError> {
        // A limit on what a connection reads would end each while it is idle.
        let client = ClientBuilder::try_from(config)?
            .with_layer(&TimeoutLayer::new(CALL))
            .with_layer(calls)
            .build();
        let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_duration(LENGTH.as_secs())
            .with_grace(GRACE.as_secs())
            .build()
            .await?;
        let (leading, task) = manager.watch().await;
        Ok(Self {
            api: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            leading,
            task,
        })
    }

    /// Contends, leads and, once that ends or `stop` says so, gives the Lease back.
    async fn run(mut self, tell: &watch::Sender<bool>, stop: &CancellationToken) {
        let lead = async {
            if self.leading.wait_for(|leads| *leads).await.is_ok() {
                tell.send_replace(true);
                self.lost().await;
                tell.send_replace(false);
            }
        };
        tokio::select! {
            () = lead => {}
            () = stop.cancelled() => {}
        }
        let Self { leading, task, .. } = self;
        drop(leading);
        if !matches!(timeout(RELEASE, task).await, Ok(Ok(Ok(_)))) {
            tracing::warn!("the Lease {LEASE} was not given back");
        }
    }

    /// Resolves once another leads, or may: the task that renews the Lease may hang or fail without a word.
    async fn lost(&mut self) {
        let Self {
            api,
            identity,
            leading,
            ..
        } = self;
        let mut until = Instant::now() + LENGTH;
        let mut wait = LOOK;
        loop {
            let look = async {
                sleep(wait).await;
                api.get(LEASE).await
            };
            tokio::select! {
                _ = leading.wait_for(|leads| !leads) => return,
                () = sleep_until(until) => return,
                lease = look => match lease {
                    Ok(lease) => match left(&lease, identity, Timestamp::now()) {
                        Some(left) => (until, wait) = (Instant::now() + left, LOOK),
                        None => return,
                    },
                    Err(error) => {
                        wait = LOOK_AGAIN;
                        tracing::warn!(%error, "failed to look at the Lease {LEASE}");
                    }
                },
            }
        }
    }
}

/// The time for which a Lease is still `identity`'s; `None` once it has run out or is another's.
fn left(lease: &Lease, identity: &str, now: Timestamp) -> Option<Duration> {
    let spec = lease.spec.as_ref()?;
    if spec.holder_identity.as_deref() != Some(identity) {
        return None;
    }
    let renewed = spec.renew_time.as_ref()?.0;
    // A clock that was set back leaves no more than the whole length.
    let since = Duration::try_from(now.duration_since(renewed)).unwrap_or_default();
    LENGTH.checked_sub(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_until_it_runs_out_or_another_has_it() {
        let lease = |holder: &str| -> Lease {
            let spec = serde_json::json!({"holderIdentity": holder, "renewTime": "2026-01-01T00:00:10.000000Z"});
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let at =
            |second: &str| -> Timestamp { format!("2026-01-01T00:00:{second}Z").parse().unwrap() };
        let seconds = |lease: &Lease, now| left(lease, "me", now).map(|left| left.as_secs());
        let mine = lease("me");
        assert_eq!(seconds(&mine, at("12")), Some(13));
        assert_eq!(seconds(&mine, at("05")), Some(15));
        assert_eq!(seconds(&mine, at("26")), None);
        assert_eq!(seconds(&lease("another"), at("12")), None);
        assert_eq!(seconds(&Lease::default(), at("12")), None);
    }
}

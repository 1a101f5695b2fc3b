//! One look at all processes of a model, over their admin ports.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::{metrics::Metrics, supervised::Supervised};
use crate::backlog::{Asker, Backlog};

/// What the processes say of themselves at one moment.
pub struct Look {
    /// The queue; `None` when the sidecar would not say.
    pub backlog: Option<Backlog>,
    /// The sidecar's metrics, if it runs.
    pub proxies: Vec<Metrics>,
    /// Those of each worker that runs.
    pub workers: Vec<Metrics>,
}

/// Asks every admin port, all at once, and notes who is ready.
pub async fn look(
    asker: &Asker,
    proxy: &mut Supervised,
    workers: &mut BTreeMap<u32, Supervised>,
) -> Look {
    let workers = join_all(workers.values_mut().map(|worker| ask(asker, worker)));
    let of_proxy = async {
        let metrics = ask(asker, proxy).await;
        // One that is not ready has no answer, and would only complain.
        let address = proxy.running().filter(|proxy| proxy.ready)?.admin;
        let backlog = asker.backlog(address.ip(), address.port()).await.ok();
        Some((metrics, backlog))
    };
    let (of_proxy, workers) = tokio::join!(of_proxy, workers);
    let (metrics, backlog) = of_proxy.unwrap_or_default();
    Look {
        backlog,
        proxies: metrics.into_iter().collect(),
        workers: workers.into_iter().flatten().collect(),
    }
}

/// Asks one process whether it is ready, and for its metrics.
async fn ask(asker: &Asker, process: &mut Supervised) -> Option<Metrics> {
    let running = process.running_mut()?;
    let (ip, port) = (running.admin.ip(), running.admin.port());
    let (ready, metrics) = tokio::join!(asker.ready(ip, port), asker.metrics(ip, port));
    running.ready = ready;
    Some((running.name.clone(), metrics.ok()?))
}

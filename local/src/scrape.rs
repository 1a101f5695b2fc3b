//! One look at all processes of a model, over their admin ports.

use std::collections::BTreeMap;

use carpool_crds::{AdminAddress, Loaded};
use carpool_scaling::backlog::{AdminClient, Backlog};
use futures::future::join_all;

use super::{metrics::Exposition, supervised::Supervised};

/// What the processes say of themselves at one moment.
pub struct Scrape {
    /// The queue; `None` when the sidecar would not say.
    pub backlog: Option<Backlog>,
    /// The sidecar's metrics, if it runs.
    pub proxies: Vec<Exposition>,
    /// Those of each worker that runs.
    pub workers: Vec<Exposition>,
    /// What workers that are ready say of their model.
    pub loaded: Vec<Loaded>,
}

/// Asks every admin port, all at once, and notes who is ready.
pub async fn scrape(
    client: &AdminClient,
    proxy: &mut Supervised,
    workers: &mut BTreeMap<u32, Supervised>,
) -> Scrape {
    let workers = join_all(workers.values_mut().map(|worker| async {
        let metrics = metrics(client, worker).await;
        (metrics, loaded(client, worker).await)
    }));
    let of_proxy = async {
        let metrics = metrics(client, proxy).await;
        // One that is not ready has no answer, and would only complain.
        let proxy = proxy.running().filter(|proxy| proxy.ready())?;
        let address = proxy.admin?;
        let client = client.of(&proxy.name);
        let backlog = client.backlog(address.ip(), address.port()).await.ok();
        Some((metrics, backlog))
    };
    let (of_proxy, workers) = tokio::join!(of_proxy, workers);
    let (metrics, backlog) = of_proxy.unwrap_or_default();
    let (workers, loaded): (Vec<_>, Vec<_>) = workers.into_iter().unzip();
    Scrape {
        backlog,
        proxies: metrics.into_iter().collect(),
        workers: workers.into_iter().flatten().collect(),
        loaded: loaded.into_iter().flatten().collect(),
    }
}

/// What a worker that is ready says of its model.
async fn loaded(client: &AdminClient, worker: &Supervised) -> Option<Loaded> {
    let worker = worker.running().filter(|worker| worker.ready())?;
    let address = worker.admin?;
    let client = client.of(&worker.name);
    client.loaded(address.ip(), address.port()).await.ok()
}

/// Asks one process whether it is ready, and for its metrics.
async fn metrics(client: &AdminClient, process: &mut Supervised) -> Option<Exposition> {
    let running = process.running_mut()?;
    if running.admin.is_none() {
        running.admin = AdminAddress::read(&running.address_file)
            .filter(|told| told.name == running.name)
            .map(|told| told.address);
    }
    let address = running.admin?;
    let client = client.of(&running.name);
    let (ip, port) = (address.ip(), address.port());
    let (ready, metrics) = tokio::join!(client.ready(ip, port), client.metrics(ip, port));
    running.set_ready(ready);
    Some((running.name.clone(), metrics.ok()?))
}

//! A scrape of the admin ports of all processes of a model.

use std::collections::BTreeMap;

use carpool_crds::{AdminAddress, Loaded};
use carpool_scaling::backlog::{AdminClient, Backlog};
use futures::future::join_all;

use super::{metrics::Exposition, supervised::Supervised};

/// The answers of a model's processes at one moment.
pub struct Scrape {
    /// The queue; `None` when the sidecar does not tell.
    pub backlog: Option<Backlog>,
    /// The metrics of the sidecar, if it runs.
    pub proxies: Vec<Exposition>,
    /// The metrics of each worker that runs.
    pub workers: Vec<Exposition>,
    /// The reports of ready workers on how they serve the model.
    pub loaded: Vec<Loaded>,
}

/// Asks every admin port, all at once, and notes which processes are ready.
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
        // A sidecar that is not ready would answer with an error.
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

/// Asks a worker that is ready how it serves its model.
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

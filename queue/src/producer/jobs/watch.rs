//! The watch for jobs that get an outcome, while somebody waits for one.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, broadcast},
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::Shared;
use crate::{
    Endpoint, QueueError,
    backoff::Backoff,
    call::Call,
    id::EntryId,
    manager::ConnectionManager,
    wire::{self, Entry},
};

/// Milliseconds that one read waits in Redis, and the longer time that this side waits for it: over a half-open
/// connection no answer ever comes.
const BLOCK_MS: u64 = 2_000;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries per read.
const COUNT: usize = 256;

/// The news that one may be behind before it looks for itself.
const BEHIND: usize = 1024;

/// News of jobs: one has an outcome, or any may have.
#[derive(Debug, Clone, Copy)]
enum News {
    Of(Uuid),
    OfAny,
}

/// The task that reads the stream of finished jobs. It runs while somebody follows.
pub(super) struct Watch {
    connections: Arc<ConnectionManager>,
    news: Mutex<Option<broadcast::Sender<News>>>,
}

/// One's place among those who follow.
pub(super) struct Following(broadcast::Receiver<News>);

impl Watch {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            connections: Arc::new(ConnectionManager::new(endpoint, RESPONSE_TIMEOUT)),
            news: Mutex::default(),
        }
    }

    /// Follows jobs from now on.
    pub(super) async fn follow(&self, shared: &Shared) -> Result<Following, QueueError> {
        let mut news = self.news.lock().await;
        if let Some(news) = &*news
            && let Some(following) = subscribe(news)
        {
            return Ok(following);
        }
        let done = shared.keys.done();
        let from = last(&self.connections, &done).await?;
        let (sender, receiver) = broadcast::channel(BEHIND);
        let reading = read_all(self.connections.clone(), done, from, sender.clone());
        let stop = shared.stop.clone();
        // A read changes nothing, so it may be cut off.
        tokio::spawn(async move { stop.run_until_cancelled(reading).await });
        *news = Some(sender);
        Ok(Following(receiver))
    }
}

/// Joins those who follow, unless the task is about to end for want of them.
fn subscribe(news: &broadcast::Sender<News>) -> Option<Following> {
    (news.receiver_count() > 0).then(|| Following(news.subscribe()))
}

impl Following {
    /// Waits until a job may have an outcome. Returns false where `until` comes first.
    pub(super) async fn of(&mut self, uuid: Uuid, until: Instant) -> bool {
        loop {
            match timeout_at(until, self.0.recv()).await {
                Err(_) => return false,
                Ok(Ok(News::Of(other))) if other != uuid => {}
                // One who is behind, or has lost the task, looks again.
                Ok(_) => return true,
            }
        }
    }
}

/// Returns the id of the last entry.
async fn last(connections: &ConnectionManager, done: &str) -> Result<EntryId, QueueError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(done).arg("+").arg("-").arg("COUNT").arg(1);
    let reply = connections.last(&Call::of(command), "XREVRANGE").await?;
    let last = wire::entries(reply).pop();
    Ok(last.map_or_else(EntryId::default, |entry| entry.id))
}

/// Reads until nobody follows.
async fn read_all(
    connections: Arc<ConnectionManager>,
    done: String,
    mut from: EntryId,
    news: broadcast::Sender<News>,
) {
    let mut backoff = Backoff::new();
    while news.receiver_count() > 0 {
        let mut command = redis::cmd("XREAD");
        command
            .arg("COUNT")
            .arg(COUNT)
            .arg("BLOCK")
            .arg(BLOCK_MS)
            .arg("STREAMS")
            .arg(&done)
            .arg(from.to_string());
        match connections.last(&Call::of(command), "XREAD").await {
            Ok(reply) => {
                backoff.reset();
                for entry in wire::read_entries(reply) {
                    from = entry.id;
                    // Nobody may follow any more.
                    let _ = news.send(job(&entry).map_or(News::OfAny, News::Of));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "failed to read which jobs are done");
                tokio::time::sleep(backoff.next()).await;
                // Redis may have lost the stream, and begun with smaller ids.
                from = last(&connections, &done).await.unwrap_or(from);
                let _ = news.send(News::OfAny);
            }
        }
    }
}

fn job(entry: &Entry) -> Option<Uuid> {
    let (_, uuid) = entry.fields.first()?;
    Uuid::try_parse_ascii(uuid).ok()
}

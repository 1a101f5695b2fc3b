//! Runs a reconcile for every resource that something has happened to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use kube::{
    ResourceExt,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{self, Action},
        predicates,
    },
};

use crate::{
    cluster::{Watches, merge},
    index::{ModelRef, Stored},
    memory::lock,
    metrics::Outcome,
    reconcile::{Context, ReconcileError, reconcile},
};

/// The number of reconciles that may run at once. One resource never has two.
const CONCURRENCY: u16 = 16;
/// The time within which changes of one resource are reconciled together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The wait after a first failure, which doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_mins(1);

/// Runs reconciles until `stop` resolves and those that were begun are finished.
pub async fn run(
    context: Arc<Context>,
    watches: Watches,
    asked: impl Stream<Item = ModelRef> + Send + 'static,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    // A change of the status asks for none: only reconciles write it.
    let models = watches
        .models
        .predicate_filter(predicates::generation, PredicateConfig::default());
    Controller::for_stream(models, context.cluster.models.clone())
        .reconcile_on(merge(watches.children, asked))
        .with_config(controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .graceful_shutdown_on(stop)
        .run(measured, retry, context)
        .for_each(|result| async move {
            // Errors of reconciles are told where they are met; this leaves those of the watches.
            if let Err(error @ controller::Error::QueueError(_)) = result {
                tracing::warn!(%error, "the watch of BatchedModels was interrupted and is taken up again");
            }
        })
        .await;
}

async fn measured(stored: Arc<Stored>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let begin = Instant::now();
    // The first events come before the watches have seen everything, and what is not seen would be taken for missing.
    context.cluster.ready().await;
    let result = Box::pin(reconcile(stored, Arc::clone(&context))).await;
    let outcome = Outcome {
        result: result
            .as_ref()
            .map_or_else(ReconcileError::category, |_| "ok"),
    };
    context.metrics.reconciles.get_or_create(&outcome).inc();
    context
        .metrics
        .reconcile_duration
        .observe(begin.elapsed().as_secs_f64());
    result
}

/// Decides when a reconcile that failed is tried again. Each resource has a back-off of its own.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn retry(stored: Arc<Stored>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let remembered = context.memory.of(&*stored);
    let failures = {
        let mut remembered = lock(&remembered);
        remembered.failures = remembered.failures.saturating_add(1);
        remembered.failures
    };
    let wait = back_off(failures);
    tracing::warn!(%error, name = stored.name_any(), namespace = stored.namespace(), failures, ?wait, "failed to reconcile");
    Action::requeue(wait)
}

fn back_off(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_RETRY.saturating_mul(doubled).min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute() {
        let waits: Vec<u64> = [1, 2, 3, 7, 100]
            .map(|failures| back_off(failures).as_secs())
            .into();
        assert_eq!(waits, [1, 2, 4, 60, 60]);
    }
}

//! End to end on a real Kubernetes: the one that `kubectl` speaks to.
//!
//! The operator is installed once, with Helm, for all tests. Each test has its own namespace. Images must be on
//! the nodes and models in the cache: `make test` sees to both.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this is a test, outside `cfg(test)`"
)]

mod cluster;
mod load;
mod model;
mod operator;

mod cases {
    pub mod batching;
    pub mod kills;
    pub mod manifests;
    pub mod revisions;
    pub mod scaling;
    pub mod serving;
}

use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    // One machine carries the cluster, every model and the load; two tests at once would measure each other.
    arguments.test_threads = Some(1);
    let trials: Vec<Trial> = [
        (
            "manifests::bad_ones_are_refused_by_name",
            cases::manifests::bad_ones as fn(),
        ),
        (
            "manifests::an_object_of_the_users_is_not_touched",
            cases::manifests::name_conflict,
        ),
        (
            "serving::held_out_sentences_over_the_service_and_a_sidecar",
            cases::serving::sentiment,
        ),
        (
            "batching::rows_that_mix_run_alone",
            cases::batching::rows_that_mix_run_alone,
        ),
        (
            "scaling::zero_to_many_and_back",
            cases::scaling::zero_to_many_and_back,
        ),
        ("kills::a_workers_process", cases::kills::process),
        ("kills::a_workers_pod", cases::kills::pod),
        ("kills::the_operator", cases::kills::operator),
        (
            "revisions::a_changed_model_where_one_worker_fits",
            cases::revisions::one_slot,
        ),
    ]
    .into_iter()
    .map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    })
    .collect();
    if arguments.list {
        libtest_mimic::run(&arguments, trials).exit();
    }
    let operator = operator::Operator::install().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(operator);
    conclusion.exit();
}

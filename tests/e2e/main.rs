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
mod recorder;
mod slots;
mod verdicts;

mod cases {
    pub mod batching;
    pub mod drift;
    pub mod health;
    pub mod kills;
    pub mod leaders;
    pub mod manifests;
    pub mod nodes;
    pub mod policies;
    pub mod recreated;
    pub mod redis;
    pub mod revisions;
    pub mod rollouts;
    pub mod scaling;
    pub mod serving;
    pub mod upgrade;
}

use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    // Most of a test is waiting for pods, cooldowns and deadlines, so two share the machine. More of them would keep each
    // other's workers from the processor for longer than requests wait.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let (trials, alone) = (together(), one_by_one());
    if arguments.list {
        libtest_mimic::run(&arguments, trials).exit_if_failed();
        libtest_mimic::run(&arguments, alone).exit();
    }
    let operator = operator::Operator::install().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    let together = libtest_mimic::run(&arguments, trials);
    arguments.test_threads = Some(1);
    let one_by_one = libtest_mimic::run(&arguments, alone);
    drop(operator);
    together.exit_if_failed();
    one_by_one.exit();
}

fn trial((name, test): (&str, fn())) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Tests that share the machine.
fn together() -> Vec<Trial> {
    // The longest come first, so that both end at about the same time.
    [
        (
            "serving::held_out_sentences_over_the_service_and_a_sidecar",
            cases::serving::sentiment as fn(),
        ),
        ("redis::a_queue_moves_and_comes_back", cases::redis::moves),
        (
            "recreated::an_app_that_is_older_than_its_model",
            cases::recreated::recreated,
        ),
        ("redis::a_deleted_secret_heals", cases::redis::lost_secret),
        // The second node of this test takes no pods of others, but for a moment at its start.
        ("nodes::one_is_drained_under_load", cases::nodes::drained),
        ("kills::the_operator", cases::kills::operator),
        ("kills::a_workers_process", cases::kills::process),
        (
            "revisions::a_changed_model_where_one_worker_fits",
            cases::revisions::one_slot,
        ),
        (
            "health::tools_judge_every_state_of_a_rollout",
            cases::health::every_state,
        ),
        (
            "rollouts::a_broken_model_where_one_worker_fits",
            cases::rollouts::broken_on_one_slot,
        ),
        (
            "rollouts::a_broken_model_with_room",
            cases::rollouts::broken_with_room,
        ),
        (
            "rollouts::three_workers_with_room",
            cases::rollouts::with_room,
        ),
        (
            "rollouts::three_workers_with_room_for_one_more",
            cases::rollouts::room_for_one_more,
        ),
        (
            "rollouts::one_worker_and_a_node_that_comes_late",
            cases::rollouts::late_node,
        ),
        (
            "scaling::zero_to_many_and_back",
            cases::scaling::zero_to_many_and_back,
        ),
        ("kills::a_workers_pod", cases::kills::pod),
        (
            "manifests::an_object_of_the_users_is_not_touched",
            cases::manifests::name_conflict,
        ),
        (
            "policies::a_cluster_that_refuses_them_gets_the_rest",
            cases::policies::refused,
        ),
        (
            "policies::other_namespaces_are_named",
            cases::policies::enforced,
        ),
        (
            "drift::what_others_change_is_repaired",
            cases::drift::repaired,
        ),
        (
            "drift::a_new_leader_applies_nothing_that_is_right",
            cases::drift::nothing_to_do,
        ),
        (
            "batching::rows_that_mix_run_alone",
            cases::batching::rows_that_mix_run_alone,
        ),
        (
            "manifests::bad_ones_are_refused_by_name",
            cases::manifests::bad_ones,
        ),
    ]
    .map(trial)
    .into()
}

/// Tests that change the operator for everybody, so they come one at a time once the others are over.
fn one_by_one() -> Vec<Trial> {
    [
        (
            "leaders::one_of_two_freezes_in_a_rollout",
            cases::leaders::one_freezes as fn(),
        ),
        (
            "upgrade::five_models_take_turns_and_lose_nothing",
            cases::upgrade::five_models,
        ),
    ]
    .map(trial)
    .into()
}

//! The queue between proxies and workers, in Redis. Nothing else of Carpool knows Redis.
//!
//! A proxy's [`Producer`] puts requests into a stream per revision and reads answers from a stream of its own. A
//! worker's [`Consumer`] takes requests in batches and answers them. Requests run at least once and are answered
//! exactly once, through the death of any part.
//!
//! # The states of a request in Redis
//!
//! | state | where | becomes |
//! |---|---|---|
//! | new | in `jobs` and `index` of its lane, pending for nobody | pending: XREADGROUP |
//! | pending | in the pending list of a worker, which renews its lease | answered: `answer.lua`; released: `release.lua`; set aside, when its worker is silent or begins anew: `takeover.lua`, `connect.lua` |
//! | released | pending for `~released` | pending: `takeover.lua` |
//! | newer | pending for `~format-N`, whose format its worker did not know | pending, of a worker that does: `takeover.lua` |
//! | set aside | pending for `~suspects` | quarantined, its deliveries counted: `quarantine.lua` |
//! | quarantined | pending for a worker, which runs it with none but its group | as pending; dead, after `max_deliveries`: `answer.lua` |
//! | answered | in `replies` of its proxy, gone from `jobs` and `index` | read: its proxy deletes it (`forget.lua` where it is large) |
//! | dead | answered with a failure, and told of in `dead` | |
//!
//! A request in any of the first six states is dropped when nobody waits for it any more: `drop.lua`, `evict.lua`.
//!
//! A request that nobody waits for has a *job*, the hash `job:<uuid>`. Its entry goes the same way in a lane of the class
//! [`Class::Background`]; answered, its outcome is in the job, until that expires.
//!
//! # The invariants
//!
//! | invariant | kept by | tried by the test |
//! |---|---|---|
//! | an entry's id ends with its uuid's mark, so that who holds an id holds that request or none | `enqueue.lua` | `everything_open_is_answered_after_flushall` |
//! | what is in `jobs` is in `index`, and the other way round | every script that adds or deletes | `what_has_expired_is_found_behind_any_number_that_has_not` |
//! | the length of a lane, but of the common ones, is that of its stream | `enqueue.lua`, every script that deletes | `a_low_priority_is_slowed_and_never_starved` |
//! | the bytes of a revision are those of its requests' bodies, and of `~replies` those of the large answers unread | every script that adds or deletes | `they_come_whole_and_leave_nothing` |
//! | an answer is in `replies` before its request is gone | `answer.lua` | `everything_open_is_answered_after_a_restart_that_kept_all` |
//! | the first success wins, whoever holds the request; a failure counts only from who does | `answer.lua` | `a_worker_that_lost_a_request_may_still_succeed_but_not_fail` |
//! | nothing is added for a proxy that is gone | `answer.lua`, `heartbeat.lua` | `a_proxy_that_is_gone_gets_no_more_than_its_share_and_then_nothing` |
//! | renewing takes nothing back that another holds | `renew.lua` | `renewal_never_steals_back` |
//! | a silence of Redis itself is no worker's death | `takeover.lua`, `heartbeat.lua` | `a_redis_that_stood_still_is_no_workers_death` |
//! | nothing runs beside a quarantined group, and only what kills a worker by itself is given up | `quarantine.lua` | `poison_is_given_up_and_its_neighbours_are_answered` |
//! | an outcome reaches whoever is still in the proxy's map of in-flight requests, and takes it out | the map | `two_workers_answer_one_request_and_one_answer_arrives` |

mod backoff;
mod call;
mod commands;
mod connection;
mod consumer;
mod endpoint;
mod error;
mod events;
#[doc(hidden)]
pub mod hostile;
mod id;
mod keys;
mod lane;
mod manager;
mod outcome;
mod producer;
mod scripts;
mod types;
mod wire;

pub use consumer::{Abandoned, Consumer, ConsumerLimits, ConsumerOptions, Renewer};
pub use endpoint::Endpoint;
pub use error::{QueueError, SubmitError};
pub use id::JobId;
pub use lane::{Caller, Class};
pub use producer::{Producer, Ticket};
pub use types::{
    Backlog, ConsumerBacklog, Failure, FailureKind, Job, JobName, JobState, JobView, Limits,
    Outcome, RevisionBacklog, Submit, Submitted,
};

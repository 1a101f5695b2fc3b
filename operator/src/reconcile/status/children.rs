//! Conditions on what could be made of a resource's children.

use carpool_crds::condition;

use super::findings::Finding;
use crate::reconcile::observe::Observed;

/// The finding of a resource whose pods wait for its turn of an upgrade.
pub fn queued(observed: &Observed) -> Option<Finding> {
    let before = observed.made.waits.as_ref()?;
    let message = format!(
        "its pods go on as they are until they are replaced by this operator's version of them: {before}"
    );
    Some(Finding::new(
        condition::PROGRESSING,
        true,
        "UpdateQueued",
        message,
    ))
}

/// Whether the network policies that the spec asks for are in force.
pub fn network_policies(observed: &Observed) -> Option<Finding> {
    let type_ = condition::NETWORK_POLICIES_READY;
    Some(match observed.made.policies.as_ref()? {
        Ok(()) => Finding::new(
            type_,
            true,
            "Applied",
            "the cluster has the network policies",
        ),
        Err(why) => {
            let message = format!(
                "everything else is made, but nothing limits who reaches the pods: {why}; allow it, and it is tried again within minutes"
            );
            Finding::new(type_, false, "Refused", message)
        }
    })
}

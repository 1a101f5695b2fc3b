//! The bound that CPUs set on workers: beyond one per CPU they take turns, and batches get smaller.

use std::num::NonZeroUsize;

use carpool_crds::Scaling;

use super::reporter::Reporter;

/// Returns the number of CPUs that this process may use; the standard library reads the limits of its control group.
pub fn available() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    u32::try_from(cpus).unwrap_or(u32::MAX)
}

/// Lowers a manifest's numbers of workers to the number of CPUs, and reports where that changes them.
pub fn bounded(scaling: &Scaling, cpus: u32, reporter: &Reporter) -> Scaling {
    if scaling.max_replicas > cpus {
        reporter.say(format_args!(
            "at most {cpus} of the {} workers of spec.scaling.maxReplicas: here are {cpus} CPUs, and more workers would \
             answer fewer requests",
            scaling.max_replicas
        ));
    }
    Scaling {
        min_replicas: scaling.min_replicas.min(cpus),
        max_replicas: scaling.max_replicas.min(cpus),
        ..scaling.clone()
    }
}

//! The lanes that requests go into: the common one, as long as their caller has few of them in flight.

use std::{collections::HashMap, sync::Arc};

use crate::{
    Submit,
    lane::{self, Caller, Class},
};

/// The number of windows that a caller has in the common lane while there is nobody else: so a caller by itself does
/// without other lanes, and leaves no long queue to those that come later.
const WINDOWS_ALONE: usize = 16;

/// The callers with requests in flight, and where these are.
#[derive(Default)]
pub(super) struct Callers {
    requests: HashMap<Option<Caller>, Requests>,
    /// Whether other proxies have requests in flight, too.
    crowded: bool,
}

/// The numbers of a caller's requests of the default class.
#[derive(Default)]
struct Requests {
    in_common: usize,
    in_own: usize,
}

impl Callers {
    pub(super) fn set_crowded(&mut self, crowded: bool) {
        self.crowded = crowded;
    }

    /// Counts a request in, and returns the name of the lane that it goes into. A caller with requests in a lane of its
    /// own puts more there, so that they stay in order and the common lane is left to those with few.
    pub(super) fn admit(&mut self, submit: &Submit, window: usize) -> Arc<str> {
        let caller = submit.caller;
        if submit.class != Class::Default {
            return lane::name(&submit.revision, submit.class, caller);
        }
        let crowded = self.crowded || self.requests.keys().any(|other| *other != caller);
        let window = if crowded {
            window
        } else {
            window.saturating_mul(WINDOWS_ALONE)
        };
        let requests = self.requests.entry(caller).or_default();
        if requests.in_own == 0 && requests.in_common < window {
            requests.in_common += 1;
            Arc::clone(&submit.revision)
        } else {
            requests.in_own += 1;
            lane::name(&submit.revision, submit.class, caller)
        }
    }

    /// Counts a request out that was admitted to a lane.
    pub(super) fn leave(&mut self, submit: &Submit, lane: &Arc<str>) {
        if submit.class != Class::Default {
            return;
        }
        if let Some(requests) = self.requests.get_mut(&submit.caller) {
            if *lane == submit.revision {
                requests.in_common -= 1;
            } else {
                requests.in_own -= 1;
            }
            if requests.in_common + requests.in_own == 0 {
                self.requests.remove(&submit.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;

    fn of(caller: &str) -> Submit {
        let mut submit = Submit::new("rev".into(), Bytes::new(), 1, Instant::now());
        submit.caller = Some(Caller::named(caller.as_bytes()));
        submit
    }

    #[test]
    fn a_caller_by_itself_has_the_common_lane_for_long() {
        let mut callers = Callers::default();
        let own = lane::name("rev", Class::Default, of("a").caller);
        for _ in 0..2 * WINDOWS_ALONE {
            assert_eq!(&*callers.admit(&of("a"), 2), "rev");
        }
        assert_eq!(callers.admit(&of("a"), 2), own);
    }

    #[test]
    fn one_of_several_has_a_window_of_it_and_stays_in_its_own_until_that_is_empty() {
        let mut callers = Callers::default();
        let (a, b) = (of("a"), of("b"));
        let common: Arc<str> = "rev".into();
        let own = lane::name("rev", Class::Default, a.caller);
        assert_eq!(callers.admit(&b, 2), common);
        for expected in [&common, &common, &own, &own] {
            assert_eq!(callers.admit(&a, 2), *expected);
        }
        assert_eq!(callers.admit(&b, 2), common, "b has few");
        callers.leave(&a, &common);
        callers.leave(&a, &own);
        assert_eq!(callers.admit(&a, 2), own, "one is still there");
        callers.leave(&a, &own);
        callers.leave(&a, &own);
        assert_eq!(callers.admit(&a, 2), common);
    }

    #[test]
    fn other_classes_never_use_the_common_lane() {
        let mut callers = Callers::default();
        let mut urgent = of("a");
        urgent.class = Class::Priority(1);
        let lane = callers.admit(&urgent, 2);
        assert!(lane.starts_with("rev~1."), "{lane}");
        callers.leave(&urgent, &lane);
    }
}

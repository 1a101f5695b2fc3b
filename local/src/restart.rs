//! The decision whether a process that ended without being told to is started again.

use super::{files::Termination, process::Exit};

/// The most crashes in a row before a process of a kind that has never worked is given up.
const MAX_CRASHES: u32 = 3;
/// The most crashes in a row before a process of a kind that has worked is given up: within about a minute memory may
/// be freed, or a file that is being replaced may come back.
const MAX_CRASHES_ONCE_PROVEN: u32 = 8;

/// An end that nobody asked for.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    /// Crashes in a row, this one included.
    pub consecutive: u32,
    /// Whether a process of this kind has been ready before.
    pub proven: bool,
    /// Whether another process of this kind is ready now.
    pub others_ready: bool,
}

/// Returns why the process ended: `Ok` where it is started again, `Err` where it is given up.
pub fn decide(
    crash: Crash,
    termination: Option<&Termination>,
    exit: &Exit,
) -> Result<String, String> {
    let message = termination.map_or_else(|| exit.to_string(), ToString::to_string);
    let advice = termination.and_then(Termination::advice);
    let gives_up = if crash.proven {
        // The model is not to blame for the queue, which is waited for where the model has worked.
        let of_queue = termination.is_some_and(Termination::is_of_queue);
        !of_queue && !crash.others_ready && crash.consecutive >= MAX_CRASHES_ONCE_PROVEN
    } else {
        advice.is_some() || crash.consecutive >= MAX_CRASHES
    };
    if !gives_up {
        return Ok(message);
    }
    let message = advice.map_or(message.clone(), |advice| format!("{message}; {advice}"));
    Err(match crash.consecutive {
        1 => message,
        consecutive => {
            format!("it ended {consecutive} times in a row, the last time so: {message}")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    fn killed() -> Exit {
        Exit {
            status: Ok(ExitStatus::from_raw(9)),
            last_line: None,
        }
    }

    fn termination(reason: &str) -> Termination {
        let termination = serde_json::json!({"reason": reason, "message": "so it is"});
        serde_json::from_value(termination).unwrap()
    }

    #[test]
    fn a_crash_loop_is_given_up_and_named() {
        for (proven, others_ready, last) in [
            (false, false, Some(3)),
            (true, false, Some(8)),
            (true, true, None),
        ] {
            let given_up = (1..100).find_map(|consecutive| {
                let crash = Crash {
                    consecutive,
                    proven,
                    others_ready,
                };
                decide(crash, None, &killed())
                    .err()
                    .map(|why| (consecutive, why))
            });
            assert_eq!(given_up.as_ref().map(|(consecutive, _)| *consecutive), last);
            if let Some((consecutive, why)) = given_up {
                let expected = format!(
                    "it ended {consecutive} times in a row, the last time so: killed by SIGKILL: probably out of memory"
                );
                assert!(why.starts_with(&expected), "{why}");
            }
        }
    }

    #[test]
    fn what_no_other_try_cures_gets_none_unless_it_has_worked() {
        let crash = |consecutive, proven| Crash {
            consecutive,
            proven,
            others_ready: false,
        };
        let invalid = termination("ModelInvalid");
        assert_eq!(
            decide(crash(1, false), Some(&invalid), &killed()),
            Err("so it is; save the model again, or correct spec.model".to_owned())
        );
        assert_eq!(
            decide(crash(1, true), Some(&invalid), &killed()),
            Ok("so it is".to_owned())
        );
        assert!(decide(crash(8, true), Some(&invalid), &killed()).is_err());
        let queue = termination("RedisUnreachable");
        assert!(decide(crash(3, false), Some(&queue), &killed()).is_err());
        assert!(decide(crash(50, true), Some(&queue), &killed()).is_ok());
    }
}

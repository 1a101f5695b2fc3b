//! Whether a process that ended without being told to is started again.

use super::{files::Termination, process::Ended};

/// So many crashes in a row are no accident where nothing has ever worked.
const CRASHES: u32 = 3;
/// Where it has worked, what is missing may come back within about a minute: memory, or a file that is being replaced.
const CRASHES_OF_PROVEN: u32 = 8;

/// An end that nobody asked for.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    /// Crashes in a row, this one included.
    pub row: u32,
    /// One of its kind has worked before.
    pub proven: bool,
    /// Another one of its kind works now.
    pub others_work: bool,
}

/// Why it ended: `Ok` where it is worth another try, else `Err`.
pub fn verdict(crash: Crash, said: Option<&Termination>, ended: &Ended) -> Result<String, String> {
    let message = said.map_or_else(|| ended.to_string(), ToString::to_string);
    let advice = said.and_then(Termination::advice);
    let in_vain = if crash.proven {
        // The queue's fault is not the model's: it is waited for where the model has worked.
        let of_queue = said.is_some_and(Termination::is_of_queue);
        !of_queue && !crash.others_work && crash.row >= CRASHES_OF_PROVEN
    } else {
        advice.is_some() || crash.row >= CRASHES
    };
    if !in_vain {
        return Ok(message);
    }
    let message = advice.map_or(message.clone(), |advice| format!("{message}; {advice}"));
    Err(match crash.row {
        1 => message,
        row => format!("it ended {row} times in a row, the last time so: {message}"),
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    fn killed() -> Ended {
        Ended {
            status: Ok(ExitStatus::from_raw(9)),
            last_line: None,
        }
    }

    fn said(reason: &str) -> Termination {
        let said = serde_json::json!({"reason": reason, "message": "so it is"});
        serde_json::from_value(said).unwrap()
    }

    #[test]
    fn a_crash_loop_is_given_up_and_named() {
        for (proven, others_work, last) in [
            (false, false, Some(3)),
            (true, false, Some(8)),
            (true, true, None),
        ] {
            let given_up = (1..100).find_map(|row| {
                let crash = Crash {
                    row,
                    proven,
                    others_work,
                };
                verdict(crash, None, &killed()).err().map(|why| (row, why))
            });
            assert_eq!(given_up.as_ref().map(|(row, _)| *row), last);
            if let Some((row, why)) = given_up {
                let expected = format!(
                    "it ended {row} times in a row, the last time so: killed by SIGKILL: probably out of memory"
                );
                assert!(why.starts_with(&expected), "{why}");
            }
        }
    }

    #[test]
    fn what_no_other_try_cures_gets_none_unless_it_has_worked() {
        let crash = |row, proven| Crash {
            row,
            proven,
            others_work: false,
        };
        let invalid = said("ModelInvalid");
        assert_eq!(
            verdict(crash(1, false), Some(&invalid), &killed()),
            Err("so it is; save the model again, or correct spec.model".to_owned())
        );
        assert_eq!(
            verdict(crash(1, true), Some(&invalid), &killed()),
            Ok("so it is".to_owned())
        );
        assert!(verdict(crash(8, true), Some(&invalid), &killed()).is_err());
        let queue = said("RedisUnreachable");
        assert!(verdict(crash(3, false), Some(&queue), &killed()).is_err());
        assert!(verdict(crash(50, true), Some(&queue), &killed()).is_ok());
    }
}

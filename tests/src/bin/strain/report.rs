//! The results of a scenario.

use std::{collections::BTreeMap, fmt, sync::atomic::Ordering, time::Duration};

use serde::Serialize;

use crate::{load::Tally, redis::Usage};

/// One row of the table.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    pub scenario: String,
    pub accepted: u64,
    pub answered: usize,
    /// Requests answered 429: the queue was full.
    pub refused: u64,
    /// Requests answered 503: Redis could not be reached.
    pub unreachable: u64,
    pub lost: u64,
    pub doubled: u64,
    pub failed: u64,
    /// Runs of requests that had run before.
    pub runs_again: u64,
    pub answered_each_second: f64,
    pub redis_cpu_seconds: f64,
    pub redis_cpu_micros_each: f64,
    pub redis_peak_mib: f64,
    pub slowest_command_ms: f64,
    pub slowest_command: String,
    pub p50_micros: u64,
    pub p99_micros: u64,
    pub note: String,
    /// Milliseconds that Redis spent in each command, where it was more than one.
    pub redis_commands_ms: BTreeMap<String, u64>,
}

/// Measurements of one scenario.
pub struct Measured<'a> {
    /// Results of the requests.
    pub tally: &'a Tally,
    /// Requests that the workers ran.
    pub runs: u64,
    /// Time from the first request to the last answer.
    pub took: Duration,
    /// Usage of Redis before the first request.
    pub before: &'a Usage,
    /// Usage of Redis after the last answer.
    pub after: Usage,
}

impl Row {
    /// Makes a row of the table.
    pub fn new(scenario: impl Into<String>, measured: Measured<'_>) -> Self {
        let Measured {
            tally,
            runs,
            took,
            before,
            after,
        } = measured;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (refused, unreachable) = (count(&tally.refused), count(&tally.unreachable));
        let answered = tally.answered();
        let cpu = after.cpu - before.cpu;
        Self {
            scenario: scenario.into(),
            accepted: tally.sent() - refused - unreachable,
            answered,
            refused,
            unreachable,
            lost: count(&tally.lost),
            doubled: count(&tally.doubled),
            failed: count(&tally.failed),
            runs_again: runs.saturating_sub(answered as u64),
            answered_each_second: float(answered as u64) / took.as_secs_f64(),
            redis_cpu_seconds: cpu,
            redis_cpu_micros_each: cpu * 1e6 / float(answered.max(1) as u64),
            redis_peak_mib: mebibytes(after.peak.max(before.peak)),
            slowest_command_ms: float(after.slowest.0) / 1e3,
            slowest_command: after.slowest.1,
            p50_micros: tally.quantile(1, 2),
            p99_micros: tally.quantile(99, 100),
            note: String::new(),
            redis_commands_ms: after
                .commands
                .into_iter()
                .map(|(command, micros)| (command, micros / 1000))
                .filter(|(_, millis)| *millis > 1)
                .collect(),
        }
    }

    pub fn header() -> String {
        format!(
            "{:<22}{:>9}{:>9}{:>8}{:>6}{:>6}{:>8}{:>7}{:>7}{:>9}{:>8}{:>8}{:>9}  {:<18}{:>10}{:>10}  {}",
            "scenario",
            "accepted",
            "answered",
            "429",
            "503",
            "lost",
            "doubled",
            "failed",
            "again",
            "answ/s",
            "cpu s",
            "cpu us",
            "peak MiB",
            "longest, ms",
            "p50 us",
            "p99 us",
            "note",
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slowest = format!("{:.1} {}", self.slowest_command_ms, self.slowest_command);
        write!(
            f,
            "{:<22}{:>9}{:>9}{:>8}{:>6}{:>6}{:>8}{:>7}{:>7}{:>9.0}{:>8.2}{:>8.1}{:>9.1}  {:<18}{:>10}{:>10}  {}",
            self.scenario,
            self.accepted,
            self.answered,
            self.refused,
            self.unreachable,
            self.lost,
            self.doubled,
            self.failed,
            self.runs_again,
            self.answered_each_second,
            self.redis_cpu_seconds,
            self.redis_cpu_micros_each,
            self.redis_peak_mib,
            slowest,
            self.p50_micros,
            self.p99_micros,
            self.note,
        )
    }
}

pub fn mebibytes(bytes: u64) -> f64 {
    float(bytes) / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

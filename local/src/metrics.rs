//! Rates of requests and batches, from the counters that sidecar and workers expose.

use std::{collections::BTreeMap, time::Instant};

/// A process's name and its metrics in Prometheus' text format.
pub type Exposition = (String, String);

/// Returns the sum of all series of one metric in Prometheus' text format.
#[must_use]
pub fn sum(text: &str, metric: &str) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(metric)?;
            rest.starts_with(['{', ' '])
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        })
        .sum()
}

/// The last values of one counter of several processes; it starts at zero whenever its process does.
#[derive(Debug, Default)]
struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Returns by how much the counters of all processes grew since the last call.
    fn increase(&mut self, processes: &[Exposition], metric: &str) -> f64 {
        let mut increase = 0.0;
        for (process, text) in processes {
            let now = sum(text, metric);
            let before = self.0.insert(process.clone(), now).unwrap_or_default();
            increase += if before <= now { now - before } else { now };
        }
        increase
    }
}

/// The load between two scrapes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Requests answered per second, whatever the answer.
    pub requests: f64,
    /// The mean number of rows of a batch; `None` when none ran.
    pub batch: Option<f64>,
}

/// Turns the counters of a model's processes into rates.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<Instant>,
    requests: Counters,
    rows: Counters,
    batches: Counters,
}

impl Meter {
    /// Returns the rates since the last call, from the metrics of sidecars and of workers.
    pub fn rates(&mut self, now: Instant, proxies: &[Exposition], workers: &[Exposition]) -> Rates {
        let requests = self
            .requests
            .increase(proxies, "carpool_proxy_requests_total");
        let rows = self
            .rows
            .increase(workers, "carpool_worker_batch_size_rows_sum");
        let batches = self
            .batches
            .increase(workers, "carpool_worker_batch_size_rows_count");
        let seconds = self
            .last
            .replace(now)
            .map_or(0.0, |last| (now - last).as_secs_f64());
        Rates {
            requests: if seconds > 0.0 {
                requests / seconds
            } else {
                0.0
            },
            batch: (batches > 0.0).then(|| rows / batches),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_series_of_a_metric_are_summed() {
        let text = "# TYPE carpool_proxy_requests counter
carpool_proxy_requests_total{route=\"infer\",code=\"200\"} 5
carpool_proxy_requests_total{route=\"infer\",code=\"429\"} 2
carpool_proxy_requests_total_more 100
carpool_proxy_open_requests 1
# EOF
";
        assert!((sum(text, "carpool_proxy_requests_total") - 7.0).abs() < f64::EPSILON);
        assert!((sum(text, "carpool_proxy_open_requests") - 1.0).abs() < f64::EPSILON);
        assert!(sum(text, "absent").abs() < f64::EPSILON);
    }

    #[test]
    fn rates_survive_a_restarted_worker() {
        let proxy = |requests: u32| {
            [(
                "p".to_owned(),
                format!("carpool_proxy_requests_total {requests}\n"),
            )]
        };
        let worker = |name: &str, rows: u32, batches: u32| {
            let text = format!(
                "carpool_worker_batch_size_rows_sum {rows}.0\ncarpool_worker_batch_size_rows_count {batches}\n"
            );
            (name.to_owned(), text)
        };
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.rates(start, &proxy(10), &[worker("a", 100, 10)]);

        let later = start + Duration::from_secs(2);
        let rates = meter.rates(
            later,
            &proxy(70),
            &[worker("a", 140, 12), worker("b", 20, 4)],
        );
        assert_eq!(
            rates,
            Rates {
                requests: 30.0,
                batch: Some(10.0)
            }
        );

        let later = start + Duration::from_secs(3);
        let rates = meter.rates(later, &proxy(70), &[worker("a", 8, 1), worker("b", 20, 4)]);
        assert_eq!(
            rates,
            Rates {
                requests: 0.0,
                batch: Some(8.0)
            }
        );
    }
}

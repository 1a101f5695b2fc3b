//! A record of a rollout: the workers, the revision that serves, the status and the answers, from one moment to the next.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    cluster::{Namespace, Watch, eventually},
    load::Answer,
    model,
};

/// Watches of a model and its pods.
pub struct Recorder {
    models: Watch,
    pods: Watch,
    begin: Instant,
    /// The time of `begin` by the clock that the load's pod has, too.
    clock: SystemTime,
}

/// The state at one moment.
#[derive(Clone, Default)]
pub struct State {
    /// The time since the record began.
    pub at: Duration,
    pub serving: String,
    pub latest: String,
    /// The workers that are Ready and stay, by revision.
    ready: BTreeMap<String, usize>,
    /// Conditions by their type.
    conditions: BTreeMap<String, Value>,
    /// The generation that was applied last, and the one that the status speaks of.
    pub generations: (u64, u64),
}

impl State {
    /// Ready workers of the revision that serves.
    pub fn serving_ready(&self) -> usize {
        self.ready.get(&self.serving).copied().unwrap_or(0)
    }

    /// Ready workers of all revisions.
    pub fn all_ready(&self) -> usize {
        self.ready.values().sum()
    }

    fn field(&self, condition: &str, field: &str) -> &str {
        let found = self.conditions.get(condition);
        found
            .and_then(|found| found[field].as_str())
            .unwrap_or_default()
    }

    /// Returns a condition's message.
    pub fn message(&self, condition: &str) -> &str {
        self.field(condition, "message")
    }

    /// Returns a condition's reason.
    pub fn reason(&self, condition: &str) -> &str {
        self.field(condition, "reason")
    }

    /// Whether a condition is True and speaks of what was applied last, as `kubectl wait` has it.
    pub fn holds(&self, condition: &str) -> bool {
        self.generations.0 == self.generations.1 && self.field(condition, "status") == "True"
    }

    /// A condition in a cell of a table.
    fn cell(&self, condition: &str) -> String {
        match (self.field(condition, "status"), self.reason(condition)) {
            ("", _) => "-".to_owned(),
            (status, reason) => format!("{status}:{reason}"),
        }
    }

    fn look(&mut self, event: &Value, pods: &mut BTreeMap<String, Option<String>>) {
        let object = &event["object"];
        if object["kind"] == "Pod" {
            let name = model::name(object).to_owned();
            if event["type"] == "DELETED" {
                pods.remove(&name);
            } else {
                pods.insert(name, ready_revision(object));
            }
            self.ready.clear();
            for revision in pods.values().flatten() {
                *self.ready.entry(revision.clone()).or_default() += 1;
            }
            return;
        }
        let text = |path: &str| {
            let value = object.pointer(path).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let number = |path: &str| {
            object
                .pointer(path)
                .and_then(Value::as_u64)
                .unwrap_or_default()
        };
        self.serving = text("/status/serving");
        self.latest = text("/status/latest");
        self.generations = (
            number("/metadata/generation"),
            number("/status/observedGeneration"),
        );
        let conditions = object["status"]["conditions"].as_array();
        self.conditions = conditions
            .into_iter()
            .flatten()
            .map(|found| {
                let name = found["type"].as_str().unwrap_or_default();
                (name.to_owned(), found.clone())
            })
            .collect();
    }
}

/// The revision of a worker that is Ready and stays.
fn ready_revision(pod: &Value) -> Option<String> {
    let revision = pod["metadata"]["labels"]["carpool.dev/revision"].as_str()?;
    (model::is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null())
        .then(|| revision.to_owned())
}

impl Recorder {
    /// Begins a record of the model of a namespace that holds one and its pods.
    pub fn start(namespace: &Namespace) -> Self {
        let (models, pods) = (namespace.watch("bm"), namespace.watch("pods"));
        // Each watch begins with all that there is, one after another.
        let are_there = namespace.list("pods", "").len();
        eventually(Duration::from_secs(30), || {
            match (models.events().len(), pods.events().len()) {
                (1.., seen) if seen >= are_there => Ok(()),
                seen => Err(format!("{seen:?} events of a model and {are_there} pods")),
            }
        });
        Self {
            models,
            pods,
            begin: Instant::now(),
            clock: SystemTime::now(),
        }
    }

    /// The time since the record began.
    pub fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Returns every state so far, one for each event.
    pub fn states(&self) -> Vec<State> {
        let mut events = [self.models.events(), self.pods.events()].concat();
        events.sort_by_key(|(seen, _)| *seen);
        let (mut state, mut pods) = (State::default(), BTreeMap::new());
        let mut states = vec![State::default()];
        for (seen, event) in &events {
            state.look(event, &mut pods);
            // Everything from before the record is its first state.
            state.at = seen.saturating_duration_since(self.begin);
            if state.at.is_zero() {
                states.clear();
            }
            states.push(state.clone());
        }
        states
    }

    /// Prints a table with a line for each second, writes it to the cache as `logs/rollouts/NAME.tsv`, and returns every
    /// state.
    pub fn finish(self, name: &str, answers: &[Answer]) -> Vec<State> {
        let states = self.states();
        let table = self.table(&states, answers);
        println!("{name}:\n{}", aligned(&table));
        let folder = carpool_testkit::cache().join("logs/rollouts");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.tsv")), table).unwrap();
        states
    }

    fn table(&self, states: &[State], answers: &[Answer]) -> String {
        let mut table =
            "s\tserving\tlatest\tready\tof all\tanswers\tslowest ms\tReady\tProgressing\tStalled\n"
                .to_owned();
        let begin = self.clock.duration_since(UNIX_EPOCH).unwrap();
        let mut seconds = BTreeMap::<u64, (usize, f64)>::new();
        for one in answers {
            let second = one.at.saturating_sub(begin).as_secs();
            let (count, slowest) = seconds.entry(second).or_default();
            *count += 1;
            *slowest = slowest.max(one.millis);
        }
        let end = states.last().map_or(0, |state| state.at.as_secs());
        for second in 0..=end {
            // The least of a second shows, so that no gap falls between two lines.
            let within = |state: &&State| state.at.as_secs() == second;
            let earlier = states
                .iter()
                .rev()
                .find(|state| state.at.as_secs() < second);
            let moments = || earlier.into_iter().chain(states.iter().filter(within));
            let Some(last) = moments().last() else {
                continue;
            };
            let lowest = |count: fn(&State) -> usize| moments().map(count).min().unwrap_or(0);
            let (count, slowest) = seconds.get(&second).copied().unwrap_or_default();
            writeln!(
                table,
                "{second}\t{}\t{}\t{}\t{}\t{count}\t{slowest:.0}\t{}\t{}\t{}",
                last.serving,
                last.latest,
                lowest(State::serving_ready),
                lowest(State::all_ready),
                last.cell("Ready"),
                last.cell("Progressing"),
                last.cell("Stalled"),
            )
            .unwrap();
        }
        table
    }
}

/// Returns a table of tabs with its columns under each other.
pub fn aligned(table: &str) -> String {
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let width = cells.map(|cell| cell.len()).max().unwrap_or(0);
            write!(text, "{cell:width$}  ").unwrap();
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

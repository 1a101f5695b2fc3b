//! Upgrades of the chart with models under load.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, Watch, eventually, run},
    load::{Answer, Load, check},
    model::{self, Affine},
    operator,
    recorder::aligned,
};

const MODELS: [&str; 5] = ["ant", "bee", "cat", "dog", "emu"];
const COMPONENTS: [&str; 2] = ["worker", "proxy"];
/// The chart's `upgrade.maxModels` as it comes.
const AT_ONCE: usize = 1;
const TAG: &str = env!("CARGO_PKG_VERSION");

/// The tag of the same images as a newer release has them; `make images` gives it to them.
fn next_tag() -> String {
    format!("{TAG}-next")
}

/// Whether every pod of a Deployment is of its latest template and Ready.
fn is_complete(deployment: &Value) -> bool {
    let number = |path: &str| {
        let value = deployment.pointer(path);
        value.and_then(Value::as_u64).unwrap_or_default()
    };
    let wanted = number("/spec/replicas");
    number("/status/observedGeneration") >= number("/metadata/generation")
        && ["replicas", "updatedReplicas", "readyReplicas"]
            .iter()
            .all(|field| number(&format!("/status/{field}")) == wanted)
}

fn label<'a>(object: &'a Value, label: &str) -> &'a str {
    let value = &object["metadata"]["labels"][format!("app.kubernetes.io/{label}")];
    value.as_str().unwrap_or_default()
}

/// The models' Deployments and pods at one moment.
#[derive(Clone, Default)]
struct State {
    /// The time since the record began.
    at: Duration,
    /// Models of which not every pod is of the latest template and Ready.
    updating: BTreeSet<String>,
    /// Ready pods that stay, by model and component.
    ready: BTreeMap<(String, String), usize>,
}

impl State {
    /// The least number of Ready pods that a model has of a component.
    fn least(&self, component: &str) -> usize {
        let count = |model: &str| {
            let key = (model.to_owned(), component.to_owned());
            self.ready.get(&key).copied().unwrap_or(0)
        };
        MODELS.iter().map(|model| count(model)).min().unwrap_or(0)
    }
}

/// A record of the models while the operator is upgraded.
struct Record {
    deployments: Watch,
    pods: Watch,
    models: Watch,
    begin: Instant,
    clock: SystemTime,
    /// Upgrades and rollbacks: their names, and when each began and ended.
    steps: Vec<(&'static str, Duration, Duration)>,
}

impl Record {
    fn start(namespace: &Namespace) -> Self {
        Self {
            deployments: namespace.watch("deployments"),
            pods: namespace.watch("pods"),
            models: namespace.watch("bm"),
            begin: Instant::now(),
            clock: SystemTime::now(),
            steps: Vec::new(),
        }
    }

    /// Changes the release and waits until every pod of every model has the tag's images and is Ready.
    fn step(
        &mut self,
        name: &'static str,
        namespace: &Namespace,
        tag: &str,
        change: impl FnOnce(),
    ) {
        let begin = self.begin.elapsed();
        change();
        println!(
            "{name}: the operator is Ready after {:?}",
            self.begin.elapsed().saturating_sub(begin)
        );
        eventually(Duration::from_mins(5), || {
            let mut deployments = Vec::new();
            for component in COMPONENTS {
                let selector = format!("app.kubernetes.io/component={component}");
                deployments.extend(namespace.list("deployments", &selector));
            }
            let is_done = |deployment: &&Value| {
                let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
                is_complete(deployment)
                    && image
                        .as_str()
                        .is_some_and(|image| image.ends_with(&format!(":{tag}")))
            };
            match deployments.iter().filter(is_done).count() {
                done if done == MODELS.len() * COMPONENTS.len() => Ok(()),
                done => Err(format!("{done} of {} Deployments", deployments.len())),
            }
        });
        let end = self.begin.elapsed();
        println!(
            "{name}: all models are updated after {:?}",
            end.saturating_sub(begin)
        );
        self.steps.push((name, begin, end));
    }

    fn states(&self) -> Vec<State> {
        let mut events = [self.deployments.events(), self.pods.events()].concat();
        events.sort_by_key(|(seen, _)| *seen);
        let (mut deployments, mut pods) = (BTreeMap::new(), BTreeMap::new());
        let mut states = Vec::new();
        for (seen, event) in &events {
            let object = &event["object"];
            let key = model::name(object).to_owned();
            let model = label(object, "instance").to_owned();
            if !MODELS.contains(&&*model) {
                continue;
            }
            let is_gone = event["type"] == "DELETED";
            if object["kind"] == "Pod" {
                let stays = object["metadata"]["deletionTimestamp"].is_null() && !is_gone;
                let is_ready = stays && model::is_ready(object);
                let component = label(object, "component").to_owned();
                pods.insert(key, is_ready.then_some((model, component)));
            } else {
                deployments.insert(key, (model, is_gone || is_complete(object)));
            }
            let incomplete = deployments.values().filter(|(_, complete)| !complete);
            let mut state = State {
                at: seen.duration_since(self.begin),
                updating: incomplete.map(|(model, _)| model.clone()).collect(),
                ready: BTreeMap::new(),
            };
            for key in pods.values().flatten() {
                *state.ready.entry(key.clone()).or_default() += 1;
            }
            states.push(state);
        }
        // A watch begins with all that there is, one after another.
        let is_whole = |state: &State| state.least("worker") > 0 && state.least("proxy") > 0;
        let whole = states.iter().position(is_whole).unwrap_or(states.len());
        states.split_off(whole)
    }

    /// Returns a table with a line for each second.
    fn table(&self, states: &[State], answers: &[&Answer]) -> String {
        let begin = self.clock.duration_since(UNIX_EPOCH).unwrap();
        let mut seconds = BTreeMap::<u64, (usize, usize, f64)>::new();
        for one in answers {
            let second = one.at.saturating_sub(begin).as_secs();
            let (count, failed, slowest) = seconds.entry(second).or_default();
            *count += 1;
            *failed += usize::from(one.status != 200);
            *slowest = slowest.max(one.millis);
        }
        let mut table =
            "s\tstep\tupdating\tmodels\tleast workers\tleast proxies\tanswers\tfailures\tslowest ms\n"
                .to_owned();
        let end = states.last().map_or(0, |state| state.at.as_secs());
        for second in 0..=end {
            let earlier = states.iter().rfind(|state| state.at.as_secs() < second);
            let within = states.iter().filter(|state| state.at.as_secs() == second);
            let moments: Vec<&State> = earlier.into_iter().chain(within).collect();
            let most = moments.iter().map(|state| state.updating.len()).max();
            let names: BTreeSet<&str> = moments
                .iter()
                .flat_map(|state| state.updating.iter().map(String::as_str))
                .collect();
            let least = |component: &str| {
                let counts = moments.iter().map(|state| state.least(component));
                counts.min().unwrap_or(0)
            };
            let step = self
                .steps
                .iter()
                .find(|(_, begin, end)| (begin.as_secs()..=end.as_secs()).contains(&second));
            let (count, failed, slowest) = seconds.get(&second).copied().unwrap_or_default();
            writeln!(
                table,
                "{second}\t{}\t{}\t{}\t{}\t{}\t{count}\t{failed}\t{slowest:.0}",
                step.map_or("-", |(name, ..)| name),
                most.unwrap_or(0),
                names.into_iter().collect::<Vec<_>>().join(","),
                least("worker"),
                least("proxy"),
            )
            .unwrap();
        }
        table
    }

    /// The conditions Ready that were not True.
    fn unready(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (_, event) in self.models.events() {
            let conditions = event["object"]["status"]["conditions"].as_array();
            for condition in conditions.into_iter().flatten() {
                if condition["type"] == "Ready" && condition["status"] != "True" {
                    told.push(format!(
                        "{}: {}: {}",
                        model::name(&event["object"]),
                        condition["reason"],
                        condition["message"]
                    ));
                }
            }
        }
        told.dedup();
        told
    }
}

/// The release is upgraded to other images and rolled back with five models under load: they take turns, each has a worker
/// and a proxy all the time, and no request is lost.
pub fn five_models() {
    let namespace = Namespace::create("upgrade");
    let uri = Affine::FIRST.publish(&namespace);
    let spec = json!({
        "scaling": {"minReplicas": 1, "maxReplicas": 1},
        "queue": {"timeout": "60s"},
        "proxy": {"replicas": 1}
    });
    // A model that another test left behind would take turns, too, and may never be Ready.
    let others = run(
        "kubectl",
        &["get", "bm", "--all-namespaces", "--output=name"],
        b"",
    );
    assert_eq!(others.as_deref().map(str::trim), Ok(""), "other models");
    for name in MODELS {
        namespace.apply(&Affine::manifest(name, &uri, &spec).to_string());
    }
    for name in MODELS {
        namespace.wait(&format!("bm/{name}"), "condition=Ready", "180s");
    }
    let loads = MODELS.map(|name| Load::named(&format!("load-{name}"), &namespace, name, 1));
    let mut record = Record::start(&namespace);
    std::thread::sleep(Duration::from_secs(3));
    let next = next_tag();
    record.step("upgrade", &namespace, &next, || {
        operator::upgrade(&[&format!("image.tag={next}")]);
    });
    record.step("rollback", &namespace, TAG, operator::rollback);
    std::thread::sleep(Duration::from_secs(3));
    let answers = loads.map(Load::stop);

    let states = record.states();
    let all: Vec<&Answer> = answers.iter().flatten().collect();
    let table = record.table(&states, &all);
    println!("upgrade:\n{}", aligned(&table));
    let folder = carpool_testkit::cache().join("logs/rollouts");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("upgrade.tsv"), table).unwrap();
    let failed = all.iter().filter(|answer| answer.status != 200).count();
    println!("{} answers, {failed} failures", all.len());

    for answers in &answers {
        check(answers, |answer| Affine::FIRST.gave(answer));
    }
    for state in &states {
        let (at, updating) = (state.at, &state.updating);
        assert!(updating.len() <= AT_ONCE, "at {at:?}: {updating:?}");
        for component in COMPONENTS {
            assert!(
                state.least(component) > 0,
                "at {at:?} a model has no {component}"
            );
        }
    }
    for (name, begin, end) in &record.steps {
        let within = states
            .iter()
            .filter(|state| (*begin..=*end).contains(&state.at));
        let updated: BTreeSet<&String> = within.flat_map(|state| &state.updating).collect();
        assert_eq!(updated.len(), MODELS.len(), "{name}: {updated:?}");
    }
    // Pods of the same revision are being replaced, and one is Ready all the while.
    let unready = record.unready();
    assert!(unready.is_empty(), "{unready:#?}");
}

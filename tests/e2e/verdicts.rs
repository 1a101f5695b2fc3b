//! The verdicts of tools on a model: `kubectl wait`, `kubectl get`, Argo CD's health script, and kstatus, which Flux uses.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cluster::{Namespace, root, run};

/// The tools' words on one state of a model.
#[derive(Debug)]
pub struct Verdicts {
    /// Whether `kubectl wait --for=condition=Ready` returned.
    pub wait: bool,
    /// The columns READY and REASON of `kubectl get`.
    pub get: [String; 2],
    /// The status and the message of Argo CD.
    pub argo: [String; 2],
    /// The status and the message of kstatus.
    pub flux: [String; 2],
}

impl Verdicts {
    /// Asks every tool about a model, and keeps the model in the cache as `logs/rollouts/states/STATE.json`.
    pub fn ask(namespace: &Namespace, model: &str, state: &str) -> Self {
        let name = format!("bm/{model}");
        let wait = ["wait", &name, "--for=condition=Ready", "--timeout=1s"];
        let wait = namespace.try_kubectl(&wait, b"").is_ok();
        let line = namespace.kubectl(&["get", &name, "--no-headers"]);
        let mut columns = line.split_whitespace().skip(1).map(str::to_owned);
        let get = [(); 2].map(|()| columns.next().expect("columns READY and REASON"));
        let object = namespace.get(&[&name]);
        let folder = carpool_testkit::cache().join("logs/rollouts/states");
        std::fs::create_dir_all(&folder).unwrap();
        let text = serde_json::to_string_pretty(&object).expect("a value is JSON");
        std::fs::write(folder.join(format!("{state}.json")), text).unwrap();
        Self {
            wait,
            get,
            argo: argo(&object),
            flux: flux(&object),
        }
    }

    /// A line of a table that [`HEADER`] begins.
    pub fn row(&self, state: &str) -> String {
        let waited = if self.wait { "returns" } else { "waits" };
        let (get, argo, flux) = (self.get.join(" "), &self.argo[0], &self.flux[0]);
        format!(
            "{state}\t{waited}\t{get}\t{argo}\t{flux}\t{}\n",
            self.argo[1]
        )
    }
}

/// The columns of [`Verdicts::row`].
pub const HEADER: &str = "state\tkubectl wait\tkubectl get\tArgo CD\tkstatus\tmessage\n";

/// The two fields of a line that a tab divides.
fn fields(line: &str) -> [String; 2] {
    let (status, message) = line.trim_end().split_once('\t').expect("two fields");
    [status.to_owned(), message.to_owned()]
}

fn flux(object: &Value) -> [String; 2] {
    let program = carpool_testkit::cache().join("tools/bin/kstatus");
    let program = program.to_str().expect("a path in UTF-8");
    let said = run(program, &[], object.to_string().as_bytes());
    fields(&said.unwrap_or_else(|error| panic!("{error} (hack/tool kstatus builds it)")))
}

/// Runs the health script as Argo CD does: with the global `obj`, in Lua 5.1.
fn argo(object: &Value) -> [String; 2] {
    let script = root().join("docs/argocd/health.lua");
    let mut program = "obj = ".to_owned();
    lua(object, &mut program);
    let script = script.to_str().expect("a path in UTF-8");
    write!(
        program,
        "\nlocal health = dofile({})\nio.write(health.status, '\\t', health.message or '')\n",
        quoted(script)
    )
    .unwrap();
    let said = run("lua5.1", &["-"], program.as_bytes());
    fields(&said.unwrap_or_else(|error| panic!("{error} (Debian package lua5.1)")))
}

/// Writes a value as Lua has it.
fn lua(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("nil"),
        Value::Bool(_) | Value::Number(_) => write!(text, "{value}").unwrap(),
        Value::String(string) => text.push_str(&quoted(string)),
        Value::Array(items) => {
            text.push('{');
            for item in items {
                lua(item, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Object(fields) => {
            text.push('{');
            for (key, field) in fields {
                write!(text, "[{}]=", quoted(key)).unwrap();
                lua(field, text);
                text.push(',');
            }
            text.push('}');
        }
    }
}

/// Returns a string as Lua quotes it, every byte by its number.
fn quoted(string: &str) -> String {
    let bytes = string.bytes().map(|byte| format!("\\{byte:03}"));
    format!("\"{}\"", bytes.collect::<String>())
}

//! Documents of a manifest, and pod templates in them.

use carpool_crds::yaml;
use serde_json::Value;

use super::InjectError;
use crate::names;

/// A document of the manifest with its text, which is printed again unless the document was changed.
pub struct Document {
    text: String,
    pub(super) value: Value,
    /// The reason for which it can't be written anew: kubectl reads it differently.
    pub(super) ambiguous: Option<InjectError>,
    /// Whether a sidecar was added.
    pub changed: bool,
}

/// The documents of a manifest.
pub fn split(text: &str) -> Result<Vec<Document>, InjectError> {
    let mut texts = vec![(1, String::new())];
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // At the start of a line this begins a document, wherever it stands.
        let rest = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        match (rest, texts.last_mut()) {
            // Text that follows on the same line belongs to the document.
            (Some(rest), _) => {
                let rest = rest.trim_start();
                let first_line = index + 1 + usize::from(rest.is_empty());
                texts.push((first_line, rest.to_owned()));
            }
            (None, Some((_, text))) => text.push_str(line),
            (None, None) => {}
        }
    }
    texts
        .into_iter()
        .enumerate()
        .filter(|(_, (_, text))| !text.trim().is_empty())
        .map(|(index, (first_line, text))| {
            let parse = |message| InjectError::Parse(index + 1, message);
            let read = yaml::read(&text, first_line).map_err(parse)?;
            let read = read.into_iter().next().unwrap_or_default();
            Ok(Document {
                // A document that stays as it is means what it meant.
                ambiguous: read.check().map_err(parse).err(),
                text,
                value: read.value,
                changed: false,
            })
        })
        .collect()
}

/// The manifest of these documents.
pub fn join(documents: Vec<Document>) -> Result<String, InjectError> {
    let texts = documents.into_iter().map(|document| {
        if !document.changed {
            return Ok(document.text);
        }
        match document.ambiguous {
            Some(ambiguous) => Err(ambiguous),
            None => Ok(serde_yaml::to_string(&document.value)?),
        }
    });
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    let ended = texts.iter().map(|text| format!("{}\n", text.trim_end()));
    Ok(ended.collect::<Vec<_>>().join("---\n"))
}

impl Document {
    /// Finds the document's pods and pod templates.
    pub fn templates(&mut self) -> Vec<&mut Value> {
        let objects: Vec<&mut Value> = if self.value["kind"] == "List" {
            let items = self.value.get_mut("items").and_then(Value::as_array_mut);
            items.into_iter().flatten().collect()
        } else {
            vec![&mut self.value]
        };
        objects
            .into_iter()
            .filter_map(|object| {
                let path = match object["kind"].as_str()? {
                    "Pod" => "",
                    "Deployment"
                    | "StatefulSet"
                    | "DaemonSet"
                    | "ReplicaSet"
                    | "ReplicationController"
                    | "Job" => "/spec/template",
                    "CronJob" => "/spec/jobTemplate/spec/template",
                    _ => return None,
                };
                object.pointer_mut(path)
            })
            .collect()
    }
}

/// The model that a pod template asks for.
pub fn annotation(template: &Value) -> Option<String> {
    let annotation = &template["metadata"]["annotations"][names::MODEL];
    annotation.as_str().map(str::to_owned)
}

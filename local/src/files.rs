//! The files of one model in the run's temporary folder: configuration, status, termination logs, admin addresses.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use carpool_crds::{Config, Model, TerminationReason};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    LocalError, example,
    manifest::{self, Manifest},
    supervised::Running,
};

/// The files of one model in the run's temporary folder, and the manifest that it was read from.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    /// The configuration that sidecar and workers read.
    pub config: PathBuf,
    /// The status that other programs may read: addresses and process ids.
    pub status: PathBuf,
    last_status: Value,
    manifest: PathBuf,
    manifest_modified: Option<SystemTime>,
}

/// A worker's termination log: why it ended.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Termination(carpool_crds::Termination);

impl std::fmt::Display for Termination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Termination {
    /// Whether the queue, not the model, was the reason.
    pub fn is_of_queue(&self) -> bool {
        self.0.reason() == Some(TerminationReason::RedisUnreachable)
    }

    /// Returns advice to the user. `None` where another attempt may go better.
    pub fn advice(&self) -> Option<&'static str> {
        match self.0.reason()? {
            TerminationReason::ChecksumMismatch => {
                Some("get the artifact again, or correct spec.model.sha256")
            }
            TerminationReason::ArtifactMissing => {
                Some("build the model first, or correct spec.model.uri")
            }
            TerminationReason::ModelInvalid => Some("save the model again, or correct spec.model"),
            TerminationReason::OutOfMemory => Some("the model needs more memory than there is"),
            TerminationReason::DeviceUnavailable => {
                Some("spec.worker.device: cpu runs it without a GPU")
            }
            TerminationReason::ArtifactChanged | TerminationReason::RedisUnreachable => None,
        }
    }
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> LocalError {
    let file = file.to_owned();
    move |source| LocalError::File { file, source }
}

/// Replaces a file's content at once: readers see the old content or the new, never a part.
fn write(file: &Path, content: &str) -> Result<(), LocalError> {
    let new = file.with_extension("new");
    std::fs::write(&new, content)
        .and_then(|()| std::fs::rename(&new, file))
        .map_err(failed(file))
}

/// Removes a file, if it exists.
fn remove(file: &Path) -> Result<(), LocalError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(file)(error)),
        _ => Ok(()),
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file)
        .and_then(|meta| meta.modified())
        .ok()
}

impl Files {
    /// Makes the folder of a model and notes the age of its manifest.
    pub fn new(folder: PathBuf, manifest: &Path) -> Result<Self, LocalError> {
        std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
        Ok(Self {
            config: folder.join("config.yaml"),
            status: folder.join("status.json"),
            last_status: Value::Null,
            manifest: manifest.to_owned(),
            manifest_modified: modified(manifest),
            folder,
        })
    }

    /// Writes the configuration that sidecar and workers read.
    pub fn write_config(&self, config: &Config) -> Result<(), LocalError> {
        let yaml = serde_yaml::to_string(config)
            .map_err(|error| failed(&self.config)(io::Error::other(error)))?;
        write(&self.config, &yaml)
    }

    /// Writes the status that other programs read, when it has changed.
    pub fn write_status(&mut self, status: &Value) -> Result<(), LocalError> {
        if self.last_status != *status {
            write(&self.status, &status.to_string())?;
            self.last_status = status.clone();
        }
        Ok(())
    }

    /// Returns the manifest, or its error, if the file has changed since the last call.
    pub fn changed_manifest(&mut self, name: &str) -> Option<Result<Manifest, String>> {
        let modified = modified(&self.manifest);
        if modified == self.manifest_modified {
            return None;
        }
        self.manifest_modified = modified;
        let found = manifest::read(&self.manifest).map_err(|error| error.to_string());
        Some(found.and_then(|manifests| {
            manifests
                .into_iter()
                .find(|manifest| manifest.name == name)
                .ok_or_else(|| format!("{} no longer holds {name}", self.manifest.display()))
        }))
    }

    /// Returns the path where the worker of this slot says why it ends, and removes an earlier worker's file there.
    pub fn clear_termination_log(&self, slot: u32) -> Result<PathBuf, LocalError> {
        let file = self.termination_log(slot);
        remove(&file)?;
        Ok(file)
    }

    /// Returns the path where a process of this name writes its admin address, and removes an earlier process's file
    /// there.
    pub fn clear_address(&self, name: &str) -> Result<PathBuf, LocalError> {
        let file = self.folder.join(format!("{name}.admin"));
        remove(&file)?;
        Ok(file)
    }

    /// Returns why the worker of this slot ended, if it said so.
    pub fn termination(&self, slot: u32) -> Option<Termination> {
        serde_json::from_slice(&std::fs::read(self.termination_log(slot)).ok()?).ok()
    }

    fn termination_log(&self, slot: u32) -> PathBuf {
        self.folder.join(format!("worker-{slot}.termination"))
    }

    /// Returns a curl line for the model.
    pub fn curl(&self, name: &str, url: &str, model: &Model) -> Result<String, LocalError> {
        let body = self.folder.join("example.json");
        example::curl(name, url, model, &body).map_err(failed(&body))
    }
}

/// The status file of a model that could not be served.
pub fn failed_status(name: &str, revision: &str, error: &LocalError) -> Value {
    json!({
        "name": name, "revision": revision, "wanted": 0, "proxy": null, "workers": [],
        "error": error.to_string(),
    })
}

/// The status file: the addresses of the model, its metrics and its processes. A process that has not told its admin
/// port yet has none.
pub struct Status<'a> {
    pub name: &'a str,
    pub url: &'a str,
    pub revision: &'a str,
    pub wanted: usize,
    pub proxy: Option<&'a Running>,
    pub workers: Vec<&'a Running>,
}

impl Status<'_> {
    /// Returns the status as it is written.
    pub fn json(&self) -> Value {
        let process = |running: &Running| {
            json!({
                "name": running.name, "pid": running.handle.pid,
                "admin": running.url(), "ready": running.ready(),
            })
        };
        let workers = self.workers.iter().copied();
        json!({
            "name": self.name,
            "url": self.url,
            "revision": self.revision,
            "wanted": self.wanted,
            "proxy": self.proxy.map(process),
            "workers": workers.map(process).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Files {
        let manifest = folder.join("model.yaml");
        std::fs::write(&manifest, "").unwrap();
        Files::new(folder.join("m"), &manifest).unwrap()
    }

    #[test]
    fn a_worker_says_why_it_ended_and_the_next_one_starts_clean() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let log = files.clear_termination_log(3).unwrap();
        assert_eq!(files.termination(3), None);
        std::fs::write(
            &log,
            r#"{"reason": "ChecksumMismatch", "message": "not that one"}"#,
        )
        .unwrap();
        let termination = files.termination(3).unwrap();
        assert_eq!(termination.to_string(), "not that one");
        assert!(termination.advice().unwrap().contains("spec.model.sha256"));
        files.clear_termination_log(3).unwrap();
        assert_eq!(files.termination(3), None);
    }

    #[test]
    fn a_changed_manifest_is_seen_once_and_its_errors_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = files(folder.path());
        assert!(files.changed_manifest("m").is_none());
        std::fs::write(&files.manifest, "a: 1").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(10);
        std::fs::File::options()
            .write(true)
            .open(&files.manifest)
            .unwrap()
            .set_modified(later)
            .unwrap();
        let error = files.changed_manifest("m").unwrap().unwrap_err();
        assert!(
            error.contains("carpool local takes BatchedModels"),
            "{error}"
        );
        assert!(files.changed_manifest("m").is_none());
    }
}

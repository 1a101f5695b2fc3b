//! Manifests, read as strictly as the API server would.

use std::path::{Path, PathBuf};

use carpool_crds::{BatchedModel, BatchedModelSpec, GROUP, yaml};

/// One model to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The manifest's path.
    pub file: PathBuf,
    /// The resource's name.
    pub name: String,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's specification.
    pub spec: BatchedModelSpec,
    /// The absolute path of the artifact.
    pub artifact: PathBuf,
}

/// A reason why a manifest can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file can't be read.
    #[error("failed to read {}: {source}", file.display())]
    Read {
        /// The manifest's path.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The text is no YAML, has a field that is unknown, missing or of the wrong type, or means something else to
    /// kubectl.
    #[error("failed to parse {}: {message}", file.display())]
    Parse {
        /// The manifest's path.
        file: PathBuf,
        /// The parser's message, with the place.
        message: String,
    },
    /// A document is of another kind or API version.
    #[error("{}: carpool local takes BatchedModels of {GROUP}/v1alpha1 only; here is {found}", file.display())]
    Kind {
        /// The manifest's path.
        file: PathBuf,
        /// The kind and API version that were found.
        found: String,
    },
    /// The schema's bounds or the CEL rules refuse the resource.
    #[error("{}", violations.iter().map(|violation| format!("{}: {violation}", file.display())).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// The manifest's path.
        file: PathBuf,
        /// The violations, a field each.
        violations: Vec<String>,
    },
    /// The artifact's URI has another scheme than `file://`.
    #[error(
        "{}: spec.model.uri: carpool local takes file://PATH, absolute or relative to the manifest, not {uri}",
        file.display()
    )]
    Scheme {
        /// The manifest's path.
        file: PathBuf,
        /// The URI.
        uri: String,
    },
    /// The artifact doesn't exist.
    #[error(
        "{}: spec.model.uri: there is no file or folder {}; build the model first, or correct the URI",
        file.display(), artifact.display()
    )]
    NoArtifact {
        /// The manifest's path.
        file: PathBuf,
        /// The path where the artifact should be.
        artifact: PathBuf,
    },
}

/// Reads every `BatchedModel` of a file.
pub fn read(file: &Path) -> Result<Vec<Manifest>, ManifestError> {
    let text = std::fs::read_to_string(file).map_err(|source| ManifestError::Read {
        file: file.to_owned(),
        source,
    })?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let unparsed = |message: String| ManifestError::Parse {
        file: file.to_owned(),
        message,
    };
    let wrong_kind = |found: String| ManifestError::Kind {
        file: file.to_owned(),
        found,
    };
    let documents = yaml::read(text, 1).map_err(unparsed)?;
    if documents.is_empty() {
        return Err(wrong_kind("nothing".to_owned()));
    }
    for document in &documents {
        let word = |field: &str| {
            document.value[field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let (api_version, kind) = (word("apiVersion"), word("kind"));
        if api_version != format!("{GROUP}/v1alpha1") || kind != "BatchedModel" {
            return Err(wrong_kind(format!("{kind:?} of {api_version:?}")));
        }
    }
    for document in &documents {
        document.check().map_err(unparsed)?;
    }
    let resources: Vec<BatchedModel> = documents
        .iter()
        .map(|document| document.parse().map_err(unparsed))
        .collect::<Result<_, _>>()?;
    resources
        .into_iter()
        .map(|resource| manifest(file, resource))
        .collect()
}

fn manifest(file: &Path, resource: BatchedModel) -> Result<Manifest, ManifestError> {
    let violations = carpool_crds::violations(&resource);
    if !violations.is_empty() {
        return Err(ManifestError::Invalid {
            file: file.to_owned(),
            violations,
        });
    }
    let uri = &resource.spec.model.uri;
    let Some(path) = uri.strip_prefix("file://") else {
        return Err(ManifestError::Scheme {
            file: file.to_owned(),
            uri: uri.clone(),
        });
    };
    // Joining an absolute path replaces the folder.
    let artifact = file.parent().unwrap_or(Path::new("")).join(path);
    let artifact = std::path::absolute(&artifact).unwrap_or(artifact);
    if !artifact.exists() {
        return Err(ManifestError::NoArtifact {
            file: file.to_owned(),
            artifact,
        });
    }
    Ok(Manifest {
        file: file.to_owned(),
        name: resource.metadata.name.unwrap_or_default(),
        namespace: resource
            .metadata
            .namespace
            .unwrap_or_else(|| "default".to_owned()),
        spec: resource.spec,
        artifact,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: carpool.dev/v1alpha1\nkind: BatchedModel\nmetadata: {name: digits}\nspec:\n";
    const MODEL: &str = "  model:
    uri: file://artifact
    inputs: [{name: image, datatype: FP32, shape: [1, 8, 8]}]
    outputs: [{name: logits, datatype: FP32, shape: [10]}]
";

    /// Parses a manifest that lies in a folder with an artifact.
    fn parse(text: &str) -> Result<Vec<Manifest>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("artifact")).unwrap();
        let file = folder.path().join("model.yaml");
        super::parse(&file, text).map_err(|error| {
            error
                .to_string()
                .replace(&file.display().to_string(), "FILE")
        })
    }

    #[test]
    fn the_smallest_manifest_is_read() {
        let manifests = parse(&format!("{HEAD}{MODEL}")).unwrap();
        let [manifest] = &manifests[..] else {
            panic!("{manifests:?}")
        };
        assert_eq!(
            (manifest.name.as_str(), manifest.namespace.as_str()),
            ("digits", "default")
        );
        assert!(manifest.artifact.is_absolute() && manifest.artifact.ends_with("artifact"));
        assert_eq!(manifest.spec.scaling.max_replicas, 8);
    }

    #[test]
    fn a_file_may_hold_several() {
        let text = format!(
            "{HEAD}{MODEL}---\n{}{MODEL}",
            HEAD.replace("digits", "more")
        );
        let names: Vec<String> = parse(&text)
            .unwrap()
            .into_iter()
            .map(|manifest| manifest.name)
            .collect();
        assert_eq!(names, ["digits", "more"]);
    }

    #[test]
    fn bad_manifests_are_refused_by_field() {
        let with = |rest: &str| format!("{HEAD}{MODEL}{rest}");
        for (text, expected) in [
            (
                with("  batching: {maxBatchsize: 4}\n"),
                "unknown field `maxBatchsize`",
            ),
            (
                with("  batching: {maxDelay: soon}\n"),
                "\"soon\" is not a duration",
            ),
            (
                with("  batching: {maxDelay: 11s}\n"),
                "FILE: spec.batching.maxDelay: maxDelay: at most 10s",
            ),
            (
                with("  batching: {maxBatchSize: 0}\n"),
                "FILE: spec.batching.maxBatchSize: must be at least 1, it is 0",
            ),
            (
                with("  scaling: {minReplicas: 3, maxReplicas: 2}\n"),
                "FILE: spec.scaling: minReplicas must not be above maxReplicas",
            ),
            (with("  scaling: {mode: KEDA}\n"), "unknown variant `KEDA`"),
            (
                with("  queue: {lease: 20s}\n"),
                "FILE: spec.queue: lease must be at least 1s",
            ),
            (
                with("  queue: {maxBytes: much}\n"),
                "\"much\" is not a size",
            ),
            (
                with("  queue: {redis: {managed: {}, external: {urlSecretName: x}}}\n"),
                "FILE: spec.queue.redis: redis: either managed or external",
            ),
            (
                format!("{HEAD}{}", MODEL.replace("file://artifact", "s3://a/b")),
                "FILE: spec.model.uri: uri: allowed are pvc://",
            ),
            (
                format!(
                    "{HEAD}{}",
                    MODEL.replace("file://artifact", "pvc://claim/b")
                ),
                "carpool local takes file://PATH, absolute or relative to the manifest, not pvc://claim/b",
            ),
            (
                format!(
                    "{HEAD}{}",
                    MODEL.replace("file://artifact", "file://nowhere")
                ),
                "spec.model.uri: there is no file or folder",
            ),
            (
                format!("{HEAD}{}", MODEL.replace("[1, 8, 8]", "[1, 0]")),
                "shape: a dimension is -1 (variable), a name such as seq, or a size of at least 1",
            ),
            (
                format!(
                    "{HEAD}{}",
                    MODEL.replace("FP32, shape: [10]", "FLOAT, shape: [10]")
                ),
                "unknown variant `FLOAT`",
            ),
            (
                format!("{HEAD}{}", MODEL.replace("{name: image", "{name: \"\"")),
                "FILE: spec.model.inputs[0].name: must have at least 1 characters, it has 0",
            ),
            (
                format!("{HEAD}{MODEL}    sha256: abc\n"),
                "FILE: spec.model.sha256: must match",
            ),
            (
                with("").replace("digits", "Digits"),
                "metadata.name: at most 40 characters",
            ),
            (
                with("").replace("{name: digits}", "{}"),
                "FILE: metadata.name: is missing",
            ),
            (
                with("").replace("BatchedModel", "Deployment"),
                "here is \"Deployment\" of \"carpool.dev/v1alpha1\"",
            ),
            (String::new(), "here is nothing"),
            ("a: [".to_owned(), "failed to parse FILE"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(
                error.contains(expected),
                "{error:?} does not say {expected:?}"
            );
        }
    }

    #[test]
    fn what_kubectl_reads_as_no_text_is_to_be_quoted() {
        let number = format!("{HEAD}{MODEL}").replace("digits", "1");
        for (text, expected) in [
            (
                format!("{HEAD}{}", MODEL.replace("name: image", "name: y")),
                "failed to parse FILE: line 7: spec.model.inputs[0].name: kubectl reads y as the boolean true; quote it: \"y\"",
            ),
            (
                format!("{HEAD}{}", MODEL.replace("name: logits", "name: 007")),
                "line 8: spec.model.outputs[0].name: invalid type: integer `7`, expected a string; kubectl reads 007 as \
                 the number 7; quote it: \"007\"",
            ),
            (number, "line 3: metadata.name: invalid type: integer `1`"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(
                error.contains(expected),
                "{error:?} does not say {expected:?}"
            );
        }
    }
}

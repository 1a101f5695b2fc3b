//! `carpool inject`: adds the sidecar to the pods of a manifest.
//!
//! The sidecar is a native one, an init container that goes on running: it is ready before the app starts and leaves
//! after it. The app finds it at `$CARPOOL_URL`.
//!
//! The manifest names the model's `ConfigMap` and Secret, whose names follow from the model's. So no cluster is asked, and
//! the manifest holds before there is a model and after it was made anew: pods wait until both are there.

mod manifest;
mod sidecar;
#[cfg(test)]
mod tests;

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use self::sidecar::Sidecar;
use crate::{names, run::image};

/// Arguments of `carpool inject`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifest, of one or many documents; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// The BatchedModel that the pods use. Default: what the annotation carpool.dev/model of a pod template says;
    /// templates without it stay as they are.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// The Secret whose key `url` holds the Redis URL. Default: MODEL-redis, that of a Redis that the operator runs. Needed
    /// where spec.queue.redis.external names another, and for a model whose Secret `kubectl get secrets` shows as
    /// MODEL-redis-XXXXXXXX, for it was made by an older operator.
    #[arg(long, value_name = "SECRET")]
    redis_secret: Option<String>,

    /// The sidecar's image.
    #[arg(long, env = "CARPOOL_SIDECAR_IMAGE", default_value_t = image("sidecar"), value_name = "IMAGE")]
    sidecar_image: String,

    /// Pull policy of that image.
    #[arg(long, env = "CARPOOL_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"], value_name = "POLICY")]
    image_pull_policy: String,
}

/// Reasons for which there is no manifest with a sidecar.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The manifest can't be read.
    #[error("failed to read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// A document isn't YAML.
    #[error("failed to parse document {0} of the manifest: {1}")]
    Parse(usize, String),
    /// A document can't be written.
    #[error("failed to write the manifest: {0}")]
    Write(#[from] serde_yaml::SerializeError),
    /// Something can't be written as JSON.
    #[error("failed to write the sidecar: {0}")]
    Json(#[from] serde_json::Error),
    /// There is nothing to add a sidecar to.
    #[error("no pods to add the sidecar to: {0}")]
    Nothing(&'static str),
}

/// Prints the manifest with the sidecar added.
pub fn run(args: &Args) -> Result<(), InjectError> {
    let text = read(&args.file).map_err(|error| InjectError::Read(args.file.clone(), error))?;
    let mut documents = manifest::split(&text)?;
    for document in &mut documents {
        let mut changed = false;
        for template in document.templates() {
            let annotated = manifest::annotation(template);
            let Some(model) = args.model.clone().or(annotated) else {
                continue;
            };
            let redis_secret = args.redis_secret.clone();
            let sidecar = Sidecar {
                redis_secret: redis_secret.unwrap_or_else(|| names::redis_secret(&model)),
                model,
                image: args.sidecar_image.clone(),
                pull_policy: args.image_pull_policy.clone(),
            };
            sidecar.add_to(template)?;
            changed = true;
        }
        document.changed = changed;
    }
    if !documents.iter().any(|document| document.changed) {
        return Err(InjectError::Nothing(match &args.model {
            Some(_) => "the manifest holds no Pod and nothing that makes pods",
            None => "give --model, or the pod template's annotation carpool.dev/model",
        }));
    }
    print!("{}", manifest::join(documents)?);
    Ok(())
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        Ok(text)
    } else {
        std::fs::read_to_string(file)
    }
}

//! Copies the artifact from where it is kept to where `serve` reads it.

use std::path::Path;

use futures::TryStreamExt;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as Location,
};
use tokio::{fs, io::AsyncWriteExt};

use crate::{
    artifact::{Artifact, MODEL_FILE},
    fatal::{Fatal, Reason},
};

/// Copies a folder's files, or one file under the name that `serve` looks for, and checks the copy.
pub async fn fetch(source: &Path, to: &Path, pinned: Option<&str>) -> Result<Artifact, Fatal> {
    copy(source, to).await.map_err(|error| {
        let message = format!("failed to copy the artifact {}: {error}", source.display());
        Fatal::new(Reason::ArtifactMissing, message)
    })?;
    Artifact::open(to, pinned)
}

async fn copy(source: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    fs::create_dir_all(to).await?;
    if fs::metadata(source).await?.is_dir() {
        let store = LocalFileSystem::new_with_prefix(source)?;
        let target = LocalFileSystem::new_with_prefix(to)?;
        let files: Vec<ObjectMeta> = store.list(None).try_collect().await?;
        for file in files {
            copy_one(
                &store,
                &file.location,
                &target.path_to_filesystem(&file.location)?,
            )
            .await?;
        }
    } else {
        let store = LocalFileSystem::new();
        let location = Location::from_absolute_path(source)?;
        copy_one(&store, &location, &to.join(MODEL_FILE)).await?;
    }
    Ok(())
}

async fn copy_one(
    store: &LocalFileSystem,
    location: &Location,
    target: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).await?;
    }
    let mut chunks = store.get(location).await?.into_stream();
    let mut file = fs::File::create(target).await?;
    while let Some(chunk) = chunks.try_next().await? {
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_and_a_file_arrive_whole() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir(source.path().join("nested")).unwrap();
        let large: Vec<u8> = (0..3_000_000)
            .map(|index: u32| index.to_le_bytes()[1])
            .collect();
        std::fs::write(source.path().join(MODEL_FILE), &large).unwrap();
        std::fs::write(source.path().join("nested/vocab 1.txt"), "words").unwrap();
        let expected = Artifact::open(source.path(), None).unwrap().sha256;

        let to = tempfile::tempdir().unwrap();
        let target = to.path().join("new");
        let artifact = fetch(source.path(), &target, Some(&expected))
            .await
            .unwrap();
        assert_eq!(artifact.sha256, expected);
        assert_eq!(
            std::fs::read(target.join("nested/vocab 1.txt")).unwrap(),
            b"words"
        );

        let file = source.path().join(MODEL_FILE);
        let expected = Artifact::open(&file, None).unwrap().sha256;
        let target = to.path().join("file");
        let artifact = fetch(&file, &target, Some(&expected)).await.unwrap();
        assert_eq!(artifact.model, target.join(MODEL_FILE));
        assert_eq!(std::fs::read(artifact.model).unwrap(), large);
    }

    #[tokio::test]
    async fn nothing_there_is_named() {
        let to = tempfile::tempdir().unwrap();
        let fatal = fetch(&to.path().join("none"), to.path(), None)
            .await
            .unwrap_err();
        assert_eq!(fatal.reason, Reason::ArtifactMissing);
        assert!(fatal.message.contains("/none"), "{fatal}");
    }
}

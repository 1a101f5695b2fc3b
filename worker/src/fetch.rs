//! Copies the artifact from where it is kept to where `serve` reads it.

use std::{fs, io, path::Path};

use crate::{
    artifact::{Artifact, MODEL_FILE, files},
    fatal::{Fatal, TerminationReason},
};

/// Copies a folder's files, or one file under the name that `serve` looks for, and checks the copy.
pub fn fetch(source: &Path, to: &Path, pinned: Option<&str>) -> Result<Artifact, Fatal> {
    copy(source, to).map_err(|error| {
        let message = format!("failed to copy the artifact {}: {error}", source.display());
        Fatal::new(TerminationReason::ArtifactMissing, message)
    })?;
    Artifact::open(to, pinned)
}

fn copy(source: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    if fs::metadata(source)?.is_dir() {
        for name in files(source)? {
            copy_file(&source.join(&name), &to.join(&name))?;
        }
        Ok(())
    } else {
        copy_file(source, &to.join(MODEL_FILE))
    }
}

/// Copies what a file holds but not its mode, which may forbid to write it again.
fn copy_file(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    io::copy(&mut fs::File::open(source)?, &mut fs::File::create(target)?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_a_file_arrive_whole() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir(source.path().join("nested")).unwrap();
        std::fs::create_dir(source.path().join("lost+found")).unwrap();
        let large: Vec<u8> = (0..3_000_000)
            .map(|index: u32| index.to_le_bytes()[1])
            .collect();
        std::fs::write(source.path().join(MODEL_FILE), &large).unwrap();
        std::fs::write(source.path().join("nested/vocab 1.txt"), "words").unwrap();
        let expected = Artifact::open(source.path(), None).unwrap().sha256;

        let to = tempfile::tempdir().unwrap();
        let target = to.path().join("new");
        let artifact = fetch(source.path(), &target, Some(&expected)).unwrap();
        assert_eq!(artifact.sha256, expected);
        assert_eq!(
            std::fs::read(target.join("nested/vocab 1.txt")).unwrap(),
            b"words"
        );
        assert!(!target.join("lost+found").exists());

        let file = source.path().join(MODEL_FILE);
        let expected = Artifact::open(&file, None).unwrap().sha256;
        let target = to.path().join("file");
        let artifact = fetch(&file, &target, Some(&expected)).unwrap();
        assert_eq!(artifact.model, target.join(MODEL_FILE));
        assert_eq!(std::fs::read(artifact.model).unwrap(), large);
    }

    #[test]
    fn nothing_there_is_named() {
        let to = tempfile::tempdir().unwrap();
        let fatal = fetch(&to.path().join("none"), to.path(), None).unwrap_err();
        assert_eq!(fatal.reason, TerminationReason::ArtifactMissing);
        assert!(fatal.message.contains("/none"), "{fatal}");
    }
}

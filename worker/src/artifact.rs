//! The artifact: where its parts are, and its checksum.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::fatal::{Fatal, TerminationReason};

/// The file that holds a TorchScript model in an artifact's folder.
pub const MODEL_FILE: &str = "model.pt";

/// An artifact on this machine, with its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The model itself.
    pub model: PathBuf,
    /// The folder that holds the model's other files.
    pub folder: PathBuf,
    /// The SHA-256 of the file or, for a folder, of its `sha256sum` lines, in hex.
    pub sha256: String,
    /// The properties of the model's file before it was hashed.
    state: FileState,
}

/// The properties of a file of which one differs once it was written to or replaced: its size, its inode and when it
/// was modified, in seconds and nanoseconds.
type FileState = (u64, u64, i64, i64);

fn state(file: &Path) -> io::Result<FileState> {
    let data = std::fs::metadata(file)?;
    Ok((data.size(), data.ino(), data.mtime(), data.mtime_nsec()))
}

impl Artifact {
    /// Finds an artifact, a folder or a file, and checks it against the checksum `pinned`.
    ///
    /// A folder that holds the model and nothing else is also known by the model's own checksum: that is how a single
    /// file looks once it was copied to where a worker reads it.
    pub fn open(path: &Path, pinned: Option<&str>) -> Result<Self, Fatal> {
        let missing = |error: &dyn std::fmt::Display| {
            let message = format!("failed to read the artifact {}: {error}", path.display());
            Fatal::new(TerminationReason::ArtifactMissing, message)
        };
        let is_folder = std::fs::metadata(path)
            .map_err(|error| missing(&error))?
            .is_dir();
        let (model, folder) = if is_folder {
            (path.join(MODEL_FILE), path)
        } else {
            (path.to_owned(), path.parent().unwrap_or(path))
        };
        if !model.is_file() {
            return Err(missing(&format!("it holds no {MODEL_FILE}")));
        }
        let state = state(&model).map_err(|error| missing(&error))?;
        let of_the_model = || file_digest(&model).map_err(|error| missing(&error));
        let found = if is_folder {
            let files = files(path).map_err(|error| missing(&error))?;
            let of_the_folder = folder_digest(path, &files).map_err(|error| missing(&error))?;
            if files.len() == 1 {
                vec![of_the_model()?, of_the_folder]
            } else {
                vec![of_the_folder]
            }
        } else {
            vec![of_the_model()?]
        };
        let sha256 = match pinned {
            None => found[0].clone(),
            Some(pinned) => found
                .iter()
                .find(|sha256| *sha256 == pinned)
                .cloned()
                .ok_or_else(|| {
                    let message = format!(
                        "the artifact's sha256 is {}, but spec.model.sha256 is {pinned}",
                        found[0]
                    );
                    Fatal::new(TerminationReason::ChecksumMismatch, message)
                })?,
        };
        Ok(Self {
            folder: folder.to_owned(),
            model,
            sha256,
            state,
        })
    }

    /// Makes sure that the model is still the one that was hashed: one that was replaced while it was being loaded
    /// would else be known by another's checksum.
    pub fn check_unchanged(&self) -> Result<(), Fatal> {
        if state(&self.model).is_ok_and(|state| state == self.state) {
            return Ok(());
        }
        let message = format!(
            "{} was written to while it was being loaded, so its sha256 is not known; publish a model in a folder of its own",
            self.model.display()
        );
        Err(Fatal::new(TerminationReason::ChecksumMismatch, message))
    }
}

/// The files below a folder, relative to it, sorted as the C locale sorts them. Symbolic links are followed.
pub fn files(folder: &Path) -> io::Result<Vec<String>> {
    // The root of an ext4 volume has this folder, and nobody but the machine's root may look inside.
    let lost_and_found = folder.join("lost+found");
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in std::fs::read_dir(current)? {
            let path = entry?.path();
            let kind = std::fs::metadata(&path)?;
            if kind.is_dir() {
                if path != lost_and_found {
                    folders.push(path);
                }
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            let name = path
                .strip_prefix(folder)
                .ok()
                .and_then(Path::to_str)
                // Names with these characters are written by `sha256sum` in a way of its own.
                .filter(|name| !name.contains(['\\', '\n', '\r']));
            let name = name.ok_or_else(|| {
                io::Error::other(format!(
                    "{} is not a name that can be checked",
                    path.display()
                ))
            })?;
            found.push(name.to_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The checksum that `sha256sum` prints for a file.
fn file_digest(path: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    loop {
        let chunk = file.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        digest.update(chunk);
        let read = chunk.len();
        file.consume(read);
    }
    Ok(hex::encode(digest.finalize()))
}

/// The checksum that `find -L . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` prints
/// inside a folder, but for `lost+found`.
fn folder_digest(folder: &Path, files: &[String]) -> io::Result<String> {
    let mut digest = Sha256::new();
    for name in files {
        let line = format!("{}  {name}\n", file_digest(&folder.join(name))?);
        digest.update(line.as_bytes());
    }
    Ok(hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(folder: &Path, command: &str) -> String {
        let output = Command::new("bash")
            .args(["-c", command])
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()[..64].to_owned()
    }

    #[test]
    fn a_model_that_is_written_to_while_it_is_loaded_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join(MODEL_FILE);
        std::fs::write(&model, "one").unwrap();
        let artifact = Artifact::open(folder.path(), None).unwrap();
        artifact.check_unchanged().unwrap();
        // The new file is of the same size, and moved into place as careful writers do.
        let new = folder.path().join("new");
        std::fs::write(&new, "two").unwrap();
        std::fs::rename(&new, &model).unwrap();
        let fatal = artifact.check_unchanged().unwrap_err();
        assert_eq!(fatal.reason, TerminationReason::ChecksumMismatch);
        assert!(fatal.message.contains(MODEL_FILE), "{fatal}");
    }

    #[test]
    fn checksums_are_those_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        // The names `a-c` and `B` sort elsewhere without the C locale.
        for (name, text) in [
            (MODEL_FILE, "weights"),
            ("a/b/c", "1"),
            ("a-c", "2"),
            ("B", "3"),
            (".hidden", "4"),
            ("a/two words", "5"),
        ] {
            std::fs::write(path.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("a", path.join("link")).unwrap();
        let of_the_folder = shell(
            path,
            r"find -L . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum",
        );
        let artifact = Artifact::open(path, Some(&of_the_folder)).unwrap();
        assert_eq!(artifact.sha256, of_the_folder);
        assert_eq!(artifact.model, path.join(MODEL_FILE));

        let of_the_file = shell(path, "sha256sum model.pt");
        let artifact = Artifact::open(&path.join(MODEL_FILE), None).unwrap();
        assert_eq!(artifact.sha256, of_the_file);
        assert_eq!(artifact.folder, path);
        // Beside other files the model alone doesn't stand for the folder.
        assert!(Artifact::open(path, Some(&of_the_file)).is_err());
    }

    #[test]
    fn what_a_volume_has_of_its_own_is_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join(MODEL_FILE), "weights").unwrap();
        for lost_and_found in ["lost+found", "a/lost+found"] {
            std::fs::create_dir_all(path.join(lost_and_found)).unwrap();
            std::fs::write(path.join(lost_and_found).join("file"), "found").unwrap();
        }
        assert_eq!(files(path).unwrap(), ["a/lost+found/file", MODEL_FILE]);
    }

    #[test]
    fn a_lone_model_is_known_by_either_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join(MODEL_FILE), "weights").unwrap();
        let of_the_file = shell(path, "sha256sum model.pt");
        let of_the_folder = shell(path, "sha256sum model.pt | sha256sum");
        assert_eq!(Artifact::open(path, None).unwrap().sha256, of_the_file);
        for pinned in [of_the_file, of_the_folder] {
            assert_eq!(Artifact::open(path, Some(&pinned)).unwrap().sha256, pinned);
        }
    }

    #[test]
    fn a_mismatch_names_both_checksums() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MODEL_FILE), "weights").unwrap();
        let pinned = "0".repeat(64);
        let fatal = Artifact::open(folder.path(), Some(&pinned)).unwrap_err();
        assert_eq!(fatal.reason, TerminationReason::ChecksumMismatch);
        assert!(fatal.message.contains(&pinned), "{fatal}");
        assert!(
            fatal
                .message
                .contains(&shell(folder.path(), "sha256sum model.pt")),
            "{fatal}"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let fatal = Artifact::open(folder.path(), None).unwrap_err();
        assert_eq!(fatal.reason, TerminationReason::ArtifactMissing);
        assert!(fatal.message.contains(MODEL_FILE), "{fatal}");
        let fatal = Artifact::open(&folder.path().join("none"), None).unwrap_err();
        assert_eq!(fatal.reason, TerminationReason::ArtifactMissing);
    }
}

//! Files that are read again whenever they change.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

/// The time between two looks at a followed file. Kubernetes swaps a symbolic link above it, which file events miss.
const PERIOD: Duration = Duration::from_secs(1);

/// Reads a file again whenever it has changed, and hands each result to `apply`. Never ends by itself.
///
/// The first look reads it, too: nothing is known of the file that the process started with. `read` may block, so it runs
/// on a thread of its own.
pub async fn follow_file<T, E>(
    path: PathBuf,
    read: fn(&Path) -> Result<T, E>,
    apply: impl FnMut(Result<T, E>),
) where
    T: Send + 'static,
    E: Send + 'static,
{
    let file = path.clone();
    follow_files([path], move || read(&file), apply).await;
}

/// Does what [`follow_file`] does for files that belong together: `read`, which reads them all, is called when any of
/// them has changed.
pub async fn follow_files<T, E, const N: usize>(
    paths: [PathBuf; N],
    read: impl Fn() -> Result<T, E> + Clone + Send + 'static,
    mut apply: impl FnMut(Result<T, E>),
) where
    T: Send + 'static,
    E: Send + 'static,
{
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        ticks.tick().await;
        // Taken before the files are read, so that what changes in between is read once more.
        let now = Some(paths.each_ref().map(|path| Stamp::of(path)));
        if now == seen {
            continue;
        }
        seen = now;
        match tokio::task::spawn_blocking(read.clone()).await {
            Ok(result) => apply(result),
            Err(error) => tracing::error!(%error, files = ?paths, "a file could not be read"),
        }
    }
}

/// The properties of a file that change when it is written, replaced or made readable; `None` where there is no file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|file| {
            (
                file.dev(),
                file.ino(),
                file.len(),
                file.ctime(),
                file.ctime_nsec(),
            )
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use tokio::sync::mpsc;

    use super::*;

    fn read(path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    #[tokio::test]
    async fn each_change_is_handed_over_once_and_a_missing_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let (now, next) = (folder.path().join("now"), folder.path().join("next"));
        fs::write(&now, "one").unwrap();
        let (sender, mut results) = mpsc::unbounded_channel();
        let follow = follow_file(now.clone(), read, move |result: io::Result<String>| {
            sender.send(result.map_err(|error| error.kind())).unwrap();
        });
        let following = tokio::spawn(follow);
        assert_eq!(results.recv().await.unwrap().unwrap(), "one");
        // The file is replaced as careful writers do, by another one of the same size.
        fs::write(&next, "two").unwrap();
        fs::rename(&next, &now).unwrap();
        assert_eq!(results.recv().await.unwrap().unwrap(), "two");
        fs::remove_file(&now).unwrap();
        let missing = results.recv().await.unwrap().unwrap_err();
        assert_eq!(missing, io::ErrorKind::NotFound);
        // Looks at a file that has not changed hand over nothing.
        tokio::time::sleep(PERIOD + PERIOD / 2).await;
        assert!(results.is_empty());
        following.abort();
    }
}

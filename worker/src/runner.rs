//! The one thread that owns the model.

use std::{sync::mpsc, thread};

use tokio::sync::{oneshot, watch};

use crate::{
    executor::{Executor, Lost, Outputs},
    fatal::{Fatal, Reason},
    item::Slice,
    sharing::Sharing,
};

/// A batch on its way to the run thread.
struct Work {
    slices: Vec<Slice>,
    done: oneshot::Sender<Result<Vec<Outputs>, Lost>>,
}

/// Gives batches to the run thread.
pub struct Runner {
    work: mpsc::Sender<Work>,
    sharing: watch::Receiver<Sharing>,
    thread: thread::JoinHandle<()>,
}

impl Runner {
    /// Starts the thread, which makes its executor there; returns once that is done.
    pub async fn start(
        make: impl FnOnce() -> Result<Executor, Fatal> + Send + 'static,
    ) -> Result<Self, Fatal> {
        let (work, batches) = mpsc::channel();
        let (loaded, ready) = oneshot::channel();
        let body = move || match make() {
            Ok(executor) => {
                if loaded.send(Ok(executor.sharing())).is_ok() {
                    serve(executor, &batches);
                }
            }
            // Nobody waits any more when the process is ending.
            Err(fatal) => drop(loaded.send(Err(fatal))),
        };
        let thread = thread::Builder::new()
            .name("run".to_owned())
            .spawn(body)
            .map_err(|error| {
                Fatal::new(
                    Reason::OutOfMemory,
                    format!("failed to start the run thread: {error}"),
                )
            })?;
        let sharing = ready.await.unwrap_or_else(|_| {
            Err(Fatal::new(
                Reason::ModelInvalid,
                "the run thread ended while loading the model",
            ))
        })?;
        Ok(Self {
            work,
            sharing,
            thread,
        })
    }

    /// Which rows may share a batch, now and as more is learnt.
    #[must_use]
    pub fn sharing(&self) -> watch::Receiver<Sharing> {
        self.sharing.clone()
    }

    /// Hands a batch to the thread at once; the receiver gets a result for each slice, in their order.
    #[must_use]
    pub fn run(&self, slices: Vec<Slice>) -> oneshot::Receiver<Result<Vec<Outputs>, Lost>> {
        let (done, result) = oneshot::channel();
        // If the thread is gone, `done` is dropped with the work and the receiver says so.
        drop(self.work.send(Work { slices, done }));
        result
    }

    /// Ends the thread, so that libtorch isn't in use when the process takes it down.
    pub fn finish(self) {
        drop(self.work);
        // A thread that panicked has been noticed by the one who waited for its batch.
        drop(self.thread.join());
    }
}

fn serve(mut executor: Executor, batches: &mpsc::Receiver<Work>) {
    for Work { slices, done } in batches {
        let result = executor.run(&slices);
        // Nobody waits any more when the process is ending.
        drop(done.send(result));
    }
}

//! The one thread that owns the model, and the way to it.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinError,
};

use crate::{
    backend::RunError,
    executor::{DeviceLost, Executor, PaddedOutputs},
    fatal::{Fatal, TerminationReason},
    item::Slice,
    sharing::Sharing,
    stage::{Ready, Stager},
};

/// The bytes up to which a batch is made ready here rather than on a thread of its own: handing it over takes as long.
const INLINE: usize = 64 << 10;

/// The results for a batch, one for each slice in their order.
pub type RunResult = Result<Vec<PaddedOutputs>, DeviceLost>;

/// A batch on its way to the run thread.
struct Work {
    slices: Vec<Slice>,
    ready: Result<Ready, RunError>,
    done: oneshot::Sender<RunResult>,
}

/// The handle of the run thread, which gives it batches.
pub struct Runner {
    work: mpsc::Sender<Work>,
    stager: Arc<Stager>,
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
                if loaded
                    .send(Ok((executor.stager(), executor.sharing())))
                    .is_ok()
                {
                    serve(executor, &batches);
                }
            }
            // The receiver is gone only when the process is ending.
            Err(fatal) => drop(loaded.send(Err(fatal))),
        };
        let thread = thread::Builder::new()
            .name("run".to_owned())
            .spawn(body)
            .map_err(|error| {
                Fatal::new(
                    TerminationReason::OutOfMemory,
                    format!("failed to start the run thread: {error}"),
                )
            })?;
        let (stager, sharing) = ready.await.unwrap_or_else(|_| {
            Err(Fatal::new(
                TerminationReason::ModelInvalid,
                "the run thread ended while loading the model",
            ))
        })?;
        Ok(Self {
            work,
            stager,
            sharing,
            thread,
        })
    }

    /// Tells which rows may share a batch, now and as more is learnt.
    #[must_use]
    pub fn sharing(&self) -> watch::Receiver<Sharing> {
        self.sharing.clone()
    }

    /// Makes a batch ready, which may be done while another runs, and hands it to the thread, which runs one after the
    /// other.
    pub async fn run(&self, slices: Vec<Slice>) -> Result<oneshot::Receiver<RunResult>, JoinError> {
        let bytes: usize = slices.iter().map(Slice::bytes).sum();
        let (slices, ready) = if bytes <= INLINE {
            let ready = self.stager.stage(&slices);
            (slices, ready)
        } else {
            let stager = Arc::clone(&self.stager);
            tokio::task::spawn_blocking(move || {
                let ready = stager.stage(&slices);
                (slices, ready)
            })
            .await?
        };
        let (done, result) = oneshot::channel();
        let work = Work {
            slices,
            ready,
            done,
        };
        // The receiver learns of a thread that is gone: `done` is dropped with the work.
        drop(self.work.send(work));
        Ok(result)
    }

    /// Ends the thread, so that libtorch isn't in use when the process takes it down.
    pub fn finish(self) {
        drop(self.work);
        // A thread that panicked has been noticed by the one who waited for its batch.
        drop(self.thread.join());
    }
}

fn serve(mut executor: Executor, batches: &mpsc::Receiver<Work>) {
    for Work {
        slices,
        ready,
        done,
    } in batches
    {
        let result = executor.run_staged(&slices, ready);
        let is_lost = result.is_err();
        // The receiver is gone only when the process is ending.
        drop(done.send(result));
        // The loop ends where the device is lost, so that what has not begun can be handed back.
        if is_lost {
            break;
        }
    }
}

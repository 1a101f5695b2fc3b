//! Devices that lack memory, fail, hang or are in doubt, which no test can make of real ones.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
        mpsc,
    },
    time::Duration,
};

use carpool_protocol::Tensor;
use carpool_queue::FailureKind;
use carpool_worker::{
    admin::Admin,
    backend::{Backend, RunError, Staged, TorchScript},
    executor::{DeviceLost, Executor},
    item::Slice,
    live_settings::LiveSettings,
    progress::Progress,
    runner::Runner,
};
use common::{
    MLP, assert_close, floats,
    loaded::{Loaded, load, mlp, torch_script},
    numbers,
};

mod common;

/// A device that holds a few rows only, and is lost where it holds none.
struct Small {
    model: TorchScript,
    rows: Arc<AtomicI64>,
    sizes: Sizes,
}

/// The rows of the batches that ran.
type Sizes = Arc<Mutex<Vec<i64>>>;

impl Backend for Small {
    fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        let rows = inputs[0].shape[0];
        let (most, sizes) = (Arc::clone(&self.rows), Arc::clone(&self.sizes));
        let staged = self.model.stage(inputs)?;
        Ok(Box::new(move || {
            sizes.lock().unwrap().push(rows);
            let most = most.load(Ordering::Relaxed);
            if most == 0 {
                let words = "CUDA error: device-side assert triggered";
                return Err(RunError::DeviceLost(words.to_owned()));
            }
            if rows > most {
                return Err(RunError::OutOfMemory("CUDA out of memory".to_owned()));
            }
            staged.launch()?.collect()
        }))
    }

    fn works(&self) -> bool {
        self.rows.load(Ordering::Relaxed) > 0
    }

    fn set_threads(&self, _: usize) {}
}

fn small(rows: i64) -> (Loaded, Sizes, Arc<AtomicI64>) {
    let mut loaded = load(MLP, mlp);
    let model = torch_script(&loaded.folder, &loaded.model).unwrap();
    let (sizes, rows) = (Sizes::default(), Arc::new(AtomicI64::new(rows)));
    let backend = Small {
        model,
        rows: Arc::clone(&rows),
        sizes: Arc::clone(&sizes),
    };
    loaded.executor = Executor::new(Box::new(backend), loaded.model.clone(), 1);
    (loaded, sizes, rows)
}

#[test]
fn a_batch_beyond_memory_is_halved_and_the_size_remembered() {
    let (mut loaded, sizes, _) = small(3);
    let values: Vec<f32> = (0..8 * 4).map(|index| index as f32 / 10.0).collect();
    let item = loaded.item(&numbers(&values));
    let outputs = loaded.alone(&item);
    assert_eq!(outputs[0].shape, [8, 3]);
    assert_eq!(*sizes.lock().unwrap(), [8, 4, 2, 2, 2, 2]);
    let expected = load(MLP, mlp).alone(&item);
    assert_close(&floats(&outputs[0]), &floats(&expected[0]));

    sizes.lock().unwrap().clear();
    let singles: Vec<_> = values
        .chunks(4)
        .map(|row| loaded.item(&numbers(row)))
        .collect();
    assert!(loaded.run(&singles).iter().all(Result::is_ok));
    assert_eq!(*sizes.lock().unwrap(), [2, 2, 2, 2]);
}

#[test]
fn a_lost_device_answers_nothing() {
    let (mut loaded, sizes, _) = small(0);
    let items = [
        loaded.item(&numbers(&[0.0; 4])),
        loaded.item(&numbers(&[1.0; 4])),
    ];
    let lost = loaded.executor.run(&items.map(Slice::whole)).unwrap_err();
    assert_eq!(
        lost,
        DeviceLost("CUDA error: device-side assert triggered".to_owned())
    );
    assert_eq!(sizes.lock().unwrap().len(), 1);
}

#[test]
fn memory_that_others_gave_back_is_used_again() {
    let (mut loaded, sizes, rows) = small(2);
    let singles: Vec<_> = (0..8)
        .map(|index| loaded.item(&numbers(&[index as f32; 4])))
        .collect();
    let mut batch = |sizes: &Sizes| {
        sizes.lock().unwrap().clear();
        assert!(loaded.run(&singles).iter().all(Result::is_ok));
        sizes.lock().unwrap().clone()
    };
    assert_eq!(batch(&sizes), [8, 4, 2, 2, 2, 2]);
    assert_eq!(batch(&sizes), [2, 2, 2, 2]);
    rows.store(8, Ordering::Relaxed);
    let whole = (0..1000).position(|_| batch(&sizes) == [8]);
    assert!(whole.unwrap() > 1, "it is not tried each time");
    // The raised limit lasts.
    assert_eq!(batch(&sizes), [8]);
    // The size is given up as soon as it fails again.
    rows.store(4, Ordering::Relaxed);
    assert_eq!(batch(&sizes), [8, 4, 4]);
    assert_eq!(batch(&sizes), [4, 4]);
}

/// A device that says of numbers above 100 that it failed, and works on or not.
struct Doubtful {
    works: bool,
    asked: Arc<Mutex<usize>>,
}

impl Backend for Doubtful {
    fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        Ok(Box::new(move || {
            if floats(&inputs[0]).iter().any(|value| *value > 100.0) {
                let words = "CUDA error: invalid configuration argument";
                return Err(RunError::DeviceLost(words.to_owned()));
            }
            let rows = inputs[0].shape[0];
            let zeros = vec![0; usize::try_from(rows * 12).unwrap()];
            Ok(vec![
                Tensor::new("y", carpool_protocol::Datatype::Fp32, [rows, 3], zeros).unwrap(),
            ])
        }))
    }

    fn works(&self) -> bool {
        *self.asked.lock().unwrap() += 1;
        self.works
    }

    fn set_threads(&self, _: usize) {}
}

#[test]
fn a_device_is_asked_before_it_is_called_lost() {
    let run = |works| {
        let mut loaded = load(MLP, mlp);
        let asked = Arc::default();
        let backend = Doubtful {
            works,
            asked: Arc::clone(&asked),
        };
        loaded.executor = Executor::new(Box::new(backend), loaded.model.clone(), 1);
        let items = [1.0, 2.0, 1000.0, 4.0].map(|value| loaded.item(&numbers(&[value; 4])));
        let ran = loaded.executor.run(&items.map(Slice::whole));
        (ran, *asked.lock().unwrap())
    };
    let (ran, asked) = run(true);
    // The device was asked for the batch, its half and the request itself.
    assert_eq!(asked, 3);
    for (index, outputs) in ran.unwrap().into_iter().enumerate() {
        match outputs {
            Ok(_) => assert_ne!(index, 2),
            Err(failure) => {
                assert_eq!((index, failure.kind), (2, FailureKind::Model));
                assert!(failure.message.contains("invalid configuration"));
            }
        }
    }
    let (ran, asked) = run(false);
    assert_eq!(asked, 1);
    assert!(ran.unwrap_err().0.contains("invalid configuration"));
}

#[test]
fn the_processor_works() {
    let loaded = load(MLP, mlp);
    assert!(torch_script(&loaded.folder, &loaded.model).unwrap().works());
}

/// A device whose first batch ends only once another is ready.
struct Beside(Arc<(Mutex<usize>, Condvar)>);

impl Backend for Beside {
    fn stage(&self, _: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        let staged = Arc::clone(&self.0);
        *staged.0.lock().unwrap() += 1;
        staged.1.notify_all();
        Ok(Box::new(move || {
            let count = staged.0.lock().unwrap();
            drop(staged.1.wait_while(count, |count| *count < 2).unwrap());
            Err(RunError::Model("it ran".to_owned()))
        }))
    }

    fn works(&self) -> bool {
        true
    }

    fn set_threads(&self, _: usize) {}
}

#[tokio::test]
async fn a_batch_is_made_ready_while_another_runs() {
    let loaded = load(MLP, mlp);
    // The first batch is staged where the runner is, the second is not.
    let slices =
        [4, 4 * 10_000].map(|count| Slice::whole(loaded.item(&numbers(&vec![0.0; count]))));
    let runner = Runner::start(move || {
        let backend = Beside(Arc::default());
        Ok(Executor::new(Box::new(backend), loaded.model, 1))
    })
    .await
    .unwrap();
    let [first, second] = slices.map(|slice| vec![slice]);
    let first = runner.run(first).await.unwrap();
    let second = runner.run(second).await.unwrap();
    for done in [first, second] {
        let ran = done.await.unwrap().unwrap();
        assert!(ran[0].as_ref().unwrap_err().message.contains("it ran"));
    }
    runner.finish();
}

/// A device that hangs until it is let go.
struct Stuck(Arc<Mutex<mpsc::Receiver<()>>>);

impl Backend for Stuck {
    fn stage(&self, _: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        let stuck = Arc::clone(&self.0);
        Ok(Box::new(move || {
            stuck.lock().unwrap().recv().unwrap();
            Err(RunError::Model("let go".to_owned()))
        }))
    }

    fn works(&self) -> bool {
        true
    }

    fn set_threads(&self, _: usize) {}
}

#[tokio::test]
async fn a_run_that_hangs_is_noticed() {
    let loaded = load(MLP, mlp);
    let slice = Slice::whole(loaded.item(&numbers(&[0.0; 4])));
    let settings = LiveSettings {
        max_batch_size: 1,
        max_delay: Duration::ZERO,
        queue: carpool_queue::ConsumerLimits {
            lease: Duration::ZERO,
            max_deliveries: 1,
            max_bytes: 1,
            result_ttl: Duration::from_mins(1),
            default_priority: 1,
        },
        run_timeout: Some(Duration::from_millis(10)),
    };
    let progress = Arc::new(Progress::default());
    let admin = Admin {
        name: hyper::header::HeaderValue::from_static("w"),
        ready: AtomicBool::new(true),
        model: tokio::sync::watch::Sender::new(None),
        metrics: Arc::default(),
        progress: Arc::clone(&progress),
        live_settings: tokio::sync::watch::channel(settings).1,
    };
    let (let_go, stuck) = mpsc::channel();
    let runner = Runner::start(move || {
        let stuck = Stuck(Arc::new(Mutex::new(stuck)));
        let mut executor = Executor::new(Box::new(stuck), loaded.model, 1);
        executor.report_to(progress, Arc::default());
        Ok(executor)
    })
    .await
    .unwrap();
    assert_eq!(admin.hang(), None);
    let done = runner.run(vec![slice]).await.unwrap();
    while admin.hang().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(admin.hang().unwrap().rows, 1);
    let_go.send(()).unwrap();
    let outputs = done.await.unwrap().unwrap();
    assert!(outputs[0].as_ref().unwrap_err().message.contains("let go"));
    assert_eq!(admin.hang(), None);
    runner.finish();
}

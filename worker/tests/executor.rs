//! Batches on real libtorch: alone or together, an item's answer is the same, and a failure is its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::{
    path::Path,
    sync::{Arc, OnceLock, atomic::AtomicBool, mpsc},
    time::Duration,
};

use carpool_crds::{Device, Model};
use carpool_protocol::{InferRequest, InferResponse, Tensor};
use carpool_queue::FailureKind;
use carpool_worker::{
    admin::Admin,
    assemble::Assembler,
    backend::{Backend, RunError, TorchScript},
    executor::{Executor, Lost},
    fatal::Reason,
    item::{Item, Slice},
    live::Live,
    metrics::Metrics,
    progress::Progress,
    runner::Runner,
    warmup::warm_up,
};
use common::{HIDDEN, MLP, TEXT, WORDS, assert_close, declared, floats, numbers, texts, words};

mod common;

struct Loaded {
    assembler: Assembler,
    executor: Executor,
    model: Model,
}

fn load(folder: &Path, yaml: &str) -> Loaded {
    let model = declared(yaml);
    let assembler = Assembler::load("m", "r", &model, folder).unwrap();
    let backend = TorchScript::load(&folder.join("model.pt"), &model, Device::Cpu, 1).unwrap();
    let executor = Executor::new(Box::new(backend), model.clone());
    Loaded {
        assembler,
        executor,
        model,
    }
}

impl Loaded {
    fn item(&self, request: &InferRequest) -> Arc<Item> {
        Arc::new(self.assembler.item(request.encode()).unwrap())
    }

    fn run(&mut self, items: &[Arc<Item>]) -> Vec<Result<Vec<Tensor>, carpool_queue::Failure>> {
        let slices: Vec<Slice> = items.iter().cloned().map(Slice::whole).collect();
        self.executor.run(&slices).unwrap()
    }
}

#[test]
fn together_as_alone_in_mixed_lengths() {
    for yaml in [WORDS, HIDDEN] {
        let folder = tempfile::tempdir().unwrap();
        if yaml == WORDS {
            common::write_words(folder.path());
        } else {
            common::write_hidden(folder.path());
        }
        let mut loaded = load(folder.path(), yaml);
        let items: Vec<_> = (1..=12)
            .map(|length| {
                loaded.item(&words(
                    &(0..length)
                        .map(|index| (index * 7 + length) % 50)
                        .collect::<Vec<_>>(),
                ))
            })
            .collect();
        let together = loaded.run(&items);
        for (item, together) in items.iter().zip(together) {
            let together = together.unwrap();
            let alone = loaded.run(&[Arc::clone(item)]).remove(0).unwrap();
            assert_eq!(together[0].shape, alone[0].shape);
            assert_close(&floats(&together[0]), &floats(&alone[0]));
            if yaml == HIDDEN {
                // What was padded is cut back.
                assert_eq!(
                    together[0].shape,
                    [1, i64::try_from(item.length).unwrap(), 4]
                );
            }
        }
    }
}

#[test]
fn poison_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    common::write_words(folder.path());
    let mut loaded = load(folder.path(), WORDS);
    let mut items: Vec<_> = (1..8).map(|id| loaded.item(&words(&[id, id]))).collect();
    // No such row in the embedding table.
    items.insert(5, loaded.item(&words(&[3, 999])));
    let metrics = Arc::new(Metrics::default());
    loaded
        .executor
        .report_to(Arc::default(), Arc::clone(&metrics));
    let outputs = loaded.run(&items);
    for (index, outputs) in outputs.iter().enumerate() {
        match outputs {
            Ok(_) => assert_ne!(index, 5),
            Err(failure) => {
                assert_eq!((index, failure.kind), (5, FailureKind::Model));
                assert!(
                    failure.message.contains("index out of range"),
                    "{}",
                    failure.message
                );
            }
        }
    }
    // Of eight: four; then two, one and one that works. More runs would be a search, not a halving.
    assert!(
        metrics
            .encode()
            .unwrap()
            .contains("carpool_batch_size_rows_count 3")
    );
}

#[test]
fn slices_of_a_request_are_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    common::write_mlp(folder.path(), 0);
    let mut loaded = load(folder.path(), MLP);
    let values: Vec<f32> = (0..10 * 4).map(|index| index as f32 / 10.0).collect();
    let large = loaded.item(&numbers(&values));
    let small = loaded.item(&numbers(&values[..4]));
    let whole = loaded.run(&[Arc::clone(&large)]).remove(0).unwrap();
    let slices = [
        Slice {
            item: Arc::clone(&large),
            rows: 3..7,
        },
        Slice::whole(small),
    ];
    let outputs = loaded.executor.run(&slices).unwrap();
    assert_close(
        &floats(&outputs[0].as_ref().unwrap()[0]),
        &floats(&whole[0])[9..21],
    );
    assert_close(
        &floats(&outputs[1].as_ref().unwrap()[0]),
        &floats(&whole[0])[..3],
    );
}

#[test]
fn text_becomes_a_label() {
    let folder = tempfile::tempdir().unwrap();
    common::write_text(folder.path());
    let mut loaded = load(folder.path(), TEXT);
    let item = loaded.item(&texts(
        &["w1 w2", "w3 nonsense w5"],
        &["label", "score", "logits"],
    ));
    assert_eq!((item.rows, item.length), (2, 3));
    let outputs = loaded.run(&[Arc::clone(&item)]).remove(0).unwrap();
    let response = InferResponse::decode(loaded.assembler.answer(&item, outputs).unwrap()).unwrap();
    assert_eq!(
        (response.model_name.as_str(), response.id.as_str()),
        ("m", "mine")
    );
    let [labels, scores, logits] = response.outputs.try_into().unwrap();
    let logits = floats(&logits);
    for (row, (label, score)) in labels
        .strings()
        .unwrap()
        .iter()
        .zip(floats(&scores))
        .enumerate()
    {
        let (negative, positive) = (logits[2 * row], logits[2 * row + 1]);
        assert_eq!(
            *label,
            if negative > positive {
                "NEGATIVE"
            } else {
                "POSITIVE"
            }
        );
        assert_close(
            &[score],
            &[1.0 / (1.0 + (-(negative - positive).abs()).exp())],
        );
    }
    // Its tensors stay reachable: the same ids without text give the same logits.
    let raw = loaded.item(&words(&[1, 2]));
    assert_eq!(raw.outputs, ["logits"]);
    assert_close(
        &floats(&loaded.run(&[raw]).remove(0).unwrap()[0]),
        &logits[..2],
    );
    // Longer than maxLength is cut.
    assert_eq!(
        loaded
            .item(&texts(&["w1 w1 w1 w1 w1 w1 w1 w1"], &[]))
            .length,
        6
    );
}

#[test]
fn what_a_client_gets_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    common::write_words(folder.path());
    let loaded = load(folder.path(), WORDS);
    let mut missing = words(&[1]);
    missing.inputs.pop();
    let mut output = words(&[1]);
    output.outputs = texts(&["w1"], &["none"]).outputs;
    for (request, named) in [
        (missing, "attention_mask"),
        (output, "none"),
        (numbers(&[0.0; 4]), "input_ids"),
        (words(&[]), "dimension"),
    ] {
        let failure = loaded.assembler.item(request.encode()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.contains(named), "{}", failure.message);
    }
    assert_eq!(
        loaded.assembler.item("nonsense".into()).unwrap_err().kind,
        FailureKind::Invalid
    );
}

#[test]
fn warming_up_proves_the_outputs() {
    let folder = tempfile::tempdir().unwrap();
    common::write_mlp(folder.path(), 0);
    let mut loaded = load(folder.path(), MLP);
    warm_up(&mut loaded.executor, &loaded.assembler, &loaded.model, 8).unwrap();
    for (from, to, named) in [
        ("shape: [3]", "shape: [2]", "[1, 3]"),
        (
            "name: y, datatype: FP32",
            "name: y, datatype: INT64",
            "INT64",
        ),
        ("shape: [4]", "shape: [5]", "mat1 and mat2"),
        (
            "[{name: y",
            "[{name: z, datatype: FP32, shape: [3]}, {name: y",
            "2 are declared",
        ),
    ] {
        let mut wrong = load(folder.path(), &MLP.replace(from, to));
        let fatal = warm_up(&mut wrong.executor, &wrong.assembler, &wrong.model, 8).unwrap_err();
        assert_eq!(fatal.reason, Reason::ModelInvalid);
        assert!(fatal.message.contains(named), "{fatal}");
    }
    std::fs::write(folder.path().join("model.pt"), "not a model").unwrap();
    let Err(fatal) = TorchScript::load(
        &folder.path().join("model.pt"),
        &loaded.model,
        Device::Cpu,
        1,
    ) else {
        panic!("loaded nonsense");
    };
    assert_eq!(fatal.reason, Reason::ModelInvalid);
}

/// A device that holds a few rows only, and may break.
struct Small {
    model: TorchScript,
    rows: i64,
    sizes: Arc<std::sync::Mutex<Vec<i64>>>,
}

impl Backend for Small {
    fn forward(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let rows = inputs[0].shape[0];
        self.sizes.lock().unwrap().push(rows);
        if self.rows == 0 {
            return Err(RunError::Lost(
                "CUDA error: device-side assert triggered".to_owned(),
            ));
        }
        if rows > self.rows {
            return Err(RunError::OutOfMemory("CUDA out of memory".to_owned()));
        }
        self.model.forward(inputs)
    }
}

fn small(folder: &Path, rows: i64) -> (Loaded, Arc<std::sync::Mutex<Vec<i64>>>) {
    let mut loaded = load(folder, MLP);
    let model = TorchScript::load(&folder.join("model.pt"), &loaded.model, Device::Cpu, 1).unwrap();
    let sizes = Arc::default();
    let backend = Small {
        model,
        rows,
        sizes: Arc::clone(&sizes),
    };
    loaded.executor = Executor::new(Box::new(backend), loaded.model.clone());
    (loaded, sizes)
}

#[test]
fn a_batch_beyond_memory_is_halved_and_the_size_remembered() {
    let folder = tempfile::tempdir().unwrap();
    common::write_mlp(folder.path(), 0);
    let (mut loaded, sizes) = small(folder.path(), 3);
    let values: Vec<f32> = (0..8 * 4).map(|index| index as f32 / 10.0).collect();
    let item = loaded.item(&numbers(&values));
    let outputs = loaded.run(&[Arc::clone(&item)]).remove(0).unwrap();
    assert_eq!(outputs[0].shape, [8, 3]);
    assert_eq!(*sizes.lock().unwrap(), [8, 4, 2, 2, 2, 2]);
    let expected = load(folder.path(), MLP).run(&[item]).remove(0).unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    common::write_mlp(folder.path(), 0);
    let (mut loaded, sizes) = small(folder.path(), 0);
    let items = [
        loaded.item(&numbers(&[0.0; 4])),
        loaded.item(&numbers(&[1.0; 4])),
    ];
    let lost = loaded.executor.run(&items.map(Slice::whole)).unwrap_err();
    assert_eq!(
        lost,
        Lost("CUDA error: device-side assert triggered".to_owned())
    );
    assert_eq!(sizes.lock().unwrap().len(), 1);
}

/// A device that hangs until it is let go.
struct Stuck(mpsc::Receiver<()>);

impl Backend for Stuck {
    fn forward(&mut self, _: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        self.0.recv().unwrap();
        Err(RunError::Model("let go".to_owned()))
    }
}

#[tokio::test]
async fn a_run_that_hangs_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    common::write_mlp(folder.path(), 0);
    let loaded = load(folder.path(), MLP);
    let slice = Slice::whole(loaded.item(&numbers(&[0.0; 4])));
    let live = Live {
        max_batch_size: 1,
        max_delay: Duration::ZERO,
        lease: Duration::from_millis(10),
        max_deliveries: 1,
    };
    let progress = Arc::new(Progress::default());
    let admin = Admin {
        ready: AtomicBool::new(true),
        model: OnceLock::new(),
        metrics: Arc::default(),
        progress: Arc::clone(&progress),
        live: tokio::sync::watch::channel(live).1,
    };
    let (let_go, stuck) = mpsc::channel();
    let runner = Runner::start(Arc::clone(&progress), move || {
        let mut executor = Executor::new(Box::new(Stuck(stuck)), loaded.model);
        executor.report_to(progress, Arc::default());
        Ok(executor)
    })
    .await
    .unwrap();
    assert!(admin.alive());
    let done = runner.run(vec![slice]);
    while admin.alive() {
        tokio::task::yield_now().await;
    }
    let_go.send(()).unwrap();
    let outputs = done.await.unwrap().unwrap();
    assert!(outputs[0].as_ref().unwrap_err().message.contains("let go"));
    assert!(admin.alive());
    runner.finish();
}

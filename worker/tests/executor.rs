//! Batches on real libtorch: alone or together, an item's answer is the same, and a failure is its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
        mpsc,
    },
    time::Duration,
};

use carpool_crds::{Device, Model};
use carpool_protocol::{InferRequest, InferResponse, Tensor};
use carpool_queue::FailureKind;
use carpool_worker::{
    admin::Admin,
    assemble::Assembler,
    backend::{Backend, RunError, Staged, TorchScript},
    executor::{Executor, Lost},
    fatal::{Fatal, Reason},
    item::{Item, Slice},
    live::Live,
    metrics::Metrics,
    probe,
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
    folder: tempfile::TempDir,
}

/// Loads what `write` writes as what `yaml` declares.
fn load(yaml: &str, write: impl FnOnce(&Path)) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let model = declared(yaml);
    let assembler = Assembler::load("m", "r", &model, folder.path()).unwrap();
    let backend = torch_script(&folder, &model).unwrap();
    let executor = Executor::new(Box::new(backend), model.clone(), 1);
    Loaded {
        assembler,
        executor,
        model,
        folder,
    }
}

fn torch_script(folder: &tempfile::TempDir, model: &Model) -> Result<TorchScript, Fatal> {
    TorchScript::load(&folder.path().join("model.pt"), model, Device::Cpu)
}

fn mlp(folder: &Path) {
    common::write_mlp(folder, 0);
}

impl Loaded {
    fn item(&self, request: &InferRequest) -> Arc<Item> {
        Arc::new(self.assembler.item(request.encode()).unwrap())
    }

    fn run(&mut self, items: &[Arc<Item>]) -> Vec<Result<Vec<Tensor>, carpool_queue::Failure>> {
        let slices: Vec<Slice> = items.iter().cloned().map(Slice::whole).collect();
        self.executor.run(&slices).unwrap()
    }

    fn alone(&mut self, item: &Arc<Item>) -> Vec<Tensor> {
        self.run(&[Arc::clone(item)]).remove(0).unwrap()
    }

    fn warm_up(&mut self, max_batch_size: usize) -> Result<(), Fatal> {
        let examples = probe::examples(&self.assembler, &self.model, self.folder.path())?;
        warm_up(
            &mut self.executor,
            &self.assembler,
            &self.model,
            &examples,
            max_batch_size,
        )
    }
}

#[test]
fn together_as_alone_in_mixed_lengths() {
    for mut loaded in [
        load(WORDS, common::write_words),
        load(HIDDEN, common::write_hidden),
    ] {
        let items: Vec<_> = (1..=12)
            .map(|length| {
                let ids = (0..length).map(|index| (index * 7 + length) % 50);
                loaded.item(&words(&ids.collect::<Vec<_>>()))
            })
            .collect();
        let together = loaded.run(&items);
        for (item, together) in items.iter().zip(together) {
            let together = together.unwrap();
            let alone = loaded.alone(item);
            // What was padded is cut back.
            assert_eq!(together[0].shape, alone[0].shape);
            assert_close(&floats(&together[0]), &floats(&alone[0]));
        }
    }
}

#[test]
fn poison_fails_alone() {
    let mut loaded = load(WORDS, common::write_words);
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
                let message = &failure.message;
                assert!(message.contains("index out of range"), "{message}");
            }
        }
    }
    // Of eight: four; then two, one and one that works. More runs would be a search, not a halving.
    assert!(
        metrics
            .encode()
            .unwrap()
            .contains("carpool_worker_batch_size_rows_count 3")
    );
}

#[test]
fn slices_of_a_request_are_its_rows() {
    let mut loaded = load(MLP, mlp);
    let values: Vec<f32> = (0..10 * 4).map(|index| index as f32 / 10.0).collect();
    let large = loaded.item(&numbers(&values));
    let small = loaded.item(&numbers(&values[..4]));
    let whole = loaded.alone(&large);
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
    let mut loaded = load(TEXT, common::write_text);
    let item = loaded.item(&texts(
        &["w1 w2", "w3 nonsense w5"],
        &["label", "score", "logits"],
    ));
    assert_eq!((item.rows, item.length()), (2, 3));
    let outputs = loaded.alone(&item);
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
        let best = ["NEGATIVE", "POSITIVE"][usize::from(positive > negative)];
        assert_eq!(*label, best);
        assert_close(
            &[score],
            &[1.0 / (1.0 + (-(negative - positive).abs()).exp())],
        );
    }
    // Its tensors stay reachable: the same ids without text give the same logits.
    let raw = loaded.item(&words(&[1, 2]));
    assert_eq!(raw.outputs, ["logits"]);
    assert_close(&floats(&loaded.alone(&raw)[0]), &logits[..2]);
    // Longer than maxLength is cut.
    let long = loaded.item(&texts(&["w1 w1 w1 w1 w1 w1 w1 w1"], &[]));
    assert_eq!(long.length(), 6);
}

#[test]
fn shorter_texts_are_padded_as_declared() {
    let padded = TEXT.replace("input_ids, ", "input_ids, pad: 1, ");
    let loaded = load(&padded, common::write_text);
    let item = loaded.item(&texts(&["w5", "w2 w3"], &[]));
    for (input, expected) in item.inputs.iter().zip([[5, 1, 2, 3], [1, 0, 1, 1]]) {
        assert_eq!(input.data, expected.map(i64::to_le_bytes).concat());
    }
}

#[test]
fn texts_are_padded_to_the_one_length_that_a_model_takes() {
    let mut variable = load(TEXT, common::write_text);
    let mut fixed = load(&TEXT.replace("[-1]", "[8]"), common::write_text);
    let long = "w7 ".repeat(20);
    let request = texts(&["w5", "w2 w3", &long], &[]);
    let item = fixed.item(&request);
    assert_eq!(item.length(), 0);
    for (input, [first, last]) in item.inputs.iter().zip([[5, 7], [1, 1]]) {
        assert_eq!(input.shape, [3, 8]);
        let row = |value: i64, times| [vec![value; times], vec![0; 8 - times]].concat();
        let values = |row: Vec<i64>| row.iter().flat_map(|value| value.to_le_bytes()).collect();
        let expected: [Vec<u8>; 2] = [row(first, 1), row(last, 6)].map(values);
        assert_eq!(input.data[..64], expected[0]);
        assert_eq!(input.data[128..], expected[1]);
    }
    let expected = variable.item(&request);
    assert_close(
        &floats(&fixed.alone(&item)[0]),
        &floats(&variable.alone(&expected)[0]),
    );
}

#[test]
fn a_text_model_that_texts_do_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    common::write_text(folder.path());
    let refusal = |yaml: &str| {
        let fatal = Assembler::load("m", "r", &declared(yaml), folder.path());
        let fatal = fatal.err().unwrap();
        assert_eq!(fatal.reason, Reason::ModelInvalid);
        fatal.message
    };
    let mask = "- {name: attention_mask, datatype: INT64, shape: [-1]}\n";
    let fixed = TEXT.replace("[-1]", "[5]");
    for (yaml, says) in [
        (
            fixed.clone(),
            "text.maxLength: 6 tokens don't fit into inputs of shape [5]",
        ),
        (
            TEXT.replace(mask, "").replace("[-1]", "[6]"),
            "input_ids needs pad",
        ),
        (
            TEXT.replacen("[-1]", "[6]", 1),
            "input_ids is [6], attention_mask is [-1]",
        ),
        (
            TEXT.replace("[-1]", "[1, -1]"),
            "one and the same dimension",
        ),
    ] {
        let message = refusal(&yaml);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn texts_are_not_padded_where_nothing_tells_the_model() {
    let mask = "- {name: attention_mask, datatype: INT64, shape: [-1]}\n";
    let unmasked = TEXT.replace(mask, "");
    let folder = tempfile::tempdir().unwrap();
    common::write_text(folder.path());
    let item = |yaml: &str, given: &[&str]| {
        let assembler = Assembler::load("m", "r", &declared(yaml), folder.path()).unwrap();
        assembler.item(texts(given, &[]).encode())
    };
    assert_eq!(item(&unmasked, &["w1 w2", "w3 w4"]).unwrap().length(), 2);
    for given in [&["w1 w2", "w3"][..], &[""]] {
        let failure = item(&unmasked, given).err().unwrap();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(
            failure.message.contains("one by one"),
            "{}",
            failure.message
        );
    }
    let told = unmasked.replace("input_ids, ", "input_ids, pad: 0, ");
    assert_eq!(item(&told, &["w1 w2", "w3"]).unwrap().length(), 2);
}

#[test]
fn what_a_client_gets_wrong_is_named() {
    let loaded = load(WORDS, common::write_words);
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
fn a_value_outside_its_bounds_is_named_and_no_warm_up_makes_one() {
    let bounded = MLP.replace("shape: [4]", "shape: [4], minimum: 2, maximum: 3.5");
    let mut loaded = load(&bounded, mlp);
    loaded.warm_up(8).unwrap();
    loaded.item(&numbers(&[2.0, 3.5, 2.5, 3.0]));
    for value in [1.5, 4.0, f32::NAN, f32::INFINITY] {
        let request = numbers(&[2.0, 2.0, value, 2.0]);
        let failure = loaded.assembler.item(request.encode()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert_eq!(
            failure.message,
            format!(
                "the input x holds {value} (element 2), which is outside of its minimum 2 and maximum 3.5"
            )
        );
    }

    // Without the bounds, ids of 50 and more are an error of the model; made-up ones keep to them.
    let bounded = HIDDEN.replace("pad: 0", "pad: 0, minimum: 45, maximum: 49");
    let mut loaded = load(&bounded, common::write_hidden);
    loaded.warm_up(8).unwrap();
    assert!(loaded.executor.sharing().borrow().padded);
    for id in [44, 50, -1] {
        let failure = loaded.assembler.item(words(&[45, id]).encode());
        let message = failure.unwrap_err().message;
        assert!(
            message.contains(&format!("holds {id} (element 1)")),
            "{message}"
        );
    }
}

#[test]
fn warming_up_proves_the_outputs() {
    let mut loaded = load(MLP, mlp);
    loaded.warm_up(8).unwrap();
    for (from, to, named) in [
        ("shape: [3]", "shape: [2]", "[1, 3]"),
        (
            "name: y, datatype: FP32",
            "name: y, datatype: INT64",
            "INT64",
        ),
        (
            "[{name: y",
            "[{name: z, datatype: FP32, shape: [3]}, {name: y",
            "2 are declared",
        ),
    ] {
        let fatal = load(&MLP.replace(from, to), mlp).warm_up(8).unwrap_err();
        assert_eq!(fatal.reason, Reason::ModelInvalid);
        assert!(fatal.message.contains(named), "{fatal}");
    }
    std::fs::write(loaded.folder.path().join("model.pt"), "not a model").unwrap();
    let Err(fatal) = torch_script(&loaded.folder, &loaded.model) else {
        panic!("loaded nonsense");
    };
    assert_eq!(fatal.reason, Reason::ModelInvalid);
}

#[test]
fn a_model_for_single_rows_is_refused_where_there_are_batches() {
    let mut loaded = load(MLP, common::write_single);
    loaded.warm_up(1).unwrap();
    let fatal = load(MLP, common::write_single).warm_up(8).unwrap_err();
    assert_eq!(fatal.reason, Reason::ModelInvalid);
    assert!(fatal.message.contains("maxBatchSize: 1"), "{fatal}");
}

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
                return Err(RunError::Lost(words.to_owned()));
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
        Lost("CUDA error: device-side assert triggered".to_owned())
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
    // It lasts.
    assert_eq!(batch(&sizes), [8]);
    // And is given up as soon as it fails again.
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
                return Err(RunError::Lost(words.to_owned()));
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
    // The batch, its half and the request itself.
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
    let live = Live {
        max_batch_size: 1,
        max_delay: Duration::ZERO,
        lease: Duration::ZERO,
        run_timeout: Some(Duration::from_millis(10)),
        max_deliveries: 1,
    };
    let progress = Arc::new(Progress::default());
    let admin = Admin {
        name: hyper::header::HeaderValue::from_static("w"),
        ready: AtomicBool::new(true),
        model: tokio::sync::watch::Sender::new(None),
        metrics: Arc::default(),
        progress: Arc::clone(&progress),
        live: tokio::sync::watch::channel(live).1,
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

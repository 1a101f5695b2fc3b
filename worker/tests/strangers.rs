//! Models as strangers bring them: for each, what it is found to be fit for, and that no answer depends on the company
//! in a batch.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers belong to the tests"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use carpool_crds::{Device, LoadedReason, Model};
use carpool_protocol::{InferResponse, Tensor, json};
use carpool_worker::{
    assemble::Assembler,
    backend::TorchScript,
    batch::concatenate,
    executor::Executor,
    fatal::{Fatal, TerminationReason},
    item::{Item, Slice},
    probe,
    proof::difference,
    sharing::Sharing,
    wait_queue::{Pending, WaitQueue},
    warmup::warm_up,
};
use serde_json::{Value, json};
use tokio::time::Instant;

/// The folder of cases that `tests/models/strangers.py` makes, made once.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/strangers.py");
            let status = Command::new(carpool_testkit::python())
                .arg(script)
                .arg(folder.path())
                // The script uses a kind of quantisation that models in use still have, and of which torch warns.
                .env("PYTHONWARNINGS", "ignore")
                // The variable would give Python this process' libtorch, which is the CPU half of its own.
                .env_remove("LD_LIBRARY_PATH")
                .status();
            assert!(status.unwrap().success());
            folder
        })
        .path()
}

struct Case {
    model: Model,
    assembler: Assembler,
    executor: Executor,
    items: Vec<Arc<Item>>,
    answers: Vec<Vec<Tensor>>,
    folder: PathBuf,
}

impl Case {
    fn load(name: &str) -> Self {
        Self::changed(name, |_| ())
    }

    /// The case with another `spec.model`.
    fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Self {
        let folder = folder().join(name);
        let mut case: Value =
            serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        change(&mut case["model"]);
        let model: Model = serde_json::from_value(case["model"].take()).unwrap();
        let assembler = Assembler::load("m", "r", &model, &folder).unwrap();
        let backend = TorchScript::load(&folder.join("model.pt"), &model, Device::Cpu).unwrap();
        let executor = Executor::new(Box::new(backend), model.clone(), 1);
        let list = |value: &Value| value.as_array().unwrap().clone();
        let items = list(&case["requests"]).into_iter().map(|inputs| {
            let body = json!({ "inputs": inputs }).to_string();
            let request = json::decode_request(body.as_bytes(), "", "").unwrap();
            Arc::new(assembler.item(request.encode()).unwrap())
        });
        let answers = list(&case["answers"]).into_iter().map(|outputs| {
            let body = json!({"model_name": "m", "outputs": outputs}).to_string();
            json::decode_response(body.as_bytes()).unwrap().outputs
        });
        Self {
            items: items.collect(),
            answers: answers.collect(),
            model,
            assembler,
            executor,
            folder,
        }
    }

    fn warm_up(&mut self, max_batch_size: usize) -> Result<Sharing, Fatal> {
        let examples = probe::examples(&self.assembler, &self.model, &self.folder)?;
        warm_up(
            &mut self.executor,
            &self.assembler,
            &self.model,
            &examples,
            max_batch_size,
        )?;
        Ok(self.executor.sharing().borrow().clone())
    }

    /// Runs all requests as the service would batch them; gives their answers, and the sizes of the batches.
    fn together(&mut self) -> (Vec<Result<Vec<Tensor>, String>>, Vec<usize>) {
        let mut queue = WaitQueue::default();
        for (id, item) in self.items.iter().enumerate() {
            let now = Instant::now();
            queue.push(Pending {
                id,
                item: Arc::clone(item),
                arrived: now,
                expires: now + Duration::from_mins(1),
                quarantine: None,
                parts: Vec::new(),
                done: 0,
            });
        }
        let (mut answers, mut sizes) = (BTreeMap::new(), Vec::new());
        while !queue.is_empty() {
            let sharing = self.executor.sharing().borrow().clone();
            let plan = queue.plan(sharing.max_rows.min(8), sharing.padded);
            sizes.push(plan.slices.len());
            let outputs = self.executor.run(&plan.slices).unwrap();
            for (pending, outputs) in plan.requests.into_iter().zip(outputs) {
                let answer = outputs.map_err(|failure| failure.message).map(|outputs| {
                    let body = self.assembler.answer(&pending.item, outputs).unwrap();
                    InferResponse::decode(body).unwrap().outputs
                });
                answers.insert(pending.id, answer);
            }
        }
        (answers.into_values().collect(), sizes)
    }

    /// Asserts that every answer is that of the row alone; gives the sizes of the batches.
    fn assert_right(&mut self, name: &str) -> Vec<usize> {
        let (answers, sizes) = self.together();
        for (answer, expected) in answers.into_iter().zip(&self.answers) {
            let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
            let difference = difference(expected, &answer);
            assert!(difference.is_none(), "{name}: {}", difference.unwrap());
        }
        sizes
    }
}

#[test]
fn each_shares_a_batch_as_far_as_no_answer_changes() {
    // The columns: whether rows are padded, whether they share a batch, and why not.
    for (name, padded, batched, limit) in [
        ("embedding-mean", false, true, LoadedReason::Loaded),
        ("embedding-mean-pad", false, true, LoadedReason::Unpadded),
        ("hidden-pad", true, true, LoadedReason::Loaded),
        ("masked-encoder", true, true, LoadedReason::Loaded),
        ("batch-norm-training", false, false, LoadedReason::Unbatched),
        ("batch-mean", false, false, LoadedReason::Unbatched),
        ("quantised-linear", false, false, LoadedReason::Unbatched),
        ("dictionary", false, true, LoadedReason::Loaded),
        ("doubled", false, false, LoadedReason::Unbatched),
        ("decoder", false, false, LoadedReason::Unbatched),
        ("inverse", false, true, LoadedReason::Loaded),
        ("guarded", false, true, LoadedReason::Loaded),
        ("picky", false, true, LoadedReason::Loaded),
        ("particular", false, false, LoadedReason::Unproven),
        ("particular-example", false, true, LoadedReason::Loaded),
        ("packed-gru", true, true, LoadedReason::Loaded),
        ("wave", false, true, LoadedReason::Loaded),
    ] {
        let mut case = Case::load(name);
        let begun = std::time::Instant::now();
        let sharing = case
            .warm_up(8)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: {:?}: {}", begun.elapsed(), sharing.message);
        assert_eq!(
            (sharing.padded, sharing.max_rows > 1, sharing.reason),
            (padded, batched, limit),
            "{name}: {}",
            sharing.message
        );
        assert_eq!(
            sharing.message.is_empty(),
            limit == LoadedReason::Loaded,
            "{name}"
        );
        let sizes = case.assert_right(name);
        let first = &case.items[0].lengths;
        let of_equal_shape = case.items[1..].iter().any(|item| item.lengths == *first);
        let share = sizes.iter().any(|size| *size > 1);
        assert_eq!(
            share,
            batched && (padded || of_equal_shape),
            "{name}: {sizes:?}"
        );
    }
}

#[test]
fn a_model_of_one_row_is_served_where_the_manifest_says_so() {
    let fatal = Case::load("one-row").warm_up(8).unwrap_err();
    assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
    assert!(
        fatal.message.contains("set spec.batching.maxBatchSize: 1"),
        "{fatal}"
    );
    let mut case = Case::load("one-row");
    let sharing = case.warm_up(1).unwrap();
    // A larger batch that is asked for later is none, either.
    assert_eq!(
        (sharing.max_rows, sharing.reason),
        (1, LoadedReason::Unbatched)
    );
    assert_eq!(case.assert_right("one-row"), [1; 4]);
}

#[test]
fn a_batch_that_can_not_be_told_apart_is_not_tried_again() {
    // The model was never warmed up, so nothing is known of it.
    let mut case = Case::load("one-row");
    let sizes = case.assert_right("one-row");
    assert_eq!(sizes, [4]);
    let message = case.executor.sharing().borrow().message.clone();
    assert_eq!(message.matches("served unbatched").count(), 1, "{message}");
    assert_eq!(case.assert_right("one-row"), [1; 4]);
}

#[test]
fn outputs_that_a_dictionary_lacks_are_named_with_those_it_has() {
    let mut case = Case::changed("dictionary", |model| {
        model["outputs"][0]["name"] = json!("logit");
    });
    let fatal = case.warm_up(8).unwrap_err();
    assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
    for named in [r#""logit""#, r#""hidden", "logits""#] {
        assert!(fatal.message.contains(named), "{fatal}");
    }
}

#[test]
fn rows_of_different_shapes_in_one_request_are_an_error_that_says_so() {
    let mut case = Case::load("decoder");
    let body =
        json!({"inputs": [{"name": "n", "datatype": "INT64", "shape": [2, 1], "data": [2, 6]}]});
    let request = json::decode_request(body.to_string().as_bytes(), "", "").unwrap();
    let item = Arc::new(case.assembler.item(request.encode()).unwrap());
    let parts = (0..2).map(|row| {
        let slice = Slice {
            item: Arc::clone(&item),
            rows: row..row + 1,
        };
        case.executor.run(&[slice]).unwrap().remove(0).unwrap()
    });
    let error = concatenate(parts.collect()).unwrap_err();
    assert!(
        error.contains("output y") && error.contains("one by one"),
        "{error}"
    );
}

#[test]
fn an_example_that_fails_or_is_not_there_is_named() {
    for (example, reason, says) in [
        (
            json!({"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}}),
            TerminationReason::ModelInvalid,
            "x must be at least 100",
        ),
        (
            json!({"request": {"inputs": []}}),
            TerminationReason::ModelInvalid,
            "spec.model.example",
        ),
        (
            json!({"file": "none.json"}),
            TerminationReason::ArtifactMissing,
            "failed to read none.json",
        ),
    ] {
        let mut case = Case::changed("particular", |model| model["example"] = example);
        let fatal = case.warm_up(8).unwrap_err();
        assert_eq!(fatal.reason, reason);
        assert!(fatal.message.contains(says), "{fatal}");
    }
}

#[test]
fn one_row_of_an_example_is_beside_one_made_of_it() {
    let one = json!({"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}});
    for (name, limit) in [
        ("batch-mean", LoadedReason::Unbatched),
        ("guarded", LoadedReason::Loaded),
    ] {
        let mut case = Case::changed(name, |model| model["example"] = one.clone());
        let sharing = case.warm_up(8).unwrap();
        assert_eq!(sharing.reason, limit, "{name}: {}", sharing.message);
    }
}

#[test]
fn an_input_that_disagrees_with_another_of_its_dimension_is_refused() {
    let case = Case::load("masked-encoder");
    let input = |name: &str, length: usize| json!({"name": name, "datatype": "INT64", "shape": [1, length], "data": vec![1; length]});
    let body = json!({"inputs": [input("input_ids", 3), input("attention_mask", 2)]}).to_string();
    let request = json::decode_request(body.as_bytes(), "", "").unwrap();
    let failure = case.assembler.item(request.encode()).unwrap_err();
    assert!(failure.message.contains("seq is 3"), "{}", failure.message);
}

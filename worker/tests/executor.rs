//! Batches on real libtorch: alone or together, an item's answer is the same, and a failure is its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::sync::Arc;

use carpool_protocol::InferResponse;
use carpool_queue::FailureKind;
use carpool_worker::{
    assemble::Assembler, fatal::TerminationReason, item::Slice, metrics::Metrics,
};
use common::{
    HIDDEN, MLP, TEXT, WORDS, assert_close, declared, floats,
    loaded::{load, mlp, torch_script},
    numbers, texts, words,
};

mod common;

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
            // The padding is cut back.
            assert_eq!(together[0].shape, alone[0].shape);
            assert_close(&floats(&together[0]), &floats(&alone[0]));
        }
    }
}

#[test]
fn poison_fails_alone() {
    let mut loaded = load(WORDS, common::write_words);
    let mut items: Vec<_> = (1..8).map(|id| loaded.item(&words(&[id, id]))).collect();
    // The id 999 is no row of the embedding table.
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
    // The bad one of eight is halved out: four; then two, one and one that works. More runs would be a search, not a
    // halving.
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
    // The model's own tensors stay reachable: the same ids without text give the same logits.
    let raw = loaded.item(&words(&[1, 2]));
    assert_eq!(raw.outputs, ["logits"]);
    assert_close(&floats(&loaded.alone(&raw)[0]), &logits[..2]);
    // A text longer than maxLength is cut.
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
        assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
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
        (
            words(&[]),
            "the input input_ids must be INT64 of shape [-1] for each row, it is INT64 of shape [1, 0]; no dimension may be 0",
        ),
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

    // The model fails on ids of 50 and more; made-up ones keep to the bounds.
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
        assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
        assert!(fatal.message.contains(named), "{fatal}");
    }
    std::fs::write(loaded.folder.path().join("model.pt"), "not a model").unwrap();
    let Err(fatal) = torch_script(&loaded.folder, &loaded.model) else {
        panic!("loaded nonsense");
    };
    assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
}

#[test]
fn a_model_for_single_rows_is_refused_where_there_are_batches() {
    let mut loaded = load(MLP, common::write_single);
    loaded.warm_up(1).unwrap();
    let fatal = load(MLP, common::write_single).warm_up(8).unwrap_err();
    assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
    assert!(fatal.message.contains("maxBatchSize: 1"), "{fatal}");
}

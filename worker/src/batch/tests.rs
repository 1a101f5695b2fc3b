use std::sync::Arc;

use carpool_crds::Dimension;
use carpool_protocol::Datatype;

use super::*;
use crate::item::Item;

fn spec(name: &str, shape: &[&str], pad: Option<i64>) -> TensorSpec {
    let dimension = |text: &&str| {
        text.parse()
            .map_or_else(|_| (*text).into(), Dimension::Size)
    };
    TensorSpec {
        name: name.to_owned(),
        datatype: carpool_crds::Datatype::Int16,
        shape: shape.iter().map(dimension).collect(),
        pad,
        minimum: None,
        maximum: None,
    }
}

fn declared(inputs: Vec<TensorSpec>, output: &[&str]) -> Model {
    Model {
        uri: String::new(),
        sha256: None,
        format: carpool_crds::Format::TorchScript,
        inputs,
        outputs: vec![spec("y", output, None)],
        text: None,
        example: None,
    }
}

fn model(pad: Option<i64>) -> Model {
    declared(vec![spec("x", &["seq", "2"], pad)], &["seq", "2"])
}

fn tensor(shape: &[i64], values: &[i16]) -> Tensor {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Tensor::new("x", Datatype::Int16, shape, data).unwrap()
}

fn slice(inputs: Vec<Tensor>, rows: std::ops::Range<usize>) -> Slice {
    let item = Item {
        id: String::new(),
        rows: extent(inputs[0].shape[0]),
        lengths: inputs.iter().map(|input| input.shape[1]).collect(),
        unpadded: Vec::new(),
        inputs,
        outputs: Vec::new(),
        texts: Vec::new(),
    };
    Slice {
        item: Arc::new(item),
        rows,
    }
}

fn stack(model: &Model, slices: &[Slice]) -> Batch {
    let size = Size::of(model, slices).unwrap();
    Batch::stack(model, slices, size).unwrap()
}

/// The shapes that an output of one variable dimension is cut to for requests of one row, each given by the lengths of
/// its inputs `a` and `b`, in a batch for which the model makes it of a length.
fn cut_to(requests: &[[i64; 2]], output: &str, length: i64) -> Result<Vec<Vec<i64>>, String> {
    let inputs = ["a", "b"].map(|name| spec(name, &[name], Some(0)));
    let model = declared(inputs.to_vec(), &[output]);
    let zeros = |shape: [i64; 2]| tensor(&shape, &vec![0; elements(&shape)]);
    let slices: Vec<Slice> = requests
        .iter()
        .map(|lengths| slice(lengths.map(|length| zeros([1, length])).to_vec(), 0..1))
        .collect();
    let batch = stack(&model, &slices);
    let rows = i64::try_from(requests.len()).unwrap();
    let parts = split(&batch.size, &model, &slices, &[zeros([rows, length])])?;
    let parts = parts.into_iter().map(cut).collect::<Result<Vec<_>, _>>()?;
    Ok(parts
        .into_iter()
        .map(|part| part[0].shape.clone())
        .collect())
}

#[test]
fn an_output_follows_the_input_dimension_of_its_name() {
    let requests = [[2, 5], [3, 6]];
    assert_eq!(cut_to(&requests, "a", 3).unwrap(), [[1, 2], [1, 3]]);
    assert_eq!(cut_to(&requests, "b", 6).unwrap(), [[1, 5], [1, 6]]);
    // The dimensions' names tell apart lengths that are equal by chance.
    let crossed = [[3, 10], [10, 4]];
    assert_eq!(cut_to(&crossed, "a", 10).unwrap(), [[1, 3], [1, 10]]);
    assert_eq!(cut_to(&crossed, "b", 10).unwrap(), [[1, 10], [1, 4]]);
}

#[test]
fn an_output_must_be_as_long_as_what_it_follows() {
    for requests in [&[[2, 5], [3, 6]][..], &[[3, 6]]] {
        let error = cut_to(requests, "a", 6).unwrap_err();
        assert!(
            error.contains("in which a is 6; in the inputs it is 3"),
            "{error}"
        );
    }
}

#[test]
fn an_output_of_a_length_of_its_own_is_never_cut() {
    for output in ["-1", "own"] {
        // The output is by chance as long as the second input was padded to.
        let error = cut_to(&[[2, 5], [3, 6]], output, 6).unwrap_err();
        assert!(error.contains("padding can't be cut"), "{error}");
        assert_eq!(
            cut_to(&[[3, 6], [3, 6]], output, 6).unwrap(),
            [[1, 6], [1, 6]]
        );
        assert_eq!(cut_to(&[[3, 6]], output, 0).unwrap(), [[1, 0]]);
    }
}

#[test]
fn what_nothing_says_how_to_pad_shares_no_batch() {
    let model = model(None);
    let slices = [
        slice(vec![tensor(&[1, 1, 2], &[1, 2])], 0..1),
        slice(vec![tensor(&[1, 2, 2], &[5, 6, 7, 8])], 0..1),
    ];
    let size = Size::of(&model, &slices).unwrap();
    let error = Batch::stack(&model, &slices, size).err().unwrap();
    assert!(error.contains("the input x differs in shape"), "{error}");
}

#[test]
fn shorter_items_are_padded_and_cut_back() {
    let model = model(Some(-1));
    let slices = [
        slice(vec![tensor(&[2, 1, 2], &[1, 2, 3, 4])], 1..2),
        slice(vec![tensor(&[1, 2, 2], &[5, 6, 7, 8])], 0..1),
    ];
    let batch = stack(&model, &slices);
    let expected = tensor(&[2, 2, 2], &[3, 4, -1, -1, 5, 6, 7, 8]);
    assert_eq!(batch.inputs, std::slice::from_ref(&expected));
    let Size {
        rows,
        elements,
        padding,
        ..
    } = &batch.size;
    assert_eq!((*rows, *elements, *padding), (2, 8, 2));

    let parts = split(&batch.size, &model, &slices, &[expected]).unwrap();
    let parts: Vec<_> = parts.into_iter().map(|part| cut(part).unwrap()).collect();
    assert_eq!(
        (&parts[0][0].shape, &parts[0][0].data),
        (&vec![1, 1, 2], &slices[0].data(0))
    );
    assert_eq!(
        (&parts[1][0].shape, &parts[1][0].data),
        (&vec![1, 2, 2], &slices[1].data(0))
    );
    assert_eq!(parts[1][0].name, "y");
}

#[test]
fn a_lone_slice_is_not_copied() {
    let slices = [slice(vec![tensor(&[3, 1, 2], &[1, 2, 3, 4, 5, 6])], 1..3)];
    let batch = stack(&model(None), &slices);
    let whole = &slices[0].item.inputs[0].data;
    assert_eq!(batch.inputs[0].data.as_ptr(), whole[4..].as_ptr());
}

#[test]
fn parts_of_one_request_become_one_answer() {
    let parts = vec![
        vec![tensor(&[1, 2], &[1, 2])],
        vec![tensor(&[2, 2], &[3, 4, 5, 6])],
    ];
    assert_eq!(
        concatenate(parts).unwrap(),
        [tensor(&[3, 2], &[1, 2, 3, 4, 5, 6])]
    );
    let parts = vec![vec![tensor(&[1, 2], &[1, 2])], vec![tensor(&[1, 1], &[3])]];
    assert!(
        concatenate(parts)
            .unwrap_err()
            .contains("send them one by one")
    );
}

//! The limits that the executor learns, on models made up here.

use std::sync::Mutex;

use bytes::Bytes;
use carpool_protocol::Datatype;

use super::*;
use crate::{backend::Staged, item::Item};

/// A model that gives a zero for each row, and keeps how many there were.
struct Zeros(Arc<Mutex<Vec<i64>>>);

impl Backend for Zeros {
    fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        let (rows, runs) = (inputs[0].shape[0], Arc::clone(&self.0));
        Ok(Box::new(move || {
            runs.lock().unwrap().push(rows);
            Ok(vec![zeros("y", vec![rows, 1])])
        }))
    }

    fn works(&self) -> bool {
        true
    }

    fn set_threads(&self, _: usize) {}
}

fn zeros(name: &str, shape: Vec<i64>) -> Tensor {
    let elements: i64 = shape.iter().product();
    let data = vec![0; usize::try_from(elements).unwrap()];
    Tensor::new(name, Datatype::Uint8, shape, Bytes::from(data)).unwrap()
}

#[test]
fn requests_that_would_be_nearly_all_padding_run_apart() {
    let yaml = "{uri: file://m, inputs: [{name: x, datatype: UINT8, shape: [-1, -1], pad: 0}],
        outputs: [{name: y, datatype: UINT8, shape: [1]}]}";
    let model = serde_yaml::from_str(yaml).unwrap();
    let runs = Arc::<Mutex<Vec<_>>>::default();
    let mut executor = Executor::new(Box::new(Zeros(Arc::clone(&runs))), model, 1);
    let slices = [[1, 1, 64], [1, 1, 1 << 20], [1, 1 << 20, 1], [1, 64, 1]].map(|shape| {
        Slice::whole(Arc::new(Item {
            id: String::new(),
            rows: 1,
            inputs: vec![zeros("x", shape.to_vec())],
            outputs: Vec::new(),
            lengths: shape[1..].to_vec(),
            unpadded: Vec::new(),
            texts: Vec::new(),
        }))
    });
    let outputs = executor.run(&slices).unwrap();
    assert!(outputs.iter().all(Result::is_ok));
    assert_eq!(*runs.lock().unwrap(), [2, 2]);
}

/// A model that takes one row at a time.
struct Single;

impl Backend for Single {
    fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        Ok(Box::new(move || match inputs[0].shape[0] {
            1 => Ok(vec![zeros("y", vec![1, 1])]),
            rows => Err(RunError::Model(format!("{rows} rows"))),
        }))
    }

    fn works(&self) -> bool {
        true
    }

    fn set_threads(&self, _: usize) {}
}

#[test]
fn what_a_batch_and_its_halves_teach_is_told_once() {
    let yaml = "{uri: file://m, inputs: [{name: x, datatype: UINT8, shape: [-1], pad: 0}],
        outputs: [{name: y, datatype: UINT8, shape: [1]}]}";
    let mut executor = Executor::new(Box::new(Single), serde_yaml::from_str(yaml).unwrap(), 1);
    let slices = [1, 2, 3, 4].map(|length| {
        Slice::whole(Arc::new(Item {
            id: String::new(),
            rows: 1,
            inputs: vec![zeros("x", vec![1, length])],
            outputs: Vec::new(),
            lengths: vec![length],
            unpadded: Vec::new(),
            texts: Vec::new(),
        }))
    });
    let outputs = executor.run(&slices).unwrap();
    assert!(outputs.iter().all(Result::is_ok));
    let sharing = executor.sharing().borrow().clone();
    assert!(!sharing.padded);
    let told = sharing.message.matches("served unpadded").count();
    assert_eq!(told, 1, "{}", sharing.message);
}

//! The runs before the first request: they prove that the model gives what it declares, and make it fast.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_crds::Model;

use crate::{
    assemble::Assembler,
    backend::RunError,
    executor::Executor,
    fatal::{Fatal, Reason},
    item::Slice,
};

/// The most time that warming up may take once the model has proved itself.
const BUDGET: Duration = Duration::from_secs(5);
/// TorchScript profiles a graph on its first run and compiles it on the second.
const PROOF_RUNS: usize = 3;
/// The longest blank items where no bound is declared: what is too long for a model can cost its GPU.
const UNBOUNDED: i64 = 8;

/// Runs blank batches: first a single row, which must succeed, and two, which must not fail for any reason but memory;
/// then every power of two of rows up to the largest batch at every power of two of length. libtorch prepares memory
/// and kernels for what it has seen.
pub fn warm_up(
    executor: &mut Executor,
    assembler: &Assembler,
    model: &Model,
    max_batch_size: usize,
) -> Result<(), Fatal> {
    let lengths = lengths(model, assembler.groups());
    let shortest = lengths[0];
    for _ in 0..PROOF_RUNS {
        run(executor, assembler, 1, shortest)?;
    }
    let rows = powers(1, i64::try_from(max_batch_size).unwrap_or(i64::MAX));
    let sizes = lengths
        .iter()
        .flat_map(|length| rows.iter().map(|rows| (*rows, *length)));
    let started = Instant::now();
    for (rows, length) in sizes.skip(1) {
        if started.elapsed() > BUDGET {
            tracing::info!(rows, length, "stopped warming up: it takes too long");
            break;
        }
        match run(executor, assembler, rows, length) {
            Ok(()) => {}
            Err(error @ RunError::Lost(_)) => return Err(error.into()),
            // What is known to run alone doesn't run in batches, so every batch would be halved down to single rows.
            Err(RunError::Model(error)) if (rows, length) == (2, shortest) => {
                let message = format!("the model fails for two rows: {error}");
                return Err(Fatal::new(Reason::ModelInvalid, message));
            }
            // A model may well refuse a length that nobody will send, and a batch too large for memory will be halved.
            Err(error) => tracing::info!(rows, length, %error, "skipped a size in warming up"),
        }
    }
    Ok(())
}

fn run(
    executor: &mut Executor,
    assembler: &Assembler,
    rows: i64,
    length: i64,
) -> Result<(), RunError> {
    let item = assembler.blank(rows, length).map_err(RunError::Model)?;
    executor.forward(&[Slice::whole(Arc::new(item))]).map(drop)
}

/// The lengths to run: one, where nothing is variable.
fn lengths(model: &Model, variable: bool) -> Vec<i64> {
    if !variable {
        return vec![1];
    }
    let longest = model
        .text
        .as_ref()
        .map_or(UNBOUNDED, |text| i64::from(text.max_length));
    powers(UNBOUNDED.min(longest), longest)
}

/// Powers of two times `first`, up to `last`, which ends the list in any case.
fn powers(first: i64, last: i64) -> Vec<i64> {
    std::iter::successors(Some(first), |size| size.checked_mul(2))
        .take_while(|size| *size < last)
        .chain([last])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_end_at_the_last() {
        assert_eq!(powers(1, 1), [1]);
        assert_eq!(powers(1, 12), [1, 2, 4, 8, 12]);
        assert_eq!(powers(8, 32), [8, 16, 32]);
    }

    #[test]
    fn a_length_beyond_what_is_declared_is_not_tried() {
        let model = |text: &str| {
            let yaml = "{uri: file://m, inputs: [{name: input_ids, datatype: INT64, shape: [-1]}], outputs: []";
            serde_yaml::from_str::<Model>(&format!("{yaml}{text}}}")).unwrap()
        };
        assert_eq!(lengths(&model(""), true), [8]);
        let text = ", text: {tokenizer: t.json, maxLength: 20, labels: [A, B]}";
        assert_eq!(lengths(&model(text), true), [8, 16, 20]);
    }
}

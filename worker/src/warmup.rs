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
/// Runs of one size with one number of threads, of which the fastest counts.
const TRIAL_RUNS: usize = 5;
/// The time after which no further one is begun.
const TRIAL_BUDGET: Duration = Duration::from_millis(100);
/// The longest blank items where no bound is declared: what is too long for a model can cost its GPU.
const UNBOUNDED: i64 = 8;

/// Runs blank batches: first a single row, which must succeed, and two, which must not fail for any reason but memory;
/// then every power of two of rows up to the largest batch at every power of two of length, smallest first. libtorch
/// prepares memory and kernels for what it has seen.
pub fn warm_up(
    executor: &mut Executor,
    assembler: &Assembler,
    model: &Model,
    max_batch_size: usize,
) -> Result<(), Fatal> {
    let lengths = lengths(model, assembler.groups());
    let rows = powers(1, i64::try_from(max_batch_size).unwrap_or(i64::MAX));
    let mut sizes: Vec<(i64, i64)> = lengths
        .iter()
        .flat_map(|length| rows.iter().map(|rows| (*rows, *length)))
        .collect();
    sizes.sort_by_key(|(rows, length)| rows.saturating_mul(*length));
    let shortest = lengths[0];
    for _ in 0..PROOF_RUNS {
        run(executor, assembler, 1, shortest)?;
    }
    choose_threads(executor, assembler, &sizes);
    let started = Instant::now();
    for (rows, length) in sizes.into_iter().skip(1) {
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

/// Finds out up to which size one thread runs a batch sooner than all do: threads that must not spin are woken for each
/// operator, which on a small batch takes longer than their help saves. Ends at the first size for which they are worth
/// it, or which fails; whoever warms up is told that soon enough.
fn choose_threads(executor: &mut Executor, assembler: &Assembler, sizes: &[(i64, i64)]) {
    if executor.threads() == 1 {
        return;
    }
    let mut serial = 0;
    for (rows, length) in sizes {
        let Ok(item) = assembler.blank(*rows, *length) else {
            break;
        };
        let slice = Slice::whole(Arc::new(item));
        executor.one_thread_up_to(usize::MAX);
        let one = fastest(executor, &slice);
        executor.one_thread_up_to(0);
        let all = fastest(executor, &slice);
        // Less than a tenth may be chance.
        if !matches!((one, all), (Ok(one), Ok(all)) if one * 10 < all * 9) {
            break;
        }
        serial = slice.elements();
    }
    executor.one_thread_up_to(serial);
    tracing::info!(
        elements = serial,
        "batches up to this size run on one thread"
    );
}

/// The time of the fastest of some runs: whatever else the machine does only ever slows one down.
fn fastest(executor: &mut Executor, slice: &Slice) -> Result<Duration, RunError> {
    let begun = Instant::now();
    let mut fastest = Duration::MAX;
    for _ in 0..TRIAL_RUNS {
        let started = Instant::now();
        executor.forward(std::slice::from_ref(slice))?;
        fastest = fastest.min(started.elapsed());
        if begun.elapsed() > TRIAL_BUDGET {
            break;
        }
    }
    Ok(fastest)
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
    use std::{path::Path, sync::Mutex};

    use carpool_protocol::Tensor;

    use super::*;
    use crate::backend::Backend;

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

    /// Alone it takes a millisecond for the square of the rows; together they take ten for any.
    struct Timed {
        threads: usize,
        runs: Arc<Mutex<Vec<(i64, usize)>>>,
    }

    impl Backend for Timed {
        fn forward(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            let rows = inputs[0].shape[0];
            self.runs.lock().unwrap().push((rows, self.threads));
            let alone = u64::try_from(rows * rows).unwrap();
            let took = if self.threads == 1 { alone } else { 10 };
            std::thread::sleep(Duration::from_millis(took));
            Ok(vec![inputs[0].clone()])
        }

        fn set_threads(&mut self, threads: usize) {
            self.threads = threads;
        }
    }

    #[test]
    fn small_batches_run_on_one_thread() {
        let yaml = "{uri: file://m, inputs: [{name: x, datatype: FP32, shape: [4]}],
            outputs: [{name: x, datatype: FP32, shape: [4]}]}";
        let model: Model = serde_yaml::from_str(yaml).unwrap();
        let assembler = Assembler::load("m", "r", &model, Path::new("none")).unwrap();
        let runs = Arc::<Mutex<Vec<_>>>::default();
        let backend = Timed {
            threads: 0,
            runs: Arc::clone(&runs),
        };
        let mut executor = Executor::new(Box::new(backend), model.clone(), 4);
        warm_up(&mut executor, &assembler, &model, 8).unwrap();
        runs.lock().unwrap().clear();
        for rows in [1, 2, 4, 8] {
            run(&mut executor, &assembler, rows, 1).unwrap();
        }
        assert_eq!(*runs.lock().unwrap(), [(1, 1), (2, 1), (4, 4), (8, 4)]);
    }
}

//! The runs before the first request: they prove that the model gives what it declares and that no answer depends on who
//! else is in a batch, and make it fast.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_crds::{Dimension, LoadedReason, Model};

use crate::{
    assemble::Assembler,
    backend::RunError,
    executor::Executor,
    fatal::{Fatal, TerminationReason},
    item::{Item, Slice},
    probe::{Fill, Probe},
    proof::{ProofOptions, prove},
};

/// The most time that warming up may take once the model has proved itself.
const BUDGET: Duration = Duration::from_secs(5);
/// The number of single-row runs before the proof: TorchScript profiles a graph on its first run and compiles it on the
/// second.
const PROOF_RUNS: usize = 3;
/// The number of runs of one size with one number of threads, of which the fastest counts.
const TRIAL_RUNS: usize = 5;
/// The time after which no further trial run is begun.
const TRIAL_BUDGET: Duration = Duration::from_millis(100);
/// The number of made-up rows of one kind that are tried before another kind is: a model may not take each.
const TRIED: usize = 4;
/// The lengths of made-up items where no bound is declared, of which the first that the model takes counts. One too
/// long for the model can cost its GPU.
const UNBOUNDED: [i64; 3] = [8, 64, 512];

/// Finds rows that the model takes: those of its `examples`, which must succeed, or made-up ones. With them it is proved
/// ([`prove`]), and then run with every power of two of rows up to the largest batch at every power of two of length,
/// smallest first: libtorch prepares memory and kernels for what it has seen.
///
/// A model that takes no made-up row at all is served nonetheless, each row alone, since nothing could be proved.
pub fn warm_up(
    executor: &mut Executor,
    assembler: &Assembler,
    model: &Model,
    examples: &[Arc<Item>],
    max_batch_size: usize,
) -> Result<(), Fatal> {
    let started = Instant::now();
    let (mut probe, length) = match find(executor, assembler, model, examples)? {
        Ok(found) => found,
        Err(error) => {
            let reason = format!(
                "the model takes none of the numbers made up to try it ({error}); give spec.model.example a request that it takes"
            );
            executor.limit(|sharing| sharing.unbatched(LoadedReason::Unproven, &reason));
            return Ok(());
        }
    };
    for _ in 1..PROOF_RUNS {
        match run(executor, &mut probe, 1, length) {
            // A model may take other made-up numbers than these.
            Ok(()) | Err(RunError::Model(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let lengths = lengths(model, length);
    // Clients will send texts of this length.
    if let (Some(text), Some(longest)) = (&model.text, lengths.last())
        && let Err(error @ RunError::Model(_)) = run(executor, &mut probe, 1, *longest)
    {
        let message = format!(
            "the model fails on a text of spec.model.text.maxLength, {} tokens: {error}; lower maxLength to what it takes",
            text.max_length
        );
        return Err(Fatal::new(TerminationReason::ModelInvalid, message));
    }
    // The pair is two lengths that differ, for rows beside longer ones.
    let pair = match lengths[..] {
        [only] if model.text.is_none() => (only, only * 2),
        [only] => ((only + 1) / 2, only),
        [first, second, ..] => (first, second),
        [] => (length, length),
    };
    let options = ProofOptions {
        model,
        examples,
        lengths: pair,
        max_batch_size,
    };
    prove(executor, &mut probe, options)?;
    let proved = started.elapsed();
    prepare(executor, &mut probe, &lengths, max_batch_size)?;
    tracing::info!(?proved, took = ?started.elapsed(), "warmed up");
    Ok(())
}

/// Finds items that the model takes, and their length; the inner error is the model's where it takes none.
fn find<'a>(
    executor: &mut Executor,
    assembler: &'a Assembler,
    model: &'a Model,
    examples: &[Arc<Item>],
) -> Result<Result<(Probe<'a>, i64), RunError>, Fatal> {
    for item in examples {
        let slice = Slice::whole(Arc::clone(item));
        executor.forward(&[slice]).map_err(|error| {
            let message = format!("spec.model.example: {error}");
            Fatal::new(Fatal::from(error).reason, message)
        })?;
    }
    // Texts of every length can be made up, and must be.
    if model.text.is_none()
        && let Some(probe) = Probe::given(assembler, model, examples)
    {
        let length = examples.first().map_or(0, |item| item.length());
        return Ok(Ok((probe, length)));
    }
    let lengths = match &model.text {
        _ if !assembler.groups() => vec![1],
        Some(text) => vec![UNBOUNDED[0].min(text.max_length.into())],
        None => UNBOUNDED.to_vec(),
    };
    let mut first_error = None;
    for length in lengths {
        for fill in Fill::ALL {
            let mut probe = Probe::made(assembler, model, fill);
            for _ in 0..TRIED {
                match run(executor, &mut probe, 1, length) {
                    Ok(()) => return Ok(Ok((probe, length))),
                    Err(error @ RunError::Model(_)) => {
                        first_error.get_or_insert(error);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    let none = RunError::Model("it has no inputs".to_owned());
    Ok(Err(first_error.unwrap_or(none)))
}

/// Runs every size that is likely to come.
fn prepare(
    executor: &mut Executor,
    probe: &mut Probe<'_>,
    lengths: &[i64],
    max_batch_size: usize,
) -> Result<(), Fatal> {
    let most = max_batch_size.min(executor.sharing().borrow().max_rows);
    let rows = powers(1, i64::try_from(most).unwrap_or(i64::MAX));
    let lengths = if probe.is_given() {
        &lengths[..1]
    } else {
        lengths
    };
    let mut sizes: Vec<(i64, i64)> = lengths
        .iter()
        .flat_map(|length| rows.iter().map(|rows| (*rows, *length)))
        .collect();
    sizes.sort_by_key(|(rows, length)| rows.saturating_mul(*length));
    choose_threads(executor, probe, &sizes);
    let started = Instant::now();
    for (rows, length) in sizes.into_iter().skip(1) {
        if started.elapsed() > BUDGET {
            tracing::info!(rows, length, "stopped warming up: it takes too long");
            break;
        }
        match run(executor, probe, rows, length) {
            Ok(()) => {}
            Err(error @ RunError::DeviceLost(_)) => return Err(error.into()),
            // A model may well refuse a length that nobody will send, and a batch too large for memory will be halved.
            Err(error) => tracing::info!(rows, length, %error, "skipped a size in warming up"),
        }
    }
    Ok(())
}

/// Finds out up to which size one thread runs a batch sooner than all do: threads that must not spin are woken for each
/// operator, which on a small batch takes longer than their help saves. Ends at the first size for which they are worth
/// it, or which fails; whoever warms up is told that soon enough.
fn choose_threads(executor: &mut Executor, probe: &mut Probe<'_>, sizes: &[(i64, i64)]) {
    if executor.threads() == 1 {
        return;
    }
    let mut serial = 0;
    for (rows, length) in sizes {
        let Ok(slices) = probe.batch(*rows, *length) else {
            break;
        };
        executor.one_thread_up_to(usize::MAX);
        let one = fastest(executor, &slices);
        executor.one_thread_up_to(0);
        let all = fastest(executor, &slices);
        // A gain of less than a tenth may be chance.
        if !matches!((one, all), (Ok(one), Ok(all)) if one * 10 < all * 9) {
            break;
        }
        serial = slices.iter().map(Slice::elements).sum();
    }
    executor.one_thread_up_to(serial);
    tracing::info!(
        elements = serial,
        "batches up to this size run on one thread"
    );
}

/// Measures the fastest of some runs: whatever else the machine does only ever slows one down.
fn fastest(executor: &mut Executor, slices: &[Slice]) -> Result<Duration, RunError> {
    let begun = Instant::now();
    let mut fastest = Duration::MAX;
    for _ in 0..TRIAL_RUNS {
        let started = Instant::now();
        executor.forward(slices)?;
        fastest = fastest.min(started.elapsed());
        if begun.elapsed() > TRIAL_BUDGET {
            break;
        }
    }
    Ok(fastest)
}

fn run(
    executor: &mut Executor,
    probe: &mut Probe<'_>,
    rows: i64,
    length: i64,
) -> Result<(), RunError> {
    let slices = probe.batch(rows, length).map_err(RunError::Model)?;
    executor.forward(&slices).map(drop)
}

/// The lengths to run, beginning with the one that is known to work.
fn lengths(model: &Model, shortest: i64) -> Vec<i64> {
    let is_variable = |dimension: &Dimension| dimension.fixed().is_none();
    match &model.text {
        Some(text) if model.inputs[0].shape.iter().any(is_variable) => {
            powers(shortest, text.max_length.into())
        }
        _ => vec![shortest],
    }
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
    use std::{
        path::Path,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use carpool_protocol::Tensor;

    use super::*;
    use crate::backend::{Backend, Staged};

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
        assert_eq!(lengths(&model(""), 64), [64]);
        let text = ", text: {tokenizer: t.json, maxLength: 20, labels: [A, B]}";
        assert_eq!(lengths(&model(text), 8), [8, 16, 20]);
    }

    /// A model that takes a millisecond for the square of its rows on one thread, and ten for any number on several.
    struct Timed {
        threads: Arc<AtomicUsize>,
        runs: Arc<Mutex<Vec<(i64, usize)>>>,
    }

    impl Backend for Timed {
        fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
            let (threads, runs) = (Arc::clone(&self.threads), Arc::clone(&self.runs));
            Ok(Box::new(move || {
                let (rows, threads) = (inputs[0].shape[0], threads.load(Ordering::Relaxed));
                runs.lock().unwrap().push((rows, threads));
                let alone = u64::try_from(rows * rows).unwrap();
                let took = if threads == 1 { alone } else { 10 };
                std::thread::sleep(Duration::from_millis(took));
                Ok(inputs)
            }))
        }

        fn works(&self) -> bool {
            true
        }

        fn set_threads(&self, threads: usize) {
            self.threads.store(threads, Ordering::Relaxed);
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
            threads: Arc::default(),
            runs: Arc::clone(&runs),
        };
        let mut executor = Executor::new(Box::new(backend), model.clone(), 4);
        warm_up(&mut executor, &assembler, &model, &[], 8).unwrap();
        runs.lock().unwrap().clear();
        let mut probe = Probe::made(&assembler, &model, Fill::Varied);
        for rows in [1, 2, 4, 8] {
            run(&mut executor, &mut probe, rows, 1).unwrap();
        }
        assert_eq!(*runs.lock().unwrap(), [(1, 1), (2, 1), (4, 4), (8, 4)]);
    }
}

//! The check of a promise: an answer never depends on who else is in the batch.
//!
//! A model is run with rows alone, with rows of their like, and, where batches are padded, with longer ones. Where the
//! company changes an answer, that company is not kept.

use std::{fmt, sync::Arc};

use carpool_crds::{LoadedReason, Model};
use carpool_protocol::{Datatype, Tensor};
use half::{bf16, f16};

use crate::{
    backend::RunError,
    executor::Executor,
    fatal::{Fatal, TerminationReason},
    item::{Item, Slice},
    probe::Probe,
};

/// The number of rows that run together. More would show no more.
const ROWS: usize = 4;

/// The most rows that are tried to find [`ROWS`]: a model may not take each.
const TRIED: usize = 4 * ROWS;

/// The advice where made-up numbers prove nothing.
const ADVICE: &str =
    "give spec.model.example two rows or more that differ, so that batching can be proved";

/// The model that is proved, and the means.
#[derive(Clone, Copy)]
pub struct ProofOptions<'a> {
    /// The model.
    pub model: &'a Model,
    /// The rows of the model's example.
    pub examples: &'a [Arc<Item>],
    /// The lengths of rows that run together: that of most of them, and a longer one that they are padded to.
    pub lengths: (i64, i64),
    /// The most rows that the resource asks to run together.
    pub max_batch_size: usize,
}

/// Runs rows alone and together, and limits what is shared to what changed no answer. An error where the model can't
/// take two rows at once and `max_batch_size` asks for them.
pub fn prove(
    executor: &mut Executor,
    probe: &mut Probe<'_>,
    options: ProofOptions<'_>,
) -> Result<(), Fatal> {
    let rows = probe
        .rows(TRIED, options.lengths.0)
        .map_err(|message| Fatal::new(TerminationReason::ModelInvalid, message))?;
    let rows = with_answers(executor, rows, ROWS)?;
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let again = alone(executor, &first.item)?;
    if again.is_ok_and(|again| difference(&first.answer, &again).is_some()) {
        executor.limit(|sharing| {
            let padded = sharing.padded;
            let sharing = sharing.noted(
                LoadedReason::Unproven,
                "the model gives another answer each time, so it can't be proved that answers don't depend on the batch",
            );
            if padded {
                sharing.unpadded("it can't be proved that padding doesn't change answers")
            } else {
                sharing
            }
        });
        return Ok(());
    }
    let sharing = executor.sharing().borrow().clone();
    if sharing.max_rows == 1 {
        return Ok(());
    }
    match together(executor, &rows)? {
        Err(Broken::Fails(error)) if options.max_batch_size > 1 => {
            return Err(Fatal::new(
                TerminationReason::ModelInvalid,
                format!(
                    "the model can't take several rows at once: {error}; set spec.batching.maxBatchSize: 1, or export it with \
                     a batch dimension that varies"
                ),
            ));
        }
        Err(reason) => {
            executor
                .limit(|sharing| sharing.unbatched(LoadedReason::Unbatched, &reason.to_string()));
            return Ok(());
        }
        Ok(()) => {}
    }
    let differ = |row: &Row| row.item.inputs != first.item.inputs;
    if !rows.iter().any(differ) {
        let reason = format!("the model took no two rows that differ; {ADVICE}");
        executor.limit(|sharing| sharing.unbatched(LoadedReason::Unproven, &reason));
        return Ok(());
    }
    if sharing.padded {
        prove_padding(executor, probe, rows, options)?;
    }
    Ok(())
}

/// Runs rows beside longer ones, and lets no row be padded where that changes an answer.
fn prove_padding(
    executor: &mut Executor,
    probe: &mut Probe<'_>,
    mut rows: Vec<Row>,
    options: ProofOptions<'_>,
) -> Result<(), Fatal> {
    let ProofOptions {
        model, examples, ..
    } = options;
    let others = if probe.is_given() {
        let short = rows.first().and_then(|row| probe.shortened(&row.item));
        short.into_iter().flatten().map(Arc::new).collect()
    } else {
        probe.rows(TRIED, options.lengths.1).unwrap_or_default()
    };
    rows.truncate(ROWS / 2);
    rows.extend(with_answers(executor, others, ROWS / 2)?);
    if model.text.is_some() {
        rows.extend(with_answers(executor, examples.to_vec(), examples.len())?);
    }
    let mut lengths = rows.iter().map(|row| &row.item.lengths);
    let first = lengths.next();
    if lengths.all(|other| Some(other) == first) {
        let reason =
            "no two rows of different lengths could be run to prove that it doesn't change answers";
        executor.limit(|sharing| {
            sharing
                .unpadded(reason)
                .noted(LoadedReason::Unproven, ADVICE)
        });
    } else if let Err(reason) = together(executor, &rows)? {
        let pads: Vec<String> = model
            .inputs
            .iter()
            .filter_map(|input| Some(format!("{} with {}", input.name, model.padding(input)?)))
            .collect();
        let reason = format!("{reason} (padded: {})", pads.join(", "));
        executor.limit(|sharing| sharing.unpadded(&reason));
    }
    Ok(())
}

/// A row with the answer that it gets alone.
struct Row {
    item: Arc<Item>,
    answer: Vec<Tensor>,
}

/// Finds the first rows that the model takes, at most `most`, with their answers. Made-up numbers may be none for it,
/// and rows that fail prove nothing.
fn with_answers(
    executor: &mut Executor,
    items: Vec<Arc<Item>>,
    most: usize,
) -> Result<Vec<Row>, Fatal> {
    let mut rows = Vec::with_capacity(most);
    for item in items {
        if rows.len() == most {
            break;
        }
        if let Ok(answer) = alone(executor, &item)? {
            rows.push(Row { item, answer });
        }
    }
    Ok(rows)
}

fn alone(
    executor: &mut Executor,
    item: &Arc<Item>,
) -> Result<Result<Vec<Tensor>, RunError>, Fatal> {
    match executor.forward(&[Slice::whole(Arc::clone(item))]) {
        Ok(mut outputs) => Ok(Ok(outputs.remove(0))),
        Err(error @ RunError::DeviceLost(_)) => Err(error.into()),
        Err(error) => Ok(Err(error)),
    }
}

/// The fault of rows in one batch.
enum Broken {
    Fails(RunError),
    Differs(Difference),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fails(error) => write!(f, "rows that pass alone fail together: {error}"),
            Self::Differs(difference) => {
                write!(
                    f,
                    "a row's answer depends on the others in its batch: {difference}"
                )
            }
        }
    }
}

fn together(executor: &mut Executor, rows: &[Row]) -> Result<Result<(), Broken>, Fatal> {
    let slices: Vec<Slice> = rows
        .iter()
        .map(|row| Slice::whole(Arc::clone(&row.item)))
        .collect();
    let outputs = match executor.forward(&slices) {
        Ok(outputs) => outputs,
        Err(error @ RunError::DeviceLost(_)) => return Err(error.into()),
        // A batch beyond memory is halved later; rows that ran by themselves then keep their answers.
        Err(RunError::OutOfMemory(_)) => return Ok(Ok(())),
        Err(error) => return Ok(Err(Broken::Fails(error))),
    };
    let mut pairs = rows.iter().zip(&outputs);
    let differs = pairs.find_map(|(row, outputs)| difference(&row.answer, outputs));
    Ok(differs.map_or(Ok(()), |difference| Err(Broken::Differs(difference))))
}

/// A difference between two answers that is more than what the datatype's arithmetic explains.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// An output of another shape.
    Shape {
        /// The output's name.
        output: String,
        /// The output's shape when the row ran alone.
        alone: Vec<i64>,
        /// The output's shape in company.
        together: Vec<i64>,
    },
    /// An output of other values.
    Values {
        /// The output's name.
        output: String,
        /// The values of the element that differs most, alone and in company.
        values: (f64, f64),
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape {
                output,
                alone,
                together,
            } => write!(
                f,
                "{output} is of shape {alone:?} alone, {together:?} in company"
            ),
            Self::Values {
                output,
                values: (alone, together),
            } => write!(f, "{output} is {alone} alone, {together} in company"),
        }
    }
}

/// Finds a difference between a row's answer alone and in company that is more than rounding. Kernels for other numbers
/// of rows add in another order, and a GPU's may round to fewer digits (TF32 has 10 bits): the share of an output's
/// largest value that may differ follows from that.
#[must_use]
pub fn difference(alone: &[Tensor], together: &[Tensor]) -> Option<Difference> {
    alone
        .iter()
        .zip(together)
        .find_map(|(alone, together)| tensor_difference(alone, together))
}

fn tensor_difference(alone: &Tensor, together: &Tensor) -> Option<Difference> {
    if alone.shape != together.shape {
        return Some(Difference::Shape {
            output: alone.name.clone(),
            alone: alone.shape.clone(),
            together: together.shape.clone(),
        });
    }
    if alone.data == together.data {
        return None;
    }
    let (of_largest, of_one) = match alone.datatype {
        Datatype::Fp64 => (1e-7, 1e-9),
        Datatype::Fp32 => (1e-3, 1e-5),
        Datatype::Fp16 => (1e-2, 1e-3),
        Datatype::Bf16 => (5e-2, 1e-2),
        // Whole numbers are not rounded.
        _ => (0.0, 0.0),
    };
    let (alone_values, together_values) = (floats(alone), floats(together));
    let finite = alone_values.iter().filter(|value| value.is_finite());
    let largest = finite.fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let tolerance = of_one + of_largest * largest;
    let distance = |(a, b): &(f64, f64)| {
        if a.is_finite() && b.is_finite() {
            (a - b).abs()
        } else if a.total_cmp(b).is_eq() || (a.is_nan() && b.is_nan()) {
            0.0
        } else {
            f64::INFINITY
        }
    };
    let pairs = alone_values.into_iter().zip(together_values);
    let values = pairs.max_by(|a, b| distance(a).total_cmp(&distance(b)))?;
    (distance(&values) > tolerance).then(|| Difference::Values {
        output: alone.name.clone(),
        values,
    })
}

/// The elements of a tensor. Large whole numbers lose their last digits, which can hide only a difference of those.
#[expect(clippy::cast_precision_loss, reason = "said above")]
fn floats(tensor: &Tensor) -> Vec<f64> {
    let data = &tensor.data;
    match tensor.datatype {
        Datatype::Fp64 => each(data, f64::from_le_bytes),
        Datatype::Fp32 => each(data, |bytes| f32::from_le_bytes(bytes).into()),
        Datatype::Fp16 => each(data, |bytes| f16::from_le_bytes(bytes).into()),
        Datatype::Bf16 => each(data, |bytes| bf16::from_le_bytes(bytes).into()),
        Datatype::Int64 => each(data, |bytes| i64::from_le_bytes(bytes) as f64),
        Datatype::Int32 => each(data, |bytes| i32::from_le_bytes(bytes).into()),
        Datatype::Int16 => each(data, |bytes| i16::from_le_bytes(bytes).into()),
        Datatype::Int8 => each(data, |bytes| i8::from_le_bytes(bytes).into()),
        _ => each(data, |bytes| u8::from_le_bytes(bytes).into()),
    }
}

fn each<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    let (chunks, _) = data.as_chunks::<N>();
    chunks.iter().map(|bytes| read(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(values: &[f32]) -> Vec<Tensor> {
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let count = i64::try_from(values.len()).unwrap();
        vec![Tensor::new("y", Datatype::Fp32, [1, count], data).unwrap()]
    }

    #[test]
    fn rounding_is_no_difference() {
        for (alone, together, differ) in [
            ([1.0, 2.0], [1.0, 2.000_001], false),
            // A small value beside a large one is rounded as that is.
            ([1000.0, 0.0], [1000.0, 0.5], false),
            ([1.0, 2.0], [1.0, 2.01], true),
            ([f32::NAN, f32::INFINITY], [f32::NAN, f32::INFINITY], false),
            ([1.0, f32::NAN], [1.0, 2.0], true),
        ] {
            let difference = difference(&fp32(&alone), &fp32(&together));
            assert_eq!(difference.is_some(), differ, "{alone:?} {together:?}");
        }
    }

    #[test]
    fn whole_numbers_must_be_equal() {
        let tensor = |value: i64| {
            let data = value.to_le_bytes().to_vec();
            vec![Tensor::new("y", Datatype::Int64, [1, 1], data).unwrap()]
        };
        assert_eq!(difference(&tensor(7), &tensor(7)), None);
        let difference = difference(&tensor(1000), &tensor(1001)).unwrap();
        assert_eq!(difference.to_string(), "y is 1000 alone, 1001 in company");
    }
}

//! The items that no client sent: made up, or of the model's example. With them a model is warmed up and proved.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use carpool_crds::{Datatype, Example, Model};
use carpool_protocol::{InferRequest, Tensor, json};
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    assemble::{Assembler, element},
    block::{elements, extent},
    fatal::{Fatal, TerminationReason},
    item::{Item, Slice},
    values::{Bounds, values},
};

pub use crate::values::Fill;

/// The most rows of an example that are looked at.
const MOST_EXAMPLES: usize = 8;

/// A maker of items for one model.
pub struct Probe<'a> {
    assembler: &'a Assembler,
    model: &'a Model,
    source: Source,
    random: StdRng,
}

enum Source {
    Made(Fill),
    /// Rows of equal shape, each an item, at least one.
    Given(Vec<Arc<Item>>),
}

impl<'a> Probe<'a> {
    /// Makes a probe that makes items up. They are the same every time, so that every worker of a model finds the same.
    #[must_use]
    pub fn made(assembler: &'a Assembler, model: &'a Model, fill: Fill) -> Self {
        Self::new(assembler, model, Source::Made(fill))
    }

    /// Makes a probe that gives the rows of an example that are shaped as its first; `None` where there is none.
    #[must_use]
    pub fn given(
        assembler: &'a Assembler,
        model: &'a Model,
        examples: &[Arc<Item>],
    ) -> Option<Self> {
        let first = examples.first()?;
        let alike = examples
            .iter()
            .filter(|item| item.lengths == first.lengths)
            .cloned();
        let source = Source::Given(alike.collect());
        Some(Self::new(assembler, model, source))
    }

    fn new(assembler: &'a Assembler, model: &'a Model, source: Source) -> Self {
        Self {
            assembler,
            model,
            source,
            random: StdRng::seed_from_u64(0),
        }
    }

    /// Whether the items are an example's rows, whose length can't be chosen.
    #[must_use]
    pub fn is_given(&self) -> bool {
        matches!(self.source, Source::Given(_))
    }

    /// Makes this many rows of a length, each an item, which differ as far as they can be made to.
    pub fn rows(&mut self, count: usize, length: i64) -> Result<Vec<Arc<Item>>, String> {
        match &self.source {
            Source::Made(fill) => {
                let fill = *fill;
                (0..count)
                    .map(|_| self.make(fill, 1, length).map(Arc::new))
                    .collect()
            }
            Source::Given(rows) if rows.len() > 1 => Ok(rows.iter().take(count).cloned().collect()),
            Source::Given(rows) => {
                let row = Arc::clone(&rows[0]);
                let other = self.altered(&row)?;
                Ok(vec![row, Arc::new(other)])
            }
        }
    }

    /// Makes a batch of this many rows of a length.
    pub fn batch(&mut self, rows: i64, length: i64) -> Result<Vec<Slice>, String> {
        match &self.source {
            Source::Made(fill) => {
                let item = self.make(*fill, rows, length)?;
                Ok(vec![Slice::whole(Arc::new(item))])
            }
            Source::Given(given) => Ok(given
                .iter()
                .cycle()
                .take(extent(rows))
                .cloned()
                .map(Slice::whole)
                .collect()),
        }
    }

    /// Halves a row along every dimension that may be padded; `None` where there is nothing to halve.
    #[must_use]
    pub fn shortened(&self, row: &Item) -> Option<Result<Item, String>> {
        let mut is_shorter = false;
        let inputs = self.model.inputs.iter().zip(&row.inputs);
        let inputs: Result<Vec<Tensor>, String> = inputs
            .map(|(spec, input)| {
                let mut shape = input.shape.clone();
                if self.model.padding(spec).is_some() {
                    for (dimension, size) in spec.shape.iter().zip(&mut shape[1..]) {
                        if dimension.fixed().is_none() && *size > 1 {
                            *size /= 2;
                            is_shorter = true;
                        }
                    }
                }
                cut(input, &shape)
            })
            .collect();
        is_shorter.then(|| {
            let inputs = inputs?;
            self.assembler
                .made(inputs)
                .map_err(|failure| failure.message)
        })
    }

    fn make(&mut self, fill: Fill, rows: i64, length: i64) -> Result<Item, String> {
        let inputs = self
            .model
            .inputs
            .iter()
            .map(|spec| {
                let row = spec
                    .shape
                    .iter()
                    .map(|dimension| dimension.fixed().unwrap_or(length));
                let shape: Vec<i64> = std::iter::once(rows).chain(row).collect();
                let count = elements(&shape);
                let data = values(
                    spec,
                    fill,
                    count,
                    self.assembler.vocabulary(),
                    &mut self.random,
                );
                Tensor::new(&spec.name, spec.datatype.into(), shape, data)
                    .map_err(|error| error.to_string())
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.assembler
            .made(inputs)
            .map_err(|failure| failure.message)
    }

    /// Makes a row that differs from another and should be as valid: floats are halved as far as bounds allow, whole
    /// numbers come in reverse order.
    fn altered(&self, row: &Item) -> Result<Item, String> {
        let inputs = row.inputs.iter().zip(&self.model.inputs);
        let inputs = inputs
            .map(|(input, spec)| {
                let bounds = Bounds::of(spec);
                let data = match spec.datatype {
                    Datatype::Fp32 => map(&input.data, f32::from_le_bytes, |value| {
                        bounds.nearest32(value / 2.0).to_le_bytes()
                    }),
                    Datatype::Fp64 => map(&input.data, f64::from_le_bytes, |value| {
                        bounds.nearest(value / 2.0).to_le_bytes()
                    }),
                    other => {
                        let size = element(other, 0).len();
                        let elements: Vec<&[u8]> = input.data.chunks_exact(size).rev().collect();
                        elements.concat().into()
                    }
                };
                Tensor::new(&input.name, input.datatype, input.shape.clone(), data)
                    .map_err(|error| error.to_string())
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.assembler
            .made(inputs)
            .map_err(|failure| failure.message)
    }
}

/// The rows of the model's example, each an item; none where it has no example.
pub fn examples(
    assembler: &Assembler,
    model: &Model,
    folder: &Path,
) -> Result<Vec<Arc<Item>>, Fatal> {
    let Some(example) = &model.example else {
        return Ok(Vec::new());
    };
    let invalid = |message: String| {
        Fatal::new(
            TerminationReason::ModelInvalid,
            format!("spec.model.example: {message}"),
        )
    };
    let request = json::decode_request(&read(example, folder)?, "", "")
        .map_err(|error| invalid(error.to_string()))?;
    let rows = single_rows(&request).map_err(invalid)?;
    rows.into_iter()
        .take(MOST_EXAMPLES)
        .map(|row| {
            let item = assembler.item(row.encode());
            item.map(Arc::new)
                .map_err(|failure| invalid(failure.message))
        })
        .collect()
}

fn read(example: &Example, folder: &Path) -> Result<Vec<u8>, Fatal> {
    match &example.file {
        Some(file) => std::fs::read(folder.join(file)).map_err(|error| {
            Fatal::new(
                TerminationReason::ArtifactMissing,
                format!("failed to read {file} of the artifact, which spec.model.example.file names: {error}"),
            )
        }),
        None => serde_json::to_vec(&example.request).map_err(|error| {
            Fatal::new(
                TerminationReason::ModelInvalid,
                format!("spec.model.example.request: {error}"),
            )
        }),
    }
}

/// Makes a request of each row of another.
fn single_rows(request: &InferRequest) -> Result<Vec<InferRequest>, String> {
    // One query stands beside any number of documents.
    let rows_of = |input: &Tensor| input.shape.first().map_or(0, |rows| extent(*rows));
    let rows = request.inputs.iter().map(rows_of).max().unwrap_or(0);
    if rows == 0 {
        return Err("it has no rows".to_owned());
    }
    (0..rows)
        .map(|row| {
            let inputs = request.inputs.iter().map(|input| {
                if input.datatype == carpool_protocol::Datatype::Bytes {
                    let strings = input.strings().map_err(|error| error.to_string())?;
                    let text = match strings[..] {
                        [one] => Some(one),
                        _ => strings.get(row).copied(),
                    };
                    let text = text.ok_or("the inputs differ in rows")?;
                    return Tensor::from_strings(&input.name, [1, 1], [text])
                        .map_err(|error| error.to_string());
                }
                if rows_of(input) != rows {
                    return Err("the inputs differ in rows".to_owned());
                }
                let size = input.data.len() / rows;
                let shape: Vec<i64> = std::iter::once(1)
                    .chain(input.shape.iter().skip(1).copied())
                    .collect();
                let data = input.data.slice(row * size..(row + 1) * size);
                Tensor::new(&input.name, input.datatype, shape, data)
                    .map_err(|error| error.to_string())
            });
            Ok(InferRequest {
                inputs: inputs.collect::<Result<_, String>>()?,
                ..InferRequest::default()
            })
        })
        .collect()
}

fn map<const N: usize, T>(
    data: &[u8],
    read: impl Fn([u8; N]) -> T,
    write: impl Fn(T) -> [u8; N],
) -> Bytes {
    let (chunks, _) = data.as_chunks::<N>();
    chunks
        .iter()
        .flat_map(|bytes| write(read(*bytes)))
        .collect()
}

/// Cuts a tensor to its first elements along each dimension.
fn cut(tensor: &Tensor, shape: &[i64]) -> Result<Tensor, String> {
    let size = tensor.data.len() / elements(&tensor.shape).max(1);
    let mut data = bytes::BytesMut::zeroed(elements(shape) * size);
    crate::block::copy_common(&tensor.data, &tensor.shape, &mut data, shape, size);
    Tensor::new(&tensor.name, tensor.datatype, shape, data.freeze())
        .map_err(|error| error.to_string())
}

//! Requests against the model: what isn't right is refused here, by name, and never reaches the queue.

use std::collections::HashSet;

use carpool_crds::{
    Model, TensorSpec, Text,
    tensor_names::{QUERY, TOKENS, TRUNCATED},
};
use carpool_protocol::{
    Datatype, Parameter, Parameters, RequestView, RequestedOutput, Shape, Tensor, TensorView, cut,
    first_outside,
};

use crate::shape;

/// The reason that a request is not one for this model.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An input that the model doesn't take.
    #[error("unknown input {:?}; the model takes {expected}", cut(.given))]
    UnknownInput {
        /// The input's name.
        given: String,
        /// The names that the model takes.
        expected: String,
    },
    /// An input that the model needs.
    #[error("input {input:?} is missing; the model takes {expected}")]
    MissingInput {
        /// The input's name.
        input: String,
        /// The names that the model takes.
        expected: String,
    },
    /// Two inputs of one name.
    #[error("input {input:?} is given twice")]
    DuplicateInput {
        /// The inputs' name.
        input: String,
    },
    /// A text and tensors together.
    #[error("input {input:?} takes the place of the model's own inputs; {:?} is given too", cut(.given))]
    TextAndTensors {
        /// The input that holds texts.
        input: String,
        /// The other input.
        given: String,
    },
    /// An input of another datatype.
    #[error("input {input:?}: expected datatype {expected}, given {given}")]
    Datatype {
        /// The input's name.
        input: String,
        /// The datatype that the model takes.
        expected: Datatype,
        /// The datatype that the request gives.
        given: Datatype,
    },
    /// An input of another shape.
    #[error("input {input:?}: expected shape {expected}, given {}{}", Shape(.given), after_semicolon(.hint))]
    Shape {
        /// The input's name.
        input: String,
        /// The shape that the model takes, -1 where it is variable.
        expected: String,
        /// The shape that the request gives.
        given: Vec<i64>,
        /// The advice on what to send, where the shapes alone don't say it.
        hint: String,
    },
    /// An input with another number of rows than the first.
    #[error("input {input:?}: expected {expected} rows as in {first:?}, given {given}")]
    Rows {
        /// The input's name.
        input: String,
        /// The first input.
        first: String,
        /// The rows of the first input.
        expected: u32,
        /// The rows of this input.
        given: u32,
    },
    /// A dimension whose size differs from that in the first input that has one of its name.
    #[error(
        "input {input:?}: expected {expected} for its dimension {dimension} as in {first:?}, given {given}"
    )]
    Dimension {
        /// The input's name.
        input: String,
        /// The dimension's name.
        dimension: String,
        /// The dimension's size in the first input that has it.
        expected: i64,
        /// The first input that has the dimension.
        first: String,
        /// The dimension's size in this input.
        given: i64,
    },
    /// An element that the model doesn't take.
    #[error("input {input:?}: element {index} is {given}, {bound}")]
    Element {
        /// The input's name.
        input: String,
        /// The element's index, counted from 0 in row-major order.
        index: usize,
        /// The element's value.
        given: String,
        /// The bound, and on which side of it the value is.
        bound: String,
    },
    /// An output that the model doesn't give.
    #[error("unknown output {:?}; the model gives {expected}", cut(.given))]
    UnknownOutput {
        /// The output's name.
        given: String,
        /// The names that the model gives.
        expected: String,
    },
    /// Two requested outputs of one name.
    #[error("output {output:?} is requested twice")]
    DuplicateOutput {
        /// The outputs' name.
        output: String,
    },
    /// A parameter that asks for another answer than there would be.
    #[error("{of}: the parameter {parameter:?} is not built yet; leave it out and {instead}")]
    NotBuilt {
        /// The part of the request that the parameter is of.
        of: String,
        /// The parameter's name.
        parameter: &'static str,
        /// The advice on what to do without the parameter.
        instead: &'static str,
    },
}

/// Checks a request against the model and gives the number of its rows, at least 1.
pub fn rows(model: &Model, request: &RequestView<'_>) -> Result<u32, Invalid> {
    let RequestView {
        parameters,
        inputs,
        outputs,
        ..
    } = request;
    let text = model.text.as_ref().filter(|text| {
        let is_text = |input: &TensorView<'_>| text.inputs().contains(&input.name);
        inputs.iter().any(is_text)
    });
    let rows = match text {
        Some(text) => rows_of_texts(text, inputs)?,
        None => rows_of_tensors(model, inputs)?,
    };
    check_outputs(model, text.is_some(), outputs)?;
    check_parameters(parameters, || "request".to_owned())?;
    for RequestedOutput { name, parameters } in *outputs {
        check_parameters(parameters, || format!("output {name:?}"))?;
    }
    Ok(rows)
}

/// Checks the elements of a request whose names, types and shapes are right. A text has no such inputs: its ids are the
/// tokenizer's.
pub fn elements(model: &Model, inputs: &[Tensor]) -> Result<(), Invalid> {
    for TensorSpec {
        name,
        minimum,
        maximum,
        ..
    } in &model.inputs
    {
        let Some(input) = inputs.iter().find(|input| input.name == *name) else {
            continue;
        };
        let outside = |bound: &str, minimum: Option<f64>, maximum: Option<f64>| {
            let (index, given) = first_outside(input.datatype, &input.data, minimum, maximum)?;
            let value = minimum.or(maximum)?;
            Some((index, given, format!("{bound} {value}")))
        };
        let above = outside("above the maximum", None, *maximum);
        let below = outside("below the minimum", *minimum, None);
        let first = above.into_iter().chain(below);
        if let Some((index, given, bound)) = first.min_by_key(|(index, ..)| *index) {
            return Err(Invalid::Element {
                input: name.clone(),
                index,
                bound: if given == "NaN" {
                    "outside of every bound".to_owned()
                } else {
                    bound
                },
                given,
            });
        }
    }
    Ok(())
}

/// Checks the inputs that hold texts, each given once; gives their rows. One query may stand for all documents.
fn rows_of_texts(text: &Text, inputs: &[TensorView<'_>]) -> Result<u32, Invalid> {
    let expected = text.inputs();
    let mut first: Option<(&TensorView<'_>, u32)> = None;
    for input in inputs {
        if !expected.contains(&input.name) {
            return Err(Invalid::TextAndTensors {
                input: expected[0].to_owned(),
                given: input.name.to_owned(),
            });
        }
        if inputs
            .iter()
            .filter(|other| other.name == input.name)
            .count()
            > 1
        {
            return Err(Invalid::DuplicateInput {
                input: input.name.to_owned(),
            });
        }
        let rows = rows_of_text(input)?;
        if input.name == QUERY && rows == 1 {
            continue;
        }
        match first {
            Some((first, rows_of_first)) if rows_of_first != rows => {
                return Err(Invalid::Rows {
                    input: input.name.to_owned(),
                    first: first.name.to_owned(),
                    expected: rows_of_first,
                    given: rows,
                });
            }
            Some(_) => {}
            None => first = Some((input, rows)),
        }
    }
    let is_missing = |name: &&str| !inputs.iter().any(|input| input.name == *name);
    match expected.iter().copied().find(is_missing) {
        Some(missing) => Err(Invalid::MissingInput {
            input: missing.to_owned(),
            expected: names(expected.iter().copied()),
        }),
        None => Ok(first.map_or(1, |(_, rows)| rows)),
    }
}

/// Checks an input of texts, one a row, of shape `[rows, 1]` or, as the batch dimension is easily forgotten for a text,
/// `[rows]`; gives its rows.
fn rows_of_text(text: &TensorView<'_>) -> Result<u32, Invalid> {
    check_datatype(text, Datatype::Bytes)?;
    let hint = match *text.shape {
        [rows] | [rows, 1] => match shape::positive(rows) {
            Some(rows) => return Ok(rows),
            None => shape::no_rows(&[1, 1]),
        },
        _ => "each row is one text".to_owned(),
    };
    Err(wrong_shape(text, "[-1, 1]".to_owned(), hint))
}

/// Checks the model's own inputs, each given once, in any order; gives their rows.
fn rows_of_tensors(model: &Model, inputs: &[TensorView<'_>]) -> Result<u32, Invalid> {
    let expected = || names(model.inputs.iter().map(|spec| &*spec.name));
    for (index, input) in inputs.iter().enumerate() {
        if !model.inputs.iter().any(|spec| spec.name == input.name) {
            return Err(Invalid::UnknownInput {
                given: input.name.to_owned(),
                expected: expected(),
            });
        }
        if inputs[..index].iter().any(|other| other.name == input.name) {
            return Err(Invalid::DuplicateInput {
                input: input.name.to_owned(),
            });
        }
    }
    let mut first: Option<(&TensorView<'_>, u32)> = None;
    let mut named: Vec<(&str, i64, &str)> = Vec::new();
    for spec in &model.inputs {
        let input = inputs.iter().find(|input| input.name == spec.name);
        let input = input.ok_or_else(|| Invalid::MissingInput {
            input: spec.name.clone(),
            expected: expected(),
        })?;
        check_datatype(input, spec.datatype.into())?;
        let rows = shape::rows(spec, input.shape)
            .map_err(|hint| wrong_shape(input, format!("{:?}", spec.protocol_shape()), hint))?;
        let (first, rows_of_first) = *first.get_or_insert((input, rows));
        if rows != rows_of_first {
            return Err(Invalid::Rows {
                input: input.name.to_owned(),
                first: first.name.to_owned(),
                expected: rows_of_first,
                given: rows,
            });
        }
        for (dimension, size) in spec.shape.iter().zip(&input.shape[1..]) {
            let Some(name) = dimension.name() else {
                continue;
            };
            match named.iter().find(|(other, ..)| *other == name) {
                Some((_, expected, first)) if expected != size => {
                    return Err(Invalid::Dimension {
                        input: input.name.to_owned(),
                        dimension: name.to_owned(),
                        expected: *expected,
                        first: (*first).to_owned(),
                        given: *size,
                    });
                }
                Some(_) => {}
                None => named.push((name, *size, input.name)),
            }
        }
        // A tokenizer makes one value a token: ids and masks of different lengths are no text.
        if model.text.is_some() && input.shape != first.shape {
            let expected = format!("{:?} as in {:?}", first.shape, first.name);
            return Err(wrong_shape(input, expected, String::new()));
        }
    }
    // A model has at least one input.
    Ok(first.map_or(0, |(_, rows)| rows))
}

fn check_datatype(input: &TensorView<'_>, expected: Datatype) -> Result<(), Invalid> {
    if input.datatype == expected {
        return Ok(());
    }
    Err(Invalid::Datatype {
        input: input.name.to_owned(),
        expected,
        given: input.datatype,
    })
}

fn wrong_shape(input: &TensorView<'_>, expected: String, hint: String) -> Invalid {
    Invalid::Shape {
        input: input.name.to_owned(),
        expected,
        given: input.shape.to_owned(),
        hint,
    }
}

fn after_semicolon(hint: &str) -> String {
    if hint.is_empty() {
        String::new()
    } else {
        format!("; {hint}")
    }
}

/// Parameters that Triton knows and that change what the answer holds, or where it is. Others have no bearing on it.
const NOT_BUILT: [(&str, &str); 2] = [
    ("classification", "rank the output's numbers in the client"),
    ("shared_memory_region", "read the output from the answer"),
];

fn check_parameters(parameters: &Parameters, of: impl Fn() -> String) -> Result<(), Invalid> {
    for (parameter, instead) in NOT_BUILT {
        match parameters.get(parameter) {
            // A number of 0 asks for no classes at all, which is what there is without the parameter.
            None | Some(Parameter::Int64(0)) => {}
            Some(_) => {
                return Err(Invalid::NotBuilt {
                    of: of(),
                    parameter,
                    instead,
                });
            }
        }
    }
    Ok(())
}

/// Checks that every requested output exists and is requested once.
fn check_outputs(
    model: &Model,
    is_text: bool,
    requested: &[RequestedOutput],
) -> Result<(), Invalid> {
    let mut made = model
        .text
        .as_ref()
        .map_or(Vec::new(), |text| text.outputs().to_vec());
    if is_text {
        made.extend([TOKENS, TRUNCATED]);
    }
    let mut seen = HashSet::new();
    for RequestedOutput { name, .. } in requested {
        let spec = model.outputs.iter().find(|spec| spec.name == *name);
        if spec.is_none() && !made.contains(&&**name) {
            let own = model.outputs.iter().map(|spec| &*spec.name);
            return Err(Invalid::UnknownOutput {
                given: name.clone(),
                expected: names(made.iter().copied().chain(own)),
            });
        }
        if !seen.insert(name) {
            return Err(Invalid::DuplicateOutput {
                output: name.clone(),
            });
        }
    }
    Ok(())
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;

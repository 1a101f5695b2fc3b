//! `POST /v1/models/NAME:predict`: `KServe`'s first protocol, which TensorFlow Serving had before it. A request holds rows,
//! each the value of the model's one input or an object of values by the names of its inputs; so does an answer.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use carpool_crds::Task;
use carpool_protocol::{Shape, Tensor, cut, json};
use http::{Response, request::Parts};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{json, value::RawValue};

use crate::{
    body::{self, IncomingBody},
    error::Error,
    infer::{self, Caller, Validated},
    metadata::{self, TensorOfModel},
    metrics::Hop,
    payload::Payload,
    proxy::{Proxy, Served},
    routes,
};

/// A request: rows, and the name of a signature, of which a model has one here.
#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    instances: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
}

/// Answers one request.
pub async fn serve(
    proxy: &Proxy,
    caller: Caller<'_>,
    head: &Parts,
    body: &mut IncomingBody,
) -> Result<Response<Payload>, Error> {
    body::check_json(&head.headers)?;
    let body = body::read(proxy, &head.headers, body, caller.arrival).await?;
    let served = proxy.served();
    let mut hops = proxy.metrics.hop_timer();
    let validated = {
        let (served, bytes) = (Arc::clone(&served), body.len());
        let read = move || validated(&served, &body);
        body::off_reactor(bytes, read).await?
    };
    hops.passed(Hop::Parse);
    let rows = validated.rows;
    let answer = infer::ask(proxy, &served, validated, caller, &mut hops).await?;
    let answer = {
        let served = Arc::clone(&served);
        body::off_reactor(answer.len(), move || predictions(&served, rows, answer)).await?
    };
    hops.passed(Hop::Respond);
    Ok(routes::json(answer))
}

/// Holds a request against the model.
pub fn validated(served: &Served, body: &[u8]) -> Result<Validated, Error> {
    Validated::of_json(served, to_tensors(served, body)?, None)
}

/// Writes the rows of a request as a request of the second protocol, one tensor for each input.
fn to_tensors(served: &Served, body: &[u8]) -> Result<Bytes, Error> {
    let request: Request<'_> = json::decode_object(body)?;
    let Some(rows) = request.instances else {
        let instead = match request.inputs {
            Some(_) => "; `inputs` are columns, which are not read: give rows",
            None => "",
        };
        return Err(Error::Malformed(format!(
            "instances: missing: a list of rows{instead}"
        )));
    };
    if rows.is_empty() {
        return Err(Error::Invalid(
            "instances: there are none; at least one is needed".to_owned(),
        ));
    }
    let (inputs, _) = metadata::tensors(served);
    let are_named = rows[0].get().starts_with('{');
    let mut columns: BTreeMap<&str, Vec<&RawValue>> = BTreeMap::new();
    match (&inputs[..], are_named) {
        ([only], false) => {
            columns.insert(only.name, rows);
        }
        (inputs, false) => {
            let names: Vec<&str> = inputs.iter().map(|input| input.name).collect();
            return Err(Error::Invalid(format!(
                "instances[0]: expected an object of {}, given {}",
                names.join(", "),
                brief(rows[0].get())
            )));
        }
        (inputs, true) => {
            for (index, row) in rows.iter().enumerate() {
                let Row(row) = json::decode_object(row.get().as_bytes())
                    .map_err(|error| Error::Invalid(format!("instances[{index}]: {error}")))?;
                for (name, value) in row {
                    let input = inputs.iter().find(|input| input.name == name);
                    let Some(input) = input else {
                        return Err(Error::Invalid(format!(
                            "instances[{index}]: unknown input {:?}",
                            cut(&name)
                        )));
                    };
                    let column = columns.entry(input.name).or_default();
                    column.push(value);
                    if column.len() > index + 1 {
                        return Err(Error::Invalid(format!(
                            "instances[{index}]: input {name:?} is given twice"
                        )));
                    }
                }
                if let Some(missing) = inputs
                    .iter()
                    .find(|input| columns.get(input.name).map_or(0, Vec::len) != index + 1)
                {
                    return Err(Error::Invalid(format!(
                        "instances[{index}]: input {:?} is missing",
                        missing.name
                    )));
                }
            }
        }
    }
    write_tensors(&inputs, &columns)
}

/// Writes columns as the tensors of a request.
fn write_tensors(
    inputs: &[TensorOfModel<'_>],
    columns: &BTreeMap<&str, Vec<&RawValue>>,
) -> Result<Bytes, Error> {
    let mut json = "{\"inputs\":[".to_owned();
    for input in inputs {
        let Some(values) = columns.get(input.name) else {
            continue;
        };
        let mut shape = vec![values.len()];
        dimensions(values[0], input.shape.len(), &mut shape)
            .map_err(|error| Error::Malformed(format!("instances[0]: {error}")))?;
        // A row of one value may be that value.
        if shape.len() == 1 && input.shape.len() == 2 {
            shape.push(1);
        }
        separate(&mut json);
        let head = json!({"name": input.name, "datatype": input.datatype.name(), "shape": shape})
            .to_string();
        json += head.trim_end_matches('}');
        json += ",\"data\":[";
        for value in values {
            separate(&mut json);
            json += value.get();
        }
        json += "]}";
    }
    json += "]}";
    Ok(json.into())
}

/// Adds the comma before an item, unless it is the first one.
fn separate(json: &mut String) {
    if !json.ends_with(['[', '{']) {
        json.push(',');
    }
}

/// Appends the lengths of nested lists, by the first of each, until there is a dimension too many: nobody cares by how many,
/// and each takes another look at all that is within.
fn dimensions(first: &RawValue, most: usize, shape: &mut Vec<usize>) -> serde_json::Result<()> {
    let mut value = Some(first);
    while let Some(list) = value.filter(|value| value.get().starts_with('['))
        && shape.len() <= most
    {
        let Items { first, length } = serde_json::from_str(list.get())?;
        shape.push(length);
        value = first;
    }
    Ok(())
}

/// A list of which no more is kept than what tells its shape.
struct Items<'a> {
    first: Option<&'a RawValue>,
    length: usize,
}

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor;

        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items<'de>, A::Error> {
                let first = list.next_element()?;
                let mut length = usize::from(first.is_some());
                while list.next_element::<IgnoredAny>()?.is_some() {
                    length += 1;
                }
                Ok(Items { first, length })
            }
        }

        deserializer.deserialize_seq(ItemsVisitor)
    }
}

/// A row of values by the names of inputs, in the order in which they came.
struct Row<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Row<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowVisitor;

        impl<'de> Visitor<'de> for RowVisitor {
            type Value = Row<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row<'de>, A::Error> {
                let mut row = Vec::new();
                while let Some(value) = map.next_entry()? {
                    row.push(value);
                }
                Ok(Row(row))
            }
        }

        deserializer.deserialize_map(RowVisitor)
    }
}

/// Writes a worker's answer to a request of so many rows as rows: each the value of the one output, or values by the names of
/// outputs. A text's label and score are not lists of one.
pub fn predictions(served: &Served, rows: u32, answer: Bytes) -> Result<Vec<u8>, Error> {
    let broken = |error: String| Error::Internal(format!("failed to write the answer: {error}"));
    let response = infer::decode(answer)?;
    // An output may have no elements, and say that these are in any number of rows.
    if let Some(other) = response
        .outputs
        .iter()
        .find(|output| output.shape.first() != Some(&i64::from(rows)))
    {
        return Err(broken(format!(
            "output {:?} has the shape {}, the request {rows} rows",
            cut(&other.name),
            Shape(&other.shape)
        )));
    }
    let json = json::encode_response(&response).map_err(|error| broken(error.to_string()))?;
    let Flat { outputs } =
        serde_json::from_slice(&json).map_err(|error| broken(error.to_string()))?;
    let task = served.model.text.as_ref().map(|text| text.task);
    let is_one = matches!(task, Some(Task::Classify | Task::Rerank));
    let mut columns: Vec<_> = outputs
        .iter()
        .zip(&response.outputs)
        .map(|(output, Tensor { name, shape, .. })| {
            let item = if is_one { &[] } else { &shape[1..] };
            (json!(name).to_string(), item, json::elements(output.data))
        })
        .collect();
    let is_named = columns.len() != 1;
    let mut json = "{\"predictions\":[".to_owned();
    for _ in 0..rows {
        separate(&mut json);
        if is_named {
            json.push('{');
        }
        for (name, item, elements) in &mut columns {
            if is_named {
                separate(&mut json);
                json += name;
                json.push(':');
            }
            write_nested(&mut json, item, elements);
        }
        if is_named {
            json.push('}');
        }
    }
    json += "]}";
    Ok(json.into_bytes())
}

/// An answer of the second protocol, its tensors flat.
#[derive(Deserialize)]
struct Flat<'a> {
    #[serde(borrow)]
    outputs: Vec<FlatOutput<'a>>,
}

#[derive(Deserialize)]
struct FlatOutput<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Writes the elements of one item, nested as its dimensions say.
fn write_nested<'a>(json: &mut String, item: &[i64], elements: &mut impl Iterator<Item = &'a str>) {
    match item {
        [] => *json += elements.next().unwrap_or("null"),
        // However many empty lists there are in it.
        item if item.contains(&0) => *json += "[]",
        [length, rest @ ..] => {
            json.push('[');
            for _ in 0..*length {
                separate(json);
                write_nested(json, rest, elements);
            }
            json.push(']');
        }
    }
}

/// The beginning of a value, for a message.
fn brief(text: &str) -> String {
    text.chars().take(40).collect()
}

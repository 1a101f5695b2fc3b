//! The shapes that a model declares, per item, and those that clients give, with the batch dimension in front.

use carpool_crds::{Dimension, TensorSpec, allows};

/// The rows of a tensor of shape `given`, at least 1; otherwise advice on what to send, which may be empty where the
/// two shapes say enough.
pub fn rows(spec: &TensorSpec, given: &[i64]) -> Result<u32, String> {
    match given {
        [rows, item @ ..] if spec.allows(item) => positive(*rows),
        _ => None,
    }
    .ok_or_else(|| hint(&spec.shape, given))
}

/// The number of rows, where a request can have so many.
pub fn positive(rows: i64) -> Option<u32> {
    u32::try_from(rows).ok().filter(|rows| *rows >= 1)
}

/// The advice on a tensor without rows, beside which one with a row has the shape `one`.
pub fn no_rows(one: &[i64]) -> String {
    format!("it has no rows; send at least one: {one:?}")
}

/// Whether a dimension may be a batch dimension that was written into the manifest.
fn may_be_batch(allowed: &Dimension) -> bool {
    allowed.fixed().is_none_or(|size| size == 1)
}

fn hint(allowed: &[Dimension], given: &[i64]) -> String {
    match given {
        [0, item @ ..] if allows(allowed, item) => no_rows(&with_one_row(item)),
        [_, item @ ..] if item.len() == allowed.len() => {
            let empty =
                |(allowed, given): (&Dimension, &i64)| allowed.fixed().is_none() && *given == 0;
            if allowed.iter().zip(item).any(empty) {
                "where -1 is expected, send at least 1".to_owned()
            } else {
                String::new()
            }
        }
        [1, rest @ ..] if rest.get(1..).is_some_and(|item| allows(allowed, item)) => {
            format!("it has a dimension too many; send {rest:?}")
        }
        item if item.len() == allowed.len() => without_batch(allowed, item),
        _ => format!(
            "send {} dimensions, the batch dimension first",
            allowed.len() + 1
        ),
    }
}

/// The advice on a shape that has as many dimensions as one item.
fn without_batch(allowed: &[Dimension], given: &[i64]) -> String {
    let declared = match (allowed, given) {
        ([first, allowed @ ..], [_, given @ ..]) => may_be_batch(first) && allows(allowed, given),
        _ => false,
    };
    let add = format!("add the batch dimension: {:?}", with_one_row(given));
    let take = "if the first dimension of its shape in spec.model.inputs is meant as the batch dimension, leave that out \
                there: the shape is for one item";
    match (allows(allowed, given), declared) {
        (true, true) => format!("{add}; or, {take}"),
        (true, false) => add,
        (false, true) => take.to_owned(),
        (false, false) => "the batch dimension comes first".to_owned(),
    }
}

fn with_one_row(item: &[i64]) -> Vec<i64> {
    [&[1], item].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_shape_that_does_not_fit_is_told_what_to_send() {
        let image = &[8, 8][..];
        let declared = "if the first dimension of its shape in spec.model.inputs is meant as the batch dimension, leave \
                        that out there: the shape is for one item";
        for (allowed, given, expected) in [
            (
                image,
                &[0, 8, 8][..],
                "it has no rows; send at least one: [1, 8, 8]".to_owned(),
            ),
            (
                image,
                &[8, 8],
                "add the batch dimension: [1, 8, 8]".to_owned(),
            ),
            (
                image,
                &[1, 1, 8, 8],
                "it has a dimension too many; send [1, 8, 8]".to_owned(),
            ),
            (
                image,
                &[1, 3, 8, 8],
                "it has a dimension too many; send [3, 8, 8]".to_owned(),
            ),
            (image, &[1, 8, 9], String::new()),
            (image, &[8, 9], "the batch dimension comes first".to_owned()),
            (
                image,
                &[64],
                "send 3 dimensions, the batch dimension first".to_owned(),
            ),
            (
                image,
                &[],
                "send 3 dimensions, the batch dimension first".to_owned(),
            ),
            (
                image,
                &[2, 2, 8, 8],
                "send 3 dimensions, the batch dimension first".to_owned(),
            ),
            (
                &[-1],
                &[1, 0],
                "where -1 is expected, send at least 1".to_owned(),
            ),
            (
                &[-1, 2],
                &[0, 1, 2],
                "it has no rows; send at least one: [1, 1, 2]".to_owned(),
            ),
            // These manifests have a batch dimension: the request has its own, and there it should stay alone.
            (&[1, 8, 8], &[5, 8, 8], declared.to_owned()),
            (
                &[-1, 8, 8],
                &[5, 8, 8],
                format!("add the batch dimension: [1, 5, 8, 8]; or, {declared}"),
            ),
            (
                &[1, 8, 8],
                &[1, 8, 8],
                format!("add the batch dimension: [1, 1, 8, 8]; or, {declared}"),
            ),
            // The model takes one number per item.
            (&[], &[], "add the batch dimension: [1]".to_owned()),
            (
                &[],
                &[0],
                "it has no rows; send at least one: [1]".to_owned(),
            ),
        ] {
            let spec = json!({"name": "x", "datatype": "FP32", "shape": allowed});
            let spec = serde_json::from_value(spec).unwrap();
            assert_eq!(
                rows(&spec, given),
                Err(expected),
                "{given:?} for {allowed:?}"
            );
        }
    }
}

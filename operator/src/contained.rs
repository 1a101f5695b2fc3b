//! Whether an object of the cluster has everything that was asked for: the API server fills in defaults, and others may
//! have added parts of their own.

use carpool_crds::Quantity;
use serde_json::Value;

/// The names of objects whose values are quantities, and of single quantities.
const QUANTITIES: [&str; 5] = ["limits", "requests", "sizeLimit", "storage", "divisor"];

/// Whether `live` has all of `asked`. Maps may have more, and so may lists whose elements have names, which are looked
/// for by content; other lists are compared in order. Nothing asked for is what an empty value asks for.
#[must_use]
pub fn contains(live: &Value, asked: &Value) -> bool {
    contains_within(live, asked, false)
}

fn contains_within(live: &Value, asked: &Value, quantities: bool) -> bool {
    if asked.is_null() || (is_empty(asked) && is_empty(live)) {
        return true;
    }
    match (live, asked) {
        (Value::Object(live), Value::Object(asked)) => asked.iter().all(|(key, asked)| {
            let quantities = quantities || QUANTITIES.contains(&key.as_str());
            contains_within(live.get(key).unwrap_or(&Value::Null), asked, quantities)
        }),
        // An object of nothing but empty values is left out, as they are.
        (Value::Null, Value::Object(asked)) => asked.values().all(is_empty),
        (Value::Array(live), Value::Array(asked)) if has_names(asked) => asked
            .iter()
            .all(|asked| live.iter().any(|live| contains(live, asked))),
        (Value::Array(live), Value::Array(asked)) => {
            let pairs = live.iter().zip(asked);
            live.len() == asked.len()
                && pairs.into_iter().all(|(live, asked)| contains(live, asked))
        }
        (live, asked) if quantities => match (quantity(live), quantity(asked)) {
            (Some(live), Some(asked)) => (live - asked).abs() <= asked.abs() * 1e-9,
            _ => live == asked,
        },
        (live, asked) => live == asked,
    }
}

fn has_names(list: &[Value]) -> bool {
    let is_named = |element: &Value| element.get("name").is_some_and(Value::is_string);
    !list.is_empty() && list.iter().all(is_named)
}

/// Whether a value says no more than its absence does.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn quantity(value: &Value) -> Option<f64> {
    let quantity: Quantity = serde_json::from_value(value.clone()).ok()?;
    quantity.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(live: &str, asked: &str) -> bool {
        let parse = |yaml: &str| -> Value { serde_yaml::from_str(yaml).unwrap() };
        contains(&parse(live), &parse(asked))
    }

    #[test]
    fn what_others_and_defaults_added_is_no_difference() {
        for (live, asked) in [
            ("{a: 1, b: 2}", "{a: 1}"),
            ("{a: {}}", "{a: null, b: false, c: '', d: 0, e: [], f: {}}"),
            ("{}", "{a: {b: null}}"),
            ("[{name: a, x: 1}, {name: injected}]", "[{name: a}]"),
            ("[{name: b}, {name: a}]", "[{name: a}, {name: b}]"),
            ("[{port: 1, protocol: TCP}]", "[{port: 1}]"),
            (
                "{limits: {cpu: '1', memory: 1Gi}}",
                "{limits: {cpu: 1000m, memory: 1024Mi}}",
            ),
            ("{limits: {cpu: 500m}}", "{limits: {cpu: 0.5}}"),
            (
                "[{name: v, mountPath: /a}, {name: v, mountPath: /b}]",
                "[{name: v, mountPath: /b}]",
            ),
        ] {
            assert!(check(live, asked), "{live} has {asked}");
        }
    }

    #[test]
    fn what_is_missing_or_other_is_a_difference() {
        for (live, asked) in [
            ("{}", "{a: 1}"),
            ("{a: 2}", "{a: 1}"),
            ("{a: true}", "{a: false}"),
            ("[{name: a, x: 2}]", "[{name: a, x: 1}]"),
            ("[{name: b}]", "[{name: a}]"),
            ("[{port: 1}, {port: 2}]", "[{port: 1}]"),
            ("[{port: 2}, {port: 1}]", "[{port: 1}, {port: 2}]"),
            ("[b, a]", "[a, b]"),
            ("{limits: {cpu: '2'}}", "{limits: {cpu: '1'}}"),
            ("{env: '1'}", "{env: 1000m}"),
            ("{ingress: [{from: []}]}", "{ingress: []}"),
            ("{}", "{a: {b: 1}}"),
        ] {
            assert!(!check(live, asked), "{live} has not {asked}");
        }
    }
}

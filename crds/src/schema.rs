//! The bounds of the resource's schema, as the API server would check them: ranges, lengths, patterns.

use std::fmt;

use regex::Regex;
use serde_json::Value;

/// A value that is outside the bounds of its field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field, such as `spec.scaling.maxReplicas`.
    pub field: String,
    /// The bound, and the value.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Returns every value of `object` that is outside the bounds of `schema`. Types, unknown fields and missing ones are
/// not looked at: serde refuses those.
pub fn violations(schema: &Value, object: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    walk(schema, object, "", &mut found);
    found
}

fn walk(schema: &Value, value: &Value, field: &str, found: &mut Vec<Violation>) {
    let mut complain = |message: String| {
        found.push(Violation {
            field: field.to_owned(),
            message,
        });
    };
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            if let Some(least) = schema["minimum"].as_f64()
                && number < least
            {
                complain(format!("must be at least {least}, it is {number}"));
            }
            if let Some(most) = schema["maximum"].as_f64()
                && number > most
            {
                complain(format!("must be at most {most}, it is {number}"));
            }
        }
        Value::String(text) => {
            let length = text.chars().count() as u64;
            if let Some(message) = outside(schema, "minLength", "maxLength", length, "characters") {
                complain(message);
            }
            if let Some(pattern) = schema["pattern"].as_str()
                && Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
            {
                complain(format!("must match {pattern}, it is {text:?}"));
            }
        }
        Value::Array(items) => {
            if let Some(message) =
                outside(schema, "minItems", "maxItems", items.len() as u64, "items")
            {
                complain(message);
            }
            for (index, item) in items.iter().enumerate() {
                walk(&schema["items"], item, &format!("{field}[{index}]"), found);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let field = if field.is_empty() {
                    name.clone()
                } else {
                    format!("{field}.{name}")
                };
                walk(&schema["properties"][name], value, &field, found);
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn outside(schema: &Value, min: &str, max: &str, length: u64, unit: &str) -> Option<String> {
    if let Some(least) = schema[min].as_u64()
        && length < least
    {
        return Some(format!(
            "must have at least {least} {unit}, it has {length}"
        ));
    }
    if let Some(most) = schema[max].as_u64()
        && length > most
    {
        return Some(format!("must have at most {most} {unit}, it has {length}"));
    }
    None
}

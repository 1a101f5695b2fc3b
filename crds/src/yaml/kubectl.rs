//! The rules by which kubectl reads a plain scalar: those of go-yaml v2, which are YAML 1.1's with some of 1.2's.

use std::{fmt, sync::LazyLock};

use regex::Regex;
use serde_json::Value;

/// The meaning of a plain scalar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// The text itself.
    Text,
    /// A null.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number without a point.
    Integer(i128),
    /// Any other number; JSON has none that is infinite or none at all.
    Float(f64),
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Integer(value) => write!(f, "the number {value}"),
            Self::Float(value) => write!(f, "the number {value}"),
        }
    }
}

impl Reading {
    /// Whether a value that was read from `text` is the same.
    pub fn is(self, text: &str, value: &Value) -> bool {
        match (self, value) {
            (Self::Text, Value::String(value)) => value == text,
            (Self::Null, Value::Null) => true,
            (Self::Bool(read), Value::Bool(value)) => read == *value,
            (Self::Integer(read), Value::Number(value)) => match value.as_i128() {
                Some(value) => read == value,
                // A number without a point may still have been read as if it had one.
                None => value.as_f64() == read.to_string().parse().ok(),
            },
            (Self::Float(read), Value::Number(value)) => value.as_f64() == Some(read),
            _ => false,
        }
    }
}

/// Reads a plain scalar.
pub fn read(text: &str) -> Reading {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Reading::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Reading::Bool(false);
        }
        "" | "~" | "null" | "Null" | "NULL" => return Reading::Null,
        ".nan" | ".NaN" | ".NAN" => return Reading::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Reading::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Reading::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let number = match text.as_bytes().first() {
        Some(b'.') if between_digits(text) => float(&text.replace('_', "")),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let plain = text.replace('_', "");
            integer(&plain)
                .map(Reading::Integer)
                .or_else(|| float(&plain))
        }
        _ => None,
    };
    number.unwrap_or(Reading::Text)
}

/// Whether each underscore stands between two digits.
fn between_digits(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'_')
        .all(|(index, _)| index > 0 && digit(index - 1) && digit(index + 1))
}

/// Parses as Go's `ParseInt` and `ParseUint` of base 0 do: a leading 0 is octal.
fn integer(plain: &str) -> Option<i128> {
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, plain.strip_prefix('+').unwrap_or(plain)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', _, ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', _, ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // Go refuses a second sign.
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    let value = if negative { -value } else { value };
    let most = match plain.as_bytes().first() {
        Some(b'+') => i128::from(i64::MAX),
        _ => i128::from(u64::MAX),
    };
    (i128::from(i64::MIN)..=most)
        .contains(&value)
        .then_some(value)
}

fn float(plain: &str) -> Option<Reading> {
    static FLOAT: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$").ok());
    if !FLOAT.as_ref()?.is_match(plain) {
        return None;
    }
    let value: f64 = plain.parse().ok()?;
    // A number that is too large stays text.
    value.is_finite().then_some(Reading::Float(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The readings are those that a program printed that calls `YAMLToJSON` of sigs.k8s.io/yaml v1.6.0, which kubectl
    /// uses.
    #[test]
    fn readings_are_those_of_go_yaml() {
        use Reading::{Bool, Float, Integer, Null, Text};
        for (texts, reading) in [
            ("y Y yes Yes YES on On ON true True TRUE", Bool(true)),
            ("n N no No NO off Off OFF false False FALSE", Bool(false)),
            ("~ null Null NULL", Null),
            ("yEs nO oN oFF tRue nUll nil None t f T F yes! True1", Text),
            ("0 -0 +0 00 -00", Integer(0)),
            (
                "0777 +0777 0o777 0O777 0x1FF 0X1ff 0b111111111 0_777 0o_777 0x_1F_F 511 5_1_1 511_ +_511",
                Integer(511),
            ),
            ("-0777 -0o777 -0x1FF -511 -5_11 -_511", Integer(-511)),
            (
                "0o19 0xZ 0b102 0x 0o 0b 0x1p3 0x1.8 ++1 +-1 -+1 _1 1-1 - + 0x+1 0-7",
                Text,
            ),
            ("888 0888 08_88 0o1570", Integer(888)),
            ("1_000 1__000 1000 01750", Integer(1000)),
            ("18446744073709551615", Integer(u64::MAX.into())),
            ("-9223372036854775808", Integer(i64::MIN.into())),
            (".5 +.5 .5_0 0.50 00.5 5e-1", Float(0.5)),
            ("1e3 1E3 1e+3 1.e3 1_e3 1e_3 1_000. 1000.0", Float(1000.0)),
            (
                "1e400 -1e400 1e .e3 ._5 .5_ . .. 1.2.3 1:30 190:20:30.15 2001-12-14 2001-12-14t21:59:43.10-05:00",
                Text,
            ),
            (
                "inf nan NaN Infinity .iNF .nAN +.nan -.nan 1f 100m 1Gi 5ms 1,000 = e1",
                Text,
            ),
            (".inf +.Inf", Float(f64::INFINITY)),
            ("-.INF", Float(f64::NEG_INFINITY)),
        ] {
            for text in texts.split(' ') {
                match (read(text), reading) {
                    // A number that is invalid as octal is a float to go-yaml, which JSON writes as it does an integer.
                    (Float(read), Integer(reading)) => {
                        assert_eq!(format!("{read}"), format!("{reading}"), "{text}");
                    }
                    (read, reading) => assert_eq!(read, reading, "{text}"),
                }
            }
        }
        assert_eq!(read(""), Null);
        assert!(matches!(read(".NaN"), Float(value) if value.is_nan()));
    }
}

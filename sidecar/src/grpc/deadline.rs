//! `grpc-timeout`: the time that a call's client gives it.

use std::time::Duration;

use http::HeaderMap;

use crate::error::Error;

/// The time that the header `grpc-timeout` gives: at most eight digits and a unit, as the specification of gRPC over HTTP/2
/// has it. `None` where there is no header.
pub fn of(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(given) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let text = given.to_str().unwrap_or_default();
    parse(text).map(Some).ok_or_else(|| {
        Error::Malformed(format!(
            "grpc-timeout: expected up to 8 digits and a unit of H, M, S, m, u or n, given {text:?}"
        ))
    })
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_digits_and_a_unit() {
        for (text, millis) in [("2H", 7_200_000), ("1M", 60_000), ("3S", 3000), ("40m", 40)] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(parse("5n"), Some(Duration::from_nanos(5)));
        for wrong in ["", "5", "S", "123456789S", "-1S", "+1S", "1s", "1 S", "1µ"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

//! Advice about mistakes that JSON writers often make, and of which the JSON library says only where they are.

/// The advice on `error`, which the JSON library found in `text`; `None` where its own words are all there is.
pub(super) fn hint(text: &[u8], error: &serde_json::Error) -> Option<String> {
    if is_wide(text) {
        return Some("this looks like UTF-16 or UTF-32; send UTF-8".to_owned());
    }
    let message = error.to_string();
    if message.starts_with("invalid unicode code point") {
        return Some("this is not UTF-8, in which JSON is sent".to_owned());
    }
    // The library says of a first half without a second one only that the escape ends too soon.
    if ["lone leading surrogate", "unexpected end of hex escape"]
        .iter()
        .any(|said| message.starts_with(said))
    {
        return Some(
            "half of a surrogate pair is no character; write both halves, as in \\ud83d\\ude00, or the character \
             itself in UTF-8"
                .to_owned(),
        );
    }
    let word = word_at(text, error.line(), error.column())?;
    let says = match &*word.trim_start_matches(['-', '+']).to_ascii_lowercase() {
        "nan" | "inf" | "infinity" => {
            "numbers in JSON are finite; in tensors of FP32 and FP64 null stands for NaN, and nothing for an infinity"
        }
        "true" | "false" | "none" | "undefined" => "JSON has true, false and null, in lower case",
        _ => return None,
    };
    Some(format!("`{word}` is not JSON: {says}"))
}

/// Whether the characters of a text take more than a byte each: JSON's first one is ASCII.
fn is_wide(text: &[u8]) -> bool {
    matches!(
        text,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, ..] | [_, 0, ..]
    )
}

/// The word at a position as the JSON library counts: both from 1, columns in bytes.
fn word_at(text: &[u8], line: usize, column: usize) -> Option<String> {
    let lines = text.split(|byte| *byte == b'\n');
    let before: usize = lines
        .take(line.checked_sub(1)?)
        .map(|line| line.len() + 1)
        .sum();
    let (left, right) = text.split_at_checked((before + column).checked_sub(1)?)?;
    let ends = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"+-._".contains(byte);
    let from = left.iter().rposition(ends).map_or(0, |end| end + 1);
    let to = right.iter().position(ends).unwrap_or(right.len());
    let word = [&left[from..], &right[..to]].concat();
    String::from_utf8(word).ok()
}

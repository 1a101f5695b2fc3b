//! Names, values and shapes that a client sent, short enough for an error message.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

/// The most characters of a name or value that an error shows.
const LIMIT: usize = 64;

/// The beginning of a name or value that a client sent, for an error: all of it, but where it is long.
#[must_use]
pub fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A name or value of the client's in an error: in backquotes, and cut where it is long.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('`')?;
        for char in cut(self.0).chars() {
            if char.is_control() {
                write!(f, "{}", char.escape_default())?;
            } else {
                f.write_char(char)?;
            }
        }
        f.write_char('`')
    }
}

/// A shape that a client sent, for an error: cut where it is long.
#[derive(Debug)]
pub struct Shape<'a>(pub &'a [i64]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 8;
        let shown: Vec<_> = self.0.iter().take(LIMIT).map(i64::to_string).collect();
        let more = if self.0.len() > LIMIT { ", …" } else { "" };
        write!(f, "[{}{more}]", shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_cut_in_errors() {
        let name = "\n".to_owned() + &"é".repeat(100);
        assert_eq!(
            Quoted(&name).to_string(),
            format!("`\\n{}…`", "é".repeat(63))
        );
        assert_eq!(Shape(&[1; 9]).to_string(), "[1, 1, 1, 1, 1, 1, 1, 1, …]");
    }
}

//! Names, values and shapes that a client sent, short enough for an error message.

use std::fmt::{self, Write as _};

/// A name or value of the client's in an error: in backquotes, and cut where it is long.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 64;
        f.write_char('`')?;
        for (index, char) in self.0.chars().enumerate() {
            if index == LIMIT {
                f.write_char('…')?;
                break;
            }
            if char.is_control() {
                write!(f, "{}", char.escape_default())?;
            } else {
                f.write_char(char)?;
            }
        }
        f.write_char('`')
    }
}

/// A shape in an error, cut where it is long.
pub(crate) struct Shape<'a>(pub(crate) &'a [i64]);

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

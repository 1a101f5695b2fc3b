//! A tokenizer whose time for a text is bounded, however long the text is.

use carpool_crds::{Task, Text};
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationParams, truncate_encodings};

/// The bytes of text for each wanted token in the first cut of a text. Few texts fill their tokens with more.
const FIRST_CUT: usize = 16;
/// The least bytes of the first cut of a text.
const LEAST_CUT: usize = 1 << 10;
/// The number of first cuts up to which a text is tokenized whole: trying cuts would take as long.
const WHOLE: usize = 4;
/// The most first cuts of a text that are read.
const MOST: usize = 16;

/// A tokenizer that cuts texts to a number of tokens.
pub struct Tokens {
    tokenizer: Tokenizer,
    max_length: usize,
    /// The tokens that the tokenizer adds of its own to a text or, where the task is of pairs, to a pair.
    added: usize,
}

/// The tokens of a text or of a pair of texts.
pub struct Tokenized {
    /// The tokens, cut to the wanted length.
    pub encoding: Encoding,
    /// Whether there is more of the text than these tokens.
    pub truncated: bool,
}

/// The part of a text from which its wanted tokens are made.
pub struct Beginning<'a> {
    text: &'a str,
    /// The first tokens, where they had to be made to find the part.
    encoding: Option<Encoding>,
    /// Whether anything but whitespace follows.
    is_cut: bool,
}

impl Tokens {
    /// Makes a tokenizer cut as the resource says. The tokenizer's own settings of cutting and padding don't count:
    /// Carpool does both.
    pub fn new(mut tokenizer: Tokenizer, text: &Text) -> Result<Self, String> {
        let max_length = text.max_length as usize;
        let is_pair = text.task == Task::Rerank;
        let added = tokenizer
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(is_pair));
        // The tokenizer would count below zero and cut nothing. Of a pair each text is to have a token.
        let least = added + if is_pair { 2 } else { 1 };
        if max_length < least {
            return Err(format!(
                "text.maxLength: {max_length} leaves no room for text, since the tokenizer {} adds {added} tokens of \
                its own to each; give at least {least}",
                text.tokenizer,
            ));
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                // One more tells whether there is more.
                max_length: max_length + 1,
                ..TruncationParams::default()
            }))
            .map_err(|error| format!("failed to set text.maxLength: {error}"))?;
        Ok(Self {
            tokenizer,
            max_length,
            added,
        })
    }

    /// The number of tokens that the tokenizer knows.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Makes the tokens of a text, cut to the wanted length.
    pub fn encode(&self, text: &str) -> tokenizers::Result<Tokenized> {
        let text = self.beginning(text);
        self.finish(self.of_beginning(&text)?, None, text.is_cut)
    }

    /// Makes the tokens of two texts that a model reads together, cut to the wanted length, the longer one first.
    pub fn encode_pair(
        &self,
        first: &Beginning<'_>,
        second: &Beginning<'_>,
    ) -> tokenizers::Result<Tokenized> {
        let is_cut = first.is_cut || second.is_cut;
        let (first, mut second) = (self.of_beginning(first)?, self.of_beginning(second)?);
        second.set_type_ids(vec![1; second.len()]);
        self.finish(first, Some(second), is_cut)
    }

    /// Cuts tokens to the wanted length, and adds the tokenizer's own. The tokenizer would do both in one, but not tell
    /// whether it cut, and keep every combination of what it cut off from two texts.
    fn finish(
        &self,
        first: Encoding,
        second: Option<Encoding>,
        is_cut: bool,
    ) -> tokenizers::Result<Tokenized> {
        let room = TruncationParams {
            max_length: self.max_length - self.added,
            ..TruncationParams::default()
        };
        let length = first.len() + second.as_ref().map_or(0, Encoding::len);
        let (mut first, mut second) = truncate_encodings(first, second, &room)?;
        for encoding in std::iter::once(&mut first).chain(&mut second) {
            encoding.take_overflowing();
        }
        Ok(Tokenized {
            encoding: self.tokenizer.post_process(first, second, true)?,
            truncated: is_cut || length > room.max_length,
        })
    }

    fn of_beginning(&self, text: &Beginning<'_>) -> tokenizers::Result<Encoding> {
        match &text.encoding {
            Some(encoding) => Ok(encoding.clone()),
            None => self.tokens(text.text),
        }
    }

    /// Makes the first tokens of a text: one more than are wanted, if there are so many, and none of the tokenizer's own.
    fn tokens(&self, text: &str) -> tokenizers::Result<Encoding> {
        let mut encoding = self.tokenizer.encode_fast(text, false)?;
        encoding.take_overflowing();
        Ok(encoding)
    }

    /// Finds the beginning of a text that stands in many pairs, and makes its tokens once for all of them.
    pub fn shared<'a>(&self, text: &'a str) -> tokenizers::Result<Beginning<'a>> {
        let mut beginning = self.beginning(text);
        if beginning.encoding.is_none() {
            beginning.encoding = Some(self.tokens(beginning.text)?);
        }
        Ok(beginning)
    }

    /// Finds the part of a text from which its wanted tokens are made.
    ///
    /// Tokenizing takes a second for some megabytes of which a few kilobytes are wanted, so only the beginning of a
    /// long text is tokenized. A tokenizer's splits may depend on what follows, so a cut counts only if one twice as
    /// long begins with the same tokens.
    pub fn beginning<'a>(&self, text: &'a str) -> Beginning<'a> {
        let first = (self.max_length * FIRST_CUT).max(LEAST_CUT);
        let found = |beginning: &'a str, encoding| Beginning {
            text: beginning,
            encoding,
            is_cut: !text[beginning.len()..].trim().is_empty(),
        };
        if text.len() <= first * WHOLE {
            return found(text, None);
        }
        let mut shorter: Option<Encoding> = None;
        let mut bytes = first;
        while bytes < text.len().min(first * MOST) {
            // A word that was cut may be an error in itself.
            let beginning = cut(text, bytes);
            let longer = self.tokens(beginning).ok();
            let longer = longer.filter(|encoding| encoding.len() > self.max_length);
            match (shorter, longer) {
                (Some(shorter), Some(longer)) if shorter.get_ids() == longer.get_ids() => {
                    return found(beginning, Some(longer));
                }
                (_, longer) => shorter = longer,
            }
            bytes *= 2;
        }
        found(cut(text, bytes), None)
    }
}

/// The beginning of a text, at most so many bytes: up to the last whitespace, unless that is far.
fn cut(text: &str, bytes: usize) -> &str {
    let cut = &text[..text.floor_char_boundary(bytes)];
    if cut.len() == text.len() {
        return text;
    }
    cut.rfind(char::is_whitespace)
        .map(|end| cut[..end].trim_end())
        .filter(|words| words.len() > bytes / 2)
        .unwrap_or(cut)
}

#[cfg(test)]
mod tests;

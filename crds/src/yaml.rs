//! Manifests, read as kubectl reads them: a plain `y` is true and 0777 is 511, as in YAML 1.1. A manifest whose text
//! this parser reads differently is refused rather than given a second meaning.

mod kubectl;

use std::{collections::HashMap, fmt, fmt::Write as _};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_yaml::granit_parser::{Event, Parser, ScalarStyle};

use kubectl::Reading;

/// One document of a manifest.
#[derive(Debug, Default)]
pub struct Document {
    /// The document's content.
    pub value: Value,
    /// The place of every field, by its path.
    nodes: HashMap<String, Node>,
    ambiguous: Vec<Ambiguous>,
}

/// The place of a field, and its text.
#[derive(Debug)]
struct Node {
    line: usize,
    /// The field's text, if it is plain: neither quoted nor tagged.
    plain: Option<String>,
}

/// A plain scalar whose meaning depends on who reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ambiguous {
    line: usize,
    field: String,
    text: String,
    reading: Reading,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            field,
            text,
            reading,
        } = self;
        write!(
            f,
            "line {line}: {field}: kubectl reads {text} as {reading}; quote it: {text:?}"
        )?;
        match reading {
            Reading::Bool(value) => write!(f, ", or write {value}"),
            Reading::Integer(value) => write!(f, ", or write {value}"),
            Reading::Float(value) if value.is_finite() => write!(f, ", or write {value}"),
            _ => Ok(()),
        }
    }
}

/// Reads the documents of a manifest; empty ones are left out. `first_line` is the number of the text's first line in
/// its file. The error says where the text is no YAML.
pub fn read(text: &str, first_line: usize) -> Result<Vec<Document>, String> {
    let values: Vec<Value> = serde_yaml::from_multiple_with_options(text, options())
        .map_err(|error| error.without_snippet().to_string())?;
    let documents = values.into_iter().zip(Outline::of(text, first_line));
    Ok(documents
        .map(|(value, document)| Document { value, ..document })
        .collect())
}

/// Returns the parser's options: octal numbers as kubectl has them, and of booleans only those that all readers agree
/// on.
fn options() -> serde_yaml::Options {
    serde_yaml::options! { legacy_octal_numbers: true, strict_booleans: true }
}

/// Whether a plain value is read here as kubectl reads it.
fn is_agreed(text: &str, reading: Reading) -> bool {
    match serde_yaml::from_str_with_options(text, options()) {
        Ok(own @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => reading.is(text, &own),
        _ => reading == Reading::Text,
    }
}

impl Document {
    /// Refuses scalars that kubectl reads differently, a line each.
    pub fn check(&self) -> Result<(), String> {
        if self.ambiguous.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self.ambiguous.iter().map(ToString::to_string).collect();
        Err(lines.join("\n"))
    }

    /// Returns the document as this type, as strictly as an API server that gets it from kubectl: a number is no text.
    /// The error names the field and its line.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_path_to_error::deserialize(&self.value).map_err(|error| {
            let field = error.path().to_string();
            let message = error.into_inner().to_string();
            let Some(node) = self.nodes.get(&field) else {
                return format!("{field}: {message}");
            };
            let place = format!("line {}: {field}: {message}", node.line);
            match &node.plain {
                Some(text) if message.contains("expected a string") => {
                    let reading = kubectl::read(text);
                    format!("{place}; kubectl reads {text} as {reading}; quote it: {text:?}")
                }
                _ => place,
            }
        })
    }
}

/// The path of the whole document, as errors write it.
const ROOT: &str = ".";

/// A list or a map that surrounds a node.
enum Frame {
    List(usize),
    /// The key whose value comes next, or none where a key comes next.
    Map(Option<String>),
}

/// The places of all fields, gathered from the parser's events.
#[derive(Default)]
struct Outline {
    documents: Vec<Document>,
    frames: Vec<Frame>,
}

impl Outline {
    fn of(text: &str, first_line: usize) -> impl Iterator<Item = Document> {
        let mut outline = Self::default();
        // Text that is no YAML is refused by the reader of values.
        for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
            let line = span.start.line() + first_line - 1;
            match event {
                Event::DocumentStart(..) => {
                    outline.documents.push(Document::default());
                    outline.frames.clear();
                }
                Event::SequenceStart(..) => {
                    outline.note(line, None);
                    outline.frames.push(Frame::List(0));
                }
                Event::MappingStart(..) => {
                    outline.note(line, None);
                    outline.frames.push(Frame::Map(None));
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    outline.frames.pop();
                    outline.advance("?");
                }
                Event::Alias(_) => outline.advance("*"),
                Event::Scalar(text, style, _, tag) => {
                    let plain = style == ScalarStyle::Plain && tag.is_none();
                    outline.scalar(line, &text, plain);
                }
                _ => {}
            }
        }
        // The reader of values leaves empty documents out, too.
        outline.documents.into_iter().filter(|document| {
            let root = document
                .nodes
                .get(ROOT)
                .and_then(|root| root.plain.as_deref());
            root.is_none_or(|root| kubectl::read(root) != Reading::Null)
        })
    }

    fn scalar(&mut self, line: usize, text: &str, plain: bool) {
        let reading = kubectl::read(text);
        let field = self.field();
        let is_key = matches!(self.frames.last(), Some(Frame::Map(None)));
        let agreed = match reading {
            _ if !plain => true,
            _ if !is_key => is_agreed(text, reading),
            Reading::Text => true,
            // Keys are text: kubectl writes out again what it has read.
            Reading::Integer(value) => value.to_string() == text,
            _ => false,
        };
        if !agreed && let Some(document) = self.documents.last_mut() {
            document.ambiguous.push(Ambiguous {
                line,
                field: field + if is_key { " (a key)" } else { "" },
                text: text.to_owned(),
                reading,
            });
        }
        if !is_key {
            self.note(line, plain.then(|| text.to_owned()));
        }
        self.advance(text);
    }

    /// Notes the place of the node that comes next.
    fn note(&mut self, line: usize, plain: Option<String>) {
        let field = self.field();
        if let Some(document) = self.documents.last_mut() {
            document.nodes.insert(field, Node { line, plain });
        }
    }

    /// Returns the path of the node that comes next, as errors write it.
    fn field(&self) -> String {
        let mut field = String::new();
        for frame in &self.frames {
            match frame {
                Frame::List(index) => {
                    // Writing to a string does not fail.
                    let _ = write!(field, "[{index}]");
                }
                Frame::Map(Some(key)) => {
                    if !field.is_empty() {
                        field.push('.');
                    }
                    field.push_str(key);
                }
                Frame::Map(None) => {}
            }
        }
        if field.is_empty() {
            field.push_str(ROOT);
        }
        field
    }

    /// Moves on to the next node, after a key of this text, a value or an item.
    fn advance(&mut self, key: &str) {
        match self.frames.last_mut() {
            Some(Frame::List(index)) => *index += 1,
            Some(Frame::Map(next)) => {
                *next = match next {
                    Some(_) => None,
                    None => Some(key.to_owned()),
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    fn refused(text: &str) -> String {
        read(text, 1).unwrap()[0].check().unwrap_err()
    }

    #[test]
    fn what_kubectl_reads_differently_is_refused_by_line_and_field() {
        for (text, expected) in [
            (
                "spec:\n  inputs: [{name: x}, {name: y, shape: [-1]}]\n",
                "line 2: spec.inputs[1].name: kubectl reads y as the boolean true; quote it: \"y\", or write true",
            ),
            (
                "a:\n- b\n- Off",
                "line 3: a[1]: kubectl reads Off as the boolean false; quote it: \"Off\", or write false",
            ),
            (
                "a: 0X1F",
                "line 1: a: kubectl reads 0X1F as the number 31; quote it: \"0X1F\", or write 31",
            ),
            ("a: 1__000", "kubectl reads 1__000 as the number 1000"),
            ("a: 1_000.5", "kubectl reads 1_000.5 as the number 1000.5"),
            ("a: -_1", "kubectl reads -_1 as the number -1"),
            ("a: 1_", "kubectl reads 1_ as the number 1;"),
            ("a: .5_0", "kubectl reads .5_0 as the number 0.5"),
            ("a: 0o1__7", "kubectl reads 0o1__7 as the number 15"),
            ("a: 0B11", "kubectl reads 0B11 as the number 3"),
            (
                "labels: {on: x}",
                "line 1: labels (a key): kubectl reads on as the boolean true; quote it: \"on\"",
            ),
            ("labels: {0777: x}", "kubectl reads 0777 as the number 511"),
            ("labels: {1.10: x}", "kubectl reads 1.10 as the number 1.1"),
        ] {
            let error = refused(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let both = refused("a: y\nb: {c: no}\n");
        assert_eq!(both.lines().count(), 2, "{both}");
    }

    #[test]
    fn what_all_read_alike_is_read() {
        let text = "a: [x, true, False, ~, null, 12, -3, 1.5, 1e3, .5, 0400, 0o17, 0x1F, 0b11, 1_000, 5., 08]\n\
            b: ['y', \"no\", !!str on, 0400m, 1:30, 2001-12-14, yEs, 1Gi, '']\n\
            c:\nd: |\n  y\n8080: z\n<<: {e: f}\n---\n---\ng: 1\n";
        let documents = read(text, 1).unwrap();
        assert_eq!(documents.len(), 2);
        for document in &documents {
            document.check().unwrap();
        }
        assert_eq!(
            documents[0].value,
            serde_json::json!({
                "a": ["x", true, false, null, null, 12, -3, 1.5, 1000.0, 0.5, 256, 15, 31, 3, 1000, 5.0, 8.0],
                "b": ["y", "no", "on", "0400m", "1:30", "2001-12-14", "yEs", "1Gi", ""],
                "c": null, "d": "y\n", "8080": "z", "e": "f",
            })
        );
    }

    #[test]
    fn a_number_where_text_is_wanted_is_to_be_quoted() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "read by serde")]
        struct Thing {
            names: Vec<String>,
        }
        let parse = |text: &str| read(text, 1).unwrap().remove(0).parse::<Thing>();
        assert!(parse("names: [a, '1']").is_ok());
        assert_eq!(
            parse("\nnames:\n- a\n- 1_0\n").unwrap_err(),
            "line 4: names[1]: invalid type: integer `10`, expected a string; kubectl reads 1_0 as the number 10; \
             quote it: \"1_0\""
        );
        assert_eq!(
            parse("names: []\nmore: 1").unwrap_err(),
            "line 2: more: unknown field `more`, expected `names`"
        );
    }

    #[test]
    fn what_is_written_is_read_alike_by_kubectl() {
        let texts = "y N yes On off ~ null 0777 0o17 0O17 0x1F 0X1F 0b1 1_000 1__000 1_ -_1 .5 .5_0 5. 1e3 .inf +.inf \
            .nan 08 1:30 2001-12-14 <<";
        for text in texts.split(' ').chain(["", " ", "a: b", "- a", "#"]) {
            let value = serde_json::json!({"k": text, text: "v"});
            let written = serde_yaml::to_string(&value).unwrap();
            let document = read(&written, 1).unwrap().remove(0);
            assert_eq!(document.check(), Ok(()), "{text:?} is written as {written}");
            assert_eq!(document.value, value, "{text:?} is written as {written}");
        }
    }
}

//! Documents: YAML streams and JSON cut into documents, parsed, and searched for the line of a field.
//!
//! Invariants: documents are numbered as a reader counts them, from 1, empty ones included; lines are those of the whole
//! file. One document that does not parse does not hide the others.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};
use serde_saphyr::{Options, Spanned};

use super::problem::Problem;
use crate::objects::ReadError;

/// Limits for hostile nesting stay as the parser sets them; limits on sheer size must fit a dump of a large cluster.
fn options() -> Options {
    const LARGE: usize = 100_000_000;
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: LARGE,
            max_nodes: LARGE,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
        },
    }
}

/// One document of a file, not yet parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document<'a> {
    source: &'a str,
    text: &'a str,
    /// Position in the file, from 1.
    number: usize,
    /// Lines of the file before `text`.
    lines_before: u64,
}

/// Cuts a file into documents: JSON values one after the other, or else a YAML stream.
pub(crate) fn split<'a>(source: &'a str, text: &'a str) -> Vec<Document<'a>> {
    split_json(source, text).unwrap_or_else(|| split_yaml(source, text))
}

/// `None` if `text` is not a series of JSON objects.
fn split_json<'a>(source: &'a str, text: &'a str) -> Option<Vec<Document<'a>>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut documents = Vec::new();
    let mut start = 0;
    while let Some(value) = stream.next() {
        value.ok()?;
        let end = stream.byte_offset();
        let number = documents.len() + 1;
        documents.push(Document {
            source,
            text: text.get(start..end)?,
            number,
            lines_before: lines(text.get(..start)?),
        });
        start = end;
    }
    Some(documents)
}

/// Every line that starts with `---` begins a document, whatever surrounds it: YAML forbids such lines inside of one.
fn split_yaml<'a>(source: &'a str, text: &'a str) -> Vec<Document<'a>> {
    let mut documents = Vec::new();
    let (mut start, mut offset, mut line, mut first_line) = (0, 0, 0, 0);
    let mut push = |text: &'a str, lines_before| {
        if !documents.is_empty() || !is_prologue(text) {
            documents.push(Document { source, text, number: documents.len() + 1, lines_before });
        }
    };
    for text_line in text.split_inclusive('\n') {
        let marker = text_line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            push(text.get(start..offset).unwrap_or_default(), first_line);
            (start, first_line) = (offset, line);
        }
        offset += text_line.len();
        line += 1;
    }
    push(text.get(start..).unwrap_or_default(), first_line);
    documents
}

/// Comments, blank lines and directives before the first `---` are no document of their own.
fn is_prologue(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim_start();
        line.is_empty() || line.starts_with(['#', '%'])
    })
}

fn lines(text: &str) -> u64 {
    text.bytes().filter(|byte| *byte == b'\n').count() as u64
}

impl<'a> Document<'a> {
    /// The document of a file that must hold a single one, such as a configuration.
    pub(crate) fn single(source: &'a str, text: &'a str) -> Result<Self, Problem> {
        match split(source, text).as_slice() {
            [document] => Ok(*document),
            [] => Err(Self { source, text, number: 1, lines_before: 0 }.problem("is empty".to_owned())),
            [_, second, ..] => Err(second.problem("expected a single document in this file".to_owned())),
        }
    }

    /// The document as a tree; `Null` if it is empty.
    pub(crate) fn parse(&self) -> Result<Value, Problem> {
        serde_saphyr::from_str_with_options(self.text, options()).map_err(|error| {
            let location = error.location();
            let line = location.map(|location| self.lines_before + location.line());
            let mut message = error.to_string();
            if let Some(location) = location {
                let suffix = format!(" at line {}, column {}", location.line(), location.column());
                if let Some(stripped) = message.strip_suffix(&suffix) {
                    message.truncate(stripped.len());
                }
            }
            let message = message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
            Problem { line, ..self.problem(format!("is neither YAML nor JSON: {message}")) }
        })
    }

    /// Reads `value`, which stands at `prefix` in this document, as a `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self, prefix: &[Step], value: Value) -> Result<T, Problem> {
        serde_path_to_error::deserialize(value).map_err(|error| self.misread(prefix, &error))
    }

    /// What is wrong with the value at `prefix` in this document.
    pub(crate) fn misread(&self, prefix: &[Step], error: &ReadError) -> Problem {
        let path: Vec<Step> = prefix.iter().cloned().chain(steps(error.path())).collect();
        self.problem_at(&path, expectation(&error.inner().to_string()))
    }

    /// A problem with the field at `path`.
    pub(crate) fn problem_at(&self, path: &[Step], message: String) -> Problem {
        Problem { line: self.line_of(path), field: field(path), ..self.problem(message) }
    }

    /// A problem with the document as a whole.
    pub(crate) fn problem(&self, message: String) -> Problem {
        Problem {
            source: self.source.to_owned(),
            document: self.number,
            line: Some(self.lines_before + 1),
            subject: None,
            field: String::new(),
            message,
        }
    }

    /// `FILE, document N`.
    pub(crate) fn place(&self) -> String {
        let source = if self.source == "-" { "standard input" } else { self.source };
        format!("{source}, document {}", self.number)
    }

    /// Line of the field at `path`, or of the innermost part of it that exists. Only asked when something is wrong, so
    /// that good input is parsed once.
    fn line_of(&self, path: &[Step]) -> Option<u64> {
        let root: Spanned<Tree> = serde_saphyr::from_str_with_options(self.text, options()).ok()?;
        let mut at = &root;
        for step in path {
            let next = match (&at.value, step) {
                (Tree::Sequence(items), Step::Index(index)) => items.get(*index),
                (Tree::Mapping(entries), Step::Key(key)) => {
                    entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
                }
                _ => None,
            };
            let Some(next) = next else { break };
            at = next;
        }
        Some(self.lines_before + at.referenced.line())
    }
}

/// One step on the way to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a sequence.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

fn steps(path: &Path) -> impl Iterator<Item = Step> {
    path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

fn field(path: &[Step]) -> String {
    path.iter().fold(String::new(), |text, step| match step {
        Step::Index(index) => format!("{text}[{index}]"),
        Step::Key(key) if text.is_empty() => key.clone(),
        Step::Key(key) => format!("{text}.{key}"),
    })
}

/// Says what was expected in the words of the API rather than of Rust.
fn expectation(message: &str) -> String {
    let words = [
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected i32", "expected a whole number"),
        ("expected a sequence", "expected a list"),
        ("expected struct ", "expected a mapping for "),
        ("invalid type: sequence", "invalid type: list"),
        ("invalid type: map", "invalid type: mapping"),
    ];
    let text = words.iter().fold(message.to_owned(), |text, (rust, plain)| text.replace(rust, plain));
    // `version: 1.10` and `enabled: yes` are no text in YAML, however much they look like it.
    let unquoted = ["boolean", "integer", "floating point"].iter().any(|found| text.contains(found));
    if unquoted && text.ends_with("expected a string") { text + ": put it in quotes" } else { text }
}

/// The shape of a document with the line of every part.
enum Tree {
    Leaf,
    Sequence(Vec<Spanned<Self>>),
    Mapping(Vec<(String, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element()? {
            sequence.push(item);
        }
        Ok(Tree::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut mapping = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            mapping.push(entry);
        }
        Ok(Tree::Mapping(mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<(usize, u64, Value)> {
        split("f", text).iter().map(|d| (d.number, d.lines_before, d.parse().unwrap())).collect()
    }

    #[test]
    fn documents_are_counted_as_readers_do_when_some_are_empty() {
        let text = "# comment\n---\na: 1\n---\n---\nb: |\n  text\n  --- not a marker\n";
        let found = numbers(text);
        assert_eq!(
            found.iter().map(|(number, before, _)| (*number, *before)).collect::<Vec<_>>(),
            [(1, 1), (2, 3), (3, 4)]
        );
        assert_eq!(found[1].2, Value::Null);
        assert_eq!(found[2].2["b"], "text\n--- not a marker\n");
    }

    #[test]
    fn json_values_may_follow_each_other_without_separator() {
        let found = numbers("{\"a\":\n\t1}\n{\"a\": 2}\n");
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].1, &found[1].2["a"]), (1, &Value::from(2)));
    }

    #[test]
    fn flow_mapping_that_is_no_json_is_yaml() {
        assert_eq!(numbers("{a: [1, 2]}\n")[0].2["a"][1], 2);
    }

    #[test]
    fn line_of_a_missing_field_is_the_line_of_its_parent() {
        let text = "---\na:\n  b:\n  - c: 1\n  - d: 2\n";
        let document = split("f", text)[0];
        let path = |last: &str| ["a".into(), "b".into(), Step::Index(1), last.into()];
        assert_eq!(document.line_of(&path("d")), Some(5));
        assert_eq!(document.line_of(&path("missing")), Some(5));
        assert_eq!(field(&path("d")), "a.b[1].d");
    }

    #[test]
    fn document_that_does_not_parse_names_its_line() {
        let text = "a: 1\n---\nb: [1\nc: 2\n";
        let problem = split("f", text)[1].parse().unwrap_err();
        assert_eq!((problem.document, problem.line), (2, Some(4)));
    }
}

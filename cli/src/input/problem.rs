//! What is wrong with the input, and where.

use std::fmt;

/// One thing that is wrong: file, document, line, object, field and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Name of the file as given; `-` is standard input.
    pub(crate) source: String,
    /// Position of the document in the file, from 1.
    pub(crate) document: usize,
    /// Line in the file, from 1, if it is known.
    pub(crate) line: Option<u64>,
    /// `Kind namespace/name`, once that much is known.
    pub(crate) subject: Option<String>,
    /// Path of the field, such as `spec.ports[0].port`; empty for the document itself.
    pub(crate) field: String,
    /// What was found and what was expected.
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = if self.source == "-" { "standard input" } else { &self.source };
        write!(f, "{source}, document {}", self.document)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(subject) = &self.subject {
            write!(f, ": {subject}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong, in the order of the input; never empty.
#[derive(Debug)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

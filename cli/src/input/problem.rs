//! What is wrong with the input, and where.

use std::fmt;

/// Problems that are printed; who mistakes a thing once often does so everywhere.
const SHOWN: usize = 50;

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
        for (index, problem) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        let more = self.0.len().saturating_sub(SHOWN);
        if more > 0 { write!(f, "\nand {more} more like these") } else { Ok(()) }
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_problems_is_cut_and_counted() {
        let problem = Problem {
            source: "f".to_owned(),
            document: 1,
            line: None,
            subject: None,
            field: String::new(),
            message: "is bad".to_owned(),
        };
        let text = Problems(vec![problem; SHOWN + 7]).to_string();
        assert_eq!(text.lines().count(), SHOWN + 1);
        assert!(text.ends_with("and 7 more like these"));
    }
}

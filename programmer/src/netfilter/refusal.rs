//! What `iptables-restore` said when it refused a document, reduced to what a reader of the log needs.
//!
//! Invariant: never panics, whatever the program printed.

use std::fmt::{self, Write as _};

/// Lines of the document that are quoted before and after the one that failed, as kube-proxy does.
const CONTEXT_LINES: usize = 3;

/// How many reasons are quoted: one wrong line may make hundreds of others fail.
const REASONS: usize = 3;

/// A document that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the program printed, in one line.
    pub message: String,
    /// Number of the line that failed, counted from 1, if the program named one.
    pub line: Option<usize>,
    /// That line.
    pub culprit: Option<String>,
    /// That line with its neighbours, each with its number; empty if no line was named.
    pub excerpt: String,
}

impl Refusal {
    /// Reads the program's error output for `document`.
    pub fn parse(stderr: &str, document: &str) -> Self {
        let line = stderr.lines().find_map(failed_line);
        let said: Vec<&str> = stderr.lines().map(without_name).filter(|text| !is_noise(text)).collect();
        let mut message = said.iter().take(REASONS).copied().collect::<Vec<_>>().join("; ");
        if said.len() > REASONS {
            let _ = write!(message, "; and {} more", said.len() - REASONS);
        }
        let excerpt = line.map(|number| excerpt(document, number)).unwrap_or_default();
        let culprit = line.and_then(|number| document.lines().nth(number.checked_sub(1)?));
        Self { message, line, culprit: culprit.map(str::to_owned), excerpt }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.message.is_empty() { "no reason given" } else { &self.message })?;
        if !self.excerpt.is_empty() {
            write!(f, "; around the failed line: {}", self.excerpt)?;
        }
        Ok(())
    }
}

/// Without the `iptables-restore v1.8.9 (nf_tables): ` that the programs begin with; whoever logs this names them.
fn without_name(text: &str) -> &str {
    let text = text.trim();
    match text.split_once("):") {
        Some((name, rest)) if name.contains("tables") && name.contains(" v") => rest.trim_start(),
        _ => text,
    }
}

fn is_noise(text: &str) -> bool {
    text.is_empty() || text.starts_with("Try `") || text.starts_with("# Warning:")
}

/// The programs say `line N failed`, `line N: RULE_APPEND failed` or `Error occurred at line: N`.
fn failed_line(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("line ").or_else(|| text.split_once("line: "))?;
    let rest = rest.trim_start_matches(':').trim_start();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|number| *number > 0)
}

fn excerpt(document: &str, number: usize) -> String {
    let first = number.saturating_sub(CONTEXT_LINES).max(1);
    let lines = document.lines().enumerate().skip(first - 1).take(number + CONTEXT_LINES + 1 - first);
    let mut text = String::new();
    for (index, line) in lines {
        let separator = if text.is_empty() { "" } else { " | " };
        let _ = write!(text, "{separator}{}: {line}", index + 1);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str =
        "*nat\n:A - [0:0]\n-A A -j B\n-A A -j C\n-A A -j D\n-A A -j E\n-A A -j F\nCOMMIT\n";

    #[test]
    fn failed_line_is_found_in_every_wording_of_the_programs() {
        for stderr in [
            "iptables-restore: line 4 failed\n",
            "iptables-nft-restore v1.8.9 (nf_tables): \nline 4: RULE_APPEND failed (No such file or directory)\n",
            "iptables-restore v1.8.9 (nf_tables): Chain 'C' does not exist\nError occurred at line: 4\nTry `x'.\n",
        ] {
            assert_eq!(Refusal::parse(stderr, DOCUMENT).line, Some(4), "{stderr}");
        }
    }

    #[test]
    fn excerpt_holds_three_lines_on_either_side_of_the_failed_one() {
        let refusal = Refusal::parse("line 5 failed", DOCUMENT);
        assert_eq!(
            refusal.excerpt,
            "2: :A - [0:0] | 3: -A A -j B | 4: -A A -j C | 5: -A A -j D | 6: -A A -j E | 7: -A A -j F | 8: COMMIT"
        );
    }

    #[test]
    fn excerpt_stays_inside_the_document_when_the_line_is_at_its_edge() {
        assert!(Refusal::parse("line 1 failed", DOCUMENT).excerpt.starts_with("1: *nat | 2: "));
        assert_eq!(Refusal::parse("line 99 failed", DOCUMENT).excerpt, "");
        assert_eq!(Refusal::parse("line 0 failed", DOCUMENT).line, None);
    }

    #[test]
    fn message_is_one_line_without_hints() {
        let refusal = Refusal::parse("Chain 'C' does not exist\nError occurred at line: 4\nTry `x -h'\n", "");
        assert_eq!(refusal.to_string(), "Chain 'C' does not exist; Error occurred at line: 4");
        assert_eq!(Refusal::parse("", "").to_string(), "no reason given");
    }

    #[test]
    fn name_of_the_program_and_repetitions_are_left_out() {
        let failed =
            |number| format!("line {number}: CHAIN_DEL failed (Device or resource busy): chain C{number}\n");
        let stderr = "iptables-nft-restore v1.8.9 (nf_tables): \n".to_owned()
            + &(8..20).map(failed).collect::<String>();
        let refusal = Refusal::parse(&stderr, "");
        assert!(refusal.message.starts_with("line 8: CHAIN_DEL failed"), "{refusal}");
        assert!(refusal.message.ends_with("chain C10; and 9 more"), "{refusal}");
        let legacy = Refusal::parse("iptables-restore v1.8.9 (legacy): Couldn't load target `X'", "");
        assert_eq!(legacy.message, "Couldn't load target `X'");
    }
}

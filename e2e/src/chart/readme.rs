//! The table of values in the chart's README, from the comments of `values.yaml`.
//!
//! A key with a comment above it is a row, a key without one is a group of such keys.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const BEGIN: &str = "<!-- values: begin -->";
const END: &str = "<!-- values: end -->";

/// The README with its table made anew.
pub(super) fn with_values(readme: &str, values: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("no place for the table begins")?;
    let (_, after) = rest.split_once(END).context("no place for the table ends")?;
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(values)?))
}

fn table(values: &str) -> Result<String> {
    let defaults: Value = serde_saphyr::from_str(values)?;
    let mut lines = vec!["| Value | Default | Meaning |".to_owned(), "|---|---|---|".to_owned()];
    for (path, meaning) in rows(values)? {
        let default = path.split('.').try_fold(&defaults, |value, key| value.get(key));
        let default = default.with_context(|| format!("{path} has no default"))?;
        lines.push(format!("| `{path}` | `{default}` | {meaning} |"));
    }
    Ok(lines.join("\n") + "\n")
}

/// Paths and what their comments say.
fn rows(values: &str) -> Result<Vec<(String, String)>> {
    let mut rows = Vec::new();
    // Keys above the current line, with their indentation; and how deep what belongs to a row is.
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut row: Option<usize> = None;
    let mut comment: Option<&str> = None;
    for line in values.lines() {
        let text = line.trim_start();
        let indentation = line.len() - text.len();
        if text.is_empty() || row.is_some_and(|row| indentation > row) {
            continue;
        }
        row = None;
        if let Some(said) = text.strip_prefix("# ") {
            ensure!(comment.replace(said).is_none(), "two comments above one key: {said}");
            continue;
        }
        let (key, _) = text.split_once(':').with_context(|| format!("no key: {line}"))?;
        above.retain(|(depth, _)| *depth < indentation);
        above.push((indentation, key));
        if let Some(meaning) = comment.take() {
            let path: Vec<&str> = above.iter().map(|(_, key)| *key).collect();
            rows.push((path.join("."), meaning.to_owned()));
            row = Some(indentation);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commented_keys_are_rows_and_others_are_groups() {
        let values = "# One.\na: 1\nb:\n  # Two.\n  c: {}\n  d:\n    # Three.\n    e:\n      - f: 2\n        g: 3\n# Four.\nh: \"\"\n";
        let expected = "before <!-- values: begin -->\n\n| Value | Default | Meaning |\n|---|---|---|\n\
            | `a` | `1` | One. |\n| `b.c` | `{}` | Two. |\n| `b.d.e` | `[{\"f\":2,\"g\":3}]` | Three. |\n\
            | `h` | `\"\"` | Four. |\n\n<!-- values: end --> after";
        assert_eq!(
            with_values("before <!-- values: begin -->old<!-- values: end --> after", values).unwrap(),
            expected
        );
    }
}

//! Words of a line, as `iptables-restore` splits them: by blanks, with double quotes and backslashes inside them.

use std::sync::Arc;

/// Splits a line. Fails on a quote that is not closed.
pub(super) fn split(line: &str) -> Result<Vec<Arc<str>>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => {
                word.get_or_insert_default().push(chars.next().ok_or("the line ends in a backslash")?);
            }
            c if c.is_ascii_whitespace() && !quoted => words.extend(word.take().map(Arc::from)),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed");
    }
    words.extend(word.map(Arc::from));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_keep_blanks_quotes_and_backslashes() {
        let words = split(r#"-m comment --comment "a\"b\\c\'d  e" "" -j X"#).unwrap();
        let words: Vec<_> = words.iter().map(|word| &**word).collect();
        assert_eq!(words, ["-m", "comment", "--comment", r#"a"b\c'd  e"#, "", "-j", "X"]);
    }

    #[test]
    fn open_quote_is_refused() {
        assert!(split(r#"--comment "a"#).is_err());
        assert!(split(r#"--comment "a\"#).is_err());
    }
}

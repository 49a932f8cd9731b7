//! The commands of a document, as its readers copy them.
//!
//! Invariant: [`Commands`] gives every block of commands of its section in order, and [`Commands::end`] fails when one
//! was not taken: who carries out a document cannot leave out what was added to it.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

/// A document in Markdown.
#[derive(Debug)]
pub(super) struct Document {
    sections: Vec<Section>,
}

/// What stands below a heading, before the next one of any level.
#[derive(Debug, Default)]
struct Section {
    title: String,
    /// Blocks of code with their language, which is empty for commands.
    blocks: Vec<(String, String)>,
    /// All the rest.
    text: String,
}

impl Document {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut sections = vec![Section::default()];
        // The indentation of the block of code that is open.
        let mut open: Option<usize> = None;
        for line in text.lines() {
            let Some(section) = sections.last_mut() else { break };
            let bare = line.trim_start();
            let indentation = line.len() - bare.len();
            match (bare.strip_prefix("```"), open) {
                (Some(_), Some(_)) => open = None,
                (Some(language), None) => {
                    open = Some(indentation);
                    section.blocks.push((language.trim().to_owned(), String::new()));
                }
                (None, Some(outer)) => {
                    if let Some((_, block)) = section.blocks.last_mut() {
                        block.extend([line.get(outer.min(indentation)..).unwrap_or_default(), "\n"]);
                    }
                }
                (None, None) if line.starts_with('#') => {
                    let title = line.trim_start_matches('#').trim().to_owned();
                    sections.push(Section { title, ..Section::default() });
                }
                (None, None) => section.text.extend([line, "\n"]),
            }
        }
        Self { sections }
    }

    fn section(&self, title: &str) -> Result<&Section> {
        let found = self.sections.iter().find(|section| section.title == title);
        found.with_context(|| format!("the document has no section {title:?}"))
    }

    /// The commands of a section.
    pub(super) fn commands(&self, title: &str) -> Result<Commands<'_>> {
        Ok(Commands { section: self.section(title)?, taken: 0 })
    }

    /// A file that a section shows: its first line is a comment with its name.
    pub(super) fn file(&self, title: &str, name: &str) -> Result<&str> {
        let comment = format!("# {name}\n");
        let blocks = &self.section(title)?.blocks;
        let found = blocks.iter().find(|(_, block)| block.starts_with(&comment));
        found.map(|(_, block)| &**block).with_context(|| format!("section {title:?} does not show {name}"))
    }

    /// What stands between backticks in the text of a section and begins so; line breaks are spaces.
    pub(super) fn quoted(&self, title: &str, begins: &str) -> Result<String> {
        let quotes = self.section(title)?.text.split('`').skip(1).step_by(2);
        let mut quotes = quotes.map(|quote| quote.split_whitespace().collect::<Vec<_>>().join(" "));
        let found = quotes.find(|quote| quote.starts_with(begins));
        found.with_context(|| format!("section {title:?} does not say {begins:?}"))
    }
}

/// The blocks of commands of a section, one after the other.
#[derive(Debug)]
pub(super) struct Commands<'a> {
    section: &'a Section,
    taken: usize,
}

impl<'a> Commands<'a> {
    fn left(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let blocks = self.section.blocks.iter().filter(|(language, _)| language.is_empty());
        blocks.map(|(_, block)| &**block).skip(self.taken)
    }

    /// The next block, which begins with this.
    pub(super) fn next(&mut self, begins: &str) -> Result<&'a str> {
        let title = &self.section.title;
        match self.left().next() {
            Some(block) if block.starts_with(begins) => {
                self.taken += 1;
                Ok(block)
            }
            other => bail!("section {title:?}: {begins:?} was expected next, not {other:?}: adapt the test"),
        }
    }

    /// Passes over the next blocks, which begin so and are for another turn.
    pub(super) fn pass(&mut self, begins: &[&str]) -> Result<()> {
        begins.iter().try_for_each(|begins| self.next(begins).map(drop))
    }

    /// Fails when there are more.
    pub(super) fn end(self) -> Result<()> {
        let left: Vec<_> = self.left().collect();
        ensure!(left.is_empty(), "section {:?}: not carried out: {left:?}", self.section.title);
        Ok(())
    }
}

/// The commands of a block, one by one.
pub(super) fn lines(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    joined.lines().filter(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\n```\nnot this\n```\n\n## One\n\nSay `hello\n  there` and\n\n   ```\n   first a \\\n     \
                        b\n   second\n   ```\n\n```yaml\n# values.yaml\nport: 1\n```\n\n```\nthird\n```\n\n### Two\n\n`x`\n";

    #[test]
    fn commands_of_a_section_come_in_order_without_their_indentation() {
        let document = Document::parse(TEXT);
        let mut commands = document.commands("One").unwrap();
        let first = commands.next("first").unwrap();
        assert_eq!(first, "first a \\\n  b\nsecond\n");
        assert_eq!(lines(first), ["first a    b", "second"]);
        assert_eq!(commands.next("third").unwrap(), "third\n");
        commands.end().unwrap();
    }

    #[test]
    fn commands_that_are_others_or_not_taken_are_errors() {
        let document = Document::parse(TEXT);
        let mut commands = document.commands("One").unwrap();
        let error = commands.next("third").unwrap_err().to_string();
        assert!(error.contains("\"third\" was expected next, not Some(\"first"), "{error}");
        commands.next("first").unwrap();
        let error = commands.end().unwrap_err().to_string();
        assert!(error.contains("not carried out: [\"third\\n\"]"), "{error}");
        assert!(document.commands("Three").is_err());
    }

    #[test]
    fn files_and_quotes_are_found_in_their_section_only() {
        let document = Document::parse(TEXT);
        assert_eq!(document.file("One", "values.yaml").unwrap(), "# values.yaml\nport: 1\n");
        assert_eq!(document.quoted("One", "hello").unwrap(), "hello there");
        assert!(document.file("Two", "values.yaml").is_err() && document.quoted("Two", "hello").is_err());
    }
}

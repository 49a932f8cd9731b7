//! Tables for readers: columns as wide as they need to be, without lines, as `kubectl get` prints them.
//!
//! Invariant: no line ends in blanks, and the width of the terminal does not matter.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};

/// Columns with upper-case headings.
pub(crate) struct Columns(Table);

impl Columns {
    /// A table without rows.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.to_vec());
        Self(table)
    }

    /// Adds a row; empty cells are shown as `-`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.0.add_row(cells.into_iter().map(shown).collect::<Vec<_>>());
    }

    /// Writes the table, each line behind `indent`.
    pub(crate) fn write(mut self, text: &mut String, indent: &str) {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 3));
        }
        for line in self.0.lines() {
            // Writing to a String cannot fail.
            _ = writeln!(text, "{indent}{}", line.trim_end());
        }
    }
}

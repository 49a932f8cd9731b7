//! What the demo prints on: colours where a person reads it, plain text otherwise.

use std::{io::IsTerminal, sync::OnceLock};

const TITLE: &str = "1;36";
const COMMAND: &str = "1";
const BAR: &str = "32";

/// As <https://no-color.org> asks: never with `NO_COLOR` set, whatever its value.
fn is_coloured() -> bool {
    static COLOURED: OnceLock<bool> = OnceLock::new();
    let wanted =
        || std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    *COLOURED.get_or_init(wanted)
}

fn paint(style: &str, text: &str) -> String {
    if is_coloured() { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A heading.
pub(crate) fn title(text: &str) {
    println!("\n{}\n", paint(TITLE, &format!("=== {text}")));
}

/// A command line that the reader could type.
pub(crate) fn command(line: &str) {
    println!("{}", paint(COMMAND, &format!("$ {line}")));
}

/// A share as a bar of up to 40 characters, padded to 24.
pub(crate) fn bar(count: usize, total: usize) -> String {
    paint(BAR, &format!("{:<24}", "#".repeat(count * 40 / total.max(1))))
}

/// Text as a block of its own, indented.
pub(crate) fn block(text: &str) {
    for line in text.trim_end().lines() {
        println!("{}", format!("    {line}").trim_end());
    }
    println!();
}

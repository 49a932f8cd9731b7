//! The examples in README.md and on the pages of docs are what a reader sees who runs them.
//!
//! Every `console` block holds commands after `$ ` and, below each, what a terminal shows: standard error, then standard output.
//! Commands of ours in `sh` blocks have to succeed; what they print is not shown. With `UPDATE_README=1` the test writes the
//! `console` blocks anew instead of comparing them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Pages with examples.
const PAGES: [&str; 3] = ["README.md", "docs/command-line.md", "docs/dataplane.md"];

const OPEN: &str = "```console\n";
const CLOSE: &str = "```\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a terminal shows for `command`, which must be one of ours.
fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("fairlead"), "only fairlead can be run: {command}");
    let output =
        Command::new(env!("CARGO_BIN_EXE_fairlead")).args(words).current_dir(root()).output().unwrap();
    // 1 is the answer "no", which is an answer.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{command}: {output:?}");
    String::from_utf8([output.stderr, output.stdout].concat()).unwrap()
}

#[test]
fn console_blocks_show_what_the_commands_print() {
    for page in PAGES {
        let path = root().join(page);
        let text = fs::read_to_string(&path).unwrap();
        let actual = with_output(&text);
        assert!(actual.contains("$ "), "{page} has no example");
        if env::var_os("UPDATE_README").is_some() {
            fs::write(&path, actual).unwrap();
        } else {
            assert_eq!(actual, text, "{page}");
        }
    }
}

/// A page with what its commands print below each.
fn with_output(text: &str) -> String {
    let mut actual = Vec::new();
    let mut rest = text;
    while let Some((before, block)) = rest.split_once(OPEN) {
        let (block, after) = block.split_once(CLOSE).unwrap();
        actual.extend([before.to_owned(), OPEN.to_owned()]);
        for command in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
            actual.push(format!("$ {command}\n{}", run(command)));
        }
        actual.push(CLOSE.to_owned());
        rest = after;
    }
    actual.push(rest.to_owned());
    actual.concat()
}

#[test]
fn commands_in_sh_blocks_succeed() {
    let pages = PAGES.map(|page| fs::read_to_string(root().join(page)).unwrap()).concat();
    let blocks = pages.split("```sh\n").skip(1).filter_map(|rest| rest.split_once(CLOSE));
    for command in blocks.flat_map(|(block, _)| block.lines()).filter(|line| line.starts_with("fairlead ")) {
        assert!(!run(command).is_empty(), "{command} prints nothing");
    }
}

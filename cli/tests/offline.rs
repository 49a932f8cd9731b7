//! The offline commands as their users run them: what is printed where, and the exit code.
//!
//! Every folder below `cases/` is a case: `command` holds the arguments, on any number of lines; `stdin`, if there is one, is
//! fed to the program; everything else is input. The program runs in the folder. Adding a case is adding a folder, running
//! the test with `INSTA_UPDATE=always` and reading the new snapshot.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output, Stdio},
};

fn fairlead(folder: &Path, args: &[&str]) -> Output {
    let stdin = File::open(folder.join("stdin")).map_or_else(|_| Stdio::null(), Stdio::from);
    Command::new(env!("CARGO_BIN_EXE_fairlead"))
        .args(args)
        .current_dir(folder)
        // Help is wrapped to the width of the terminal, if there is one.
        .env_remove("COLUMNS")
        // No test asks a cluster that this machine may know.
        .env("KUBECONFIG", "no-kubeconfig")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .stdin(stdin)
        .output()
        .unwrap()
}

fn report(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = output.status.code().unwrap();
    format!("exit code {code}\n=== stderr\n{}=== stdout\n{}", text(&output.stderr), text(&output.stdout))
}

#[test]
fn cases() {
    insta::glob!("cases/*/command", |path| {
        let command = fs::read_to_string(path).unwrap();
        let args: Vec<&str> = command.split_whitespace().collect();
        let output = fairlead(path.parent().unwrap(), &args);
        insta::with_settings!({ description => args.join(" "), omit_expression => true }, {
            insta::assert_snapshot!(report(&output));
        });
    });
}

#[test]
fn help() {
    let pages: [&[&str]; 7] = [
        &["--help"],
        &["render", "--help"],
        &["render", "endpoints", "--help"],
        &["render", "rules", "--help"],
        &["explain", "--help"],
        &["explain", "service", "--help"],
        &["trace", "--help"],
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages =
        pages.map(|args| format!("$ fairlead {}\n{}", args.join(" "), report(&fairlead(folder, args))));
    insta::assert_snapshot!(pages.join("\n"));
}

/// What is printed can be read again, and then nothing is left to do: planning is idempotent across the text.
#[test]
fn rendering_the_output_again_changes_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    for case in ["endpoints-raw", "endpoints-named-ports", "endpoints-dual-stack", "endpoints-mirrored"] {
        let folder = folder.join(case);
        let first = fairlead(&folder, &["render", "endpoints", "-f", "input.yaml"]);
        assert!(first.status.success());
        let rendered = std::env::temp_dir().join(format!("fairlead-{}-{case}.yaml", std::process::id()));
        fs::write(&rendered, &first.stdout).unwrap();
        let args = ["render", "endpoints", "-f", "input.yaml", "-f", rendered.to_str().unwrap()];
        let second = fairlead(&folder, &args);
        fs::remove_file(&rendered).unwrap();
        assert_eq!(String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&first.stdout), "{case}");
    }
}

#[test]
fn the_output_does_not_depend_on_the_order_of_documents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/endpoints-named-ports");
    let text = fs::read_to_string(folder.join("input.yaml")).unwrap();
    let mut documents: Vec<&str> = text.split("\n---\n").collect();
    documents.reverse();
    let reversed = std::env::temp_dir().join(format!("fairlead-{}-reversed.yaml", std::process::id()));
    fs::write(&reversed, documents.join("\n---\n")).unwrap();
    let first = fairlead(&folder, &["render", "endpoints", "-f", "input.yaml"]);
    let second = fairlead(&folder, &["render", "endpoints", "-f", reversed.to_str().unwrap()]);
    fs::remove_file(&reversed).unwrap();
    assert_eq!(String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&first.stdout));
}

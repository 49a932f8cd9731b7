//! Sources: files, directories and standard input, read whole.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Text and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The path as given; `-` is standard input.
    pub(crate) name: String,
    /// The whole text.
    pub(crate) text: String,
}

/// A source that could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The file system said no.
    #[error("{}: cannot be read", name(path))]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// The bytes are not text.
    #[error("{}: is not UTF-8 text; expected YAML or JSON", name(path))]
    NotText { path: PathBuf },
    /// A directory without anything to read.
    #[error("{}: this directory has no .yaml, .yml or .json file", name(path))]
    EmptyDirectory { path: PathBuf },
    /// Standard input can be read only once.
    #[error("'-' is given more than once: standard input can be read only once")]
    StdinTwice,
}

/// Reads all of `paths`: files as they are, `-` as standard input, directories as their YAML and JSON files in order of
/// name, without subdirectories (as `kubectl -f` does).
pub(crate) fn read_all(paths: &[PathBuf]) -> Result<Vec<Source>, ReadError> {
    if paths.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(ReadError::StdinTwice);
    }
    let mut sources = Vec::new();
    for path in paths {
        if path.is_dir() {
            for file in files_of(path)? {
                sources.push(Source::read(&file)?);
            }
        } else {
            sources.push(Source::read(path)?);
        }
    }
    Ok(sources)
}

impl Source {
    /// Reads one file, or standard input if `path` is `-`.
    pub(crate) fn read(path: &Path) -> Result<Self, ReadError> {
        let io_error = |error| ReadError::Io { path: path.to_owned(), error };
        let bytes = if is_stdin(path) {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map_err(io_error)?;
            bytes
        } else {
            fs::read(path).map_err(io_error)?
        };
        let text = String::from_utf8(bytes).map_err(|_| ReadError::NotText { path: path.to_owned() })?;
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        Ok(Self { name: path.display().to_string(), text })
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let io_error = |error| ReadError::Io { path: directory.to_owned(), error };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if known && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(ReadError::EmptyDirectory { path: directory.to_owned() });
    }
    Ok(files)
}

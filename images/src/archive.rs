//! An image as an archive in the format of `docker save`, which `docker load` and `ctr images import` read.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::Layer;

/// When everything in an image was made.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// Digest of the image's configuration, by which container runtimes know an image.
    pub image: String,
    /// Size of the archive.
    pub bytes: u64,
}

/// Writes an image of one layer under this name. `config` is what containers of it are to run.
pub fn write(path: &Path, reference: &str, layer: &Layer, config: &Value) -> Result<Archived> {
    let mut content = Vec::new();
    layer.tar(&mut content)?;
    let digest = hex(&content);
    let configuration = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": EPOCH,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created": EPOCH, "created_by": "image"}],
    });
    let configuration = serde_json::to_vec(&configuration)?;
    let image = hex(&configuration);
    let (configuration_file, layer_file) = (format!("{image}.json"), format!("{digest}/layer.tar"));
    let manifest = json!([{"Config": configuration_file, "RepoTags": [reference], "Layers": [layer_file]}]);
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    let mut archive = Builder::new(BufWriter::new(file));
    add(&mut archive, &configuration_file, &configuration)?;
    add(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?)?;
    add(&mut archive, &layer_file, &content)?;
    let mut out = archive.into_inner()?;
    out.flush()?;
    let bytes = out.get_ref().metadata()?.len();
    Ok(Archived { image: format!("sha256:{image}"), bytes })
}

fn add(archive: &mut Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

fn hex(content: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(content))
}

/// As container runtimes call the machine that this was compiled for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

//! Images: built twice they are the same, and programs find in them what they need.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{suite, tools};
use fairlead_images::{Image, Packages, Recipe, write};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Where `make image` keeps packages, too.
fn packages() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME")?.join("fairlead/packages"))
}

fn prepare(image: Image, programs: &Path) -> Result<Recipe> {
    let packages = Packages::find(&packages()?, &Recipe::packages(&[image]))?;
    Recipe::prepare(image, programs, &packages, "0.0.0")
}

#[test]
fn the_same_inputs_make_the_same_archive() -> Result<()> {
    let folder = Folder::new("archives")?;
    // Any file will do.
    fs::write(folder.0.join("fairlead-programmer"), "program")?;
    let mut made = Vec::new();
    for name in ["one.tar", "two.tar"] {
        let recipe = prepare(Image::Programmer, &folder.0)?;
        let path = folder.0.join(name);
        let archived = write(&path, "fairlead/programmer:0.0.0", &recipe.layer, &recipe.config)?;
        made.push((archived, fs::read(path)?));
    }
    ensure!(made[0].0 == made[1].0, "{:?} and {:?}", made[0].0, made[1].0);
    ensure!(made[0].1 == made[1].1, "the archives differ");
    let labels = prepare(Image::Programmer, &folder.0)?.config["Labels"]["dev.fairlead.packages"].to_string();
    ensure!(labels.contains("iptables=") && labels.contains("libc6="), "{labels}");
    Ok(())
}

/// Runs a program of an image, with nothing else to be found, in a network namespace of its own.
fn run(root: &Path, user: &str, command: &str) -> Result<String> {
    let words = command.split(' ');
    let user = format!("--userspec={user}:{user}");
    let output = Command::new("unshare")
        .args(["--net", "chroot", &user])
        .arg(root)
        .args(words)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{command}: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

#[test]
fn programs_find_in_their_image_what_they_need() -> Result<()> {
    // Only root may change roots.
    if suite::refuse().is_some() {
        ensure!(std::env::var_os("CI").is_none(), "these tests need root");
        return Ok(());
    }
    let folder = Folder::new("roots")?;
    let programs = tools::own_program("fairlead-programmer")?;
    let programs = programs.parent().context("no folder")?;
    for (image, user, program) in [
        (Image::Controller, "65532", "fairlead-controller"),
        (Image::Programmer, "0", "fairlead-programmer"),
        (Image::Cli, "65532", "fairlead"),
    ] {
        let root = folder.0.join(image.name());
        prepare(image, programs)?.layer.lay_out(&root)?;
        let version = run(&root, user, &format!("/usr/bin/{program} --version"))?;
        ensure!(version.starts_with(program), "{version}");
    }
    let root = folder.0.join(Image::Programmer.name());
    for base in ["iptables", "ip6tables"] {
        for variant in ["nft", "legacy"] {
            run(&root, "0", &format!("{base}-{variant}-save"))?;
            // Extensions are libraries that are found by their names.
            let rule = "-t nat -A POSTROUTING -m statistic --mode random --probability 0.5 -j MASQUERADE";
            run(&root, "0", &format!("{base}-{variant} {rule}"))?;
        }
    }
    Ok(())
}

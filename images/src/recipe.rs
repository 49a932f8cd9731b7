//! What is in which image.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Layer, Node, Packages};

/// Nobody in particular, and not root.
const USER: &str = "65532";
const ACCOUNTS: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUPS: &str = "root:x:0:\nnonroot:x:65532:\n";

/// Libraries that every program of ours is linked with, and the loader.
const RUNTIME: [(&str, Take); 2] = [
    ("libc6", Take::Named(&["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6"])),
    ("libgcc-s1", Take::Libraries),
];
/// The iptables userland, both variants. All extensions: whoever reads the rules of others has to know their words.
const NETFILTER: [(&str, Take); 8] = [
    ("iptables", Take::Iptables),
    ("libip4tc2", Take::Libraries),
    ("libip6tc2", Take::Libraries),
    ("libmnl0", Take::Libraries),
    ("libnetfilter-conntrack3", Take::Libraries),
    ("libnfnetlink0", Take::Libraries),
    ("libnftnl11", Take::Libraries),
    ("libxtables12", Take::Libraries),
];

/// Which files of a package.
#[derive(Clone, Copy, Debug)]
enum Take {
    /// Shared libraries of these names.
    Named(&'static [&'static str]),
    /// All shared libraries.
    Libraries,
    /// Programs named by their variant, and extensions; not the programs for bridges and ARP.
    Iptables,
}

impl Take {
    fn wants(self, path: &Path) -> bool {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let library = path.starts_with("usr/lib") || path.starts_with("usr/lib64");
        match self {
            Self::Named(names) => library && names.contains(&&*name),
            Self::Libraries => library && name.contains(".so"),
            Self::Iptables if path.starts_with("usr/sbin") => {
                name.starts_with("xtables-") && name.ends_with("-multi")
                    || ["iptables-", "ip6tables-"].iter().any(|base| {
                        name.strip_prefix(base)
                            .is_some_and(|rest| rest.starts_with("nft") || rest.starts_with("legacy"))
                    })
            }
            Self::Iptables => {
                let bridges = ["libarpt_", "libebt_"].iter().any(|other| name.starts_with(other));
                path.parent().is_some_and(|folder| folder.ends_with("xtables")) && !bridges
            }
        }
    }
}

/// One of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// fairlead-controller.
    Controller,
    /// fairlead-programmer, with iptables.
    Programmer,
    /// fairlead, the command line.
    Cli,
}

impl Image {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Controller, Self::Programmer, Self::Cli];

    /// The last part of its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Programmer => "programmer",
            Self::Cli => "cli",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Controller => "fairlead-controller",
            Self::Programmer => "fairlead-programmer",
            Self::Cli => "fairlead",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Controller => "Keeps Endpoints and EndpointSlices of Services",
            Self::Programmer => "Makes a node forward Service traffic",
            Self::Cli => "Renders, explains and traces Services",
        }
    }

    fn packages(self) -> impl Iterator<Item = (&'static str, Take)> {
        let more = if self == Self::Programmer { NETFILTER.as_slice() } else { &[] };
        RUNTIME.iter().chain(more).copied()
    }
}

/// An image that is ready to be written.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its files.
    pub layer: Layer,
    /// What containers of it are to run.
    pub config: Value,
}

impl Recipe {
    /// Names of the packages that these images need.
    pub fn packages(images: &[Image]) -> Vec<&'static str> {
        let names: BTreeSet<_> =
            images.iter().flat_map(|image| image.packages()).map(|(name, _)| name).collect();
        names.into_iter().collect()
    }

    /// Puts an image together, with the program of that image in the folder `programs`.
    pub fn prepare(image: Image, programs: &Path, packages: &Packages, version: &str) -> Result<Self> {
        let mut layer = Layer::merged();
        let mut versions = Vec::new();
        for (name, take) in image.packages() {
            packages.unpack(name, &mut layer, |path| take.wants(path))?;
            versions.push(packages.version(name)?);
        }
        layer.text("etc/passwd", ACCOUNTS)?;
        layer.text("etc/group", GROUPS)?;
        // A root that cannot be written to needs places to mount on.
        for folder in ["dev", "etc/fairlead", "proc", "run", "sys", "tmp"] {
            layer.add(folder, Node::Folder)?;
        }
        let program = programs.join(image.program());
        let content = fs::read(&program).with_context(|| {
            format!("reading {}: build it with `cargo build --release --bins`", program.display())
        })?;
        layer.add(format!("usr/bin/{}", image.program()), Node::File { content, executable: true })?;
        // Whoever writes rules is root, with few capabilities; the others are nobody.
        let user = if image == Image::Programmer { "0:0".to_owned() } else { format!("{USER}:{USER}") };
        let config = json!({
            "Entrypoint": [format!("/usr/bin/{}", image.program())],
            "User": user,
            "WorkingDir": "/",
            "Env": ["PATH=/usr/sbin:/usr/bin"],
            "Labels": {
                "org.opencontainers.image.title": format!("fairlead/{}", image.name()),
                "org.opencontainers.image.description": image.description(),
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
                "dev.fairlead.packages": versions.join(" "),
            },
        });
        Ok(Self { layer, config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_both_variants_are_taken_and_those_for_bridges_are_not() {
        let wants = |path: &str| Take::Iptables.wants(Path::new(path));
        for path in [
            "usr/sbin/xtables-nft-multi",
            "usr/sbin/xtables-legacy-multi",
            "usr/sbin/iptables-nft-restore",
            "usr/sbin/ip6tables-legacy-save",
            "usr/lib/x86_64-linux-gnu/xtables/libxt_bpf.so",
        ] {
            assert!(wants(path), "{path}");
        }
        for path in [
            "usr/sbin/ebtables-nft",
            "usr/sbin/iptables-apply",
            "usr/sbin/nfnl_osf",
            "usr/lib/x86_64-linux-gnu/xtables/libebt_ip.so",
            "usr/share/man/man8/iptables.8.gz",
        ] {
            assert!(!wants(path), "{path}");
        }
    }

    #[test]
    fn only_the_programmer_has_iptables() {
        assert!(Recipe::packages(&[Image::Programmer]).contains(&"iptables"));
        assert_eq!(Recipe::packages(&[Image::Controller, Image::Cli]), ["libc6", "libgcc-s1"]);
    }
}

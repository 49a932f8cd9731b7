//! The rules in the kernel of the machine that this runs on, read as the node's programmer reads them.
//!
//! Invariant: reads only; the variant is the one that the programmer would write to.

use std::net::IpAddr;

use anyhow::Context;
use fairlead_objects::Family;
use fairlead_programmer::{
    interfaces,
    netfilter::{Netfilter, Tool, Variant, detect},
};
use ipnet::IpNet;

/// What was read.
pub(super) struct Node {
    /// As `iptables-save -c` prints it.
    pub(super) save: String,
    /// All that the node's interfaces have.
    pub(super) addresses: Vec<IpAddr>,
    /// Of iptables.
    pub(super) variant: Variant,
    /// Whole lines for standard error.
    pub(super) notices: Vec<String>,
}

/// Reads this node.
pub(super) fn read(family: Family) -> anyhow::Result<Node> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tool = detect(family, None).await.context("this node's iptables cannot be used")?;
        let save = tool.save_counted().await.context("this node's rules cannot be read")?;
        let addresses = interfaces::addresses(family).context("this node's addresses cannot be read")?;
        Ok(Node {
            notices: other_variant(family, tool.variant()).await.into_iter().collect(),
            save,
            addresses: addresses.iter().map(IpNet::addr).collect(),
            variant: tool.variant(),
        })
    })
}

/// The kernel applies the rules of both variants, one after the other.
async fn other_variant(family: Family, variant: Variant) -> Option<String> {
    let other = match variant {
        Variant::Nft => Variant::Legacy,
        Variant::Legacy => Variant::Nft,
    };
    // What cannot be found or read here is not in use.
    let save = Tool::find(family, other).await.ok()?.save_all().await.ok()?;
    let rules = save.lines().filter(|line| line.starts_with("-A ")).count();
    (rules > 0).then(|| {
        format!(
            "warning: rules of iptables-{other} are applied, too, and are not looked at: there are {rules}"
        )
    })
}

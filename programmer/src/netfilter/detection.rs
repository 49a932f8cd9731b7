//! Which variant of iptables this node uses, and whether we may use it at all.
//!
//! Two variants of the rules may exist side by side in one kernel, and both are applied. So we must write where kubelet
//! and the network plugin write. The order of the tests is that of the Kubernetes project's iptables-wrapper.

use std::fs;

use fairlead_objects::Family;

use super::{Tool, ToolError, Variant, declares, tool};

/// Chains that kubelet makes, which show the variant it uses.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// Bit number of CAP_NET_ADMIN in a capability set.
const CAP_NET_ADMIN: u32 = 12;

/// Finds the programs of `family`, of the forced variant or else of the one this node uses, which is the same for both
/// families where both variants are installed. Changes nothing.
pub async fn detect(family: Family, forced: Option<Variant>) -> Result<Tool, ToolError> {
    let base = tool::base_name(family);
    let any = [format!("{base}-restore"), format!("{base}-nft-restore"), format!("{base}-legacy-restore")];
    if !any.iter().any(|program| tool::in_path(program).is_some()) {
        let [program, ..] = any;
        return Err(ToolError::Missing { program });
    }
    if !net_admin(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Err(ToolError::Capability { program: format!("{base}-restore") });
    }
    let variant = match forced {
        Some(variant) => variant,
        None => in_use(base).await?,
    };
    Tool::find(family, variant).await
}

/// Whether the effective capabilities in the text of `/proc/self/status` hold CAP_NET_ADMIN. Text without them does:
/// then the programs themselves will say what is missing.
fn net_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_none_or(|set| set >> CAP_NET_ADMIN & 1 == 1)
}

/// What says which variant the rest of the node uses, as far as it had to be asked: for nft the tables `mangle` and then all
/// of them, for legacy all of them. Each holds both families, because kubelet may have written one only, and because the
/// network plugin of a node writes both in the same variant.
#[derive(Clone, Debug, Default)]
struct Evidence {
    nft_mangle: String,
    legacy: String,
    nft: String,
}

impl Evidence {
    /// As the wrapper decides: by chains of kubelet, in nft first; else by who has more rules; else nft.
    fn variant(&self) -> Variant {
        let kubelet = |save: &str| KUBELET_CHAINS.iter().any(|chain| declares(save, chain));
        let rules = |save: &str| save.lines().filter(|line| line.starts_with('-')).count();
        if kubelet(&self.nft_mangle) {
            Variant::Nft
        } else if kubelet(&self.legacy) || rules(&self.legacy) > rules(&self.nft) {
            Variant::Legacy
        } else {
            Variant::Nft
        }
    }
}

/// The variant that the rest of the node uses; a variant that is not installed is not used.
async fn in_use(base: &str) -> Result<Variant, ToolError> {
    let save = |variant: Variant| tool::in_path(&format!("{base}-{}-save", variant.infix()));
    match (save(Variant::Nft), save(Variant::Legacy)) {
        (Some(_), Some(_)) => Ok(evidence().await.variant()),
        (Some(_), None) => Ok(Variant::Nft),
        (None, Some(_)) => Ok(Variant::Legacy),
        (None, None) => {
            let program = format!("{base}-restore");
            let found = tool::in_path(&program).ok_or(ToolError::Missing { program })?;
            tool::plain_variant(&found).await
        }
    }
}

async fn evidence() -> Evidence {
    Evidence {
        nft_mangle: listing(Variant::Nft, &["-t", "mangle"]).await,
        // Without `-t`, legacy prints only tables that exist; naming one would create it.
        legacy: listing(Variant::Legacy, &[]).await,
        nft: listing(Variant::Nft, &[]).await,
    }
}

/// What the saves of both families print; a variant whose kernel half is missing has no rules.
async fn listing(variant: Variant, arguments: &[&str]) -> String {
    let mut text = String::new();
    for family in Family::ALL {
        let program = format!("{}-{}-save", tool::base_name(family), variant.infix());
        if let Some(program) = tool::in_path(&program) {
            text += &tool::run(&program, arguments, "").await.unwrap_or_default();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINT: &str = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const CANARY: &str = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n";

    fn variant(nft_mangle: &str, legacy: &str, nft: &str) -> Variant {
        Evidence { nft_mangle: nft_mangle.to_owned(), legacy: legacy.to_owned(), nft: nft.to_owned() }
            .variant()
    }

    #[test]
    fn chains_of_kubelet_in_nft_decide_first() {
        assert_eq!(variant(HINT, RULES, HINT), Variant::Nft);
        assert_eq!(variant(CANARY, HINT, CANARY), Variant::Nft);
    }

    #[test]
    fn chains_of_kubelet_in_legacy_decide_next() {
        assert_eq!(variant("", HINT, RULES), Variant::Legacy);
        assert_eq!(variant("", CANARY, RULES), Variant::Legacy);
        // Its canary is in three tables; in nft only that of mangle counts.
        let elsewhere = CANARY.replace("*mangle", "*nat");
        assert_eq!(variant("", &elsewhere, RULES), Variant::Legacy);
        assert_eq!(variant("", RULES, &elsewhere), Variant::Legacy);
    }

    #[test]
    fn number_of_rules_decides_then_and_nft_when_they_are_equal() {
        assert_eq!(variant("", RULES, ""), Variant::Legacy);
        assert_eq!(variant("", RULES, RULES), Variant::Nft);
        assert_eq!(variant("", "", RULES), Variant::Nft);
        assert_eq!(variant("", "", ""), Variant::Nft);
    }

    #[test]
    fn missing_capability_is_seen_in_the_process_status() {
        assert!(net_admin("Name:\tx\nCapEff:\t000001fffeffffff\n"));
        assert!(net_admin("CapEff:\t0000000000001000\n"));
        assert!(!net_admin("CapEff:\t0000000000000000\n"));
        assert!(net_admin("no such line"));
    }
}

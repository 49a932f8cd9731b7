//! Which variant of iptables this node uses, and whether we may use it at all.
//!
//! Two variants of the rules may exist side by side in one kernel, and both are applied. So we must write where kubelet
//! and the network plugin write. The order of the tests is that of the Kubernetes project's iptables-wrapper.

use std::{fs, path::PathBuf};

use fairlead_objects::Family;

use super::{Tool, ToolError, Variant, declares, tool};

/// Chains that kubelet makes, which show the variant it uses.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// Bit number of CAP_NET_ADMIN in a capability set.
const CAP_NET_ADMIN: u32 = 12;

/// Finds the programs of `family`, of the forced variant or else of the one this node uses. Changes nothing.
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

/// The variant that the rest of the node uses, by what `BASE-nft-save` and `BASE-legacy-save` print.
async fn in_use(base: &str) -> Result<Variant, ToolError> {
    let save = |variant: Variant| tool::in_path(&format!("{base}-{}-save", variant.infix()));
    match (save(Variant::Nft), save(Variant::Legacy)) {
        (Some(nft), Some(legacy)) => {
            // Without `-t`, legacy prints only tables that exist; naming one would create it.
            Ok(choose(&listing(nft).await, &listing(legacy).await))
        }
        (Some(_), None) => Ok(Variant::Nft),
        (None, Some(_)) => Ok(Variant::Legacy),
        (None, None) => {
            let program = format!("{base}-restore");
            let found = tool::in_path(&program).ok_or(ToolError::Missing { program })?;
            tool::plain_variant(&found).await
        }
    }
}

/// What a save prints; a variant whose kernel half is missing has no rules.
async fn listing(program: PathBuf) -> String {
    tool::run(&program, &[], "").await.unwrap_or_default()
}

fn choose(nft: &str, legacy: &str) -> Variant {
    let kubelet = |save: &str| KUBELET_CHAINS.iter().any(|chain| declares(save, chain));
    let rules = |save: &str| save.lines().filter(|line| line.starts_with('-')).count();
    if kubelet(nft) {
        Variant::Nft
    } else if kubelet(legacy) || rules(legacy) > rules(nft) {
        Variant::Legacy
    } else {
        Variant::Nft
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINT: &str = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n";

    #[test]
    fn variant_follows_kubelet_then_the_number_of_rules_then_is_nft() {
        assert_eq!(choose(HINT, RULES), Variant::Nft);
        assert_eq!(choose(RULES, HINT), Variant::Legacy);
        assert_eq!(choose(HINT, HINT), Variant::Nft);
        assert_eq!(choose("", RULES), Variant::Legacy);
        assert_eq!(choose(RULES, RULES), Variant::Nft);
        assert_eq!(choose("", ""), Variant::Nft);
    }

    #[test]
    fn missing_capability_is_seen_in_the_process_status() {
        assert!(net_admin("Name:\tx\nCapEff:\t000001fffeffffff\n"));
        assert!(net_admin("CapEff:\t0000000000001000\n"));
        assert!(!net_admin("CapEff:\t0000000000000000\n"));
        assert!(net_admin("no such line"));
    }
}

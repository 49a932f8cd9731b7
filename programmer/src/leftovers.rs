//! What other modes of kube-proxy left behind on this node, and would go on forwarding to endpoints of the past.
//!
//! Mode nftables has a table of its own in each family; mode ipvs has virtual servers, a network interface that carries all
//! addresses of Services, sets of addresses, and chains that refer to them.
//!
//! Invariant: only what kube-proxy names so is removed. (Virtual servers have no names; they are removed, all of them as
//! kube-proxy does, only where kube-proxy's interface shows that it made them.)

use fairlead_daemon::failure;
use fairlead_objects::Family;
use tracing::{info, warn};

use crate::{cleanup, netfilter::Netfilter};

pub mod ipvs;
pub mod nftables;

/// Removes what mode nftables wrote. False if that failed.
pub fn remove_nftables(family: Family) -> bool {
    match nftables::remove_table(family) {
        Ok(true) => info!(%family, "removed table kube-proxy of nftables, left by kube-proxy in that mode"),
        Ok(false) => {}
        Err(error) => {
            warn!(%family, %error, "cannot remove table kube-proxy of nftables: remove it with `nft delete table`");
            return false;
        }
    }
    true
}

/// Removes everything of mode ipvs, beside our rules. How many problems there were.
pub async fn remove_ipvs<N: Netfilter>(families: &[(Family, N)]) -> usize {
    // First what answers packets, last what rules refer to.
    let mut problems = remove_ipvs_servers();
    for (family, netfilter) in families {
        problems += remove_ipvs_chains(*family, netfilter).await;
    }
    problems + remove_ipvs_sets()
}

/// Removes the virtual servers and the interface of mode ipvs. How many problems there were.
pub fn remove_ipvs_servers() -> usize {
    match ipvs::remove_servers_and(ipvs::DEVICE) {
        Ok(true) => {
            info!("removed virtual servers and interface kube-ipvs0, left by kube-proxy in mode ipvs");
            0
        }
        Ok(false) => 0,
        Err(error) => {
            warn!("cannot remove what mode ipvs left: {}", failure::chain(&error));
            1
        }
    }
}

/// Removes the chains of one family that only mode ipvs has. How many problems there were.
async fn remove_ipvs_chains(family: Family, netfilter: &impl Netfilter) -> usize {
    let problems = cleanup::clean_ipvs(netfilter).await;
    for problem in &problems {
        warn!(%family, "cannot remove what mode ipvs left: {}", failure::chain(problem));
    }
    problems.len()
}

/// Removes the sets of mode ipvs, which no rule may refer to any more. How many problems there were.
pub fn remove_ipvs_sets() -> usize {
    match ipvs::destroy_sets() {
        Ok(0) => 0,
        Ok(sets) => {
            info!(sets, "removed sets of addresses, left by kube-proxy in mode ipvs");
            0
        }
        Err(error) => {
            warn!("cannot remove what mode ipvs left: {}", failure::chain(&error));
            1
        }
    }
}

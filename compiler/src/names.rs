//! Names of chains.
//!
//! Invariants: at most 28 characters; the names of a Service's chains are those that kube-proxy would give them; no dispatch
//! chain can be called like a chain of a Service, because each holds a character that no base32 text has, and none a hash
//! before a slash.

use std::net::SocketAddr;

use data_encoding::BASE32;
use sha2::{Digest, Sha256};

use crate::{
    ruleset::{ChainName, Table},
    service_port::ServicePortName,
};

/// Longest name that iptables accepts.
pub(crate) const MAX_LENGTH: usize = 28;
/// Characters of a hash in a name.
const HASH_LENGTH: usize = 16;

/// Prefixes of dispatch chains in filter. In nat they are called like chains of Services, so that kube-proxy sweeps them when
/// it takes a node over.
pub(crate) const FILTER_SERVICES: &str = "FL-SVC-";
pub(crate) const FILTER_EXTERNAL: &str = "FL-EXT-";
pub(crate) const FILTER_FIREWALL: &str = "FL-FWL-";
pub(crate) const FILTER_HEALTH: &str = "FL-HCP-";
pub(crate) const NAT_DISPATCH: &str = "KUBE-SVC-";
pub(crate) const NAT_EXTERNAL: &str = "KUBE-EXT-";

const NAT_PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];
const FILTER_PREFIXES: [&str; 4] = [FILTER_SERVICES, FILTER_EXTERNAL, FILTER_FIREWALL, FILTER_HEALTH];

/// Prefixes of the chains that come and go with Services. Everything so named is ours: kube-proxy's or Fairlead's.
pub fn service_chain_prefixes(table: &Table) -> &'static [&'static str] {
    match table {
        Table::Nat => &NAT_PREFIXES,
        Table::Filter => &FILTER_PREFIXES,
        Table::Mangle | Table::Other(_) => &[],
    }
}

/// Whether a chain is one that comes and goes with Services.
pub fn is_service_chain(table: &Table, name: &ChainName) -> bool {
    service_chain_prefixes(table).iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// The names of the chains of one Service port.
#[derive(Clone, Debug)]
pub(crate) struct ServiceChains {
    hash: String,
    seed: String,
}

impl ServiceChains {
    pub(crate) fn of(name: &ServicePortName) -> Self {
        let seed = format!("{name}{}", name.port.protocol.lower());
        Self { hash: hash(&seed), seed }
    }

    /// All eligible endpoints of the cluster.
    pub(crate) fn cluster(&self) -> ChainName {
        self.named("KUBE-SVC-")
    }

    /// Eligible endpoints on the node.
    pub(crate) fn local(&self) -> ChainName {
        self.named("KUBE-SVL-")
    }

    /// A group of the endpoints of [`Self::cluster`], or of [`Self::local`].
    pub(crate) fn group(&self, local: bool, number: u8) -> ChainName {
        let whole = if local { self.local() } else { self.cluster() };
        ChainName::new(format!("{}/{number:02x}", whole.as_str()))
    }

    /// Where external traffic arrives.
    pub(crate) fn external(&self) -> ChainName {
        self.named("KUBE-EXT-")
    }

    /// Source ranges of the load balancer.
    pub(crate) fn firewall(&self) -> ChainName {
        self.named("KUBE-FW-")
    }

    /// One endpoint.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> ChainName {
        ChainName::new(format!("KUBE-SEP-{}", hash(&format!("{}{address}", self.seed))))
    }

    fn named(&self, prefix: &str) -> ChainName {
        ChainName::new(format!("{prefix}{}", self.hash))
    }
}

/// The name of a dispatch chain: `text` itself where it fits, else its hash behind a digit that base32 does not have.
pub(crate) fn dispatch_chain(prefix: &str, text: &str) -> ChainName {
    let name = if prefix.len() + text.len() <= MAX_LENGTH {
        format!("{prefix}{text}")
    } else {
        format!("{prefix}0{}", hash(text))
    };
    ChainName::new(name)
}

fn hash(text: &str) -> String {
    let mut encoded = BASE32.encode(&Sha256::digest(text.as_bytes()));
    encoded.truncate(HASH_LENGTH);
    encoded
}

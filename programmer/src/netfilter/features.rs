//! What this kernel and these programs can do, found out by trying.
//!
//! A version number does not tell whether a kernel was built with a match, so each feature is tried in a scratch chain
//! that no rule jumps to and that is removed again.
//!
//! Invariant: afterwards the tables hold what they held before, whether the feature is there or not.

use tracing::debug;

use super::{Netfilter, ToolError, Variant};

/// Our scratch chain. It contains a `0`, which no name made from a hash does, so it cannot be a Service's chain; its
/// prefix lets kube-proxy sweep it if we are killed between the two steps.
const SCRATCH: &str = "KUBE-SVC-0PROBE";

/// Features that rules use if they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The match `bpf` (kernel module xt_bpf): one hairpin rule for all endpoints.
    pub bpf: bool,
    /// `MASQUERADE --random-fully`: fewer collisions of source ports.
    pub random_fully: bool,
}

impl Features {
    /// Tries each feature.
    pub async fn probe(netfilter: &impl Netfilter) -> Self {
        Self {
            bpf: works(netfilter, "-m bpf --bytecode \"1,6 0 0 1\" -j RETURN").await,
            random_fully: works(netfilter, "-j MASQUERADE --random-fully").await,
        }
    }
}

async fn works(netfilter: &impl Netfilter, rule: &str) -> bool {
    let result = match netfilter.variant() {
        Variant::Nft => in_one_transaction(netfilter, rule).await,
        Variant::Legacy => in_two_steps(netfilter, rule).await,
    };
    if let Err(error) = &result {
        debug!(rule, %error, "packet filter lacks a feature");
    }
    result.is_ok()
}

/// nf_tables checks every rule of a transaction, also one that the same transaction removes.
async fn in_one_transaction(netfilter: &impl Netfilter, rule: &str) -> Result<(), ToolError> {
    let steps = format!(":{SCRATCH} - [0:0]\n-A {SCRATCH} {rule}\n-F {SCRATCH}\n-X {SCRATCH}");
    netfilter.restore(&format!("*nat\n{steps}\nCOMMIT\n")).await
}

/// With x_tables the program edits its own copy of the table; the kernel sees only the outcome.
async fn in_two_steps(netfilter: &impl Netfilter, rule: &str) -> Result<(), ToolError> {
    netfilter.restore(&format!("*nat\n:{SCRATCH} - [0:0]\n-A {SCRATCH} {rule}\nCOMMIT\n")).await?;
    netfilter.restore(&format!("*nat\n:{SCRATCH} - [0:0]\n-X {SCRATCH}\nCOMMIT\n")).await
}

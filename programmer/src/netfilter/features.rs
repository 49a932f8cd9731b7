//! What this kernel and these programs can do, found out by trying.
//!
//! A version number does not tell whether a kernel was built with a match, so each feature is tried in a scratch chain
//! that no rule jumps to and that is removed again: all of them together first, and one by one if that is refused.
//!
//! Invariants: afterwards the tables hold what they held before, whatever is there; a feature counts as missing only if
//! the kernel or the program refused it, not because another program kept us waiting.

use std::fmt;

use fairlead_compiler::{Config, counters as names};
use tracing::{debug, warn};

use super::{Netfilter, ToolError, Variant, counters};

/// Our scratch chains. They contain a `0`, which no name made from a hash does, so they cannot be a Service's chains; their
/// prefixes let kube-proxy (in nat) and us sweep them if we are killed between the two steps.
const SCRATCH_NAT: &str = "KUBE-SVC-0PROBE";
const SCRATCH_FILTER: &str = "FL-SVC-0PROBE";
/// How often a probe is repeated that got no answer; each waits for the lock of the tables.
const ATTEMPTS: usize = 5;

/// Something that rules use if it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Feature {
    /// The match `bpf`, and in front of it `conntrack`: one hairpin rule for all endpoints.
    Bpf,
    /// The match `recent`: session affinity.
    Recent,
    /// The match `statistic`: endpoints are chosen at random.
    Statistic,
    /// The match `nfacct`, and its counters.
    Nfacct,
    /// `MASQUERADE --random-fully`: fewer collisions of source ports.
    RandomFully,
    /// The match `comment`.
    Comment,
    /// The match `conntrack`.
    Conntrack,
    /// The match `mark` and the target `MARK`.
    Mark,
    /// The match `addrtype`.
    AddressType,
    /// The target `REJECT`.
    Reject,
    /// The target `MASQUERADE`.
    Masquerade,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Bpf,
        Self::Recent,
        Self::Statistic,
        Self::Nfacct,
        Self::RandomFully,
        Self::Comment,
        Self::Conntrack,
        Self::Mark,
        Self::AddressType,
        Self::Reject,
        Self::Masquerade,
    ];

    /// Its name in logs and metrics: that of the kernel's match or target.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Recent => "recent",
            Self::Statistic => "statistic",
            Self::Nfacct => "nfacct",
            Self::RandomFully => "random-fully",
            Self::Comment => "comment",
            Self::Conntrack => "conntrack",
            Self::Mark => "mark",
            Self::AddressType => "addrtype",
            Self::Reject => "reject",
            Self::Masquerade => "masquerade",
        }
    }

    /// What happens without it, for people.
    pub fn substitute(self) -> &'static str {
        match self {
            Self::Bpf => "every endpoint gets a chain of its own, as with kube-proxy",
            Self::Recent => "sessionAffinity has no effect",
            Self::Statistic => {
                "the client's source port chooses the endpoint, so one client may meet few of them"
            }
            Self::Nfacct => "invalid packets and those to node ports on localhost are not counted",
            Self::RandomFully => "source ports of masqueraded connections are not randomized",
            Self::Comment => "rules have no comments",
            Self::Conntrack => {
                "replies are accepted only where the policy of FORWARD is, and node ports are not open on 127.0.0.1"
            }
            Self::Mark => {
                "everything that goes to a Service is masqueraded, and KUBE-MARK-MASQ has no effect"
            }
            Self::AddressType => "the node's addresses are listed one by one",
            Self::Reject => "packets to Services without endpoints are dropped, not rejected",
            Self::Masquerade => "nothing is masqueraded: clients outside reach endpoints on this node only",
        }
    }

    /// Table, scratch chain, and a rule with it.
    fn trial(self) -> (&'static str, &'static str, String) {
        let rule = match self {
            Self::Bpf => "-m conntrack --ctstate DNAT -m bpf --bytecode \"1,6 0 0 1\" -j RETURN",
            Self::Recent => "-m recent --rcheck --seconds 1 --reap --name KUBE-SVC-0PROBE -j RETURN",
            Self::Statistic => "-m statistic --mode random --probability 0.5 -j RETURN",
            Self::Nfacct => &format!("-m nfacct --nfacct-name {} -j RETURN", names::INVALID),
            Self::RandomFully => "-j MASQUERADE --random-fully",
            Self::Comment => "-m comment --comment probe -j RETURN",
            Self::Conntrack => "-m conntrack --ctstate NEW -j RETURN",
            Self::Mark => "-m mark --mark 0x1/0x1 -j MARK --xor-mark 0x1",
            Self::AddressType => "-m addrtype --dst-type LOCAL -j RETURN",
            Self::Reject => return ("filter", SCRATCH_FILTER, "-j REJECT".to_owned()),
            Self::Masquerade => "-j MASQUERADE",
        };
        ("nat", SCRATCH_NAT, rule.to_owned())
    }

    fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u16);

impl Features {
    /// Everything.
    pub const ALL: Self = Self((1 << Feature::ALL.len()) - 1);

    /// All but one.
    #[must_use]
    pub fn without(self, feature: Feature) -> Self {
        Self(self.0 & !feature.bit())
    }

    /// Whether it is there.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// What is not.
    pub fn missing(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| !self.has(*feature))
    }

    /// Tries each feature.
    pub async fn probe(netfilter: &impl Netfilter) -> Self {
        let mut all = Self::ALL;
        if let Err(error) = counters::ensure() {
            debug!(%error, "kernel has no nfacct counters");
            all = all.without(Feature::Nfacct);
        }
        let wanted: Vec<_> = Feature::ALL.into_iter().filter(|feature| all.has(*feature)).collect();
        if works(netfilter, &wanted).await {
            return all;
        }
        let mut found = all;
        for feature in wanted {
            if !works(netfilter, &[feature]).await {
                found = found.without(feature);
            }
        }
        found
    }

    /// The settings, with what there is in this kernel.
    pub fn limit(self, config: Config) -> Config {
        Config {
            bpf: self.has(Feature::Bpf),
            recent: self.has(Feature::Recent),
            statistic: self.has(Feature::Statistic),
            nfacct: self.has(Feature::Nfacct),
            random_fully: self.has(Feature::RandomFully),
            comments: self.has(Feature::Comment),
            conn_state: self.has(Feature::Conntrack),
            marks: self.has(Feature::Mark),
            address_types: self.has(Feature::AddressType),
            reject: self.has(Feature::Reject),
            masquerade: self.has(Feature::Masquerade),
            ..config
        }
    }
}

/// The names of those that are there, and with a `!` of those that are not.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, feature) in Feature::ALL.into_iter().enumerate() {
            let (space, absent) =
                (if index > 0 { " " } else { "" }, if self.has(feature) { "" } else { "!" });
            write!(f, "{space}{absent}{}", feature.as_str())?;
        }
        Ok(())
    }
}

/// Whether rules with all of these are accepted. Without an answer they are taken to be there, as most are in most kernels.
async fn works(netfilter: &impl Netfilter, features: &[Feature]) -> bool {
    for _ in 0..ATTEMPTS {
        let result = match netfilter.variant() {
            Variant::Nft => netfilter.restore(&document(features, &[Step::Make, Step::Remove])).await,
            Variant::Legacy => in_two_steps(netfilter, features).await,
        };
        match result {
            Ok(()) => return true,
            Err(error @ ToolError::Refused { .. }) => {
                debug!(?features, %error, "packet filter lacks a feature");
                return false;
            }
            Err(error) => warn!(%error, "cannot try what the packet filter can do; trying again"),
        }
    }
    true
}

/// With x_tables the program edits its own copy of the table; the kernel sees only the outcome. (nf_tables checks every rule
/// of a transaction, also one that the same transaction removes.)
async fn in_two_steps(netfilter: &impl Netfilter, features: &[Feature]) -> Result<(), ToolError> {
    netfilter.restore(&document(features, &[Step::Make])).await?;
    netfilter.restore(&document(features, &[Step::Remove])).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Make,
    Remove,
}

/// Makes scratch chains with rules, or removes them, or both.
fn document(features: &[Feature], steps: &[Step]) -> String {
    let mut lines = Vec::new();
    for (table, chain) in [("filter", SCRATCH_FILTER), ("nat", SCRATCH_NAT)] {
        let trials = features.iter().map(|feature| feature.trial()).filter(|(of, ..)| *of == table);
        let rules: Vec<_> = trials.map(|(.., rule)| format!("-A {chain} {rule}")).collect();
        if rules.is_empty() {
            continue;
        }
        lines.extend([format!("*{table}"), format!(":{chain} - [0:0]")]);
        if steps.contains(&Step::Make) {
            lines.extend(rules);
        }
        if steps.contains(&Step::Remove) {
            lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
        }
        lines.push("COMMIT".to_owned());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::model::Model;

    #[test]
    fn features_are_a_set_with_names() {
        let some = Features::ALL.without(Feature::Recent).without(Feature::Masquerade);
        assert!(some.has(Feature::Bpf) && !some.has(Feature::Recent) && !some.has(Feature::Masquerade));
        assert_eq!(some.missing().collect::<Vec<_>>(), [Feature::Recent, Feature::Masquerade]);
        assert_eq!(
            some.to_string(),
            "bpf !recent statistic nfacct random-fully comment conntrack mark addrtype reject !masquerade"
        );
        let config = some.limit(Config::default());
        assert_eq!((config.recent, config.masquerade, config.statistic), (false, false, true));
    }

    #[tokio::test]
    async fn refused_feature_is_missing_and_no_other() {
        for variant_text in ["-m recent", "-m statistic", "-j REJECT", "-m comment"] {
            let model = Model::default();
            model.refuse_text(variant_text, false);
            let found: Vec<_> =
                Feature::ALL.into_iter().filter(|feature| feature.trial().2.contains(variant_text)).collect();
            let mut works_alone = Vec::new();
            for feature in Feature::ALL {
                if !works(&model, &[feature]).await {
                    works_alone.push(feature);
                }
            }
            assert_eq!(works_alone, found);
            assert!(!works(&model, &Feature::ALL).await);
            assert!(!model.save("nat").await.unwrap().contains("PROBE"));
        }
    }
}

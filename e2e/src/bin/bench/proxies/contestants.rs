//! Who is compared: programs, and how each is run.

use fairlead_e2e::programs::{Make, Variant};

/// A program, and how it is run.
#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) make: Make,
    pub(crate) variant: Variant,
    pub(crate) mode: Mode,
    /// Changes that are timed.
    pub(crate) changes: usize,
    /// With more Services it takes many minutes.
    pub(crate) most_services: usize,
}

/// What is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it is by default.
    Default,
    /// The shortest minSyncPeriod that kube-proxy takes, 1 ms, in place of 1 s.
    Shortest,
    /// kube-proxy's mode nftables.
    Nftables,
    /// The same with the shortest minSyncPeriod; there is no flag for that.
    NftablesShortest,
}

impl Contestant {
    /// Whether its name contains one of the words, if there are any.
    pub(crate) fn is_named(&self, words: &[String]) -> bool {
        words.is_empty() || words.iter().any(|word| self.name.contains(word.as_str()))
    }

    const fn genuine(name: &'static str, variant: Variant, mode: Mode, most_services: usize) -> Self {
        Self { name, make: Make::Genuine, variant, mode, changes: 20, most_services }
    }

    const fn ours(name: &'static str, variant: Variant) -> Self {
        let (make, mode) = (Make::Ours, Mode::Default);
        Self { name, make, variant, mode, changes: 100, most_services: usize::MAX }
    }
}

pub(crate) const CONTESTANTS: [Contestant; 8] = [
    Contestant::genuine("kube-proxy, iptables-nft", Variant::Nft, Mode::Default, 10_000),
    Contestant::genuine("kube-proxy, iptables-nft, shortest period", Variant::Nft, Mode::Shortest, 10_000),
    Contestant::genuine("kube-proxy, iptables-legacy", Variant::Legacy, Mode::Default, usize::MAX),
    Contestant::genuine(
        "kube-proxy, iptables-legacy, shortest period",
        Variant::Legacy,
        Mode::Shortest,
        usize::MAX,
    ),
    Contestant::genuine("kube-proxy, nftables", Variant::Nft, Mode::Nftables, usize::MAX),
    Contestant::genuine(
        "kube-proxy, nftables, shortest period",
        Variant::Nft,
        Mode::NftablesShortest,
        usize::MAX,
    ),
    Contestant::ours("fairlead-programmer, iptables-nft", Variant::Nft),
    Contestant::ours("fairlead-programmer, iptables-legacy", Variant::Legacy),
];

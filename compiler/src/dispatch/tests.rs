//! The tree under random insertions and removals, against one that is built afresh.

use std::{collections::BTreeMap, net::Ipv4Addr};

use fairlead_objects::{Family, Protocol, ServiceKey};
use proptest::prelude::*;

use super::{Entry as Filed, EntryId, LEAF_MAX, Marking, Masquerade, Path, Space, Tree};
use crate::{
    endpoint::PortKey,
    names,
    rule::{Rule, Target},
    rules::Rules,
    ruleset::{ChainName, wellknown},
    service_port::ServicePortName,
};

type Chains = BTreeMap<ChainName, Vec<Rule>>;

/// An entry: where, whose, how many rules.
#[derive(Clone, Debug)]
struct Entry {
    address: u32,
    port: u16,
    owner: u8,
    rules: usize,
    marks: bool,
}

/// What leads to nothing of the tree's own.
fn is_mark(rule: &Rule) -> bool {
    rule.next_chain().is_some_and(|chain| chain.as_str() == wellknown::MARK_MASQ)
}

fn is_clear(rule: &Rule) -> bool {
    matches!(rule.target, Some(Target::SetMark(_)))
}

fn tree(space: Space) -> Tree {
    let mut tree = Tree::new(space, names::NAT_DISPATCH);
    tree.set_masquerade(Some(Masquerade { sources: Vec::new(), mark: 0x4000 }));
    tree
}

impl Entry {
    fn id(&self, space: Space) -> EntryId {
        let path = match space {
            Space::Addresses(_) => {
                Path::of_address(Ipv4Addr::from(self.address).into(), Protocol::Tcp, self.port)
            }
            Space::Ports => Path::of_port(Protocol::Udp, self.port),
        };
        let port = PortKey { name: "".into(), protocol: Protocol::Tcp };
        let owner = ServicePortName { service: ServiceKey::new("ns", self.owner.to_string()), port };
        EntryId { path, contestable: false, owner: owner.into(), frontend: 0 }
    }

    fn filed(&self) -> Filed {
        let marking = if self.marks { Marking::Before { commented: true } } else { Marking::Behind };
        Filed { marking, rules: self.rules().into() }
    }

    /// Rules that tell the entry from all others.
    fn rules(&self) -> Vec<Rule> {
        (0..self.rules).map(|n| Rule::to(Target::Accept).because(format!("{self:?} {n}"))).collect()
    }
}

/// Addresses and ports that share long prefixes, few, or none; some entries are half a bucket.
fn entry() -> impl Strategy<Value = Entry> {
    let address = prop_oneof![
        6 => (0..16_u32).prop_map(|host| 0x0a60_0000 + host),
        6 => (0..4_u32, 0..4_u32).prop_map(|(net, host)| 0x0a60_1000 + net * 256 + host * 16),
        2 => (0..4_u32).prop_map(|net| 0x0a00_0000 + net * 0x10_0000),
        1 => any::<u32>(),
    ];
    let port = prop_oneof![3 => Just(80_u16), 2 => 1000..1020_u16, 1 => any::<u16>()];
    let rules = prop_oneof![4 => 1..4_usize, 2 => 10..30_usize];
    (address, port, 0..2_u8, rules, prop::bool::weighted(0.8))
        .prop_map(|(address, port, owner, rules, marks)| Entry { address, port, owner, rules, marks })
}

/// Insert, or remove the nth of those that are there.
#[derive(Clone, Debug)]
enum Change {
    Insert(Entry),
    Remove(prop::sample::Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        5 => entry().prop_map(Change::Insert),
        4 => any::<prop::sample::Index>().prop_map(Change::Remove),
    ];
    prop::collection::vec(change, 1..120)
}

fn apply(chains: &mut Chains, tree: &mut Tree) {
    for (name, rules) in tree.take_touched() {
        match rules {
            Some(rules) => drop(chains.insert(name, rules.to_vec())),
            None => drop(chains.remove(&name)),
        }
    }
}

fn fresh(space: Space, entries: &BTreeMap<EntryId, Entry>) -> (Vec<Rule>, Chains) {
    let mut tree = tree(space);
    for (id, entry) in entries {
        tree.insert(id.clone(), entry.filed());
    }
    let mut chains = Chains::new();
    apply(&mut chains, &mut tree);
    (root(&tree), chains)
}

fn root(tree: &Tree) -> Vec<Rule> {
    Rules::from_iter(tree.root_rules()).to_vec()
}

/// Every entry's rules occur once, every chain is led to once, and no chain is long without need.
fn assert_sound(root: &[Rule], chains: &Chains, entries: &BTreeMap<EntryId, Entry>) {
    let all = || chains.values().map(Vec::as_slice).chain([root]);
    let own = |rule: &&Rule| !is_mark(rule) && !is_clear(rule);
    let mut callees: Vec<_> = all().flatten().filter(own).filter_map(Rule::next_chain).collect();
    callees.sort();
    assert!(callees.iter().copied().eq(chains.keys()), "{callees:?}");
    let mut leaves: Vec<_> = all()
        .flatten()
        .filter(own)
        .filter(|rule| rule.next_chain().is_none())
        .map(ToString::to_string)
        .collect();
    leaves.sort();
    let mut wanted: Vec<_> = entries.values().flat_map(Entry::rules).map(|rule| rule.to_string()).collect();
    wanted.sort();
    assert_eq!(leaves, wanted);
    let largest_frontend = entries.keys().map(|id| {
        entries.iter().filter(|(other, _)| other.path == id.path).map(|(_, entry)| entry.rules).sum::<usize>()
    });
    let longest = largest_frontend.max().unwrap_or(0).max(LEAF_MAX);
    assert!(all().all(|rules| rules.iter().filter(own).count() <= longest));
    assert_marked_once(root, chains, entries);
}

/// Whoever asks for masquerading gets it before its rules, once; and after a tree no mark is left.
fn assert_marked_once(root: &[Rule], chains: &Chains, entries: &BTreeMap<EntryId, Entry>) {
    let comment = |rule: &Rule| rule.comment.as_ref().map(ToString::to_string).unwrap_or_default();
    let owned: BTreeMap<String, &Entry> = entries
        .values()
        .flat_map(|entry| entry.rules().iter().map(|rule| (comment(rule), entry)).collect::<Vec<_>>())
        .collect();
    let mut open = vec![(root, false)];
    while let Some((rules, above)) = open.pop() {
        let (mut shared, mut own) = (above, String::new());
        for rule in rules {
            match (is_mark(rule), rule.next_chain()) {
                (true, _) if comment(rule).starts_with("Entry") => own = comment(rule),
                (true, _) => {
                    assert!(!shared, "marked twice");
                    shared = true;
                }
                (false, Some(chain)) => open.push((&chains[chain], shared)),
                (false, None) if is_clear(rule) => shared = above,
                (false, None) => {
                    let entry = owned[&comment(rule)];
                    let marks = usize::from(shared) + usize::from(own == format!("{entry:?} 0"));
                    assert!(marks == 1 || (marks == 0 && !entry.marks), "{marks} marks for {entry:?}");
                }
            }
        }
        assert_eq!(shared, above, "a mark is left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tree_after_any_changes_is_the_one_built_afresh(script in changes(), every in 1..6_usize, ports: bool) {
        let space = if ports { Space::Ports } else { Space::Addresses(Family::V4) };
        let mut tree = tree(space);
        let (mut entries, mut chains) = (BTreeMap::<EntryId, Entry>::new(), Chains::new());
        for changes in script.chunks(every) {
            for change in changes {
                match change {
                    Change::Insert(entry) => {
                        tree.insert(entry.id(space), entry.filed());
                        entries.insert(entry.id(space), entry.clone());
                    }
                    Change::Remove(index) if !entries.is_empty() => {
                        let id = entries.keys().nth(index.index(entries.len())).cloned().expect("below the length");
                        tree.remove(&id);
                        entries.remove(&id);
                    }
                    Change::Remove(_) => {}
                }
            }
            apply(&mut chains, &mut tree);
            let (wanted_root, wanted) = fresh(space, &entries);
            prop_assert_eq!(&chains, &wanted);
            prop_assert_eq!(root(&tree), wanted_root);
            prop_assert_eq!(tree.rules(), entries.values().map(|entry| entry.rules).sum::<usize>());
        }
        assert_sound(&root(&tree), &chains, &entries);
    }

    /// A new tree gives the same chains whatever order its entries come in.
    #[test]
    fn order_of_insertion_does_not_matter(entries in prop::collection::vec(entry(), 1..80)) {
        let space = Space::Addresses(Family::V4);
        let by_id: BTreeMap<_, _> = entries.iter().map(|entry| (entry.id(space), entry.clone())).collect();
        let mut tree = tree(space);
        for entry in by_id.values().rev() {
            tree.insert(entry.id(space), entry.filed());
        }
        let mut chains = Chains::new();
        apply(&mut chains, &mut tree);
        prop_assert_eq!((root(&tree), chains), fresh(space, &by_id));
    }
}

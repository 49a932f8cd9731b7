//! The tree itself: a radix tree over paths, sixteen ways per step, with rule counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Entry, EntryId, INLINE_MAX, LEAF_MAX, Marking, Masquerade, Path, SHARERS_MIN, Space};
use crate::{
    names,
    rule::{Rule, Target},
    rules::Rules,
    ruleset::ChainName,
};

/// A chain of a tree and its rules; `None` if it is no more.
type Touched = (ChainName, Option<Rules>);

/// A tree of dispatch chains below a root chain.
#[derive(Debug)]
pub(crate) struct Tree {
    space: Space,
    /// Prefix of the names of its chains.
    prefix: &'static str,
    root: Option<Node>,
    /// What its entries share, if they are all of cluster IPs.
    masquerade: Option<Masquerade>,
    /// Chains of nodes that are no more, or are called differently now.
    dropped: BTreeSet<ChainName>,
}

#[derive(Debug)]
enum Node {
    Bucket(Bucket),
    Branch(Box<Branch>),
}

#[derive(Debug, Default)]
struct Bucket {
    /// In order. They are few, for which a map would be large.
    entries: Vec<(EntryId, Entry)>,
    rules: usize,
    dirty: bool,
}

#[derive(Debug)]
struct Branch {
    /// Steps that all entries have in common. At least two children, one for each next step that occurs.
    prefix: Path,
    children: [Option<Node>; 16],
    rules: usize,
    dirty: bool,
}

impl Tree {
    pub(crate) fn new(space: Space, prefix: &'static str) -> Self {
        Self { space, prefix, root: None, masquerade: None, dropped: BTreeSet::new() }
    }

    /// Says which clients are masqueraded: the same for all entries, whose own marks say so, too.
    pub(crate) fn set_masquerade(&mut self, masquerade: Option<Masquerade>) {
        if self.masquerade != masquerade {
            self.masquerade = masquerade;
            if let Some(root) = &mut self.root {
                root.soil();
            }
        }
    }

    /// Number of rules in the tree.
    pub(crate) fn rules(&self) -> usize {
        self.root.as_ref().map_or(0, Node::rules)
    }

    /// The entry of that identity.
    pub(crate) fn get(&self, id: &EntryId) -> Option<&Entry> {
        let mut node = self.root.as_ref()?;
        while let Node::Branch(branch) = node {
            if branch.prefix.common(&id.path) < branch.prefix.len() {
                return None;
            }
            node = branch.children.get(id.path.step(branch.prefix.len()))?.as_ref()?;
        }
        if let Node::Bucket(bucket) = node { bucket.get(id) } else { None }
    }

    /// All rules of that entry, where no rule above marks.
    pub(crate) fn rules_of(&self, id: &EntryId) -> Vec<Arc<Rule>> {
        self.get(id).map(|entry| self.entry_rules(id, entry, false).collect()).unwrap_or_default()
    }

    /// Adds an entry, or replaces it.
    pub(crate) fn insert(&mut self, id: EntryId, entry: Entry) {
        self.remove(&id);
        let mut drops = Drops { space: self.space, prefix: self.prefix, names: &mut self.dropped };
        match &mut self.root {
            Some(root) => root.insert(&Path::of_root(), id, entry, &mut drops),
            None => self.root = Some(Node::Bucket(Bucket::of(id, entry))),
        }
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&mut self, id: &EntryId) {
        let mut drops = Drops { space: self.space, prefix: self.prefix, names: &mut self.dropped };
        if let Some(root) = &mut self.root {
            root.remove(&Path::of_root(), id, &mut drops);
            if root.rules() == 0 && root.is_empty() {
                self.root = None;
            }
        }
    }

    /// The rules of the root chain.
    pub(crate) fn root_rules(&self) -> Vec<Arc<Rule>> {
        match &self.root {
            None => Vec::new(),
            Some(Node::Bucket(bucket)) => self.bucket_rules(bucket, false),
            Some(Node::Branch(branch)) => match self.shared_mark(&branch.prefix, false) {
                Some(shared) => {
                    let guard = |rule| self.space.guard(rule, &branch.prefix, 0);
                    shared.around(self.branch_rules(branch, 0, true), guard)
                }
                None => self.branch_rules(branch, 0, false),
            },
        }
    }

    /// The chains below the root that may differ since the last call; `None` for those that are no more.
    pub(crate) fn take_touched(&mut self) -> Vec<Touched> {
        let mut touched: Vec<_> =
            std::mem::take(&mut self.dropped).into_iter().map(|name| (name, None)).collect();
        if let Some(mut root) = self.root.take() {
            if std::mem::take(root.dirty_mut()) {
                let marked = self.marked_below(&root, &Path::of_root(), false);
                self.collect_below(&mut root, marked, &mut touched);
            }
            self.root = Some(root);
        }
        touched
    }

    fn collect_below(&self, node: &mut Node, marked: bool, touched: &mut Vec<Touched>) {
        let Node::Branch(branch) = node else { return };
        for (step, child) in branch.children.iter_mut().enumerate() {
            let Some(child) = child else { continue };
            if !std::mem::take(child.dirty_mut()) {
                continue;
            }
            let path = child.path(&branch.prefix.extended(step));
            let rules = (!child.is_inlined()).then(|| self.chain(child, &path, marked).into_iter().collect());
            touched.push((self.name(&path), rules));
            let marked = self.marked_below(child, &path, marked);
            self.collect_below(child, marked, touched);
        }
    }

    /// Whether packets are marked when they come to the children of a branch at `path`.
    fn marked_below(&self, node: &Node, path: &Path, marked: bool) -> bool {
        let path = if let Node::Branch(branch) = node { &branch.prefix } else { path };
        marked || self.shared_mark(path, false).is_some()
    }

    /// What marks for all that is below `path`: only where that is not much more than the cluster IPs themselves, and
    /// nothing above does it already.
    fn shared_mark(&self, path: &Path, marked: bool) -> Option<&Masquerade> {
        self.masquerade.as_ref().filter(|_| !marked && self.space.is_narrow(path.len()))
    }

    /// The rules of the chain of a node. `marked`: a rule above it marks.
    fn chain(&self, node: &Node, path: &Path, marked: bool) -> Vec<Arc<Rule>> {
        let shared = self.shared_mark(path, marked);
        match (node, shared) {
            (Node::Branch(branch), Some(shared)) => {
                shared.around(self.branch_rules(branch, path.len(), true), |rule| rule)
            }
            (Node::Branch(branch), None) => self.branch_rules(branch, path.len(), marked),
            (Node::Bucket(bucket), Some(shared)) if bucket.marking() >= SHARERS_MIN => {
                shared.around(self.bucket_rules(bucket, true), |rule| rule)
            }
            (Node::Bucket(bucket), _) => self.bucket_rules(bucket, marked),
        }
    }

    /// The jumps to the children of a branch; `known` steps have been matched by whoever leads there.
    fn branch_rules(&self, branch: &Branch, known: usize, marked: bool) -> Vec<Arc<Rule>> {
        let mut rules = Vec::new();
        for (step, child) in branch.children.iter().enumerate() {
            match child {
                Some(Node::Bucket(bucket)) if bucket.rules <= INLINE_MAX => {
                    rules.extend(self.bucket_rules(bucket, marked));
                }
                Some(child) => {
                    let path = child.path(&branch.prefix.extended(step));
                    let jump = Rule::to(Target::Jump(self.name(&path)));
                    rules.push(self.space.guard(jump, &path, known).shared());
                }
                None => {}
            }
        }
        rules
    }

    /// The rules of a bucket. `marked`: a rule above marks.
    fn bucket_rules(&self, bucket: &Bucket, marked: bool) -> Vec<Arc<Rule>> {
        bucket.entries.iter().flat_map(|(id, entry)| self.entry_rules(id, entry, marked)).collect()
    }

    fn entry_rules(&self, id: &EntryId, entry: &Entry, marked: bool) -> impl Iterator<Item = Arc<Rule>> {
        let mark = if marked { None } else { self.mark(id, entry) };
        mark.into_iter().chain(entry.rules.shared())
    }

    /// The rule by which an entry marks for itself.
    fn mark(&self, id: &EntryId, entry: &Entry) -> Option<Arc<Rule>> {
        let Marking::Before { commented } = entry.marking else { return None };
        let mut rule = self.space.guard(self.masquerade.as_ref()?.set(), &id.path, 0);
        rule.comment = entry.rules.first().filter(|_| commented).and_then(|first| first.comment.clone());
        Some(rule.shared())
    }

    fn name(&self, path: &Path) -> ChainName {
        names::dispatch_chain(self.prefix, &self.space.text(path))
    }
}

/// Collects the names of chains that vanish during one operation.
struct Drops<'a> {
    space: Space,
    prefix: &'static str,
    names: &'a mut BTreeSet<ChainName>,
}

impl Drops<'_> {
    fn add(&mut self, path: &Path) {
        self.names.insert(names::dispatch_chain(self.prefix, &self.space.text(path)));
    }
}

impl Bucket {
    fn of(id: EntryId, entry: Entry) -> Self {
        let mut bucket = Self::default();
        bucket.insert(id, entry);
        bucket
    }

    fn place(&self, id: &EntryId) -> Result<usize, usize> {
        self.entries.binary_search_by(|(known, _)| known.cmp(id))
    }

    fn get(&self, id: &EntryId) -> Option<&Entry> {
        let (_, entry) = self.entries.get(self.place(id).ok()?)?;
        Some(entry)
    }

    /// Adds an entry that is not there.
    fn insert(&mut self, id: EntryId, entry: Entry) {
        let (Ok(at) | Err(at)) = self.place(&id);
        self.rules += entry.rules.len();
        self.entries.insert(at, (id, entry));
        self.dirty = true;
    }

    /// Removes an entry, if it is there.
    fn remove(&mut self, id: &EntryId) {
        if let Ok(at) = self.place(id) {
            let (_, entry) = self.entries.remove(at);
            self.rules -= entry.rules.len();
            self.dirty = true;
        }
    }

    /// Number of entries that mark for themselves where no rule above does.
    fn marking(&self) -> usize {
        self.entries.iter().filter(|(_, entry)| entry.marking != Marking::Behind).count()
    }

    /// Steps that all entries have in common: those that the first and the last have, because entries are sorted.
    fn common(&self) -> Option<Path> {
        let ((first, _), (last, _)) = (self.entries.first()?, self.entries.last()?);
        Some(first.path.prefix(first.path.common(&last.path)))
    }

    /// Too many rules, and not all for the same frontend.
    fn split_at(&self) -> Option<Path> {
        let whole = self.entries.first()?.0.path.len();
        self.common().filter(|common| self.rules > LEAF_MAX && common.len() < whole)
    }
}

impl Node {
    fn rules(&self) -> usize {
        match self {
            Self::Bucket(bucket) => bucket.rules,
            Self::Branch(branch) => branch.rules,
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Bucket(bucket) if bucket.entries.is_empty())
    }

    fn is_inlined(&self) -> bool {
        matches!(self, Self::Bucket(bucket) if bucket.rules <= INLINE_MAX)
    }

    fn dirty_mut(&mut self) -> &mut bool {
        match self {
            Self::Bucket(bucket) => &mut bucket.dirty,
            Self::Branch(branch) => &mut branch.dirty,
        }
    }

    /// Marks all of its chains as touched.
    fn soil(&mut self) {
        *self.dirty_mut() = true;
        if let Self::Branch(branch) = self {
            branch.children.iter_mut().flatten().for_each(Self::soil);
        }
    }

    /// What its chain is called after: a bucket's place in the tree, a branch's common steps.
    fn path(&self, slot: &Path) -> Path {
        match self {
            Self::Bucket(_) => *slot,
            Self::Branch(branch) => branch.prefix,
        }
    }

    fn insert(&mut self, slot: &Path, id: EntryId, entry: Entry, drops: &mut Drops<'_>) {
        match self {
            Self::Bucket(bucket) => {
                bucket.insert(id, entry);
                if let Some(common) = bucket.split_at() {
                    drops.add(slot);
                    *self = Self::split(std::mem::take(bucket), common);
                }
            }
            Self::Branch(branch) if branch.prefix.common(&id.path) < branch.prefix.len() => {
                branch.dirty = true;
                let prefix = branch.prefix.prefix(branch.prefix.common(&id.path));
                let mut above = Branch { prefix, children: Default::default(), rules: 0, dirty: true };
                above.adopt(self.take());
                above.rules += entry.rules.len();
                let step = id.path.step(above.prefix.len());
                above.set_child(step, Self::Bucket(Bucket::of(id, entry)));
                *self = Self::Branch(Box::new(above));
            }
            Self::Branch(branch) => branch.insert(id, entry, drops),
        }
    }

    /// Leaves an empty bucket behind.
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Bucket(Bucket::default()))
    }

    fn split(bucket: Bucket, common: Path) -> Self {
        let mut branch =
            Branch { prefix: common, children: Default::default(), rules: bucket.rules, dirty: true };
        let mut parts: BTreeMap<usize, Bucket> = BTreeMap::new();
        for (id, entry) in bucket.entries {
            parts.entry(id.path.step(branch.prefix.len())).or_default().insert(id, entry);
        }
        for (step, part) in parts {
            let child = match part.split_at() {
                Some(common) => Self::split(part, common),
                None => Self::Bucket(part),
            };
            branch.set_child(step, child);
        }
        Self::Branch(Box::new(branch))
    }

    fn remove(&mut self, slot: &Path, id: &EntryId, drops: &mut Drops<'_>) {
        match self {
            Self::Bucket(bucket) => bucket.remove(id),
            Self::Branch(branch) => {
                if !branch.remove(id, drops) {
                    return;
                }
                if branch.rules <= LEAF_MAX {
                    let mut bucket = Bucket::default();
                    self.take().drain_into(slot, &mut bucket, drops);
                    *self = Self::Bucket(bucket);
                } else if let Some(only) = branch.take_only_child(drops) {
                    *self = only;
                }
            }
        }
    }

    /// Moves all entries to `bucket`; the chains of the subtree vanish.
    fn drain_into(self, slot: &Path, bucket: &mut Bucket, drops: &mut Drops<'_>) {
        drops.add(&self.path(slot));
        match self {
            Self::Bucket(old) => {
                for (id, entry) in old.entries {
                    bucket.insert(id, entry);
                }
            }
            Self::Branch(branch) => {
                let Branch { prefix, children, .. } = *branch;
                for (step, child) in children.into_iter().enumerate() {
                    if let Some(child) = child {
                        child.drain_into(&prefix.extended(step), bucket, drops);
                    }
                }
            }
        }
    }
}

impl Branch {
    fn set_child(&mut self, step: usize, child: Node) {
        if let Some(place) = self.children.get_mut(step) {
            *place = Some(child);
        }
    }

    /// Takes a branch that has more steps in common as a child.
    fn adopt(&mut self, node: Node) {
        if let Node::Branch(child) = &node {
            self.rules += child.rules;
            self.set_child(child.prefix.step(self.prefix.len()), node);
        }
    }

    fn insert(&mut self, id: EntryId, entry: Entry, drops: &mut Drops<'_>) {
        self.dirty = true;
        self.rules += entry.rules.len();
        let step = id.path.step(self.prefix.len());
        let slot = self.prefix.extended(step);
        match self.children.get_mut(step).and_then(Option::as_mut) {
            Some(child) => child.insert(&slot, id, entry, drops),
            None => self.set_child(step, Node::Bucket(Bucket::of(id, entry))),
        }
    }

    /// Whether the entry was there.
    fn remove(&mut self, id: &EntryId, drops: &mut Drops<'_>) -> bool {
        let step = id.path.step(self.prefix.len());
        let slot = self.prefix.extended(step);
        let Some(place) = self.children.get_mut(step) else { return false };
        let Some(child) = place else { return false };
        let before = child.rules();
        child.remove(&slot, id, drops);
        let removed = before - child.rules();
        if child.is_empty() {
            *place = None;
            drops.add(&slot);
        }
        self.rules -= removed;
        self.dirty |= removed > 0;
        removed > 0
    }

    /// Its child, if it has only one: such a branch is none.
    fn take_only_child(&mut self, drops: &mut Drops<'_>) -> Option<Node> {
        let mut children = self.children.iter_mut().enumerate().filter(|(_, child)| child.is_some());
        let (step, only) = children.next()?;
        if children.next().is_some() {
            return None;
        }
        let mut only = only.take()?;
        drops.add(&self.prefix);
        drops.add(&only.path(&self.prefix.extended(step)));
        *only.dirty_mut() = true;
        Some(only)
    }
}

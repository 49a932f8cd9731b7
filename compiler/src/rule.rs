//! Rules: matches, a target, a comment.
//!
//! Invariant: the matches of a rule are in the order of [`Match`]'s variants, so that equal rules compare equal however they
//! were written.

use std::{fmt, net::SocketAddr, sync::Arc};

use crate::{
    matches::{Match, Opaque},
    ruleset::ChainName,
};

/// One rule of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// All of these must hold.
    pub matches: Vec<Match>,
    /// What happens then; a rule without a target only counts.
    pub target: Option<Target>,
    /// Explanation for people and tools.
    pub comment: Option<Comment>,
}

impl Rule {
    /// A rule without matches.
    pub fn to(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// Adds a match, at its place. "From anywhere" and "to anywhere" are no matches: the kernel keeps none.
    #[must_use]
    pub fn when(mut self, condition: Match) -> Self {
        if condition.is_always_true() {
            return self;
        }
        let at = self.matches.partition_point(|other| other.rank() <= condition.rank());
        self.matches.insert(at, condition);
        self
    }

    /// Sets the comment.
    #[must_use]
    pub fn because(mut self, comment: impl AsRef<str>) -> Self {
        self.comment = Comment::new(comment.as_ref());
        self
    }

    /// To be held: its matches take no more room than they need.
    pub(crate) fn shared(mut self) -> Arc<Self> {
        self.matches.shrink_to_fit();
        Arc::new(self)
    }

    /// The chain that it continues in.
    pub fn next_chain(&self) -> Option<&ChainName> {
        match &self.target {
            Some(Target::Jump(chain) | Target::Goto(chain)) => Some(chain),
            _ => None,
        }
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Continues in a chain and comes back.
    Jump(ChainName),
    /// Continues in a chain and does not come back. We never write it.
    Goto(ChainName),
    /// Lets the packet pass this hook.
    Accept,
    /// Drops the packet without a word.
    Drop,
    /// Goes back to the calling chain.
    Return,
    /// Refuses the packet; `None` is the default answer, port unreachable.
    Reject(Option<Arc<str>>),
    /// Clears the bits of the mask and flips those of the value.
    SetMark(Mark),
    /// Rewrites the source to the address of the outgoing interface.
    Masquerade {
        /// Ports are chosen at random.
        random_fully: bool,
    },
    /// Rewrites the destination.
    Dnat(SocketAddr),
    /// A target that we never write: its name and its options.
    Opaque(Opaque),
}

/// Bits of the packet mark: in a match, `packet & mask == value`; in a target, `packet = (packet & !mask) ^ value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Value.
    pub value: u32,
    /// Mask.
    pub mask: u32,
}

impl Mark {
    /// All bits of `value` and no others: in a target it sets them (`--or-mark`).
    pub fn bits(value: u32) -> Self {
        Self { value, mask: value }
    }

    /// In a target: flips the bits of `value` (`--xor-mark`).
    pub fn flip(value: u32) -> Self {
        Self { value, mask: 0 }
    }
}

/// Text on a rule. Printable ASCII, at most 255 characters, without anything that could end a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Comment(Arc<str>);

impl Comment {
    /// Kernel's limit, without the terminating NUL.
    const MAX: usize = 255;

    /// Cleans `text`: whatever is not printable ASCII becomes `?`, and what is too long is cut off. Empty text is no comment.
    pub fn new(text: &str) -> Option<Self> {
        let clean = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        let text: String = text.chars().take(Self::MAX).map(clean).collect();
        (!text.is_empty()).then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

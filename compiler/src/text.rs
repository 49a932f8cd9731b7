//! Rules as text, in the syntax of `iptables-restore`.
//!
//! Invariant: whatever a word holds, it stays one word of one line.

use std::fmt::{self, Write as _};

use crate::{
    matches::{AddressSide, Affinity, Match, Opaque},
    rule::{Comment, Mark, Rule, Target},
};

/// Writes a word, quoted where `iptables-restore` would otherwise split or change it.
fn write_word(f: &mut fmt::Formatter<'_>, word: &str) -> fmt::Result {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,+=@[]!".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return f.write_str(word);
    }
    f.write_char('"')?;
    for c in word.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => f.write_char('?')?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

/// A word of a rule, quoted where necessary.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_word(f, self.0)
    }
}

/// A rule's specification, without the command and the chain: what follows `-A CHAIN `.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (headers, extensions): (Vec<_>, Vec<_>) = self.matches.iter().partition(|m| m.is_header());
        write_parts(f, &[&headers, &comment(self), &extensions, &self.target.iter().collect::<Vec<_>>()])
    }
}

/// A rule in a built-in chain, as kube-proxy writes it: with the comment behind the matches. `iptables -C` and `-D` compare
/// matches in order, so this is what lets either program find the jumps of the other.
pub(crate) struct JumpText<'a>(pub(crate) &'a Rule);

impl fmt::Display for JumpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule) = self;
        let matches: Vec<_> = rule.matches.iter().collect();
        write_parts(f, &[&matches, &comment(rule), &rule.target.iter().collect::<Vec<_>>()])
    }
}

/// Parts of a rule, separated by blanks.
trait Parts {
    fn write(&self, f: &mut fmt::Formatter<'_>, first: &mut bool) -> fmt::Result;
}

impl<T: fmt::Display> Parts for Vec<T> {
    fn write(&self, f: &mut fmt::Formatter<'_>, first: &mut bool) -> fmt::Result {
        for part in self {
            if !std::mem::take(first) {
                f.write_char(' ')?;
            }
            write!(f, "{part}")?;
        }
        Ok(())
    }
}

fn write_parts(f: &mut fmt::Formatter<'_>, parts: &[&dyn Parts]) -> fmt::Result {
    let mut first = true;
    parts.iter().try_for_each(|part| part.write(f, &mut first))
}

/// The comment match, if there is one.
fn comment(rule: &Rule) -> Vec<String> {
    let text = |comment: &Comment| format!("-m comment --comment {}", Word(comment.as_str()));
    rule.comment.iter().map(text).collect()
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "! " } else { "" };
        match self {
            Self::Source { net, negated } => write!(f, "{}-s {net}", not(negated)),
            Self::Destination { net, negated } => write!(f, "{}-d {net}", not(negated)),
            Self::InInterface { name, negated } => write!(f, "{}-i {}", not(negated), Word(name.as_str())),
            Self::OutInterface { name, negated } => write!(f, "{}-o {}", not(negated), Word(name.as_str())),
            Self::Protocol { protocol, negated } => write!(f, "{}-p {protocol}", not(negated)),
            Self::SourcePort { protocol, ports, negated } => {
                write!(f, "-m {} {}--sport {ports}", protocol.lower(), not(negated))
            }
            Self::DestinationPort { protocol, ports, negated } => {
                write!(f, "-m {} {}--dport {ports}", protocol.lower(), not(negated))
            }
            Self::ConnState { states, negated } => {
                write!(f, "-m conntrack {}--ctstate {states}", not(negated))
            }
            Self::Mark { mark, negated } => write!(f, "-m mark {}--mark {mark}", not(negated)),
            Self::Local { side, negated } => {
                let side = match side {
                    AddressSide::Source => "src",
                    AddressSide::Destination => "dst",
                };
                write!(f, "-m addrtype {}--{side}-type LOCAL", not(negated))
            }
            Self::Random(probability) => write!(f, "-m statistic --mode random --probability {probability}"),
            Self::Bpf(program) => write!(f, "-m bpf --bytecode {}", Word(&program.to_string())),
            Self::Opaque(opaque) => write!(f, "{opaque}"),
            Self::Affinity { list, action: Affinity::Remember } => {
                write!(f, "-m recent --set --name {}", Word(list))
            }
            Self::Affinity { list, action: Affinity::Recall { seconds } } => {
                write!(f, "-m recent --rcheck --seconds {seconds} --reap --name {}", Word(list))
            }
            Self::Counter(name) => write!(f, "-m nfacct --nfacct-name {}", Word(name)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "-j {}", Word(chain.as_str())),
            Self::Goto(chain) => write!(f, "-g {}", Word(chain.as_str())),
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Return => f.write_str("-j RETURN"),
            Self::Reject(None) => f.write_str("-j REJECT"),
            Self::Reject(Some(kind)) => write!(f, "-j REJECT --reject-with {}", Word(kind)),
            Self::SetMark(Mark { value, mask }) if value == mask => {
                write!(f, "-j MARK --or-mark {value:#08x}")
            }
            Self::SetMark(Mark { value, mask: 0 }) => write!(f, "-j MARK --xor-mark {value:#08x}"),
            Self::SetMark(mark) => write!(f, "-j MARK --set-xmark {mark}"),
            Self::Masquerade { random_fully: true } => f.write_str("-j MASQUERADE --random-fully"),
            Self::Masquerade { random_fully: false } => f.write_str("-j MASQUERADE"),
            Self::Dnat(to) => write!(f, "-j DNAT --to-destination {to}"),
            Self::Opaque(opaque) => write!(f, "-j {opaque}"),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}/{:#08x}", self.value, self.mask)
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_char(' ')?;
            }
            write_word(f, word)?;
        }
        Ok(())
    }
}

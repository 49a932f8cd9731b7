//! One rule from its words.
//!
//! A match that we know, written as the kernel's tools print it or as we do, becomes typed; any other is kept word by word.

use std::{net::SocketAddr, sync::Arc};

use fairlead_objects::{Protocol, parse_address};
use ipnet::IpNet;

use crate::{
    hairpin::Bytecode,
    matches::{AddressSide, Affinity, ConnStates, InterfaceName, IpProtocol, Match, Opaque, PortRange},
    probability::Probability,
    rule::{Comment, Mark, Rule, Target},
    ruleset::ChainName,
};

type Words<'a> = &'a [Arc<str>];

/// Reads a rule. `is_chain` tells chains from targets that are neither typed nor have options.
pub(super) fn read(mut words: Words<'_>, is_chain: impl Fn(&str) -> bool) -> Result<Rule, &'static str> {
    let mut rule = Rule::default();
    while let Some((first, rest)) = words.split_first() {
        let (group, after) = match &**first {
            "-j" | "-g" => (words, &[][..]),
            "-m" => words.split_at(group_length(rest) + 1),
            _ => words.split_at(header_length(words)),
        };
        match &**first {
            "-j" => rule.target = Some(target(rest, &is_chain).ok_or("expected a target behind -j")?),
            "-g" => {
                let chain = rest.first().ok_or("expected a chain behind -g")?;
                rule.target = Some(Target::Goto(ChainName::new(Arc::clone(chain))));
            }
            "-m" => rule = add_extension(rule, group),
            _ => rule = rule.when(header(group).unwrap_or_else(|| opaque(group))),
        }
        words = after;
    }
    Ok(rule)
}

/// Words up to the next group: a match, a target, or a header match.
fn group_length(words: Words<'_>) -> usize {
    let begins = |at: usize| {
        let word = |at: usize| words.get(at).map(|word| &**word);
        let at = if word(at) == Some("!") { at + 1 } else { at };
        matches!(word(at), Some("-m" | "-j" | "-g" | "-s" | "-d" | "-i" | "-o" | "-p" | "-f"))
    };
    (1..words.len()).find(|at| begins(*at)).unwrap_or(words.len())
}

/// `! -s NET`, `-s NET`, or `-f`.
fn header_length(words: Words<'_>) -> usize {
    let negation = usize::from(words.first().is_some_and(|word| &**word == "!"));
    let argument = usize::from(words.get(negation).is_some_and(|word| &**word != "-f"));
    (negation + 1 + argument).min(words.len())
}

fn opaque(words: Words<'_>) -> Match {
    Match::Opaque(Opaque(words.into()))
}

/// A leading `!`, and the rest.
fn negation(words: Words<'_>) -> (bool, Words<'_>) {
    match words.split_first() {
        Some((first, rest)) if &**first == "!" => (true, rest),
        _ => (false, words),
    }
}

fn header(words: Words<'_>) -> Option<Match> {
    let (negated, words) = negation(words);
    let [option, value] = words else { return None };
    let interface = || InterfaceName::new(Arc::clone(value));
    Some(match &**option {
        "-s" => Match::Source { net: network(value)?, negated },
        "-d" => Match::Destination { net: network(value)?, negated },
        "-i" => Match::InInterface { name: interface(), negated },
        "-o" => Match::OutInterface { name: interface(), negated },
        "-p" => Match::Protocol { protocol: ip_protocol(value), negated },
        _ => return None,
    })
}

fn network(text: &str) -> Option<IpNet> {
    match text.split_once('/') {
        Some((address, length)) => {
            IpNet::new(parse_address(address).ok()?, length.parse().ok()?).ok().map(|net| net.trunc())
        }
        None => parse_address(text).ok().map(IpNet::from),
    }
}

fn transport(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.lower() == name)
}

fn ip_protocol(name: &Arc<str>) -> IpProtocol {
    transport(name).map_or_else(|| IpProtocol::Other(Arc::clone(name)), IpProtocol::Transport)
}

/// `-m NAME ...`
fn add_extension(mut rule: Rule, group: Words<'_>) -> Rule {
    let Some((name, options)) = group.get(1..).and_then(<[_]>::split_first) else {
        return rule.when(opaque(group));
    };
    if &**name == "comment"
        && let [option, text] = options
        && &**option == "--comment"
        && let Some(comment) = Comment::new(text).filter(|comment| comment.as_str() == &**text)
        && rule.comment.is_none()
    {
        rule.comment = Some(comment);
        return rule;
    }
    if let Some(protocol) = transport(name) {
        return match ports(protocol, options) {
            Some(matches) => matches.into_iter().fold(rule, Rule::when),
            None => rule.when(opaque(group)),
        };
    }
    let typed = extension(name, options).unwrap_or_else(|| opaque(group));
    rule.when(typed)
}

/// `--sport`, `--dport`, both or neither: naming the protocol alone asks nothing that `-p` does not.
fn ports(protocol: Protocol, mut options: Words<'_>) -> Option<Vec<Match>> {
    let mut matches = Vec::new();
    while !options.is_empty() {
        let (negated, rest) = negation(options);
        let (option, rest) = rest.split_first()?;
        let (value, rest) = rest.split_first()?;
        let ports = port_range(value)?;
        matches.push(match &**option {
            "--sport" => Match::SourcePort { protocol, ports, negated },
            "--dport" => Match::DestinationPort { protocol, ports, negated },
            _ => return None,
        });
        options = rest;
    }
    Some(matches)
}

fn port_range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let bound = |text: &str, open: u16| if text.is_empty() { Some(open) } else { text.parse().ok() };
    Some(PortRange { first: bound(first, 0)?, last: bound(last, u16::MAX)? })
}

fn extension(name: &str, options: Words<'_>) -> Option<Match> {
    let (negated, positive) = negation(options);
    let words: Vec<&str> = positive.iter().map(|word| &**word).collect();
    Some(match (name, words.as_slice()) {
        ("conntrack", ["--ctstate", states]) => {
            Match::ConnState { states: ConnStates::of_text(states)?, negated }
        }
        ("mark", ["--mark", mark]) => Match::Mark { mark: mark_of(mark)?, negated },
        ("addrtype", ["--src-type", "LOCAL"]) => Match::Local { side: AddressSide::Source, negated },
        ("addrtype", ["--dst-type", "LOCAL"]) => Match::Local { side: AddressSide::Destination, negated },
        ("statistic", ["--mode", "random", "--probability", text]) if !negated => {
            Match::Random(Probability::of_text(text)?)
        }
        ("bpf", ["--bytecode", program]) if !negated => Match::Bpf(Bytecode::of_text(program)?),
        ("nfacct", ["--nfacct-name", counter]) if !negated => Match::Counter((*counter).into()),
        ("recent", words) if !negated => affinity(words)?,
        _ => return None,
    })
}

/// `recent` with its defaults spelled out or not.
fn affinity(words: &[&str]) -> Option<Match> {
    let (action, rest) = match words {
        ["--set", rest @ ..] => (Affinity::Remember, rest),
        ["--rcheck", "--seconds", seconds, "--reap", rest @ ..] => {
            (Affinity::Recall { seconds: seconds.parse().ok()? }, rest)
        }
        _ => return None,
    };
    let ["--name", list, defaults @ ..] = rest else { return None };
    let usual = match defaults {
        [] => true,
        ["--mask", mask, "--rsource"] => {
            *mask == "255.255.255.255" || *mask == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        }
        _ => false,
    };
    usual.then(|| Match::Affinity { list: (*list).into(), action })
}

/// `0x4000/0x4000`, or one number that all bits are compared with.
fn mark_of(text: &str) -> Option<Mark> {
    match text.split_once('/') {
        Some((value, mask)) => Some(Mark { value: number(value)?, mask: number(mask)? }),
        None => Some(Mark { value: number(text)?, mask: u32::MAX }),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn target(words: Words<'_>, is_chain: impl Fn(&str) -> bool) -> Option<Target> {
    let texts: Vec<&str> = words.iter().map(|word| &**word).collect();
    let name = *texts.first()?;
    let typed = match texts.as_slice() {
        ["ACCEPT"] => Some(Target::Accept),
        ["DROP"] => Some(Target::Drop),
        ["RETURN"] => Some(Target::Return),
        ["REJECT"] => Some(Target::Reject(None)),
        ["REJECT", "--reject-with", kind] => Some(reject(kind)),
        ["MASQUERADE"] => Some(Target::Masquerade { random_fully: false }),
        ["MASQUERADE", "--random-fully"] => Some(Target::Masquerade { random_fully: true }),
        ["MARK", option, value] => set_mark(option, value).map(Target::SetMark),
        ["DNAT", "--to-destination", to] => to.parse::<SocketAddr>().ok().map(Target::Dnat),
        [_] if is_chain(name) => Some(Target::Jump(name.into())),
        _ => None,
    };
    Some(typed.unwrap_or_else(|| Target::Opaque(Opaque(words.into()))))
}

/// The default answer is printed, though we do not write it.
fn reject(kind: &str) -> Target {
    match kind {
        "icmp-port-unreachable" | "icmp6-port-unreachable" => Target::Reject(None),
        other => Target::Reject(Some(other.into())),
    }
}

fn set_mark(option: &str, value: &str) -> Option<Mark> {
    match option {
        "--set-xmark" => mark_of(value),
        "--or-mark" => number(value).map(Mark::bits),
        "--xor-mark" => number(value).map(Mark::flip),
        "--and-mark" => number(value).map(|kept| Mark { value: 0, mask: !kept }),
        _ => None,
    }
}

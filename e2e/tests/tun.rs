//! The packet harness: what it tells of packets through rules of which everybody knows what they do.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    plan::Node,
    record::Record,
    suite,
    tun::{Complaint, End, Entry, Fate, Harness, Kind, Probe, Setup},
};
use fairlead_objects::{Family, Protocol};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Where things are in a family: a Pod here, a stranger, a virtual address, a Pod elsewhere, the node.
struct Places {
    pod: IpAddr,
    stranger: IpAddr,
    virtual_ip: IpAddr,
    elsewhere: IpAddr,
    node: IpAddr,
}

fn places(family: Family) -> Result<Places> {
    let texts = match family {
        Family::V4 => ["10.244.1.5", "203.0.113.9", "10.96.0.99", "10.244.2.5", "172.30.0.11"],
        Family::V6 => ["fd00:244:0:1::5", "2001:db8::9", "fd00:96::99", "fd00:244:0:2::5", "fd00:30::b"],
    };
    let [pod, stranger, virtual_ip, elsewhere, node] = texts.map(str::parse);
    Ok(Places { pod: pod?, stranger: stranger?, virtual_ip: virtual_ip?, elsewhere: elsewhere?, node: node? })
}

/// A namespace with these rules of the table `nat` and `filter`, in both families.
fn harness(record: &Record, rules: impl Fn(&Places) -> Result<String>) -> Result<Harness> {
    let harness = Harness::create(record, "node", &Node::new(1), &Setup::default())?;
    for family in [Family::V4, Family::V6] {
        let program = if family == Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
        let document = rules(&places(family)?)?;
        let mut command = Command::new(program);
        command.arg("-w").stdin(Stdio::piped()).env("XTABLES_LOCKFILE", record.dir().join("xtables.lock"));
        let status = harness.netns().run(|| -> std::io::Result<_> {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(document.as_bytes())?;
            }
            child.wait()
        })??;
        ensure!(status.success(), "{program}:\n{document}");
    }
    Ok(harness)
}

fn each(mut check: impl FnMut(&Places, Protocol) -> Result<()>) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let places = places(family)?;
        for protocol in PROTOCOLS {
            check(&places, protocol).with_context(|| format!("{family:?} {protocol}"))?;
        }
    }
    Ok(())
}

/// Runs a test that needs root, or says that it does not run.
fn as_root(test: impl FnOnce() -> Result<()>) -> Result<()> {
    if suite::refuse().is_some() { Ok(()) } else { test() }
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn send(
    harness: &mut Harness,
    entry: Entry,
    source: IpAddr,
    protocol: Protocol,
    to: SocketAddr,
) -> Result<Fate> {
    Ok(harness.send(&Probe::new(entry, source, protocol, to))?)
}

#[test]
fn packets_without_rules_take_the_routes() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let mut harness = harness(&record, |_| Ok(String::new()))?;
        each(|places, protocol| {
            let &Places { pod, stranger, elsewhere, node, .. } = places;
            let ways = [
                (Entry::World, stranger, pod, Entry::Pods),
                (Entry::Pods, pod, elsewhere, Entry::World),
                (Entry::Pods, pod, pod, Entry::Pods),
                (Entry::Node, node, stranger, Entry::World),
            ];
            for (entry, source, destination, by) in ways {
                let fate = send(&mut harness, entry, source, protocol, at(destination, 80))?;
                let source = fate.sent_from;
                ensure!(fate.end == End::Left { by, source, destination: at(destination, 80) }, "{fate}");
                ensure!(fate.answer.is_none() && !fate.is_masqueraded(), "{fate}");
            }
            Ok(())
        })
    })
}

#[test]
fn what_reaches_the_node_is_heard_and_answered() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let mut harness = harness(&record, |_| Ok(String::new()))?;
        each(|places, protocol| {
            let &Places { pod, stranger, node, .. } = places;
            for (entry, source) in [(Entry::Pods, pod), (Entry::World, stranger), (Entry::Node, node)] {
                let fate = send(&mut harness, entry, source, protocol, at(node, 81))?;
                let delivered = End::Delivered { source: fate.sent_from, destination: at(node, 81) };
                ensure!(fate.end == delivered, "{entry:?}: {fate}");
                let answer = fate.answer.map(|answer| (answer.complaint, answer.from, answer.by));
                let expected = match protocol {
                    Protocol::Tcp => Some((Complaint::Reset, node, entry)),
                    Protocol::Udp => Some((Complaint::PortUnreachable, node, entry)),
                    // Whoever hears raw packets counts as a listener.
                    Protocol::Sctp => None,
                };
                ensure!(answer == expected, "{entry:?}: {fate}");
            }
            Ok(())
        })
    })
}

#[test]
fn an_address_given_to_the_node_is_its_own() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let mut harness = harness(&record, |_| Ok(String::new()))?;
        for family in [Family::V4, Family::V6] {
            harness.give(places(family)?.virtual_ip)?;
        }
        each(|places, protocol| {
            let &Places { virtual_ip, stranger, .. } = places;
            let fate = send(&mut harness, Entry::World, stranger, protocol, at(virtual_ip, 80))?;
            ensure!(fate.destination() == Some(at(virtual_ip, 80)), "{fate}");
            ensure!(matches!(fate.end, End::Delivered { .. }), "{fate}");
            Ok(())
        })
    })
}

#[test]
fn translation_is_seen_and_undone_for_the_reply() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let rules = |places: &Places| {
            let Places { pod, elsewhere, virtual_ip, .. } = places;
            let mut text = "*nat\n".to_owned();
            for protocol in ["tcp", "udp", "sctp"] {
                for chain in ["PREROUTING", "OUTPUT"] {
                    for (port, target) in [(80, pod), (81, elsewhere)] {
                        writeln!(
                            text,
                            "-A {chain} -d {virtual_ip} -p {protocol} --dport {port} -j DNAT --to-destination {}",
                            SocketAddr::new(*target, 8080)
                        )?;
                    }
                }
                writeln!(text, "-A POSTROUTING -d {elsewhere} -p {protocol} -j MASQUERADE --random-fully")?;
            }
            Ok(text + "COMMIT\n")
        };
        let mut harness = harness(&record, rules)?;
        each(|places, protocol| {
            let &Places { pod, stranger, virtual_ip, elsewhere, node } = places;
            for (entry, client) in [(Entry::World, stranger), (Entry::Pods, pod), (Entry::Node, node)] {
                for (port, target, by) in [(80, pod, Entry::Pods), (81, elsewhere, Entry::World)] {
                    let probe = Probe::new(entry, client, protocol, at(virtual_ip, port));
                    let fate = harness.send(&probe)?;
                    ensure!(fate.destination() == Some(at(target, 8080)), "{probe}: {fate}");
                    ensure!(matches!(fate.end, End::Left { by: way, .. } if way == by), "{probe}: {fate}");
                    let source = fate.source().context("no source")?;
                    if port == 81 {
                        ensure!(fate.is_masqueraded() && source.ip() == node, "{probe}: {fate}");
                    } else {
                        ensure!(!fate.is_masqueraded(), "{probe}: {fate}");
                    }
                    let reply = harness.reply(&probe, &fate)?;
                    ensure!(reply.source() == Some(at(virtual_ip, port)), "{probe}: {fate}; reply: {reply}");
                    ensure!(reply.destination() == Some(fate.sent_from), "{probe}: {fate}; reply: {reply}");
                }
            }
            Ok(())
        })
    })
}

#[test]
fn refusal_and_silence_differ() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let rules = |places: &Places| {
            let Places { elsewhere, node, .. } = places;
            let mut text = "*filter\n".to_owned();
            for chain in ["INPUT", "FORWARD", "OUTPUT"] {
                for address in [elsewhere, node] {
                    for protocol in ["tcp", "udp", "sctp"] {
                        writeln!(text, "-A {chain} -d {address} -p {protocol} --dport 80 -j REJECT")?;
                        writeln!(text, "-A {chain} -d {address} -p {protocol} --dport 81 -j DROP")?;
                    }
                }
            }
            Ok(text + "COMMIT\n")
        };
        let mut harness = harness(&record, rules)?;
        each(|places, protocol| {
            let &Places { pod, stranger, elsewhere, node, .. } = places;
            for (entry, source) in [(Entry::Pods, pod), (Entry::World, stranger), (Entry::Node, node)] {
                for to in [elsewhere, node] {
                    let refused = send(&mut harness, entry, source, protocol, at(to, 80))?;
                    ensure!(refused.is_rejected(), "{entry:?} to {to}: {refused}");
                    let answer = refused.answer.context("no answer")?;
                    ensure!(answer.complaint == Complaint::PortUnreachable, "{entry:?} to {to}: {refused}");
                    ensure!(answer.by == entry, "{entry:?} to {to}: {refused}");
                    let dropped = send(&mut harness, entry, source, protocol, at(to, 81))?;
                    ensure!(dropped.is_dropped(), "{entry:?} to {to}: {dropped}");
                }
            }
            Ok(())
        })
    })
}

#[test]
fn what_conntrack_calls_invalid_can_be_sent() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let rules = |_: &Places| {
            Ok("*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
                -A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
                .to_owned())
        };
        let mut harness = harness(&record, rules)?;
        each(|places, protocol| {
            let &Places { stranger, elsewhere, node, .. } = places;
            let to = at(elsewhere, 80);
            let probe = Probe::new(Entry::World, stranger, protocol, to);
            ensure!(harness.send(&probe)?.destination() == Some(to), "the first of a connection");
            let damaged = harness.send(&probe.clone().of(Kind::Damaged))?;
            ensure!(damaged.is_dropped(), "damaged: {damaged}");
            if protocol != Protocol::Udp {
                for probe in [probe, Probe::new(Entry::Node, node, protocol, to)] {
                    let stray = harness.send(&probe.clone().of(Kind::Stray))?;
                    ensure!(stray.is_dropped(), "stray: {stray}");
                }
            }
            Ok(())
        })
    })
}

#[test]
fn many_packets_are_told_apart_in_their_order() -> Result<()> {
    as_root(|| {
        let record = Record::open()?;
        let mut harness = harness(&record, |_| Ok(String::new()))?;
        let Places { pod, stranger, .. } = places(Family::V4)?;
        let port = |n: usize| u16::try_from(n % 60_000).map(|n| n + 1);
        let probe = |n: usize| Ok(Probe::new(Entry::World, stranger, Protocol::Udp, at(pod, port(n)?)));
        let probes: Vec<Probe> = (0..20_000).map(probe).collect::<Result<_>>()?;
        let fates = harness.send_all(&probes)?;
        ensure!(fates.len() == probes.len(), "{} fates", fates.len());
        for (probe, fate) in probes.iter().zip(&fates) {
            ensure!(fate.destination() == Some(probe.destination), "{probe}: {fate}");
        }
        Ok(())
    })
}

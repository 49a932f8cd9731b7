//! What the real tools print of rules that we wrote, and of rules that others did.
//!
//! The fixtures are the output of `iptables-save` 1.8.9, both variants, in a network namespace into which the document of
//! [`everything`](crate::golden::everything) and a few foreign rules had been restored.

use fairlead_compiler::{Dump, Host, Table, diff, parse, trace};
use fairlead_objects::Protocol;

use crate::{
    cluster::{packet, summary},
    golden::everything,
};

const FIXTURES: [(bool, &str); 4] = [
    (false, include_str!("../fixtures/save-nft-v4.txt")),
    (false, include_str!("../fixtures/save-legacy-v4.txt")),
    (true, include_str!("../fixtures/save-nft-v6.txt")),
    (true, include_str!("../fixtures/save-legacy-v6.txt")),
];

#[test]
fn what_real_tools_print_equals_what_was_rendered() {
    for (six, text) in FIXTURES {
        let ruleset = everything(six).compile();
        let installed = parse(text).unwrap();
        let delta = diff(&installed, &ruleset);
        assert!(delta.is_empty(), "{delta:#?}");
    }
}

#[test]
fn traces_through_the_installed_rules_are_those_through_the_compiled_ones() {
    for (six, text) in FIXTURES {
        let cluster = everything(six);
        let (installed, compiled) = (parse(text).unwrap(), Dump::from(&cluster.compile()));
        let host = Host::from(&cluster.facts);
        let client = if six { "2001:db8::99" } else { "192.168.7.7" };
        for (_, ports) in cluster.state.services() {
            for port in ports {
                let frontends =
                    port.external_ips.iter().chain(&port.load_balancer_ips).chain([&port.cluster_ip]);
                for address in frontends {
                    let packet = packet(port.protocol(), client, &address.to_string(), port.port, &host);
                    let (installed, compiled) =
                        (trace(&installed, &packet, &host), trace(&compiled, &packet, &host));
                    assert_eq!(summary(&installed), summary(&compiled), "{}", port.name);
                    assert_eq!(installed.shares, compiled.shares);
                }
            }
        }
    }
}

#[test]
fn foreign_rules_are_kept_in_the_dump() {
    for (_, text) in FIXTURES {
        let dump = parse(text).unwrap();
        let foreign = dump.chain(&Table::Filter, "FOREIGN").unwrap();
        let rendered: Vec<_> = foreign.rules.iter().map(ToString::to_string).collect();
        let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("-A FOREIGN ")).collect();
        assert_eq!(foreign.rules.len(), lines.len());
        assert!(rendered.iter().any(|rule| rule.contains("-m limit --limit 5/min")));
        assert!(
            rendered.iter().any(|rule| rule.contains("-j LOG --log-prefix \"a \\\"b\\\" \"")),
            "{rendered:?}"
        );
        assert!(rendered.iter().any(|rule| rule.contains("-m multiport --dports 80,443")));
    }
}

#[test]
fn edit_by_others_is_found_in_the_printed_rules() {
    let (six, text) = FIXTURES[0];
    let ruleset = everything(six).compile();
    for (find, replace) in [
        ("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n", ""),
        ("--probability 0.33333333349", "--probability 0.30000000000"),
        ("-A KUBE-FORWARD -m conntrack", "-A KUBE-FORWARD -j DROP\n-A KUBE-FORWARD -m conntrack"),
    ] {
        let damaged = text.replacen(find, replace, 1);
        assert_ne!(damaged, text);
        let delta = diff(&parse(&damaged).unwrap(), &ruleset);
        assert_eq!((delta.put.len(), delta.delete.len(), delta.hook.len()), (1, 0, 0), "{find}");
    }
    let unhooked = text.replacen("-A PREROUTING", "-A OUTPUT", 1);
    assert_eq!(diff(&parse(&unhooked).unwrap(), &ruleset).hook.len(), 1);
}

#[test]
fn counters_are_tolerated() {
    let text = "*nat\n:PREROUTING ACCEPT [12:34]\n:X - [0:0]\n[5:300] -A PREROUTING -p tcp -j X\nCOMMIT\n";
    let plain = "*nat\n:PREROUTING ACCEPT [0:0]\n:X - [0:0]\n-A PREROUTING -p tcp -j X\nCOMMIT\n";
    assert_eq!(parse(text), parse(plain));
}

#[test]
fn text_that_is_no_save_is_refused_with_its_line() {
    for (text, line) in [
        ("*nat\n:X - [0:0]\n", 2),
        ("-A X -j ACCEPT\n", 1),
        ("*nat\n*filter\nCOMMIT\n", 2),
        ("*nat\n-A X --comment \"open\nCOMMIT\n", 2),
        ("*nat\nnonsense\nCOMMIT\n", 2),
    ] {
        assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
    }
    assert!(parse("").unwrap().tables.is_empty());
}

#[test]
fn stale_chain_that_others_lead_to_is_emptied_and_not_deleted() {
    let (six, text) = FIXTURES[0];
    let ruleset = everything(six).compile();
    let stale = "KUBE-SVC-AAAAAAAAAAAAAAAA";
    let declared = text.replacen("*nat\n", &format!("*nat\n:{stale} - [0:0]\n"), 1);
    assert!(
        diff(&parse(&declared).unwrap(), &ruleset).delete.iter().any(|chain| chain.name.as_str() == stale)
    );
    let pinned = declared.replacen(
        "-A KUBE-MARK-MASQ",
        &format!(":CNI-X - [0:0]\n-A CNI-X -j {stale}\n-A {stale} -j RETURN\n-A KUBE-MARK-MASQ"),
        1,
    );
    let delta = diff(&parse(&pinned).unwrap(), &ruleset);
    assert!(delta.delete.is_empty());
    assert!(
        delta.put.iter().all(|(chain, content)| chain.name.as_str() == stale && content.rules.is_empty())
    );
    assert_eq!(delta.put.len(), 1);
    let emptied = pinned.replacen(&format!("-A {stale} -j RETURN\n"), "", 1);
    assert!(diff(&parse(&emptied).unwrap(), &ruleset).is_empty());
}

#[test]
fn protocol_without_ports_is_understood() {
    let dump = parse(
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp -j DNAT --to-destination 10.0.0.1:53\nCOMMIT\n",
    );
    let host = Host::default();
    let packet = packet(Protocol::Udp, "203.0.113.1", "198.51.100.1", 99, &host);
    assert_eq!(summary(&trace(&dump.unwrap(), &packet, &host)).0, "10.0.0.1:53");
}

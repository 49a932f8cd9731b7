//! What other programs, and other modes of kube-proxy, have on a node: the leftovers of those modes go, and everything of
//! others stays byte for byte, from our start to the removal of our rules.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    io::{self, Write},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use fairlead_objects::{Family, builders};
use fairlead_programmer::{
    cleanup,
    feed::Change,
    leftovers::{self, ipvs},
    netfilter::{Netfilter, Variant, counters, detect},
    netlink::{Request, Socket},
};
use serde_json::json;

mod namespace;
mod node;

use namespace::{in_namespace, shell};
use node::{FAMILIES, Node, VARIANTS, program, until};

/// Applies a document with the program that others use.
fn load(tool: &str, document: &str) {
    let mut child =
        Command::new(format!("{tool}-restore")).arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(document.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{document}");
}

/// All tables, each under its name, in the order of their names, without what changes by itself.
fn saved(tool: &str) -> String {
    let tables = shell(&format!("for table in filter mangle nat; do {tool}-save -t $table; done"));
    let lines = tables.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap().to_owned() + "\n").collect()
}

fn changes(family: Family) -> Vec<Change> {
    let (ip, endpoint) = match family {
        Family::V4 => ("10.96.0.1", "10.0.0.1"),
        Family::V6 => ("fd00:96::1", "fd00:10::1"),
    };
    let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}]);
    let spec = json!({"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family.as_str()],
                      "ports": ports});
    let mut slice = builders::slice("a", "a", 8080, &[(endpoint, "node-a", true)]);
    slice.address_type = serde_json::from_value(family.as_str().into()).unwrap();
    vec![Change::Service(Arc::new(builders::service("a", spec))), Change::Slice(Arc::new(slice))]
}

fn program_output(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead-programmer")).args(arguments).output().unwrap()
}

/// Makes a set of addresses and ports over netlink, as `ipset create` does. An error if there is one of that name.
fn make_set(family: Family, name: &str) -> io::Result<()> {
    const CREATE: u16 = 0x602;
    const NESTED: u16 = 1 << 15;
    let number = if family == Family::V4 { 2 } else { 10 };
    let text = |text: &str| [text.as_bytes(), &[0]].concat();
    let request = Request::new(CREATE, &[number, 0, 0, 0]).exclusive();
    let request = request.with(1, &[6]).with(2, &text(name)).with(3, &text("hash:ip,port"));
    let request = request.with(4, &[1]).with(5, &[number]).with(7 | NESTED, &[]);
    Socket::netfilter()?.command(&request)
}

/// Chains, rules and sets as kube-proxy's mode ipvs leaves them.
fn leave_ipvs(family: Family, tool: &str) {
    let prefix = if family == Family::V4 { "KUBE-" } else { "KUBE-6-" };
    for set in ["CLUSTER-IP", "LOAD-BALANCER", "IPVS-IPS", "HEALTH-CHECK-NODE-PORT"] {
        make_set(family, &format!("{prefix}{set}")).unwrap();
    }
    let chains = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
        :KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n\
        -I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
        -A KUBE-SERVICES -m set --match-set PREFIX-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER\n\
        -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\n\
        -A KUBE-SERVICES -m set --match-set PREFIX-CLUSTER-IP dst,dst -j ACCEPT\n\
        -A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n\
        *filter\n:KUBE-FORWARD - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
        :KUBE-SOURCE-RANGES-FIREWALL - [0:0]\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-IPVS-OUT-FILTER - [0:0]\n\
        -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
        -I INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT\n\
        -I INPUT -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL\n\
        -I FORWARD -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL\n\
        -I INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER\n\
        -I OUTPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-OUT-FILTER\n\
        -A KUBE-NODE-PORT -m set --match-set PREFIX-HEALTH-CHECK-NODE-PORT dst,dst -j ACCEPT\n\
        -A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL\n-A KUBE-SOURCE-RANGES-FIREWALL -j DROP\n\
        -A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set PREFIX-IPVS-IPS dst,dst -j REJECT\n\
        -A KUBE-IPVS-OUT-FILTER -j RETURN\nCOMMIT\n";
    load(tool, &chains.replace("PREFIX-", prefix));
}

#[test]
fn leftovers_of_mode_ipvs_go_and_our_rules_stay() {
    in_namespace("leftovers_of_mode_ipvs_go_and_our_rules_stay", async || {
        for family in FAMILIES {
            make_set(family, &format!("MINE-{family}")).unwrap();
            for variant in VARIANTS {
                let tool = program(family, variant);
                let node = Node::start(family, variant, changes(family)).await;
                let expected = saved(&tool);
                node.remove(variant).await;
                leave_ipvs(family, &tool);
                let node = Node::start(family, variant, changes(family)).await;
                assert_ne!(saved(&tool), expected);
                let netfilter = detect(family, Some(variant)).await.unwrap();
                assert_eq!(leftovers::remove_ipvs(&[(family, netfilter)]).await, 0, "{tool}");
                until("our rules as on a node without leftovers", || {
                    sorted(&saved(&tool)) == sorted(&expected)
                })
                .await;
                assert_eq!(ipvs::destroy_sets().unwrap(), 0);
                node.remove(variant).await;
            }
            assert_eq!(
                make_set(family, &format!("MINE-{family}")).unwrap_err().raw_os_error(),
                Some(libc::EEXIST)
            );
        }
    });
}

/// Jumps stand in another order where some were there before.
fn sorted(saved: &str) -> Vec<&str> {
    let mut lines: Vec<_> = saved.lines().collect();
    lines.sort_unstable();
    lines
}

/// (This kernel may have neither ip_vs nor dummy interfaces, so an interface of another kind stands in.)
#[test]
fn interface_of_mode_ipvs_goes_if_it_is_of_the_right_kind() {
    in_namespace("interface_of_mode_ipvs_goes_if_it_is_of_the_right_kind", async || {
        assert!(!ipvs::remove_servers_and(ipvs::DEVICE).unwrap());
        shell("ip link add kube-ipvs0 type veth peer name kube-ipvs1; ip link add kube-ipvs0x type bridge");
        let error = ipvs::remove_servers_and(ipvs::DEVICE).unwrap_err();
        assert!(matches!(error, ipvs::IpvsError::Foreign { .. }), "{error}");
        assert!(shell("ip link").contains("kube-ipvs0@"));
        assert!(ipvs::remove_servers_and(ipvs::Device { kind: "veth", ..ipvs::DEVICE }).unwrap());
        let left = shell("ip link");
        assert!(!left.contains("kube-ipvs0@") && left.contains("kube-ipvs0x"), "{left}");
    });
}

/// What Docker, kubelet and a network plugin have, before we come.
fn leave_others(family: Family, tool: &str) {
    let (bridge, pods, loopback) = match family {
        Family::V4 => ("172.17.0.0/16", "10.0.0.0/8", "127.0.0.0/8"),
        Family::V6 => ("fd00:17::/64", "fd00:10::/64", "::1/128"),
    };
    let document = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
        *nat\n:DOCKER - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-0123456789abcdef01234 - [0:0]\n\
        :KUBE-KUBELET-CANARY - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-SVC-OF-SOMEBODY - [0:0]\n:OUTPUT_direct - [0:0]\n\
        -X KUBE-SVC-OF-SOMEBODY\n\
        -A OUTPUT -j OUTPUT_direct\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
        -A OUTPUT ! -d LOOPBACK -m addrtype --dst-type LOCAL -j DOCKER\n\
        -A POSTROUTING -s BRIDGE ! -o docker0 -j MASQUERADE\n\
        -A DOCKER -i docker0 -j RETURN\n\
        -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"x\\\" id: \\\"1\\\"\" -m multiport --dports 8080 -j CNI-DN-0123456789abcdef01234\n\
        -A CNI-DN-0123456789abcdef01234 -s PODS -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ\nCOMMIT\n\
        *filter\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
        :INPUT_direct - [0:0]\n:KUBE-NWPLCY-0123456789ABCDEF - [0:0]\n\
        -A INPUT -j INPUT_direct\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n-A FORWARD -j DOCKER-USER\n\
        -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A FORWARD -o docker0 -j DOCKER\n-A FORWARD -s PODS -j KUBE-NWPLCY-0123456789ABCDEF\n-A FORWARD -j LOG --log-prefix \"dropped: \"\n\
        -A DOCKER-USER -j RETURN\n\
        -A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d LOOPBACK ! -s LOOPBACK -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n\
        -A KUBE-NWPLCY-0123456789ABCDEF -m mark --mark 0x20000/0x20000 -j RETURN\nCOMMIT\n";
    load(tool, &document.replace("BRIDGE", bridge).replace("PODS", pods).replace("LOOPBACK", loopback));
    shell(&format!("{tool} -w 5 -P FORWARD DROP"));
}

/// As firewalld has its own tables, beside those of iptables.
const FIREWALLD: &str = "table inet firewalld {
    set zones {
        type ifname
        elements = { \"eth0\", \"eth1\" }
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        iifname \"lo\" accept
    }
}";

/// Whether all lines of `part` are in `whole`, in their order.
fn assert_within(part: &str, whole: &str, when: &str) {
    let mut lines = whole.lines();
    for line in part.lines() {
        assert!(lines.any(|other| other == line), "{when}: {line} is gone, or elsewhere, in\n{whole}");
    }
}

#[test]
fn what_others_have_stays_as_it_is_from_our_start_to_our_end() {
    in_namespace("what_others_have_stays_as_it_is_from_our_start_to_our_end", async || {
        shell(&format!("nft '{FIREWALLD}'"));
        let firewalld = shell("nft -a list table inet firewalld");
        for family in FAMILIES {
            for variant in VARIANTS {
                let tool = program(family, variant);
                leave_others(family, &tool);
                let before = saved(&tool);
                let node = Node::start(family, variant, changes(family)).await;
                let during = saved(&tool);
                assert_within(&before, &during, "started");
                shell(&format!(
                    "{tool} -w 5 -t nat -F KUBE-POSTROUTING; {tool} -w 5 -D FORWARD -j DOCKER-USER"
                ));
                let healed = during.replace("-A FORWARD -j DOCKER-USER\n", "");
                until("our rules, and no others", || saved(&tool) == healed).await;
                shell(&format!("{tool} -w 5 -A FORWARD -j DOCKER-USER"));
                let before = before.replace("-A FORWARD -j DOCKER-USER\n", "");
                let last = "-A FORWARD -j LOG --log-prefix \"dropped: \"\n";
                let before = before.replace(last, &format!("{last}-A FORWARD -j DOCKER-USER\n"));
                node.stop().await;
                let errors = cleanup::clean(&detect(family, Some(variant)).await.unwrap()).await;
                // A chain that a network plugin still uses is emptied, and reported.
                assert_eq!(errors.len(), 1, "{errors:?}");
                assert!(errors[0].to_string().contains("KUBE-MARK-MASQ"), "{}", errors[0]);
                assert_eq!(saved(&tool), before, "{tool}");
            }
        }
        assert_eq!(shell("nft -a list table inet firewalld"), firewalld);
    });
}

#[test]
fn cleanup_removes_what_every_mode_left_and_nothing_of_others() {
    in_namespace("cleanup_removes_what_every_mode_left_and_nothing_of_others", async || {
        for family in FAMILIES {
            make_set(family, &format!("MINE-{family}")).unwrap();
        }
        for variant in VARIANTS {
            let mut kept = Vec::new();
            for family in FAMILIES {
                let tool = program(family, variant);
                let mine = "*nat\n:MINE - [0:0]\n-A MINE -j ACCEPT\n-A POSTROUTING -j MINE\nCOMMIT\n";
                load(&tool, mine);
                load(
                    &tool,
                    &format!(
                        "*filter\n:MINE - [0:0]\n-A MINE -m set --match-set MINE-{family} dst,dst\nCOMMIT\n"
                    ),
                );
                shell(&format!("{tool} -w 5 -t mangle -N KUBE-IPTABLES-HINT || true"));
                kept.push((tool.clone(), saved(&tool)));
                leave_ipvs(family, &tool);
                let node = Node::start(family, variant, changes(family)).await;
                node.stop().await;
            }
            for family in ["ip", "ip6"] {
                shell(&format!(
                    "nft add table {family} kube-proxy; nft add chain {family} kube-proxy services"
                ));
            }
            let output = program_output(&["--cleanup"]);
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{variant}: {log}");
            for (tool, before) in kept {
                let after = saved(&tool);
                let firewall = |line: &&str| !line.contains("KUBE-FIREWALL");
                assert_eq!(
                    after.lines().filter(firewall).collect::<Vec<_>>(),
                    before.lines().collect::<Vec<_>>()
                );
                shell(&format!(
                    "{tool} -w 5 -F; {tool} -w 5 -X; {tool} -w 5 -t nat -F; {tool} -w 5 -t nat -X"
                ));
            }
            assert!(!shell("nft list tables").contains("kube-proxy"));
            assert_eq!(ipvs::destroy_sets().unwrap(), 0);
            assert_eq!(counters::packets().unwrap(), []);
            let again = program_output(&["--cleanup"]);
            assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        }
        for family in FAMILIES {
            assert_eq!(
                make_set(family, &format!("MINE-{family}")).unwrap_err().raw_os_error(),
                Some(libc::EEXIST)
            );
        }
    });
}

#[test]
fn kubelets_chains_of_either_family_decide_the_variant_of_both() {
    in_namespace("kubelets_chains_of_either_family_decide_the_variant_of_both", async || {
        let variants = async || {
            let mut found = Vec::new();
            for family in FAMILIES {
                found.push(detect(family, None).await.unwrap().variant());
            }
            found
        };
        assert_eq!(variants().await, [Variant::Nft; 2]);
        shell("ip6tables-legacy -w 5 -A INPUT -j ACCEPT");
        assert_eq!(variants().await, [Variant::Legacy; 2]);
        shell("iptables-nft -w 5 -A INPUT -j ACCEPT");
        assert_eq!(variants().await, [Variant::Nft; 2]);
        shell("ip6tables-legacy -w 5 -t mangle -N KUBE-KUBELET-CANARY");
        assert_eq!(variants().await, [Variant::Legacy; 2]);
        // The wrapper looks for it in mangle only.
        shell("iptables-nft -w 5 -t nat -N KUBE-KUBELET-CANARY");
        assert_eq!(variants().await, [Variant::Legacy; 2]);
        shell("ip6tables-nft -w 5 -t mangle -N KUBE-IPTABLES-HINT");
        assert_eq!(variants().await, [Variant::Nft; 2]);
    });
}

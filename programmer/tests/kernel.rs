//! The node agent's packet-filter work against a real kernel and the real iptables programs.
//!
//! Each test runs itself again in a network namespace of its own (`unshare -n`), which dies with it: nothing outside
//! is ever touched, and nothing is left behind.
//!
//! Needs root, `unshare` and the iptables programs. Without them a test says so and passes, except with `CI=true`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    io::Write,
    net::IpAddr,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use fairlead_compiler::{Config, NodeFacts, ProxyState, Rulebook};
use fairlead_objects::{Family, NodeName, builders};
use fairlead_programmer::{
    cleanup,
    engine::{Engine, Report},
    interfaces, leftovers,
    netfilter::{Feature, Features, Netfilter, Tool, Variant, detect},
    netlink::{Request, Socket},
    sysctl,
};
use serde_json::json;

mod namespace;

use namespace::{in_namespace, shell};

/// Applies a document with the plain program, as another program on the host would.
fn load(tool: &str, document: &str) {
    let mut child =
        Command::new(format!("{tool}-restore")).arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(document.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{document}");
}

/// Chains and rules without what changes by itself.
fn saved(tool: &str) -> Vec<String> {
    let text = shell(&format!("{tool}-save"));
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap().to_owned())
        .collect()
}

fn rulebook(state: &ProxyState, features: Features) -> Rulebook {
    let facts = NodeFacts {
        name: NodeName::new("node-a"),
        zone: None,
        node_ip: IpAddr::from([192, 168, 0, 2]),
        addresses: Vec::new(),
        family: Family::V4,
    };
    let config = features.limit(Config::default());
    let mut rulebook = Rulebook::new(config, facts);
    rulebook.refresh(state, &state.services().map(|(key, _)| key.clone()).collect());
    rulebook
}

/// `count` Services of type NodePort with two endpoints each, as many with a cluster IP only, the first of them with a
/// hundred endpoints, and one without endpoints.
fn state(count: u32) -> ProxyState {
    let mut state = ProxyState::new(Family::V4);
    for number in 0..count {
        let ip = format!("10.96.{}.{}", number / 250, number % 250 + 1);
        let port = json!({"port": 80, "protocol": "TCP", "nodePort": 30_000 + number});
        let spec = json!({"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "ports": [port]});
        state.set_service(&builders::service(&format!("svc-{number}"), spec));
        set_endpoints(&mut state, number, &["10.0.0.1", "10.0.0.2"]);
        let plain = number + count;
        let ip = format!("10.98.{}.{}", number / 250, number % 250 + 1);
        state.set_service(&builders::service(
            &format!("svc-{plain}"),
            json!({"clusterIP": ip, "clusterIPs": [ip]}),
        ));
        set_endpoints(&mut state, plain, &["10.0.0.1", "10.0.0.2"]);
    }
    let many: Vec<String> = (1..=100).map(|n| format!("10.0.9.{n}")).collect();
    set_endpoints(&mut state, count, &many.iter().map(String::as_str).collect::<Vec<_>>());
    state.set_service(&builders::service(
        "empty",
        json!({"clusterIP": "10.97.0.1", "clusterIPs": ["10.97.0.1"]}),
    ));
    drop(state.take_dirty());
    state
}

fn set_endpoints(state: &mut ProxyState, number: u32, addresses: &[&str]) {
    let endpoints: Vec<_> = addresses.iter().map(|ip| (*ip, "node-a", true)).collect();
    state.set_slice(&builders::slice(&format!("s-{number}"), &format!("svc-{number}"), 8080, &endpoints));
}

/// An agent's engine as it is after a start.
async fn start(variant: Variant, state: &ProxyState) -> (Engine<Tool>, Report) {
    let tool = detect(Family::V4, Some(variant)).await.unwrap();
    let features = Features::probe(&tool).await;
    let mut engine = Engine::new(Arc::new(tool), rulebook(state, features));
    let report = engine.full().await.unwrap();
    (engine, report)
}

const VARIANTS: [(Variant, &str); 2] = [(Variant::Nft, "iptables-nft"), (Variant::Legacy, "iptables-legacy")];

#[test]
fn second_start_writes_nothing() {
    in_namespace("second_start_writes_nothing", async || {
        for (variant, tool) in VARIANTS {
            let state = state(50);
            let (_, first) = start(variant, &state).await;
            assert!(first.chains > 50 && first.jumps > 0, "{first:?}");
            let before = saved(tool);
            let (_, second) = start(variant, &state).await;
            assert_eq!(second, Report::default(), "{variant}");
            assert_eq!(saved(tool), before);
        }
    });
}

#[test]
fn start_on_dirty_tables_removes_stale_chains_and_keeps_foreign_rules() {
    in_namespace("start_on_dirty_tables_removes_stale_chains_and_keeps_foreign_rules", async || {
        for (variant, tool) in VARIANTS {
            load(
                tool,
                "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-STALESTALESTALE0 - [0:0]\n:MINE - [0:0]\n\
                 -A KUBE-SERVICES -d 10.96.9.9/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-STALESTALESTALE0\n\
                 -A KUBE-SVC-STALESTALESTALE0 -p tcp -j DNAT --to-destination 10.0.9.9:80\n\
                 -A MINE -s 10.0.0.0/8 -j ACCEPT\n-A PREROUTING -j MINE\nCOMMIT\n\
                 *filter\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -d 10.96.8.8/32 -j DROP\nCOMMIT\n",
            );
            start(variant, &state(3)).await;
            let saved = saved(tool).join("\n");
            for stale in ["STALE", "10.96.9.9", "10.96.8.8"] {
                assert!(!saved.contains(stale), "{variant}: {saved}");
            }
            assert!(
                saved.contains("-A MINE -s 10.0.0.0/8 -j ACCEPT") && saved.contains("-A PREROUTING -j MINE")
            );
            let (_, again) = start(variant, &state(3)).await;
            assert_eq!(again, Report::default(), "{variant}");
        }
    });
}

#[test]
fn damaged_rules_are_repaired_and_others_are_not_rewritten() {
    in_namespace("damaged_rules_are_repaired_and_others_are_not_rewritten", async || {
        for (variant, tool) in VARIANTS {
            let (mut engine, _) = start(variant, &state(20)).await;
            let before = saved(tool);
            shell(&format!("{tool} -w 5 -t nat -F KUBE-POSTROUTING; {tool} -w 5 -D FORWARD 1"));
            let report = engine.full().await.unwrap();
            assert_eq!((report.chains, report.jumps, report.deleted), (1, 1, 0), "{variant}: {report:?}");
            assert_eq!(saved(tool), before, "{variant}");
        }
    });
}

#[test]
fn partial_sync_ends_at_what_a_fresh_start_writes() {
    in_namespace("partial_sync_ends_at_what_a_fresh_start_writes", async || {
        for (variant, _) in VARIANTS {
            let mut state = state(40);
            let (mut engine, _) = start(variant, &state).await;
            set_endpoints(&mut state, 3, &["10.0.0.7", "10.0.0.8", "10.0.0.9"]);
            set_endpoints(&mut state, 4, &[]);
            let fewer: Vec<String> = (2..=90).map(|n| format!("10.0.9.{n}")).collect();
            set_endpoints(&mut state, 40, &fewer.iter().map(String::as_str).collect::<Vec<_>>());
            set_endpoints(&mut state, 47, &["10.0.0.7"]);
            state.remove_service(&fairlead_objects::ServiceKey::new("default", "svc-5"));
            let dirty = state.take_dirty();
            engine.rulebook.refresh(&state, &dirty);
            let report = engine.partial().await.unwrap();
            assert_eq!(report.documents, 1, "{variant}");
            let (_, fresh) = start(variant, &state).await;
            assert_eq!(fresh, Report::default(), "{variant}");
        }
    });
}

#[test]
fn large_load_in_parts_ends_at_the_whole_ruleset() {
    in_namespace("large_load_in_parts_ends_at_the_whole_ruleset", async || {
        let state = state(1500);
        let (_, first) = start(Variant::Nft, &state).await;
        assert!(first.documents > 2, "{first:?}");
        let (_, second) = start(Variant::Nft, &state).await;
        assert_eq!(second, Report::default());
    });
}

#[test]
fn outside_flush_is_seen_and_repaired() {
    in_namespace("outside_flush_is_seen_and_repaired", async || {
        for (variant, tool) in VARIANTS {
            let (mut engine, _) = start(variant, &state(5)).await;
            let before = saved(tool);
            assert!(!engine.flushed().await.unwrap(), "{variant}");
            for table in ["mangle", "nat", "filter"] {
                shell(&format!("{tool} -w 5 -t {table} -F; {tool} -w 5 -t {table} -X"));
            }
            assert!(engine.flushed().await.unwrap(), "{variant}");
            engine.full().await.unwrap();
            let mut after = saved(tool);
            let mut before = before;
            // Tables print in the order in which they were made.
            before.sort();
            after.sort();
            assert_eq!(after, before, "{variant}");
        }
    });
}

#[test]
fn refused_document_names_its_line_and_changes_nothing() {
    in_namespace("refused_document_names_its_line_and_changes_nothing", async || {
        for (variant, tool) in VARIANTS {
            let netfilter = detect(Family::V4, Some(variant)).await.unwrap();
            let before = saved(tool);
            let document =
                "*nat\n:KUBE-SVC-X - [0:0]\n-A KUBE-SVC-X -p tcp --dport 99999 -j RETURN\nCOMMIT\n";
            let error = netfilter.restore(document).await.unwrap_err().to_string();
            assert!(error.contains("3: -A KUBE-SVC-X"), "{variant}: {error}");
            assert!(!saved(tool).join("\n").contains("KUBE-SVC-X"), "{variant}");
            assert!(variant == Variant::Legacy || saved(tool) == before);
        }
    });
}

#[test]
fn probing_finds_what_this_kernel_has_and_leaves_nothing() {
    in_namespace("probing_finds_what_this_kernel_has_and_leaves_nothing", async || {
        for (variant, tool) in VARIANTS {
            let netfilter = detect(Family::V4, Some(variant)).await.unwrap();
            let features = Features::probe(&netfilter).await;
            assert!(features.has(Feature::RandomFully), "{variant}: {features:?}");
            assert!(!saved(tool).join("\n").contains("KUBE-SVC"), "{variant}");
        }
    });
}

#[test]
fn variant_follows_the_rules_that_are_there() {
    in_namespace("variant_follows_the_rules_that_are_there", async || {
        assert_eq!(detect(Family::V4, None).await.unwrap().variant(), Variant::Nft);
        shell("iptables-legacy -w 5 -A INPUT -j ACCEPT");
        assert_eq!(detect(Family::V4, None).await.unwrap().variant(), Variant::Legacy);
        shell("iptables-nft -w 5 -t mangle -N KUBE-IPTABLES-HINT");
        assert_eq!(detect(Family::V4, None).await.unwrap().variant(), Variant::Nft);
    });
}

/// Runs the program itself.
fn program(arguments: &[&str], path: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-programmer"));
    command.args(arguments);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.output().unwrap()
}

const FOREIGN: &str = "*nat\n:MINE - [0:0]\n-A MINE -j ACCEPT\n-A POSTROUTING -j MINE\nCOMMIT\n\
    *mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n*filter\n:MINE - [0:0]\n-A MINE -j DROP\n-A INPUT -j MINE\nCOMMIT\n";

#[test]
fn cleanup_removes_all_of_ours_and_nothing_else() {
    in_namespace("cleanup_removes_all_of_ours_and_nothing_else", async || {
        for (variant, tool) in VARIANTS {
            load(tool, FOREIGN);
            let before = saved(tool);
            start(variant, &state(30)).await;
            let output = program(&["--cleanup"], None);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let after = saved(tool);
            let left: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
            assert!(left.iter().all(|line| line.contains("KUBE-FIREWALL")), "{variant}: {left:?}");
            let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
            assert!(lost.is_empty(), "{variant}: {lost:?}");
        }
    });
}

#[test]
fn cleanup_reports_chains_that_others_use() {
    in_namespace("cleanup_reports_chains_that_others_use", async || {
        start(Variant::Nft, &state(3)).await;
        load(
            "iptables-nft",
            "*nat\n:CNI-HOSTPORT - [0:0]\n-A CNI-HOSTPORT -s 10.0.0.0/8 -j KUBE-MARK-MASQ\nCOMMIT\n",
        );
        let netfilter = detect(Family::V4, Some(Variant::Nft)).await.unwrap();
        let errors = cleanup::clean(&netfilter).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().contains("KUBE-MARK-MASQ"), "{}", errors[0]);
        let saved = saved("iptables-nft").join("\n");
        assert!(
            saved.contains("-A CNI-HOSTPORT -s 10.0.0.0/8 -j KUBE-MARK-MASQ")
                && !saved.contains("KUBE-SERVICES")
        );
        let output = program(&["--cleanup"], None);
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn missing_programs_are_one_clear_line() {
    in_namespace("missing_programs_are_one_clear_line", async || {
        let output = program(&["--master", "http://127.0.0.1:1"], Some("/nonexistent"));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("iptables-restore is not in PATH"), "{text}");
    });
}

#[test]
fn missing_capability_is_one_clear_line() {
    in_namespace("missing_capability_is_one_clear_line", async || {
        let binary = env!("CARGO_BIN_EXE_fairlead-programmer");
        let output = Command::new("setpriv")
            .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", binary])
            .args(["--master", "http://127.0.0.1:1"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("CAP_NET_ADMIN is missing"), "{text}");
    });
}

#[test]
fn bad_flags_are_all_reported_with_exit_code_two() {
    in_namespace("bad_flags_are_all_reported_with_exit_code_two", async || {
        let output = program(&["--iptables-masquerade-bit=99", "--cluster-cidr=x"], None);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 2), "{text}");
    });
}

#[test]
fn addresses_of_interfaces_are_those_of_this_namespace() {
    in_namespace("addresses_of_interfaces_are_those_of_this_namespace", async || {
        assert!(interfaces::addresses(Family::V4).unwrap().is_empty());
        shell(
            "ip link add veth0 type veth peer name veth1; ip addr add 192.168.99.11/24 dev veth0; ip addr add fd00::7/64 dev veth0 nodad",
        );
        assert_eq!(interfaces::addresses(Family::V4).unwrap(), ["192.168.99.11/24".parse().unwrap()]);
        assert_eq!(interfaces::addresses(Family::V6).unwrap(), ["fd00::7/64".parse().unwrap()]);
    });
}

#[test]
fn route_localnet_is_switched_on_once() {
    in_namespace("route_localnet_is_switched_on_once", async || {
        // A new namespace starts with the value of the first one.
        shell("echo 0 > /proc/sys/net/ipv4/conf/all/route_localnet");
        assert!(sysctl::enable_route_localnet().unwrap());
        assert!(!sysctl::enable_route_localnet().unwrap());
        assert_eq!(shell("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "1");
    });
}

#[test]
fn table_of_mode_nftables_is_removed_and_others_stay() {
    in_namespace("table_of_mode_nftables_is_removed_and_others_stay", async || {
        const NEW_TABLE: u16 = 0xa00;
        shell("iptables-nft -A INPUT -j ACCEPT");
        let before = saved("iptables-nft");
        for (family, number) in [(Family::V4, 2), (Family::V6, 10)] {
            assert!(!leftovers::nftables::remove_table(family).unwrap());
            let request = Request::new(NEW_TABLE, &[number, 0, 0, 0]).with(1, b"kube-proxy\0");
            Socket::netfilter().unwrap().transaction(10, &request).unwrap();
        }
        assert!(leftovers::nftables::remove_table(Family::V4).unwrap());
        assert!(!leftovers::nftables::remove_table(Family::V4).unwrap());
        assert!(leftovers::nftables::remove_table(Family::V6).unwrap());
        assert_eq!(saved("iptables-nft"), before);
    });
}

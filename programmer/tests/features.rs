//! Kernels that lack something: it is found out at start, and Services are served without. The real programs are made to
//! refuse rules with one match or target, as they do where the kernel was built without it.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    reason = "helpers of tests are tests, too"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use fairlead_daemon::metrics::Metrics as Registry;
use fairlead_objects::{Family, ServiceKey, builders};
use fairlead_programmer::{
    events::Subject,
    feed::Change,
    netfilter::{self, Feature, Features, Netfilter, Variant, counters, detect},
    sysctl,
};
use serde_json::{Value, json};

mod namespace;
mod node;
mod programs;

use namespace::{in_namespace, shell};
use node::{FAMILIES, Node, VARIANTS, address, program};
use programs::with_programs;

/// The features that go with each text, and the texts that no rule may hold then.
const REFUSALS: [(&str, &[Feature]); 11] = [
    ("-m bpf", &[Feature::Bpf]),
    ("-m recent", &[Feature::Recent]),
    ("-m statistic", &[Feature::Statistic]),
    ("-m nfacct", &[Feature::Nfacct]),
    ("--random-fully", &[Feature::RandomFully]),
    ("-m comment", &[Feature::Comment]),
    ("-m conntrack", &[Feature::Bpf, Feature::Conntrack]),
    ("-m mark\n-j MARK", &[Feature::Mark]),
    ("-m addrtype", &[Feature::AddressType]),
    ("-j REJECT", &[Feature::Reject]),
    ("-j MASQUERADE", &[Feature::RandomFully, Feature::Masquerade]),
];

/// Addresses of one family: two endpoints, cluster IPs with endpoints, with affinity, without endpoints.
struct Addresses {
    endpoints: [&'static str; 2],
    plain: &'static str,
    affine: &'static str,
    empty: &'static str,
}

fn addresses(family: Family) -> Addresses {
    match family {
        Family::V4 => Addresses {
            endpoints: ["10.0.0.1", "10.0.0.2"],
            plain: "10.96.0.1",
            affine: "10.96.0.2",
            empty: "10.96.0.3",
        },
        Family::V6 => Addresses {
            endpoints: ["fd00:10::1", "fd00:10::2"],
            plain: "fd00:96::1",
            affine: "fd00:96::2",
            empty: "fd00:96::3",
        },
    }
}

/// A host that has the endpoints itself, and answers there with their addresses.
fn host(family: Family) {
    let Addresses { endpoints, .. } = addresses(family);
    let own = [address(family), endpoints[0], endpoints[1]];
    let (v6, net, nodad) = match family {
        Family::V4 => ("", "10.96.0.0/16", ""),
        Family::V6 => ("-6", "fd00:96::/32", " nodad"),
    };
    shell("ip link set lo up");
    for ip in own {
        shell(&format!("ip {v6} addr add {ip} dev lo{nodad}"));
    }
    // A way out, so that the host finds a route before the destination is rewritten.
    shell(
        "ip link show out0 || { ip link add out0 type veth peer name out1; ip link set out0 up; ip link set out1 up; }",
    );
    shell(&format!("ip {v6} route add {net} dev out0 src {}", address(family)));
    for ip in endpoints {
        let listener = TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), 8080)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream.and_then(|mut stream| stream.write_all(ip.as_bytes())));
            }
        });
    }
}

/// Who answers.
fn ask(ip: &str, port: u16) -> io::Result<String> {
    let to = SocketAddr::new(ip.parse().map_err(io::Error::other)?, port);
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(700))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn changes(family: Family) -> Vec<Change> {
    let Addresses { endpoints, plain, affine, empty } = addresses(family);
    let service = |name: &str, ip: &str, spec: Value| {
        let mut all = json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family.as_str()]});
        builders::merge(&mut all, spec);
        Change::Service(Arc::new(builders::service(name, all)))
    };
    let slice = |name: &str| {
        let endpoints = endpoints.map(|ip| (ip, "node-a", true));
        let mut slice = builders::slice(name, name, 8080, &endpoints);
        slice.address_type = serde_json::from_value(family.as_str().into()).unwrap();
        Change::Slice(Arc::new(slice))
    };
    let node_port =
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    let affinity = json!({"sessionAffinity": "ClientIP",
                          "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}});
    vec![
        service("plain", plain, node_port),
        service("affine", affine, affinity),
        service("empty", empty, json!({})),
        slice("plain"),
        slice("affine"),
    ]
}

/// Whom connections reach, from low and from high ports.
fn reached(ip: &str, port: u16) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    for range in ["33000 34000", "60000 60999"] {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        let answer = || ask(ip, port).unwrap_or_else(|error| panic!("{ip}:{port}: {error}"));
        reached.extend(std::iter::repeat_with(answer).take(15));
    }
    reached
}

/// The Services work as well as they can without `missing`.
fn assert_served(family: Family, missing: &[Feature], text: &str) {
    let Addresses { endpoints, plain, affine, empty } = addresses(family);
    let all = endpoints.map(str::to_owned).into();
    assert_eq!(reached(plain, 80), all, "{family}, {text}: not all endpoints of a cluster IP");
    assert_eq!(reached(address(family), 30080), all, "{family}, {text}: not all endpoints of a node port");
    let kept = reached(affine, 80).len();
    let expected = if missing.contains(&Feature::Recent) { 2 } else { 1 };
    assert_eq!(kept, expected, "{family}, {text}: endpoints of a Service with affinity");
    let refusal = ask(empty, 80).unwrap_err().kind();
    let expected = if missing.contains(&Feature::Reject) {
        io::ErrorKind::TimedOut
    } else {
        io::ErrorKind::ConnectionRefused
    };
    assert_eq!(refusal, expected, "{family}, {text}: no endpoints");
}

/// Starts on a kernel that refuses `text`, and looks at what is written and who answers.
async fn assert_does_without(family: Family, variant: Variant, text: &str, missing: &[Feature]) {
    let tool = detect(family, Some(variant)).await.unwrap();
    let found = Features::probe(&tool).await;
    assert_eq!(found.missing().collect::<Vec<_>>(), missing, "{family} {variant}: {text}");
    let mut node = Node::start(family, variant, changes(family)).await;
    let saved = tool.save_all().await.unwrap();
    assert!(!saved.contains("PROBE"), "{family} {variant}: {saved}");
    for text in text.lines() {
        assert!(!saved.contains(text), "{family} {variant}: {text} in\n{saved}");
    }
    assert_eq!(node.failures(), 0, "{family} {variant}: {text}");
    assert_served(family, missing, text);
    let notices: Vec<_> = std::iter::from_fn(|| node.notices.try_recv().ok()).collect();
    let told: Vec<_> = notices.iter().map(|notice| (&notice.subject, notice.reason)).collect();
    let affine = Subject::Service(ServiceKey::new("default", "affine"));
    let expected =
        if missing.contains(&Feature::Recent) { vec![(&affine, "SessionAffinityIgnored")] } else { vec![] };
    assert_eq!(told, expected, "{family} {variant}: {text}");
    node.remove(variant).await;
    assert!(!tool.save_all().await.unwrap().contains("KUBE-S"), "{family} {variant}: {text}");
    // kubelet's, too, so it stayed.
    shell(&format!("{} -w 5 -F KUBE-FIREWALL", program(family, variant)));
}

#[test]
fn whatever_is_refused_is_found_at_start_and_done_without() {
    with_programs("whatever_is_refused_is_found_at_start_and_done_without", async |programs| {
        host(Family::V4);
        for variant in VARIANTS {
            for (text, missing) in REFUSALS {
                programs.refuse(&[text.to_owned()], true);
                assert_does_without(Family::V4, variant, text, missing).await;
            }
        }
    });
}

#[test]
fn kernel_that_has_nothing_of_it_still_serves() {
    with_programs("kernel_that_has_nothing_of_it_still_serves", async |programs| {
        let all = REFUSALS.map(|(text, _)| text).join("\n");
        programs.refuse(std::slice::from_ref(&all), true);
        for family in FAMILIES {
            host(family);
            for variant in VARIANTS {
                assert_does_without(family, variant, &all, &Feature::ALL).await;
            }
        }
    });
}

#[test]
fn complete_kernel_lacks_nothing() {
    in_namespace("complete_kernel_lacks_nothing", async || {
        for family in FAMILIES {
            for variant in VARIANTS {
                let tool = detect(family, Some(variant)).await.unwrap();
                let before = tool.save_all().await.unwrap();
                let missing: Vec<_> = Features::probe(&tool).await.missing().collect();
                assert_eq!(missing, [], "{family} {variant}");
                let left = tool.save_all().await.unwrap();
                assert!(!left.contains("PROBE"), "{family} {variant}: {before} {left}");
            }
        }
    });
}

#[test]
fn feature_is_not_missing_because_another_program_holds_the_lock() {
    let test = "feature_is_not_missing_because_another_program_holds_the_lock";
    with_programs(test, async |programs| {
        let tool = detect(Family::V4, Some(Variant::Legacy)).await.unwrap();
        programs.busy(true);
        assert_eq!(Features::probe(&tool).await, Features::ALL);
        programs.busy(false);
        assert_eq!(Features::probe(&tool).await, Features::ALL);
    });
}

fn scraped(registry: &Registry, name: &str) -> Option<u64> {
    let text = registry.encode().unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

const LOCALHOST: &str = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total";
const INVALID: &str = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total";

#[test]
fn packets_are_counted_and_the_count_outlives_the_rules() {
    in_namespace("packets_are_counted_and_the_count_outlives_the_rules", async || {
        host(Family::V4);
        sysctl::enable_route_localnet().unwrap();
        let registry = Registry::new();
        registry.register(|registry| {
            netfilter::metrics::register(registry, &[(Family::V4, Features::ALL.without(Feature::Bpf))]);
        });
        assert_eq!(
            scraped(&registry, "fairlead_kernel_feature{feature=\"bpf\",ip_family=\"IPv4\"}"),
            Some(0)
        );
        assert_eq!(
            scraped(&registry, "fairlead_kernel_feature{feature=\"nfacct\",ip_family=\"IPv4\"}"),
            Some(1)
        );
        assert_eq!(scraped(&registry, LOCALHOST), None);
        let mut expected = 0;
        for variant in VARIANTS {
            let node = Node::start(Family::V4, variant, changes(Family::V4)).await;
            let save = shell(&format!("{}-save", program(Family::V4, variant)));
            assert!(
                save.contains("--ctstate INVALID -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts"),
                "{save}"
            );
            assert_eq!(
                (scraped(&registry, LOCALHOST), scraped(&registry, INVALID)),
                (Some(expected), Some(0))
            );
            ask("127.0.0.1", 30080).unwrap();
            ask(address(Family::V4), 30080).unwrap();
            expected += 1;
            assert_eq!(scraped(&registry, LOCALHOST), Some(expected), "{variant}");
            // In use.
            assert!(!counters::remove().unwrap());
            node.remove(variant).await;
            assert_eq!(scraped(&registry, LOCALHOST), Some(expected), "{variant}");
        }
        let text = registry.encode().unwrap();
        assert!(text.contains(&format!("# TYPE {LOCALHOST} counter\n")), "{text}");
        assert!(counters::remove().unwrap());
        assert_eq!(scraped(&registry, LOCALHOST), None);
        assert!(!counters::remove().unwrap());
    });
}

#[test]
fn counter_that_is_gone_is_made_again_when_a_rule_needs_it() {
    in_namespace("counter_that_is_gone_is_made_again_when_a_rule_needs_it", async || {
        for variant in VARIANTS {
            let tool = detect(Family::V4, Some(variant)).await.unwrap();
            let document = "*filter\n:MINE - [0:0]\n-A MINE -m nfacct --nfacct-name ct_state_invalid_dropped_pkts\nCOMMIT\n";
            tool.restore(document).await.unwrap();
            tool.restore("*filter\n:MINE - [0:0]\n-X MINE\nCOMMIT\n").await.unwrap();
            assert!(counters::remove().unwrap());
        }
    });
}

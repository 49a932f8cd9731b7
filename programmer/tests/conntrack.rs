//! UDP clients that keep one socket open, against a real kernel, real rules and the whole sync loop; both families, both
//! variants of iptables.
//!
//! Tests that end with a number are named for what was reported of kube-proxy under that number in kubernetes/kubernetes,
//! and fail with what kube-proxy 1.36 does, or did before it was mended.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{net::SocketAddr, sync::Arc};

use fairlead_programmer::{
    conntrack::{FlowTable, Kernel as Flows},
    feed::Change,
    netfilter::Variant,
};
use serde_json::json;

mod namespace;
mod node;
mod programs;
mod udp;

use namespace::{in_namespace, shell};
use node::{FAMILIES, Node, VARIANTS, program, until};
use programs::with_programs;
use udp::{Client, NODE_PORT, Place, Sink, gone, prepare_network, serve};

/// Runs `body` in a network namespace of its own, for each family and variant. All endpoints answer.
fn everywhere(test: &str, body: &impl AsyncFn(&Place, Variant)) {
    in_namespace(test, async || {
        prepare_network();
        for family in FAMILIES {
            let place = Place::of(family);
            for number in 1..=3 {
                serve(place.endpoint(number));
            }
            for variant in VARIANTS {
                body(&place, variant).await;
                place.forget();
            }
        }
    });
}

/// Clients of the Service by each of its addresses, on the node and behind it.
fn clients(place: &Place) -> Vec<Client> {
    let servers = [place.cluster, place.node_port];
    servers.iter().flat_map(|server| [place.client(*server), place.pod(*server)]).collect()
}

fn answered_by(clients: &[Client], endpoint: SocketAddr) {
    for client in clients {
        client.ask_until(Some(endpoint));
    }
}

#[test]
fn open_socket_follows_endpoints_and_strangers_are_left_alone() {
    everywhere("open_socket_follows_endpoints_and_strangers_are_left_alone", &async |place, variant| {
        let node = Node::start(place.family, variant, [place.service(), place.slice(&[1])]).await;
        let clients = clients(place);
        // To the number of our node port on another host and on a Pod, and past the Service to a program at its
        // endpoint; from here and from a Pod.
        let of_pod = SocketAddr::new(clients[1].own_ip(), NODE_PORT);
        let strangers: Vec<_> = [place.stranger, of_pod, place.endpoint(1)]
            .into_iter()
            .flat_map(|server| [place.client(server), place.pod(server)])
            .collect();
        for stranger in &strangers {
            stranger.send();
        }
        answered_by(&clients, place.endpoint(1));
        // The first packet of a Pod waits until its neighbour is found.
        until("each stranger to have a flow", || strangers.iter().all(|it| place.flows(it).len() == 1)).await;
        let before: Vec<_> = strangers.iter().map(|stranger| place.flows(stranger)).collect();

        node.tell(place.slice(&[2])).await;
        answered_by(&clients, place.endpoint(2));
        node.tell(gone()).await;
        for client in &clients {
            client.ask_until(None);
        }
        let after: Vec<_> = strangers.iter().map(|stranger| place.flows(stranger)).collect();
        assert_eq!(after, before, "{place} {variant}: the same entries");
        node.remove(variant).await;
    });
}

/// Clients that are never answered keep their flows alive with each packet; `end` is what should end them.
fn one_way_flows_end_with(test: &str, end: fn(&Place) -> Change) {
    everywhere(test, &async |place, variant| {
        let sink = Sink::at(place.endpoint(1).ip());
        let node =
            Node::start(place.family, variant, [place.service(), place.slice_at(sink.port, &[1])]).await;
        let clients = clients(place);
        let goes_there = |client: &Client| {
            client.send();
            place.ends(client).is_some_and(|ends| ends.answerer.port() == sink.port)
        };
        for client in &clients {
            until("packets arrive", || goes_there(client)).await;
        }
        until("packets are counted", || sink.count() >= clients.len()).await;
        node.tell(end(place)).await;
        for client in &clients {
            until("packets do not go on to the endpoint", || !goes_there(client)).await;
        }
        // And the open sockets are served again when there is somebody to serve them.
        node.tell(place.slice(&[2])).await;
        node.tell(place.service()).await;
        answered_by(&clients, place.endpoint(2));
        node.remove(variant).await;
    });
}

#[test]
fn one_way_flow_ends_with_the_last_endpoint_139628() {
    one_way_flows_end_with("one_way_flow_ends_with_the_last_endpoint_139628", |place| place.slice(&[]));
}

#[test]
fn one_way_flow_ends_with_its_service_141371() {
    one_way_flows_end_with("one_way_flow_ends_with_its_service_141371", |_| gone());
}

#[test]
fn open_socket_survives_deletion_and_new_creation_of_its_service() {
    everywhere("open_socket_survives_deletion_and_new_creation_of_its_service", &async |place, variant| {
        let node = Node::start(place.family, variant, [place.service(), place.slice(&[1])]).await;
        let clients = clients(place);
        answered_by(&clients, place.endpoint(1));
        node.tell(gone()).await;
        for client in &clients {
            // Packets leave untranslated now, which leaves entries that must not last.
            client.ask_until(None);
        }
        node.tell(place.slice(&[2])).await;
        node.tell(place.service()).await;
        answered_by(&clients, place.endpoint(2));
        node.remove(variant).await;
    });
}

const DELETED: &str = "kubeproxy_conntrack_reconciler_deleted_entries_total";
const RECONCILED: &str = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count";

#[test]
fn restart_keeps_every_flow_that_agrees_122740() {
    everywhere("restart_keeps_every_flow_that_agrees_122740", &async |place, variant| {
        let state = || [place.service(), place.slice(&[1, 2, 3])];
        let node = Node::start(place.family, variant, state()).await;
        let mut clients = clients(place);
        for _ in 0..3 {
            clients.extend(self::clients(place));
        }
        for client in &clients {
            client.ask_patiently();
        }
        let flows: Vec<_> = clients.iter().map(|client| place.flows(client)).collect();
        assert!(flows.iter().all(|flows| flows.len() == 1), "{flows:?}");
        // Not who answered first: of two packets at once the kernel may send each elsewhere, and keeps one of the flows.
        let answers: Vec<_> = flows.iter().flatten().map(|flow| flow.ends.answerer).collect();
        node.stop().await;
        assert_eq!(clients[0].ask_patiently(), answers[0], "rules outlive the process");

        let node = Node::start(place.family, variant, state()).await;
        until("flows are compared", || node.metric(RECONCILED) > 0).await;
        assert_eq!(node.metric(DELETED), 0);
        let after: Vec<_> = clients.iter().map(|client| place.flows(client)).collect();
        assert_eq!(after, flows, "{place} {variant}: the same entries");
        let after: Vec<_> = clients.iter().map(Client::ask_patiently).collect();
        assert_eq!(after, answers);
        node.remove(variant).await;
    });
}

/// Nobody tells the programmer of these: it finds them by comparing.
#[test]
fn flows_that_contradict_are_found_without_an_event_126130() {
    everywhere("flows_that_contradict_are_found_without_an_event_126130", &async |place, variant| {
        // Packets that came before the rules leave untranslated.
        let early = clients(place);
        for client in &early {
            client.send();
        }
        let node = Node::start(place.family, variant, [place.service(), place.slice(&[1])]).await;
        answered_by(&early, place.endpoint(1));
        node.stop().await;

        // The endpoint goes while nobody watches.
        let node = Node::start(place.family, variant, [place.service(), place.slice(&[2])]).await;
        answered_by(&early, place.endpoint(2));

        // Another program flushes the rules: for a moment, packets leave untranslated.
        shell(&format!("{} -w 5 -t nat -F", program(place.family, variant)));
        let late = clients(place);
        for client in &late {
            client.send();
        }
        answered_by(&late, place.endpoint(2));
        node.remove(variant).await;
    });
}

/// What is to be done about flows outlives a sync that fails, and waits for the one that succeeds.
#[test]
fn flows_wait_for_the_rules_when_these_fail_first() {
    with_programs("flows_wait_for_the_rules_when_these_fail_first", async |programs| {
        prepare_network();
        for family in FAMILIES {
            let place = Place::of(family);
            serve(place.endpoint(1));
            serve(place.endpoint(2));
            for variant in VARIANTS {
                let node = Node::start(family, variant, [place.service(), place.slice(&[1])]).await;
                let clients = clients(&place);
                answered_by(&clients, place.endpoint(1));
                let flows = || clients.iter().flat_map(|client| place.flows(client)).collect::<Vec<_>>();
                let before = flows();
                for (change, then) in [(place.slice(&[2]), Some(place.endpoint(2))), (gone(), None)] {
                    let before = flows();
                    programs.broken(true);
                    node.tell(change).await;
                    let failures = node.failures();
                    until("it fails", || node.failures() >= failures + 2).await;
                    assert_eq!(flows(), before, "{place} {variant}: not before the rules are there");
                    programs.broken(false);
                    for client in &clients {
                        client.ask_until(then);
                    }
                }
                assert!(flows().iter().all(|flow| !before.contains(flow)));
                node.remove(variant).await;
                place.forget();
            }
        }
    });
}

#[test]
fn change_of_the_service_alone_is_enough_for_its_flows() {
    everywhere("change_of_the_service_alone_is_enough_for_its_flows", &async |place, variant| {
        let without =
            place.service_with(json!({"type": "ClusterIP", "ports": [{"port": 53, "protocol": "UDP"}]}));
        let node = Node::start(place.family, variant, [without, place.slice(&[1])]).await;
        let external = SocketAddr::new(place.stranger.ip(), 53);
        let clients = [
            place.client(place.node_port),
            place.pod(place.node_port),
            place.client(external),
            place.pod(external),
        ];
        for client in &clients {
            client.send();
        }
        node.tell(place.service_with(json!({"externalIPs": [external.ip()]}))).await;
        answered_by(&clients, place.endpoint(1));
        node.remove(variant).await;
    });
}

/// A slice whose first endpoints are about to go, and still serve.
fn going(slice: Change, count: usize) -> Change {
    let Change::Slice(mut slice) = slice else { unreachable!("it is a slice") };
    for endpoint in &mut Arc::make_mut(&mut slice).endpoints[..count] {
        (endpoint.conditions.ready, endpoint.conditions.terminating) = (Some(false), Some(true));
    }
    Change::Slice(slice)
}

#[test]
fn flow_to_an_endpoint_on_its_way_out_stays_as_long_as_that_serves() {
    everywhere("flow_to_an_endpoint_on_its_way_out_stays_as_long_as_that_serves", &async |place, variant| {
        let first = going(place.slice(&[3, 1]), 1);
        let node = Node::start(place.family, variant, [place.service(), first]).await;
        let clients = clients(place);
        answered_by(&clients, place.endpoint(1));
        let flows = || clients.iter().map(|client| place.flows(client)).collect::<Vec<_>>();
        let before = flows();
        until("flows are compared", || node.metric(RECONCILED) > 0).await;
        let reconciled = node.metric(RECONCILED);
        // That the third is gone is a reason to compare.
        node.tell(going(place.slice(&[1, 2]), 1)).await;
        until("flows are compared", || node.metric(RECONCILED) > reconciled).await;
        assert_eq!(flows(), before, "{place} {variant}: the same entries");
        assert_eq!(place.client(place.cluster).ask_patiently(), place.endpoint(2));
        node.tell(place.slice(&[2])).await;
        answered_by(&clients, place.endpoint(2));
        node.remove(variant).await;
    });
}

#[test]
fn only_udp_flows_are_listed_and_one_is_deleted_by_its_identity() {
    everywhere("only_udp_flows_are_listed_and_one_is_deleted_by_its_identity", &async |place, variant| {
        // Tracking starts with the first rule that needs it.
        let node = Node::start(place.family, variant, [place.service(), place.slice(&[1])]).await;
        let listener = std::net::TcpListener::bind((place.endpoint(2).ip(), 0)).unwrap();
        let _stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let clients = [place.client(place.endpoint(1)), place.client(place.endpoint(1))];
        answered_by(&clients, place.endpoint(1));
        let flows = Flows.list(place.family, &|_| true).unwrap().flows;
        assert_eq!(flows.len(), 2, "{flows:?}");
        assert_eq!(Flows.delete(place.family, &flows[..1]).unwrap(), 1);
        assert_eq!(Flows.delete(place.family, &flows[..1]).unwrap(), 0, "it is gone");
        assert_eq!(Flows.list(place.family, &|_| true).unwrap().flows, flows[1..]);
        node.remove(variant).await;
    });
}

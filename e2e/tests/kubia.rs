//! `kubia.yaml`: ports that target container ports by name.

use std::{collections::BTreeSet, net::SocketAddr, process::ExitCode};

use anyhow::Result;
use fairlead_e2e::{Bed, From, Outcome, PodSpec, Port, Protocol, cases, suite};

const ALL: [&str; 3] = ["kubia-1", "kubia-2", "kubia-3"];

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![
            each_port_reaches_the_container_port_of_its_name,
            one_name_leads_to_different_numbers_on_different_pods,
            a_pod_without_the_name_is_left_out_of_that_port_only,
        ],
    )
}

fn up(bed: &mut Bed) -> Result<(SocketAddr, SocketAddr)> {
    bed.apply_example("kubia.yaml")?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let ip = bed.cluster_ip("kubia")?;
    let (http, https) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 443));
    for target in [http, https] {
        bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &ALL)?;
    }
    Ok((http, https))
}

fn each_port_reaches_the_container_port_of_its_name(bed: &mut Bed) -> Result<()> {
    let (http, https) = up(bed)?;
    for (target, port) in [(http, 8080), (https, 8443)] {
        for from in [From::Pod("client"), From::Node(2)] {
            let tally = bed.client(from)?.ask_many(Protocol::Tcp, target, 450)?;
            tally.check_fair(&ALL)?;
            assert_eq!(tally.ports(), BTreeSet::from([port]));
        }
    }
    // A port that the Service does not have is nobody's business: the packet finds no rule and no host.
    let other = bed.client(From::Pod("client"))?.ask(Protocol::Tcp, SocketAddr::new(http.ip(), 8080))?;
    assert_eq!(other, Outcome::TimedOut);
    Ok(())
}

fn one_name_leads_to_different_numbers_on_different_pods(bed: &mut Bed) -> Result<()> {
    let (http, https) = up(bed)?;
    let next = PodSpec::new("kubia-4", "kubia").on(2);
    bed.add_pod(next.port(Port::tcp(9090).named("http")).port(Port::tcp(8443).named("https")))?;
    let all = ["kubia-1", "kubia-2", "kubia-3", "kubia-4"];
    bed.await_servers(From::Pod("client"), Protocol::Tcp, http, &all)?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, https, &all)?;
    let tally = bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, http, 600)?;
    tally.check_fair(&all)?;
    assert_eq!(tally.ports(), BTreeSet::from([8080, 9090]));
    let tally = bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, https, 600)?;
    tally.check_fair(&all)?;
    assert_eq!(tally.ports(), BTreeSet::from([8443]));
    Ok(())
}

fn a_pod_without_the_name_is_left_out_of_that_port_only(bed: &mut Bed) -> Result<()> {
    let (http, https) = up(bed)?;
    bed.add_pod(PodSpec::new("kubia-4", "kubia").port(Port::tcp(8080).named("http")))?;
    let with_http = ["kubia-1", "kubia-2", "kubia-3", "kubia-4"];
    bed.await_servers(From::Pod("client"), Protocol::Tcp, http, &with_http)?;
    let client = bed.client(From::Pod("client"))?;
    client.ask_many(Protocol::Tcp, http, 600)?.check_fair(&with_http)?;
    client.ask_many(Protocol::Tcp, https, 450)?.check_fair(&ALL)
}

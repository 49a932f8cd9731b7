//! What goes wrong around the two programs: each problem gets a line that says what and where, ends in a non-zero exit
//! or in patient retries, and changes nothing on the node or on the API server.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, ensure};
use fairlead_e2e::{
    Bed, From, Protocol, cases,
    pki::{self, Identity},
    processes::Process,
    servers::Server,
    suite, tools, wait,
};

const SOON: Duration = Duration::from_secs(15);
const A_WHILE: Duration = Duration::from_secs(2);
/// More lines than a program that retries with backoff prints in [`A_WHILE`], even if it lists every right that it lacks.
const BUSY: usize = 60;

fn main() -> ExitCode {
    suite::run_traced(
        |bed| bed.start_controller(&[]),
        cases![
            a_programmer_without_its_node_object_says_which_and_loads_nothing,
            a_programmer_without_rights_says_so_and_loads_nothing,
            a_programmer_that_cannot_reach_the_api_server_keeps_the_rules_and_retries,
            a_programmer_without_iptables_ends_and_says_what_is_missing,
            a_programmer_without_capabilities_ends_and_says_which,
            a_programmer_whose_port_is_taken_says_which,
            a_controller_without_rights_says_so_and_writes_nothing,
            a_controller_that_cannot_reach_the_api_server_retries,
            a_controller_whose_port_is_taken_says_which,
            a_kubeconfig_that_is_not_there_or_not_yaml_ends_the_program,
        ],
    )
}

fn kubeconfig(bed: &Bed, identity: Identity) -> String {
    format!("--kubeconfig={}", bed.kubeconfig_of(identity).display())
}

/// The proxy's kubeconfig, with a port where nobody listens.
fn unreachable(bed: &Bed) -> Result<String> {
    let text = fs::read_to_string(bed.kubeconfig_of(pki::PROGRAMMER))?.replace(":6443", ":6444");
    let path = bed.dir().join("unreachable.kubeconfig");
    fs::write(&path, text)?;
    Ok(format!("--kubeconfig={}", path.display()))
}

fn programmer() -> Result<PathBuf> {
    tools::own_program("fairlead-programmer")
}

fn controller() -> Result<PathBuf> {
    tools::own_program("fairlead-controller")
}

fn start(bed: &Bed, from: From<'_>, name: &str, program: &Path, args: &[String]) -> Result<Process> {
    bed.start_process(from, name, program, args, &[])
}

/// Waits for a line that has all these words, whatever their case.
fn await_line(process: &Process, words: &[&str]) -> Result<()> {
    wait::until_ok(&format!("{} to say {words:?}", process.name()), SOON, || {
        let log = process.log().to_lowercase();
        ensure!(!log.contains("panicked"), "it panicked: {}", process.log_tail(30));
        let said = log.lines().any(|line| words.iter().all(|word| line.contains(&word.to_lowercase())));
        ensure!(said, "{}", process.log_tail(20));
        Ok(())
    })
}

/// It says so and ends with an error.
fn await_refusal(mut process: Process, words: &[&str]) -> Result<()> {
    let status = process.exit(SOON)?;
    ensure!(!status.success(), "{} ended well: {}", process.name(), process.log_tail(20));
    await_line(&process, words)
}

/// It says so, and either ends with an error or goes on trying at a civil pace.
fn await_refusal_or_patience(mut process: Process, words: &[&str]) -> Result<()> {
    await_line(&process, words)?;
    if process.check().is_err() {
        return await_refusal(process, words);
    }
    let lines = |process: &Process| process.log().lines().count();
    let before = lines(&process);
    wait::watch(A_WHILE);
    let more = lines(&process) - before;
    ensure!(more < BUSY, "{more} lines in {A_WHILE:?}: {}", process.log_tail(20));
    ensure!(process.stop(SOON)?.success(), "it does not end well: {}", process.log_tail(20));
    Ok(())
}

/// Rules about Services on the first node.
fn rules(bed: &Bed) -> Result<Vec<String>> {
    let saved = bed.rules_about(1, "] -A ")?;
    Ok(saved.iter().filter_map(|line| Some(line.split_once("] ")?.1.to_owned())).collect())
}

fn a_programmer_without_its_node_object_says_which_and_loads_nothing(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    let args = [kubeconfig(bed, pki::PROGRAMMER), "--hostname-override=no-such-node".to_owned()];
    let process = start(bed, From::Node(1), "no-node", &programmer()?, &args)?;
    await_refusal_or_patience(process, &["no-such-node"])?;
    assert_eq!(rules(bed)?, Vec::<String>::new());
    Ok(())
}

fn a_programmer_without_rights_says_so_and_loads_nothing(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    let args = [kubeconfig(bed, pki::NOBODY), "--hostname-override=node1".to_owned()];
    let process = start(bed, From::Node(1), "no-rights", &programmer()?, &args)?;
    await_refusal_or_patience(process, &["forbidden"])?;
    assert_eq!(rules(bed)?, Vec::<String>::new());
    Ok(())
}

fn a_programmer_that_cannot_reach_the_api_server_keeps_the_rules_and_retries(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    bed.start_programmer(1, &[])?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    let pods = ["my-app-1", "my-app-2"];
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &pods)?;
    bed.stop_programmer(1)?;
    let before = rules(bed)?;
    let args = [unreachable(bed)?, "--hostname-override=node1".to_owned()];
    let process = start(bed, From::Node(1), "no-server", &programmer()?, &args)?;
    await_refusal_or_patience(process, &["172.30.0.10:6444"])?;
    assert_eq!(rules(bed)?, before);
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 100)?.check_fair(&pods)?;
    bed.clean_up(1).map(drop)
}

fn a_programmer_without_iptables_ends_and_says_what_is_missing(bed: &mut Bed) -> Result<()> {
    let args = [kubeconfig(bed, pki::PROGRAMMER), "--hostname-override=node1".to_owned()];
    // `env` sets the PATH after setpriv was found on this process' own.
    let words = ["PATH=/nonexistent".to_owned(), programmer()?.display().to_string()];
    let args = [words.as_slice(), &args].concat();
    let process = start(bed, From::Node(1), "no-iptables", Path::new("/usr/bin/env"), &args)?;
    await_refusal(process, &["iptables"])
}

fn a_programmer_without_capabilities_ends_and_says_which(bed: &mut Bed) -> Result<()> {
    let words = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"].map(str::to_owned);
    let args = [
        programmer()?.display().to_string(),
        kubeconfig(bed, pki::PROGRAMMER),
        "--hostname-override=node1".to_owned(),
    ];
    let args = [words.as_slice(), &args].concat();
    let process = start(bed, From::Node(1), "no-capability", Path::new("/usr/bin/setpriv"), &args)?;
    await_refusal(process, &["CAP_NET_ADMIN"])
}

fn a_programmer_whose_port_is_taken_says_which(bed: &mut Bed) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10256));
    let _taken = Server::start(bed.node_netns(1)?, "taken", Protocol::Tcp, address)?;
    let args = [kubeconfig(bed, pki::PROGRAMMER), "--hostname-override=node1".to_owned()];
    let process = start(bed, From::Node(1), "port-taken", &programmer()?, &args)?;
    await_refusal_or_patience(process, &["10256", "in use"])
}

fn a_controller_without_rights_says_so_and_writes_nothing(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    bed.apply_example("my-service.yaml")?;
    let process = start(
        bed,
        From::ControlPlane,
        "controller-no-rights",
        &controller()?,
        &[kubeconfig(bed, pki::NOBODY)],
    )?;
    await_refusal_or_patience(process, &["forbidden"])?;
    assert_eq!(bed.names("EndpointSlice")?, Vec::<String>::new());
    Ok(())
}

fn a_controller_that_cannot_reach_the_api_server_retries(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    let process =
        start(bed, From::ControlPlane, "controller-no-server", &controller()?, &[unreachable(bed)?])?;
    await_refusal_or_patience(process, &["172.30.0.10:6444"])
}

fn a_controller_whose_port_is_taken_says_which(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
    let _taken = Server::start(bed.client(From::ControlPlane)?.namespace(), "taken", Protocol::Tcp, address)?;
    let process = start(
        bed,
        From::ControlPlane,
        "controller-port",
        &controller()?,
        &[kubeconfig(bed, pki::CONTROLLER)],
    )?;
    await_refusal_or_patience(process, &["8080", "in use"])
}

fn a_kubeconfig_that_is_not_there_or_not_yaml_ends_the_program(bed: &mut Bed) -> Result<()> {
    let broken = bed.dir().join("broken.kubeconfig");
    fs::write(&broken, "clusters: [unclosed\n")?;
    for (path, what) in [(broken, "broken"), (bed.dir().join("absent.kubeconfig"), "absent")] {
        let flag = format!("--kubeconfig={}", path.display());
        for (program, from) in [(programmer()?, From::Node(1)), (controller()?, From::ControlPlane)] {
            let half = program.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("kubeconfig-{what}-{half}");
            let process = start(bed, from, &name, &program, std::slice::from_ref(&flag))?;
            await_refusal(process, &[&format!("{what}.kubeconfig")])?;
        }
    }
    Ok(())
}

//! The program itself, with a configuration file: what it prints, serves, and ends for.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

mod namespace;

use namespace::{in_namespace, shell};

const CONFIGURATION: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
    clusterCIDR: 10.244.0.0/16\nmode: nftables\nnftables: {masqueradeBit: 7}\nipvs: {scheduler: rr}\n\
    conntrack: {tcpEstablishedTimeout: 2h, udpTimeout: 31s}\n";

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = env::temp_dir().join(format!("fairlead-{name}-{}.yaml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-programmer"));
    command.args(arguments).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn effective_configuration_is_printed_and_what_has_no_effect_is_named() {
    let file = File::new("print", CONFIGURATION);
    let output =
        run(&["--config", file.path(), "--hostname-override=Node-B", "--masquerade-all", "--dump-config"]);
    let (printed, log) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{log}");
    let effective: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(effective["hostnameOverride"], "node-b");
    assert_eq!(effective["iptables"]["masqueradeBit"], 7);
    assert_eq!(effective["iptables"]["masqueradeAll"], false);
    assert_eq!(effective["conntrack"]["tcpEstablishedTimeout"], "2h0m0s");
    for told in ["--masquerade-all", "mode nftables is not implemented: running iptables", "ipvs.scheduler"] {
        assert!(log.contains(told), "{told}: {log}");
    }
}

#[test]
fn typo_in_a_file_is_told_with_what_may_have_been_meant_and_the_rest_is_in_force() {
    let file = File::new("typo", &CONFIGURATION.replace("clusterCIDR", "clusterCIRD"));
    let output = run(&["--config", file.path(), "--dump-config"]);
    let (printed, log) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{log}");
    assert!(log.contains("unknown field clusterCIRD (did you mean clusterCIDR?)"), "{log}");
    let effective: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&effective["clusterCIDR"], &effective["iptables"]["masqueradeBit"]), (&"".into(), &7.into()));
}

#[test]
fn wrong_file_ends_with_code_two_and_one_line_for_each_problem() {
    let wrong = format!("{CONFIGURATION}oomScoreAdj: 2000\nhealthzBindAddress: here\n");
    let file = File::new("wrong", &wrong);
    let output = run(&["--config", file.path()]);
    let log = text(&output.stderr);
    let problems = log.lines().filter(|line| line.starts_with("fairlead-programmer: "));
    assert_eq!((output.status.code(), problems.count()), (Some(2), 2), "{log}");
    assert!(log.contains("oomScoreAdj \"2000\"") && log.contains("healthzBindAddress \"here\""), "{log}");
}

#[test]
fn init_only_sets_what_the_kernel_needs_and_ends() {
    in_namespace("init_only_sets_what_the_kernel_needs_and_ends", async || {
        let read = |name: &str| shell(&format!("cat /proc/sys/net/netfilter/{name}")).trim().to_owned();
        shell("iptables-nft -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT");
        let file = File::new("init", CONFIGURATION);
        let output = run(&["--config", file.path(), "--init-only"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(read("nf_conntrack_tcp_timeout_established"), "7200");
        assert_eq!(read("nf_conntrack_tcp_timeout_close_wait"), "3600");
        assert_eq!(read("nf_conntrack_udp_timeout"), "31");
        assert_eq!(shell("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "1");
    });
}

#[test]
fn kernel_settings_that_are_read_only_are_warned_about_and_left() {
    in_namespace("kernel_settings_that_are_read_only_are_warned_about_and_left", async || {
        shell("iptables-nft -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT");
        let program = env!("CARGO_BIN_EXE_fairlead-programmer");
        let flags = "--init-only --conntrack-tcp-timeout-established=2h --conntrack-udp-timeout=31s";
        // As in a container that may change rules but no settings.
        let script = format!(
            "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; {program} {flags}"
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-ec", &script]).output().unwrap();
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        for name in ["nf_conntrack_max", "tcp_timeout_established=7200", "udp_timeout=31", "route_localnet"] {
            assert!(
                log.lines().any(|line| line.contains("cannot set") && line.contains(name)),
                "{name}: {log}"
            );
        }
        assert_ne!(shell("cat /proc/sys/net/netfilter/nf_conntrack_udp_timeout").trim(), "31");
    });
}

#[test]
fn cleanup_checks_the_other_flags_first_and_needs_no_api_server() {
    in_namespace("cleanup_checks_the_other_flags_first_and_needs_no_api_server", async || {
        shell("iptables-nft -t nat -N KUBE-SERVICES && iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES");
        let rules = || shell("iptables-nft-save -t nat");
        let output = run(&["--cleanup", "--oom-score-adj=2000"]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(rules().contains("KUBE-SERVICES"));
        let output = run(&["--cleanup=true", "--kubeconfig=/nonexistent"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(!rules().contains("KUBE-SERVICES"), "{}", rules());
    });
}

/// Ends its process when it goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn get(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:10249").ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn configuration_is_served_and_its_change_ends_the_process() {
    in_namespace("configuration_is_served_and_its_change_ends_the_process", async || {
        shell("ip link set lo up");
        let file = File::new("serve", CONFIGURATION);
        let arguments =
            ["--config", file.path(), "--master=http://127.0.0.1:1", "--hostname-override=node-a"];
        let mut running = Running(command(&arguments).spawn().unwrap());
        let start = Instant::now();
        let answer = loop {
            if let Some(answer) = get("/configz") {
                break answer;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "not serving");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let configz: serde_json::Value = serde_json::from_str(body).unwrap();
        let effective = &configz["kubeproxy.config.k8s.io"];
        assert_eq!(
            (&effective["clusterCIDR"], &effective["mode"]),
            (&"10.244.0.0/16".into(), &"iptables".into())
        );
        assert!(get("/proxyMode").unwrap().ends_with("\r\n\r\niptables"));

        fs::write(&file.0, CONFIGURATION.replace("10.244", "10.245")).unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = running.0.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "still running");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let mut log = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("changed: ending"), "{log}");
    });
}

//! Arguments: every subcommand and flag, with its help.

use std::{
    env,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use fairlead_objects::{Family, Protocol, ServiceKey, parse_address};
use ipnet::IpNet;

/// What it is for.
const ABOUT: &str = "Renders, explains and traces Kubernetes Services by the planner and the compiler that \
    fairlead-controller and fairlead-programmer use, from files or from a cluster";

const EXIT_CODES: &str = "Exit code: 0 done; 1 the answer to the question is no (trace: dropped or rejected; explain: no \
    endpoint); 2 bad input, no answer from the cluster, or not yet possible.";

/// `fairlead`; as `kubectl-fairlead` on the PATH it is `kubectl fairlead`, too.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Name of the program that kubectl takes for its own subcommand `fairlead`.
const PLUGIN: &str = "kubectl-fairlead";

impl Cli {
    /// The arguments of this process; ends it where there is nothing to do but to print help or what is wrong with them.
    pub(crate) fn of_process() -> Self {
        let program = env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let matches = Self::command_as(&program).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The command under the name by which its user calls `program`.
    fn command_as(program: &Path) -> clap::Command {
        let name = if program.file_stem().is_some_and(|stem| stem == PLUGIN) {
            "kubectl fairlead"
        } else {
            "fairlead"
        };
        Self::command().bin_name(name)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what the controller would write or the programmer would load.
    #[command(subcommand)]
    Render(Render),
    /// Say per Pod, port and slice why it serves a Service or not.
    #[command(subcommand)]
    Explain(Explain),
    /// Walk the first packet of a connection through the rules of a node.
    ///
    /// The rules are those that `fairlead render rules` prints, those of a file, or those in the kernel. Says which rules the
    /// packet meets, which of them decide, where it ends up and how often, and whether its source is rewritten. The client is one that no session affinity
    /// remembers; routes and the tables raw and mangle are not looked at.
    Trace(Box<Trace>),
}

/// `fairlead render ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum Render {
    /// Print the Endpoints and EndpointSlices that the controller would leave behind.
    ///
    /// Reads Services, Pods, Nodes, Endpoints and EndpointSlices. Prints the objects of the Services in the input, changed
    /// or not: by namespace, Service, Endpoints before EndpointSlices, IPv4 before IPv6. Without any Node object, no Pod is
    /// left out for its node and endpoints get no zone. From a cluster: the objects of all its Services.
    Endpoints(RenderEndpoints),
    /// Print the rules of a node as a document for `iptables-restore --noflush`.
    ///
    /// Reads Services and EndpointSlices, and the Node. From a cluster, EndpointSlices count as they are. In files, those of a Service with a selector are planned from
    /// the Pods first when there are Pods in the input; those of a Service without a selector are mirrored from its
    /// Endpoints when these are in the input. Otherwise the EndpointSlices count as they are.
    Rules(Box<RenderRules>),
}

/// Where objects come from.
#[derive(Debug, Args)]
pub(crate) struct Supply {
    /// File with Kubernetes objects, YAML or JSON, several documents and Lists included; a directory (its .yaml, .yml and
    /// .json files); or - for standard input. May be repeated. Without any, the cluster is asked.
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Where the cluster is, and who asks it.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// File with the address of the cluster and who asks it. Without it: $KUBECONFIG, else ~/.kube/config, else the
    /// service account of the Pod that this runs in.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of that file, instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl Access {
    /// Whether it is left to the environment which cluster is asked.
    pub(crate) fn names_nothing(&self) -> bool {
        self.kubeconfig.is_none() && self.context.is_none()
    }
}

/// How to print.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Output format.
    #[arg(short = 'o', long, value_enum, default_value_t = OutputFormat::Yaml)]
    pub(crate) output: OutputFormat,
}

/// Output formats of what is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// YAML documents; for rules: text.
    Yaml,
    /// JSON: a List of objects; for rules: chains by table.
    Json,
}

/// How to print an account.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Output format.
    #[arg(short = 'o', long, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) output: ReportFormat,
}

/// Output formats of accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// For readers.
    Text,
    /// For scripts.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Arguments of `fairlead render endpoints`.
#[derive(Debug, Args)]
pub(crate) struct RenderEndpoints {
    #[command(flatten)]
    pub(crate) supply: Supply,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `fairlead render rules`.
#[derive(Debug, Args)]
pub(crate) struct RenderRules {
    #[command(flatten)]
    pub(crate) supply: Supply,
    /// Name of the node.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) facts: NodeFlags,
    /// IP family of the rules.
    #[arg(long, value_enum)]
    pub(crate) family: FamilyName,
    /// Format of the rules.
    #[arg(long, value_enum, default_value_t = RulesFormat::IptablesRestore)]
    pub(crate) format: RulesFormat,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What shapes the rules of a node, and what its Node object does not say.
#[derive(Debug, Args)]
pub(crate) struct NodeFlags {
    /// File with a KubeProxyConfiguration, as in kube-proxy's ConfigMap.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address of the node, instead of those of the Node object. May be repeated, once per family.
    #[arg(long, value_name = "IP", value_parser = address)]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Zone of the node, instead of that of the Node object.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Address of an interface of the node with the length of its prefix, such as 192.0.2.10/24. May be repeated. By
    /// default the node has the addresses of its Node object.
    #[arg(long, value_name = "ADDR/LEN")]
    pub(crate) node_cidr: Vec<IpNet>,
}

/// IP family, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FamilyName {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::Ipv4 => Self::V4,
            FamilyName::Ipv6 => Self::V6,
        }
    }
}

/// Formats of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RulesFormat {
    /// A document for iptables-restore or ip6tables-restore.
    IptablesRestore,
    /// A document for nft (not yet in this version).
    Nft,
}

/// `fairlead explain ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum Explain {
    /// Say per Pod, port and slice why it serves the Service or not.
    ///
    /// Takes each Pod that the Service selects through the gates on the way to an endpoint that gets traffic, shows the Pods
    /// that only just miss the selector, prints what the planner notes, and where the objects that are there differ from
    /// those that the controller would leave. Reads what `fairlead render endpoints` reads; from a cluster, no more of it
    /// than it needs.
    Service(ExplainService),
}

/// Arguments of `fairlead explain service`.
#[derive(Debug, Args)]
pub(crate) struct ExplainService {
    /// The Service.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = service_key)]
    pub(crate) service: ServiceKey,
    #[command(flatten)]
    pub(crate) supply: Supply,
    #[command(flatten)]
    pub(crate) output: Report,
}

/// Arguments of `fairlead trace`.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    #[command(flatten)]
    pub(crate) supply: Supply,
    /// File with the rules themselves, as iptables-save or ip6tables-save prints them, instead of objects that they are
    /// compiled from; - for standard input. With counters (iptables-save -c), these are shown. The node's own addresses
    /// are then those of --node-ip and --node-cidr.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "kubeconfig", "context", "node", "config", "zone"])]
    pub(crate) rules: Option<PathBuf>,
    /// Read the rules of the machine that this runs on from its kernel, with their counters, by the variant of iptables
    /// that the machine uses. Needs CAP_NET_ADMIN, changes nothing.
    #[arg(long, conflicts_with_all = [
        "rules", "files", "kubeconfig", "context", "node", "config", "zone", "node_ip", "node_cidr",
    ])]
    pub(crate) live: bool,
    /// Name of the node.
    #[arg(long, value_name = "NAME", required_unless_present_any = ["rules", "live"])]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) facts: NodeFlags,
    /// Source address of the packet; one of the node's own starts in OUTPUT.
    #[arg(long, value_name = "IP", value_parser = address)]
    pub(crate) from: IpAddr,
    /// Where the packet goes, such as 10.96.0.10:80/TCP; IPv6 addresses stand in brackets.
    #[arg(long, value_name = "IP:PORT/PROTO")]
    pub(crate) to: Destination,
    /// Interface that the packet arrives on, for rules that ask. An unknown one is none that a rule names.
    #[arg(long, value_name = "NAME")]
    pub(crate) in_interface: Option<String>,
    /// IP family of the rules; it follows from the addresses, and must agree with them.
    #[arg(long, value_enum)]
    pub(crate) family: Option<FamilyName>,
    /// Format of the rules.
    #[arg(long, value_enum, default_value_t = RulesFormat::IptablesRestore)]
    pub(crate) format: RulesFormat,
    #[command(flatten)]
    pub(crate) output: Report,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

/// Why a text is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected IP:PORT/PROTO, such as 10.96.0.10:80/TCP or [fd00::10]:80/TCP")]
pub(crate) struct NoDestination(&'static str);

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        let (socket, protocol) = text.rsplit_once('/').ok_or(NoDestination("it has no protocol"))?;
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return Err(NoDestination("the protocol is none of TCP, UDP and SCTP")),
        };
        if parse_address(socket).is_ok_and(|address| address.is_ipv6()) {
            return Err(NoDestination("IPv6 addresses stand in brackets, to tell them from the port"));
        }
        let (address, port) = socket.rsplit_once(':').ok_or(NoDestination("it has no port"))?;
        let bracketed = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = parse_address(bracketed.unwrap_or(address))
            .map_err(|_| NoDestination("the address is neither IPv4 nor IPv6"))?;
        if address.is_ipv6() && bracketed.is_none() {
            return Err(NoDestination("IPv6 addresses stand in brackets, to tell them from the port"));
        }
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or(NoDestination("the port is not a number from 1 to 65535"))?;
        Ok(Self { address, port, protocol })
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    parse_address(text).map_err(|_| "expected an IPv4 or IPv6 address and nothing else".to_owned())
}

fn service_key(text: &str) -> Result<ServiceKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ServiceKey::new(namespace, name))
        }
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_help() {
        fn visit(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(visit);
        }
        Cli::command().debug_assert();
        visit(&Cli::command());
    }

    #[test]
    fn usage_has_the_words_that_the_user_typed() {
        for (program, words) in [
            ("/usr/local/bin/kubectl-fairlead", "Usage: kubectl fairlead explain service"),
            ("target/debug/fairlead", "Usage: fairlead explain service"),
        ] {
            let arguments = [program, "explain", "service", "--help"];
            let help =
                Cli::command_as(Path::new(program)).try_get_matches_from(arguments).unwrap_err().to_string();
            assert!(help.contains(words), "{help}");
        }
    }

    #[test]
    fn destinations_need_brackets_around_ipv6() {
        let destination: Destination = "[fd00::10]:53/udp".parse().unwrap();
        assert_eq!(destination.address.to_string(), "fd00::10");
        assert_eq!((destination.port, destination.protocol), (53, Protocol::Udp));
        for text in [
            "10.96.0.10:80",
            "10.96.0.10/TCP",
            "fd00::10:53/UDP",
            "10.96.0.10:99999/TCP",
            "10.96.0.10:0/TCP",
            "10.96.0.10:80/ICMP",
            "10.96.0.300:80/TCP",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn missing_brackets_are_called_so_with_and_without_port() {
        for text in ["fd00::10:53/UDP", "fd00::10/UDP", "fd00:1:2:3:4:5:6:7:53/UDP"] {
            let error = text.parse::<Destination>().unwrap_err().to_string();
            assert!(error.contains("brackets"), "{text}: {error}");
        }
    }
}

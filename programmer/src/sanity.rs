//! What is valid, but probably not meant: settings of one IP family where the other one is used.
//!
//! Invariant: pure; only what cannot work at all is an error, as in kube-proxy.

use std::net::IpAddr;

use fairlead_objects::Family;
use ipnet::IpNet;

use crate::settings::{DetectLocal, NodePortAddresses, Settings};

/// What should be looked at, one sentence each; or why this cannot work.
pub fn check(settings: &Settings, programmed: &[Family]) -> Result<Vec<String>, String> {
    let primary = if settings.bind_address.is_unspecified() {
        programmed.first().copied().unwrap_or(Family::V4)
    } else {
        Family::of(settings.bind_address)
    };
    let mut advice = Vec::new();
    let networks: &[IpNet] = match &settings.detect_local {
        DetectLocal::ClusterCidr(networks) => networks,
        _ => &[],
    };
    if !networks.is_empty() && of(networks, primary) == 0 {
        let text =
            format!("clusterCIDR (--cluster-cidr) holds no {primary} network, but this node uses {primary}");
        if let [only] = programmed {
            return Err(format!(
                "{text} alone: give the Pods' {only} network, or choose another detectLocalMode"
            ));
        }
        advice.push(text);
    }
    let dual_stack = Family::ALL.into_iter().all(|family| of(networks, family) > 0);
    advice.extend(node_ports(settings, primary, dual_stack));
    if let [only] = programmed {
        advice.extend(servers(settings, *only));
    }
    Ok(advice)
}

fn of(networks: &[IpNet], family: Family) -> usize {
    networks.iter().filter(|network| Family::of(network.addr()) == family).count()
}

fn node_ports(settings: &Settings, primary: Family, dual_stack: bool) -> Option<String> {
    let NodePortAddresses::Networks(networks) = &settings.node_port_addresses else { return None };
    if networks.is_empty() {
        return Some(
            "nodePortAddresses (--nodeport-addresses) is not set: node ports are served on all addresses of this node; \
             `primary` means those of the Node only"
                .to_owned(),
        );
    }
    let missing = Family::ALL
        .into_iter()
        .find(|family| of(networks, *family) == 0 && (*family == primary || dual_stack))?;
    Some(format!(
        "nodePortAddresses (--nodeport-addresses) holds no {missing} network: node ports are served on all {missing} \
         addresses"
    ))
}

fn servers(settings: &Settings, only: Family) -> Vec<String> {
    let given = [
        ("healthzBindAddress (--healthz-bind-address)", settings.health_address),
        ("metricsBindAddress (--metrics-bind-address)", settings.metrics_address),
    ];
    let odd = |address: &IpAddr| Family::of(*address) != only && !address.is_unspecified();
    let addresses = given.into_iter().filter_map(|(name, address)| Some((name, address?.ip())));
    let odd = addresses.filter(|(_, address)| odd(address));
    odd.map(|(name, address)| format!("{name} is {address}, but this node uses {only} alone")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing;

    const V4_ONLY: &[Family] = &[Family::V4];

    fn with(cluster: &[&str], node_ports: &[&str]) -> Settings {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Settings {
            detect_local: DetectLocal::ClusterCidr(networks(cluster)),
            node_port_addresses: NodePortAddresses::Networks(networks(node_ports)),
            ..testing::settings()
        }
    }

    fn advice(settings: &Settings, programmed: &[Family]) -> String {
        check(settings, programmed).unwrap().join("\n")
    }

    #[test]
    fn cluster_network_of_the_other_family_alone_is_an_error_where_there_is_no_other() {
        let settings = with(&["fd00::/8"], &["0.0.0.0/0"]);
        let error = check(&settings, V4_ONLY).unwrap_err();
        assert!(error.contains("clusterCIDR") && error.contains("IPv4"), "{error}");
        assert!(advice(&settings, &Family::ALL).contains("no IPv4 network"));
        assert_eq!(
            advice(&with(&["fd00::/8", "10.0.0.0/8"], &["0.0.0.0/0"]), V4_ONLY),
            "nodePortAddresses \
            (--nodeport-addresses) holds no IPv6 network: node ports are served on all IPv6 addresses"
        );
        assert_eq!(advice(&with(&["10.0.0.0/8"], &["0.0.0.0/0"]), &Family::ALL), "");
    }

    #[test]
    fn node_ports_that_are_not_restricted_are_told() {
        assert!(advice(&with(&[], &[]), &Family::ALL).contains("not set"));
        assert!(advice(&with(&[], &["fd00::/8"]), &Family::ALL).contains("no IPv4 network"));
        let primary = Settings { node_port_addresses: NodePortAddresses::Primary, ..testing::settings() };
        assert_eq!(advice(&primary, &Family::ALL), "");
    }

    #[test]
    fn servers_of_the_other_family_are_told_where_there_is_no_other() {
        let settings = Settings {
            health_address: Some("[::]:10256".parse().unwrap()),
            metrics_address: Some("[::1]:10249".parse().unwrap()),
            ..with(&[], &["0.0.0.0/0"])
        };
        assert_eq!(
            advice(&settings, V4_ONLY),
            "metricsBindAddress (--metrics-bind-address) is ::1, but this node uses IPv4 alone"
        );
        assert_eq!(advice(&settings, &Family::ALL), "");
    }
}

//! Waiting for what happens to requests, and to what they depend on. What comes meanwhile has to agree with the rules, too.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bed, Connection, From, SETTLE};
use crate::{
    pod,
    probe::Outcome,
    servers::Protocol,
    wait::{self, Look},
};

impl Bed {
    /// The first cluster IP of a Service, by its name or `namespace/name`.
    pub fn cluster_ip(&self, service: &str) -> Result<IpAddr> {
        let ips = self.cluster_ips(service)?;
        ips.first().copied().with_context(|| format!("{service} has no cluster IP"))
    }

    /// The cluster IPs of a Service, by its name or `namespace/name`, in its order of families.
    pub fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let (namespace, name) = pod::split(service);
        let found: Option<Value> = self.kubernetes().get("Service", namespace, name)?;
        let mut found = found.with_context(|| format!("no Service {service}"))?;
        let ips: Vec<String> =
            serde_json::from_value(found["spec"]["clusterIPs"].take()).context("cluster IPs")?;
        ips.iter().map(|ip| ip.parse().with_context(|| format!("{service}'s cluster IP {ip:?}"))).collect()
    }

    /// Waits until requests are answered by exactly these servers.
    pub fn await_servers(
        &self,
        from: From<'_>,
        protocol: Protocol,
        target: SocketAddr,
        servers: &[&str],
    ) -> Result<()> {
        let mut wanted = servers.to_vec();
        wanted.sort_unstable();
        let client = self.client(from)?;
        // With up to four servers, one of them stays silent through 48 fair draws once in a million runs.
        let what = format!("{target}/{protocol} to be answered by {wanted:?}");
        wait::until(&what, SETTLE, || {
            let tally = client.ask_many(protocol, target, 48)?;
            let shares = tally.shares();
            let answered: Vec<&str> = shares.keys().map(String::as_str).collect();
            let done = tally.check_answered().is_ok() && answered == wanted;
            Ok(if done { Look::Done(()) } else { Look::NotYet(tally.to_string()) })
        })
    }

    /// Waits until the Endpoints of a Service list exactly these Pods as ready, sorted; returns them. They are written beside the
    /// slices that rules are made from, so that traffic says nothing of them.
    pub fn await_endpoints(&self, service: &str, pods: &[&str]) -> Result<Value> {
        wait::until_ok(&format!("{pods:?} in the Endpoints {service}"), SETTLE, || {
            let endpoints: Value =
                self.kubernetes().get("Endpoints", "default", service)?.context("there are none")?;
            let subsets = endpoints["subsets"].as_array().into_iter().flatten();
            let listed = subsets.flat_map(|subset| subset["addresses"].as_array().into_iter().flatten());
            let mut names: Vec<_> = listed.filter_map(|one| one["targetRef"]["name"].as_str()).collect();
            names.sort_unstable();
            ensure!(names == pods, "{endpoints}");
            Ok(endpoints)
        })
    }

    /// Waits until requests come to this end.
    pub fn await_outcome(
        &self,
        from: From<'_>,
        protocol: Protocol,
        target: SocketAddr,
        wanted: &Outcome,
    ) -> Result<()> {
        let client = self.client(from)?;
        wait::until(&format!("{target}/{protocol} to end in `{wanted}`"), SETTLE, || {
            let got = client.ask(protocol, target)?;
            Ok(if got == *wanted { Look::Done(()) } else { Look::NotYet(got.to_string()) })
        })
    }

    /// Waits until somebody accepts a connection.
    pub fn await_connection(&self, from: From<'_>, target: SocketAddr) -> Result<Connection<'_>> {
        let client = self.client(from)?;
        wait::until(&format!("{target} to accept a connection"), SETTLE, || {
            Ok(match client.connect(target)? {
                Ok(connection) => Look::Done(connection),
                Err(outcome) => Look::NotYet(outcome.to_string()),
            })
        })
    }
}

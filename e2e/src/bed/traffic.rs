//! Waiting for what happens to requests.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Bed, From, SETTLE};
use crate::{pod, probe::Outcome, servers::Protocol, wait};

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
        let client = self.client(from)?.unchecked();
        // With up to four servers, one of them stays silent through 48 fair draws once in a million runs.
        let what = format!("{target}/{protocol} to be answered by {wanted:?}");
        wait::until_ok(&what, SETTLE, || {
            let tally = client.ask_many(protocol, target, 48)?;
            tally.check_answered()?;
            let shares = tally.shares();
            let answered: Vec<&str> = shares.keys().map(String::as_str).collect();
            if answered != wanted {
                bail!("{tally}");
            }
            Ok(())
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
        let client = self.client(from)?.unchecked();
        wait::until_ok(&format!("{target}/{protocol} to end in `{wanted}`"), SETTLE, || {
            let got = client.ask(protocol, target)?;
            ensure!(got == *wanted, "{got}");
            Ok(())
        })
    }
}

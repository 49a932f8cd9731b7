//! The command line: kube-controller-manager's flag names where they mean the same.
//!
//! Invariant: [`Flags::settings`] reports every problem, not only the first.

use std::{fmt::Display, time::Duration};

use clap::{ArgAction, Parser};
use fairlead_daemon::{admin::Address, client::ClientFlags, duration::GoDuration, logging::LogFlags};
use fairlead_planner::{Limits, Parts};
use serde::Serialize;

use crate::{
    leadership::Times,
    part::{self, Part},
    queue::BatchPeriods,
};

/// Writes Endpoints and EndpointSlices for Services: replaces kube-controller-manager's endpoints-controller,
/// endpointslice-controller and endpointslice-mirroring-controller.
///
/// Switch those off first: --controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller
#[derive(Parser, Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(name = "fairlead-controller", version, max_term_width = 110)]
pub struct Flags {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) client: ClientFlags,

    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) log: LogFlags,

    /// Which parts to run: '*' is all, 'NAME' switches one on, '-NAME' off. Names: endpoints-controller,
    /// endpointslice-controller, endpointslice-mirroring-controller (or endpoint, endpointslice, endpointslicemirroring)
    #[arg(
        long,
        value_name = "LIST",
        default_value = "*",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "Work"
    )]
    pub(crate) controllers: Vec<String>,

    /// How many Services are worked on at once; 1 to 50
    #[arg(long, value_name = "NUMBER", default_value_t = 5, help_heading = "Work")]
    pub(crate) concurrent_service_endpoint_syncs: u16,

    /// As --concurrent-service-endpoint-syncs. Endpoints and slices of a Service are worked on together here, so the
    /// highest of the three numbers counts
    #[arg(long, value_name = "NUMBER", default_value_t = 5, help_heading = "Work")]
    pub(crate) concurrent_endpoint_syncs: u16,

    /// As --concurrent-service-endpoint-syncs; the highest of the three numbers counts
    #[arg(long, value_name = "NUMBER", default_value_t = 5, help_heading = "Work")]
    pub(crate) mirroring_concurrent_service_endpoint_syncs: u16,

    /// How long changes of Pods gather before Endpoints are written; the first change opens the window
    #[arg(long, value_name = "DURATION", default_value = "0s", help_heading = "Work")]
    pub(crate) endpoint_updates_batch_period: GoDuration,

    /// How long changes of Pods, Nodes and EndpointSlices gather before EndpointSlices are written
    #[arg(long, value_name = "DURATION", default_value = "0s", help_heading = "Work")]
    pub(crate) endpointslice_updates_batch_period: GoDuration,

    /// How long changes of mirrored EndpointSlices gather before they are written again
    #[arg(long, value_name = "DURATION", default_value = "0s", help_heading = "Work")]
    pub(crate) mirroring_endpointslice_updates_batch_period: GoDuration,

    /// Endpoints that an EndpointSlice holds at most; 1 to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = 100, help_heading = "Work")]
    pub(crate) max_endpoints_per_slice: usize,

    /// Addresses that are mirrored of each subset of hand-made Endpoints; 1 to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, help_heading = "Work")]
    pub(crate) mirroring_max_endpoints_per_subset: usize,

    /// Write nothing. Run beside the controllers that are in charge, and report whatever they leave that this one would not
    /// (in the log, in metrics and at /debug/divergence). There is no leader election then
    #[arg(long, help_heading = "Shadow")]
    pub(crate) shadow: bool,

    /// With --shadow: compare a Service when nothing has changed around it for so long
    #[arg(long, value_name = "DURATION", default_value = "5s", help_heading = "Shadow")]
    pub(crate) shadow_quiet_period: GoDuration,

    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) election: ElectionFlags,

    /// Where to serve /healthz, /livez, /readyz and /metrics; ':8080' is all addresses, '0' is nowhere
    #[arg(
        long,
        visible_alias = "bind-address",
        value_name = "ADDRESS",
        default_value = ":8080",
        help_heading = "Server"
    )]
    pub(crate) http_address: Address,

    /// Print the effective configuration as JSON and exit
    #[arg(long, help_heading = "Server")]
    #[serde(skip)]
    pub(crate) dump_config: bool,
}

/// Flags of leader election.
#[derive(clap::Args, Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Leader election")]
#[allow(clippy::struct_field_names, reason = "the fields are called as the flags are")]
pub struct ElectionFlags {
    /// Write only while holding a lease, so that several replicas can run; the others stand by with everything known
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub(crate) leader_elect: bool,

    /// How long a lease lasts that is not renewed: how long a standby waits when the leader vanished; whole seconds
    #[arg(long, value_name = "DURATION", default_value = "15s")]
    pub(crate) leader_elect_lease_duration: GoDuration,

    /// How long a leader tries to renew before it stops writing; less than the lease duration
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub(crate) leader_elect_renew_deadline: GoDuration,

    /// How often a leader renews its lease; less than the renew deadline; whole seconds
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub(crate) leader_elect_retry_period: GoDuration,

    /// Name of the Lease
    #[arg(long, value_name = "NAME", default_value = "fairlead-controller")]
    pub(crate) leader_elect_resource_name: String,

    /// Namespace of the Lease
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub(crate) leader_elect_resource_namespace: String,
}

/// What the flags ask for, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which parts run.
    pub parts: Parts,
    /// How long they let changes gather.
    pub periods: BatchPeriods,
    /// Sizes.
    pub limits: Limits,
    /// How many Services are worked on at once.
    pub concurrency: u16,
    /// Times of the lease; `None` without leader election.
    pub lease: Option<Times>,
    /// Only compare, when a Service has been quiet for so long.
    pub shadow: Option<Duration>,
}

impl Flags {
    /// Checks the flags. The error holds one line per problem.
    pub fn settings(&self) -> Result<Settings, Vec<String>> {
        let mut problems = Vec::new();
        let syncs = [
            ("--concurrent-service-endpoint-syncs", self.concurrent_service_endpoint_syncs),
            ("--concurrent-endpoint-syncs", self.concurrent_endpoint_syncs),
            (
                "--mirroring-concurrent-service-endpoint-syncs",
                self.mirroring_concurrent_service_endpoint_syncs,
            ),
        ];
        for (flag, value) in syncs {
            within(flag, value, 1, 50, &mut problems);
        }
        within("--max-endpoints-per-slice", self.max_endpoints_per_slice, 1, 1000, &mut problems);
        let mirrored = self.mirroring_max_endpoints_per_subset;
        within("--mirroring-max-endpoints-per-subset", mirrored, 1, 1000, &mut problems);
        if !self.client.kube_api_qps.is_finite() || self.client.kube_api_qps < 0.0 {
            problems
                .push(format!("--kube-api-qps is {}: expected a number from 0 up", self.client.kube_api_qps));
        }
        let parts = parse_parts(&self.controllers).unwrap_or_else(|found| {
            problems.extend(found);
            part::set([])
        });
        let lease = self.election.times(&mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Settings {
            parts,
            periods: BatchPeriods {
                endpoints: self.endpoint_updates_batch_period.0,
                slices: self.endpointslice_updates_batch_period.0,
                mirror: self.mirroring_endpointslice_updates_batch_period.0,
            },
            limits: Limits {
                endpoints_per_slice: self.max_endpoints_per_slice,
                mirrored_per_subset: self.mirroring_max_endpoints_per_subset,
            },
            concurrency: syncs.into_iter().map(|(_, value)| value).max().unwrap_or(1),
            lease: lease.filter(|_| !self.shadow),
            shadow: self.shadow.then_some(self.shadow_quiet_period.0),
        })
    }

    /// Flags of logging.
    pub fn logging(&self) -> &LogFlags {
        &self.log
    }

    /// Whether only the configuration is asked for.
    pub fn dumps_config(&self) -> bool {
        self.dump_config
    }

    /// The effective configuration, keyed by flag names.
    pub fn dump(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

impl ElectionFlags {
    fn times(&self, problems: &mut Vec<String>) -> Option<Times> {
        let times = Times {
            lease: self.leader_elect_lease_duration.0,
            renew_deadline: self.leader_elect_renew_deadline.0,
            retry: self.leader_elect_retry_period.0,
        };
        if !self.leader_elect {
            return None;
        }
        for (flag, value) in
            [("--leader-elect-lease-duration", times.lease), ("--leader-elect-retry-period", times.retry)]
        {
            if value < Duration::from_secs(1) || value.subsec_nanos() != 0 {
                problems
                    .push(format!("{flag} is {}: expected whole seconds, at least 1s", GoDuration(value)));
            }
        }
        if times.renew_deadline >= times.lease {
            problems.push(format!(
                "--leader-elect-renew-deadline is {}: expected less than --leader-elect-lease-duration ({})",
                self.leader_elect_renew_deadline, self.leader_elect_lease_duration
            ));
        }
        if times.retry >= times.renew_deadline {
            problems.push(format!(
                "--leader-elect-retry-period is {}: expected less than --leader-elect-renew-deadline ({})",
                self.leader_elect_retry_period, self.leader_elect_renew_deadline
            ));
        }
        for (flag, value) in [
            ("--leader-elect-resource-name", &self.leader_elect_resource_name),
            ("--leader-elect-resource-namespace", &self.leader_elect_resource_namespace),
        ] {
            if value.is_empty() {
                problems.push(format!("{flag} is empty: expected a name"));
            }
        }
        Some(times)
    }
}

fn within<T: PartialOrd + Display + Copy>(flag: &str, value: T, low: T, high: T, problems: &mut Vec<String>) {
    if value < low || value > high {
        problems.push(format!("{flag} is {value}: expected {low} to {high}"));
    }
}

/// Reads `--controllers` as kube-controller-manager does: the first element that is a part's name switches it on, or off
/// with a minus; without one, `*` switches it on.
fn parse_parts(list: &[String]) -> Result<Parts, Vec<String>> {
    let named = |element: &str, part: Part| element == part.controller() || element == part.alias();
    let name = |element: &str| element.strip_prefix('-').unwrap_or(element).to_owned();
    let unknown = list
        .iter()
        .filter(|element| *element != "*" && !Part::ALL.into_iter().any(|part| named(&name(element), part)));
    let expected = Part::ALL.map(Part::controller).join(", ");
    let mut problems: Vec<String> = unknown
        .map(|element| format!("--controllers holds {element:?}: expected *, NAME or -NAME of {expected}"))
        .collect();
    let on = |part: &Part| {
        let first = list.iter().find(|element| named(&name(element), *part));
        first.map_or_else(|| list.iter().any(|element| element == "*"), |element| !element.starts_with('-'))
    };
    let parts: Vec<Part> = Part::ALL.into_iter().filter(on).collect();
    if parts.is_empty() && problems.is_empty() {
        problems.push(format!("--controllers leaves nothing to run: name at least one of {expected}"));
    }
    if problems.is_empty() { Ok(part::set(parts)) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Flags::parse_from(["fairlead-controller"].iter().chain(args))
    }

    #[test]
    fn command_line_is_well_formed() {
        Flags::command().debug_assert();
    }

    #[test]
    fn every_flag_is_documented() {
        let undocumented: Vec<_> = Flags::command()
            .get_arguments()
            .filter(|argument| argument.get_help().is_none())
            .map(|argument| argument.get_id().to_string())
            .collect();
        assert_eq!(undocumented, Vec::<String>::new());
    }

    #[test]
    fn defaults_are_upstream_s() {
        let settings = flags(&[]).settings().unwrap();
        assert_eq!(settings.parts, Parts::default());
        assert_eq!(settings.limits, Limits::default());
        assert_eq!(settings.concurrency, 5);
        assert_eq!(settings.lease.unwrap().lease, Duration::from_secs(15));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let problems = flags(&[
            "--max-endpoints-per-slice=0",
            "--concurrent-service-endpoint-syncs=51",
            "--controllers=*,-nodeipam",
            "--leader-elect-renew-deadline=20s",
        ])
        .settings()
        .unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(problems.iter().all(|problem| problem.contains("expected")), "{problems:#?}");
    }

    #[test]
    fn controllers_are_switched_as_upstream_does() {
        let parts = |list: &str| flags(&[&format!("--controllers={list}")]).settings().map(|s| s.parts);
        assert_eq!(parts("*,-endpoints-controller").unwrap(), part::set([Part::Slices, Part::Mirror]));
        assert_eq!(parts("-endpoint,*").unwrap(), part::set([Part::Slices, Part::Mirror]));
        assert_eq!(parts("endpointslicemirroring").unwrap(), part::set([Part::Mirror]));
        assert_eq!(parts("endpointslice,-endpointslice").unwrap(), part::set([Part::Slices]));
        assert!(parts("-endpoint").unwrap_err()[0].contains("nothing to run"));
    }

    #[test]
    fn leader_election_is_switched_off_with_an_equals_sign() {
        assert!(flags(&["--leader-elect=false"]).settings().unwrap().lease.is_none());
        assert!(flags(&["--leader-elect"]).settings().unwrap().lease.is_some());
    }

    #[test]
    fn shadow_has_no_leader_election() {
        let settings = flags(&["--shadow", "--shadow-quiet-period=1s"]).settings().unwrap();
        assert!(settings.lease.is_none());
        assert_eq!(settings.shadow, Some(Duration::from_secs(1)));
        assert_eq!(flags(&[]).settings().unwrap().shadow, None);
    }

    #[test]
    fn dump_is_keyed_by_flag_names() {
        let dump =
            flags(&["--kube-api-qps=20", "--endpointslice-updates-batch-period=500ms"]).dump().unwrap();
        for part in [
            "\"kube-api-qps\": 20.0",
            "\"endpointslice-updates-batch-period\": \"500ms\"",
            "\"http-address\": \":8080\"",
        ] {
            assert!(dump.contains(part), "{part} in {dump}");
        }
    }
}

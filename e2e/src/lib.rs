//! A real cluster on one machine, in seconds: etcd, kube-apiserver and kube-controller-manager, nodes and Pods as
//! network namespaces, real servers in the Pods, real clients anywhere, and the programs under test on it.
//!
//! [`Bed`] is what tests use; the other modules are its parts. A file of tests is a [`suite`] of cases on one bed.
//!
//! Only tests and the demo depend on this crate. It needs root, the programs that `make tools` builds, and nothing else
//! of the machine: no route leaves the namespaces, no rule is loaded outside them, and they vanish with the process
//! that made them, however it ends ([`record`] says how).

pub mod audit;
pub mod bed;
pub mod chart;
pub mod churn;
pub mod cluster;
pub mod control_plane;
pub mod differential;
pub mod examples;
pub mod expected;
pub mod fairness;
pub mod iptables;
pub mod kubernetes;
pub mod load;
pub mod netns;
pub mod network;
pub mod pki;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod processes;
pub mod programs;
pub mod record;
pub mod replica;
pub mod rights;
pub mod servers;
pub mod service_accounts;
pub mod suite;
pub mod tools;
pub mod tun;
pub mod wait;

pub use bed::{Bed, From, Options};
pub use pod::{PodSpec, Port};
pub use probe::Outcome;
pub use servers::Protocol;

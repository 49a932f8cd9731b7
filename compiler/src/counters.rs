//! Names of the nfacct objects that rules count packets in, as kube-proxy calls them.

/// Packets that conntrack could not make sense of.
pub const INVALID: &str = "ct_state_invalid_dropped_pkts";
/// First packets of connections to node ports on loopback.
pub const LOCALHOST: &str = "localhost_nps_accepted_pkts";

//! Well-known label and annotation keys and values.

/// Slice -> Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Which controller owns a slice.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Value of [`SLICE_MANAGED_BY`] for slices of Services with a selector.
pub const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// Value of [`SLICE_MANAGED_BY`] for mirrored slices.
pub const MIRRORING_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// Marks Endpoints that must not be mirrored, with value `true`.
pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Marks objects of headless Services; its value is empty.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Hands a Service to another proxy.
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Which controller owns an Endpoints.
pub const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Value of [`ENDPOINTS_MANAGED_BY`].
pub const ENDPOINTS_CONTROLLER: &str = "endpoint-controller";
/// Annotation: when the change happened that this version shows.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Annotation: the Endpoints was truncated.
pub const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Annotation: an Endpoints used as a leader-election record.
pub const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotation: what `kubectl apply` sent last.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotation on Services: topology-aware hints.
pub const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// Annotation on Services: deprecated form of [`TOPOLOGY_MODE`], which it overrides.
pub const TOPOLOGY_AWARE_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// Label on Nodes.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label on Nodes that run the control plane.
pub const NODE_ROLE_CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Label on Nodes that run the control plane, deprecated form.
pub const NODE_ROLE_MASTER: &str = "node-role.kubernetes.io/master";

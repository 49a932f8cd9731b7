//! Services `svc-1`, `svc-2` and so on, of either family, and whether they are programmed.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each test uses a part of it")]

use std::sync::Arc;

use fairlead_objects::{Family, ServiceKey, builders};
use fairlead_programmer::{feed::Change, netfilter::Variant};
use serde_json::json;

use crate::{
    namespace::shell,
    node::{program, until},
};

pub fn endpoint(family: Family, number: u32) -> String {
    match family {
        Family::V4 => format!("10.0.1.{number}"),
        Family::V6 => format!("fd00:10::{number}"),
    }
}

/// An address and port, as rules write it.
pub fn target(family: Family, number: u32) -> String {
    let ip = endpoint(family, number);
    if family == Family::V4 { format!("{ip}:8080") } else { format!("[{ip}]:8080") }
}

pub fn service(family: Family, number: u32) -> Change {
    let ip = if family == Family::V4 { format!("10.96.1.{number}") } else { format!("fd00:96::{number}") };
    let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family.as_str()]});
    Change::Service(Arc::new(builders::service(&format!("svc-{number}"), spec)))
}

pub fn gone(number: u32) -> Change {
    Change::ServiceGone(ServiceKey::new("default", format!("svc-{number}")))
}

/// The only slice of a Service.
pub fn slice(family: Family, service: u32, numbers: &[u32]) -> Change {
    let name = format!("svc-{service}");
    let endpoints: Vec<_> = numbers.iter().map(|number| endpoint(family, *number)).collect();
    let endpoints: Vec<_> = endpoints.iter().map(|ip| (ip.as_str(), "node-a", true)).collect();
    let mut slice = builders::slice(&name, &name, 8080, &endpoints);
    slice.address_type = serde_json::from_value(family.as_str().into()).unwrap();
    Change::Slice(Arc::new(slice))
}

/// Services 1 to `count`, with the endpoint of the same number.
pub fn services(family: Family, count: u32) -> Vec<Change> {
    (1..=count).flat_map(|number| [service(family, number), slice(family, number, &[number])]).collect()
}

pub fn nat(family: Family, variant: Variant) -> String {
    shell(&format!("{}-save -t nat", program(family, variant)))
}

pub async fn until_programmed(family: Family, variant: Variant, number: u32) {
    let target = target(family, number);
    until(&format!("{target} is programmed"), || nat(family, variant).contains(&target)).await;
}

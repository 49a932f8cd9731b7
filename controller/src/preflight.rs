//! Preflight: is another controller writing the objects that this one is about to write?
//!
//! Two controllers with the same manager labels converge while they agree and fight while they do not, so this should be
//! known early. Managed fields tell who wrote an object last and when; the index does not hold them, so a few objects are
//! looked at, at start and once more a little later.
//!
//! Invariants: it only reads and warns. Nothing waits for it, and its failure is no failure of the daemon.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use fairlead_daemon::failure;
use fairlead_objects::{EndpointSlice, Endpoints, labels};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{ListParams, PartialObjectMeta},
    core::Resource,
};

use crate::{execute::FIELD_MANAGER, metrics::Metrics};

/// How many objects of a kind are looked at.
const SAMPLE: u32 = 100;
/// A write so long ago at the start is worth a word: whoever made it may still be there.
const RECENTLY: Duration = Duration::from_mins(2);
/// When to look again. What others wrote after our start was written beside us.
const AGAIN: Duration = Duration::from_mins(2);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The newest write of one other writer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sighting {
    kind: &'static str,
    object: String,
    at: Timestamp,
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.kind, self.object, self.at)
    }
}

/// Looks twice, and says whom it saw. The second look goes by the API server's clock only, in case ours is another time.
pub async fn run(client: Client, metrics: Arc<Metrics>) {
    let start = Timestamp::now();
    let recently = start.saturating_sub(RECENTLY).unwrap_or(start);
    let newest = look(&client, &metrics, recently, false).await.unwrap_or(start);
    tokio::time::sleep(AGAIN).await;
    // Managed fields know whole seconds.
    let since = newest.saturating_add(Duration::from_secs(1)).unwrap_or(newest);
    look(&client, &metrics, since, true).await;
}

/// Returns when anybody wrote last, as far as was seen.
async fn look(client: &Client, metrics: &Metrics, since: Timestamp, beside_us: bool) -> Option<Timestamp> {
    let both = async {
        tokio::try_join!(
            sample::<EndpointSlice>(client, labels::SLICE_MANAGED_BY, labels::SLICE_CONTROLLER),
            sample::<Endpoints>(client, labels::ENDPOINTS_MANAGED_BY, labels::ENDPOINTS_CONTROLLER),
        )
    };
    let (slices, endpoints) = match tokio::time::timeout(PATIENCE, both).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::debug!("cannot look for other writers: {}", failure::sentence(&error));
            return None;
        }
        Err(_elapsed) => {
            tracing::debug!("cannot look for other writers: no answer in time");
            return None;
        }
    };
    let mut writers = BTreeMap::new();
    sightings("EndpointSlice", "f:endpoints", &slices, since, &mut writers);
    sightings("Endpoints", "f:subsets", &endpoints, since, &mut writers);
    metrics.other_writers(writers.len());
    for (manager, sighting) in &writers {
        if beside_us {
            tracing::warn!(
                manager,
                "another controller writes the same objects: it wrote {sighting}, after this one started; switch its \
                 endpoint controllers off, or run this one with --shadow"
            );
        } else {
            tracing::warn!(
                manager,
                "another controller has just written the same objects: it wrote {sighting}; if that is not a hand-over, \
                 switch its endpoint controllers off, or run this one with --shadow"
            );
        }
    }
    let times =
        slices.iter().map(|object| &object.metadata).chain(endpoints.iter().map(|object| &object.metadata));
    let times = times.flat_map(|metadata| metadata.managed_fields.iter().flatten());
    times.filter_map(|entry| Some(entry.time.as_ref()?.0)).max()
}

async fn sample<K>(client: &Client, label: &str, value: &str) -> kube::Result<Vec<PartialObjectMeta<K>>>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + serde::de::DeserializeOwned,
{
    let few = ListParams::default().labels(&format!("{label}={value}")).limit(SAMPLE);
    Ok(Api::<K>::all(client.clone()).list_metadata(&few).await?.items)
}

/// Adds those who wrote `field` since then, each with its newest write.
fn sightings<K>(
    kind: &'static str,
    field: &str,
    objects: &[PartialObjectMeta<K>],
    since: Timestamp,
    writers: &mut BTreeMap<String, Sighting>,
) {
    for object in objects {
        let metadata = &object.metadata;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        for (manager, at) in
            metadata.managed_fields.iter().flatten().filter_map(|entry| written(entry, field))
        {
            if manager == FIELD_MANAGER || at < since {
                continue;
            }
            let object = format!("{}/{}", text(&metadata.namespace), text(&metadata.name));
            let sighting = Sighting { kind, object, at };
            let known = writers.entry(manager.to_owned()).or_insert_with(|| sighting.clone());
            if known.at < at {
                *known = sighting;
            }
        }
    }
}

/// Who wrote that field, and when.
fn written<'a>(entry: &'a ManagedFieldsEntry, field: &str) -> Option<(&'a str, Timestamp)> {
    entry.fields_v1.as_ref()?.0.get(field)?;
    Some((entry.manager.as_deref()?, entry.time.as_ref()?.0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use axum::{Router, extract::Request, response::IntoResponse as _};
    use fairlead_daemon::metrics::Metrics as Exposition;
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, fields: &Value) -> PartialObjectMeta<EndpointSlice> {
        serde_json::from_value(json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"namespace": "default", "name": name, "managedFields": fields}}))
        .unwrap()
    }

    fn entry(manager: &str, second: u8, fields: &Value) -> Value {
        json!({"manager": manager, "operation": "Update", "apiVersion": "discovery.k8s.io/v1", "fieldsType": "FieldsV1",
               "time": format!("2026-01-01T00:00:{second:02}Z"), "fieldsV1": fields})
    }

    fn seen(objects: &[PartialObjectMeta<EndpointSlice>]) -> Vec<(String, String)> {
        let mut writers = BTreeMap::new();
        let since = "2026-01-01T00:00:10Z".parse().unwrap();
        sightings("EndpointSlice", "f:endpoints", objects, since, &mut writers);
        writers.into_iter().map(|(manager, sighting)| (manager, sighting.object)).collect()
    }

    #[test]
    fn other_writers_of_endpoints_are_seen_with_their_newest_write() {
        let fields = json!({"f:endpoints": {}});
        let objects = [
            slice("a", &json!([entry("kube-controller-manager", 20, &fields)])),
            slice(
                "b",
                &json!([entry("kube-controller-manager", 30, &fields), entry(FIELD_MANAGER, 40, &fields)]),
            ),
        ];
        assert_eq!(seen(&objects), [("kube-controller-manager".to_owned(), "default/b".to_owned())]);
    }

    /// How many others are counted in the end, by an API server whose clock is far behind and where another writes the slices
    /// at these seconds, the first before we start, the second before the second look.
    async fn others_after(seconds: [u8; 2]) -> bool {
        let look = Arc::new(AtomicU8::new(0));
        let answer = async move |request: Request| {
            let mut items = Vec::new();
            if request.uri().path().ends_with("/endpointslices") {
                let second = seconds[usize::from(look.fetch_add(1, Ordering::Relaxed))];
                let fields = json!([entry("kube-controller-manager", second, &json!({"f:endpoints": {}}))]);
                items.push(serde_json::to_value(slice("a", &fields)).unwrap());
            }
            let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                              "metadata": {}, "items": items});
            list.to_string().into_response()
        };
        let exposition = Exposition::new();
        let metrics = Arc::new(Metrics::new(&exposition));
        run(Client::new(Router::new().fallback(answer), "default"), metrics).await;
        exposition.encode().unwrap().contains("fairlead_other_writers 1")
    }

    #[tokio::test(start_paused = true)]
    async fn writes_beside_us_are_seen_whatever_our_clock_says() {
        assert!(others_after([10, 20]).await);
        assert!(!others_after([10, 10]).await);
    }

    #[test]
    fn old_writes_and_writes_of_other_fields_are_no_sign() {
        let fields = json!({"f:endpoints": {}});
        let objects = [
            slice("a", &json!([entry("kube-controller-manager", 5, &fields)])),
            slice("b", &json!([entry("kubectl", 30, &json!({"f:metadata": {"f:labels": {}}}))])),
            slice("c", &Value::Null),
        ];
        assert_eq!(seen(&objects), []);
    }
}

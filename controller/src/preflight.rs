//! Preflight: is another controller writing the objects that this one is about to write?
//!
//! Two controllers with the same manager labels converge while they agree and fight while they do not, so this should be
//! known early, and also when the other comes back later: an upgrade of the control plane writes its flags anew. Managed fields
//! tell who wrote an object last and when; the index does not hold them, so a few objects are looked at, at start and every
//! few minutes.
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
use tokio::time::{Instant, sleep, timeout};

use crate::{execute::FIELD_MANAGER, metrics::Metrics};

/// How many objects of a kind are looked at.
const SAMPLE: u32 = 100;
/// A write so long ago at the start is worth a word: whoever made it may still be there.
const RECENTLY: Duration = Duration::from_mins(2);
/// When to look again. What others wrote after our start was written beside us.
const AGAIN: Duration = Duration::from_mins(2);
/// Whoever has not been seen to write for so long is taken to be gone.
const SILENCE: Duration = Duration::from_mins(15);
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

/// What a look showed.
struct Look {
    /// Others, each with its newest write.
    writers: BTreeMap<String, Sighting>,
    /// When anybody wrote last.
    newest: Option<Timestamp>,
}

/// Others that are at work, as far as is known.
#[derive(Default)]
struct Others(BTreeMap<String, Other>);

struct Other {
    seen: Instant,
    beside_us: bool,
}

impl Others {
    /// Says who is new. What was written before our start may have been the end of it.
    fn take(&mut self, writers: BTreeMap<String, Sighting>, beside_us: bool) {
        for (manager, sighting) in writers {
            let known = self.0.get(&manager).map(|other| other.beside_us);
            match (beside_us, known) {
                (true, None | Some(false)) => tracing::warn!(
                    manager,
                    "another controller writes the same objects: it wrote {sighting}, after this one started; switch its \
                     endpoint controllers off, or run this one with --shadow"
                ),
                (false, None) => tracing::warn!(
                    manager,
                    "another controller has just written the same objects: it wrote {sighting}; if that is not a hand-over, \
                     switch its endpoint controllers off, or run this one with --shadow"
                ),
                _ => {}
            }
            self.0.insert(manager, Other { seen: Instant::now(), beside_us });
        }
    }

    /// Forgets who is silent.
    fn forget(&mut self) {
        self.0.retain(|manager, other| {
            let is_silent = other.seen.elapsed() >= SILENCE;
            if is_silent {
                let minutes = SILENCE.as_secs() / 60;
                tracing::info!(manager, "the other controller was not seen to write for {minutes} minutes");
            }
            !is_silent
        });
    }
}

/// Looks again and again, and says whom it saw. Looks after the first go by the API server's clock only, in case ours is
/// another time. Never ends: drop it.
pub async fn run(client: Client, metrics: Arc<Metrics>) {
    let start = Timestamp::now();
    let mut others = Others::default();
    let mut newest = start;
    if let Some(first) = look(&client, start.saturating_sub(RECENTLY).unwrap_or(start)).await {
        newest = first.newest.unwrap_or(start);
        others.take(first.writers, false);
    }
    loop {
        others.forget();
        metrics.other_writers(others.0.len());
        sleep(AGAIN).await;
        // Managed fields know whole seconds.
        let since = newest.saturating_add(Duration::from_secs(1)).unwrap_or(newest);
        if let Some(look) = look(&client, since).await {
            newest = look.newest.map_or(newest, |latest| latest.max(newest));
            others.take(look.writers, true);
        }
    }
}

/// Whoever wrote since then.
async fn look(client: &Client, since: Timestamp) -> Option<Look> {
    let both = async {
        tokio::try_join!(
            sample::<EndpointSlice>(client, labels::SLICE_MANAGED_BY, labels::SLICE_CONTROLLER),
            sample::<Endpoints>(client, labels::ENDPOINTS_MANAGED_BY, labels::ENDPOINTS_CONTROLLER),
        )
    };
    let (slices, endpoints) = match timeout(PATIENCE, both).await {
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
    let times =
        slices.iter().map(|object| &object.metadata).chain(endpoints.iter().map(|object| &object.metadata));
    let times = times.flat_map(|metadata| metadata.managed_fields.iter().flatten());
    let newest = times.filter_map(|entry| Some(entry.time.as_ref()?.0)).max();
    Some(Look { writers, newest })
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// How many others are counted after each look of an API server whose clock is far behind, and where another wrote the
    /// slices at these seconds; the first look is before we start.
    async fn others_after(seconds: &'static [u8]) -> Vec<bool> {
        let looks = Arc::new(AtomicUsize::new(0));
        let answer = async move |request: Request| {
            let mut items = Vec::new();
            if request.uri().path().ends_with("/endpointslices") {
                let look = looks.fetch_add(1, Ordering::Relaxed).min(seconds.len() - 1);
                let fields =
                    json!([entry("kube-controller-manager", seconds[look], &json!({"f:endpoints": {}}))]);
                items.push(serde_json::to_value(slice("a", &fields)).unwrap());
            }
            let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                              "metadata": {}, "items": items});
            list.to_string().into_response()
        };
        let exposition = Exposition::new();
        let metrics = Arc::new(Metrics::new(&exposition));
        let client = Client::new(Router::new().fallback(answer), "default");
        let looking = tokio::spawn(run(client, metrics));
        let mut counted = Vec::new();
        for _ in seconds {
            // On paused time: past the next look, and far from the one after it.
            sleep(AGAIN / 2).await;
            counted.push(exposition.encode().unwrap().contains("fairlead_other_writers 1"));
            sleep(AGAIN / 2).await;
        }
        looking.abort();
        counted
    }

    #[tokio::test(start_paused = true)]
    async fn writes_beside_us_are_seen_whatever_our_clock_says() {
        assert_eq!(others_after(&[10, 20]).await, [false, true]);
        assert_eq!(others_after(&[10, 10]).await, [false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn writer_that_comes_back_later_is_seen_and_forgotten_when_it_is_silent() {
        let counted = others_after(&[10, 10, 10, 10, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20]).await;
        let (before, after) = counted.split_at(4);
        assert!(!before.contains(&true), "{counted:?}");
        // Every two minutes, for a quarter of an hour.
        assert_eq!(after, [true, true, true, true, true, true, true, true, false, false]);
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

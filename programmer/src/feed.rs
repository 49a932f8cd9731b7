//! From watch events to changes.
//!
//! A watch that breaks lists everything again. What the new list lacks was deleted meanwhile; nothing else tells so.
//!
//! Invariant: after a complete list, what the receivers hold is exactly what was listed, whatever was missed before.

use std::sync::Arc;

use fairlead_daemon::watch::Event;
use fairlead_objects::{EndpointSlice, Family, Interner, ObjectMeta, Service, ServiceKey, ServiceObject};
use rustc_hash::FxHashSet;
use tokio::sync::mpsc;

/// Namespace and name of any object; both kinds we watch are keyed so.
pub type ObjectKey = ServiceKey;

/// A kind of object that rules are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Frontends.
    Services,
    /// Backends.
    EndpointSlices,
}

/// One change of what rules are made from.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service is there, or is different.
    Service(Arc<Service>),
    /// A Service is gone.
    ServiceGone(ObjectKey),
    /// A slice is there, or is different.
    Slice(Arc<EndpointSlice>),
    /// A slice is gone.
    SliceGone(ObjectKey),
    /// All objects of a kind have been told.
    Listed(Kind),
}

/// What an event means for the object it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step<T> {
    Set(T),
    Gone(ObjectKey),
    Listed,
}

/// Which objects of one kind the receivers know.
#[derive(Debug, Default)]
struct Known {
    all: FxHashSet<ObjectKey>,
    /// While a list is read: those that it has not shown yet.
    unseen: FxHashSet<ObjectKey>,
    namespaces: Interner<str>,
}

impl Known {
    /// What an event means, with `view` made of its object.
    fn steps<T, V>(
        &mut self,
        event: Event<T>,
        view: impl Fn(T) -> V,
        key: impl Fn(&V) -> ObjectKey,
    ) -> Vec<Step<V>> {
        match event {
            Event::Init => {
                self.unseen.clone_from(&self.all);
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let object = view(object);
                self.note(key(&object));
                vec![Step::Set(object)]
            }
            Event::Delete(object) => {
                let key = key(&view(object));
                self.unseen.remove(&key);
                if self.all.remove(&key) { vec![Step::Gone(key)] } else { Vec::new() }
            }
            Event::InitDone => {
                // Its room is not needed before the next list.
                let gone = std::mem::take(&mut self.unseen);
                for key in &gone {
                    self.all.remove(key);
                }
                gone.into_iter().map(Step::Gone).chain([Step::Listed]).collect()
            }
        }
    }

    fn note(&mut self, key: ObjectKey) {
        self.unseen.remove(&key);
        if !self.all.contains(&key) {
            self.all.insert(ObjectKey { namespace: self.namespaces.share(key.namespace), ..key });
        }
    }
}

fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    let text = |value: &Option<String>| value.as_deref().unwrap_or_default().to_owned();
    ObjectKey::new(text(&metadata.namespace), text(&metadata.name))
}

/// Turns events about Services into changes.
#[derive(Debug, Default)]
pub struct Services(Known);

impl Services {
    /// The changes that an event means, in order.
    pub fn changes(&mut self, event: Event<ServiceObject>) -> Vec<Change> {
        // The key of the view, so that its name is held once by us and by those that we tell.
        let steps = self.0.steps(event, Service::from, |service| service.key.clone());
        let change = |step| match step {
            Step::Set(service) => Change::Service(Arc::new(service)),
            Step::Gone(key) => Change::ServiceGone(key),
            Step::Listed => Change::Listed(Kind::Services),
        };
        steps.into_iter().map(change).collect()
    }
}

/// Turns events about EndpointSlices into changes.
#[derive(Debug, Default)]
pub struct Slices(Known);

impl Slices {
    /// The changes that an event means, in order.
    pub fn changes(&mut self, event: Event<EndpointSlice>) -> Vec<Change> {
        let steps = self.0.steps(event, |slice| slice, |slice: &EndpointSlice| key_of(&slice.metadata));
        let change = |step| match step {
            Step::Set(slice) => Change::Slice(Arc::new(slice)),
            Step::Gone(key) => Change::SliceGone(key),
            Step::Listed => Change::Listed(Kind::EndpointSlices),
        };
        steps.into_iter().map(change).collect()
    }
}

/// Where changes go: one receiver per family.
#[derive(Clone, Debug)]
pub struct Receivers(pub Vec<(Family, mpsc::Sender<Change>)>);

impl Receivers {
    /// Hands a change to every family that it concerns. A receiver that is gone is shutting down.
    pub async fn send(&self, change: Change) {
        let family = match &change {
            Change::Slice(slice) => match slice.address_type.family() {
                Some(family) => Some(family),
                None => return,
            },
            _ => None,
        };
        for (receiver, sender) in &self.0 {
            if family.is_none_or(|family| family == *receiver) {
                drop(sender.send(change.clone()).await);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders;
    use serde_json::json;

    use super::*;

    fn service(name: &str) -> ServiceObject {
        builders::object(json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}}))
    }

    fn told(services: &mut Services, events: Vec<Event<ServiceObject>>) -> Vec<String> {
        let changes = events.into_iter().flat_map(|event| services.changes(event));
        let text = |change| match change {
            Change::Service(service) => format!("+{}", service.key.name),
            Change::ServiceGone(key) => format!("-{}", key.name),
            Change::Listed(kind) => format!("{kind:?}"),
            other => format!("{other:?}"),
        };
        changes.map(text).collect()
    }

    #[test]
    fn object_that_a_new_list_lacks_is_told_as_gone_before_the_end_of_the_list() {
        let mut services = Services::default();
        let list = |names: &[&str]| {
            let objects = names.iter().map(|name| Event::InitApply(service(name)));
            [Event::Init].into_iter().chain(objects).chain([Event::InitDone]).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut services, list(&["a", "b"])), ["+a", "+b", "Services"]);
        assert_eq!(told(&mut services, list(&["b", "c"])), ["+b", "+c", "-a", "Services"]);
    }

    #[test]
    fn list_that_broke_off_removes_nothing() {
        let mut services = Services::default();
        told(&mut services, vec![Event::Init, Event::InitApply(service("a")), Event::InitDone]);
        assert!(told(&mut services, vec![Event::Init]).is_empty());
        let again = vec![Event::Init, Event::InitApply(service("a")), Event::InitDone];
        assert_eq!(told(&mut services, again), ["+a", "Services"]);
    }

    #[test]
    fn deletion_of_something_unknown_is_no_change() {
        let mut services = Services::default();
        assert!(told(&mut services, vec![Event::Delete(service("a"))]).is_empty());
        assert_eq!(
            told(&mut services, vec![Event::Apply(service("a")), Event::Delete(service("a"))]),
            ["+a", "-a"]
        );
    }

    #[tokio::test]
    async fn slices_go_to_their_family_only() {
        let (v4, mut of_v4) = mpsc::channel(8);
        let (v6, mut of_v6) = mpsc::channel(8);
        let receivers = Receivers(vec![(Family::V4, v4), (Family::V6, v6)]);
        receivers.send(Change::Slice(Arc::new(builders::slice("s", "svc", 80, &[])))).await;
        assert!(of_v4.try_recv().is_ok() && of_v6.try_recv().is_err());
        receivers.send(Change::Listed(Kind::Services)).await;
        assert!(of_v4.try_recv().is_ok() && of_v6.try_recv().is_ok());
    }
}

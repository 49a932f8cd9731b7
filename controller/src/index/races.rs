//! Every order in which our writes, their answers, others' writes and the watch's events can cross each other, up to a length:
//! once everything has arrived, the index holds what the API server has, or knows that it should look.

use std::collections::VecDeque;

use fairlead_objects::builders::slice;

use super::*;

const STEPS: usize = 7;

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// We write what the index leads us to write: an update, or a creation if there is nothing.
    Write,
    /// We delete what the index holds.
    Delete,
    /// The answer to our last request comes in.
    Answer,
    /// The watch delivers its next event.
    Event,
    /// Another changes the object.
    Edit,
    /// Another deletes it.
    Remove,
    /// Another makes one of the same name.
    Make,
}

const ALL: [Step; 7] =
    [Step::Write, Step::Delete, Step::Answer, Step::Event, Step::Edit, Step::Remove, Step::Make];

/// The API server's answer to one of our requests.
enum Reply {
    Wrote(Box<EndpointSlice>),
    Deleted(Gone),
    Refused,
}

/// One name at the API server, one index, and what is on its way between them.
struct Scene<'a> {
    /// What everybody makes; making it of text each time would take most of the time.
    template: &'a EndpointSlice,
    index: Index,
    stored: Option<EndpointSlice>,
    version: u64,
    events: VecDeque<(bool, EndpointSlice)>,
    reply: Option<Reply>,
}

fn service() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn name() -> ServiceKey {
    ServiceKey::new("default", "web-1")
}

impl<'a> Scene<'a> {
    fn new(template: &'a EndpointSlice) -> Self {
        let (index, events) = (Index::new(false), VecDeque::new());
        let mut scene = Self { template, index, stored: None, version: 9, events, reply: None };
        scene.store(None);
        let (_, first) = scene.events.pop_front().expect("an event");
        scene.index.apply_slice(first);
        scene
    }

    /// Stores a state of the object `known`, or a new object, and tells the watch.
    fn store(&mut self, known: Option<EndpointSlice>) -> EndpointSlice {
        self.version += 1;
        let mut object = known.unwrap_or_else(|| {
            let mut made = self.template.clone();
            made.metadata.uid = Some(format!("uid-{}", self.version));
            made
        });
        object.metadata.resource_version = Some(self.version.to_string());
        object.ports[0].port = i32::try_from(self.version).ok();
        self.stored = Some(object.clone());
        self.events.push_back((true, object.clone()));
        object
    }

    fn remove(&mut self) {
        if let Some(mut gone) = self.stored.take() {
            self.version += 1;
            gone.metadata.resource_version = Some(self.version.to_string());
            self.events.push_back((false, gone));
        }
    }

    fn held(&self) -> Option<EndpointSlice> {
        self.index.slices_of(&service()).next().map(|held| (**held).clone())
    }

    fn is_current(&self, held: &EndpointSlice) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.metadata == held.metadata)
    }

    /// Does a step if it can be done now.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Write if self.reply.is_none() => {
                let held = self.held();
                // What is sent says what will be stored, so that the watch's event can be taken for an echo.
                let mut sent = held.clone().unwrap_or_else(|| self.template.clone());
                sent.ports[0].port = i32::try_from(self.version + 1).ok();
                self.index.sending_slice(&name(), &sent);
                self.reply = Some(match held {
                    Some(held) if self.is_current(&held) => Reply::Wrote(Box::new(self.store(Some(held)))),
                    None if self.stored.is_none() => Reply::Wrote(Box::new(self.store(None))),
                    _ => Reply::Refused,
                });
            }
            Step::Delete if self.reply.is_none() => {
                let Some(held) = self.held() else { return false };
                let uid = held.metadata.uid.clone();
                self.index.sending_deletion(Kind::EndpointSlices, &name(), uid.clone());
                let gone = Gone { name: "web-1".to_owned(), uid };
                self.reply = Some(match &self.stored {
                    Some(_) if self.is_current(&held) => {
                        self.remove();
                        Reply::Deleted(gone)
                    }
                    Some(_) => Reply::Refused,
                    None => Reply::Deleted(gone),
                });
            }
            Step::Answer => match self.reply.take() {
                None => return false,
                Some(reply) => {
                    match reply {
                        Reply::Wrote(object) => self.index.wrote_slice(*object),
                        Reply::Deleted(gone) => self.index.deleted_slice(&"default".into(), gone),
                        Reply::Refused => self.index.suspect(&service()),
                    }
                    self.index.answered(Kind::EndpointSlices, &name());
                }
            },
            Step::Event => match self.events.pop_front() {
                None => return false,
                Some((true, object)) => drop(self.index.apply_slice(object)),
                Some((false, object)) => drop(self.index.delete_slice(&object)),
            },
            Step::Edit => match self.stored.clone() {
                None => return false,
                known => drop(self.store(known)),
            },
            Step::Remove if self.stored.is_some() => self.remove(),
            Step::Make if self.stored.is_none() => drop(self.store(None)),
            _ => return false,
        }
        true
    }

    /// Lets everything arrive, and compares. A live look settles what is in doubt.
    fn settles(mut self, answer_first: bool) -> bool {
        let order = if answer_first { [Step::Answer, Step::Event] } else { [Step::Event, Step::Answer] };
        for step in order {
            while self.step(step) {}
        }
        let of =
            |slice: &EndpointSlice| (slice.metadata.uid.clone(), slice.metadata.resource_version.clone());
        if self.index.suspects.contains_key(&service()) {
            let live = self.stored.iter().cloned().collect();
            self.index.replace(&service(), None, live, Some(&self.version.to_string()));
        }
        self.held().as_ref().map(of) == self.stored.as_ref().map(of)
    }
}

/// The scene after these steps; `None` if one of them cannot be done.
fn play<'a>(template: &'a EndpointSlice, steps: &[Step]) -> Option<Scene<'a>> {
    let mut scene = Scene::new(template);
    steps.iter().all(|step| scene.step(*step)).then_some(scene)
}

fn explore(template: &EndpointSlice, steps: &mut Vec<Step>, tried: &mut usize) {
    for answer_first in [true, false] {
        let Some(scene) = play(template, steps) else { return };
        *tried += 1;
        let order = if answer_first { "first" } else { "last" };
        assert!(scene.settles(answer_first), "{steps:?}, then the answer {order}");
    }
    if steps.len() < STEPS {
        for step in ALL {
            steps.push(step);
            explore(template, steps, tried);
            steps.pop();
        }
    }
}

#[test]
fn index_holds_what_the_api_server_has_in_whatever_order_that_was_told() {
    let mut template = slice("web-1", "web", 80, &[]);
    let manager = (labels::SLICE_MANAGED_BY.to_owned(), labels::SLICE_CONTROLLER.to_owned());
    template.metadata.labels.get_or_insert_default().extend([manager]);
    let mut tried = 0;
    explore(&template, &mut Vec::new(), &mut tried);
    assert!(tried > 10_000, "{tried} orders");
}

//! Asking the API server for our rights, before they are needed.
//!
//! A right to delete may not be used for weeks, and a standby uses none of those to write: without asking, a missing one is
//! found when it hurts. Everybody may ask for their own rights (ClusterRole `system:basic-user`).
//!
//! Invariants: it only asks; its failure is no failure of the daemon. Each missing right is logged when it is found missing
//! and when it is there after all, not with every look.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

use crate::{
    failure::{self, Class},
    readiness::Gate,
};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to ask again after a failure, and while a right is missing.
const SOON: Duration = Duration::from_secs(10);
/// When to ask again when all is well: rights can be taken away.
const LATER: Duration = Duration::from_mins(5);

/// A right, in the words of RBAC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    /// Empty for all namespaces.
    namespace: String,
    /// Empty for all objects.
    name: String,
    /// What it is for, where a cluster can do without it.
    only_for: &'static str,
}

impl Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, subresource, namespace, name, only_for } = self;
        write!(f, "{verb} {resource}")?;
        for (mark, text) in [("/", *subresource), (".", *group), (" ", name), (" in namespace ", namespace)] {
            if !text.is_empty() {
                write!(f, "{mark}{text}")?;
            }
        }
        if only_for.is_empty() { Ok(()) } else { write!(f, " ({only_for})") }
    }
}

impl Right {
    /// A verb on all objects of a resource (its group, its plural with the subresource).
    pub fn new(verb: &'static str, (group, resource): (&'static str, &'static str)) -> Self {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (namespace, name, only_for) = (String::new(), String::new(), "");
        Self { verb, group, resource, subresource, namespace, name, only_for }
    }

    /// To list and to watch a resource.
    pub fn to_watch(resource: (&'static str, &'static str)) -> [Self; 2] {
        ["list", "watch"].map(|verb| Self::new(verb, resource))
    }

    /// To write Events, which is a courtesy.
    pub fn to_tell() -> [Self; 2] {
        ["create", "patch"].map(|verb| Self::new(verb, ("events.k8s.io", "events")).only_for("a courtesy"))
    }

    /// In this namespace only, and for the object of this name if it is not empty.
    #[must_use]
    pub fn within(self, namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..self }
    }

    /// A cluster can do without it, but for this.
    #[must_use]
    pub fn only_for(self, only_for: &'static str) -> Self {
        Self { only_for, ..self }
    }

    /// The question whether it is there.
    fn question(&self) -> ResourceAttributes {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        ResourceAttributes {
            verb: text(self.verb),
            group: text(self.group),
            resource: text(self.resource),
            subresource: text(self.subresource),
            namespace: text(&self.namespace),
            name: text(&self.name),
            ..ResourceAttributes::default()
        }
    }
}

/// What to do about a missing right.
pub fn remedy(right: impl Display) -> String {
    format!("allow this identity to {right} (RBAC)")
}

/// What is missing, by the last answer.
#[derive(Debug, Default)]
pub struct Review {
    /// There has been an answer, or there will be none.
    known: bool,
    missing: BTreeSet<Right>,
}

impl Review {
    /// Takes in an answer, and says what is news.
    pub fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Missing(now) => self.update(now),
            Answer::None(reason) => {
                tracing::debug!("cannot ask for our rights: {reason}");
                return;
            }
            Answer::Refused(reason) => {
                tracing::debug!("the API server does not say what our rights are: {reason}");
            }
        }
        self.known = true;
    }

    fn update(&mut self, now: BTreeSet<Right>) {
        for right in now.difference(&self.missing) {
            tracing::warn!("a right is missing; {}", remedy(right));
        }
        for right in self.missing.difference(&now) {
            tracing::info!("a right that was missing is there: {right}");
        }
        self.missing = now;
    }

    /// Shows by `gate` what is missing, and what `others` ask for. It opens when nothing is missing that matters; whoever has
    /// been ready goes on with the rights that there are.
    pub fn show(&self, gate: &Gate, others: impl IntoIterator<Item = String>) {
        if self.known && self.missing.iter().all(|right| !right.only_for.is_empty()) {
            gate.open();
        }
        let remedies: BTreeSet<String> = self.missing.iter().map(remedy).chain(others).collect();
        if remedies.is_empty() {
            gate.well();
        } else {
            gate.trouble(remedies.into_iter().collect::<Vec<_>>().join("; "));
        }
    }
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These are missing.
    Missing(BTreeSet<Right>),
    /// No answer now, for this reason.
    None(String),
    /// The API server does not want to be asked.
    Refused(String),
}

/// Asks for all of `needed`, again and again.
pub async fn ask(client: Client, needed: Vec<Right>, mut tell: impl FnMut(Answer)) {
    loop {
        let answer = missing(&client, &needed).await;
        let pause = match &answer {
            Answer::Missing(missing) if missing.is_empty() => LATER,
            Answer::Refused(_) => LATER,
            _ => SOON,
        };
        tell(answer);
        tokio::time::sleep(pause).await;
    }
}

async fn missing(client: &Client, needed: &[Right]) -> Answer {
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut missing = BTreeSet::new();
    for right in needed {
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(right.question()),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let parameters = PostParams::default();
        match tokio::time::timeout(PATIENCE, api.create(&parameters, &review)).await {
            Err(_elapsed) => return Answer::None("no answer in time".to_owned()),
            Ok(Err(error)) => {
                let reason = failure::sentence(&error);
                return match Class::of(&error) {
                    Class::Forbidden | Class::NotFound | Class::Invalid | Class::Other => {
                        Answer::Refused(reason)
                    }
                    _ => Answer::None(reason),
                };
            }
            Ok(Ok(answer)) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(Ok(_)) => {
                missing.insert(right.clone());
            }
        }
    }
    Answer::Missing(missing)
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::to_bytes, extract::Request, http::StatusCode, response::IntoResponse as _};
    use serde_json::{Value, json};

    use super::*;
    use crate::readiness::Readiness;

    const SERVICES: (&str, &str) = ("", "services");

    /// What an API server answers that allows to list only.
    async fn asked() -> Answer {
        let answer = async |request: Request| {
            let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            let allowed = review["spec"]["resourceAttributes"]["verb"] == "list";
            review["status"] = json!({"allowed": allowed});
            review.to_string().into_response()
        };
        missing(&Client::new(Router::new().fallback(answer), "default"), &Right::to_watch(SERVICES)).await
    }

    #[tokio::test]
    async fn rights_that_are_not_allowed_are_missing() {
        assert_eq!(asked().await, Answer::Missing(BTreeSet::from([Right::new("watch", SERVICES)])));
    }

    #[tokio::test]
    async fn a_server_that_does_not_want_to_be_asked_is_told_from_one_that_cannot_answer() {
        let of = async |code: StatusCode| {
            let router = Router::new().fallback(async move || code);
            missing(&Client::new(router, "default"), &Right::to_watch(SERVICES)).await
        };
        assert!(matches!(of(StatusCode::FORBIDDEN).await, Answer::Refused(_)));
        assert!(matches!(of(StatusCode::SERVICE_UNAVAILABLE).await, Answer::None(_)));
    }

    #[test]
    fn who_lacks_what_matters_is_not_ready_until_it_is_there() {
        let readiness = Readiness::default();
        let gate = readiness.gate("rights");
        let mut review = Review::default();
        let mut after = |answer| {
            review.take(answer);
            review.show(&gate, []);
            (readiness.is_ready(), readiness.to_string())
        };
        let lacking = || Answer::Missing(BTreeSet::from([Right::new("watch", SERVICES)]));
        assert!(!after(Answer::None("the API server is away".to_owned())).0);
        let named = "[-]waiting for rights: allow this identity to watch services (RBAC)\n";
        assert_eq!(after(lacking()), (false, named.to_owned()));
        let (ready, told) = after(Answer::Missing(Right::to_tell().into()));
        assert!(ready && told.contains("patch events"), "{told}");
        assert!(after(lacking()).0, "what has been ready goes on");
        assert_eq!(after(Answer::Missing(BTreeSet::new())).1, "[+]rights ok\n");
    }

    #[test]
    fn a_server_that_does_not_want_to_be_asked_keeps_nobody_from_being_ready() {
        let readiness = Readiness::default();
        let mut review = Review::default();
        review.take(Answer::Refused("no".to_owned()));
        review.show(&readiness.gate("rights"), []);
        assert!(readiness.is_ready());
    }
}

//! Asking the API server for our rights, before they are needed.
//!
//! A right to delete may not be used for weeks, and a standby uses none of those to write: without asking, a missing one is
//! found when it hurts. Everybody may ask for their own rights (ClusterRole `system:basic-user`).
//!
//! Invariants: it only asks. Nothing waits for it, and its failure is no failure of the daemon.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use fairlead_daemon::failure;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

use super::{Right, Rights};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to ask again after a failure, and while a right is missing.
const SOON: Duration = Duration::from_secs(10);
/// When to ask again when all is well: rights can be taken away.
const LATER: Duration = Duration::from_mins(5);

/// Asks for all of `needed`, again and again.
pub async fn run(client: Client, rights: Arc<Rights>, needed: Vec<Right>) {
    loop {
        let pause = match missing(&client, &needed).await {
            Ok(missing) => {
                let pause = if missing.is_empty() { LATER } else { SOON };
                rights.reviewed(missing);
                pause
            }
            Err(trouble) => {
                tracing::debug!("cannot ask for our rights: {trouble}");
                SOON
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn missing(client: &Client, needed: &[Right]) -> Result<BTreeSet<Right>, String> {
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut missing = BTreeSet::new();
    for right in needed {
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(right.question()),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let parameters = PostParams::default();
        let asked = tokio::time::timeout(PATIENCE, api.create(&parameters, &review)).await;
        let answer =
            asked.map_err(|_| "no answer in time".to_owned())?.map_err(|error| failure::sentence(&error))?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.insert(right.clone());
        }
    }
    Ok(missing)
}

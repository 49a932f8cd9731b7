//! Fairlead's controller in shadow mode beside the genuine one: it has to find nothing to complain of.
//!
//! Invariant: what is asked for are comparisons of now: the shadow waits for no Service when it is judged.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{complaints::Part, state::Key};
use crate::{netns::Netns, probe, wait};

const DEADLINE: Duration = Duration::from_secs(10);

/// The page that the shadow shows.
#[derive(Clone, Debug, Deserialize)]
struct Report {
    comparisons: u64,
    waiting: usize,
    divergences: Vec<Divergence>,
}

/// What the shadow says of one object.
#[derive(Clone, Debug, Deserialize)]
pub struct Divergence {
    namespace: String,
    service: String,
    part: String,
    name: String,
    action: String,
    differences: Vec<String>,
}

impl Divergence {
    /// The Service.
    pub fn key(&self) -> Key {
        (self.namespace.clone(), self.service.clone())
    }

    /// Which of its objects.
    pub fn part(&self) -> Result<Part> {
        match self.part.as_str() {
            "endpoints" => Ok(Part::Endpoints),
            "slices" => Ok(Part::Selected),
            "mirror" => Ok(Part::Mirrored),
            other => anyhow::bail!("the shadow speaks of a part {other}"),
        }
    }

    /// Whether it is about hints and nothing else.
    pub fn hints_only(&self) -> bool {
        self.action == "update" && self.differences.iter().all(|difference| difference.contains(".hints"))
    }

    /// In words.
    pub fn tell(&self) -> String {
        let Self { namespace, service, action, name, differences, .. } = self;
        format!("{namespace}/{service}: {action} {name}: {}", differences.join("; "))
    }
}

/// A shadow.
#[derive(Debug)]
pub struct Shadow {
    netns: Arc<Netns>,
    address: SocketAddr,
    /// Comparisons that it had made when it was asked last.
    comparisons: u64,
}

impl Shadow {
    /// That shows its pages at this address.
    pub fn new(netns: Arc<Netns>, address: SocketAddr) -> Self {
        Self { netns, address, comparisons: 0 }
    }

    /// How many comparisons it made since it was asked last.
    pub fn comparisons(&self) -> u64 {
        self.comparisons
    }

    /// What it complains of when it has looked at everything.
    pub fn divergences(&mut self) -> Result<Vec<Divergence>> {
        let report = wait::until_ok("the shadow to have looked at every Service", DEADLINE, || {
            let (status, body) = probe::http_get(&self.netns, self.address, "/debug/divergence")?;
            ensure!(status == 200, "{status} {body}");
            let report: Report = serde_json::from_str(&body).with_context(|| body.clone())?;
            ensure!(report.waiting == 0, "it waits for {} Services", report.waiting);
            Ok(report)
        })?;
        self.comparisons = report.comparisons;
        Ok(report.divergences)
    }
}

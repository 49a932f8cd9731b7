//! Requests from a Pod that go on while something is done to the cluster.
//!
//! Invariant: each is a new connection to a ClusterIP, and [`Load::end`] succeeds only when every one was answered.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{cases, running::Running};
use crate::wait;

/// How long a change may take to be seen in the requests.
const SETTLE: Duration = Duration::from_mins(2);

/// A line per answer: its status, 000 when there was none.
const ASK: &str = "nohup sh -c 'while [ ! -e /tmp/stop ]; do \
     curl -s -m 3 -o /dev/null -w \"%{http_code}\\n\" http://$MY_SERVICE_SERVICE_HOST/hostname; sleep 0.02; \
     done > /tmp/answers; touch /tmp/stopped' > /dev/null 2>&1 &";

/// Requests to `my-service` by its ClusterIP.
#[derive(Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) cluster: &'a dyn Running,
}

impl<'a> Load<'a> {
    /// Makes the Service and begins, in a Pod on a node.
    pub(super) fn start_on(cluster: &'a dyn Running, node: &str) -> Result<Self> {
        cases::apply(cluster, "my-service.yaml")?;
        cases::await_client(cluster, Some(node))?;
        cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", 2)?;
        cases::shell(cluster, ASK)?;
        let load = Self { cluster };
        load.await_more()?;
        Ok(load)
    }

    /// Waits until requests have gone through the state of things as it is now.
    pub(super) fn await_more(&self) -> Result<()> {
        let before = self.count()?;
        wait::until_ok("more requests to be answered", SETTLE, || {
            let now = self.count()?;
            ensure!(now >= before + 20, "{before}, now {now}");
            Ok(())
        })
    }

    /// Scales the Service, and waits until those who are in charge now have put that into effect.
    pub(super) fn follow_a_change(&self, replicas: usize) -> Result<()> {
        self.cluster.kubectl(&["scale", "deployment", "my-app", &format!("--replicas={replicas}")])?;
        cases::await_servers(self.cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", replicas)?;
        self.await_more()
    }

    fn count(&self) -> Result<usize> {
        Ok(cases::shell(self.cluster, "wc -l < /tmp/answers")?.trim().parse()?)
    }

    /// Fails when a request did.
    pub(super) fn check(&self) -> Result<usize> {
        all_answered(&cases::shell(self.cluster, "sort /tmp/answers | uniq -c")?)
    }

    /// Ends it, and fails when a request did.
    pub(super) fn end(self) -> Result<usize> {
        self.await_more()?;
        cases::shell(self.cluster, "touch /tmp/stop")?;
        wait::until_ok("the requests to end", SETTLE, || cases::shell(self.cluster, "cat /tmp/stopped"))?;
        self.check()
    }
}

/// The number of requests, from lines that count the answers of a status each, when there is only the right one.
fn all_answered(counts: &str) -> Result<usize> {
    match counts.split_whitespace().collect::<Vec<_>>()[..] {
        [count, "200"] => Ok(count.parse()?),
        _ => bail!("requests failed; answers by status: {}", counts.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_the_right_answer_is_an_error() {
        assert_eq!(all_answered("   7865 200\n").unwrap(), 7865);
        assert!(all_answered("      1 000\n   7864 200\n").unwrap_err().to_string().contains("1 000"));
        assert!(all_answered("   7865 503\n").is_err() && all_answered("").is_err());
    }
}

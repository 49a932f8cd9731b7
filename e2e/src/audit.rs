//! The API server's audit log: which of several writers wrote what, and when it held the lease.
//!
//! Invariant: only the API server's word and clock count, not what a writer says of itself. A writer is known by its
//! address.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use serde_json::Value;

/// A request to write, as the API server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// When it came in. Of fixed width, so that texts compare as times do.
    pub received: String,
    /// When it was answered.
    pub answered: String,
    /// From where.
    pub from: IpAddr,
    /// Of whom.
    pub user: String,
    /// How.
    pub verb: String,
    /// What kind of object.
    pub resource: String,
    /// Which object.
    pub object: String,
    /// How it was answered.
    pub code: u64,
    /// Of a lease: whether it was given up by this.
    pub releases: bool,
}

impl Write {
    fn parse(event: &Value) -> Result<Self> {
        let text =
            |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let from = text("/sourceIPs/0");
        Ok(Self {
            received: text("/requestReceivedTimestamp"),
            answered: text("/stageTimestamp"),
            from: from.parse().with_context(|| format!("source {from:?} in {event}"))?,
            user: text("/user/username"),
            verb: text("/verb"),
            resource: text("/objectRef/resource"),
            object: format!("{}/{}", text("/objectRef/namespace"), text("/objectRef/name")),
            code: event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
            releases: text("/objectRef/resource") == "leases"
                && text("/requestObject/spec/holderIdentity").is_empty(),
        })
    }

    /// Whether it changed something.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.code)
    }

    fn is_of_lease(&self) -> bool {
        self.resource == "leases"
    }
}

impl std::fmt::Display for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { received, answered, from, verb, resource, object, code, .. } = self;
        write!(f, "{received} to {answered} from {from}: {verb} {resource} {object}: {code}")
    }
}

/// What a ServiceAccount wrote, in the order in which it came in.
pub fn writes_of(log: &[Value], account: &str) -> Result<Vec<Write>> {
    let user = format!("system:serviceaccount:{}:{account}", crate::service_accounts::NAMESPACE);
    let mut writes: Vec<Write> = log.iter().map(Write::parse).collect::<Result<_>>()?;
    writes.retain(|write| write.user == user);
    writes.sort_by(|a, b| a.received.cmp(&b.received));
    Ok(writes)
}

/// A time in which one writer held the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Whose.
    pub holder: IpAddr,
    /// When the API server took the request that acquired it.
    pub acquired: String,
    /// When it answered the last request that renewed it.
    pub renewed: String,
    /// When the request came in that gave it up, or that acquired it for another.
    pub until: Option<String>,
    /// Writes to anything but the lease in this term, by its holder.
    pub writes: usize,
}

/// The terms, and the writes that were made by anybody in another's term.
pub fn terms(writes: &[Write]) -> (Vec<Term>, Vec<Write>) {
    let mut terms: Vec<Term> = Vec::new();
    for write in writes.iter().filter(|write| write.is_of_lease() && write.succeeded()) {
        let last = terms.last_mut().filter(|term| term.until.is_none());
        match last {
            Some(term) if term.holder == write.from && write.releases => {
                term.until = Some(write.received.clone());
            }
            Some(term) if term.holder == write.from => term.renewed.clone_from(&write.answered),
            last => {
                if let Some(last) = last {
                    last.until = Some(write.received.clone());
                }
                terms.push(Term {
                    holder: write.from,
                    acquired: write.received.clone(),
                    renewed: write.answered.clone(),
                    until: None,
                    writes: 0,
                });
            }
        }
    }
    let mut strays = Vec::new();
    for write in writes.iter().filter(|write| !write.is_of_lease()) {
        let own = terms.iter_mut().find(|term| {
            term.holder == write.from
                && term.acquired <= write.received
                && term.until.as_ref().is_none_or(|until| write.answered <= *until)
        });
        match own {
            Some(term) => term.writes += 1,
            None => strays.push(write.clone()),
        }
    }
    (terms, strays)
}

/// How many requests got each answer.
pub fn answers(writes: &[Write]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for write in writes.iter().filter(|write| !write.is_of_lease()) {
        *counts.entry(write.code).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(second: u8, from: u8, resource: &str, code: u64) -> Write {
        Write {
            received: format!("2026-01-01T00:00:{second:02}.000000Z"),
            answered: format!("2026-01-01T00:00:{second:02}.500000Z"),
            from: IpAddr::from([10, 0, 0, from]),
            user: String::new(),
            verb: "update".to_owned(),
            resource: resource.to_owned(),
            object: "x/y".to_owned(),
            code,
            releases: false,
        }
    }

    #[test]
    fn writes_in_another_s_term_are_strays() {
        let log = [
            write(1, 1, "endpoints", 200),
            write(2, 1, "leases", 201),
            write(3, 1, "endpoints", 200),
            write(4, 2, "leases", 409),
            write(5, 2, "endpoints", 200),
            write(6, 2, "leases", 200),
            write(7, 1, "endpoints", 409),
            write(8, 2, "endpoints", 200),
        ];
        let (terms, strays) = terms(&log);
        let holders: Vec<(IpAddr, usize)> = terms.iter().map(|term| (term.holder, term.writes)).collect();
        assert_eq!(holders, [([10, 0, 0, 1].into(), 1), ([10, 0, 0, 2].into(), 1)]);
        assert_eq!(strays, [log[0].clone(), log[4].clone(), log[6].clone()]);
    }

    #[test]
    fn a_term_ends_when_the_lease_is_given_up() {
        let mut log = [write(1, 1, "leases", 200), write(2, 1, "leases", 200), write(3, 1, "endpoints", 200)];
        assert_eq!(terms(&log).1, []);
        log[1].releases = true;
        assert_eq!(terms(&log).1, [log[2].clone()]);
    }
}

//! What may become of a request, and whether what became of it is that.
//!
//! Invariant: a forecast that is not `loose` gives every end its true share.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};

use super::{flows::Flow, memory::Place};
use crate::{fairness, probe::Outcome};

/// Below so many expected hits, shares say nothing.
const ENOUGH: f64 = 5.0;

/// How a request may end.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::bed) enum End {
    /// A server of the bed answers.
    Answered {
        server: String,
        at: SocketAddr,
        client: IpAddr,
    },
    /// It reaches a host whose servers are not the bed's: somebody may listen there.
    Host {
        at: SocketAddr,
        client: IpAddr,
    },
    Refused,
    Silence,
    /// There is no way to its destination. Whether anybody says so depends on who finds out, and when.
    Lost,
}

impl End {
    pub(super) fn is(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::Refused | Self::Host { .. }, Outcome::Refused)
            | (Self::Silence | Self::Lost, Outcome::TimedOut)
            | (Self::Lost, Outcome::Unreachable(_)) => true,
            // A packet that its own node drops is an error to its sender.
            (Self::Silence, Outcome::Failed(why)) => why.contains("not permitted"),
            (Self::Host { at, client }, Outcome::Answered(answer)) => {
                (answer.port, answer.client.ip()) == (at.port(), *client)
            }
            (Self::Answered { server, at, client }, Outcome::Answered(answer)) => {
                (&answer.server, answer.port, answer.client.ip()) == (server, at.port(), *client)
            }
            _ => false,
        }
    }
}

impl End {
    /// Whether some outcome may mean either.
    fn looks_like(&self, other: &Self) -> bool {
        self == other
            || matches!(
                (self, other),
                (Self::Silence | Self::Lost, Self::Silence | Self::Lost)
                    | (Self::Host { .. } | Self::Refused, Self::Host { .. } | Self::Refused)
            )
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { server, at, client } => write!(f, "{server} at {at}, seeing {client}"),
            Self::Host { at, client } => write!(f, "a host that is no Pod at {at}, seeing {client}"),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("silence"),
            Self::Lost => f.write_str("no way"),
        }
    }
}

/// A way to an end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Way {
    pub(super) end: End,
    /// What the first node on the way made of the packet; nothing if it let none pass.
    pub(super) flow: Option<Flow>,
    /// The lists that the client is put on.
    pub(super) lists: BTreeSet<Place>,
    pub(super) share: f64,
}

/// All that may become of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Forecast {
    pub(super) ways: Vec<Way>,
    /// The ends are possible, the shares mean nothing.
    pub(super) loose: bool,
}

impl Forecast {
    pub(super) fn add(&mut self, way: Way) {
        let same =
            |known: &&mut Way| (&known.end, &known.flow, &known.lists) == (&way.end, &way.flow, &way.lists);
        match self.ways.iter_mut().find(same) {
            Some(known) => known.share += way.share,
            None => self.ways.push(way),
        }
    }

    /// Whatever is possible by either. Two that say the same are not less exact than one.
    pub(super) fn or(&mut self, other: Self) {
        if self.ways == other.ways {
            self.loose |= other.loose;
            return;
        }
        self.loose = true;
        other.ways.into_iter().for_each(|way| self.add(way));
    }

    /// Between two states there may have been one without endpoints, or without the Service.
    pub(super) fn or_nothing(&mut self) {
        self.loose = true;
        for end in [End::Refused, End::Silence, End::Lost] {
            self.add(Way { end, flow: None, lists: BTreeSet::new(), share: 0.0 });
        }
    }

    /// Fails when the ends are not in these shares, by the ways' places.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    pub(super) fn check_shares(&self, counts: &[u64]) -> Result<()> {
        if self.loose {
            return Ok(());
        }
        let total = counts.iter().sum::<u64>() as f64;
        let ends = self.told_apart(counts);
        for (end, count, share) in &ends {
            let rare = (total * (-share).ln_1p()).exp() < fairness::LIMIT;
            ensure!(*count > 0 || !rare, "`{end}` never came in {total} requests");
        }
        let pairs: Vec<(u64, f64)> = ends.iter().map(|(_, count, share)| (*count, *share)).collect();
        if pairs.iter().all(|(_, share)| share * total >= ENOUGH) {
            let p = fairness::p_value_of(&pairs);
            ensure!(p >= fairness::LIMIT, "other shares (p = {p:.1e}): {counts:?}");
        }
        Ok(())
    }

    /// Counts and shares of the ends that a client can tell apart, whatever the ways to them.
    fn told_apart(&self, counts: &[u64]) -> Vec<(&End, u64, f64)> {
        let mut ends: Vec<(&End, u64, f64)> = Vec::new();
        for (way, count) in self.ways.iter().zip(counts) {
            match ends.iter_mut().find(|(known, ..)| known.looks_like(&way.end)) {
                Some((_, sum, share)) => (*sum, *share) = (*sum + count, *share + way.share),
                None => ends.push((&way.end, *count, way.share)),
            }
        }
        ends
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |way: &Way| {
            if self.loose { way.end.to_string() } else { format!("{:.3} x {}", way.share, way.end) }
        };
        f.write_str(&self.ways.iter().map(way).collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(server: &str) -> End {
        End::Answered {
            server: server.to_owned(),
            at: ([10, 0, 0, 1], 80).into(),
            client: [10, 0, 0, 2].into(),
        }
    }

    fn forecast(ends: &[(End, f64)]) -> Forecast {
        let mut forecast = Forecast::default();
        for (end, share) in ends {
            forecast.add(Way { end: end.clone(), flow: None, lists: BTreeSet::new(), share: *share });
        }
        forecast
    }

    #[test]
    fn two_equal_forecasts_stay_exact_and_different_ones_do_not() {
        let fair = forecast(&[(answered("a"), 0.5), (answered("b"), 0.5)]);
        let mut same = fair.clone();
        same.or(fair.clone());
        assert!(same.check_shares(&[40, 0]).is_err());
        let mut either = fair;
        either.or(forecast(&[(answered("c"), 1.0)]));
        assert_eq!(either.ways.len(), 3);
        assert!(either.check_shares(&[40, 0, 0]).is_ok());
    }

    #[test]
    fn ends_that_look_alike_share_their_counts() {
        let mut closed = Forecast::default();
        for port in [1, 2] {
            let flow = Flow { answerer: ([10, 0, 0, 1], port).into(), client: [10, 0, 0, 2].into() };
            closed.add(Way { end: End::Refused, flow: Some(flow), lists: BTreeSet::new(), share: 0.5 });
        }
        assert_eq!(closed.ways.len(), 2);
        assert!(closed.check_shares(&[40, 0]).is_ok());
    }

    #[test]
    fn shares_that_are_not_forecast_are_refused() {
        let fair = forecast(&[(answered("a"), 0.5), (answered("b"), 0.5)]);
        assert!(fair.check_shares(&[55, 45]).is_ok());
        assert!(fair.check_shares(&[100, 10]).is_err());
    }
}

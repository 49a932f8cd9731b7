use fairlead_compiler::{Client, ClientKind, Excuse, Fate, Frontend, FrontendKind, Origin, Outcome, Share};
use fairlead_objects::{Protocol, ServiceKey};

use super::*;

const GRACE: Duration = Duration::from_secs(10);

fn refused() -> Fate {
    Fate { outcomes: [(Outcome::Rejected, Share::ALL)].into(), ..Fate::default() }
}

fn delivered(target: &str) -> Fate {
    Fate {
        outcomes: [(Outcome::Accepted, Share::ALL)].into(),
        targets: [((target.parse().unwrap(), false), Share::ALL)].into(),
        ..Fate::default()
    }
}

fn difference(name: &str, theirs: Fate) -> Difference {
    Difference {
        service: Some(ServiceKey::new("default", name)),
        port: "".into(),
        frontend: Frontend {
            kind: FrontendKind::ClusterIp,
            address: [10, 96, 0, 1].into(),
            protocol: Protocol::Tcp,
            port: 80,
        },
        clients: vec![Client {
            kind: ClientKind::Outside,
            address: [203, 0, 113, 9].into(),
            origin: Origin::Interface(None),
        }],
        discord: Discord::Outcome,
        theirs,
        ours: delivered("10.1.0.1:80"),
        excuse: None,
    }
}

/// Seconds go by; nobody waits for them.
struct Clock(Instant);

impl Clock {
    fn at(&self, second: u64) -> Moment {
        let time = Timestamp::from_second(1_800_000_000 + i64::try_from(second).unwrap()).unwrap();
        Moment { instant: self.0 + Duration::from_secs(second), time }
    }
}

fn ledger() -> (Ledger, Clock) {
    (Ledger::new(Family::V4, GRACE), Clock(Instant::now()))
}

fn found(differences: &[Difference]) -> Comparison {
    Comparison { services: 1, differences: differences.to_vec(), ..Comparison::default() }
}

fn names(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(Difference::owner).collect()
}

#[test]
fn difference_counts_when_it_has_stood_for_the_grace_period_and_is_told_once() {
    let (mut ledger, clock) = ledger();
    let one = difference("a", refused());
    assert_eq!(ledger.compared(found(std::slice::from_ref(&one)), clock.at(0)), News::default());
    assert_eq!((ledger.waiting(), ledger.count(Discord::Outcome)), (1, 0));
    assert_eq!(ledger.due(), Some(clock.at(10).instant));
    assert_eq!(ledger.unchanged(clock.at(9)), News::default());
    assert_eq!(names(&ledger.unchanged(clock.at(10)).begun), ["default/a"]);
    assert_eq!((ledger.waiting(), ledger.count(Discord::Outcome), ledger.due()), (0, 1, None));
    assert_eq!(ledger.compared(found(&[one]), clock.at(20)), News::default());
    let since: Vec<Timestamp> = ledger.standing().map(|entry| entry.since).collect();
    assert_eq!(since, [clock.at(0).time]);
    assert_eq!(names(&ledger.compared(found(&[]), clock.at(30)).over), ["default/a"]);
    assert_eq!(ledger.compared(found(&[]), clock.at(31)), News::default());
}

#[test]
fn difference_that_goes_or_changes_in_time_is_never_told() {
    let (mut ledger, clock) = ledger();
    ledger.compared(found(&[difference("a", refused())]), clock.at(0));
    assert_eq!(ledger.compared(found(&[]), clock.at(9)), News::default());
    assert_eq!(ledger.compared(found(&[difference("a", refused())]), clock.at(10)), News::default());
    // The other proxy moves: it is given time anew.
    let moved = difference("a", delivered("10.1.0.2:80"));
    assert_eq!(ledger.compared(found(std::slice::from_ref(&moved)), clock.at(19)), News::default());
    assert_eq!(ledger.unchanged(clock.at(28)), News::default());
    assert_eq!(names(&ledger.compared(found(&[moved]), clock.at(29)).begun), ["default/a"]);
}

#[test]
fn divergence_that_changes_stays_one() {
    let (mut ledger, clock) = ledger();
    ledger.compared(found(&[difference("a", refused())]), clock.at(0));
    assert_eq!(ledger.unchanged(clock.at(10)).begun.len(), 1);
    let changed = difference("a", delivered("10.1.0.2:80"));
    assert_eq!(ledger.compared(found(std::slice::from_ref(&changed)), clock.at(11)), News::default());
    assert_eq!(ledger.standing().next().unwrap().difference, changed);
}

#[test]
fn what_is_excused_is_kept_apart() {
    let (mut ledger, clock) = ledger();
    let excused = Difference { excuse: Some(Excuse::Disputed), ..difference("a", refused()) };
    ledger.compared(found(&[excused, difference("b", refused())]), clock.at(0));
    assert_eq!(names(&ledger.expected), ["default/a"]);
    assert_eq!(names(&ledger.unchanged(clock.at(60)).begun), ["default/b"]);
}

#[test]
fn nothing_is_left_standing_when_nothing_can_be_compared() {
    let (mut ledger, clock) = ledger();
    ledger.compared(found(&[difference("a", refused())]), clock.at(0));
    ledger.unchanged(clock.at(10));
    ledger.forget();
    assert_eq!((ledger.standing().count(), ledger.waiting()), (0, 0));
}

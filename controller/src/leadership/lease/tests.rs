//! Candidates for a Lease on a stand-in for the API server, on paused time.

use std::sync::Arc;

use fairlead_daemon::readiness::Readiness;
use kube::core::Status;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::*;

const TIMES: Times = Times {
    lease: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry: Duration::from_secs(2),
};

/// A Lease that any number of candidates share.
#[derive(Clone, Default)]
struct Shared {
    object: Arc<Mutex<Option<Object>>>,
    versions: Arc<Mutex<u64>>,
}

/// How one candidate reaches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Good,
    /// Requests are never answered, nor do they arrive.
    Cut,
    /// Requests arrive, answers do not.
    Deaf,
    /// Every request is refused.
    Forbidden,
}

#[derive(Clone)]
struct Wire {
    shared: Shared,
    line: Arc<Mutex<Line>>,
}

fn refusal(code: u16, reason: &str) -> kube::Error {
    kube::Error::Api(Status::failure("refused by the test", reason).with_code(code).boxed())
}

impl Shared {
    fn put(&self, lease: &Object) -> Object {
        let mut version = self.versions.lock();
        *version += 1;
        let mut lease = lease.clone();
        lease.metadata.resource_version = Some(version.to_string());
        *self.object.lock() = Some(lease.clone());
        lease
    }

    fn replace(&self, lease: &Object) -> kube::Result<Object> {
        let Some(known) = self.object.lock().clone() else { return Err(refusal(404, "NotFound")) };
        if known.metadata.resource_version == lease.metadata.resource_version {
            Ok(self.put(lease))
        } else {
            Err(refusal(409, "Conflict"))
        }
    }

    fn record(&self) -> LeaseSpec {
        self.object.lock().clone().unwrap().spec.unwrap()
    }

    fn edit(&self, edit: impl FnOnce(&mut Object)) {
        let mut object = self.object.lock().clone().unwrap();
        edit(&mut object);
        self.put(&object);
    }
}

impl Wire {
    async fn send<T>(&self, request: impl FnOnce(&Shared) -> kube::Result<T>) -> kube::Result<T> {
        tokio::task::yield_now().await;
        let line = *self.line.lock();
        match line {
            Line::Good => request(&self.shared),
            Line::Cut => std::future::pending().await,
            Line::Deaf => {
                drop(request(&self.shared));
                std::future::pending().await
            }
            Line::Forbidden => Err(refusal(403, "Forbidden")),
        }
    }
}

impl Leases for Wire {
    async fn get(&self) -> kube::Result<Option<Object>> {
        self.send(|shared| Ok(shared.object.lock().clone())).await
    }

    async fn create(&self, lease: &Object) -> kube::Result<Object> {
        let create = |shared: &Shared| {
            if shared.object.lock().is_some() {
                return Err(refusal(409, "AlreadyExists"));
            }
            Ok(shared.put(lease))
        };
        self.send(create).await
    }

    async fn replace(&self, lease: &Object) -> kube::Result<Object> {
        self.send(|shared| shared.replace(lease)).await
    }
}

type Log = Arc<Mutex<Vec<(&'static str, Change, Instant)>>>;

struct Running {
    line: Arc<Mutex<Line>>,
    gate: Gate,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn start(shared: &Shared, identity: &'static str, log: &Log) -> Running {
    let line = Arc::default();
    let wire = Wire { shared: shared.clone(), line: Arc::clone(&line) };
    let gate = Readiness::default().gate("lease");
    let shutdown = CancellationToken::new();
    let lease = Lease {
        namespace: "kube-system".to_owned(),
        name: "fairlead".to_owned(),
        identity: identity.to_owned(),
        times: TIMES,
    };
    let log = Arc::clone(log);
    let report = move |change| {
        if !matches!(change, Change::Held(_)) {
            log.lock().push((identity, change, Instant::now()));
        }
    };
    let task = tokio::spawn(lease.keep(wire, gate.clone(), shutdown.clone(), report));
    Running { line, gate, shutdown, task }
}

async fn pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

fn changes(log: &Log) -> Vec<(&'static str, Change)> {
    log.lock().iter().map(|(identity, change, _)| (*identity, *change)).collect()
}

fn time_of(log: &Log, identity: &str, change: Change) -> Instant {
    let log = log.lock();
    log.iter().rfind(|(who, what, _)| *who == identity && *what == change).unwrap().2
}

/// Never two terms at once.
fn assert_exclusive(log: &Log) {
    let mut leader = None;
    for (identity, change, at) in log.lock().iter() {
        match change {
            Change::Won => assert_eq!(leader.replace(*identity), None, "{identity} won at {at:?}"),
            Change::Lost => assert_eq!(leader.take(), Some(*identity)),
            Change::Held(_) => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn first_candidate_leads_and_renews_and_the_second_stands_by() {
    let (shared, log) = (Shared::default(), Log::default());
    let _first = start(&shared, "a", &log);
    pass(1).await;
    let second = start(&shared, "b", &log);
    pass(60).await;
    assert_eq!(changes(&log), [("a", Change::Won)]);
    assert!(second.gate.is_open(), "a standby is ready");
    let writes = *shared.versions.lock();
    assert!((25..=35).contains(&writes), "{writes} writes in a minute");
    assert_eq!(shared.record().lease_transitions, Some(0));
}

#[tokio::test(start_paused = true)]
async fn standby_takes_over_soon_after_the_lease_of_a_dead_leader_has_run_out() {
    let (shared, log) = (Shared::default(), Log::default());
    let first = start(&shared, "a", &log);
    pass(1).await;
    let _second = start(&shared, "b", &log);
    pass(30).await;
    first.task.abort();
    let died = Instant::now();
    pass(60).await;
    let won = time_of(&log, "b", Change::Won) - died;
    // The last renewal was at most a retry period ago, and it was seen at most a jittered quarter of one late.
    assert!(won + TIMES.retry > TIMES.lease && won < TIMES.lease + TIMES.retry * 3 / 4, "{won:?}");
    assert_eq!(shared.record().lease_transitions, Some(1));
}

#[tokio::test(start_paused = true)]
async fn released_lease_is_taken_at_the_next_look() {
    let (shared, log) = (Shared::default(), Log::default());
    let first = start(&shared, "a", &log);
    pass(1).await;
    let _second = start(&shared, "b", &log);
    pass(10).await;
    first.shutdown.cancel();
    first.task.await.unwrap();
    assert_eq!(record::holder(&shared.record()), None);
    pass(5).await;
    assert_eq!(changes(&log), [("a", Change::Won), ("a", Change::Lost), ("b", Change::Won)]);
}

#[tokio::test(start_paused = true)]
async fn leader_that_is_cut_off_ends_its_term_before_another_can_begin_one() {
    for broken in [Line::Cut, Line::Deaf, Line::Forbidden] {
        let (shared, log) = (Shared::default(), Log::default());
        let first = start(&shared, "a", &log);
        pass(1).await;
        let _second = start(&shared, "b", &log);
        pass(20).await;
        *first.line.lock() = broken;
        let cut = Instant::now();
        pass(60).await;
        let lost = time_of(&log, "a", Change::Lost) - cut;
        assert!(lost <= TIMES.renew_deadline && lost >= Duration::from_secs(7), "{broken:?}: {lost:?}");
        assert!(first.gate.is_troubled());
        assert!(time_of(&log, "b", Change::Won) > time_of(&log, "a", Change::Lost));
        assert_exclusive(&log);
        *first.line.lock() = Line::Good;
        pass(30).await;
        assert_exclusive(&log);
        assert!(!first.gate.is_troubled());
    }
}

#[tokio::test(start_paused = true)]
async fn leader_whose_lease_was_taken_ends_its_term_at_its_next_renewal() {
    let (shared, log) = (Shared::default(), Log::default());
    let _first = start(&shared, "a", &log);
    pass(5).await;
    shared.edit(|lease| lease.spec.as_mut().unwrap().holder_identity = Some("thief".to_owned()));
    let taken = Instant::now();
    pass(5).await;
    assert!(time_of(&log, "a", Change::Lost) - taken <= TIMES.retry + Duration::from_millis(10));
    pass(30).await;
    assert_eq!(changes(&log), [("a", Change::Won), ("a", Change::Lost), ("a", Change::Won)]);
}

#[tokio::test(start_paused = true)]
async fn edit_of_other_fields_neither_ends_a_term_nor_makes_a_lease_last_longer() {
    let (shared, log) = (Shared::default(), Log::default());
    let first = start(&shared, "a", &log);
    pass(1).await;
    let _second = start(&shared, "b", &log);
    pass(5).await;
    let label = |lease: &mut Object| {
        let labels = lease.metadata.labels.get_or_insert_default();
        labels.insert("n".to_owned(), labels.len().to_string());
    };
    shared.edit(label);
    pass(10).await;
    assert_eq!(changes(&log), [("a", Change::Won)]);
    first.task.abort();
    let died = Instant::now();
    for _ in 0..25 {
        pass(1).await;
        shared.edit(label);
    }
    assert!(time_of(&log, "b", Change::Won) - died < Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn deleted_lease_is_created_again_within_the_term() {
    let (shared, log) = (Shared::default(), Log::default());
    let _first = start(&shared, "a", &log);
    pass(5).await;
    *shared.object.lock() = None;
    pass(5).await;
    assert_eq!(record::holder(&shared.record()), Some("a"));
    assert_eq!(changes(&log), [("a", Change::Won)]);
}

#[tokio::test(start_paused = true)]
async fn release_leaves_a_lease_alone_that_is_another_s() {
    let (shared, log) = (Shared::default(), Log::default());
    let first = start(&shared, "a", &log);
    pass(1).await;
    shared.edit(|lease| lease.spec.as_mut().unwrap().holder_identity = Some("thief".to_owned()));
    first.shutdown.cancel();
    first.task.await.unwrap();
    assert_eq!(record::holder(&shared.record()), Some("thief"));
}

#[tokio::test(start_paused = true)]
async fn many_candidates_never_lead_at_once_whatever_their_lines_do() {
    let (shared, log) = (Shared::default(), Log::default());
    let candidates = ["a", "b", "c", "d"].map(|identity| start(&shared, identity, &log));
    for step in 0..200_usize {
        let line = [Line::Good, Line::Cut, Line::Good, Line::Forbidden, Line::Deaf][step * 7 % 5];
        *candidates[step * 3 % 4].line.lock() = line;
        pass(1 + (step as u64 * 5) % 9).await;
        assert_exclusive(&log);
    }
    assert!(changes(&log).len() > 10, "{:?}", changes(&log));
}

#[tokio::test(start_paused = true)]
async fn missing_right_is_named_and_keeps_the_gate_closed() {
    let (shared, log) = (Shared::default(), Log::default());
    let first = start(&shared, "a", &log);
    *first.line.lock() = Line::Forbidden;
    pass(5).await;
    let state = first.gate.state();
    assert!(
        !state.open && state.trouble.unwrap().contains("create and update leases in namespace kube-system")
    );
}

//! Watches over scripted servers, on paused time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use kube::core::Status;

use super::*;
use crate::readiness::Readiness;

enum Step {
    Say(Event<u32>),
    Refuse(u16, &'static str),
    Hang,
}

type Asked = Arc<Mutex<Vec<(InitialListStrategy, Instant)>>>;

/// Answers the n-th request of a watch with the n-th script; the last script is used for all later ones.
fn scripted(
    scripts: Vec<Vec<Step>>,
) -> (impl FnMut(InitialListStrategy) -> Results<u32> + Send + 'static, Asked) {
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    let mut scripts: VecDeque<Vec<Step>> = scripts.into();
    let open = move |strategy: InitialListStrategy| {
        log.lock().unwrap().push((strategy, Instant::now()));
        let script: VecDeque<Step> = scripts.pop_front().unwrap_or_else(|| vec![Step::Hang]).into();
        stream::unfold(script, |mut script| async {
            match script.pop_front()? {
                Step::Say(event) => Some((Ok(event), script)),
                Step::Refuse(code, reason) => {
                    let status = Status::failure("refused by the test", reason).with_code(code).boxed();
                    Some((Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))), script))
                }
                Step::Hang => std::future::pending().await,
            }
        })
        .boxed()
    };
    (open, asked)
}

fn started(scripts: Vec<Vec<Step>>) -> (BoxStream<'static, Event<u32>>, Asked, Gate) {
    let (open, asked) = scripted(scripts);
    let gate = Readiness::default().gate("Pods");
    (watch_with(open, gate.clone(), "pods".to_owned()).boxed(), asked, gate)
}

fn strategies(asked: &Asked) -> Vec<InitialListStrategy> {
    asked.lock().unwrap().iter().map(|(strategy, _)| strategy.clone()).collect()
}

fn full_list() -> Vec<Step> {
    vec![Step::Say(Event::Init), Step::Say(Event::InitApply(1)), Step::Say(Event::InitDone), Step::Hang]
}

async fn until_synced(events: &mut BoxStream<'static, Event<u32>>) {
    while !matches!(events.next().await, Some(Event::InitDone)) {}
}

#[tokio::test(start_paused = true)]
async fn streamed_list_opens_the_gate_at_its_end() {
    let (mut events, asked, gate) = started(vec![full_list()]);
    assert!(matches!(events.next().await, Some(Event::Init)));
    assert!(matches!(events.next().await, Some(Event::InitApply(1))));
    assert!(!gate.is_open());
    until_synced(&mut events).await;
    assert!(gate.is_open());
    assert_eq!(strategies(&asked), [InitialListStrategy::StreamingList]);
}

#[tokio::test(start_paused = true)]
async fn list_without_an_end_falls_back_to_list_and_watch() {
    let endless = vec![Step::Say(Event::Init), Step::Say(Event::InitApply(1)), Step::Hang];
    let (mut events, asked, gate) = started(vec![endless, full_list()]);
    let start = Instant::now();
    until_synced(&mut events).await;
    assert_eq!(strategies(&asked), [InitialListStrategy::StreamingList, InitialListStrategy::ListWatch]);
    assert!(start.elapsed() >= SILENCE && start.elapsed() < SILENCE * 2);
    assert!(gate.is_open() && gate.state().trouble.is_none());
}

#[tokio::test(start_paused = true)]
async fn streamed_list_that_is_switched_off_falls_back_at_once() {
    let (mut events, asked, _gate) =
        started(vec![vec![Step::Refuse(422, "Invalid"), Step::Hang], full_list()]);
    let start = Instant::now();
    until_synced(&mut events).await;
    assert_eq!(strategies(&asked), [InitialListStrategy::StreamingList, InitialListStrategy::ListWatch]);
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn unclear_refusal_falls_back_after_a_second_try() {
    let refusals = vec![Step::Refuse(404, "NotFound"), Step::Refuse(404, "NotFound"), Step::Hang];
    let (mut events, asked, _gate) = started(vec![refusals, full_list()]);
    until_synced(&mut events).await;
    assert_eq!(strategies(&asked), [InitialListStrategy::StreamingList, InitialListStrategy::ListWatch]);
}

#[tokio::test(start_paused = true)]
async fn forbidden_is_reported_with_a_remedy_and_keeps_streaming() {
    let mut script =
        vec![Step::Refuse(403, "Forbidden"), Step::Refuse(403, "Forbidden"), Step::Refuse(403, "Forbidden")];
    script.extend(full_list());
    let (mut events, asked, gate) = started(vec![script]);
    let start = Instant::now();
    let watching = until_synced(&mut events);
    let observing = async {
        gate.attempted().await;
        gate.state().trouble.unwrap()
    };
    let ((), trouble) = tokio::join!(watching, observing);
    assert!(trouble.contains("forbidden") && trouble.contains("list and watch pods"), "{trouble}");
    assert!(start.elapsed() > Duration::from_secs(2), "three errors were not followed by pauses");
    assert_eq!(strategies(&asked), [InitialListStrategy::StreamingList]);
}

#[tokio::test(start_paused = true)]
async fn server_that_is_too_old_is_told_so() {
    let refusals = || (0..5).map(|_| Step::Refuse(404, "NotFound")).collect();
    let (mut events, _asked, gate) = started(vec![refusals(), refusals()]);
    let observing = async {
        gate.attempted().await;
        gate.state().trouble.unwrap()
    };
    let trouble = tokio::select! {
        _ = events.next() => unreachable!("nothing was listed"),
        trouble = observing => trouble,
    };
    assert!(trouble.contains("pods") && trouble.contains("Kubernetes 1.21"), "{trouble}");
}

#[tokio::test(start_paused = true)]
async fn stream_that_ends_at_once_is_not_asked_in_a_loop() {
    let (mut events, asked, _gate) = started((0..1000).map(|_| vec![Step::Say(Event::Init)]).collect());
    let watching = async { while events.next().await.is_some() {} };
    assert!(tokio::time::timeout(Duration::from_mins(1), watching).await.is_err());
    let requests = asked.lock().unwrap().len();
    assert!((3..20).contains(&requests), "{requests} requests in a minute");
}

#[tokio::test(start_paused = true)]
async fn list_that_starts_over_within_one_stream_pauses() {
    let broken = || [Step::Say(Event::Init), Step::Say(Event::InitApply(1))];
    let script = (0..1000).flat_map(|_| broken()).collect();
    let (mut events, _asked, _gate) = started(vec![script]);
    let mut starts = 0;
    let watching = async {
        while let Some(event) = events.next().await {
            starts += usize::from(matches!(event, Event::Init));
        }
    };
    assert!(tokio::time::timeout(Duration::from_mins(1), watching).await.is_err());
    assert!(starts < 20, "{starts} lists in a minute");
}

#[tokio::test(start_paused = true)]
async fn version_that_is_gone_leads_to_a_new_list() {
    let mut first = full_list();
    first.pop();
    first.push(Step::Refuse(410, "Expired"));
    first.push(Step::Hang);
    let (mut events, asked, gate) = started(vec![first, full_list()]);
    until_synced(&mut events).await;
    until_synced(&mut events).await;
    assert_eq!(asked.lock().unwrap().len(), 2);
    assert!(gate.state().trouble.is_none());
}

#[tokio::test(start_paused = true)]
async fn trouble_is_over_when_a_resumed_watch_stays_quiet() {
    let mut script = full_list();
    script.pop();
    script.push(Step::Refuse(500, "InternalError"));
    script.push(Step::Hang);
    let (mut events, _asked, gate) = started(vec![script]);
    until_synced(&mut events).await;
    let watching = async { while events.next().await.is_some() {} };
    assert!(tokio::time::timeout(Duration::from_secs(5), watching).await.is_err());
    assert!(gate.is_open() && gate.is_troubled());
    let watching = async { while events.next().await.is_some() {} };
    assert!(tokio::time::timeout(Duration::from_mins(1), watching).await.is_err());
    assert!(!gate.is_troubled());
}

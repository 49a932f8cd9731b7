//! Due times of parts of Services, in a time that stands still.

use super::*;

const ALL: Parts = Parts { endpoints: true, slices: true, mirror: true };

fn queue(periods: BatchPeriods) -> (Queue, Outlet) {
    Queue::new(ALL, periods)
}

fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn mark(queue: &Queue, cause: Cause, now: Instant) {
    queue.mark(Dirty::one(key(), cause), now);
}

fn triggered(outlet: &mut Outlet) -> usize {
    let mut count = 0;
    while outlet.triggers.try_recv().is_ok() {
        count += 1;
    }
    count
}

#[tokio::test(start_paused = true)]
async fn changes_concern_only_their_parts() {
    let (queue, _outlet) = queue(BatchPeriods::default());
    let now = Instant::now();
    mark(&queue, Cause::Pod, now);
    assert_eq!(queue.take(&key(), now).parts, Parts { endpoints: true, slices: true, mirror: false });
    mark(&queue, Cause::Node, now);
    assert_eq!(queue.take(&key(), now).parts, Parts { endpoints: false, slices: true, mirror: false });
    mark(&queue, Cause::Service, now);
    assert_eq!(queue.take(&key(), now).parts, ALL);
    assert!(queue.take(&key(), now).is_empty());
}

#[tokio::test(start_paused = true)]
async fn batch_window_is_opened_by_the_first_change_and_not_extended() {
    let (queue, _outlet) = queue(BatchPeriods { slices: Duration::from_secs(3), ..BatchPeriods::default() });
    let start = Instant::now();
    mark(&queue, Cause::Node, start);
    mark(&queue, Cause::Node, start + Duration::from_secs(2));
    assert!(queue.take(&key(), start + Duration::from_secs(2)).is_empty());
    assert_eq!(queue.next(&key(), start + Duration::from_secs(2)), Some(Duration::from_secs(1)));
    let taken = queue.take(&key(), start + Duration::from_secs(3));
    assert!(taken.parts.slices);
    assert_eq!(taken.since, Some(start));
}

#[tokio::test(start_paused = true)]
async fn service_event_ends_a_batch_window() {
    let (queue, mut outlet) =
        queue(BatchPeriods { slices: Duration::from_secs(3), ..BatchPeriods::default() });
    let now = Instant::now();
    mark(&queue, Cause::Node, now);
    mark(&queue, Cause::Service, now);
    assert!(queue.take(&key(), now).parts.slices);
    assert_eq!(triggered(&mut outlet), 2);
}

#[tokio::test(start_paused = true)]
async fn resting_part_waits_alone_whether_its_change_came_before_or_after() {
    let (queue, _outlet) = queue(BatchPeriods::default());
    let now = Instant::now();
    mark(&queue, Cause::Pod, now);
    queue.take(&key(), now);
    mark(&queue, Cause::Pod, now);
    let rest = Duration::from_millis(80);
    queue.rest(&key(), Part::Endpoints, now + rest);
    assert_eq!(queue.take(&key(), now).parts, part::set([Part::Slices]));
    mark(&queue, Cause::Service, now);
    assert_eq!(queue.take(&key(), now).parts, part::set([Part::Slices, Part::Mirror]));
    assert_eq!(queue.next(&key(), now), Some(rest));
    assert_eq!(queue.take(&key(), now + rest).parts, part::set([Part::Endpoints]));
    mark(&queue, Cause::Pod, now + rest);
    assert!(queue.take(&key(), now + rest).parts.endpoints);
}

#[tokio::test(start_paused = true)]
async fn failed_part_backs_off_alone_and_success_clears_it() {
    let (queue, _outlet) = queue(BatchPeriods::default());
    let now = Instant::now();
    mark(&queue, Cause::Pod, now);
    queue.take(&key(), now);
    queue.succeeded(&key(), Part::Slices);
    assert_eq!(queue.failed(&key(), Part::Endpoints, None, now), 1);
    assert_eq!(queue.next(&key(), now), Some(Duration::from_millis(5)));
    let later = now + Duration::from_millis(5);
    assert_eq!(queue.take(&key(), later).parts, part::set([Part::Endpoints]));
    assert_eq!(queue.failed(&key(), Part::Endpoints, None, later), 2);
    assert_eq!(queue.next(&key(), later), Some(Duration::from_secs(1)));
    queue.take(&key(), later + Duration::from_secs(1));
    queue.succeeded(&key(), Part::Endpoints);
    assert_eq!(queue.failures(&key(), Part::Endpoints), 0);
}

#[tokio::test(start_paused = true)]
async fn change_during_backoff_is_tried_at_once() {
    let (queue, _outlet) = queue(BatchPeriods::default());
    let now = Instant::now();
    for _ in 0..5 {
        queue.failed(&key(), Part::Slices, None, now);
        queue.take(&key(), now + Duration::from_mins(5));
    }
    queue.failed(&key(), Part::Slices, None, now);
    assert!(queue.next(&key(), now) > Some(Duration::from_secs(10)));
    mark(&queue, Cause::Pod, now);
    assert!(queue.take(&key(), now).parts.slices);
}

/// Upstream drops it after the sixteenth attempt.
#[tokio::test(start_paused = true)]
async fn key_is_due_again_however_often_it_has_failed() {
    let (queue, _outlet) = queue(BatchPeriods::default());
    let mut now = Instant::now();
    for failures in 1..=100 {
        assert_eq!(queue.failed(&key(), Part::Slices, None, now), failures);
        now += queue.next(&key(), now).unwrap();
        assert!(queue.take(&key(), now).parts.slices, "after {failures} failures");
    }
    assert!(queue.next(&key(), now).is_none(), "all is taken");
}

/// What takes turns with us: each time that it strikes, how long until the repair is due.
fn repairs(queue: &Queue, now: &mut Instant, count: usize) -> Vec<u64> {
    let mut waits = Vec::new();
    for _ in 0..count {
        mark(queue, Cause::Slice, *now);
        let wait = queue.next(&key(), *now).unwrap();
        *now += wait;
        let taken = queue.take(&key(), *now);
        assert!(taken.undone.slices && !taken.undone.endpoints);
        queue.undo(&key(), Part::Slices, *now);
        waits.push(wait.as_secs());
    }
    waits
}

#[tokio::test(start_paused = true)]
async fn what_another_keeps_changing_is_left_longer_each_time_but_pods_never_wait() {
    let (queue, _outlet) = Queue::new(part::set([Part::Endpoints, Part::Slices]), BatchPeriods::default());
    let mut now = Instant::now();
    assert_eq!(repairs(&queue, &mut now, 7), [1, 1, 1, 2, 4, 8, 16]);
    assert_eq!(queue.contested(now), [0, 1, 0]);
    mark(&queue, Cause::Slice, now);
    mark(&queue, Cause::Pod, now);
    let taken = queue.take(&key(), now);
    assert!(taken.parts.slices && !taken.undone.slices);
    now += Duration::from_mins(2);
    assert_eq!(queue.contested(now), [0, 0, 0]);
    assert_eq!(repairs(&queue, &mut now, 1), [1]);
}

#[tokio::test(start_paused = true)]
async fn server_that_asks_for_patience_gets_it() {
    let (queue, _outlet) = queue(BatchPeriods::default());
    let now = Instant::now();
    queue.failed(&key(), Part::Slices, Some(Duration::from_secs(7)), now);
    assert_eq!(queue.next(&key(), now), Some(Duration::from_secs(7)));
}

#[tokio::test(start_paused = true)]
async fn key_is_in_the_store_for_as_long_as_there_is_work() {
    let (queue, outlet) = queue(BatchPeriods::default());
    let now = Instant::now();
    mark(&queue, Cause::Service, now);
    queue.open();
    assert!(outlet.store.get(&Primary::reference(&key())).is_some(), "marked before the queue was opened");
    assert!(!queue.retire(&key()), "it is due");
    queue.take(&key(), now);
    assert!(queue.retire(&key()));
    assert!(outlet.store.is_empty());
    mark(&queue, Cause::Service, now);
    assert!(outlet.store.get(&Primary::reference(&key())).is_some());
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_switched_off_are_never_due() {
    let (queue, mut outlet) = Queue::new(part::set([Part::Mirror]), BatchPeriods::default());
    let now = Instant::now();
    mark(&queue, Cause::Pod, now);
    assert!(queue.take(&key(), now).is_empty());
    assert_eq!(triggered(&mut outlet), 0);
}

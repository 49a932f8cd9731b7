//! A token bucket for requests: `--kube-api-qps` and `--kube-api-burst`.
//!
//! Invariant: waiters are served in the order in which they came (tokio's Mutex is fair), and none waits longer than the
//! bucket needs to refill for those before it.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

/// Limits how often something may happen; all clones of its `Arc` share the limit.
#[derive(Debug)]
pub struct Throttle {
    bucket: Option<Mutex<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    interval: Duration,
    burst: u32,
    /// When the bucket will be (or was) full again.
    full_at: Instant,
}

impl Throttle {
    /// At most `per_second` on average and `burst` at once; no limit if `per_second` is not positive.
    pub fn new(per_second: f64, burst: u32) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / per_second).ok().filter(|_| per_second > 0.0);
        let bucket = interval
            .map(|interval| Mutex::new(Bucket { interval, burst: burst.max(1), full_at: Instant::now() }));
        Self { bucket }
    }

    /// Waits for its turn.
    pub async fn acquire(&self) {
        let Some(bucket) = &self.bucket else { return };
        let mut bucket = bucket.lock().await;
        let now = Instant::now();
        let full_at = bucket.full_at.max(now) + bucket.interval;
        let ready_at = full_at - bucket.interval.saturating_mul(bucket.burst).min(full_at - now);
        // Held across the wait on purpose: this is what keeps the order.
        tokio::time::sleep_until(ready_at).await;
        bucket.full_at = full_at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds_for(throttle: &Throttle, requests: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..requests {
            throttle.acquire().await;
        }
        start.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_burst_wait_for_their_share() {
        let throttle = Throttle::new(10.0, 5);
        assert!(seconds_for(&throttle, 5).await < 0.01);
        let waited = seconds_for(&throttle, 10).await;
        assert!((waited - 1.0).abs() < 0.05, "{waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_when_the_rate_is_zero() {
        assert!(seconds_for(&Throttle::new(0.0, 0), 100_000).await < 0.001);
    }
}

//! Pacing of watches that are resumed.
//!
//! A watch that ends is resumed at once by kube's watcher, inside its stream, where nobody sees it. That is right after
//! minutes, and a busy loop with a server or proxy that closes every watch as soon as it is established. So the client
//! itself holds back such requests.
//!
//! Invariants: a watch that has lived for a while is resumed without delay; lists, and watches that begin with a list, are
//! never delayed here ([`crate::watch`] paces those).

use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::http::Request;
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

/// A watch that lived for so long did not end because the server ends them all.
const LONG_LIFE: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// When the watch of one path was resumed last, and how long the next one has to wait after that.
#[derive(Clone, Copy, Debug)]
struct Resumed {
    at: Instant,
    distance: Duration,
}

/// When requests may be sent.
#[derive(Debug, Default)]
struct Pace {
    by_path: HashMap<String, Resumed>,
}

impl Pace {
    /// When a watch of that path may be resumed that wants to be resumed now.
    fn resume(&mut self, path: &str, now: Instant) -> Instant {
        let Some(last) = self.by_path.get_mut(path) else {
            self.by_path.insert(path.to_owned(), Resumed { at: now, distance: FIRST });
            return now;
        };
        let lived = now.saturating_duration_since(last.at);
        if lived >= LONG_LIFE {
            *last = Resumed { at: now, distance: FIRST };
            return now;
        }
        let at = now + last.distance;
        *last = Resumed { at, distance: (last.distance * 2).min(LONGEST) };
        at
    }
}

/// Makes a client hold back watches that are resumed too often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaceLayer;

impl<S> Layer<S> for PaceLayer {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced { inner, pace: Pace::default() }
    }
}

/// A client's service with a [`Pace`].
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    pace: Pace,
}

impl<S, B> Service<Request<B>> for Paced<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let at = resumes(&request).then(|| self.pace.resume(request.uri().path(), Instant::now()));
        // Nothing is sent before it is polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(at) = at {
                sleep_until(at).await;
            }
            answer.await
        })
    }
}

/// Whether a request goes on with a watch, rather than to begin one with a list.
fn resumes<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"))
        && !query.contains("sendInitialEvents=true")
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{
        Json, Router, extract::RawQuery, http::StatusCode, response::IntoResponse as _, routing::get,
    };
    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube_runtime::watcher;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{client::ClientFlags, readiness::Readiness, watch::watch};

    fn seconds(start: Instant, at: Instant) -> f64 {
        (at - start).as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_are_resumed_at_a_growing_distance() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let start = now;
        let mut times = Vec::new();
        for _ in 0..9 {
            now = pace.resume("/api/v1/pods", now);
            times.push(seconds(start, now));
        }
        assert!((times[1] - 0.2).abs() < 0.01 && (times[2] - 0.6).abs() < 0.01, "{times:?}");
        assert!(times[8] > 30.0, "{times:?}");
        assert_eq!(pace.resume("/api/v1/nodes", now), now, "another watch has its own pace");
    }

    #[tokio::test(start_paused = true)]
    async fn watch_that_lived_for_a_while_is_resumed_at_once() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for minute in 0..5 {
            let now = start + Duration::from_mins(minute);
            assert_eq!(pace.resume("/api/v1/pods", now), now);
        }
    }

    /// Answers lists with an empty one, streamed lists with a refusal, and closes every watch as soon as it begins.
    async fn server(watches: Arc<AtomicUsize>) -> String {
        let answer = move |RawQuery(query): RawQuery| async move {
            let query = query.unwrap_or_default();
            if query.contains("sendInitialEvents") {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "reason": "Invalid", "code": 422, "message": "no"});
                return (StatusCode::UNPROCESSABLE_ENTITY, Json(status)).into_response();
            }
            if query.contains("watch=true") {
                watches.fetch_add(1, Ordering::Relaxed);
                return StatusCode::OK.into_response();
            }
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": []});
            Json(list).into_response()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/api/v1/pods", get(answer));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }

    #[tokio::test]
    async fn server_that_closes_every_established_watch_is_not_asked_in_a_loop() {
        let watches = Arc::new(AtomicUsize::new(0));
        let url = server(Arc::clone(&watches)).await;
        let flags = ClientFlags { master: Some(url), ..ClientFlags::default() };
        let client = flags.clients("test/1").await.unwrap().read;
        let gate = Readiness::default().gate("Pods");
        let mut events = watch::<Pod>(Api::all(client), watcher::Config::default(), gate.clone()).boxed();
        let watching = async { while events.next().await.is_some() {} };
        assert!(tokio::time::timeout(Duration::from_secs(2), watching).await.is_err());
        assert!(gate.is_open());
        let asked = watches.load(Ordering::Relaxed);
        assert!((2..=6).contains(&asked), "{asked} watches in two seconds");
    }
}

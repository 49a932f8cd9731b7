//! The component health check of the metrics server, and `/metrics/slis`, which counts its results.
//!
//! There is one check, `ping`: it says that the process answers, and nothing about programming. So it cannot fail; load
//! balancers ask the health server instead.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{PLAIN, TEXT_FORMAT, respond, start_header};

/// The check, and how often it was made. Clones share that.
#[derive(Clone, Debug, Default)]
pub(super) struct Ping(Arc<AtomicU64>);

impl Ping {
    /// Answers `/healthz`: `?verbose` lists the checks, `?exclude=ping` leaves it out.
    pub(super) fn answer(&self, query: &str) -> Response {
        let parameters = || query.split('&').map(|one| one.split_once('=').unwrap_or((one, "")));
        let excluded = parameters().any(|one| one == ("exclude", "ping"));
        if !excluded {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        let verdict = if excluded { "[+]ping excluded: ok" } else { "[+]ping ok" };
        let text = if parameters().any(|(name, _)| name == "verbose") {
            format!("{verdict}\nhealthz check passed\n")
        } else {
            "ok".to_owned()
        };
        respond(StatusCode::OK, PLAIN, text)
    }

    /// Answers `/metrics/slis`; DELETE forgets all results.
    pub(super) fn slis(&self, method: &Method, started: i64) -> Response {
        if method == Method::DELETE {
            self.0.store(0, Ordering::Relaxed);
            return (StatusCode::OK, [(header::CONTENT_TYPE, PLAIN)], "metrics reset\n").into_response();
        }
        let checks = self.0.load(Ordering::Relaxed);
        let mut text = String::new();
        if checks > 0 {
            text = format!(
                "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                 # TYPE kubernetes_healthcheck gauge\n\
                 kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
                 # HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
                 # TYPE kubernetes_healthchecks_total counter\n\
                 kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {checks}\n"
            );
        }
        let headers = [(header::CONTENT_TYPE, TEXT_FORMAT.to_owned()), start_header(started)];
        (StatusCode::OK, headers, text).into_response()
    }
}

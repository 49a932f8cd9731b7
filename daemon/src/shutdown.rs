//! The end of the process: one token that SIGTERM or SIGINT cancels.
//!
//! Invariant: the first signal asks politely, the second ends the process at once, whatever hangs.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second signal, by the shell's convention for SIGTERM.
const KILLED: i32 = 128 + 15;

/// Starts listening for SIGTERM and SIGINT; the token is cancelled by the first of them.
///
/// Must be called within a tokio runtime.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
        cancel.cancel();
        let name = either(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "ending at once");
        end();
    });
    Ok(token)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[allow(clippy::disallowed_methods, reason = "the point of a second signal is not to wait for destructors")]
fn end() -> ! {
    std::process::exit(KILLED)
}

//! Whether both sides have the same answer to a packet.

use anyhow::{Result, bail};
use fairlead_compiler::Host;

use super::{
    kernel::{Kernel, Reply},
    packets::Question,
};
use crate::tun::Fate;

/// Fails when a packet fares differently, by the rules or in the kernels.
pub(super) fn compare(
    question: &Question,
    host: &Host,
    genuine: (&Kernel, &Reply),
    ours: (&Kernel, &Reply),
) -> Result<()> {
    let ((their_kernel, theirs), (our_kernel, own)) = (genuine, ours);
    if theirs.traced != own.traced {
        bail!(
            "{question}\nkube-proxy: {}\nours: {}\nkube-proxy's rules:\n{}\nours:\n{}",
            theirs.traced,
            own.traced,
            their_kernel.way(question, host),
            our_kernel.way(question, host)
        )
    }
    // Where chance decides, each kernel was held against what is possible.
    if theirs.seen.destination() == own.seen.destination() && told(&theirs.seen) != told(&own.seen) {
        bail!("{question}\nkube-proxy's kernel: {}\nours: {}", theirs.seen, own.seen)
    }
    Ok(())
}

/// What the sender hears.
fn told(fate: &Fate) -> Option<crate::tun::Answer> {
    fate.answer
}

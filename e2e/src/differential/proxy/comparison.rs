//! Whether both sides have the same answer to a packet.

use anyhow::{Result, bail};
use fairlead_compiler::Host;

use super::{
    kernel::{Kernel, Reply},
    packets::Question,
};
/// Fails when a packet fares differently, by the rules or in the kernels.
pub(super) fn compare(
    question: &Question,
    host: &Host,
    genuine: (&Kernel, &Reply),
    ours: (&Kernel, &Reply),
) -> Result<()> {
    let ((their_kernel, theirs), (our_kernel, own)) = (genuine, ours);
    if let Some(objection) = theirs.objection.as_ref().or(own.objection.as_ref()) {
        bail!("{objection}");
    }
    if theirs.traced != own.traced {
        bail!(
            "{question}\nkube-proxy: {}\nours: {}\nkube-proxy's rules:\n{}\nours:\n{}",
            theirs.traced,
            own.traced,
            their_kernel.way(question, host),
            our_kernel.way(question, host)
        )
    }
    // Where chance decides, each kernel was held against what is possible. Where kube-proxy itself listens, for health
    // checks, nobody complains.
    let same_way = theirs.seen.destination() == own.seen.destination();
    if let (Some(theirs), Some(own), true) = (theirs.seen.answer, own.seen.answer, same_way)
        && theirs != own
    {
        bail!("{question}\nkube-proxy's node says: {theirs:?}\nours: {own:?}");
    }
    Ok(())
}

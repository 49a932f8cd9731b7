//! stub
use crate::{Answer, args::ExplainService};
pub(crate) fn run(_args: &ExplainService) -> anyhow::Result<Answer> {
    anyhow::bail!("x")
}

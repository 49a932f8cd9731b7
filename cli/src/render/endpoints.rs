//! `fairlead render endpoints`.

use crate::{
    Answer,
    args::RenderEndpoints,
    cluster::Scope,
    output::{Manifest, manifests},
    snapshot::{Snapshot, node_warning, warnings},
    supply,
};

/// Plans every Service of the input. The objects come by namespace and Service; of one Service, the Endpoints before the
/// slices, IPv4 before IPv6, then by name.
pub(crate) fn run(args: &RenderEndpoints) -> anyhow::Result<Answer> {
    let (objects, mut notices) = supply::objects(&args.supply, Scope::Controller)?;
    if objects.services.is_empty() {
        notices.push(format!("warning: no Service in {}: there is nothing to plan", objects.origin.place()));
    }
    notices.extend(node_warning(&objects));
    let snapshot = Snapshot::new(&objects);
    let mut rendered: Vec<Manifest> = Vec::new();
    for service in objects.services.values() {
        let (mut outcome, notes) = snapshot.outcome(service);
        notices.extend(warnings(&notes));
        outcome
            .slices
            .sort_by(|a, b| (&a.address_type, &a.metadata.name).cmp(&(&b.address_type, &b.metadata.name)));
        rendered.extend(outcome.endpoints.map(Into::into));
        rendered.extend(outcome.slices.into_iter().map(Into::into));
    }
    Ok(Answer::yes(notices, manifests(&rendered, args.output.output)?))
}

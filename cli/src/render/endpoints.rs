//! `fairlead render endpoints`.

use crate::{
    Answer,
    args::RenderEndpoints,
    input,
    output::{Manifest, manifests},
    snapshot::{Snapshot, node_warning, warnings},
};

/// Plans every Service of the input. The objects come by namespace and Service; of one Service, the Endpoints before the
/// slices, IPv4 before IPv6, then by name.
pub(crate) fn run(args: &RenderEndpoints) -> anyhow::Result<Answer> {
    let (objects, mut notices) = input::read(&args.files.files)?;
    if objects.services.is_empty() {
        notices.push("warning: no Service in the input: there is nothing to plan".to_owned());
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

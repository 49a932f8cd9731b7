//! What the controller does better than kube-controller-manager, what it does beside it, and what it makes of odd objects;
//! on a real API server, without anything that runs.
//!
//! Pods and Nodes are objects here, no more. Whether something was written at all is asked of the API server, which counts
//! requests; a write that changes nothing leaves no other trace.

mod coexistence;
mod fixtures;
mod odd_objects;
mod promises;

use std::process::ExitCode;

use fairlead_e2e::{Options, cases, plan::Families, programs::Make, suite};

use coexistence::{
    a_cluster_that_kcm_left_is_taken_over_without_a_write,
    a_cluster_that_we_left_is_taken_over_without_a_write, both_at_work_come_to_rest_and_stay_at_rest,
    preflight_names_the_other_writer,
};
use odd_objects::{
    hand_edits_of_slices_are_repaired, hand_made_endpoints_are_mirrored_as_far_as_slices_can_hold_them,
    pods_without_a_usable_address_keep_nobody_else_out,
    service_recreated_under_its_name_gets_slices_of_its_own,
    truncated_endpoints_with_many_ports_are_accepted_and_written_once,
};
use promises::{
    any_subset_of_the_parts_runs, changes_of_nodes_and_phases_show_at_once,
    nothing_that_happens_to_a_slice_wedges_its_service, orphans_go_and_what_was_made_by_hand_stays,
    start_syncs_each_service_once_and_writes_nothing_that_is_right,
};

fn main() -> ExitCode {
    let options = || {
        Ok(Options {
            nodes: 0,
            families: Families::DualStack,
            controller: Make::Ours,
            ..Options::from_env()?
        })
    };
    suite::run_on(
        options,
        |bed| bed.kubernetes().apply(&fixtures::node("n1", "z1")).map(drop),
        cases![
            changes_of_nodes_and_phases_show_at_once,
            nothing_that_happens_to_a_slice_wedges_its_service,
            orphans_go_and_what_was_made_by_hand_stays,
            start_syncs_each_service_once_and_writes_nothing_that_is_right,
            any_subset_of_the_parts_runs,
            pods_without_a_usable_address_keep_nobody_else_out,
            hand_made_endpoints_are_mirrored_as_far_as_slices_can_hold_them,
            hand_edits_of_slices_are_repaired,
            service_recreated_under_its_name_gets_slices_of_its_own,
            truncated_endpoints_with_many_ports_are_accepted_and_written_once,
            a_cluster_that_kcm_left_is_taken_over_without_a_write,
            a_cluster_that_we_left_is_taken_over_without_a_write,
            both_at_work_come_to_rest_and_stay_at_rest,
            preflight_names_the_other_writer,
        ],
    )
}

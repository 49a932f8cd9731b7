//! The Helm chart, judged by Helm and by a real API server; the rights that it gives; and what our programs say in a cluster
//! that they cannot work in.

mod objects;
mod rights;
mod starts;
mod values;

use std::process::ExitCode;

use fairlead_e2e::{Options, cases, suite};

use crate::{
    objects::{
        a_release_is_installed_upgraded_rolled_back_and_leaves_nothing,
        every_flag_of_the_chart_is_one_that_the_program_takes, every_object_passes_a_server_side_dry_run,
        generated_files_are_in_step_with_the_chart, only_the_programmer_is_more_than_restricted,
    },
    rights::{
        each_missing_right_of_the_programmer_is_named_and_no_other, each_right_of_the_test_pod_is_needed,
    },
    starts::{
        a_kube_proxy_that_still_runs_is_named_and_waited_for,
        an_api_server_that_cannot_be_reached_is_named_and_nobody_is_ready,
        what_the_mode_of_the_values_left_goes_when_rules_are_there,
    },
    values::{
        a_network_of_each_family_and_settings_of_other_modes_are_taken,
        every_value_is_documented_and_in_the_schema, the_chart_is_well_formed,
        wrong_values_are_refused_by_name,
    },
};

fn main() -> ExitCode {
    suite::run_on(
        || Ok(Options { nodes: 1, ..Options::from_env()? }),
        |_| Ok(()),
        cases![
            the_chart_is_well_formed,
            generated_files_are_in_step_with_the_chart,
            every_value_is_documented_and_in_the_schema,
            wrong_values_are_refused_by_name,
            a_network_of_each_family_and_settings_of_other_modes_are_taken,
            every_flag_of_the_chart_is_one_that_the_program_takes,
            every_object_passes_a_server_side_dry_run,
            only_the_programmer_is_more_than_restricted,
            a_release_is_installed_upgraded_rolled_back_and_leaves_nothing,
            each_missing_right_of_the_programmer_is_named_and_no_other,
            each_right_of_the_test_pod_is_needed,
            a_kube_proxy_that_still_runs_is_named_and_waited_for,
            an_api_server_that_cannot_be_reached_is_named_and_nobody_is_ready,
            what_the_mode_of_the_values_left_goes_when_rules_are_there,
        ],
    )
}

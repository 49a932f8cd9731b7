//! Fairlead's controller and kube-controller-manager leave the same objects behind, whatever happens: see
//! `fairlead_e2e::differential::controller`.

use fairlead_e2e::{
    differential::controller::{self, Settings},
    suite,
};

#[test]
fn both_leave_the_same_objects_whatever_happens() {
    if let Some(refusal) = suite::refuse() {
        assert_eq!(refusal, std::process::ExitCode::SUCCESS, "this needs root");
        return;
    }
    if let Err(error) = Settings::from_env().and_then(controller::run) {
        panic!("{error:#}");
    }
}

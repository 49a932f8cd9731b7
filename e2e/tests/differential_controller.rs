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
    let settings = Settings::from_env().unwrap();
    println!("seed {}", settings.seed);
    match controller::run(settings) {
        Ok(report) => println!("{report}"),
        Err(error) => panic!("seed {}: {error:#}", settings.seed),
    }
}

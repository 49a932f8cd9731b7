//! UDP flows, after syncs and beside them.

use super::*;

fn udp_service() -> Change {
    let spec = json!({"clusterIP": "10.96.0.53", "clusterIPs": ["10.96.0.53"],
        "ports": [{"port": 53, "protocol": "UDP"}]});
    Change::Service(Arc::new(builders::service("dns", spec)))
}

fn udp_slice(address: &str) -> Change {
    let mut slice = builders::slice("dns-1", "dns", 53, &[(address, "node-a", true)]);
    for port in &mut slice.ports {
        port.protocol = Some(fairlead_objects::Protocol::Udp);
    }
    Change::Slice(Arc::new(slice))
}

const STALE: &str = "10.96.0.53:53>10.0.0.1:53";

#[tokio::test(start_paused = true)]
async fn stale_udp_flows_are_deleted_after_the_rules_are_written_and_others_stay() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell([udp_service(), udp_slice("10.0.0.1")]).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.1:53");
    bench.flows.add("203.0.113.1:53", "203.0.113.1:53");
    bench.load(1).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.flows.flows().len(), 2, "a restart keeps flows that agree");
    bench.tell([udp_slice("10.0.0.2")]).await;
    bench.until(|| bench.flows.flows().len() == 1).await;
    assert_eq!(model.restores(), 1);
    assert_eq!(bench.flows.flows(), ["203.0.113.1:53>203.0.113.1:53"]);
}

/// kubernetes #112604: a failed restore must not lose what is to be done about flows.
#[tokio::test(start_paused = true)]
async fn failed_sync_and_failed_reconcile_keep_the_duty() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell([udp_service(), udp_slice("10.0.0.1")]).await;
    bench.load(1).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.1:53");
    model.refuse(2);
    bench.flows.fail(3);
    let lists = bench.flows.lists();
    bench.tell([udp_slice("10.0.0.2")]).await;
    sleep(Duration::from_millis(90)).await;
    assert_eq!(bench.flows.lists(), lists, "not before the rules are there");
    bench.until(|| bench.flows.flows().is_empty()).await;
    assert_eq!(bench.flows.lists(), lists + 4);
}

#[tokio::test(start_paused = true)]
async fn deleted_service_takes_its_flows_along() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell([udp_service(), udp_slice("10.0.0.1")]).await;
    bench.load(1).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.1:53");
    assert_eq!(bench.flows.flows(), [STALE]);
    bench.tell([Change::ServiceGone(ServiceKey::new("default", "dns"))]).await;
    bench.until(|| bench.flows.flows().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn list_that_was_interrupted_is_read_again() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell([udp_service(), udp_slice("10.0.0.2")]).await;
    for number in 1..5 {
        bench.flows.add("10.96.0.53:53", &format!("10.0.1.{number}:53"));
    }
    bench.flows.interrupt(2);
    bench.load(1).await;
    bench.until(|| bench.flows.flows().is_empty()).await;
}

/// A sync loop with a UDP Service, a flow that it has made stale, and a reconcile that is stuck in its list.
async fn stuck(model: &Arc<Model>) -> Bench {
    let bench = bench(model);
    bench.tell([udp_service(), udp_slice("10.0.0.1")]).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.9:53");
    bench.load(1).await;
    bench.until(|| bench.flows.flows().is_empty()).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.1:53");
    bench.flows.hold(true);
    let lists = bench.flows.lists();
    bench.tell([udp_slice("10.0.0.2")]).await;
    bench.until(|| bench.flows.lists() > lists).await;
    bench
}

// A blocked list blocks a thread, so time is not paused in these.

#[tokio::test]
async fn rules_are_programmed_while_a_reconcile_still_runs() {
    let model = Arc::new(Model::default());
    let bench = stuck(&model).await;
    for number in 1..=3 {
        let restores = model.restores();
        bench.tell([slice(0, &[&format!("10.0.1.{number}")])]).await;
        bench.until(|| model.restores() > restores).await;
    }
    assert_eq!(bench.flows.flows(), [STALE]);
    bench.flows.hold(false);
    bench.until(|| bench.flows.flows().is_empty()).await;
}

#[tokio::test]
async fn flow_that_the_next_rules_decided_outlives_the_reconcile_before_and_what_they_made_stale_does_not() {
    let model = Arc::new(Model::default());
    let bench = stuck(&model).await;
    let (restores, lists) = (model.restores(), bench.flows.lists());
    bench.tell([udp_slice("10.0.0.3")]).await;
    bench.until(|| model.restores() > restores).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.2:53");
    bench.flows.add("10.96.0.53:53", "10.0.0.3:53");
    bench.flows.hold(false);
    bench.until(|| bench.flows.flows().len() == 1).await;
    assert_eq!(bench.flows.flows(), ["10.96.0.53:53>10.0.0.3:53"]);
    assert_eq!(bench.flows.lists(), lists + 1, "one more, for what changed meanwhile");
}

#[tokio::test]
async fn sync_that_fails_beside_a_reconcile_keeps_what_is_to_be_done() {
    let model = Arc::new(Model::default());
    let bench = stuck(&model).await;
    bench.flows.add("10.96.0.53:53", "10.0.0.2:53");
    let lists = bench.flows.lists();
    model.refuse(usize::MAX);
    bench.tell([udp_slice("10.0.0.3")]).await;
    bench.until(|| bench.readiness.to_string().contains("was ok, now")).await;
    bench.flows.hold(false);
    bench.until(|| bench.flows.flows().len() == 1).await;
    assert_eq!(bench.flows.flows(), ["10.96.0.53:53>10.0.0.2:53"], "the rules may still lead there");
    assert_eq!(bench.flows.lists(), lists, "not before the rules are there");
    model.refuse(0);
    bench.until(|| bench.flows.flows().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn change_that_leaves_no_flow_behind_reads_no_list() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell([udp_service(), udp_slice("10.0.0.1")]).await;
    bench.load(1).await;
    let lists = bench.flows.lists();
    bench.tell([slice(0, &["10.0.1.1"])]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!((model.restores(), bench.flows.lists()), (1, lists));
}

/// While it is found out whose rules are refused, others are without rules for a moment, and their packets go elsewhere.
#[tokio::test(start_paused = true)]
async fn flows_of_services_that_were_left_out_for_a_while_are_compared_again() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell([udp_service(), udp_slice("10.0.0.1")]).await;
    bench.load(5).await;
    model.refuse_text(BAD, false);
    model.slow_down(Duration::from_secs(1));
    bench.tell([slice(3, &[BAD]), udp_slice("10.0.0.2")]).await;
    while bench.installed().await.contains("10.96.0.53") {
        sleep(Duration::from_millis(1)).await;
    }
    // The client goes on sending until it is served again.
    while !bench.installed().await.contains("10.0.0.2:53") {
        if bench.flows.flows().is_empty() {
            bench.flows.add("10.96.0.53:53", "10.96.0.53:53");
        }
        sleep(Duration::from_millis(100)).await;
    }
    bench.until(|| bench.flows.flows().is_empty()).await;
}

//! What other programs do to our rules is noticed and repaired, against a real kernel and the whole sync loop; both
//! families, both variants of iptables.
//!
//! What is promised: two seconds, from when a repair is possible; half a minute for an edit on iptables-legacy that changes
//! neither number nor size of the rules. Every wait is at most as long as that.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    env, fs,
    process::{Child, Command},
    sync::Arc,
};

use fairlead_objects::Family;
use fairlead_programmer::netfilter::Variant;

mod namespace;
mod node;
mod ward;

use namespace::{in_namespace, shell};
use node::{FAMILIES, Node, VARIANTS, program, until, within};
use ward::{
    LONG_PROMISE, PROMISE, Place, Rule, Ward, address, one_of_each_kind, rules, saved, services, slice,
};

/// Deletes one rule of each kind and every jump, edits it, and puts another before it.
async fn damage_rules(family: Family, variant: Variant) {
    let mut ward = Ward::open(family, variant).await;
    let nobody = address(family, "external", 99);
    // Of a size that no rule of ours has.
    let edited =
        format!("-s {nobody} -m comment --comment edited -m mark --mark 0x99 -m addrtype --src-type LOCAL");
    let mut times = Vec::new();
    for rule in one_of_each_kind(&ward.tool) {
        let Rule { place, number, text } = &rule;
        let (table, chain) = place;
        let (places, command) = (std::slice::from_ref(place), format!("{} -w 5 -t {table}", ward.tool));
        let what = |verb: &str| format!("{table} {chain} {number} {verb}");
        let delete = format!("{command} -D {chain} {number}");
        times.push(ward.damage(&what("deleted"), places, &delete, PROMISE).await);
        if rule.is_built_in() {
            // What is left of it is a stranger's rule, and stays.
            let target = text.rsplit_once("-j ").unwrap().1;
            let same = |rule: &Rule| rule.place == *place && rule.text == *text;
            // A jump that is put back is put on top.
            let number = rules(&ward.tool).into_iter().find(same).unwrap().number;
            shell(&format!("{command} -R {chain} {number} {edited} -j {target}"));
            times.push(within(PROMISE, &what("edited"), || rules(&ward.tool).iter().any(same)).await);
            ward.differences += 1;
            ward.damage(&what("left"), &[], &format!("{command} -D {chain} {edited} -j {target}"), PROMISE)
                .await;
        } else {
            let edit = format!("{command} -R {chain} {number} {edited} -j RETURN");
            times.push(ward.damage(&what("edited"), places, &edit, PROMISE).await);
            let insert = format!("{command} -I {chain} -s {nobody} -j RETURN");
            times.push(ward.damage(&what("moved down"), places, &insert, PROMISE).await);
        }
    }
    times.sort();
    let (tool, count) = (&ward.tool, times.len());
    eprintln!("{tool}: {count} repairs, p50 {:?}, most {:?}", times[count / 2], times[count - 1]);
    ward.close().await;
}

/// What it takes to delete a chain: first nothing may lead there. Returns each difference that this makes.
fn deletion(tool: &str, place: &Place) -> (Vec<Place>, String) {
    let (table, chain) = place;
    let mut places = vec![place.clone()];
    let mut document = vec![format!("*{table}")];
    for rule in rules(tool) {
        let leads_there = rule.text.rsplit_once("-j ").is_some_and(|(_, target)| target == chain);
        if rule.place.0 == *table && leads_there {
            document.push(format!("-D {} {}", rule.place.1, rule.text));
            // A chain is different or not; of jumps from built-in chains, each counts.
            if rule.is_built_in() || !places.contains(&rule.place) {
                places.push(rule.place);
            }
        }
    }
    document.push(format!("-F {chain}\n-X {chain}\nCOMMIT"));
    (places, format!("{tool}-restore -w 5 --noflush <<'END'\n{}\nEND\n", document.join("\n")))
}

/// Deletes one chain of each kind.
async fn damage_chains(family: Family, variant: Variant) {
    let mut ward = Ward::open(family, variant).await;
    for rule in one_of_each_kind(&ward.tool).into_iter().filter(|rule| !rule.is_built_in()) {
        let (table, chain) = &rule.place;
        let (places, script) = deletion(&ward.tool, &rule.place);
        ward.damage(&format!("{table} {chain} deleted"), &places, &script, PROMISE).await;
    }
    ward.close().await;
}

macro_rules! wards {
    ($($name:ident: $body:expr;)*) => {$(
        #[test]
        fn $name() {
            in_namespace(stringify!($name), async || $body.await);
        }
    )*};
}

wards! {
    rule_of_every_kind_deleted_or_edited_is_repaired_nft_ipv4: damage_rules(Family::V4, Variant::Nft);
    rule_of_every_kind_deleted_or_edited_is_repaired_nft_ipv6: damage_rules(Family::V6, Variant::Nft);
    rule_of_every_kind_deleted_or_edited_is_repaired_legacy_ipv4: damage_rules(Family::V4, Variant::Legacy);
    rule_of_every_kind_deleted_or_edited_is_repaired_legacy_ipv6: damage_rules(Family::V6, Variant::Legacy);
    chain_of_every_kind_deleted_is_repaired_nft_ipv4: damage_chains(Family::V4, Variant::Nft);
    chain_of_every_kind_deleted_is_repaired_nft_ipv6: damage_chains(Family::V6, Variant::Nft);
    chain_of_every_kind_deleted_is_repaired_legacy_ipv4: damage_chains(Family::V4, Variant::Legacy);
    chain_of_every_kind_deleted_is_repaired_legacy_ipv6: damage_chains(Family::V6, Variant::Legacy);
}

/// Everything at once, as other programs do it. On iptables-legacy each of these changes the counts.
fn disasters(tool: &str) -> Vec<(&'static str, String)> {
    let all = |commands: &str| format!("for table in mangle nat filter; do {commands}; done");
    let flush = format!("{tool} -w 5 -t $table -F");
    let restore = "for table in nat filter mangle; do printf '*%s\\n:OUTPUT ACCEPT\\nCOMMIT\\n' $table; done";
    vec![
        ("table nat flushed", format!("{tool} -w 5 -t nat -F")),
        ("all tables flushed", all(&flush)),
        ("all tables flushed and emptied", all(&format!("{flush}; {tool} -w 5 -t $table -X"))),
        ("canary deleted", format!("{tool} -w 5 -t mangle -X KUBE-PROXY-CANARY")),
        ("all canaries deleted", all(&format!("{tool} -w 5 -t $table -X KUBE-PROXY-CANARY"))),
        ("restore without --noflush", format!("{restore} | {tool}-restore -w 5")),
    ]
}

#[test]
fn flushed_tables_and_restores_of_others_are_repaired() {
    in_namespace("flushed_tables_and_restores_of_others_are_repaired", async || {
        for (family, variant) in
            FAMILIES.into_iter().flat_map(|family| VARIANTS.map(|variant| (family, variant)))
        {
            let ward = Ward::open(family, variant).await;
            for (what, script) in disasters(&ward.tool) {
                let counted = ward.counted();
                shell(&script);
                let took = ward.healed(what, PROMISE).await;
                eprintln!("{}, {what}: {took:?}", ward.tool);
                if !what.contains("canar") {
                    until(&format!("{what}: counted"), || ward.counted() > counted).await;
                }
            }
            ward.close().await;
        }
    });
}

/// Chains and rules as they should be, and others.
fn has_all_of(ward: &Ward) -> bool {
    let now = saved(&ward.tool);
    ward.healthy.iter().all(|line| now.contains(line))
}

/// Callers lead to a chain by its number, so a renamed one goes on working, until it is needed by its name.
#[test]
fn renamed_chain_is_made_anew_nft() {
    in_namespace("renamed_chain_is_made_anew_nft", async || {
        for family in FAMILIES {
            let ward = Ward::open(family, Variant::Nft).await;
            shell(&format!("{} -t nat -E KUBE-MARK-MASQ KEPT", ward.tool));
            within(PROMISE, "renamed", || has_all_of(&ward)).await;
            ward.node.stop().await;
        }
    });
}

/// A renamed chain, and an edited rule, change neither number nor size.
#[test]
fn edit_that_keeps_all_counts_is_repaired_within_half_a_minute_legacy() {
    in_namespace("edit_that_keeps_all_counts_is_repaired_within_half_a_minute_legacy", async || {
        let wards =
            [Ward::open(Family::V4, Variant::Legacy).await, Ward::open(Family::V6, Variant::Legacy).await];
        for Ward { tool, node, .. } in &wards {
            let is_dnat = |rule: &Rule| rule.text.contains("--to-destination");
            let Rule { place: (_, chain), number, text } = rules(tool).into_iter().find(is_dnat).unwrap();
            let (text, _) = text.split_once("--to-destination").unwrap();
            let elsewhere = match node.family {
                Family::V4 => "192.0.2.1:8080",
                Family::V6 => "[2001:db8:2::1]:8080",
            };
            shell(&format!("{tool} -w 5 -t nat -R {chain} {number} {text} --to-destination {elsewhere}"));
            shell(&format!("{tool} -w 5 -t nat -E KUBE-MARK-MASQ KEPT"));
        }
        assert!(!wards.iter().any(has_all_of));
        for ward in &wards {
            within(LONG_PROMISE, "edited", || has_all_of(ward)).await;
        }
    });
}

#[test]
fn what_others_do_to_their_own_chains_costs_nothing() {
    in_namespace("what_others_do_to_their_own_chains_costs_nothing", async || {
        let node = Node::start(Family::V4, Variant::Nft, services(Family::V4)).await;
        let endpoint = address(Family::V4, "pod", 999);
        node.tell(slice(Family::V4, "plain", 999, 1)).await;
        until("our own change", || saved("iptables-nft").iter().any(|(_, line)| line.contains(&endpoint)))
            .await;
        for number in 0..20 {
            shell(&format!(
                "iptables-nft -t nat -N DOCKER-{number}; iptables-nft -t nat -A DOCKER-{number} -j RETURN"
            ));
        }
        // A foreign rule in a chain that leads to ours is looked at, and stays. Had anything before been noticed, it would
        // have been looked at by now.
        shell("iptables-nft -t nat -I PREROUTING -j DOCKER-1");
        let name = "fairlead_verification_duration_seconds_count";
        within(PROMISE, "looked at", || node.metric(name) > 0).await;
        assert_eq!(node.metric(name), 1, "neither their changes nor our own are read back");
        let jump = ("nat".to_owned(), "-A PREROUTING -j DOCKER-1".to_owned());
        assert!(saved("iptables-nft").contains(&jump));
        node.stop().await;
    });
}

/// Ends its process when it goes.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Both families share the lock.
#[test]
fn repair_waits_for_the_lock_and_comes_right_after_it_legacy() {
    in_namespace("repair_waits_for_the_lock_and_comes_right_after_it_legacy", async || {
        let wards =
            [Ward::open(Family::V4, Variant::Legacy).await, Ward::open(Family::V6, Variant::Legacy).await];
        let lock = env::var("XTABLES_LOCKFILE").unwrap();
        let holder = Command::new("flock").args(["--no-fork", lock.as_str(), "sleep", "60"]).spawn().unwrap();
        let holder = Holder(holder);
        until("the lock is taken", || shell(&format!("flock -n {lock} echo free || true")).is_empty()).await;
        for Ward { tool, .. } in &wards {
            shell(&format!(
                "XTABLES_LOCKFILE={lock}.other {tool} -t nat -F KUBE-POSTROUTING; rm -f {lock}.other"
            ));
        }
        // Longer than our own programs wait for the lock, twice.
        for ward in &wards {
            until("they give up", || ward.node.metric_of("fairlead_sync_failures_total", "busy") >= 2).await;
        }
        drop(holder);
        for ward in &wards {
            ward.healed("lock held", PROMISE).await;
            assert_eq!(
                ward.node.metric_of("fairlead_full_syncs_total", "flush"),
                0,
                "a taken lock is no flush"
            );
            until("counted", || ward.counted() == 1).await;
        }
    });
}

/// Rules that nft writes into the tables of iptables may be such that iptables-save cannot print the table.
#[test]
fn rules_that_only_nft_understands_hold_up_nothing() {
    in_namespace("rules_that_only_nft_understands_hold_up_nothing", async || {
        if shell("command -v nft || true").is_empty() {
            assert_ne!(env::var("CI").as_deref(), Ok("true"), "nft is not installed");
            return eprintln!("SKIPPED: nft is not installed");
        }
        for family in FAMILIES {
            let (tool, table) =
                (program(family, Variant::Nft), if family == Family::V4 { "ip nat" } else { "ip6 nat" });
            let list = |chain: &str| shell(&format!("nft list chain {table} {chain}"));
            shell(&format!(
                "{tool} -t nat -N THEIRS; nft add rule {table} THEIRS numgen random mod 2 1 accept"
            ));
            assert!(!shell(&format!("{tool}-save -t nat")).contains("COMMIT"), "it can print everything");
            let node = Node::start(family, Variant::Nft, services(family)).await;
            let jumps = list("PREROUTING");
            assert!(jumps.contains("jump KUBE-SERVICES"), "{jumps}");

            let endpoint = address(family, "pod", 999);
            node.tell(slice(family, "plain", 999, 1)).await;
            until("a change", || shell(&format!("nft list table {table}")).contains(&endpoint)).await;
            shell(&format!("nft add rule {table} KUBE-MARK-MASQ numgen random mod 2 1 accept"));
            within(PROMISE, "our chain", || !list("KUBE-MARK-MASQ").contains("numgen")).await;
            shell(&format!("{tool} -t mangle -X KUBE-PROXY-CANARY"));
            within(PROMISE, "everything", || shell(&format!("{tool}-save -t mangle")).contains("CANARY"))
                .await;
            assert_eq!(list("PREROUTING"), jumps, "no jump is there twice");
            assert!(list("THEIRS").contains("numgen"));

            shell(&format!("nft flush chain {table} THEIRS; {tool} -t nat -F KUBE-POSTROUTING"));
            let rule = "-A KUBE-POSTROUTING";
            within(PROMISE, "again", || shell(&format!("{tool}-save -t nat")).contains(rule)).await;
            node.stop().await;
        }
    });
}

/// A kube-proxy that is back need not answer on any port that we know.
#[test]
fn another_proxy_is_known_by_its_chains_and_other_damage_is_not_taken_for_it() {
    in_namespace("another_proxy_is_known_by_its_chains_and_other_damage_is_not_taken_for_it", async || {
        for variant in VARIANTS {
            let ward = Ward::open(Family::V4, variant).await;
            shell(&format!("{0} -w 5 -t nat -F KUBE-POSTROUTING; {0} -w 5 -D FORWARD 1", ward.tool));
            ward.healed("flushed", PROMISE).await;
            until("counted", || ward.counted() == 2).await;
            assert_eq!(ward.node.seen.borrow().chain(), None);
            let document = "*nat\n:KUBE-SEP-THEIRS - [0:0]\n-A KUBE-SEP-THEIRS -p tcp -j DNAT --to-destination \
                            10.0.0.9:80\n-A KUBE-SERVICES -j KUBE-SEP-THEIRS\nCOMMIT";
            shell(&format!("{}-restore -w 5 --noflush <<'END'\n{document}\nEND\n", ward.tool));
            ward.healed("their chain", PROMISE).await;
            let chain = || ward.node.seen.borrow().chain().map(|chain| chain.as_str().to_owned());
            until("it is known", || chain().as_deref() == Some("KUBE-SEP-THEIRS")).await;
            ward.close().await;
        }
    });
}

#[test]
fn what_was_different_is_logged() {
    in_namespace("what_was_different_is_logged", async || {
        let path = env::temp_dir().join(format!("fairlead-log-{}", std::process::id()));
        let file = Arc::new(fs::File::create(&path).unwrap());
        tracing_subscriber::fmt().with_ansi(false).with_writer(file).init();
        for family in FAMILIES {
            for variant in VARIANTS {
                let ward = Ward::open(family, variant).await;
                shell(&format!("{0} -w 5 -t nat -F KUBE-POSTROUTING; {0} -w 5 -D FORWARD 1", ward.tool));
                ward.healed("flushed", PROMISE).await;
                until("counted", || ward.counted() == 2).await;
                let log = fs::read_to_string(&path).unwrap();
                let told = log.lines().filter(|line| line.contains("another program changed the rules"));
                let told: String = told.filter(|line| line.contains(&format!("family={family}"))).collect();
                for different in ["nat KUBE-POSTROUTING changed", "filter FORWARD without a jump of ours"] {
                    assert!(told.contains(different), "{different}: {log}");
                }
                ward.close().await;
                fs::write(&path, "").unwrap();
            }
        }
        fs::remove_file(path).unwrap();
    });
}

//! What a node counts, and under which names it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actix_memberlist::{
    Broadcast, Cluster, Config, Evidence, MemberState, Metrics,
    metrics::{Kind, Sample, TABLE, Value},
    network::{Endpoint, Network},
};
use memberlist_protocol::wire::{
    frame::{Envelope, Packer},
    message::{Message, Suspect},
};
use memberlist_tests::{World, addr, paused};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::sleep;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Without exchanges of states but those of a join.
fn without_push_pull() -> Config {
    Config { push_pull_interval: Duration::ZERO, ..Config::lan() }
}

fn metrics(world: &World, i: usize) -> Metrics {
    world.nodes[i].metrics()
}

#[test]
fn weak_point_19_the_size_of_the_own_state_is_what_a_peer_gets() {
    paused(async {
        let world = World::cluster(19, without_push_pull(), 2).await;
        let alone = world.builder(2).start().await.expect("a node starts").metrics().state_size;
        assert!((20..100).contains(&alone), "its own record: {alone} bytes");
        // Each of the two has given its state once, to the other.
        for (giver, taker) in [(0, 1), (1, 0)] {
            let taken = metrics(&world, taker).remote_state_size;
            assert_eq!((taken.count(), taken.sum), (1, metrics(&world, giver).state_size as f64));
        }
        let before = metrics(&world, 0).state_size;
        world.nodes[0].set_meta(vec![b'x'; 400].into()).await.expect("there is room");
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins again");
        let after = metrics(&world, 0).state_size;
        assert!((before + 400..before + 600).contains(&after), "{before}, then {after} bytes");
    });
}

fn prometheus() -> (metrics_exporter_prometheus::PrometheusRecorder, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

#[test]
fn weak_point_19_the_labels_of_two_nodes_that_are_recorded_at_once_never_mix() {
    paused(async {
        let world = World::cluster(20, Config::lan(), 2).await;
        let (recorder, handle) = prometheus();
        let (one, two) = (metrics(&world, 0), metrics(&world, 1));
        std::thread::scope(|threads| {
            for (node, metrics) in [("one", &one), ("two", &two)] {
                let recorder = &recorder;
                threads.spawn(move || {
                    for _ in 0..50 {
                        metrics::with_local_recorder(recorder, || metrics.record(&[("node", node)]));
                    }
                });
            }
        });
        let text = handle.render();
        let of = |text: &str, node: &str| -> BTreeSet<String> {
            let label = format!("node=\"{node}\"");
            text.lines().filter(|line| line.contains(&label)).map(str::to_owned).collect()
        };
        let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        assert!(text.lines().all(|line| line.matches("node=").count() <= 1));
        // Each has the series and the values that it has when nobody else is recorded.
        let alone = |node: &'static str, metrics: &Metrics| {
            let (recorder, handle) = prometheus();
            metrics::with_local_recorder(&recorder, || metrics.record(&[("node", node)]));
            of(&handle.render(), node)
        };
        assert_ne!(alone("one", &one), alone("one", &two), "else it would not show");
        for (node, metrics) in [("one", &one), ("two", &two)] {
            let alone = alone(node, metrics);
            assert_eq!((alone.len(), &of(&text, node)), (series / 2, &alone));
        }
    });
}

#[test]
fn a_recorder_is_told_what_the_value_says() {
    paused(async {
        let world = World::cluster(21, Config::lan(), 3).await;
        sleep(secs(10)).await;
        let (recorder, handle) = prometheus();
        let value = metrics(&world, 0);
        metrics::with_local_recorder(&recorder, || {
            Metrics::describe();
            value.record(&[("cluster", "c")]);
        });
        let text = handle.render();
        let has = |line: String| assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        has(r#"memberlist_node_instances{cluster="c",node_state="alive"} 3"#.into());
        has(r#"memberlist_node_instances{cluster="c",node_state="dead"} 0"#.into());
        has(format!(r#"memberlist_udp_sent{{cluster="c"}} {}"#, value.bytes_sent));
        let probes = value.probe_rtt.count();
        assert!(probes > 3, "it has probed");
        has(format!(r#"memberlist_probe_rtt_seconds_count{{cluster="c"}} {probes}"#));
        has(format!(r#"memberlist_probe_rtt_seconds_bucket{{cluster="c",le="+Inf"}} {probes}"#));
        has(format!(r#"memberlist_probe_rtt_seconds_sum{{cluster="c"}} {}"#, value.probe_rtt.sum));
        // Recorded once more it says the same, not twice as much.
        metrics::with_local_recorder(&recorder, || value.record(&[("cluster", "c")]));
        has(format!(r#"memberlist_udp_sent{{cluster="c"}} {}"#, value.bytes_sent));
    });
}

/// The rows of the tables in the documentation: name, kind, unit, labels.
fn documented() -> BTreeMap<String, [String; 3]> {
    let text = include_str!("../docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `memberlist_"));
    rows.map(|line| {
        let mut cells = line.split('|').skip(1).map(|cell| cell.replace('`', "").trim().to_owned());
        let mut next = || cells.next().expect("a cell");
        let (name, kind, unit, labels) = (next(), next(), next(), next());
        (name, [kind.split(',').next().unwrap_or_default().to_owned(), unit, labels])
    })
    .collect()
}

#[test]
fn the_documentation_names_each_metric_with_its_kind_unit_and_labels_and_no_other() {
    let kind = |kind| match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let table: BTreeMap<_, _> = TABLE
        .iter()
        .map(|m| (m.name.to_owned(), [kind(m.kind), m.unit, &m.labels.join(", ")].map(str::to_owned)))
        .collect();
    assert_eq!(documented(), table);
    assert_eq!(TABLE.len(), table.len(), "no name comes twice");
}

#[test]
fn each_metric_has_a_value_of_its_kind_with_its_labels_and_nothing_else_has() {
    paused(async {
        let world = World::cluster(22, Config::lan(), 2).await;
        let samples = metrics(&world, 0).samples();
        for Sample { name, labels, value, .. } in &samples {
            let metric = TABLE.iter().find(|m| m.name == *name).unwrap_or_else(|| panic!("{name}?"));
            let kind = match value {
                Value::Counter(_) => Kind::Counter,
                Value::Gauge(_) => Kind::Gauge,
                Value::Histogram(_) => Kind::Histogram,
            };
            assert_eq!(kind, metric.kind, "{name}");
            assert_eq!(labels.iter().map(|(key, _)| *key).collect::<Vec<_>>(), metric.labels, "{name}");
        }
        let mut order: Vec<_> = samples.iter().map(|sample| sample.name).collect();
        order.dedup();
        let mut seen = std::collections::BTreeSet::new();
        order.retain(|name| seen.insert(*name));
        assert_eq!(seen.len(), TABLE.len(), "{:?}", TABLE.iter().find(|m| !seen.contains(m.name)));
    });
}

#[test]
fn a_crash_is_timed_from_the_probe_that_failed_to_the_verdict() {
    paused(async {
        // Its host does not tell that it is gone.
        let config = Config { count_refusals: false, ..Config::lan() };
        let mut world = World::cluster(23, config.clone(), 5).await;
        sleep(secs(5)).await;
        let before: Vec<_> = (0..4).map(|i| metrics(&world, i)).collect();
        world.kill(4).await;
        let dead = |w: &World| w.all_hold(0..4, 4, MemberState::Dead);
        let took = world.wait_until(secs(60), dead).await.expect("it is found dead").as_secs_f64();
        let (mut first_hand, mut accusations) = (0, 0);
        for (i, before) in before.iter().enumerate() {
            let after = metrics(&world, i);
            assert_eq!(after.suspect_messages - before.suspect_messages, 1);
            assert_eq!(after.dead_messages - before.dead_messages, 1);
            let suspicion = &after.suspicion_time["dead"];
            assert!(suspicion.count() == 1 && suspicion.sum > 0.0 && suspicion.sum < took, "{suspicion:?}");
            let own: u64 = after.suspicions_own.values().sum();
            first_hand += own;
            assert_eq!(after.detection_time.count(), own, "n00{i}");
            if own == 1 {
                let detection = after.detection_time.sum;
                assert!(detection >= suspicion.sum + config.probe_interval.as_secs_f64() - 0.1);
                // A tick of waiting may be missing at either end.
                assert!(detection <= took + 0.1, "{detection} s of {took} s");
                assert_eq!(after.suspicions_own["no_answer"], 1);
                assert!(after.probe_time.sum - before.probe_time.sum >= 0.9, "it waited for an interval");
            }
            accusations += after.accusers.values().sum::<u64>();
            assert_eq!((after.other_accusers, after.members["dead"]), (0, 1));
            let said = after.suspicions_heard.values().sum::<u64>() + own;
            assert_eq!(said, after.accusers.values().sum::<u64>());
        }
        assert!(first_hand >= 1 && accusations == 4, "{first_hand} of {accusations}");
        world.nodes.truncate(4);
    });
}

fn accuse(stranger: &dyn Endpoint, of: &Cluster, to: usize, from: &str) {
    let local = of.view().local().clone();
    let (id, incarnation) = (local.id.clone(), local.incarnation);
    let suspect = Suspect { id, incarnation, from: from.into(), evidence: Evidence::Hearsay };
    let mut buf = [0; 1400];
    let mut packer = Packer::new(&Envelope::new("").expect("no label"), &mut buf);
    assert!(packer.push(&Message::Suspect(suspect)));
    stranger.try_send(&packer.finish().expect("a message"), addr(to)).expect("there is room");
}

#[test]
fn a_refutation_is_counted_where_it_is_made_and_timed_where_it_is_heard() {
    paused(async {
        // The accusation is told in the next round of gossip, and not before it could be seen.
        let config = Config { gossip_at_once: false, ..without_push_pull() };
        let world = World::cluster(24, config, 2).await;
        sleep(secs(5)).await;
        let stranger = world.network.bind(addr(300)).await.expect("a free address");
        accuse(&*stranger, &world.nodes[1], 0, "nobody");
        sleep(Duration::from_millis(100)).await;
        assert_eq!(metrics(&world, 0).members["suspect"], 1);
        let refuted = |w: &World| w.state(0, 1) == Some(MemberState::Alive);
        assert!(world.wait_until(secs(10), refuted).await.is_some());
        let (here, there) = (metrics(&world, 0), metrics(&world, 1));
        assert_eq!((there.refutations, here.refuted_by_others, here.refutations), (1, 1, 0));
        let times = &here.suspicion_time["refuted"];
        assert!(times.count() == 1 && times.sum >= 0.09, "{times:?}");
        assert_eq!(here.suspicions_heard["hearsay"], 1);
        assert_eq!((here.accusers.len(), here.other_accusers), (0, 1), "a stranger has no name");
    });
}

#[test]
fn a_broadcast_is_in_the_depth_of_the_queue_and_timed_until_it_has_been_sent_as_often_as_it_should() {
    paused(async {
        let world = World::cluster(25, without_push_pull(), 3).await;
        sleep(secs(10)).await;
        assert_eq!(metrics(&world, 0).broadcasts_queued, 0);
        let spread = world.nodes[0].broadcast_bytes(Broadcast::new("x")).expect("it is taken");
        sleep(Duration::from_millis(10)).await;
        assert_eq!(metrics(&world, 0).broadcasts_queued, 1);
        let start = tokio::time::Instant::now();
        spread.await.expect("it is sent");
        let (took, times) = (start.elapsed().as_secs_f64(), &metrics(&world, 0).spread_time["user"]);
        assert!(times.count() == 1 && times.sum >= took && times.sum <= took + 0.1, "{times:?}, {took} s");
        assert!(metrics(&world, 0).spread_time["news"].count() > 0);
        assert!(metrics(&world, 0).gossip_time.count() > 0);
    });
}

#[test]
fn streams_and_exchanges_are_counted_at_both_ends() {
    paused(async {
        let world = World::cluster(26, without_push_pull(), 2).await;
        sleep(secs(1)).await;
        let (seed, joiner) = (metrics(&world, 0), metrics(&world, 1));
        assert_eq!((seed.streams_accepted, joiner.states_dialled, joiner.streams_dialled), (1, 1, 1));
        assert_eq!((joiner.push_pull_time.count(), seed.push_pull_time.count()), (1, 0));
        assert_eq!((seed.streams_open, joiner.streams_open), (0, 0));
        // The frame and its length; the first bytes of the stream say what it is for.
        assert_eq!(joiner.stream_bytes_received, seed.stream_bytes_sent);
        assert_eq!(joiner.stream_bytes_received, seed.state_size + 4);
        assert_eq!((seed.bytes_sent, joiner.bytes_sent), (joiner.bytes_received, seed.bytes_received));
    });
}

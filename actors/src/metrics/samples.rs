//! The metrics under the names that dashboards know.

use std::borrow::Cow;

use super::{Histogram, Metrics, Reason, accusers::OTHER};
use crate::logs;

/// What sort of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often a value fell between which bounds.
    Histogram,
}

/// One metric: its name, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// What sort of number it is.
    pub kind: Kind,
    /// `seconds`, `bytes`, or nothing for plain numbers.
    pub unit: &'static str,
    /// The keys of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in a few words.
    pub help: &'static str,
}

const fn described(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Described {
    Described { name, kind, unit, labels, help }
}

use Kind::{Counter as C, Gauge as G, Histogram as H};

/// All metrics that there are: first memberlist's, then those that it does not have.
#[rustfmt::skip]
pub const TABLE: &[Described] = &[
    described("memberlist_msg_alive", C, "", &[], "alive messages accepted"),
    described("memberlist_msg_suspect", C, "", &[], "suspicions begun"),
    described("memberlist_msg_dead", C, "", &[], "members found dead or gone"),
    described("memberlist_degraded_probe", C, "", &[], "probes lengthened for doubtful local health"),
    described("memberlist_degraded_timeout", C, "", &[], "suspicions run out with too few confirmations"),
    described("memberlist_probeNode", H, "seconds", &[], "duration of a probe round"),
    described("memberlist_gossip", H, "seconds", &[], "duration of a gossip tick"),
    described("memberlist_pushPullNode", H, "seconds", &[], "duration of an exchange of states"),
    described("memberlist_tcp_accept", C, "", &[], "streams accepted"),
    described("memberlist_tcp_connect", C, "", &[], "streams dialled for an exchange of states"),
    described("memberlist_tcp_sent", C, "bytes", &[], "bytes sent on streams"),
    described("memberlist_udp_sent", C, "bytes", &[], "bytes of datagrams sent"),
    described("memberlist_udp_received", C, "bytes", &[], "bytes of datagrams received"),
    described("memberlist_size_local", G, "bytes", &[], "size of the own full state"),
    described("memberlist_size_remote", H, "bytes", &[], "size of peers' full states"),
    described("memberlist_node_instances", G, "", &["node_state"], "members by state"),
    described("memberlist_queue_broadcasts", G, "", &[], "broadcasts that wait to be gossiped"),
    described("memberlist_health_score", G, "", &[], "local health, 0 is good"),
    described("memberlist_tcp_received", C, "bytes", &[], "bytes received on streams"),
    described("memberlist_streams_dialled", C, "", &[], "streams dialled for any purpose"),
    described("memberlist_links_up", C, "", &[], "connections of links that have come up"),
    described("memberlist_links_open", G, "", &[], "connections of links that peers have opened"),
    described("memberlist_links_down", C, "", &[], "connections of links that have ended"),
    described("memberlist_links", G, "", &[], "peers with a link"),
    described("memberlist_links_queued_bytes", G, "bytes", &[], "bytes of users that wait for peers"),
    described("memberlist_lane_queued", C, "", &["lane"], "messages taken to be sent over links"),
    described("memberlist_lane_queued_bytes", C, "bytes", &["lane"], "their bytes"),
    described("memberlist_lane_delivered", C, "", &["lane"], "messages over links that peers have taken"),
    described("memberlist_lane_undelivered", C, "", &["lane"], "messages over links that may not have got through"),
    described("memberlist_lane_received", C, "", &["lane"], "messages that have come over links"),
    described("memberlist_lane_received_bytes", C, "bytes", &["lane"], "their bytes"),
    described("memberlist_lane_refused", C, "", &["lane"], "messages over links that no handler has taken"),
    described("memberlist_streams_open", G, "", &[], "streams open"),
    described("memberlist_packets_sent", C, "", &[], "datagrams sent"),
    described("memberlist_packets_received", C, "", &[], "datagrams received"),
    described("memberlist_orders", C, "", &[], "orders about keys, labels and seals that other nodes gave"),
    described("memberlist_handed_over", C, "", &[], "newcomers under an older key or label that were told of the present one"),
    described("memberlist_packets_unsealed", C, "", &[], "datagrams taken in though a key is there and they are not sealed"),
    described("memberlist_streams_unsealed", C, "", &[], "streams served though a key is there and they are not sealed"),
    described("memberlist_messages_sent", C, "", &["kind"], "messages sent at the head of datagrams"),
    described("memberlist_messages_received", C, "", &["kind"], "messages received in datagrams"),
    described("memberlist_suspicions", C, "", &["accuser", "evidence"], "suspicions by evidence"),
    described("memberlist_accusations", C, "", &["accuser"], "suspicions by the accuser's name"),
    described("memberlist_refutations", C, "", &["by"], "suspicions refuted"),
    described("memberlist_udp_lost", C, "", &[], "members that answered over a stream only"),
    described("memberlist_probe_rtt_seconds", H, "seconds", &[], "time from a direct ping to its answer"),
    described("memberlist_detection_seconds", H, "seconds", &[], "time from the failed probe to the verdict"),
    described("memberlist_suspicion_seconds", H, "seconds", &["outcome"], "duration of a suspicion"),
    described("memberlist_spread_seconds", H, "seconds", &["kind"], "time from queueing to the last transmission"),
    described("memberlist_dropped", C, "", &["queue", "reason"], "what was dropped"),
    described("memberlist_inbox_offered", C, "", &["actor"], "messages put into an inbox"),
    described("memberlist_inbox_taken", C, "", &["actor"], "messages taken from an inbox"),
    described("memberlist_inbox_dropped", C, "", &["actor"], "news that made room for newer"),
    described("memberlist_inbox_coalesced", C, "", &["actor"], "accusations that gave way to a higher one"),
    described("memberlist_inbox_refused", C, "", &["actor"], "commands refused for want of room"),
    described("memberlist_inbox_waiting", G, "", &["actor"], "messages that wait in an inbox"),
    described("memberlist_restarts", C, "", &["actor"], "restarts after panics"),
    described("memberlist_discoveries", C, "", &[], "times that a source of seeds was asked"),
    described("memberlist_discoveries_failed", C, "", &[], "times that a source of seeds gave no answer"),
    described("memberlist_heal_attempts", C, "", &[], "attempts to reach somebody who is missing"),
    described("memberlist_heals", C, "", &[], "attempts that ended with an exchange of states"),
    described("memberlist_probations", C, "", &[], "members that were put on probation, because they flap"),
    described("memberlist_rejoin_saves", C, "", &[], "times that the rejoin file was written"),
    described("memberlist_rejoin_failures", C, "", &[], "times that the rejoin file was of no use"),
    described("memberlist_user_messages_sent", C, "", &[], "users' messages over streams that were taken"),
    described("memberlist_user_messages_waiting", G, "", &[], "users' messages to single nodes that wait"),
    described("memberlist_stalls", C, "", &[], "handlers of the node that hung"),
    described("memberlist_log_lines_left_out", C, "", &[], "lines of the log that were only counted"),
];

/// The value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(f64),
    /// Of a histogram.
    Histogram(Histogram),
}

/// One value under its name and labels.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// A name of the [`TABLE`].
    pub name: &'static str,
    /// Keys and values. A value that comes from others is escaped and cut.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// The value.
    pub value: Value,
}

/// Samples in the making.
struct Samples(Vec<Sample>);

impl Samples {
    fn put(&mut self, name: &'static str, labels: &[(&'static str, &'static str)], value: Value) {
        let labels = labels.iter().map(|(key, value)| (*key, Cow::Borrowed(*value))).collect();
        self.0.push(Sample { name, labels, value });
    }

    fn counter(&mut self, name: &'static str, value: u64) {
        self.put(name, &[], Value::Counter(value));
    }

    fn gauge(&mut self, name: &'static str, value: u64) {
        self.put(name, &[], Value::Gauge(value as f64));
    }

    fn histogram(&mut self, name: &'static str, value: &Histogram) {
        self.put(name, &[], Value::Histogram(value.clone()));
    }
}

impl Metrics {
    /// Each value under its name of the [`TABLE`], in that order.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut all = Samples(Vec::with_capacity(256));
        all.counter("memberlist_msg_alive", self.alive_messages);
        all.counter("memberlist_msg_suspect", self.suspect_messages);
        all.counter("memberlist_msg_dead", self.dead_messages);
        all.counter("memberlist_degraded_probe", self.degraded_probes);
        all.counter("memberlist_degraded_timeout", self.degraded_timeouts);
        all.histogram("memberlist_probeNode", &self.probe_time);
        all.histogram("memberlist_gossip", &self.gossip_time);
        all.histogram("memberlist_pushPullNode", &self.push_pull_time);
        all.counter("memberlist_tcp_accept", self.streams_accepted);
        all.counter("memberlist_tcp_connect", self.states_dialled);
        all.counter("memberlist_tcp_sent", self.stream_bytes_sent);
        all.counter("memberlist_udp_sent", self.bytes_sent);
        all.counter("memberlist_udp_received", self.bytes_received);
        all.gauge("memberlist_size_local", self.state_size);
        all.histogram("memberlist_size_remote", &self.remote_state_size);
        for (state, n) in &self.members {
            all.put("memberlist_node_instances", &[("node_state", state)], Value::Gauge(*n as f64));
        }
        all.gauge("memberlist_queue_broadcasts", self.broadcasts_queued);
        all.gauge("memberlist_health_score", self.health_score);

        all.counter("memberlist_tcp_received", self.stream_bytes_received);
        all.counter("memberlist_streams_dialled", self.streams_dialled);
        all.counter("memberlist_links_up", self.links_up);
        all.gauge("memberlist_links_open", self.links_open);
        all.counter("memberlist_links_down", self.links_down);
        all.gauge("memberlist_links", self.links);
        all.gauge("memberlist_links_queued_bytes", self.links_queued_bytes);
        for (lane, of) in &self.lanes {
            let mut put = |name, value| all.put(name, &[("lane", *lane)], Value::Counter(value));
            put("memberlist_lane_queued", of.queued);
            put("memberlist_lane_queued_bytes", of.queued_bytes);
            put("memberlist_lane_delivered", of.delivered);
            put("memberlist_lane_undelivered", of.undelivered);
            put("memberlist_lane_received", of.received);
            put("memberlist_lane_received_bytes", of.received_bytes);
            put("memberlist_lane_refused", of.refused);
        }
        all.gauge("memberlist_streams_open", self.streams_open);
        all.counter("memberlist_packets_sent", self.packets_sent);
        all.counter("memberlist_packets_received", self.packets_received);
        all.counter("memberlist_orders", self.orders);
        all.counter("memberlist_handed_over", self.handed_over);
        all.counter("memberlist_packets_unsealed", self.packets_unsealed);
        all.counter("memberlist_streams_unsealed", self.streams_unsealed);
        for (kind, n) in &self.messages_sent {
            all.put("memberlist_messages_sent", &[("kind", kind)], Value::Counter(*n));
        }
        for (kind, n) in &self.messages_received {
            all.put("memberlist_messages_received", &[("kind", kind)], Value::Counter(*n));
        }
        self.accusations(&mut all);
        all.put("memberlist_refutations", &[("by", "self")], Value::Counter(self.refutations));
        all.put("memberlist_refutations", &[("by", "others")], Value::Counter(self.refuted_by_others));
        all.counter("memberlist_udp_lost", self.udp_lost);
        all.histogram("memberlist_probe_rtt_seconds", &self.probe_rtt);
        all.histogram("memberlist_detection_seconds", &self.detection_time);
        for (outcome, times) in &self.suspicion_time {
            let value = Value::Histogram(times.clone());
            all.put("memberlist_suspicion_seconds", &[("outcome", outcome)], value);
        }
        for (kind, times) in &self.spread_time {
            all.put("memberlist_spread_seconds", &[("kind", kind)], Value::Histogram(times.clone()));
        }
        for (reason, queue) in Reason::queues() {
            let n = self.dropped.get(reason).copied().unwrap_or(0);
            all.put("memberlist_dropped", &[("queue", queue), ("reason", reason)], Value::Counter(n));
        }
        for (actor, inbox) in &self.inboxes {
            let labels = [("actor", *actor)];
            all.put("memberlist_inbox_offered", &labels, Value::Counter(inbox.offered));
            all.put("memberlist_inbox_taken", &labels, Value::Counter(inbox.taken));
            all.put("memberlist_inbox_dropped", &labels, Value::Counter(inbox.dropped));
            all.put("memberlist_inbox_coalesced", &labels, Value::Counter(inbox.coalesced));
            all.put("memberlist_inbox_refused", &labels, Value::Counter(inbox.refused));
            all.put("memberlist_inbox_waiting", &labels, Value::Gauge(inbox.waiting as f64));
        }
        for (actor, n) in &self.restarts {
            all.put("memberlist_restarts", &[("actor", actor)], Value::Counter(*n));
        }
        all.counter("memberlist_discoveries", self.discoveries);
        all.counter("memberlist_discoveries_failed", self.discoveries_failed);
        all.counter("memberlist_heal_attempts", self.heal_attempts);
        all.counter("memberlist_heals", self.heals);
        all.counter("memberlist_probations", self.probations);
        all.counter("memberlist_rejoin_saves", self.rejoin_saves);
        all.counter("memberlist_rejoin_failures", self.rejoin_failures);
        all.counter("memberlist_user_messages_sent", self.user_messages_sent);
        all.gauge("memberlist_user_messages_waiting", self.user_messages_waiting);
        all.counter("memberlist_stalls", self.stalls);
        all.counter("memberlist_log_lines_left_out", self.log_lines_left_out);
        all.0
    }

    fn accusations(&self, all: &mut Samples) {
        for (accuser, by_evidence) in [("self", &self.suspicions_own), ("others", &self.suspicions_heard)] {
            for (evidence, n) in by_evidence {
                let labels = [("accuser", accuser), ("evidence", *evidence)];
                all.put("memberlist_suspicions", &labels, Value::Counter(*n));
            }
        }
        for (accuser, n) in &self.accusers {
            all.0.push(Sample {
                name: "memberlist_accusations",
                labels: vec![("accuser", logs::name(accuser).to_string().into())],
                value: Value::Counter(*n),
            });
        }
        let others = Value::Counter(self.other_accusers);
        all.put("memberlist_accusations", &[("accuser", OTHER)], others);
    }
}

//! Counters of a node: plain atomics, read as a value.

use std::{
    collections::BTreeMap,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use memberlist_protocol::wire::message::Message;

use crate::messages::{DELEGATES, DETECTOR, LINK, NODE, QUEUE, STATE, TRANSPORT};

mod accusers;
#[cfg(feature = "metrics")]
mod facade;
mod histogram;
mod lanes;
mod reasons;
mod samples;

use accusers::Accusers;
pub use histogram::Histogram;
use histogram::{Buckets, Long, Short, Size};
pub use lanes::LaneMetrics;
pub(crate) use reasons::Lost;
use reasons::{REASONS, Reason};
pub use samples::{Described, Kind, Sample, TABLE, Value};

/// The actors whose restarts are counted.
const ACTORS: [&str; 7] = [STATE, QUEUE, DETECTOR, TRANSPORT, DELEGATES, LINK, NODE];

/// Counters of the same sort.
#[derive(Debug)]
struct Many<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Many<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

impl<const N: usize> std::ops::Deref for Many<N> {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// The counters of one node.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) packets_sent: AtomicU64,
    pub(crate) packets_received: AtomicU64,
    pub(crate) packets_unsealed: AtomicU64,
    pub(crate) orders: AtomicU64,
    pub(crate) handed_over: AtomicU64,
    pub(crate) streams_unsealed: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) streams_dialled: AtomicU64,
    pub(crate) links_up: AtomicU64,
    pub(crate) links_open: AtomicU64,
    pub(crate) links_down: AtomicU64,
    pub(crate) streams_accepted: AtomicU64,
    pub(crate) stream_bytes_sent: AtomicU64,
    pub(crate) stream_bytes_received: AtomicU64,
    pub(crate) health: AtomicU64,
    pub(crate) refutations: AtomicU64,
    pub(crate) degraded_probes: AtomicU64,
    pub(crate) degraded_timeouts: AtomicU64,
    pub(crate) udp_lost: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) user_messages_sent: AtomicU64,
    pub(crate) discoveries: AtomicU64,
    pub(crate) discoveries_failed: AtomicU64,
    pub(crate) heal_attempts: AtomicU64,
    pub(crate) heals: AtomicU64,
    pub(crate) probations: AtomicU64,
    pub(crate) rejoin_saves: AtomicU64,
    pub(crate) rejoin_failures: AtomicU64,
    /// News that a member runs, which was accepted; suspicions; members that are dead or have left.
    pub(crate) msg_alive: AtomicU64,
    pub(crate) msg_suspect: AtomicU64,
    pub(crate) msg_dead: AtomicU64,
    /// Streams dialled for an exchange of states.
    pub(crate) states_dialled: AtomicU64,
    pub(crate) streams_open: AtomicU64,
    /// Bytes of the own state when it was last given.
    pub(crate) size_local: AtomicU64,
    pub(crate) size_remote: Buckets<Size>,
    pub(crate) refuted_by_others: AtomicU64,
    pub(crate) accusers: Accusers,
    pub(crate) probe: Buckets<Short>,
    pub(crate) probe_rtt: Buckets<Short>,
    pub(crate) gossip: Buckets<Short>,
    pub(crate) push_pull: Buckets<Short>,
    pub(crate) detection: Buckets<Long>,
    pub(crate) suspicion_refuted: Buckets<Long>,
    pub(crate) suspicion_dead: Buckets<Long>,
    pub(crate) suspicion_left: Buckets<Long>,
    pub(crate) spread_news: Buckets<Long>,
    pub(crate) spread_user: Buckets<Long>,
    pub(crate) lanes: [lanes::Lane; 3],
    sent: Many<{ Message::KINDS }>,
    received: Many<{ Message::KINDS }>,
    dropped: Many<REASONS>,
    restarts: Many<{ ACTORS.len() }>,
}

/// Adds one.
pub(crate) fn up(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    /// Counts a drop.
    pub(crate) fn drop(&self, reason: impl Into<Reason>) {
        up(&self.dropped[reason.into().index()]);
    }

    /// Messages that have come and gone over links, but for large ones.
    pub(crate) fn small(&self) -> u64 {
        self.lanes[..2].iter().map(lanes::Lane::both_ways).sum()
    }

    /// Counts several drops of one kind.
    pub(crate) fn drop_many(&self, reason: impl Into<Reason>, n: usize) {
        self.dropped[reason.into().index()].fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn sent(&self, message: &Message) {
        up(&self.sent[message.kind()]);
    }

    pub(crate) fn received(&self, message: &Message) {
        up(&self.received[message.kind()]);
    }

    pub(crate) fn restarted(&self, actor: &str) {
        if let Some(at) = ACTORS.iter().position(|name| *name == actor) {
            up(&self.restarts[at]);
        }
    }

    /// The counters as they stand.
    pub(crate) fn read(&self) -> Metrics {
        let by_kind = |counters: &[AtomicU64]| Message::NAMES.into_iter().zip(values(counters)).collect();
        Metrics {
            packets_sent: self.packets_sent.load(Relaxed),
            packets_received: self.packets_received.load(Relaxed),
            orders: self.orders.load(Relaxed),
            handed_over: self.handed_over.load(Relaxed),
            packets_unsealed: self.packets_unsealed.load(Relaxed),
            streams_unsealed: self.streams_unsealed.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            streams_dialled: self.streams_dialled.load(Relaxed),
            links_up: self.links_up.load(Relaxed),
            links_open: self.links_open.load(Relaxed),
            links_down: self.links_down.load(Relaxed),
            lanes: lanes::NAMES.into_iter().zip(self.lanes.each_ref().map(lanes::Lane::read)).collect(),
            links: 0,
            links_queued_bytes: 0,
            streams_accepted: self.streams_accepted.load(Relaxed),
            stream_bytes_sent: self.stream_bytes_sent.load(Relaxed),
            stream_bytes_received: self.stream_bytes_received.load(Relaxed),
            messages_sent: by_kind(&self.sent),
            messages_received: by_kind(&self.received),
            dropped: Reason::names().zip(values(&self.dropped)).collect(),
            restarts: ACTORS.into_iter().zip(values(&self.restarts)).collect(),
            health_score: self.health.load(Relaxed),
            refutations: self.refutations.load(Relaxed),
            degraded_probes: self.degraded_probes.load(Relaxed),
            degraded_timeouts: self.degraded_timeouts.load(Relaxed),
            udp_lost: self.udp_lost.load(Relaxed),
            stalls: self.stalls.load(Relaxed),
            user_messages_sent: self.user_messages_sent.load(Relaxed),
            user_messages_waiting: 0,
            discoveries: self.discoveries.load(Relaxed),
            discoveries_failed: self.discoveries_failed.load(Relaxed),
            heal_attempts: self.heal_attempts.load(Relaxed),
            heals: self.heals.load(Relaxed),
            probations: self.probations.load(Relaxed),
            rejoin_saves: self.rejoin_saves.load(Relaxed),
            rejoin_failures: self.rejoin_failures.load(Relaxed),
            alive_messages: self.msg_alive.load(Relaxed),
            suspect_messages: self.msg_suspect.load(Relaxed),
            dead_messages: self.msg_dead.load(Relaxed),
            states_dialled: self.states_dialled.load(Relaxed),
            streams_open: self.streams_open.load(Relaxed),
            state_size: self.size_local.load(Relaxed),
            remote_state_size: self.size_remote.read(),
            refuted_by_others: self.refuted_by_others.load(Relaxed),
            suspicions_own: self.accusers.own(),
            suspicions_heard: self.accusers.heard(),
            accusers: self.accusers.names(),
            other_accusers: self.accusers.others(),
            probe_time: self.probe.read(),
            probe_rtt: self.probe_rtt.read(),
            gossip_time: self.gossip.read(),
            push_pull_time: self.push_pull.read(),
            detection_time: self.detection.read(),
            suspicion_time: [
                ("refuted", self.suspicion_refuted.read()),
                ("dead", self.suspicion_dead.read()),
                ("left", self.suspicion_left.read()),
            ]
            .into(),
            spread_time: [("news", self.spread_news.read()), ("user", self.spread_user.read())].into(),
            members: BTreeMap::new(),
            log_lines_left_out: 0,
            inboxes: BTreeMap::new(),
            broadcasts_queued: 0,
            news_queued: 0,
        }
    }
}

fn values(counters: &[AtomicU64]) -> Vec<u64> {
    counters.iter().map(|counter| counter.load(Relaxed)).collect()
}

/// What went through the inbox of one actor. Everything offered was taken, dropped or refused, or waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxMetrics {
    /// Messages that came.
    pub offered: u64,
    /// Messages that the actor took.
    pub taken: u64,
    /// News that had to make room for newer.
    pub dropped: u64,
    /// Accusations that gave way to one of a higher incarnation.
    pub coalesced: u64,
    /// Commands refused for want of room; they are not among those offered.
    pub refused: u64,
    /// Messages that wait.
    pub waiting: u64,
}

/// The counters of a node, all since its start, and how things stand. Times are in seconds.
///
/// [`Metrics::samples`] is the same under the names that dashboards know, which are HashiCorp memberlist's
/// where there is a counterpart. What each counts, and when, is in
/// [docs/metrics.md](https://github.com/actix-memberlist/actix-memberlist/blob/main/docs/metrics.md).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Datagrams sent.
    pub packets_sent: u64,
    /// Datagrams received, bad ones too.
    pub packets_received: u64,
    /// Orders about keys, labels and seals that other nodes gave.
    pub orders: u64,
    /// Newcomers under an older key or label that were told of the present one.
    pub handed_over: u64,
    /// Packets that a node with a key took in though they were not sealed: when there are none any more, nobody
    /// sends such, and [`Config::gossip_verify_incoming`](crate::Config::gossip_verify_incoming) can go on.
    pub packets_unsealed: u64,
    /// The same of streams.
    pub streams_unsealed: u64,
    /// Bytes of datagrams sent.
    pub bytes_sent: u64,
    /// Bytes of datagrams received.
    pub bytes_received: u64,
    /// Streams opened to others.
    pub streams_dialled: u64,
    /// Connections of links that have come up.
    pub links_up: u64,
    /// Connections of links that peers have opened to this node, and that are open now.
    pub links_open: u64,
    /// Those of them that have ended.
    pub links_down: u64,
    /// Peers that this node has a link to.
    pub links: u64,
    /// Bytes of users that wait for all peers, but for those of broadcasts.
    pub links_queued_bytes: u64,
    /// Messages over links, by lane: `urgent`, `ordered`, `bulk`.
    pub lanes: BTreeMap<&'static str, LaneMetrics>,
    /// Streams opened by others.
    pub streams_accepted: u64,
    /// Bytes sent on streams.
    pub stream_bytes_sent: u64,
    /// Bytes received on streams.
    pub stream_bytes_received: u64,
    /// Messages in datagrams sent, by kind; what travels along as gossip is not among them.
    pub messages_sent: BTreeMap<&'static str, u64>,
    /// Messages in datagrams received, by kind.
    pub messages_received: BTreeMap<&'static str, u64>,
    /// What was dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Restarts, by actor.
    pub restarts: BTreeMap<&'static str, u64>,
    /// Local health: 0 is good.
    pub health_score: u64,
    /// Accusations against this node that it has refuted.
    pub refutations: u64,
    /// Probes that took longer because local health was doubtful.
    pub degraded_probes: u64,
    /// Suspicions that ran out with fewer confirmations than hoped for.
    pub degraded_timeouts: u64,
    /// Members that answered over a stream when no datagram came through.
    pub udp_lost: u64,
    /// Handlers of the node's own that hung.
    pub stalls: u64,
    /// Messages of users that went over a stream, and were taken there.
    pub user_messages_sent: u64,
    /// Messages of users to single nodes that wait to be sent.
    pub user_messages_waiting: u64,
    /// Times that a source of seeds was asked.
    pub discoveries: u64,
    /// Times that a source of seeds failed, panicked or did not answer in time.
    pub discoveries_failed: u64,
    /// Attempts to reach a dead member, or a seed where nobody is present.
    pub heal_attempts: u64,
    /// Those of them that ended with an exchange of states.
    pub heals: u64,
    /// Members that were put on probation, because they flap.
    pub probations: u64,
    /// Times that the rejoin file was written.
    pub rejoin_saves: u64,
    /// Times that the rejoin file could not be read, used or written.
    pub rejoin_failures: u64,
    /// Messages that members run, which were accepted: members that are new, back, or say something new, and
    /// own refutations of alive messages.
    pub alive_messages: u64,
    /// Suspicions that began.
    pub suspect_messages: u64,
    /// Members that were found dead, or left, this node included.
    pub dead_messages: u64,
    /// Streams opened to others for an exchange of states.
    pub states_dialled: u64,
    /// Streams that are open, either way.
    pub streams_open: u64,
    /// Bytes of this node's full state when it last gave it to a peer.
    pub state_size: u64,
    /// Bytes of the full states that peers gave.
    pub remote_state_size: Histogram,
    /// Suspicions that other members refuted.
    pub refuted_by_others: u64,
    /// Suspicions that this node raised itself, by evidence.
    pub suspicions_own: BTreeMap<&'static str, u64>,
    /// Suspicions that others raised, by evidence.
    pub suspicions_heard: BTreeMap<&'static str, u64>,
    /// Suspicions by the name of the first accuser, this node included; at most 32 names.
    pub accusers: BTreeMap<Arc<str>, u64>,
    /// Suspicions by accusers that have no place among those, or are no members.
    pub other_accusers: u64,
    /// How long a probe round took, until an answer or until none was waited for any more.
    pub probe_time: Histogram,
    /// Time from a direct ping to its answer.
    pub probe_rtt: Histogram,
    /// How long it took to pack and hand over one round of gossip.
    pub gossip_time: Histogram,
    /// How long an exchange of states took that this node began, until the peer's state was taken in.
    pub push_pull_time: Histogram,
    /// Time from the start of the own probe that failed until that member was held for dead.
    pub detection_time: Histogram,
    /// Time from the start of a suspicion here to its end, by how it ended: `refuted`, `dead`, `left`.
    pub suspicion_time: BTreeMap<&'static str, Histogram>,
    /// Time from queueing until this node had sent it as often as it should: `news` of members, and `user`
    /// broadcasts.
    pub spread_time: BTreeMap<&'static str, Histogram>,
    /// Members by state: `alive`, `suspect`, `dead`, `left`.
    pub members: BTreeMap<&'static str, u64>,
    /// Lines of the log that were only counted, because their kind had been logged shortly before.
    pub log_lines_left_out: u64,
    /// What went through the inbox of each actor.
    pub inboxes: BTreeMap<&'static str, InboxMetrics>,
    /// News and users' broadcasts that wait to be gossiped.
    pub broadcasts_queued: u64,
    /// The news among them.
    pub news_queued: u64,
}

#[cfg(test)]
mod tests {
    use memberlist_protocol::{members::Ignored, probe::Unheard, wire::WireError};

    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let counters = Counters::default();
        for error in WireError::ALL {
            counters.drop(error);
        }
        for ignored in Ignored::ALL {
            counters.drop(ignored);
        }
        for unheard in Unheard::ALL {
            counters.drop(unheard);
        }
        for (lost, _) in Lost::ALL {
            counters.drop(lost);
        }
        let dropped = counters.read().dropped;
        assert_eq!(dropped.len(), REASONS);
        assert!(dropped.values().all(|n| *n == 1), "{dropped:?}");
    }
}

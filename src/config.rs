//! The settings of a node, and three presets to start from.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    keyring::Sealing,
    member::{MAX_INCARNATION_STEP, VersionRange, Versions, check_name},
    restart::RestartPolicy,
};

mod cidr;
mod file;
#[cfg(test)]
mod table;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The settings of a node. Start from [`Config::lan`], [`Config::wan`] or [`Config::local`] and change what
/// you must. All nodes of a cluster should have the same ones.
///
/// An interval of zero switches its loop off.
///
/// # As data
///
/// Settings can be read from a file, in any format that serde knows. `preset` says where it starts from, `lan`
/// if it is left out; then follows what differs. Spans of time are texts. A field that does not exist is an
/// error that names it; a value out of its range is found by [`Config::validate`], which a node calls when it
/// starts.
///
/// ```
/// # use memberlist_protocol::config::Config;
/// let file = r#"
///     preset = "wan"
///     probe_interval = "4s"
///     cidrs_allowed = ["10.0.0.0/8", "fd00::/8"]
///     disable_tcp_pings_for = ["behind-a-firewall"]
///     delegate_version = { min = 1, max = 3, current = 2 }
///
///     [restarts]
///     immediate = 5
/// "#;
/// let config: Config = toml::from_str(file)?;
/// config.validate()?;
/// assert_eq!(config.probe_interval.as_secs(), 4);
/// assert_eq!(config.probe_timeout, Config::wan().probe_timeout);
///
/// let error = toml::from_str::<Config>("probe_intervall = \"4s\"").unwrap_err();
/// assert!(error.message().starts_with("unknown field `probe_intervall`"));
/// let slow: Config = toml::from_str("probe_timeout = \"2s\"")?;
/// let error = slow.validate().unwrap_err();
/// assert_eq!(error.to_string(), "probe_timeout is 2s; allowed: at most probe_interval, 1s");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
#[doc = include_str!("../docs/config.md")]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Time between two probes that this node starts; each probes one member. Shorter finds a crash sooner,
    /// and costs packets. 10 ms to 1 min; 0 = this node probes nobody. LAN 1 s, WAN 5 s, local 1 s.
    #[serde(with = "crate::span")]
    pub probe_interval: Duration,
    /// How long a direct ping may take before others are asked to try. Set it to the 99th percentile of the
    /// round-trip time. At most `probe_interval`. LAN 500 ms, WAN 3 s, local 200 ms.
    #[serde(with = "crate::span")]
    pub probe_timeout: Duration,
    /// Members that are asked to ping one that did not answer. 0 to 16. LAN 3, WAN 3, local 1.
    pub indirect_checks: u32,
    /// Leaves out the ping over a stream that is tried beside the indirect ones. Off.
    pub disable_tcp_pings: bool,
    /// The same for members of these names alone. At most 4,096. None.
    pub disable_tcp_pings_for: BTreeSet<String>,
    /// Local health goes from 0 to one less than this. 1 to 64; 1 = probe at one pace in any health. 8.
    pub awareness_max_multiplier: u32,

    /// Shortest time of a suspicion, in probe intervals, before it grows with the cluster's logarithm; two
    /// less is how many confirmations are hoped for. 1 to 64. LAN 4, WAN 6, local 3.
    pub suspicion_mult: u32,
    /// Longest time of a suspicion, as a multiple of the shortest. 1 to 64. 6.
    pub suspicion_max_timeout_mult: u32,

    /// Whether a helper that has no answer says so in time for the asker to hear of it; if not, it does so when its own
    /// ping has timed out, which is too late wherever `probe_interval` is twice `probe_timeout`. On.
    pub early_nacks: bool,
    /// Whether each node judges for itself: another one's verdict that a member is dead counts as the accusations on
    /// which it stands, and the member has the time of a suspicion to refute it. If not, it is believed at once.
    pub own_verdicts: bool,
    /// Whether more confirmations than a suspicion needs, each by a member in good health whose helpers have all said
    /// that they had no answer either, end it sooner: down to half of its shortest time.
    pub early_verdicts: bool,

    /// Whether a host that refuses a connection to a member's address is evidence that its process is gone, which others
    /// look for as well: a suspicion that as many have seen it for as would bring it down to its shortest time ends at
    /// once. If not, a refusal is worth as much as silence.
    pub count_refusals: bool,

    /// Whether it matters who accuses: what dead members say of others counts nothing, and an accusation stays at home
    /// if none of its helpers, two or more, has said so much as that it has no answer (which takes `early_nacks`). If
    /// not, one member that hears nobody makes all others suspect each other.
    pub weigh_accusers: bool,

    /// How long a member that flaps has to go without a well-founded accusation, by anybody, before it is held for alive
    /// again: one that dies once more within ten times this after a death, or was found to be unsteady
    /// (`flap_limit`). Where many flap at once nobody has to. Longer than what is to be ridden out, such as a path that
    /// is gone every other 20 s. 1 s to 1 h; 0 = nobody has to. LAN 30 s, WAN 2 min, local 10 s.
    #[serde(with = "crate::span")]
    pub flap_probation: Duration,
    /// Well-founded accusations (by a node in good health, all of whose helpers had no answer either) that a member may
    /// refute within 60 probe intervals; the next one is its death. It counts against those alone who have many more
    /// than the others. 2 to 1,000; 0 = as many as it likes. 8.
    pub flap_limit: u32,

    /// Time between two rounds of gossip, as long as there is something to say. 10 ms to 1 min; 0 = no
    /// rounds: news travels on pings and acks alone. LAN 200 ms, WAN 500 ms, local 100 ms.
    #[serde(with = "crate::span")]
    pub gossip_interval: Duration,
    /// Whether news that has just come leaves before the next round, in at most eight rounds more per `gossip_interval`;
    /// each piece of it is sent as often as without that.
    pub gossip_at_once: bool,
    /// Members that a round of gossip goes to. 0 to 64; 0 = no rounds. LAN 3, WAN 4, local 3.
    pub gossip_nodes: usize,
    /// How long a dead member still gets gossip, so that it learns of its death and can refute.
    /// LAN 30 s, WAN 60 s, local 15 s.
    #[serde(with = "crate::span")]
    pub gossip_to_the_dead_time: Duration,
    /// Each piece of news is sent `retransmit_mult * ceil(log10(members + 1))` times by each node, but at least
    /// six times, or as often as there are members if these are fewer.
    /// 1 to 64. LAN 4, WAN 4, local 2.
    pub retransmit_mult: u32,
    /// Bytes that a packet is filled up to. What a path carries without fragments: 1,200 to 1,400 across
    /// networks, up to 8,900 on one with jumbo frames. 1,024 to 65,000. 1,400.
    pub udp_buffer_size: usize,

    /// Whether what this node sends is sealed, if it has a key. On; off is the first of three steps that take a
    /// running cluster from plain to sealed, see [`Sealing`].
    pub gossip_verify_outgoing: bool,
    /// Whether nothing is taken in that is not sealed, if this node has a key. On; with this alone it would not
    /// take in what its own kind sends.
    pub gossip_verify_incoming: bool,
    /// Whether packets that are not sealed carry a checksum. Those of others are checked in any case. On.
    pub packet_checksum: bool,
    /// Whether packets are compressed where it makes them shorter. Whoever can make a node send what it chooses
    /// learns from lengths what else is in a packet. Off.
    pub compress_packets: bool,
    /// Whether what goes over streams is compressed where it makes it shorter: states, and messages of the bulk lane and
    /// uploads. Ordered messages are not. On.
    pub compress_streams: bool,

    /// Time between two exchanges of the full state with a random member; clusters above 32 members stretch
    /// it. 100 ms to 1 h; 0 = none but at joining. LAN 30 s, WAN 60 s, local 15 s.
    #[serde(with = "crate::span")]
    pub push_pull_interval: Duration,
    /// Time limit of a dial, and of each phase of a stream. 10 ms to 5 min. LAN 10 s, WAN 30 s, local 1 s.
    #[serde(with = "crate::span")]
    pub tcp_timeout: Duration,
    /// Time limit of a join as a whole. 10 ms to 10 min. LAN 10 s, WAN 30 s, local 2 s.
    #[serde(with = "crate::span")]
    pub join_timeout: Duration,
    /// Time between two looks at each source of seeds once this node has company, give or take a quarter; as
    /// long as it is alone it looks after 1 s, and then less and less often, down to every 10 s. 100 ms to
    /// 1 h; 0 = only while it is alone. LAN 30 s, WAN 60 s, local 15 s.
    #[serde(with = "crate::span")]
    pub discover_interval: Duration,
    /// Time between two attempts to reach somebody who is missing, give or take a half: a dead member, never one
    /// that left, or a seed where nobody is present. This is how the halves of a partition find each other
    /// again, however long it lasted. With nobody missing nothing is sent. 100 ms to 1 h; 0 = no attempts. 5 s.
    #[serde(with = "crate::span")]
    pub heal_interval: Duration,
    /// Time between two writes of the rejoin file, at least; it is written when something in it has changed. 100 ms
    /// to 1 h; 0 = only when this node ends. 5 s.
    #[serde(with = "crate::span")]
    pub rejoin_interval: Duration,

    /// Networks that this node has to do with. Packets and streams from elsewhere are dropped unread, members
    /// with an address elsewhere are not taken in, seeds elsewhere are not joined. At most 256. None, which
    /// allows all; an empty list allows nobody but this node itself.
    pub cidrs_allowed: Option<Vec<IpNet>>,
    /// What the application speaks on top of the membership protocol. Nodes of which one does not understand
    /// what the other speaks take each other for no members. Anything with `min <= current <= max`. All zero.
    pub delegate_version: VersionRange,

    /// How long a dead member is remembered. 72 h.
    #[serde(with = "crate::span")]
    pub dead_retention: Duration,
    /// How long one that left is remembered. 24 h.
    #[serde(with = "crate::span")]
    pub left_retention: Duration,
    /// Age at which a dead member's name may be taken at another address by the same run; 0 = never. Another
    /// run need not wait. 0.
    #[serde(with = "crate::span")]
    pub dead_node_reclaim_time: Duration,
    /// How long the last incarnation of a forgotten member is kept, so that old news cannot revive it. 24 h.
    #[serde(with = "crate::span")]
    pub tombstone_retention: Duration,
    /// Forgotten members whose last incarnation is kept. 4,096.
    pub max_tombstones: usize,
    /// Members in the table, gone ones included; beyond it the longest gone makes room, else the newcomer is
    /// refused. One exchange of states may fill it, since a newcomer has to learn of all members at once; those
    /// that somebody has made up are probed in turn like all others, and delay the probes of these. Twice the
    /// members that are expected is a good bound. 1 to 1,000,000. 100,000.
    pub max_members: usize,

    /// News of each actor that waits to be looked at; the oldest is dropped beyond it. 64 to 1,000,000. 4,096.
    pub handoff_queue_depth: usize,
    /// Acks, commands and news about this node itself that wait. A command beyond it is answered "busy".
    /// 64 to 1,000,000. 1,024.
    pub control_queue_depth: usize,
    /// News that waits to be gossiped, in entries. 16 to 1,000,000. 16,384.
    pub max_broadcasts: usize,
    /// News that waits to be gossiped, in bytes. 64 KiB to 1 GiB. 4 MiB.
    pub max_broadcast_bytes: usize,
    /// Broadcasts of users that wait, in entries. 16 to 1,000,000. 4,096.
    pub max_user_broadcasts: usize,
    /// Broadcasts of users that wait, in bytes. 64 KiB to 1 GiB. 4 MiB.
    pub max_user_broadcast_bytes: usize,
    /// Events that wait for one subscriber; one that lags behind further gets a snapshot instead.
    /// 1 to 1,000,000. 1,024.
    pub subscriber_queue_depth: usize,
    /// Largest broadcast of a user that goes by gossip, in bytes; a larger one goes over a stream to each
    /// member. 0 to 65,000. Half a packet: 700.
    pub gossiped_broadcast_size: usize,
    /// Largest message of a user over a stream, in bytes. 1 KiB to 1 GiB. 20 MiB.
    pub max_message_size: usize,
    /// Messages of users that wait to be sent to one peer. 1 to 1,000,000. 4,096.
    pub peer_queue_depth: usize,
    /// Bytes of users that wait to be sent to one peer; a single message may be larger. 1 KiB to 1 GiB. 32 MiB.
    pub peer_queue_bytes: usize,
    /// Bytes of users that wait to be sent to all peers together; what goes to several counts for each of them, and
    /// broadcasts have a bound of their own. A single message may be larger. 1 KiB to 1 GiB. 64 MiB.
    pub total_queue_bytes: usize,
    /// Largest message of a user that goes by the ordered or the urgent lane of a link, in bytes; a larger one goes by
    /// the bulk lane. 1 KiB to 1 MiB. 64 KiB.
    pub max_ordered_size: usize,
    /// How long a link without a connection keeps what was to go over it. 1 s to 10 min. 30 s.
    #[serde(with = "crate::span")]
    pub link_window: Duration,
    /// Connections of links that are open at once, those that this node has dialled and those that others have, each
    /// by itself. They do not count for `max_streams`. 4 to 65,536. 2,048.
    pub max_links: usize,
    /// How long the application may take to answer a question: whether to let a newcomer in, or what its
    /// state is. No answer is a no, or an empty state. A quarter of `tcp_timeout` is the limit in any case: the
    /// other side of a stream waits. 10 ms to 1 min. 1 s.
    #[serde(with = "crate::span")]
    pub question_timeout: Duration,
    /// Newcomers about whom the application is being asked at once; more are not let in yet, and knock again.
    /// 1 to 1,000,000. 1,024.
    pub admit_queue_depth: usize,
    /// States that the application shares, in bytes, all keys together; half of `max_state_size` is the limit in any
    /// case. What has no room is not sent, and counted. 0 to 1 GiB. 8 MiB.
    pub max_shared_state: usize,
    /// Full state that is accepted from a peer, in bytes. 64 KiB to 1 GiB. 20 MiB.
    pub max_state_size: usize,
    /// Streams open at once; more wait to be accepted, or are not dialled. Those that others have dialled take
    /// at most half of them. 4 to 65,536. 512.
    pub max_streams: usize,
    /// Streams from one address that are served at once; as many again wait for their turn, and further ones are
    /// closed. The host's own, from loopback, are not counted: its processes share that address. With many nodes
    /// behind one address, set it to how many of them may join at the same moment. 1 to 65,536. 32.
    pub max_streams_per_source: usize,
    /// Indirect pings that are carried out for others at once. 0 to 65,536. 1,024.
    pub max_relays: usize,
    /// Indirect pings that are carried out for one member at once; an honest one asks for one in each probe
    /// interval. 1 to 65,536. 16.
    pub max_relays_per_source: usize,
    /// Answers that pings of strangers get in one second, all together: of those who are no members, or send from
    /// elsewhere than their address. A newcomer is one for a moment, so that some are to be answered.
    /// 1 to 1,000,000. 1,000.
    pub max_stranger_answers: usize,
    /// Highest step that an incarnation may take at once. What asks for more is refused: a chain of such steps
    /// would bring a name to the end of the numbers. A member that was out of sight while it refuted more often
    /// than that could not come back, so it is not to be small. 65,536 to 2,147,483,648. 1,073,741,824.
    pub max_incarnation_step: u32,

    /// A handler of the node's own that runs for longer is reported as stalled. 10 ms to 1 min. 1 s.
    #[serde(with = "crate::span")]
    pub stall_after: Duration,
    /// When and how the supervisor restarts an actor that panicked.
    pub restarts: RestartPolicy,
}

impl Config {
    /// For one data centre.
    pub fn lan() -> Self {
        Self {
            probe_interval: secs(1),
            probe_timeout: ms(500),
            indirect_checks: 3,
            disable_tcp_pings: false,
            disable_tcp_pings_for: BTreeSet::new(),
            awareness_max_multiplier: 8,
            suspicion_mult: 4,
            suspicion_max_timeout_mult: 6,
            early_nacks: true,
            own_verdicts: true,
            early_verdicts: true,
            count_refusals: true,
            gossip_at_once: true,
            weigh_accusers: true,
            flap_probation: secs(30),
            flap_limit: 8,
            gossip_interval: ms(200),
            gossip_nodes: 3,
            gossip_to_the_dead_time: secs(30),
            retransmit_mult: 4,
            udp_buffer_size: 1400,
            gossip_verify_outgoing: true,
            gossip_verify_incoming: true,
            packet_checksum: true,
            compress_packets: false,
            compress_streams: true,
            push_pull_interval: secs(30),
            tcp_timeout: secs(10),
            join_timeout: secs(10),
            cidrs_allowed: None,
            delegate_version: VersionRange { min: 0, max: 0, current: 0 },
            discover_interval: secs(30),
            heal_interval: secs(5),
            rejoin_interval: secs(5),
            dead_retention: secs(72 * 3600),
            left_retention: secs(24 * 3600),
            dead_node_reclaim_time: Duration::ZERO,
            tombstone_retention: secs(24 * 3600),
            max_tombstones: 4096,
            max_members: 100_000,
            handoff_queue_depth: 4096,
            control_queue_depth: 1024,
            max_broadcasts: 16_384,
            max_broadcast_bytes: 4 << 20,
            max_user_broadcasts: 4096,
            max_user_broadcast_bytes: 4 << 20,
            subscriber_queue_depth: 1024,
            gossiped_broadcast_size: 700,
            max_message_size: 20 << 20,
            peer_queue_depth: 4096,
            peer_queue_bytes: 32 << 20,
            total_queue_bytes: 64 << 20,
            max_ordered_size: 64 << 10,
            link_window: secs(30),
            max_links: 2048,
            question_timeout: secs(1),
            admit_queue_depth: 1024,
            max_shared_state: 8 << 20,
            max_state_size: 20 << 20,
            max_streams: 512,
            max_streams_per_source: 32,
            max_relays: 1024,
            max_relays_per_source: 16,
            max_stranger_answers: 1000,
            max_incarnation_step: MAX_INCARNATION_STEP,
            stall_after: secs(1),
            restarts: RestartPolicy::default(),
        }
    }

    /// For nodes that are far apart: slower, more patient.
    pub fn wan() -> Self {
        Self {
            probe_interval: secs(5),
            probe_timeout: secs(3),
            suspicion_mult: 6,
            flap_probation: secs(120),
            gossip_interval: ms(500),
            gossip_nodes: 4,
            gossip_to_the_dead_time: secs(60),
            push_pull_interval: secs(60),
            tcp_timeout: secs(30),
            join_timeout: secs(30),
            discover_interval: secs(60),
            ..Self::lan()
        }
    }

    /// For one host: tests and demonstrations.
    pub fn local() -> Self {
        Self {
            probe_timeout: ms(200),
            indirect_checks: 1,
            suspicion_mult: 3,
            flap_probation: secs(10),
            gossip_interval: ms(100),
            gossip_to_the_dead_time: secs(15),
            retransmit_mult: 2,
            push_pull_interval: secs(15),
            tcp_timeout: secs(1),
            join_timeout: secs(2),
            discover_interval: secs(15),
            ..Self::lan()
        }
    }

    /// The versions that a node with these settings speaks.
    pub fn versions(&self) -> Versions {
        Versions { delegate: self.delegate_version, ..Versions::CURRENT }
    }

    /// What a node with a key begins with.
    pub fn sealing(&self) -> Sealing {
        match (self.gossip_verify_outgoing, self.gossip_verify_incoming) {
            (true, true) => Sealing::Required,
            (true, false) => Sealing::Outgoing,
            (false, _) => Sealing::Off,
        }
    }

    /// The interval that suspicions are measured in: the probe interval, or a second for a node that does
    /// not probe but still hears of suspects.
    pub fn suspicion_base(&self) -> Duration {
        if self.probe_interval.is_zero() { secs(1) } else { self.probe_interval }
    }

    /// When a helper that still has no ack says so, so that its nack is back before the asker's deadline:
    /// `0.8 * min(probe_timeout, probe_interval - probe_timeout)` (Lifeguard, section IV.A, sends it at 80 %
    /// of the timeout). LAN 400 ms, WAN 1.6 s, local 160 ms. Without `early_nacks` it is `probe_timeout`.
    pub fn nack_delay(&self) -> Duration {
        if !self.early_nacks {
            return self.probe_timeout;
        }
        let left = self.suspicion_base().saturating_sub(self.probe_timeout);
        self.probe_timeout.min(left).mul_f64(0.8)
    }

    /// How long a question to the application waits for its answer: three of them, one after the other, must
    /// not take longer than the other side of a stream waits.
    pub fn question_limit(&self) -> Duration {
        self.question_timeout.min(self.tcp_timeout / 4)
    }

    /// How often one piece of news is sent by each node in a cluster of `members`:
    /// `retransmit_mult * ceil(log10(members + 1))` (SWIM, section 4.1), but at least `min(members, 6)`: of eight
    /// nodes that sent everything twice, one or two would often hear nothing.
    pub fn retransmit_limit(&self, members: usize) -> u32 {
        let digits = ((members + 1) as f64).log10().ceil() as u32;
        (self.retransmit_mult * digits).max(members.min(6) as u32)
    }

    /// Time to the next exchange of state in a cluster of `members`: the interval up to 32 members, and one
    /// interval more with each doubling beyond.
    pub fn push_pull_pace(&self, members: usize) -> Duration {
        if members <= 32 {
            return self.push_pull_interval;
        }
        let steps = ((members as f64).log2() - 5.0).ceil() as u32 + 1;
        self.push_pull_interval * steps
    }

    /// Refuses settings that no node could work with.
    ///
    /// # Errors
    /// [`ConfigError`] names the field, its value and the limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let hour = secs(3600);
        let span = |field, value: Duration, min: Duration, max: Duration, zero: bool| {
            if (zero && value.is_zero()) || (min <= value && value <= max) {
                Ok(())
            } else {
                Err(ConfigError::new(
                    field,
                    format!("{value:?}"),
                    format!("{min:?} to {max:?}{}", if zero { ", or 0" } else { "" }),
                ))
            }
        };
        let count = |field, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::new(field, value.to_string(), format!("{min} to {max}")))
            }
        };
        let many = 1_000_000;

        span("probe_interval", self.probe_interval, ms(10), secs(60), true)?;
        span("probe_timeout", self.probe_timeout, ms(1), secs(60), false)?;
        if !self.probe_interval.is_zero() && self.probe_timeout > self.probe_interval {
            let limit = format!("at most probe_interval, {:?}", self.probe_interval);
            return Err(ConfigError::new("probe_timeout", format!("{:?}", self.probe_timeout), limit));
        }
        count("indirect_checks", self.indirect_checks as usize, 0, 16)?;
        count("disable_tcp_pings_for", self.disable_tcp_pings_for.len(), 0, 4096)?;
        for name in &self.disable_tcp_pings_for {
            check_name(name).map_err(|error| {
                let value: String = name.chars().take(40).collect();
                ConfigError::new("disable_tcp_pings_for", format!("{value:?}"), error.to_string())
            })?;
        }
        count("awareness_max_multiplier", self.awareness_max_multiplier as usize, 1, 64)?;
        count("suspicion_mult", self.suspicion_mult as usize, 1, 64)?;
        count("suspicion_max_timeout_mult", self.suspicion_max_timeout_mult as usize, 1, 64)?;
        span("flap_probation", self.flap_probation, secs(1), hour, true)?;
        if self.flap_limit != 0 {
            count("flap_limit", self.flap_limit as usize, 2, 1000)?;
        }
        span("gossip_interval", self.gossip_interval, ms(10), secs(60), true)?;
        count("gossip_nodes", self.gossip_nodes, 0, 64)?;
        count("retransmit_mult", self.retransmit_mult as usize, 1, 64)?;
        count("udp_buffer_size", self.udp_buffer_size, MIN_PACKET, MAX_PACKET)?;
        if self.gossip_verify_incoming && !self.gossip_verify_outgoing {
            return Err(ConfigError::new(
                "gossip_verify_incoming",
                "true",
                "false without gossip_verify_outgoing: such nodes would not take in what they send",
            ));
        }
        span("push_pull_interval", self.push_pull_interval, ms(100), hour, true)?;
        span("tcp_timeout", self.tcp_timeout, ms(10), secs(300), false)?;
        span("link_window", self.link_window, secs(1), secs(600), false)?;
        span("join_timeout", self.join_timeout, ms(10), secs(600), false)?;
        count("cidrs_allowed", self.cidrs_allowed.as_ref().map_or(0, Vec::len), 0, 256)?;
        let VersionRange { min, max, current } = self.delegate_version;
        if !self.delegate_version.is_sound() {
            let value = format!("min {min}, max {max}, current {current}");
            return Err(ConfigError::new("delegate_version", value, "min <= current <= max"));
        }
        span("discover_interval", self.discover_interval, ms(100), hour, true)?;
        span("heal_interval", self.heal_interval, ms(100), hour, true)?;
        span("rejoin_interval", self.rejoin_interval, ms(100), hour, true)?;
        let year = hour * 24 * 366;
        span("gossip_to_the_dead_time", self.gossip_to_the_dead_time, ms(1), year, true)?;
        span("dead_retention", self.dead_retention, ms(1), year, false)?;
        span("left_retention", self.left_retention, ms(1), year, false)?;
        span("dead_node_reclaim_time", self.dead_node_reclaim_time, ms(1), year, true)?;
        span("tombstone_retention", self.tombstone_retention, ms(1), year, true)?;
        count("max_tombstones", self.max_tombstones, 0, many)?;
        count("max_members", self.max_members, 1, many)?;
        count("handoff_queue_depth", self.handoff_queue_depth, 64, many)?;
        count("control_queue_depth", self.control_queue_depth, 64, many)?;
        count("max_broadcasts", self.max_broadcasts, 16, many)?;
        count("max_broadcast_bytes", self.max_broadcast_bytes, 64 << 10, 1 << 30)?;
        count("max_user_broadcasts", self.max_user_broadcasts, 16, many)?;
        count("max_user_broadcast_bytes", self.max_user_broadcast_bytes, 64 << 10, 1 << 30)?;
        count("subscriber_queue_depth", self.subscriber_queue_depth, 1, many)?;
        count("gossiped_broadcast_size", self.gossiped_broadcast_size, 0, MAX_PACKET)?;
        count("max_message_size", self.max_message_size, 1 << 10, 1 << 30)?;
        count("peer_queue_depth", self.peer_queue_depth, 1, many)?;
        count("peer_queue_bytes", self.peer_queue_bytes, 1 << 10, 1 << 30)?;
        count("total_queue_bytes", self.total_queue_bytes, 1 << 10, 1 << 30)?;
        span("question_timeout", self.question_timeout, ms(10), secs(60), false)?;
        count("admit_queue_depth", self.admit_queue_depth, 1, many)?;
        count("max_shared_state", self.max_shared_state, 0, 1 << 30)?;
        count("max_state_size", self.max_state_size, 64 << 10, 1 << 30)?;
        count("max_ordered_size", self.max_ordered_size, 1 << 10, 1 << 20)?;
        count("max_links", self.max_links, 4, 65_536)?;
        count("max_streams", self.max_streams, 4, 65_536)?;
        count("max_streams_per_source", self.max_streams_per_source, 1, 65_536)?;
        count("max_relays", self.max_relays, 0, 65_536)?;
        count("max_relays_per_source", self.max_relays_per_source, 1, 65_536)?;
        count("max_stranger_answers", self.max_stranger_answers, 1, many)?;
        count("max_incarnation_step", self.max_incarnation_step as usize, 1 << 16, 1 << 31)?;
        span("stall_after", self.stall_after, ms(10), secs(60), false)?;
        let restarts = &self.restarts;
        count("restarts.immediate", restarts.immediate as usize, 0, 1000)?;
        count("restarts.delayed_before_all", restarts.delayed_before_all as usize, 1, 1000)?;
        span("restarts.window", restarts.window, ms(1), hour, false)?;
        span("restarts.first_delay", restarts.first_delay, ms(1), hour, false)?;
        span("restarts.max_delay", restarts.max_delay, ms(1), hour, false)?;
        span("restarts.quiet", restarts.quiet, ms(1), hour, false)?;
        span("restarts.escalation_window", restarts.escalation_window, ms(1), hour, false)
    }
}

/// Smallest packet that holds each single message of the protocol: 255 bytes of name, 512 of metadata.
const MIN_PACKET: usize = 1024;

/// Largest packet that UDP over IPv6 carries, with room for a seal.
const MAX_PACKET: usize = 65_000;

impl Default for Config {
    /// [`Config::lan`].
    fn default() -> Self {
        Self::lan()
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; allowed: {limit}")]
pub struct ConfigError {
    /// The setting, as the field or the builder's method is called.
    pub field: &'static str,
    /// What it was set to.
    pub value: String,
    /// What is allowed.
    pub limit: String,
}

impl ConfigError {
    /// `field` may not be `value`, but `limit`.
    pub fn new(field: &'static str, value: impl Into<String>, limit: impl Into<String>) -> Self {
        Self { field, value: value.into(), limit: limit.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_are_valid() {
        for config in [Config::lan(), Config::wan(), Config::local()] {
            assert_eq!(config.validate(), Ok(()));
        }
    }

    #[test]
    fn an_error_names_the_field_the_value_and_the_limit() {
        let config = Config { probe_timeout: secs(2), ..Config::lan() };
        let error = config.validate().unwrap_err();
        assert_eq!(error.field, "probe_timeout");
        assert_eq!(error.to_string(), "probe_timeout is 2s; allowed: at most probe_interval, 1s");
    }

    #[test]
    fn weak_point_21_settings_that_would_spin_or_starve_are_refused() {
        type Break = fn(&mut Config);
        let cases: [(&str, Break); 10] = [
            ("awareness_max_multiplier", |c| c.awareness_max_multiplier = 0),
            ("udp_buffer_size", |c| c.udp_buffer_size = 10),
            ("udp_buffer_size", |c| c.udp_buffer_size = 1 << 20),
            ("handoff_queue_depth", |c| c.handoff_queue_depth = 0),
            ("probe_interval", |c| c.probe_interval = Duration::from_nanos(1)),
            ("gossip_interval", |c| c.gossip_interval = Duration::from_nanos(1)),
            ("suspicion_mult", |c| c.suspicion_mult = 0),
            ("tcp_timeout", |c| c.tcp_timeout = Duration::ZERO),
            ("discover_interval", |c| c.discover_interval = ms(1)),
            ("heal_interval", |c| c.heal_interval = ms(1)),
        ];
        for (field, break_it) in cases {
            let mut config = Config::lan();
            break_it(&mut config);
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn an_interval_of_zero_is_allowed_where_it_switches_a_loop_off() {
        let config = Config {
            probe_interval: Duration::ZERO,
            gossip_interval: Duration::ZERO,
            push_pull_interval: Duration::ZERO,
            discover_interval: Duration::ZERO,
            heal_interval: Duration::ZERO,
            gossip_nodes: 0,
            ..Config::lan()
        };
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.suspicion_base(), secs(1));
    }

    #[test]
    fn weak_point_02_a_nack_is_back_before_the_deadline_of_the_probe() {
        for (config, delay) in
            [(Config::lan(), ms(400)), (Config::wan(), ms(1600)), (Config::local(), ms(160))]
        {
            assert_eq!(config.nack_delay(), delay);
            assert!(config.probe_timeout + config.nack_delay() < config.probe_interval);
        }
    }

    #[test]
    fn retransmissions_and_push_pull_scale_with_the_cluster() {
        let config = Config { retransmit_mult: 3, ..Config::lan() };
        assert_eq!([0, 1, 5, 9, 10, 99].map(|n| config.retransmit_limit(n)), [0, 3, 5, 6, 6, 6]);
        let pace = |n| Config::lan().push_pull_pace(n).as_secs() / 30;
        assert_eq!([1, 32, 33, 64, 65, 128].map(pace), [1, 1, 2, 2, 3, 3]);
    }
}

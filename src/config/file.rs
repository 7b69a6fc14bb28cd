//! Settings as data: a preset, and what differs from it.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::Config;
use crate::{member::VersionRange, restart::RestartPolicy, span::Span};

/// Where a file starts from.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Preset {
    #[default]
    Lan,
    Wan,
    Local,
}

/// Every field as it may stand in a file, or be left out.
macro_rules! settings {
    ($($field:ident: $read:ty,)*) => {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Settings {
            preset: Preset,
            $($field: Option<$read>,)*
        }

        impl From<Settings> for Config {
            fn from(settings: Settings) -> Self {
                let mut config = match settings.preset {
                    Preset::Lan => Self::lan(),
                    Preset::Wan => Self::wan(),
                    Preset::Local => Self::local(),
                };
                $(if let Some(value) = settings.$field {
                    config.$field = value.into();
                })*
                config
            }
        }
    };
}

settings! {
    probe_interval: Span,
    probe_timeout: Span,
    indirect_checks: u32,
    disable_tcp_pings: bool,
    disable_tcp_pings_for: BTreeSet<String>,
    awareness_max_multiplier: u32,
    suspicion_mult: u32,
    suspicion_max_timeout_mult: u32,
    early_nacks: bool,
    own_verdicts: bool,
    early_verdicts: bool,
    count_refusals: bool,
    gossip_at_once: bool,
    weigh_accusers: bool,
    flap_probation: Span,
    flap_limit: u32,
    gossip_interval: Span,
    gossip_nodes: usize,
    gossip_to_the_dead_time: Span,
    retransmit_mult: u32,
    udp_buffer_size: usize,
    gossip_verify_outgoing: bool,
    gossip_verify_incoming: bool,
    packet_checksum: bool,
    compress_packets: bool,
    compress_streams: bool,
    push_pull_interval: Span,
    tcp_timeout: Span,
    join_timeout: Span,
    discover_interval: Span,
    heal_interval: Span,
    rejoin_interval: Span,
    cidrs_allowed: Vec<IpNet>,
    delegate_version: VersionRange,
    dead_retention: Span,
    left_retention: Span,
    dead_node_reclaim_time: Span,
    tombstone_retention: Span,
    max_tombstones: usize,
    max_members: usize,
    handoff_queue_depth: usize,
    control_queue_depth: usize,
    max_broadcasts: usize,
    max_broadcast_bytes: usize,
    max_user_broadcasts: usize,
    max_user_broadcast_bytes: usize,
    subscriber_queue_depth: usize,
    gossiped_broadcast_size: usize,
    max_message_size: usize,
    peer_queue_depth: usize,
    peer_queue_bytes: usize,
    total_queue_bytes: usize,
    max_ordered_size: usize,
    link_window: Span,
    max_links: usize,
    question_timeout: Span,
    admit_queue_depth: usize,
    max_shared_state: usize,
    max_state_size: usize,
    max_streams: usize,
    max_streams_per_source: usize,
    max_relays: usize,
    max_relays_per_source: usize,
    max_stranger_answers: usize,
    max_incarnation_step: u32,
    stall_after: Span,
    restarts: RestartPolicy,
}

impl<'de> Deserialize<'de> for Config {
    /// Reads what differs from a preset. The result is not validated yet.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Settings::deserialize(from).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn a_file_says_only_what_differs_from_its_preset() {
        assert_eq!(read(""), Ok(Config::lan()));
        assert_eq!(read("preset = \"local\""), Ok(Config::local()));
        let some =
            "probe_interval = \"7s 500ms\"\npreset = \"wan\"\ngossip_nodes = 5\n[restarts]\nimmediate = 9";
        let expected = Config {
            probe_interval: Duration::from_millis(7500),
            gossip_nodes: 5,
            restarts: RestartPolicy { immediate: 9, ..RestartPolicy::default() },
            ..Config::wan()
        };
        assert_eq!(read(some), Ok(expected));
    }

    /// It also fails when a field of `Config` is missing among those above: a file that names it is refused.
    #[test]
    fn each_setting_is_read_as_it_was_written() {
        let mut written = Config {
            cidrs_allowed: Some(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]),
            disable_tcp_pings_for: ["a".to_owned(), "b".to_owned()].into(),
            delegate_version: VersionRange { min: 1, max: 3, current: 2 },
            restarts: RestartPolicy::never(),
            ..Config::wan()
        };
        written.gossip_interval = Duration::ZERO;
        assert_eq!(read(&toml::to_string(&written).unwrap()), Ok(written.clone()));
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), written);
        let json = serde_json::to_string(&Config::local()).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), Config::local());
        assert!(json.contains("\"probe_timeout\":\"200ms\""), "{json}");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let cases = [
            ("probe_intervall = \"1s\"", "unknown field `probe_intervall`"),
            ("[restarts]\nimediate = 1", "unknown field `imediate`"),
            ("delegate_version = { min = 1, maxx = 2 }", "unknown field `maxx`"),
            ("preset = \"lunar\"", "unknown variant `lunar`, expected one of `lan`, `wan`, `local`"),
            ("probe_interval = \"soon\"", "\"soon\" is no span of time such as \"200ms\""),
            ("probe_interval = \"99999999999999999999y\"", "is no span of time"),
            ("probe_interval = 1", "invalid type: integer `1`, expected a string"),
            ("gossip_nodes = -1", "invalid value: integer `-1`"),
            ("cidrs_allowed = [\"10.0.0.0/33\"]", "invalid"),
        ];
        for (text, expected) in cases {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_limit_by_validate() {
        let config = read("preset = \"wan\"\ngossip_nodes = 65").unwrap();
        assert_eq!(config.validate().unwrap_err().to_string(), "gossip_nodes is 65; allowed: 0 to 64");
    }
}

//! The two ways of running a cluster that are compared.

use std::time::Duration;

use actix_memberlist::Config;

/// How the nodes of an experiment are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// As HashiCorp's memberlist 0.6 is by default: its constants, and none of what was added to them here.
    Memberlist,
    /// As this library is by default.
    Ours,
}

impl Policy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Memberlist, Self::Ours];

    /// Its name, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memberlist => "memberlist",
            Self::Ours => "ours",
        }
    }

    /// The settings, for a network of one site.
    pub fn config(self) -> Config {
        match self {
            Self::Ours => Config::lan(),
            Self::Memberlist => Config {
                // A helper without an answer says so after a ping's time-out, which is when the asker stops to wait.
                early_nacks: false,
                own_verdicts: false,
                early_verdicts: false,
                count_refusals: false,
                gossip_at_once: false,
                weigh_accusers: false,
                flap_probation: Duration::ZERO,
                flap_limit: 0,
                // A dead member is forgotten when gossip to the dead ends, and nobody looks for it.
                dead_retention: Duration::from_secs(30),
                left_retention: Duration::from_secs(30),
                heal_interval: Duration::ZERO,
                ..Config::lan()
            },
        }
    }
}

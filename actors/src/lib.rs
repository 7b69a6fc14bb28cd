//! Cluster membership for actix applications: SWIM gossip with Lifeguard's failure detection, run by
//! supervised actors.
//!
//! A program spawns a node inside its actix system, subscribes its own actors to what becomes of the members,
//! and tells them things. [`Cluster`] is the handle; [`Node`] the same as an actor. The example at [`Cluster`] is
//! a whole program.
//!
//! | what for | where |
//! |---|---|
//! | start a node | [`Cluster::builder`], [`ClusterBuilder::start`], [`Config`] |
//! | find the others | [`Cluster::join`], or [`ClusterBuilder::seeds`] with a source of [`discover`]; [`Resolver`] for names |
//! | wait for them | [`Cluster::ready`] |
//! | see who is there | [`Cluster::view`]: a [`View`] of [`Member`]s; [`Cluster::why`] one was accused |
//! | hear what becomes of them | [`Cluster::subscribe`] an actor to [`MemberEvent`]s, or [`Cluster::events`] as a stream |
//! | say something of oneself | [`Cluster::set_meta`], [`Cluster::set_tags`] |
//! | tell one member, or all | [`Cluster::peers`]: [`Peer::cast`], [`Peer::cast_bytes`], [`Peer::send_bytes`]; [`Cluster::broadcast`], [`Cluster::broadcast_bytes`] |
//! | hear what is told | [`Cluster::serve`], [`Cluster::serve_from`]: [`PeerMessage`]s; [`Cluster::serve_bytes`]: [`UserBytes`] |
//! | share a state with all | [`Cluster::share`]: [`SharedState`], [`Export`], [`Merge`] |
//! | decide who may in | [`ClusterBuilder::admit`]: [`Admit`] |
//! | keep strangers out | [`ClusterBuilder::key`], [`Keyring`]; [`Cluster::seal_cluster`], [`Cluster::relabel_cluster`] and their [`Rollout`] |
//! | put streams under TLS | `ClusterBuilder::tls`, `tls`, with the feature of that name |
//! | measure the way to members | [`Cluster::ping`]; [`Cluster::subscribe_pings`]: [`Pinged`] |
//! | watch the node | [`Cluster::metrics`] and [`metrics`]; [`Cluster::subscribe_node`]: [`NodeEvent`]; [`Cluster::health`] |
//! | come back after a restart | [`ClusterBuilder::rejoin_file`], [`store`] |
//! | go | [`Cluster::leave`], then [`Cluster::shutdown`]; [`Cluster::force_leave`] for one that is dead |
//! | have a network of one's own | [`ClusterBuilder::network`], [`network`] |
//! | supervise actors of one's own | [`supervisor`] |
//!
//! None of a program's own code runs in the node, but for what reads and writes its [`PeerMessage`]s: what the node
//! wants of it are values, messages to its actors, and questions to them that have a deadline.
//!
//! Features, none of them on by default: `metrics` hands the metrics to the facade of that name; `tls` puts streams
//! under TLS, with `ClusterBuilder::tls`; `testing` brings a network in memory in virtual time, faults on any network
//! (`Cluster::faults`), injected panics, and traces.
//!
//! ```text
//!             ┌──────────────► NodeState ───────────────┐
//!             │                 │     │                 ▼
//! sockets ─► Transport          │     └► Delegates   BroadcastQueue ─► Transport ─► sockets
//!             │   │             ▼ (view)                ▲
//!             │   └──► FailureDetector ─────────────────┘
//!             └──► Delegates (user messages)
//! ```
//!
//! These five, and a PeerLink for each peer that is sent something over a stream, live on one thread, under a [`supervisor`] that restarts one that panics. The rules they ask are
//! in the crate [`memberlist_protocol`], which knows neither actors nor sockets.

mod advertise;
mod answers;
mod builder;
mod casts;
mod cluster;
mod delegates;
mod detector;
pub mod discover;
mod errors;
mod events;
mod exchanges;
mod fate;
mod handle;
mod hooks;
mod inbox;
mod join;
mod keyring;
mod latest;
mod link;
mod logs;
mod messages;
pub mod metrics;
pub mod network;
mod node;
mod peer;
mod pump;
mod questions;
mod queue;
mod rejoin;
mod relay;
mod resolve;
mod ring;
mod rollout;
mod routes;
mod select;
mod sources;
mod state;
pub mod store;
mod streams;
pub mod supervisor;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "testing")]
pub mod trace;
mod transport;
mod typed;
mod uploads;

pub use self::metrics::{Histogram, InboxMetrics, LaneMetrics, Metrics};
pub use builder::{ClusterBuilder, DEFAULT_PORT};
pub use cluster::{Broadcast, Cluster, Spread};
pub use discover::Discover;
pub use errors::{
    AskError, Cause, ConfigError, JoinError, MemberError, NotSent, Refusal, SendError, StartError, Stopped,
    UpdateError,
};
pub use events::{MemberEvent, NodeEvent, Pinged, Replay, Sender, UserBytes};
pub use join::{Joined, Until};
pub use keyring::Keyring;
pub use link::{LinkEvent, LinkStatus};
pub use memberlist_protocol::{
    accusation::{Accusation, Evidence, Outcome, Why},
    config::Config,
    keyring::{Key, KeyError, KeyId, Sealing},
    member::{Member, MemberState, NodeId, VersionRange, Versions},
    restart::RestartPolicy,
    view::View,
};
pub use node::{
    ForceLeave, Join, Leave, LeaveReport, Members, Node, Ping, SetMeta, SetPingPayload, SetTags, Shutdown,
    Subscribe,
};
pub use peer::{Peer, Sent};
pub use pump::Subscription;
pub use questions::{Admit, Export, Merge, SharedState};
pub use resolve::{DnsResolver, Resolver, Resolving};
pub use rollout::Rollout;
pub use select::{Fanout, Select};
pub use store::{FileStore, Store};
#[cfg(feature = "tls")]
pub use tls::Tls;
pub use typed::{FromPeer, Lane, PeerMessage};
pub use uploads::{Body, Upload};

/// Injected panics, for tests.
#[cfg(feature = "testing")]
pub mod testing {
    pub use crate::hooks::testing::{Pair, Strikes};
}

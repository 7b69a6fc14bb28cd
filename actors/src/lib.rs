//! Cluster membership for actix applications: SWIM gossip with Lifeguard's failure detection, run by
//! supervised actors.
//!
//! A program spawns a node inside its actix system, subscribes its own actors to what becomes of the members,
//! and tells them things. [`Cluster`] is the handle; [`Node`] the same as an actor.
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
//! The five live on one thread, under a [`supervisor`] that restarts one that panics. The rules they ask are
//! in the crate [`memberlist_protocol`], which knows neither actors nor sockets.

mod advertise;
mod builder;
mod cluster;
mod delegates;
mod detector;
pub mod discover;
mod errors;
mod events;
mod exchanges;
mod hooks;
mod inbox;
mod join;
mod logs;
mod messages;
pub mod metrics;
pub mod network;
mod node;
mod outbox;
mod parcels;
mod peer;
mod pump;
mod questions;
mod queue;
mod resolve;
mod ring;
mod state;
mod streams;
pub mod supervisor;
#[cfg(feature = "testing")]
pub mod trace;
mod transport;

pub use self::metrics::{Histogram, InboxMetrics, Metrics};
pub use builder::{ClusterBuilder, DEFAULT_PORT};
pub use cluster::{Broadcast, Cluster, Spread};
pub use discover::Discover;
pub use errors::{
    AskError, Cause, ConfigError, JoinError, MemberError, NotSent, Refusal, SendError, StartError, Stopped,
    UpdateError,
};
pub use events::{MemberEvent, NodeEvent, Pinged, Replay, Sender, UserBytes};
pub use join::{Joined, Until};
pub use memberlist_protocol::{
    accusation::{Accusation, Evidence, Outcome, Why},
    config::Config,
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

/// Injected panics, for tests.
#[cfg(feature = "testing")]
pub mod testing {
    pub use crate::hooks::testing::{Pair, Strikes};
}

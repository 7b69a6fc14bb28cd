//! **PeerLink**: what this node has to say to one peer. There is one for each peer that is sent something over a
//! stream. It hears of messages that wait, of connections that have ended and of what becomes of the peer; it
//! dials, and gives up what has waited for too long.
//!
//! ```text
//!   Peer::send ──► Link: queue, questions ◄── connection (a task) ──► the peer's node
//!                    │ "wanted"                  ▲      │ "ended"
//!                    └────────► PeerLink ────────┘◄─────┘
//!                                   ▲ "the peer has moved, is back, is gone" from NodeState
//! ```
//!
//! The queue is the link's, not the connection's: it outlives both the connections and the actor. The rules are in
//! [`memberlist_protocol::link`].

mod budget;
mod cell;
mod duplex;
mod inbound;
mod outbound;
mod wide;

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use actix::{Actor, Context, Message, StreamHandler};
use memberlist_protocol::{
    link::{Carrier, Lane, Redial},
    member::NodeId,
};

pub use self::cell::LinkStatus;
pub(crate) use self::{
    budget::Budget,
    cell::{Letter, Link, Links, What},
    inbound::{Inbounds, serve},
};
use crate::{
    errors::{Cause, Refusal},
    inbox::{Alarm, Turn, Turns},
    messages::{LINK, ToLink},
    ring::{Shared, now},
    supervisor::Child,
};

/// What becomes of the links to peers: see [`Cluster::subscribe_links`](crate::Cluster::subscribe_links).
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
#[non_exhaustive]
pub enum LinkEvent {
    /// A link to a peer has a connection.
    Up {
        /// Who.
        peer: NodeId,
        /// Where.
        remote: SocketAddr,
    },
    /// It has none any more. As long as the peer is there, the link dials again when it has something to say.
    Down {
        /// Who.
        peer: NodeId,
        /// Why.
        cause: Cause,
    },
    /// Messages that were taken have not got through, or it is not known whether they have.
    Dropped {
        /// For whom.
        peer: NodeId,
        /// In which lane.
        lane: Lane,
        /// How many.
        count: u64,
        /// How many bytes.
        bytes: u64,
        /// Why.
        cause: Cause,
    },
    /// A peer has refused a connection, or this node has refused one of a peer.
    Refused {
        /// Who, as it says itself.
        peer: NodeId,
        /// Where.
        remote: SocketAddr,
        /// Why.
        why: Refusal,
    },
    /// A peer says that this node has left, or was declared to have: nobody there talks to it any more.
    Removed {
        /// Who says so.
        by: NodeId,
    },
}

/// What survives a restart of the actor.
#[derive(Default)]
pub(crate) struct Kept {
    carriers: [Way; 2],
}

/// One of the two connections.
#[derive(Default)]
struct Way {
    redial: Redial,
    /// Since when nothing gets through, although something is to.
    lost: Option<Instant>,
}

/// The actor.
pub(crate) struct PeerLink {
    ring: Shared,
    link: Arc<Link>,
    kept: Rc<RefCell<Kept>>,
    alarm: Alarm,
}

/// Starts the actor of a link.
pub(crate) fn start(ring: &Shared, link: Arc<Link>) {
    let Some(supervisor) = ring.supervisor.get().filter(|_| link.start()) else { return };
    let (ring, kept) = (ring.clone(), Rc::<RefCell<Kept>>::default());
    supervisor.supervise(LINK, 16, move || PeerLink {
        ring: ring.clone(),
        link: link.clone(),
        kept: kept.clone(),
        alarm: Alarm::default(),
    });
}

impl PeerLink {
    fn hear(&self, item: ToLink) {
        let mut kept = self.kept.borrow_mut();
        match item {
            ToLink::Wanted(carrier) => {
                let way = &mut kept.carriers[carrier as usize];
                way.lost = way.lost.or_else(|| (!self.link.is_up(carrier)).then(now));
            }
            ToLink::Ended { carrier, up } => {
                if up.is_some() && carrier == Carrier::Main {
                    let cause = Cause::LinkLost;
                    self.ring.link_event(&LinkEvent::Down { peer: self.link.peer.clone(), cause });
                }
                let way = &mut kept.carriers[carrier as usize];
                way.redial.failed(up, now(), &mut *self.ring.rng.borrow_mut());
                // A connection that has brought nothing through was none.
                way.lost = way.lost.filter(|_| !self.link.has_progressed(carrier)).or_else(|| Some(now()));
            }
            ToLink::Up(carrier) => {
                let way = &mut kept.carriers[carrier as usize];
                way.lost = way.lost.filter(|_| !self.link.has_progressed(carrier));
            }
            ToLink::Alive => {
                for way in &mut kept.carriers {
                    way.redial.hurry(now());
                }
            }
            // What there is to do about it is done in any turn.
            ToLink::Gone => {}
        }
    }

    /// The peer is gone.
    fn end(&self, cause: Cause) {
        self.ring.links.remove(&self.link);
        if self.link.status().active_since.is_some() {
            self.ring.link_event(&LinkEvent::Down { peer: self.link.peer.clone(), cause });
        }
        self.link.end(&self.ring, cause);
    }

    /// Dials where something waits and it is time, and gives up what has waited for too long.
    fn on_time(&self) {
        if let Some(cause) = self.link.gone() {
            return self.end(cause);
        }
        let now = now();
        for carrier in Carrier::ALL {
            let window = self.ring.config.link_window;
            let mut kept = self.kept.borrow_mut();
            let way = &mut kept.carriers[carrier as usize];
            if way.lost.is_some_and(|since| now.saturating_duration_since(since) >= window) {
                // Over a connection that is up it may still get through; if not, that one ends.
                if self.link.has_progressed(carrier) || self.link.give_up(&self.ring, carrier) {
                    way.lost = None;
                }
            }
            let wanted = self.link.is_wanted(carrier);
            if !wanted {
                way.lost = None;
            } else if way.redial.due().is_none_or(|due| due <= now) && self.link.begin(carrier) {
                way.redial.begin();
                way.lost.get_or_insert(now);
                drop(kept);
                let task = outbound::run(self.ring.clone(), self.link.clone(), carrier);
                self.ring.spawn("link", task);
            }
        }
    }

    fn set_alarm(&self) {
        let kept = self.kept.borrow();
        let due = kept.carriers.iter().zip(Carrier::ALL).filter_map(|(way, carrier)| {
            let waits = !self.link.is_running(carrier) && !self.link.is_idle(carrier);
            let dial = way.redial.due().filter(|_| waits);
            let end = way.lost.filter(|_| !self.link.is_up(carrier));
            let end = end.map(|since| since + self.ring.config.link_window);
            [dial, end].into_iter().flatten().min()
        });
        self.alarm.set(if self.link.is_ended() { Some(now()) } else { due.min() });
    }
}

impl Actor for PeerLink {
    type Context = Context<Self>;
}

impl actix::Supervised for PeerLink {}

impl Child for PeerLink {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        self.on_time();
        self.set_alarm();
        Self::add_stream(Turns::new(self.link.inbox.clone(), self.alarm.clone(), None), ctx);
    }
}

impl StreamHandler<Turn> for PeerLink {
    fn handle(&mut self, _: Turn, ctx: &mut Context<Self>) {
        self.ring.turn(LINK, &self.link.inbox, |item| self.hear(item));
        self.on_time();
        self.set_alarm();
        if self.link.is_ended() {
            actix::ActorContext::stop(ctx);
        }
    }
}

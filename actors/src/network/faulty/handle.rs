//! The handle that a test holds: what is to go wrong, and with whom.

use std::{net::SocketAddr, num::NonZeroU64, ops::Range, sync::Arc, time::Duration};

use memberlist_protocol::member::{Member, NodeId, canonical};

use super::state::{Budget, Direction, Ends, Rules, Shared};
use crate::{cluster::Cluster, handle::Handle, peer::Peer};

/// What goes wrong between a node and its peers. Clones are one. See [`faulty`](super) for how it works.
///
/// A peer is named by its [`NodeId`], its name, its [`Peer`] or [`Member`], its own [`Cluster`] if that runs in the same
/// program, or its address; [`Everyone`] are all that have no faults of their own. Names are looked up in the node's view
/// when a fault is set: the fault belongs to the address from then on, whoever has that later.
///
/// | | datagrams | streams that are open | dials |
/// |---|---|---|---|
/// | [`cut`](Self::cut) | vanish | carry nothing, and say nothing of that: half-open | wait |
/// | [`pause`](Self::pause) | pass | the same | wait |
/// | [`stall`](Way::stall) | pass | carry nothing in that direction | pass |
/// | [`delay`](Way::delay) | late, and overtake each other | late, in order | late |
/// | [`loss`](Way::loss), [`duplicate`](Way::duplicate) | so many are lost, or come twice | as ever: TCP hides it | |
/// | [`throttle`](Way::throttle) | pass | so many bytes a second each | |
/// | [`reset`](Way::reset), [`truncate`](Way::truncate), [`half_close`](Way::half_close) | | those that are open end, at once or after so many bytes | |
///
/// A paused peer stays a member: pings are datagrams. Messages to it wait in its link's queue, bounded, and none is lost
/// without a word: they go on when it is [resumed](Self::resume), and what has waited for longer than
/// [`Config::link_window`](crate::Config::link_window) ends as in any outage, with
/// [`Cause::LinkLost`](crate::Cause::LinkLost).
///
/// ```
/// # actix::System::new().block_on(async {
/// use actix_memberlist::{Cluster, Config, MemberState, Until};
/// use std::time::Duration;
///
/// let config = || Config { suspicion_mult: 1, suspicion_max_timeout_mult: 1, ..Config::local() };
/// let start = |name: &str| Cluster::builder(name).config(config()).bind("127.0.0.1:0".parse().unwrap()).start();
/// let (a, b) = (start("a").await?, start("b").await?);
/// b.join(&[&a.view().local().addr.to_string()]).await?;
/// a.ready(Until::Members(2), Duration::from_secs(5)).await?;
///
/// a.faults().cut("b")?; // or `&b`, its id, its address
/// while a.view().get("b").unwrap().state != MemberState::Dead {
///     tokio::time::sleep(Duration::from_millis(50)).await;
/// }
/// a.faults().mend("b")?;
/// assert!(a.ready(Until::Members(2), Duration::from_secs(60)).await?);
///
/// // A tenth of what b says is lost, and the rest is late.
/// a.faults().from(&b)?.loss(0.1).delay(Duration::from_millis(20)..Duration::from_millis(50));
/// # a.shutdown().await;
/// # b.shutdown().await;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Faults {
    pub(super) shared: Arc<Shared>,
    node: Option<Handle>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(0)
    }
}

/// Nobody of that name is in the node's view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no member {0} is known here: name it by its address")]
pub struct NoSuchPeer(pub String);

/// All peers that have no faults of their own, and streams of which it is not known yet who has dialled them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Everyone;

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// At an address.
    At(SocketAddr),
    /// Where the node's view says that this run is.
    Of(NodeId),
    /// Where the node's view says that the member of this name is.
    Named(String),
    /// Everywhere.
    Anywhere,
}

/// Who can be named as a peer of a fault.
pub trait Whom {
    /// Where it is.
    fn place(&self) -> Place;
}

impl Whom for SocketAddr {
    fn place(&self) -> Place {
        Place::At(*self)
    }
}

impl Whom for NodeId {
    fn place(&self) -> Place {
        Place::Of(self.clone())
    }
}

impl Whom for str {
    fn place(&self) -> Place {
        Place::Named(self.to_owned())
    }
}

impl Whom for String {
    fn place(&self) -> Place {
        Place::Named(self.clone())
    }
}

impl Whom for Peer {
    fn place(&self) -> Place {
        Place::Of(self.id().clone())
    }
}

impl Whom for Member {
    fn place(&self) -> Place {
        Place::At(self.addr)
    }
}

impl Whom for Cluster {
    fn place(&self) -> Place {
        Place::At(self.view().local().addr)
    }
}

impl Whom for Everyone {
    fn place(&self) -> Place {
        Place::Anywhere
    }
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { shared: Arc::new(Shared::new(seed)), node: None }
    }

    /// The same, for whoever knows names.
    pub(crate) fn of(&self, node: Handle) -> Self {
        Self { shared: self.shared.clone(), node: Some(node) }
    }

    /// Cuts a peer off, both ways: datagrams vanish, streams stand still and say nothing of that, nobody gets through.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn cut<W: Whom + ?Sized>(&self, who: &W) -> Result<(), NoSuchPeer> {
        self.with(who)?.cut();
        Ok(())
    }

    /// Ends all faults with a peer, both ways; with [`Everyone`], all that there are. What was held up or held back goes
    /// on; what has vanished does not come back.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn mend<W: Whom + ?Sized>(&self, who: &W) -> Result<(), NoSuchPeer> {
        self.with(who)?.mend();
        Ok(())
    }

    /// Lets the streams with a peer stand still, both ways, and dials wait. Datagrams go on, so that it stays a member.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn pause<W: Whom + ?Sized>(&self, who: &W) -> Result<(), NoSuchPeer> {
        self.with(who)?.change(|rules| rules.paused = true);
        Ok(())
    }

    /// Ends a pause, and nothing else.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn resume<W: Whom + ?Sized>(&self, who: &W) -> Result<(), NoSuchPeer> {
        self.with(who)?.change(|rules| rules.paused = false);
        Ok(())
    }

    /// Both directions between the node and a peer.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn with<W: Whom + ?Sized>(&self, who: &W) -> Result<Way, NoSuchPeer> {
        self.way(who, &Direction::BOTH)
    }

    /// What the node says to a peer.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn to<W: Whom + ?Sized>(&self, who: &W) -> Result<Way, NoSuchPeer> {
        self.way(who, &[Direction::To])
    }

    /// What a peer says to the node.
    ///
    /// # Errors
    /// [`NoSuchPeer`].
    pub fn from<W: Whom + ?Sized>(&self, who: &W) -> Result<Way, NoSuchPeer> {
        self.way(who, &[Direction::From])
    }

    /// What the faults have done so far.
    #[must_use]
    pub fn stats(&self) -> FaultStats {
        self.shared.with(|state| state.stats)
    }

    /// The node has read that a stream which came from there is of this peer. It goes on when that gets through.
    pub(crate) async fn met(&self, seen: SocketAddr, peer: SocketAddr) {
        self.shared.met(seen, peer).await;
    }

    fn way<W: Whom + ?Sized>(&self, who: &W, ways: &'static [Direction]) -> Result<Way, NoSuchPeer> {
        let peer = match who.place() {
            Place::Anywhere => None,
            Place::At(addr) => Some(addr),
            Place::Of(id) => Some(self.run_of(&id).ok_or_else(|| NoSuchPeer(id.to_string()))?),
            Place::Named(name) => {
                let view = self.node.as_ref().map(Handle::view);
                let member = view.as_ref().and_then(|view| view.get(&name));
                Some(member.map(|member| member.addr).ok_or_else(|| NoSuchPeer(format!("{name:?}")))?)
            }
        };
        Ok(Way { shared: self.shared.clone(), peer: peer.map(canonical), ways })
    }

    /// Where a run is, or was when a fault was last set for it: who is cut off for long is forgotten by the view.
    fn run_of(&self, id: &NodeId) -> Option<SocketAddr> {
        let view = self.node.as_ref().map(Handle::view);
        let member = view.as_ref().and_then(|view| view.get(id.name())).filter(|member| member.id == *id);
        self.shared.with(|state| match member {
            Some(member) => {
                state.named.insert(id.clone(), member.addr);
                Some(member.addr)
            }
            None => state.named.get(id).copied(),
        })
    }
}

/// One direction between a node and a peer, or both: [`Faults::to`], [`Faults::from`], [`Faults::with`]. Faults last
/// until they are set anew, or [mended](Self::mend).
#[derive(Clone, Debug)]
#[must_use = "nothing is wrong with it so far"]
pub struct Way {
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    ways: &'static [Direction],
}

impl Way {
    fn change(&self, change: impl FnMut(&mut Rules)) -> &Self {
        self.shared.change(|state| state.set(self.peer, self.ways, change));
        self
    }

    /// Nothing gets through: datagrams vanish, streams stand still and say nothing of that. Dials wait, whichever
    /// direction it is: they take a question and an answer.
    pub fn cut(&self) -> &Self {
        self.change(|rules| rules.cut = true)
    }

    /// Streams stand still, as with a process that hangs: what is said waits until nothing more fits between the two.
    /// Datagrams and dials pass.
    pub fn stall(&self) -> &Self {
        self.change(|rules| rules.stalled = true)
    }

    /// Each datagram, and each piece of a stream, takes so long, chosen evenly. If the end is not above the start, it is
    /// always the start. At most 4,096 datagrams are held up at once; others are dropped and counted.
    pub fn delay(&self, range: Range<Duration>) -> &Self {
        self.change(|rules| rules.delay = Some(range.clone()))
    }

    /// How probable it is that a datagram is lost, 0 to 1.
    pub fn loss(&self, probability: f64) -> &Self {
        self.change(|rules| rules.loss = probability)
    }

    /// How probable it is that a datagram comes twice, 0 to 1.
    pub fn duplicate(&self, probability: f64) -> &Self {
        self.change(|rules| rules.duplicate = probability)
    }

    /// Each stream carries so many bytes a second.
    pub fn throttle(&self, bytes: NonZeroU64) -> &Self {
        self.change(|rules| rules.rate = Some(bytes))
    }

    /// Ends all faults of this way; of [`Everyone`] in both directions, all that there are.
    pub fn mend(&self) -> &Self {
        if self.peer.is_none() && self.ways.len() == 2 {
            self.shared.change(|state| state.clear());
            return self;
        }
        self.change(|rules| *rules = Rules::default())
    }

    /// Breaks the streams that are open, whatever the direction: reads and writes here are
    /// [`ConnectionReset`](std::io::ErrorKind::ConnectionReset). The other side sees what the system makes of a socket
    /// that is closed: an end, or a reset. Says how many there were.
    pub fn reset(&self) -> usize {
        self.shared.change(|state| state.streams_with(self.peer).map(|open| open.reset = true).count())
    }

    /// Ends the streams that are open as soon as they have carried so many more bytes in this direction: both sides see
    /// their end there. Says how many there were.
    pub fn truncate(&self, bytes: u64) -> usize {
        self.limit(bytes, Ends::Stream)
    }

    /// Ends this direction of the streams that are open, and not the other. Says how many there were.
    pub fn half_close(&self) -> usize {
        self.limit(0, Ends::Direction)
    }

    fn limit(&self, left: u64, ends: Ends) -> usize {
        self.shared.change(|state| {
            let limited = state.streams_with(self.peer).map(|open| {
                for way in self.ways {
                    open.budgets[*way as usize] = Some(Budget { left, ends });
                }
            });
            limited.count()
        })
    }
}

/// What faults have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultStats {
    /// Datagrams that met a cut.
    pub cut: u64,
    /// Datagrams that were lost by chance.
    pub lost: u64,
    /// Datagrams that went, or came, twice.
    pub duplicated: u64,
    /// Datagrams that were held up.
    pub delayed: u64,
    /// Datagrams that were dropped since too many were held up, or since the network took none when they were due.
    pub overflowed: u64,
    /// Streams that were closed in a cut and whose end the peer has heard of all the same: more than 256 were.
    pub forgotten: u64,
}

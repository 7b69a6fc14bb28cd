//! The handle on a node.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use actix::{Addr, Arbiter, Message, Recipient};
use bytes::Bytes;
use futures_core::Stream;
use memberlist_protocol::{
    accusation::Why,
    keyring::Sealing,
    member::{NodeId, canonical},
    view::View,
    wire::{
        codec,
        guard::Labels,
        message::{Address, Message as Wire, UserBroadcast},
        order::Order,
        shared::MAX_KEY,
    },
};
use tokio::sync::oneshot;

use crate::{
    builder::ClusterBuilder,
    casts::{Cast, Target},
    errors::{AskError, ConfigError, JoinError, NotSent, SendError, Stopped, UpdateError},
    events::{MemberEvent, NodeEvent, Pinged, Replay, UserBytes},
    handle::Handle,
    inbox::Refused,
    join::{Joined, Until},
    keyring::Keyring,
    link::LinkEvent,
    messages::{Then, ToDelegates, ToDetector, ToQueue},
    metrics::Metrics,
    node::{LeaveReport, Node},
    peer::{self, Outcome, Peer},
    pump::{self, Events, Forgets, Of, Overflow, Pump, Queue, Subscribing, Subscription},
    questions::{Merge, SharedState, Sharing},
    ring::Doors,
    rollout::{self, Rollout},
    routes::Serving,
    select::{self, Fanout, Select},
    typed::{self, FromPeer, PeerMessage},
    uploads::Upload,
};

/// States that wait to be merged.
const HANDLER_QUEUE: usize = 1024;

/// Bytes of a broadcast's name and of those that it replaces, one more for each.
const MAX_NAMES: usize = 4096;

/// Bytes of those, and of answered probes that wait for one subscriber.
const HANDLER_BYTES: usize = 4 << 20;

/// A node of a cluster, and what it knows of the others. Clones are the same node; when the last one is
/// dropped, the node shuts down in the background, without a leave.
///
/// ```
/// # actix::System::new().block_on(async {
/// use actix_memberlist::{Cluster, Config, Until};
/// use std::time::Duration;
///
/// let start = |name: &str| Cluster::builder(name).config(Config::local()).bind("127.0.0.1:0".parse().unwrap()).start();
/// let (a, b) = (start("a").await?, start("b").await?);
/// b.join(&[&a.view().local().addr.to_string()]).await?;
/// assert!(a.ready(Until::Members(2), Duration::from_secs(5)).await?);
/// b.leave(Duration::from_secs(1)).await?;
/// b.shutdown().await;
/// # a.shutdown().await;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Cluster(Arc<Owner>);

struct Owner {
    handle: Handle,
    node: Addr<Node>,
    thread: Mutex<Option<Arbiter>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !*self.handle.doors().closing.borrow() {
            let node = self.handle.view().local().id.clone();
            tracing::warn!(%node, "the last handle was dropped: the node shuts down without a leave");
            self.handle.stop();
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let view = self.view();
        f.debug_struct("Cluster")
            .field("node", &view.local().id)
            .field("members", &view.alive_count())
            .finish()
    }
}

/// A user's broadcast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broadcast {
    /// What is to be told. Up to [`Config::gossiped_broadcast_size`](crate::Config::gossiped_broadcast_size)
    /// it goes by gossip; larger ones go over a stream to each member, at most
    /// [`Config::max_message_size`](crate::Config::max_message_size).
    pub bytes: Bytes,
    /// Under this name it replaces an older one that still waits here, and is replaced by a newer one. With
    /// `replaces` it has at most 4,096 bytes, one more for each name.
    pub name: Option<String>,
    /// Broadcasts of these names that still wait here are dropped as well: memberlist's `Invalidates`.
    pub replaces: Vec<String>,
}

impl Broadcast {
    /// Without a name: nothing replaces it.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), ..Self::default() }
    }
}

/// The fate of a broadcast: ready when this node has sent it as often as it should, or when it will not. One
/// that goes over streams is done when each member has it or could not be reached; how many those were is
/// counted as `undelivered`. One that goes by gossip waits for as long as this node sends nothing: with gossip and
/// probes off that is until others ask. Dropping it changes nothing.
#[derive(Debug)]
pub struct Spread(Outcome);

impl Future for Spread {
    type Output = Result<(), NotSent>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Cluster {
    /// A node called `name`, to be set up and started. The name must be unique in the cluster: 1 to 255
    /// bytes without control characters.
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder::new(name.into())
    }

    pub(crate) fn new(doors: Arc<Doors>, node: Addr<Node>, thread: Option<Arbiter>) -> Self {
        Self(Arc::new(Owner { handle: Handle::new(doors), node, thread: Mutex::new(thread) }))
    }

    fn handle(&self) -> &Handle {
        &self.0.handle
    }

    fn doors(&self) -> &Arc<Doors> {
        self.0.handle.doors()
    }

    /// The node as an actor: each of these methods as a message. The address does not keep the node running.
    pub fn addr(&self) -> Addr<Node> {
        self.0.node.clone()
    }

    /// Joins the cluster of these seeds. A seed is
    ///
    /// | form | such as |
    /// |---|---|
    /// | an address | `10.0.0.1`, `10.0.0.1:7946`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:7946` |
    /// | a host | `db`, `db.example`, `db.example:7946`, `db.example.` (without search domains) |
    /// | a service, whose SRV records say hosts and ports | `_gossip._tcp.example` |
    ///
    /// each with the name of a node in front or not: `a/10.0.0.1:7946`. That name is for the reader; whoever
    /// answers counts. Without a port it is this node's own.
    ///
    /// Names are looked up by the node's [`Resolver`](crate::Resolver), which may take three quarters of
    /// [`Config::join_timeout`](crate::Config::join_timeout). A name may have many addresses, of both families:
    /// all are tried, but at most 64, chosen by chance, and one that is reached is enough.
    ///
    /// All seeds are tried at once, within [`Config::join_timeout`](crate::Config::join_timeout), and one that
    /// is reached is enough; the future is ready when the last one is through or has failed. Dropping it cancels
    /// what is not done yet. A node that should find its seeds later as well is given
    /// [sources](crate::ClusterBuilder::seeds) of them.
    ///
    /// After a [`leave`](Cluster::leave) the node comes back as another run: with a new [`NodeId`], which the
    /// others see join, and with its tags and metadata as they were. It is back from then on, whether or not a
    /// seed is reached, as after a start; only when each seed is misspelt it stays away. Of a leave and a join
    /// that are under way at once, the one that was called last holds.
    ///
    /// [`NodeId`]: crate::NodeId
    ///
    /// # Errors
    /// [`JoinError`] when nobody was reached; it names each seed and why.
    pub async fn join(&self, seeds: &[&str]) -> Result<Joined, JoinError> {
        self.handle().join(seeds.iter().map(|seed| (*seed).to_owned()).collect()).await
    }

    /// Waits until there are as many members as wanted, or nothing changes any more, for at most `within`;
    /// says whether it came to that.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ready(&self, until: Until, within: Duration) -> Result<bool, Stopped> {
        self.handle().ready(until, within).await
    }

    /// What goes wrong between this node and its peers, on whatever network: nothing, until a test says so.
    ///
    /// With the feature `testing` every node stands behind a [`Faulty`](crate::network::faulty::Faulty) network, so that
    /// the program under test need not be changed. Without a [`seed`](ClusterBuilder::seed) chance begins with 0.
    #[cfg(feature = "testing")]
    pub fn faults(&self) -> crate::network::faulty::Faults {
        self.doors().hooks.faults.clone().unwrap_or_default().of(self.handle().clone())
    }

    /// All members as they are. It costs no message; after a shutdown it is the last view.
    pub fn view(&self) -> View {
        self.handle().view()
    }

    /// The last accusations against a member: by whom, who confirmed, on what evidence, how it ended.
    pub fn why(&self, name: &str) -> Option<Why> {
        self.doors().history().of(name).cloned()
    }

    /// Local health: 0 is good; each point makes this node slower to accuse others.
    pub fn health(&self) -> u8 {
        u8::try_from(self.doors().counters.health.load(Relaxed)).unwrap_or(u8::MAX)
    }

    /// The counters as they stand.
    pub fn metrics(&self) -> Metrics {
        self.doors().metrics()
    }

    /// Sets the metadata that the others see. It is done when this node has it and has begun to tell it.
    ///
    /// # Errors
    /// [`UpdateError`]; nothing has changed then.
    pub async fn set_meta(&self, meta: Bytes) -> Result<(), UpdateError> {
        self.handle().update(None, Some(meta)).await
    }

    /// Sets the tags that the others see, in place of those before.
    ///
    /// # Errors
    /// [`UpdateError`]; nothing has changed then.
    pub async fn set_tags(&self, tags: BTreeMap<String, String>) -> Result<(), UpdateError> {
        self.handle().update(Some(tags), None).await
    }

    /// Sets what comes with this node's answers to the pings of other members, for those of them who
    /// [listen](Cluster::subscribe_pings): at most 512 bytes, none at first. Strangers do not get it, nor does
    /// a member whose packets come from another address than the one that it is known by.
    ///
    /// # Errors
    /// [`UpdateError::TooLarge`], [`UpdateError::Stopped`].
    pub fn set_ping_payload(&self, payload: Bytes) -> Result<(), UpdateError> {
        self.handle().set_ping_payload(payload)
    }

    /// Pings whoever goes by `name` at `addr`, member or not, and says how long the answer took. It waits for
    /// [`Config::probe_timeout`](crate::Config::probe_timeout). Whatever comes of it, nobody is held for
    /// anything else than before.
    ///
    /// A node of another name does not answer. Of a member any run answers: compare the view to know which one
    /// is there.
    ///
    /// # Errors
    /// [`AskError::Timeout`] without an answer; [`AskError::Target`] for a name or an address that no node can
    /// have; [`AskError::NotSent`] when the network did not take the ping, or the answer was lost in the node;
    /// [`AskError::Send`] when more than 1,024 pings wait for their answers, or after a shutdown.
    pub async fn ping(&self, name: &str, addr: SocketAddr) -> Result<Duration, AskError> {
        self.handle().ping(name, addr).await
    }

    /// This node's keys, if it was started with any.
    pub fn keyring(&self) -> Option<Keyring> {
        self.doors().admission.keyring.clone()
    }

    /// What this node does with its keys; without keys [`Sealing::Off`].
    pub fn sealing(&self) -> Sealing {
        let admission = &self.doors().admission;
        admission.keyring.as_ref().map_or(Sealing::Off, |_| admission.read().sealing)
    }

    /// Seals more or less than before, on this node alone; without keys that changes nothing. It begins with what
    /// [`Config::gossip_verify_outgoing`](crate::Config::gossip_verify_outgoing) and
    /// [`gossip_verify_incoming`](crate::Config::gossip_verify_incoming) say. Nothing checks here, as the start does,
    /// whether the node can be reached from outside its host: below [`Sealing::Required`] whoever reaches it can
    /// join and forge.
    pub fn set_sealing(&self, sealing: Sealing) {
        self.doors().admission.set_sealing(sealing);
    }

    /// The label that this node says, and others that it hears.
    pub fn labels(&self) -> (String, Vec<String>) {
        let labels = self.doors().admission.read().labels;
        (labels.own, labels.accepted)
    }

    /// Says another label from now on, and hears these besides, on this node alone.
    ///
    /// # Errors
    /// [`ConfigError`](crate::ConfigError) for a label above 255 bytes, or above 32 bytes and above the longest that
    /// the node was started with: packets have room for no more; and for more than 16 labels.
    pub fn set_labels(&self, own: &str, accept: &[&str]) -> Result<(), ConfigError> {
        let accepted = accept.iter().map(|label| (*label).to_owned()).collect();
        self.doors().admission.set_labels(Labels { own: own.to_owned(), accepted })
    }

    /// Takes a running cluster from plain to sealed: all nodes have the key that this one has in use, and are
    /// [`Sealing::Off`] so far; all seal; then all require seals. Those who do more already are left as they are. It
    /// works as [`Keyring::rotate_cluster`] does, but for newcomers: nobody tells them. So start those that come
    /// later, or come back, with [`Config::gossip_verify_outgoing`](crate::Config::gossip_verify_outgoing) and
    /// [`gossip_verify_incoming`](crate::Config::gossip_verify_incoming) as all have them at the end.
    ///
    /// # Errors
    /// The step that does not hold everywhere, where it does not, and why.
    pub async fn seal_cluster(&self, within: Duration) -> Result<Rollout, Rollout> {
        let steps = self.keyring().map(|ring| rollout::to_seals(&ring)).unwrap_or_default();
        self.roll(steps, within).await
    }

    /// Takes a running, sealed cluster to another label: all hear it too, all say it, all hear it alone. It works
    /// as [`Keyring::rotate_cluster`] does.
    ///
    /// # Errors
    /// The step that does not hold everywhere, where it does not, and why.
    pub async fn relabel_cluster(&self, label: &str, within: Duration) -> Result<Rollout, Rollout> {
        self.roll(rollout::to_label(label), within).await
    }

    pub(crate) async fn roll(&self, steps: Vec<Order>, within: Duration) -> Result<Rollout, Rollout> {
        let local = self.view().local().id.clone();
        let failed = |why: &str| Rollout::impossible(local.clone(), why);
        if self.keyring().is_none() {
            return Err(failed("without a key nobody follows orders"));
        }
        let rolled = self.handle().work(rollout::roll(self.doors().clone(), steps, within)).await;
        rolled.unwrap_or_else(|_| Err(failed("this node is busy, or has stopped")))
    }

    /// Declares a dead member to have left: it will not come back. All nodes are told, and count it as left
    /// from then on, with [`Evidence::ForceLeave`](crate::Evidence::ForceLeave); its name may be taken at any
    /// address. Saying it of one that has left is fine.
    ///
    /// The word does not keep anybody out. If the member runs after all, as on the other side of a partition,
    /// it hears of the word when the two sides meet, refutes it as any accusation, and is back with a higher
    /// incarnation; so is one that is started again. On that side it may count as left for a moment.
    ///
    /// # Errors
    /// [`UpdateError::Unknown`], [`UpdateError::StillAlive`] for one that is alive or suspect here, and for
    /// this node itself; [`UpdateError::Left`] when this node has left. Nothing has changed then.
    pub async fn force_leave(&self, name: &str) -> Result<(), UpdateError> {
        self.handle().force_leave(name.to_owned()).await
    }

    /// Leaves the cluster: the others hold this node for left, not for dead. It is done when the farewell is
    /// out, and goes on answering until [`Cluster::shutdown`]. Leaving twice says farewell twice. News about
    /// this node that has not gone out yet gives way to the farewell. A [`join`](Cluster::join) brings it back.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn leave(&self, within: Duration) -> Result<LeaveReport, Stopped> {
        self.handle().leave(within).await
    }

    /// Stops the node, without a word to the others, and waits until its sockets are closed and its thread
    /// has ended. Every call after that is an error value; the view stays as it was.
    pub async fn shutdown(&self) {
        self.handle().stop();
        let mut done = self.doors().done.follow();
        let _ = done.until(|done| *done).await;
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Waiting for a thread blocks, so another one does it.
            let (sender, ended) = oneshot::channel();
            let waits = std::thread::Builder::new().spawn(move || {
                let _ = thread.join();
                let _ = sender.send(());
            });
            if waits.is_ok() {
                let _ = ended.await;
            }
        }
    }

    /// Sends each member event to an actor. It gets what `replay` says first, then events whose numbers
    /// follow each other; if it lags behind by more than
    /// [`Config::subscriber_queue_depth`](crate::Config::subscriber_queue_depth), a snapshot in place of what
    /// it missed.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn subscribe(&self, to: Recipient<MemberEvent>, replay: Replay) -> Result<Subscription, Stopped> {
        self.handle().subscribe(to, replay)
    }

    /// Sends an actor what becomes of the node itself.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn subscribe_node(&self, to: Recipient<NodeEvent>) -> Result<Subscription, Stopped> {
        let doors = self.doors();
        let queue = Queue::new(doors.config.subscriber_queue_depth, usize::MAX, Overflow::Refuse);
        let number = doors.number();
        let pump: Pump = Box::pin(pump::pump(queue.clone(), to, doors.clone(), |_| 0));
        doors.delegates.insist(ToDelegates::Run(pump)).map_err(|_| Stopped)?;
        doors.node_events.add(number, queue, Some(NodeEvent::Stopped));
        let listeners: Arc<dyn Forgets> = doors.node_events.clone();
        Ok(Subscription::new(number, Of::Listeners(Arc::downgrade(&listeners))))
    }

    /// Tells an actor what becomes of the links to peers: see [`LinkEvent`]. It may have
    /// [`Config::subscriber_queue_depth`](crate::Config::subscriber_queue_depth) waiting; beyond that the newest
    /// are dropped and counted. What is told when is the node's own affair: a link that has nothing to say has no
    /// connection.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn subscribe_links(&self, to: Recipient<LinkEvent>) -> Result<Subscription, Stopped> {
        let doors = self.doors();
        let queue = Queue::new(doors.config.subscriber_queue_depth, usize::MAX, Overflow::Refuse);
        let number = doors.number();
        let pump: Pump = Box::pin(pump::pump(queue.clone(), to, doors.clone(), |_| 0));
        doors.delegates.insist(ToDelegates::Run(pump)).map_err(|_| Stopped)?;
        doors.link_events.add(number, queue, None);
        let listeners: Arc<dyn Forgets> = doors.link_events.clone();
        Ok(Subscription::new(number, Of::Listeners(Arc::downgrade(&listeners))))
    }

    /// Sends an actor each answer to this node's probes that came straight and in time: the round-trip time, and
    /// what the member has [set](Cluster::set_ping_payload) to come with it. It may have
    /// [`Config::subscriber_queue_depth`](crate::Config::subscriber_queue_depth) waiting; beyond that the newest
    /// are dropped and counted. Answers to [`Cluster::ping`] are not among them.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn subscribe_pings(&self, to: Recipient<Pinged>) -> Result<Subscription, Stopped> {
        let doors = self.doors();
        let queue = Queue::new(doors.config.subscriber_queue_depth, HANDLER_BYTES, Overflow::Refuse);
        let number = doors.number();
        let pump: Pump = Box::pin(pump::pump(queue.clone(), to, doors.clone(), |m: &Pinged| m.payload.len()));
        let listening = Subscribing { number, queue: Some(queue), replay: Replay::None, pump: Some(pump) };
        doors.delegates.insist(ToDelegates::Listen(listening)).map_err(|_| Stopped)?;
        Ok(Subscription::new(number, Of::Delegates(Arc::downgrade(&doors.delegates))))
    }

    /// The member events as a stream, as [`Cluster::subscribe`] sends them. It ends with the node.
    pub fn events(&self, replay: Replay) -> impl Stream<Item = MemberEvent> + Send + use<> {
        let mut stream = None;
        let (_, subscribed) = self.handle().events_with(replay, |events| {
            stream = Some(events);
            None
        });
        drop(subscribed);
        EventStream(stream)
    }

    /// Sends an actor the messages of one type that other nodes' programs send to this node, ask it or broadcast; each
    /// result goes back to whoever has asked. For each [`KIND`](PeerMessage::KIND) there is one actor, also if some
    /// are served with [`serve_from`](Cluster::serve_from): a later one takes the place of an earlier one, which
    /// still gets what waits for it, but nothing that comes after. If the later one's subscription ends, nobody
    /// serves the KIND.
    ///
    /// 1,024 messages or 4 MiB may wait for the actor, and 64 or 4 MiB be in its mailbox, whatever the
    /// capacity of that is; beyond that they are refused, counted as
    /// `memberlist_dropped{reason="handler_busy"}`, and their senders told. However slow the actor is, neither the
    /// node nor other handlers wait for it.
    ///
    /// Each message is handled at most once, in the order in which one peer has sent them on one
    /// [`Lane`](crate::Lane). One whose handler panics is lost, and so is what waits when the actor stops; whoever has
    /// asked something gets [`AskError::HandlerGone`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve<M: PeerMessage>(&self, to: Recipient<M>) -> Result<Subscription, Stopped> {
        typed::check::<M>();
        self.open(|number| Serving::typed(number, to))
    }

    /// The same for an actor that wants to know who sends: each message comes as a [`FromPeer`]. The sender of a
    /// broadcast is who has broadcast it first.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve_from<M: PeerMessage>(&self, to: Recipient<FromPeer<M>>) -> Result<Subscription, Stopped> {
        typed::check::<M>();
        self.open(|number| Serving::from_peer(number, to))
    }

    /// Gives an actor the messages of a type that have a body behind them ([`Peer::upload`]), each as an [`Upload`] that
    /// begins; 64 of them may have no answer yet, more are refused. The answer may come before the body's end: then
    /// the rest is not sent. Other messages of the type go to the handler of [`serve`](Self::serve).
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve_upload<M: PeerMessage>(&self, to: Recipient<Upload<M>>) -> Result<Subscription, Stopped> {
        typed::check::<M>();
        self.open(|number| Serving::upload(number, to))
    }

    /// Sends an actor the bytes that users of other nodes broadcast, or send to this node: those without a type.
    /// 1,024 messages or 4 MiB may wait for it, and 64 or 4 MiB be in its mailbox; beyond that the newest are
    /// dropped and counted. Several handlers get each message each.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve_bytes(&self, to: Recipient<UserBytes>) -> Result<Subscription, Stopped> {
        self.open(|number| Serving::bytes(number, to))
    }

    fn open(&self, serving: impl FnOnce(u64) -> Serving) -> Result<Subscription, Stopped> {
        let doors = self.doors();
        let number = doors.number();
        doors.delegates.insist(ToDelegates::Serve(serving(number))).map_err(|_| Stopped)?;
        Ok(Subscription::new(number, Of::Delegates(Arc::downgrade(&doors.delegates))))
    }

    /// Shares the state of an actor: other nodes get it, and it gets theirs. For each key there is one actor;
    /// a later one takes the place of an earlier one. States that wait to be merged may be 1,024 or 4 MiB.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn share<S: SharedState>(&self, to: Addr<S>) -> Result<Subscription, Stopped> {
        const { assert!(!S::KEY.is_empty() && S::KEY.len() <= MAX_KEY, "a key has 1 to 255 bytes") };
        let doors = self.doors();
        let merges = Queue::new(HANDLER_QUEUE, HANDLER_BYTES, Overflow::Refuse);
        let number = doors.number();
        let (export, merge) = (to.clone().recipient(), to.recipient());
        let pump: Pump =
            Box::pin(pump::pump(merges.clone(), merge, doors.clone(), |m: &Merge| m.state.len()));
        let sharing = Sharing { number, key: S::KEY, export, merges, pump: Some(pump) };
        doors.delegates.insist(ToDelegates::Share(sharing)).map_err(|_| Stopped)?;
        Ok(Subscription::new(number, Of::Delegates(Arc::downgrade(&doors.delegates))))
    }

    /// The other member of that name and run, if it is there.
    pub fn peer(&self, id: &NodeId) -> Option<Peer> {
        let member = peer::present(self.doors(), id).filter(|member| member.id != self.view().local().id)?;
        Some(Peer::new(member.id.clone(), self.handle().clone()))
    }

    /// All other members that are there.
    pub fn peers(&self) -> Vec<Peer> {
        let view = self.view();
        let others = view.alive().filter(|member| member.id != view.local().id);
        others.map(|member| Peer::new(member.id.clone(), self.handle().clone())).collect()
    }

    /// Sends bytes in one datagram to whoever is at `addr`, member or not; that node's handlers of users'
    /// bytes get them. At most once, in no order, perhaps never. memberlist's `SendToAddress`.
    ///
    /// A node that seals what it sends asks first, with a ping, which run of which node is there, and seals the
    /// bytes for that one alone: who has recorded them cannot bring them to others. They are lost
    /// (`memberlist_dropped{reason="nobody_there"}`) if no answer comes within the probe timeout.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] for what no datagram has room for, [`SendError::Full`], [`SendError::Stopped`].
    pub fn send_to_address(&self, addr: SocketAddr, bytes: Bytes) -> Result<(), SendError> {
        let (doors, addr) = (self.doors(), canonical(addr));
        if !doors.config.allows(addr.ip()) {
            return Err(SendError::NotAllowed(addr));
        }
        let to = Target { addr, id: None, run: NodeId::ANY_RUN };
        let max = doors.max_broadcast.load(Relaxed);
        if doors.admission.seals_out() {
            doors.casts.check(&to, "", bytes.len(), max)?;
            let ask =
                ToDetector::Ask { target: NodeId::anybody(), addr, then: Then::Cast(Cast { to, bytes }) };
            return doors.detector.command(ask).map_err(SendError::from);
        }
        doors.casts.push(&to, "", &bytes, max)
    }

    /// Sends a message to each of the members that `to` names, over their links. Nobody waits for anybody: who is
    /// slow or dead has a queue of its own.
    pub fn send_all<M: PeerMessage>(&self, to: Select, msg: &M) -> Fanout {
        select::send_all(self.peers_of(&to), msg)
    }

    /// Asks each of the members that `to` names, all at once, and gives the answers as they come. It ends with the
    /// last one, or `within` that time: who has not answered by then is [`AskError::Timeout`].
    pub fn ask_all<M: PeerMessage>(
        &self,
        to: Select,
        msg: &M,
        within: Duration,
    ) -> impl Stream<Item = (NodeId, Result<M::Result, AskError>)> + Send + Unpin + use<M> {
        select::ask_all(self.peers_of(&to), msg, within)
    }

    fn peers_of(&self, to: &Select) -> Vec<Peer> {
        let view = self.view();
        let others = view.alive().filter(|member| member.id != view.local().id && to.names(member));
        others.map(|member| Peer::new(member.id.clone(), self.handle().clone())).collect()
    }

    /// Tells all members something by gossip. Each of their handlers gets it at most once; this node's own
    /// does not. Gossip reaches each member with high probability, not for sure. One that is larger than
    /// [`Config::gossiped_broadcast_size`](crate::Config::gossiped_broadcast_size) goes to each member over a
    /// stream instead, at most 256 of them and
    /// [`Config::peer_queue_bytes`](crate::Config::peer_queue_bytes) at once; its [`Spread`] is
    /// `Never(Busy)` beyond that.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] above [`Config::max_message_size`](crate::Config::max_message_size), or when it
    /// is to go by gossip and no packet has room for it, or its names take too much; [`SendError::Full`] when the node has too much
    /// to do, [`SendError::Stopped`].
    pub fn broadcast_bytes(&self, b: Broadcast) -> Result<Spread, SendError> {
        self.spread("", b)
    }

    /// The same with a message of a type, for the handlers of its KIND ([`Cluster::serve`]). Its
    /// [`LANE`](PeerMessage::LANE) does not matter, nor does any newer one replace it.
    ///
    /// # Errors
    /// Those of [`Cluster::broadcast_bytes`], and [`SendError::Encode`].
    pub fn broadcast<M: PeerMessage<Result = ()>>(&self, msg: &M) -> Result<Spread, SendError> {
        self.spread(M::KIND, Broadcast::new(typed::encode(msg)?))
    }

    fn spread(&self, kind: &'static str, b: Broadcast) -> Result<Spread, SendError> {
        let doors = self.doors();
        let origin = self.view().local().id.clone();
        let message = UserBroadcast { origin, id: doors.number(), kind: kind.into(), bytes: b.bytes };
        let names = b.name.iter().chain(&b.replaces).map(|name| name.len() + 1).sum();
        if names > MAX_NAMES {
            return Err(SendError::TooLarge { len: names, max: MAX_NAMES });
        }
        // It goes with the address of its sender in front.
        let address =
            Address::Broadcast { origin: message.origin.clone(), id: message.id, kind: message.kind.clone() };
        let around = codec::encode_address(&address).len();
        let (len, max) = (message.bytes.len(), doors.config.max_message_size.saturating_sub(around));
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        if len <= doors.config.gossiped_broadcast_size {
            let encoded = codec::encoded(&Wire::User(message.clone()), usize::MAX);
            let encoded = encoded.map_or(usize::MAX, |bytes| bytes.len());
            let max = doors.max_broadcast.load(Relaxed);
            if encoded > max {
                return Err(SendError::TooLarge { len, max: max.saturating_sub(encoded - len) });
            }
        }
        let (spread, fate) = oneshot::channel();
        let name = b.name.map(Arc::from);
        let queued = doors.queue.command(ToQueue::Broadcast { name, replaces: b.replaces, message, spread });
        match queued {
            Ok(()) => Ok(Spread(Outcome::new(fate, doors))),
            Err(Refused::Busy) => Err(SendError::Full),
            Err(Refused::Closed) => Err(SendError::Stopped),
        }
    }
}

struct EventStream(Option<Events>);

impl Stream for EventStream {
    type Item = MemberEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MemberEvent>> {
        match &mut self.0 {
            Some(events) => Pin::new(events).poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}

/// `Cluster` can be shared with every thread.
const _: () = {
    const fn shared<T: Send + Sync + Clone>() {}
    shared::<Cluster>();
    const fn message<T: Message + Send>() {}
    message::<MemberEvent>();
};

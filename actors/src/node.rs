//! How a node is put together, kept, and taken apart; and **Node**, its front door as an actor.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt, Addr, Context, Handler, Message, Recipient, ResponseActFuture, WrapFuture,
};
use bytes::Bytes;
use memberlist_protocol::{
    config::{Config, ConfigError},
    keyring::Sealing,
    member::{Member, NodeId, Tags, canonical, check_meta, check_name},
    members::Members as Table,
    probe::Detector,
    view::View,
    wire::{
        frame::Packer,
        guard::{Guard, Labels, SPARE_LABEL},
        message::{Ack, Message as Wire},
    },
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

#[cfg(feature = "tls")]
use crate::network::secured::Secured;
use crate::{
    advertise::{self, Advertised},
    delegates::{self, Delegates},
    detector::FailureDetector,
    discover::{self, MAX_SOURCES, Source},
    errors::{AskError, JoinError, StartError, Stopped, UpdateError},
    events::{MemberEvent, NodeEvent, Replay},
    handle::Handle,
    hooks::Hooks,
    join::Joined,
    keyring::{Admission, Keyring},
    logs::{self, Line, say},
    messages::{DELEGATES, DETECTOR, LAST_WORDS, NODE, QUEUE, STATE, TRANSPORT},
    metrics::up,
    network::Network,
    pump::Subscription,
    questions::Admit,
    queue::{self, BroadcastQueue},
    rejoin::{self, Notes},
    resolve::Resolver,
    ring::{Doors, Ring, Shared, now},
    routes::Routes,
    state::{self, NodeState},
    store::{self, Place},
    supervisor::{self, Child, Ended, Supervisor, watchdog::Pulse},
    transport::{self, Transport},
};

/// What a node is made from.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) config: Arc<Config>,
    pub(crate) bind: SocketAddr,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) labels: Labels,
    pub(crate) keyring: Option<Keyring>,
    pub(crate) plaintext: bool,
    pub(crate) meta: Bytes,
    pub(crate) tags: Tags,
    pub(crate) ping_payload: Bytes,
    pub(crate) network: Arc<dyn Network>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::Tls>,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) sources: Vec<Source>,
    pub(crate) store: Option<Place>,
    pub(crate) seed: Option<u64>,
    pub(crate) watchdog: bool,
    pub(crate) hooks: Hooks,
    pub(crate) admit: Option<Recipient<Admit>>,
}

impl Plan {
    /// Finds what cannot work before anything is bound, and says what the node is known by.
    pub(crate) fn check(&self) -> Result<Advertised, ConfigError> {
        self.config.validate()?;
        check_name(&self.name).map_err(|error| {
            let value: String = self.name.chars().take(40).collect();
            let value = format!("{value:?}, {} bytes", self.name.len());
            ConfigError::new("name", value, format!("1 to 255 bytes without control characters ({error})"))
        })?;
        check_meta(&self.meta, &self.tags).map_err(|error| {
            ConfigError::new(
                "meta",
                error.to_string(),
                "512 bytes together with the tags, 4 bytes each for those",
            )
        })?;
        if self.ping_payload.len() > Ack::MAX_PAYLOAD {
            return Err(ConfigError::new(
                "ping_payload",
                format!("{} bytes long", self.ping_payload.len()),
                format!("at most {} bytes", Ack::MAX_PAYLOAD),
            ));
        }
        self.labels.check()?;
        if self.sources.len() > MAX_SOURCES {
            let sources = format!("{} sources", self.sources.len());
            return Err(ConfigError::new("seeds", sources, format!("at most {MAX_SOURCES} sources")));
        }
        let advertised = advertise::settle(self.bind, self.advertise, &self.config, || self.network.host())?;
        // Who is told of the node counts, and so does who reaches it.
        let open = [advertised.addr, self.bind].into_iter().find(|addr| !canonical(*addr).ip().is_loopback());
        let Some(open) = open.filter(|_| !self.plaintext) else { return Ok(advertised) };
        if self.keyring.is_none() {
            return Err(ConfigError::new(
                "key",
                format!("none, and {open} is not on loopback{}", self.but_tls()),
                "off loopback with .key(..), or else with .plaintext(): whoever reaches the port can then join \
                 and forge",
            ));
        }
        if self.config.sealing() != Sealing::Required {
            return Err(ConfigError::new(
                "gossip_verify_incoming",
                format!("false, and {open} is not on loopback"),
                "off loopback true, or else with .plaintext(): whoever reaches the port can join and forge as long \
                 as what is not sealed is taken in",
            ));
        }
        Ok(advertised)
    }

    /// Every node of a test has faults, so that the program under test need not be changed for them.
    #[cfg(feature = "testing")]
    pub(crate) fn with_faults(mut self) -> Self {
        use crate::network::faulty::Faulty;
        let faults = self.network.faults().unwrap_or_else(|| {
            let faulty = Faulty::new(self.network.clone(), self.seed.unwrap_or_default());
            let faults = faulty.faults();
            self.network = Arc::new(faulty);
            faults
        });
        self.hooks.faults = Some(faults);
        self
    }

    #[cfg(not(feature = "testing"))]
    pub(crate) fn with_faults(self) -> Self {
        self
    }

    /// What whoever has given TLS, but no key, may not know.
    fn but_tls(&self) -> &'static str {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return " (TLS is for streams: datagrams need the key)";
        }
        ""
    }

    fn rng(&self) -> Result<Xoshiro256PlusPlus, StartError> {
        match self.seed {
            Some(seed) => Ok(Xoshiro256PlusPlus::seed_from_u64(seed)),
            None => Xoshiro256PlusPlus::try_from_rng(&mut rand::rngs::SysRng)
                .map_err(|error| StartError::Thread(std::io::Error::other(error.to_string()))),
        }
    }
}

/// A node that runs, and stops again unless somebody takes it.
pub(crate) struct Started(Option<(Arc<Doors>, Addr<Node>)>);

impl Started {
    /// The node, for good.
    pub(crate) fn take(mut self) -> Option<(Arc<Doors>, Addr<Node>)> {
        self.0.take()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some((doors, _)) = &self.0 {
            doors.stop.notify_one();
        }
    }
}

/// Binds, and starts the actors, on this thread. `own_thread` says whether the thread ends with the node.
pub(crate) async fn start(
    mut plan: Plan,
    advertised: Advertised,
    own_thread: bool,
) -> Result<Started, StartError> {
    let bind = plan.bind;
    let store = plan.store.take().map(store::Running::start).transpose().map_err(StartError::Thread)?;
    let remembered = match store {
        Some(store) => Some(rejoin::read(store, &plan.name, &plan.labels, &plan.config).await),
        None => None,
    };
    #[cfg(feature = "tls")]
    if let Some(tls) = plan.tls.take() {
        plan.network = Arc::new(Secured::new(plan.network, tls));
    }
    let endpoint = plan.network.bind(bind).await.map_err(|error| StartError::Bind(bind, error))?;
    let mut rng = plan.rng()?;
    let start = now();

    let bound = canonical(endpoint.local_addr());
    let mut addr = advertised.addr;
    if addr.port() == 0 {
        addr.set_port(bound.port());
    }
    if let Some(warning) = advertised.warning {
        tracing::warn!(%addr, "not everybody can reach the address that this node is known by: {warning}");
    }
    // Their threads end when this returns an error.
    let sources = plan.sources.into_iter().map(|source| source.start(plan.config.join_timeout));
    let sources: Vec<_> = sources.collect::<Result<_, _>>().map_err(StartError::Thread)?;
    let mut id = NodeId::drawn(plan.name.as_str(), &mut rng);
    let incarnation = match &remembered {
        Some(remembered) => {
            while Some(id.run()) == remembered.run {
                id = NodeId::drawn(plan.name.as_str(), &mut rng);
            }
            remembered.incarnation
        }
        None => 1,
    };
    let mut local = Member::new(id, addr, incarnation, start);
    local.meta = plan.meta;
    local.tags = plan.tags;
    local.versions = plan.config.versions();

    let members = Table::new(plan.config.clone(), local, rng.random());
    let view = members.view();
    // A generator of its own: what the handle draws, on whatever thread, does not shift what the node draws.
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(rng.clone().random());
    let searches: Vec<_> =
        sources.into_iter().map(|source| (source, Xoshiro256PlusPlus::from_rng(&mut chance))).collect();
    let chance_of_notes = remembered.is_some().then(|| Xoshiro256PlusPlus::from_rng(&mut chance));
    let gated = plan.admit.is_some();
    let sealing = plan.config.sealing();
    let keys = plan.keyring.as_ref().map(Keyring::list);
    let guard = Guard::new(&plan.config, plan.labels.clone(), keys.as_deref(), sealing)?;
    let max_label = plan.labels.longest().max(SPARE_LABEL);
    let admission = Admission::new(plan.keyring, plan.labels, sealing, max_label);
    let doors =
        Doors::new(plan.config.clone(), view.clone(), gated, plan.resolver, admission, chance, plan.hooks);
    let doors = Arc::new(doors);
    *doors.ping_payload() = plan.ping_payload;
    let detector = Detector::new(plan.config.clone(), start, &mut rng);
    let kept_state = Rc::new(RefCell::new(state::Kept::new(members, &mut rng, start)));
    let ring = Rc::new(Ring::new(doors.clone(), guard, endpoint, rng, detector));
    let kept_queue = Rc::new(RefCell::new(queue::Kept::new(&ring, start)));
    let kept_transport = Rc::new(RefCell::new(transport::Kept::new(&ring)));
    let kept_delegates = Rc::new(RefCell::new(delegates::Kept::new(view, plan.admit)));

    let supervisor = supervise(&ring, &kept_state, plan.watchdog);
    let _ = ring.supervisor.set(supervisor.clone());
    ring.spawn("logs", logs::tell(doors.clone()));
    // In the order in which they restart when all do; they stop in reverse.
    let (r, kept) = (ring.clone(), kept_state.clone());
    supervisor.supervise(STATE, 16, move || NodeState::new(r.clone(), kept.clone()));
    let (r, kept) = (ring.clone(), kept_queue);
    supervisor.supervise(QUEUE, 16, move || BroadcastQueue::new(r.clone(), kept.clone()));
    let r = ring.clone();
    supervisor.supervise(DETECTOR, 16, move || FailureDetector::new(r.clone()));
    let (r, kept) = (ring.clone(), kept_transport);
    supervisor.supervise(TRANSPORT, 16, move || Transport::new(r.clone(), kept.clone()));
    let (r, kept) = (ring.clone(), kept_delegates.clone());
    supervisor.supervise(DELEGATES, 16, move || Delegates::new(r.clone(), kept.clone()));
    let handle = Handle::new(doors.clone());
    let node = supervisor.supervise(NODE, 256, move || Node { handle: handle.clone() });

    let notes = match remembered {
        Some(remembered) => remembered.keep(&ring, chance_of_notes),
        None => None,
    };
    for (source, rng) in searches {
        ring.spawn("seeds", discover::search(doors.clone(), source, rng));
    }
    let keeper = keep(
        Closing { doors: doors.clone(), delegates: kept_delegates, routes: ring.routes.clone() },
        ring,
        notes,
        supervisor.clone(),
        own_thread,
    );
    supervisor.spawn("keeper", keeper);
    Ok(Started(Some((doors, node))))
}

/// The supervisor of a node's actors, whose events become the node's.
fn supervise(ring: &Shared, state: &Rc<RefCell<state::Kept>>, watchdog: bool) -> Supervisor {
    let pulse = watchdog.then(|| {
        let doors = Arc::downgrade(&ring.doors);
        let report = move |actor, since| {
            if let Some(doors) = doors.upgrade() {
                up(&doors.counters.stalls);
                say!(doors, Line::Stalled, warn, actor, ?since, "a handler of the node hangs");
                doors.node_events.tell(&NodeEvent::Stalled { actor, since });
            }
        };
        Pulse::watched(ring.config.stall_after, Box::new(report))
    });
    let (weak, state) = (Rc::downgrade(ring), Rc::downgrade(state));
    let observer = move |event| {
        let (Some(ring), Some(state)) = (weak.upgrade(), state.upgrade()) else { return };
        match event {
            supervisor::Event::Restarted { actor, panic, nth } => {
                let what = logs::text(panic.clone());
                say!(ring, Line::Panicked(actor), error, actor, panic = %what, nth, "an actor panicked and was restarted");
                ring.counters.restarted(actor);
                ring.counters.drop(crate::metrics::Lost::Panicked);
                let who = ring.view.borrow().local().id.clone();
                ring.hooks.record("restart", &who, actor.as_bytes());
                ring.node_events.tell(&NodeEvent::Restarted { actor, panic, nth });
            }
            supervisor::Event::AllRestarted => {
                say!(ring, Line::AllRestarted, error, "all actors were restarted");
            }
            supervisor::Event::TaskPanicked { task, panic } => {
                let panic = logs::text(panic);
                say!(ring, Line::Panicked(task), error, task, %panic, "a task panicked");
                ring.counters.drop(crate::metrics::Lost::Panicked);
            }
            supervisor::Event::GaveUp { actor, panic } => {
                let (node, panic) = (ring.logs.node(), logs::text(panic));
                tracing::error!(%node, actor, %panic, "panics too often: the node gives up");
                ring.node_events.tell(&NodeEvent::GaveUp { actor });
                say_farewell(&ring, &state);
            }
        }
    };
    Supervisor::with_pulse(ring.config.restarts.clone(), observer, pulse)
}

/// Tells some members that this node goes, past the actors, which may be the ones that fail.
fn say_farewell(ring: &Shared, state: &Rc<RefCell<state::Kept>>) {
    let Ok(state) = state.try_borrow() else { return };
    let view = ring.view.borrow().clone();
    let mut buf = vec![0; ring.config.udp_buffer_size];
    let mut packer = Packer::body(&mut buf);
    let farewell: Wire = state.farewell();
    if !packer.push(&farewell) {
        return;
    }
    let (Some(packet), Ok(mut rng)) = (packer.finish(), ring.rng.try_borrow_mut()) else { return };
    let limit = ring.config.retransmit_limit(view.alive_count()) as usize;
    let own = view.local().id.clone();
    let mut out = Vec::new();
    for member in view.roster().sample(limit, &mut *rng, |m| m.state.is_present() && m.id != own) {
        let run = Some(member.id.run());
        if ring.guard().wrap(own.run(), run, &packet, &mut out).is_ok() {
            let _ = ring.endpoint.try_send(&out, member.addr);
        }
    }
}

/// Closes the doors when the node ends, however that comes.
struct Closing {
    doors: Arc<Doors>,
    delegates: Rc<RefCell<delegates::Kept>>,
    routes: Rc<Routes>,
}

impl Closing {
    fn close(&self) {
        self.doors.close();
        if let Ok(mut delegates) = self.delegates.try_borrow_mut() {
            delegates.close();
        }
        self.routes.close();
        self.doors.node_events.close(Some(NodeEvent::Stopped));
        self.doors.link_events.close(None);
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.close();
        self.doors.done.replace(true);
    }
}

/// Waits for the end of the node, and ends it.
async fn keep(
    closing: Closing,
    ring: Shared,
    notes: Option<Rc<Notes>>,
    supervisor: Supervisor,
    own_thread: bool,
) {
    let ended = tokio::select! {
        biased;
        () = ring.doors.stop.notified() => {
            supervisor.stop().await;
            Ended::Stopped
        }
        ended = supervisor.ended() => ended,
    };
    ring.logs.last_words();
    tracing::debug!(node = %ring.logs.node(), ?ended, "the node has stopped");
    if let Ended::Panicked(panic) = &ended {
        let (node, panic) = (ring.logs.node(), logs::text(panic));
        tracing::error!(%node, %panic, "the supervisor panicked: the node stops");
        ring.node_events.tell(&NodeEvent::GaveUp { actor: "Supervisor" });
    }
    if let Some(notes) = notes {
        notes.last_words(&ring).await;
    }
    let mut pumps = ring.pumps.follow();
    drop(ring);
    closing.close();
    if own_thread {
        // Without the thread the last events would not come home.
        let _ = tokio::time::timeout(LAST_WORDS, pumps.until(|running| *running == 0)).await;
    }
    drop(closing);
    if own_thread {
        actix_rt::Arbiter::current().stop();
    }
}

/// The node as an actor: each method of the handle as a message.
///
/// After the node has stopped, messages to it are answered with `MailboxError::Closed`.
pub struct Node {
    handle: Handle,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

impl Actor for Node {
    type Context = Context<Self>;
}

impl actix::Supervised for Node {}

impl Child for Node {}

/// Joins a cluster; see [`Cluster::join`](crate::Cluster::join).
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<Joined, JoinError>")]
pub struct Join {
    /// Members to join through, such as `10.0.0.1:7946` or `db.example`.
    pub seeds: Vec<String>,
}

/// Leaves the cluster; see [`Cluster::leave`](crate::Cluster::leave).
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Result<LeaveReport, Stopped>")]
pub struct Leave {
    /// Time limit.
    pub within: Duration,
}

/// Asks for all members as they are; see [`Cluster::view`](crate::Cluster::view).
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Result<View, Stopped>")]
pub struct Members;

/// Sets this node's metadata; see [`Cluster::set_meta`](crate::Cluster::set_meta).
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<(), UpdateError>")]
pub struct SetMeta {
    /// At most 512 bytes together with the tags.
    pub meta: Bytes,
}

/// Sets this node's tags; see [`Cluster::set_tags`](crate::Cluster::set_tags).
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<(), UpdateError>")]
pub struct SetTags {
    /// At most 512 bytes together with the metadata, 4 bytes each for themselves.
    pub tags: Tags,
}

/// Sets what comes with this node's answers to pings; see
/// [`Cluster::set_ping_payload`](crate::Cluster::set_ping_payload).
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<(), UpdateError>")]
pub struct SetPingPayload {
    /// At most 512 bytes.
    pub payload: Bytes,
}

/// Pings somebody; see [`Cluster::ping`](crate::Cluster::ping).
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<Duration, AskError>")]
pub struct Ping {
    /// Who is meant.
    pub name: String,
    /// Where that is.
    pub addr: SocketAddr,
}

/// Declares a dead member to have left; see [`Cluster::force_leave`](crate::Cluster::force_leave).
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<(), UpdateError>")]
pub struct ForceLeave {
    /// Who.
    pub name: String,
}

/// Subscribes to member events; see [`Cluster::subscribe`](crate::Cluster::subscribe).
#[derive(Message)]
#[rtype(result = "Result<Subscription, Stopped>")]
pub struct Subscribe {
    /// Who is to get the events.
    pub to: Recipient<MemberEvent>,
    /// What comes first.
    pub replay: Replay,
}

impl std::fmt::Debug for Subscribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscribe").field("replay", &self.replay).finish_non_exhaustive()
    }
}

/// Stops the node without a word to the others; see [`Cluster::shutdown`](crate::Cluster::shutdown). The
/// answer comes when the stop has begun.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Shutdown;

/// What became of leaving.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaveReport {
    /// Whether the farewell was sent to others, or there were none.
    pub announced: bool,
    /// Messages that were still delivered.
    pub drained: u64,
    /// Messages that were given up.
    pub discarded: u64,
}

impl LeaveReport {
    pub(crate) fn new(announced: bool) -> Self {
        Self { announced, drained: 0, discarded: 0 }
    }
}

impl Handler<Join> for Node {
    type Result = ResponseActFuture<Self, Result<Joined, JoinError>>;
    fn handle(&mut self, m: Join, _: &mut Context<Self>) -> Self::Result {
        let handle = self.handle.clone();
        Box::pin(async move { handle.join(m.seeds).await }.into_actor(self))
    }
}

impl Handler<Leave> for Node {
    type Result = ResponseActFuture<Self, Result<LeaveReport, Stopped>>;
    fn handle(&mut self, m: Leave, _: &mut Context<Self>) -> Self::Result {
        let handle = self.handle.clone();
        Box::pin(async move { handle.leave(m.within).await }.into_actor(self))
    }
}

impl Handler<SetMeta> for Node {
    type Result = ResponseActFuture<Self, Result<(), UpdateError>>;
    fn handle(&mut self, m: SetMeta, _: &mut Context<Self>) -> Self::Result {
        let handle = self.handle.clone();
        Box::pin(
            async move { handle.update(None, Some(m.meta)).await }
                .into_actor(self)
                .map(|result, _, _| result),
        )
    }
}

impl Handler<SetTags> for Node {
    type Result = ResponseActFuture<Self, Result<(), UpdateError>>;
    fn handle(&mut self, m: SetTags, _: &mut Context<Self>) -> Self::Result {
        let handle = self.handle.clone();
        Box::pin(async move { handle.update(Some(m.tags), None).await }.into_actor(self))
    }
}

impl Handler<SetPingPayload> for Node {
    type Result = Result<(), UpdateError>;
    fn handle(&mut self, m: SetPingPayload, _: &mut Context<Self>) -> Self::Result {
        self.handle.set_ping_payload(m.payload)
    }
}

impl Handler<Ping> for Node {
    type Result = ResponseActFuture<Self, Result<Duration, AskError>>;
    fn handle(&mut self, m: Ping, _: &mut Context<Self>) -> Self::Result {
        let handle = self.handle.clone();
        Box::pin(async move { handle.ping(&m.name, m.addr).await }.into_actor(self))
    }
}

impl Handler<ForceLeave> for Node {
    type Result = ResponseActFuture<Self, Result<(), UpdateError>>;
    fn handle(&mut self, m: ForceLeave, _: &mut Context<Self>) -> Self::Result {
        let handle = self.handle.clone();
        Box::pin(async move { handle.force_leave(m.name).await }.into_actor(self))
    }
}

impl Handler<Members> for Node {
    type Result = Result<View, Stopped>;
    fn handle(&mut self, _: Members, _: &mut Context<Self>) -> Self::Result {
        Ok(self.handle.view())
    }
}

impl Handler<Subscribe> for Node {
    type Result = Result<Subscription, Stopped>;
    fn handle(&mut self, m: Subscribe, _: &mut Context<Self>) -> Self::Result {
        self.handle.subscribe(m.to, m.replay)
    }
}

impl Handler<Shutdown> for Node {
    type Result = ();
    fn handle(&mut self, _: Shutdown, _: &mut Context<Self>) {
        self.handle.stop();
    }
}

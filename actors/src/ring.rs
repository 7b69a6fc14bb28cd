//! What the actors of one node share. All of them live on one thread.

use std::{
    cell::{OnceCell, RefCell, RefMut},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use memberlist_protocol::{
    accusation::History,
    config::Config,
    heal::Seeds,
    member::{MemberState, NodeId},
    probe::Detector,
    view::View,
    wire::{guard::Guard, state::Refusal},
};
use rand::rngs::Xoshiro256PlusPlus;
use tokio::sync::Semaphore;

use crate::{
    casts::Casts,
    events::NodeEvent,
    hooks::Hooks,
    inbox::{Inbox, Item, TURN},
    keyring::{Admission, Admitted},
    latest::Latest,
    link::Budget,
    link::{Inbounds, LinkEvent, Links},
    logs::{self, Line, Logs, say},
    messages::{Then, ToDelegates, ToDetector, ToQueue, ToState, ToTransport},
    metrics::{Counters, InboxMetrics, Lost, Metrics},
    network::Endpoint,
    pump::Listeners,
    resolve::Resolver,
    routes::Routes,
    supervisor::Supervisor,
};

/// Who waits for the answer to a ping, by its number.
pub(crate) type Questions = BTreeMap<u32, Then>;

/// All streams together may hold the memory of so many of the largest frames.
const STREAM_BODIES: usize = 4;

/// What the handle may touch from any thread: inboxes, counters, the view.
pub(crate) struct Doors {
    pub(crate) config: Arc<Config>,
    pub(crate) state: Arc<Inbox<ToState>>,
    pub(crate) detector: Arc<Inbox<ToDetector>>,
    pub(crate) queue: Arc<Inbox<ToQueue>>,
    pub(crate) transport: Arc<Inbox<ToTransport>>,
    pub(crate) delegates: Arc<Inbox<ToDelegates>>,
    pub(crate) counters: Counters,
    pub(crate) logs: Logs,
    pub(crate) history: Mutex<History>,
    /// What comes with this node's answers to pings.
    ping_payload: Mutex<Bytes>,
    /// Who waits for the answer to a ping, by its number.
    questions: Mutex<Questions>,
    /// Subscribers of answered probes.
    pub(crate) listeners: std::sync::atomic::AtomicUsize,
    pub(crate) view: Latest<View>,
    pub(crate) node_events: Arc<Listeners<NodeEvent>>,
    pub(crate) link_events: Arc<Listeners<LinkEvent>>,
    pub(crate) broadcasts_queued: std::sync::atomic::AtomicU64,
    pub(crate) news_queued: std::sync::atomic::AtomicU64,
    pub(crate) max_broadcast: std::sync::atomic::AtomicUsize,
    pub(crate) resolver: Arc<dyn Resolver>,
    /// Labels, keys, and what is done with them.
    pub(crate) admission: Admission,
    /// Chance for what may run on any thread.
    pub(crate) chance: Mutex<Xoshiro256PlusPlus>,
    pub(crate) hooks: Hooks,
    /// What users send to single nodes in datagrams.
    pub(crate) casts: Casts,
    /// What users send to single nodes over streams.
    pub(crate) links: Links,
    /// Room for what they hold.
    pub(crate) waiting: Budget,
    /// Memory for what is being read from streams, in KiB.
    pub(crate) bodies: Semaphore,
    /// Where this node has joined, or was told to.
    pub(crate) seeds: Mutex<Seeds>,
    /// States that the application shares.
    pub(crate) shares: std::sync::atomic::AtomicUsize,
    /// Whether the application wants to be asked about newcomers.
    pub(crate) gated: bool,
    /// Whether the node stops.
    pub(crate) closing: Latest<bool>,
    /// Pumps that run.
    pub(crate) pumps: Latest<usize>,
    /// Whether nothing of the node runs any more.
    pub(crate) done: Latest<bool>,
    /// Tells the node to stop.
    pub(crate) stop: tokio::sync::Notify,
    /// The same for those who outlive the doors.
    pub(crate) stopped: Arc<std::sync::atomic::AtomicBool>,
    numbers: std::sync::atomic::AtomicU64,
}

impl Doors {
    pub(crate) fn new(
        config: Arc<Config>,
        view: View,
        gated: bool,
        resolver: Arc<dyn Resolver>,
        admission: Admission,
        chance: Xoshiro256PlusPlus,
        hooks: Hooks,
    ) -> Self {
        let (control, news) = (config.control_queue_depth, config.handoff_queue_depth);
        Self {
            state: Inbox::new(control, news),
            detector: Inbox::new(control, news),
            queue: Inbox::new(control, news),
            transport: Inbox::new(control, news),
            delegates: Inbox::new(control, news),
            counters: Counters::default(),
            logs: Logs::new(view.local().id.shared_name().clone()),
            history: Mutex::default(),
            ping_payload: Mutex::default(),
            questions: Mutex::default(),
            listeners: 0.into(),
            casts: Casts::new(view.local().name()),
            view: Latest::new(view),
            node_events: Arc::default(),
            link_events: Arc::default(),
            broadcasts_queued: 0.into(),
            news_queued: 0.into(),
            max_broadcast: 0.into(),
            resolver,
            admission,
            chance: Mutex::new(chance),
            hooks,
            links: Links::default(),
            waiting: Budget::new(config.total_queue_bytes),
            bodies: Semaphore::new(
                STREAM_BODIES * config.max_state_size.max(config.max_message_size).div_ceil(1024),
            ),
            seeds: Mutex::default(),
            shares: 0.into(),
            gated,
            closing: Latest::new(false),
            pumps: Latest::new(0),
            done: Latest::new(false),
            stop: tokio::sync::Notify::new(),
            stopped: Arc::default(),
            numbers: 1.into(),
            config,
        }
    }

    /// KiB that the streams of one address may hold of what is being read: half of all.
    pub(crate) fn bodies_of_source(&self) -> usize {
        STREAM_BODIES / 2 * self.config.max_state_size.max(self.config.max_message_size).div_ceil(1024)
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ping_payload(&self) -> MutexGuard<'_, Bytes> {
        self.ping_payload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seeds(&self) -> MutexGuard<'_, Seeds> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who listen what becomes of a link.
    pub(crate) fn link_event(&self, event: &LinkEvent) {
        if !self.link_events.tell(event) {
            self.counters.drop(Lost::LinkUnheard);
        }
    }

    /// A number that nothing else of this node has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Nobody takes or gives anything any more; whoever waits for an answer learns of it.
    pub(crate) fn close(&self) {
        self.closing.replace(true);
        self.stopped.store(true, Ordering::Relaxed);
        self.state.close();
        self.detector.close();
        self.queue.close();
        self.transport.close();
        self.delegates.close();
        self.casts.close();
        self.links.close(self);
        let waiting = std::mem::take(&mut *self.questions());
        drop(waiting);
    }

    pub(crate) fn metrics(&self) -> Metrics {
        fn of<T: Item>(inbox: &Inbox<T>) -> InboxMetrics {
            let traffic = &inbox.traffic;
            InboxMetrics {
                offered: traffic.offered.load(Ordering::Relaxed),
                taken: traffic.taken.load(Ordering::Relaxed),
                dropped: traffic.dropped.load(Ordering::Relaxed),
                coalesced: traffic.coalesced.load(Ordering::Relaxed),
                refused: traffic.refused.load(Ordering::Relaxed),
                waiting: inbox.len() as u64,
            }
        }
        let mut metrics = self.counters.read();
        metrics.inboxes = [
            (crate::messages::STATE, of(&self.state)),
            (crate::messages::QUEUE, of(&self.queue)),
            (crate::messages::DETECTOR, of(&self.detector)),
            (crate::messages::TRANSPORT, of(&self.transport)),
            (crate::messages::DELEGATES, of(&self.delegates)),
        ]
        .into();
        let links = self.links.all();
        let linked: usize = links.iter().map(|link| link.status().queued).sum();
        (metrics.links, metrics.links_queued_bytes) = (links.len() as u64, self.waiting.used() as u64);
        metrics.user_messages_waiting = (self.casts.len() + linked) as u64;
        let view = self.view.borrow().clone();
        let states = [MemberState::Alive, MemberState::Suspect, MemberState::Dead, MemberState::Left];
        let names = ["alive", "suspect", "dead", "left"];
        metrics.members = names.into_iter().zip(states.map(|state| view.count(state) as u64)).collect();
        metrics.log_lines_left_out = self.logs.left_out();
        metrics.broadcasts_queued = self.broadcasts_queued.load(Ordering::Relaxed);
        metrics.news_queued = self.news_queued.load(Ordering::Relaxed);
        metrics
    }
}

/// A moment so far from now, or one that is too far to be waited for.
pub(crate) fn after(time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now() + time.min(FAR)
}

/// One pump.
struct Running(Arc<Doors>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.pumps.modify(|running| *running -= 1);
    }
}

/// What stays on the node's thread.
pub(crate) struct Ring {
    pub(crate) doors: Arc<Doors>,
    /// Labels and seals, and the number of the change of [`Doors::admission`] that they follow.
    guard: RefCell<(u64, Guard)>,
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) rng: RefCell<Xoshiro256PlusPlus>,
    /// FailureDetector's own; Transport asks it whether an answer is expected, before it takes up room.
    pub(crate) detector: RefCell<Detector>,
    /// What has come over links.
    pub(crate) inbounds: Inbounds,
    /// Dials of links at once, and links with connections at once.
    pub(crate) dials: Semaphore,
    pub(crate) link_room: Semaphore,
    pub(crate) supervisor: OnceCell<Supervisor>,
    /// Who handles what the programs of other nodes send.
    pub(crate) routes: Rc<Routes>,
}

impl std::ops::Deref for Ring {
    type Target = Doors;

    fn deref(&self) -> &Doors {
        &self.doors
    }
}

impl Ring {
    pub(crate) fn new(
        doors: Arc<Doors>,
        guard: Guard,
        endpoint: Arc<dyn Endpoint>,
        rng: Xoshiro256PlusPlus,
        detector: Detector,
    ) -> Self {
        let guard = RefCell::new((doors.admission.changes(), guard));
        let (rng, detector) = (RefCell::new(rng), RefCell::new(detector));
        Self {
            guard,
            endpoint,
            rng,
            detector,
            inbounds: Inbounds::default(),
            dials: Semaphore::new(DIALS),
            link_room: Semaphore::new(doors.config.max_links),
            routes: Rc::default(),
            supervisor: OnceCell::new(),
            doors,
        }
    }

    /// The guard, as the handle has it now.
    pub(crate) fn guard(&self) -> RefMut<'_, Guard> {
        let mut guard = self.guard.borrow_mut();
        let changes = self.admission.changes();
        if guard.0 != changes {
            let Admitted { labels, sealing, keys, .. } = self.admission.read();
            // Labels were checked when they were set.
            let _ = guard.1.change(labels, &keys, sealing);
            guard.0 = changes;
        }
        RefMut::map(guard, |(_, guard)| guard)
    }

    /// This node's run.
    pub(crate) fn run(&self) -> u64 {
        self.view.borrow().local().id.run()
    }

    /// FailureDetector's inbox.
    pub(crate) fn detector_inbox(&self) -> &Arc<Inbox<ToDetector>> {
        &self.doors.detector
    }

    /// Counts a peer that this node refuses, and says so now and then.
    pub(crate) fn refused(&self, refusal: &Refusal, peer: &NodeId, addr: SocketAddr) {
        self.counters.drop(Lost::refused(refusal));
        let (peer, why) = (logs::node(peer), logs::text(refusal));
        say!(self, Line::Refused, warn, %peer, %addr, %why, "refused a peer that wants to join or to exchange states");
    }

    /// Runs a task that is not an actor, at most as long as the node. A panic in it is caught and reported.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let mut closing = self.closing.follow();
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.spawn(name, async move {
                tokio::select! {
                    biased;
                    _ = closing.until(|closing| *closing) => {}
                    () = task => {}
                }
            });
        }
    }

    /// Runs a pump. It may outlive the node for a moment, to bring the last events home.
    pub(crate) fn spawn_pump(&self, pump: impl Future<Output = ()> + 'static) {
        let Some(supervisor) = self.supervisor.get() else { return };
        self.pumps.modify(|running| *running += 1);
        let running = Running(self.doors.clone());
        supervisor.spawn("pump", async move {
            pump.await;
            drop(running);
        });
    }

    /// Offers control to an actor, and counts what finds no room.
    pub(crate) fn command<T: Item>(&self, inbox: &Inbox<T>, item: T) {
        if inbox.command(item) == Err(crate::inbox::Refused::Busy) {
            self.counters.drop(Lost::InboxControl);
            let item = kind_of::<T>();
            say!(self, Line::InboxFull, warn, inbox = item, "an inbox is full: a message was refused");
        }
    }

    /// Offers news to an actor, and counts what had to make room for it.
    pub(crate) fn news<T: Item>(&self, inbox: &Inbox<T>, item: T) {
        if inbox.news(item) {
            self.counters.drop(Lost::InboxNews);
            let item = kind_of::<T>();
            say!(self, Line::InboxFull, warn, inbox = item, "an inbox is full: older news was dropped");
        }
    }

    /// Gives an actor the items of one turn.
    pub(crate) fn turn<T: Item>(&self, actor: &'static str, inbox: &Inbox<T>, mut hear: impl FnMut(T)) {
        for _ in 0..TURN {
            let Some(item) = inbox.take() else { return };
            self.hooks.strike(actor, item.kind());
            hear(item);
        }
    }
}

/// What an inbox holds, by the name of its type.
fn kind_of<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

/// The time: real, or a test's.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Links that dial at once.
const DIALS: usize = 32;

/// The ring, as each actor holds it.
pub(crate) type Shared = Rc<Ring>;

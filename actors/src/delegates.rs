//! **Delegates** stands between the node and its users' actors. It hears events from NodeState and users'
//! bytes from Transport and streams, and puts them into a queue for each subscriber; pumps empty these. It
//! asks what the application has to be asked, and passes the answer on.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use actix::{Actor, Context, Recipient, StreamHandler};
use bytes::Bytes;
use memberlist_protocol::{
    member::NodeId,
    members::{Change, Ignored},
    seen::{Seen, Standing},
    view::View,
    wire::{
        message::{Address, Receipt, UserBroadcast},
        shared,
    },
};

use crate::{
    events::{MemberEvent, Pinged, Replay, Sender},
    inbox::{Alarm, Turn, Turns},
    join::all,
    logs::{self, Line, say},
    messages::{Asker, DELEGATES, Reply, ToDelegates, ToQueue, ToState},
    metrics::Lost,
    peer::present,
    pump::{Queue, Subscribing},
    questions::{self, Admit, Export, Merge, Sharing},
    ring::Shared,
    routes::Arrived,
    supervisor::Child,
};

/// Former runs of this node that are remembered. A broadcast of one that is older has long gone round.
const FORMER: usize = 16;

/// What survives a restart.
pub(crate) struct Kept {
    subscribers: Vec<(u64, Arc<Queue<MemberEvent>>)>,
    /// Who is asked about newcomers.
    gate: Option<Recipient<Admit>>,
    /// Each question that is open holds one of these.
    asking: Rc<()>,
    shares: Vec<Sharing>,
    listeners: Vec<(u64, Arc<Queue<Pinged>>)>,
    /// The view after the last event that was told.
    view: View,
    /// Who this node was before it left and came back: what it broadcast then is still its own.
    former: VecDeque<NodeId>,
    seen: Seen,
}

impl Kept {
    pub(crate) fn new(view: View, gate: Option<Recipient<Admit>>) -> Self {
        Self {
            subscribers: Vec::new(),
            gate,
            asking: Rc::default(),
            shares: Vec::new(),
            listeners: Vec::new(),
            view,
            former: VecDeque::new(),
            seen: Seen::default(),
        }
    }

    /// Lets the subscribers take what waits for them, and then end.
    pub(crate) fn close(&mut self) {
        for (_, queue) in self.subscribers.drain(..) {
            queue.close();
        }
        self.shares.clear();
        for (_, queue) in self.listeners.drain(..) {
            queue.close();
        }
    }

    fn see(&mut self, view: View) {
        let before = std::mem::replace(&mut self.view, view);
        if before.local().id != self.view.local().id {
            if self.former.len() == FORMER {
                self.former.pop_front();
            }
            self.former.push_back(before.local().id.clone());
        }
    }

    fn is_own(&self, origin: &NodeId) -> bool {
        *origin == self.view.local().id || self.former.contains(origin)
    }
}

pub(crate) struct Delegates {
    ring: Shared,
    kept: Rc<RefCell<Kept>>,
}

impl Delegates {
    pub(crate) fn new(ring: Shared, kept: Rc<RefCell<Kept>>) -> Self {
        Self { ring, kept }
    }

    fn hear(&self, item: ToDelegates) {
        match item {
            ToDelegates::Events { changes, view } => self.tell(&changes, view),
            ToDelegates::User(message) => {
                if let Some(message) = self.unseen(message) {
                    self.broadcast(&message, false);
                    self.ring.news(&self.ring.queue, ToQueue::Forward(message));
                }
            }
            ToDelegates::Deliver { address, bytes, from, reply } => {
                let _ = reply.send(self.deliver(address, bytes, from));
            }
            ToDelegates::Admit { question, asker } => self.admit(question, asker),
            ToDelegates::Export { joining, reply } => self.export(joining, reply),
            ToDelegates::MergeShared { from, joining, shared } => self.merge(&from, joining, shared),
            ToDelegates::Share(sharing) => self.share(sharing),
            ToDelegates::Subscribe(subscribing) => self.subscribe(subscribing),
            ToDelegates::Serve(serving) => serving.open(&self.ring),
            ToDelegates::Listen(mut listening) => {
                if let Some(queue) = listening.queue.take() {
                    self.kept.borrow_mut().listeners.push((listening.number, queue));
                }
                self.count_listeners();
                self.run(listening.pump.take());
            }
            ToDelegates::Pinged(pinged) => self.pinged(&pinged),
            ToDelegates::Run(pump) => self.run(Some(pump)),
            ToDelegates::Work(work) => self.ring.spawn("work", work),
            ToDelegates::Unsubscribe { number } => {
                let mut kept = self.kept.borrow_mut();
                retain_others(&mut kept.subscribers, number);
                kept.shares.retain(|share| share.number != number);
                self.ring.shares.store(kept.shares.len(), Relaxed);
                retain_others(&mut kept.listeners, number);
                drop(kept);
                self.count_listeners();
                self.ring.routes.remove(number);
            }
        }
    }

    fn tell(&self, changes: &[(u64, Change)], view: View) {
        let mut kept = self.kept.borrow_mut();
        // A snapshot has told it already.
        if view.rev() <= kept.view.rev() {
            return;
        }
        kept.subscribers.retain(|(_, queue)| !queue.is_closed());
        // If events were lost on the way, each subscriber gets a snapshot in their place.
        let whole = changes.first().is_some_and(|(rev, _)| *rev == kept.view.rev() + 1);
        for (_, queue) in &kept.subscribers {
            if whole {
                for (rev, change) in changes {
                    if !queue.push(MemberEvent::new(*rev, change), 0) {
                        self.ring.counters.drop(Lost::SubscriberLagged);
                        say!(
                            self.ring,
                            Line::Lagged,
                            warn,
                            "a subscriber is slow: it gets a snapshot in place of events"
                        );
                    }
                }
            } else {
                queue.push(MemberEvent::Snapshot(view.clone()), 0);
            }
        }
        kept.see(view);
    }

    fn pinged(&self, pinged: &Pinged) {
        self.kept.borrow_mut().listeners.retain(|(_, queue)| !queue.is_closed());
        self.count_listeners();
        for (_, queue) in &self.kept.borrow().listeners {
            if !queue.push(pinged.clone(), pinged.payload.len()) {
                self.ring.counters.drop(Lost::PingUnheard);
            }
        }
    }

    /// As long as nobody listens, FailureDetector says nothing.
    fn count_listeners(&self) {
        self.ring.listeners.store(self.kept.borrow().listeners.len(), Relaxed);
    }

    /// Events that an instance before this one has lost are made good by a snapshot.
    fn catch_up(&self) {
        let (mut kept, view) = (self.kept.borrow_mut(), self.ring.view.borrow().clone());
        if view.rev() > kept.view.rev() {
            for (_, queue) in &kept.subscribers {
                queue.push(MemberEvent::Snapshot(view.clone()), 0);
            }
            kept.see(view);
        }
    }

    fn subscribe(&self, mut subscribing: Subscribing<MemberEvent>) {
        let Some(queue) = subscribing.queue.take() else { return };
        let mut kept = self.kept.borrow_mut();
        match subscribing.replay {
            Replay::Snapshot => drop(queue.push(MemberEvent::Snapshot(kept.view.clone()), 0)),
            Replay::Events => {
                let rev = kept.view.rev();
                for member in kept.view.alive() {
                    queue.push(MemberEvent::Joined { rev, member: member.clone() }, 0);
                }
            }
            Replay::None => {}
        }
        kept.subscribers.push((subscribing.number, queue));
        drop(kept);
        self.run(subscribing.pump.take());
    }

    fn run(&self, pump: Option<crate::pump::Pump>) {
        if let Some(pump) = pump {
            self.ring.spawn_pump(pump);
        }
    }

    /// A broadcast that has not come before: it is handled, and passed on, the first time.
    fn unseen(&self, message: UserBroadcast) -> Option<UserBroadcast> {
        let mut kept = self.kept.borrow_mut();
        let own = kept.is_own(&message.origin) || self.is_local(&message.origin);
        let standing = match self.ring.view.borrow().get(message.origin.name()) {
            Some(member) if member.id == message.origin => Standing::Member,
            _ => Standing::Stranger,
        };
        let new = !own && kept.seen.is_new(&message.origin, standing, message.id);
        if !new {
            self.ring.counters.drop(Lost::SeenBroadcast);
        }
        new.then_some(message)
    }

    fn is_local(&self, id: &NodeId) -> bool {
        self.ring.view.borrow().local().id == *id
    }

    /// Who sends something: a member, if there is one of that name and run on that host.
    fn sender(&self, claimed: NodeId, addr: SocketAddr) -> Sender {
        match present(&self.ring, &claimed) {
            Some(member) if member.addr.ip() == addr.ip() => Sender::Member(claimed),
            _ => Sender::Address(addr),
        }
    }

    /// Who broadcasts something, which others have passed on.
    fn origin(&self, claimed: &NodeId) -> Sender {
        match self.ring.view.borrow().get(claimed.name()) {
            Some(member) if member.id == *claimed => Sender::Member(claimed.clone()),
            _ => Sender::Stranger(claimed.clone()),
        }
    }

    /// Gives a message to its handlers.
    fn serve(&self, from: &Sender, kind: &str, bytes: Bytes, reliable: bool) -> Receipt {
        self.ring
            .routes
            .deliver(&self.ring, Arrived { from, kind, bytes, reliable, answer: None, until: None })
    }

    fn broadcast(&self, message: &UserBroadcast, reliable: bool) -> Receipt {
        self.serve(&self.origin(&message.origin), &message.kind, message.bytes.clone(), reliable)
    }

    fn deliver(&self, address: Address, bytes: Bytes, from: SocketAddr) -> Receipt {
        match address {
            Address::Direct { to, .. } if !self.is_local(&to) => {
                self.ring.counters.drop(Lost::NotForUs);
                Receipt::NotMe
            }
            Address::Direct { from: claimed, .. } => self.serve(&self.sender(claimed, from), "", bytes, true),
            // Its origin sends it to each member itself.
            Address::Broadcast { origin, id, kind } => {
                match self.unseen(UserBroadcast { origin, id, kind, bytes }) {
                    Some(message) => self.broadcast(&message, true),
                    None => Receipt::Taken,
                }
            }
        }
    }

    /// Asks the application. The node does not wait for it; no answer is a no.
    fn admit(&self, question: Admit, asker: Asker) {
        let Some(gate) = self.kept.borrow().gate.clone() else { return answer(&self.ring, asker, Ok(())) };
        let asking = self.kept.borrow().asking.clone();
        if Rc::strong_count(&asking) > self.ring.config.admit_queue_depth + 2 {
            self.ring.counters.drop(Ignored::GateCrowded);
            return answer(&self.ring, asker, Err("too many ask to be let in".to_owned()));
        }
        let what = match &question {
            Admit::Member(member) => {
                format!("Admit::Member for {} at {}", logs::node(&member.id), member.addr)
            }
            Admit::Merge { from, .. } => format!("Admit::Merge for {from}"),
        };
        let ring = self.ring.clone();
        self.ring.spawn("question", async move {
            let verdict = questions::ask(&ring, what, &gate, question).await;
            drop(asking);
            let none = || Err("the application did not answer".to_owned());
            answer(&ring, asker, verdict.unwrap_or_else(none).map_err(|reason| shortened(&reason)));
        });
    }

    /// Asks for everything that is shared, at once.
    fn export(&self, joining: bool, reply: Reply<Bytes>) {
        let asked: Vec<_> =
            self.kept.borrow().shares.iter().map(|share| (share.key, share.export.clone())).collect();
        if asked.is_empty() {
            let _ = reply.send(Bytes::new());
            return;
        }
        let ring = self.ring.clone();
        self.ring.spawn("question", async move {
            let states = all(asked.into_iter().map(|(key, to)| {
                let ring = ring.clone();
                async move {
                    let what = format_args!("Export of {key:?}");
                    (key, questions::ask(&ring, what, &to, Export { joining }).await.unwrap_or_default())
                }
            }));
            let mut states = states.await;
            states.retain(|(_, state)| !state.is_empty());
            let max = ring.config.max_shared_state.min(ring.config.max_state_size / 2);
            let (bytes, left) = shared::encode(&states, max);
            for key in left {
                ring.counters.drop(Lost::Unshared);
                say!(ring, Line::Unshared, warn, key, max, "a shared state has no room and is not sent");
            }
            let _ = reply.send(bytes);
        });
    }

    fn merge(&self, from: &NodeId, joining: bool, shared: Bytes) {
        let states = match shared::decode(shared) {
            Ok(states) => states,
            Err(error) => return self.ring.counters.drop(error),
        };
        let kept = self.kept.borrow();
        for (key, state) in states {
            let Some(share) = kept.shares.iter().find(|share| *share.key == *key) else {
                self.ring.counters.drop(Lost::Unshared);
                continue;
            };
            let len = state.len();
            if !share.merges.push(Merge { from: from.clone(), joining, state }, len) {
                self.ring.counters.drop(Lost::HandlerBusy);
            }
        }
    }

    fn share(&self, mut sharing: Sharing) {
        let mut kept = self.kept.borrow_mut();
        kept.shares.retain(|share| !share.merges.is_closed());
        if kept.shares.iter().any(|share| share.key == sharing.key) {
            tracing::info!(
                key = sharing.key,
                "shared by another actor before: that one is not asked any more"
            );
            kept.shares.retain(|share| share.key != sharing.key);
        }
        let pump = sharing.pump.take();
        kept.shares.push(sharing);
        self.ring.shares.store(kept.shares.len(), Relaxed);
        drop(kept);
        self.run(pump);
    }
}

/// Longest reason of a veto that is told, in characters.
const MAX_REASON: usize = 200;

fn shortened(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

fn answer(ring: &Shared, asker: Asker, verdict: Result<(), String>) {
    match asker {
        Asker::State { name, number } => {
            ring.command(&ring.state, ToState::Admitted { name, number, verdict });
        }
        Asker::Stream(reply) => drop(reply.send(verdict)),
    }
}

fn retain_others<T>(queues: &mut Vec<(u64, Arc<Queue<T>>)>, number: u64) {
    queues.retain(|(n, queue)| {
        if *n == number {
            queue.abandon();
        }
        *n != number
    });
}

impl Actor for Delegates {
    type Context = Context<Self>;
}

impl actix::Supervised for Delegates {}

impl Child for Delegates {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        self.catch_up();
        Self::add_stream(Turns::new(self.ring.delegates.clone(), Alarm::default(), None), ctx);
    }
}

impl StreamHandler<Turn> for Delegates {
    fn handle(&mut self, _: Turn, _: &mut Context<Self>) {
        self.ring.turn(DELEGATES, &self.ring.delegates, |item| self.hear(item));
    }
}

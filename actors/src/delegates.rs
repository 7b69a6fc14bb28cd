//! **Delegates** stands between the node and its users' actors. It hears events from NodeState and users'
//! broadcasts from Transport, and puts them into a queue for each subscriber; pumps empty these.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use actix::{Actor, Context, StreamHandler};
use memberlist_protocol::{
    members::Change,
    seen::{Seen, Standing},
    view::View,
    wire::message::UserBroadcast,
};

use crate::{
    events::{MemberEvent, Replay, Sender, UserBytes},
    inbox::{Alarm, Turn, Turns},
    messages::{DELEGATES, ToDelegates, ToQueue},
    metrics::Lost,
    pump::{Queue, Subscribing},
    ring::Shared,
    supervisor::Child,
};

/// What survives a restart.
pub(crate) struct Kept {
    subscribers: Vec<(u64, Arc<Queue<MemberEvent>>)>,
    servers: Vec<(u64, Arc<Queue<UserBytes>>)>,
    /// The view after the last event that was told.
    view: View,
    seen: Seen,
}

impl Kept {
    pub(crate) fn new(view: View) -> Self {
        Self { subscribers: Vec::new(), servers: Vec::new(), view, seen: Seen::default() }
    }

    /// Lets the subscribers take what waits for them, and then end.
    pub(crate) fn close(&mut self) {
        for (_, queue) in self.subscribers.drain(..) {
            queue.close();
        }
        for (_, queue) in self.servers.drain(..) {
            queue.close();
        }
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
            ToDelegates::User(message) => self.user(message),
            ToDelegates::Subscribe(subscribing) => self.subscribe(subscribing),
            ToDelegates::Serve(mut serving) => {
                if let Some(queue) = serving.queue.take() {
                    self.kept.borrow_mut().servers.push((serving.number, queue));
                }
                self.run(serving.pump.take());
            }
            ToDelegates::Run(pump) => self.run(Some(pump)),
            ToDelegates::Work(work) => self.ring.spawn("work", work),
            ToDelegates::Unsubscribe { number } => {
                let mut kept = self.kept.borrow_mut();
                retain_others(&mut kept.subscribers, number);
                retain_others(&mut kept.servers, number);
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
                    }
                }
            } else {
                queue.push(MemberEvent::Snapshot(view.clone()), 0);
            }
        }
        kept.view = view;
    }

    /// Events that an instance before this one has lost are made good by a snapshot.
    fn catch_up(&self) {
        let (mut kept, view) = (self.kept.borrow_mut(), self.ring.view.borrow().clone());
        if view.rev() > kept.view.rev() {
            for (_, queue) in &kept.subscribers {
                queue.push(MemberEvent::Snapshot(view.clone()), 0);
            }
            kept.view = view;
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

    /// A broadcast is handled here, and passed on, the first time it comes.
    fn user(&self, message: UserBroadcast) {
        let mut kept = self.kept.borrow_mut();
        let view = self.ring.view.borrow();
        let own = message.origin == view.local().id;
        let standing = match view.get(message.origin.name()) {
            Some(member) if member.id == message.origin => Standing::Member,
            _ => Standing::Stranger,
        };
        drop(view);
        if own || !kept.seen.is_new(&message.origin, standing, message.id) {
            self.ring.counters.drop(Lost::SeenBroadcast);
            return;
        }
        kept.servers.retain(|(_, queue)| !queue.is_closed());
        if kept.servers.is_empty() {
            self.ring.counters.drop(Lost::NoHandler);
        }
        for (_, queue) in &kept.servers {
            let bytes = UserBytes::new(Sender::Member(message.origin.clone()), message.bytes.clone(), false);
            if !queue.push(bytes, message.bytes.len()) {
                self.ring.counters.drop(Lost::HandlerBusy);
            }
        }
        drop(kept);
        self.ring.news(&self.ring.queue, ToQueue::Forward(message));
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

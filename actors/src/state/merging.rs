//! Taking in the states of others, a few members a turn, and when to exchange states out of turn.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use memberlist_protocol::{
    member::{MemberState, NodeId},
    members::Ignored,
    push_pull::{self},
    wire::state::{OwnBytes, Refusal, State},
};
use rand::RngExt;

use crate::messages::{Exchange, Reply};

use super::{Kept, NodeState, Source};

/// Members of a full state that are looked at in one turn.
const MERGED_PER_TURN: usize = 256;

/// Exchanges of states that follow a join at most. After one that finds nobody new there is one more.
const MAX_FOLLOW_UPS: u32 = 5;

/// Shortest round that an exchange out of turn is measured in.
const MIN_ROUND: Duration = Duration::from_millis(100);

/// Rounds of gossip from a join to the exchange that finds those who joined at the same time.
const SOON: f64 = 2.0;

/// Rounds of gossip after which news has gone round, and an exchange finds what it has missed.
const SETTLED: f64 = 10.0;

/// Members that have come back, after which an exchange is made out of turn: a partition has healed, and
/// each piece of news misses a few members in ten thousand.
const RETURNED: u32 = 3;

pub(super) struct Merging {
    peer: Box<State>,
    /// The peer itself, if the application has let it in.
    admitted: Option<NodeId>,
    /// Nothing for a peer that dialled.
    why: Option<Exchange>,
    /// Members when it began.
    before: usize,
    reply: Option<Reply<Result<NodeId, Refusal>>>,
}

impl Kept {
    pub(super) fn take_in(
        &mut self,
        peer: Box<State>,
        admitted: bool,
        why: Option<Exchange>,
        reply: Option<Reply<Result<NodeId, Refusal>>>,
    ) {
        let before = self.members.roster().len();
        let admitted = admitted.then(|| peer.header.from.clone());
        self.merging.push_back(Merging { peer, admitted, why, before, reply });
    }
}

/// The kind of news that a member of a full state is.
fn told(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "told-alive",
        MemberState::Suspect => "told-suspect",
        MemberState::Dead => "told-dead",
        MemberState::Left => "told-left",
    }
}

impl NodeState {
    pub(super) fn own_state(&self, join: bool) -> OwnBytes {
        let Kept { members, own_state, .. } = &mut *self.kept.borrow_mut();
        let own = own_state.get(members, join);
        let head = State::head(&own.header, 0).len();
        self.ring.counters.size_local.store((head + own.members.len()) as u64, Relaxed);
        own
    }

    /// A peer that this node dialled has answered with its state.
    pub(super) fn merge(
        &self,
        peer: Box<State>,
        admitted: bool,
        why: Exchange,
        reply: Reply<Result<NodeId, Refusal>>,
    ) {
        let fit = {
            let kept = self.kept.borrow();
            let sender = peer.sender().map_err(|_| Refusal::Wire);
            push_pull::admit(&kept.members, &peer.header)
                .and_then(|()| push_pull::admit_address(&kept.members, &sender?.alive))
                .and_then(|()| push_pull::admit_state(kept.members.local(), &peer))
        };
        match fit.and_then(|()| self.enough_room(&peer)) {
            Ok(()) => self.kept.borrow_mut().take_in(peer, admitted, Some(why), Some(reply)),
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// Whether a peer that dialled is dealt with.
    pub(super) fn admit(&self, peer: &State) -> Result<(), Refusal> {
        let sender = peer.sender().map_err(|_| Refusal::Wire)?;
        {
            let kept = self.kept.borrow();
            push_pull::admit(&kept.members, &peer.header)?;
            push_pull::admit_address(&kept.members, &sender.alive)?;
            push_pull::admit_name(&kept.members, &sender.alive)?;
            push_pull::admit_state(kept.members.local(), peer)?;
        }
        self.enough_room(peer)
    }

    /// States that wait to be taken in may take four times the memory of the largest one.
    pub(super) fn enough_room(&self, peer: &State) -> Result<(), Refusal> {
        let kept = self.kept.borrow();
        let waiting: usize = kept.merging.iter().map(|merging| merging.peer.len()).sum();
        if waiting + peer.len() <= 4 * self.ring.config.max_state_size {
            return Ok(());
        }
        self.ring.counters.drop(Ignored::Merging);
        Err(Refusal::Vetoed("too many states wait to be taken in".into()))
    }

    /// Takes in some of what waits; whoever waits for it is answered once the view shows it.
    pub(super) fn merge_some(&self, now: Instant) {
        self.source.set(Source::State);
        let mut left = MERGED_PER_TURN;
        while left > 0 {
            let Some(mut merging) = self.kept.borrow_mut().merging.pop_front() else { return };
            // A joiner need not tell anybody whom its seed knows: the seed has. Without this, n nodes that
            // join at once would gossip n * n records.
            let quiet = matches!(merging.why, Some(Exchange::Join | Exchange::FollowUp)) && self.follows_up();
            while left > 0 {
                let Some(remembered) = merging.peer.next_member() else { break };
                left -= 1;
                self.meets(told(remembered.state), &remembered.alive.id);
                self.news(remembered, quiet, merging.admitted.as_ref(), now);
            }
            if merging.peer.is_empty() {
                self.merged(merging, now);
            } else {
                self.kept.borrow_mut().merging.push_front(merging);
            }
        }
    }

    pub(super) fn merged(&self, merging: Merging, now: Instant) {
        let grown = self.kept.borrow().members.roster().len() > merging.before;
        match merging.why {
            Some(Exchange::Join) => {
                // The seed tells the others of this node; in case that fails, so does the node itself.
                let announced = self.kept.borrow().members.announced();
                self.carry_out(announced, now);
                self.follow_up(MAX_FOLLOW_UPS, SOON, now);
            }
            Some(Exchange::FollowUp) => {
                let left = self.kept.borrow().follow_ups.saturating_sub(1);
                // After one that found nobody new, one more when all has settled.
                let (left, rounds) = if grown { (left, SOON) } else { (left.min(1), SETTLED) };
                self.follow_up(left, rounds, now);
            }
            Some(Exchange::Periodic | Exchange::Heal) | None => {}
        }
        if let Some(reply) = merging.reply {
            self.publish();
            let _ = reply.send(Ok(merging.peer.header.from.clone()));
        }
    }

    /// Whether this node exchanges states without being told to.
    pub(super) fn follows_up(&self) -> bool {
        !self.ring.config.push_pull_interval.is_zero()
    }

    /// Lets `times` more exchanges follow, the first after about `rounds` of gossip.
    pub(super) fn follow_up(&self, times: u32, rounds: f64, now: Instant) {
        self.kept.borrow_mut().follow_ups = times;
        if times > 0 {
            self.exchange_within(rounds, now);
        }
    }

    /// Makes the next exchange after `rounds` of gossip, up to half of that later, if it is not due before.
    pub(super) fn exchange_within(&self, rounds: f64, now: Instant) {
        if !self.follows_up() {
            return;
        }
        let round = self.ring.config.gossip_interval.max(MIN_ROUND);
        let at = now + round.mul_f64(rounds * (1.0 + self.ring.rng.borrow_mut().random::<f64>() / 2.0));
        let mut kept = self.kept.borrow_mut();
        kept.next_push_pull = Some(kept.next_push_pull.map_or(at, |next| next.min(at)));
    }

    /// A member has come back. When several have, a partition has healed.
    pub(super) fn returned(&self, now: Instant) {
        let mut kept = self.kept.borrow_mut();
        kept.returned += 1;
        if kept.returned < RETURNED || now < kept.next_settling {
            return;
        }
        kept.returned = 0;
        kept.next_settling = now + self.ring.config.push_pull_interval;
        drop(kept);
        self.exchange_within(SETTLED, now);
    }
}

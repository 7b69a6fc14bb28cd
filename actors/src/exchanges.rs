//! The exchange of full states over a stream, from both sides, with what the applications share and may veto.
//!
//! ```text
//! there:  state        back:  state, or a refusal
//! there:  nothing, or a refusal          (only of a joiner that asks its application)
//! ```
//!
//! A join is a matter of both sides: without the last word, a joiner whose application says no would be a
//! member of a cluster that it is not in. Until it comes, the joiner is not taken in.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant as StdInstant,
};

use bytes::Bytes;
use memberlist_protocol::{
    member::{Member, NodeId, canonical},
    wire::{
        WireError,
        frame::StreamKind,
        message::Remembered,
        state::{OwnBytes, Refusal, State},
    },
};
use tokio::{sync::oneshot, task::yield_now, time::Instant};

use crate::{
    errors::JoinError,
    logs::{self, Line as Kind, say},
    messages::{Asker, Exchange, ToDelegates, ToState},
    metrics::{Lost, up},
    questions::Admit,
    ring::{Shared, now},
    rollout,
    streams::{Failure, Line, Permit, ask, count, dial},
    transport::Open,
};

/// Members of a state that are read in one turn.
const READ_PER_TURN: usize = 1024;

/// Longest refusal: a number and a reason.
const MAX_REFUSAL: usize = 1024;

/// Serves a peer that has dialled.
pub(crate) async fn serve(
    ring: &Shared,
    open: &Rc<Open>,
    line: &mut Line<'_>,
    from: SocketAddr,
) -> Result<(), Failure> {
    let bytes = line.frame(ring.config.max_state_size).await?;
    let len = bytes.len() as u64;
    let Ok(peer) = read(ring, bytes).await? else { return Err(WireError::Kind.into()) };
    let at = peer.sender()?.alive.addr;
    line.met(from, at).await?;
    ring.counters.size_remote.observe_value(len);
    let (joining, tentative) = (peer.header.join, peer.header.tentative);
    let (user, id) = (peer.user.clone(), peer.header.from.clone());
    let answer = match admit(ring, &peer, from).await {
        Ok(admitted) => {
            let peer = Box::new(peer.clone());
            ask(ring, |reply| ToState::Exchange { peer, admitted, reply }).await?.map(|own| (own, admitted))
        }
        Err(refusal) => Err(refusal),
    };
    let admitted = match answer {
        Ok((own, admitted)) => {
            let shared = export(ring, joining).await;
            let head = State::head(&own.header, shared.len());
            line.write(&[&head, &own.members, &shared]).await?;
            admitted
        }
        Err(refusal) => {
            ring.refused(&refusal, &id, from);
            return line.write(&[&State::refuse(refusal)]).await;
        }
    };
    if tentative {
        let last_word = line.frame(MAX_REFUSAL).await?;
        if !last_word.is_empty() {
            let refusal = State::begin(last_word)?.err().ok_or(WireError::Kind)?;
            ring.counters.drop(Lost::JoinRefused);
            let (peer, why) = (logs::node(&id), logs::text(refusal));
            say!(ring, Kind::Refused, warn, %peer, %from, %why, "a joiner refuses this node");
            return Ok(());
        }
        ring.command(&ring.state, ToState::Welcome { peer: Box::new(peer), admitted });
    }
    if joining && let Some(way) = line.way() {
        rollout::hand_over(ring, open, id.clone(), at, way);
    }
    merge_shared(ring, id, joining, user);
    Ok(())
}

/// Exchanges full states with whoever is at `addr`, and says who that was once its state is taken in.
pub(crate) async fn push_pull(
    ring: &Shared,
    permit: Permit,
    addr: SocketAddr,
    why: Exchange,
) -> Result<NodeId, JoinError> {
    let (join, start) = (why == Exchange::Join, Instant::now());
    let limit = ring.config.tcp_timeout;
    let mut own: OwnBytes =
        ask(ring, |reply| ToState::Give { join, reply }).await.map_err(|_| JoinError::Lost)?;
    own.header.tentative = join && ring.gated;
    let shared = export(ring, join).await;
    up(&ring.counters.states_dialled);
    let connection = dial(ring, addr, limit).await.map_err(|failure| match failure {
        Failure::Timeout => JoinError::Timeout,
        Failure::Tls(fault) => {
            let why = fault.to_string();
            count(ring, &Failure::Tls(fault));
            JoinError::Tls(addr, why)
        }
        failure => JoinError::Unreachable(addr, failure.to_string()),
    })?;
    let mut line = Line::new(ring, connection);
    let exchanged = async {
        let head = State::head(&own.header, shared.len());
        line.open(StreamKind::PushPull).await?;
        let written = line.write(&[&head, &own.members, &shared]).await;
        if let Err(Failure::Broken(error)) = written {
            // Whoever does not understand the first byte may answer, and close, before all is written.
            return match line.answer(0).await {
                Err(refused @ (Failure::OtherWire | Failure::Refused(_) | Failure::Tls(_))) => Err(refused),
                Err(tls @ Failure::Wire(WireError::Tls)) => Err(tls),
                _ => Err(Failure::Broken(error)),
            };
        }
        written?;
        let bytes = line.answer(ring.config.max_state_size).await?;
        let len = bytes.len() as u64;
        let answer = read(ring, bytes).await?;
        if let Ok(peer) = &answer {
            ring.counters.size_remote.observe_value(len);
            peer.sender()?;
        }
        Ok(answer)
    };
    let answer = exchanged.await.map_err(|failure| {
        count(ring, &failure);
        match failure {
            Failure::OtherWire => JoinError::Refused(Refusal::Wire),
            Failure::Refused(refusal) => JoinError::Refused(refusal),
            Failure::Timeout => JoinError::Timeout,
            Failure::Tls(fault) => JoinError::Tls(addr, fault.to_string()),
            Failure::Wire(WireError::Tls) => {
                JoinError::Tls(addr, "it speaks TLS, and this node does not".into())
            }
            Failure::Broken(_) | Failure::Wire(WireError::Truncated) => JoinError::NoAnswer(addr),
            failure => JoinError::Garbled(addr, failure.to_string()),
        }
    })?;
    let peer = answer.map_err(JoinError::Refused)?;
    if peer.header.from == ring.view.borrow().local().id {
        return Err(JoinError::Oneself);
    }
    let (id, user) = (peer.header.from.clone(), peer.user.clone());
    // Whoever has no last word is done with the stream.
    let open = own.header.tentative.then_some((line, permit));
    let taken_in = match admit(ring, &peer, addr).await {
        Ok(admitted) => {
            let peer = Box::new(peer);
            ask(ring, |reply| ToState::Merge { peer, admitted, why, reply })
                .await
                .map_err(|_| JoinError::Lost)?
        }
        Err(refusal) => Err(refusal),
    };
    ring.counters.push_pull.observe(start.elapsed());
    if let Some((mut line, permit)) = open {
        let last_word = taken_in.as_ref().err().map(|refusal| State::refuse(refusal.clone()));
        let said = line.write(&[last_word.as_deref().unwrap_or_default()]).await;
        if let Err(failure) = said {
            count(ring, &failure);
        }
        drop((line, permit));
    }
    taken_in.map_err(|refusal| {
        ring.refused(&refusal, &id, addr);
        JoinError::Refused(refusal)
    })?;
    merge_shared(ring, id.clone(), join, user);
    Ok(id)
}

/// Reads a full state, some of it in each turn, so that a large one does not keep the node from all else.
async fn read(ring: &Shared, bytes: Bytes) -> Result<Result<State, Refusal>, WireError> {
    let own = ring.view.borrow().local().id.shared_name().clone();
    let mut unchecked = match State::begin(bytes)? {
        Ok(unchecked) => unchecked,
        Err(refusal) => return Ok(Err(refusal)),
    };
    loop {
        match unchecked.check(READ_PER_TURN, &own)? {
            Ok(state) => return Ok(Ok(state)),
            Err(rest) => unchecked = rest,
        }
        yield_now().await;
    }
}

/// Asks the application about a join, and about the peer itself if it is a newcomer. Says whether it was asked
/// about the peer.
async fn admit(ring: &Shared, peer: &State, addr: SocketAddr) -> Result<bool, Refusal> {
    if !ring.gated {
        return Ok(false);
    }
    if peer.header.join {
        let (mut rest, mut members) = (peer.clone(), Vec::new());
        while members.len() < ring.config.max_members
            && let Some(remembered) = rest.next_member()
        {
            members.push(Arc::new(member(remembered, now())));
            if members.len().is_multiple_of(READ_PER_TURN) {
                yield_now().await;
            }
        }
        veto(ring, Admit::Merge { from: addr, members }).await?;
    }
    let sender = peer.sender().map_err(|_| Refusal::Wire)?;
    let known = {
        let view = ring.view.borrow();
        let held = view.get(sender.alive.id.name());
        held.is_some_and(|held| {
            held.id == sender.alive.id && held.addr == canonical(sender.alive.addr) && held.state.is_present()
        })
    };
    if known {
        return Ok(false);
    }
    // Outside of a join it waits at the gate like any other newcomer.
    if !peer.header.join {
        return Ok(false);
    }
    veto(ring, Admit::Member(Arc::new(member(sender, now())))).await?;
    Ok(true)
}

/// A member as another node tells of it.
fn member(Remembered { alive, state }: Remembered, now: StdInstant) -> Member {
    let mut member = alive.into_member(now);
    member.state = state;
    member
}

async fn veto(ring: &Shared, question: Admit) -> Result<(), Refusal> {
    let (reply, verdict) = oneshot::channel();
    ring.command(&ring.delegates, ToDelegates::Admit { question, asker: Asker::Stream(reply) });
    let lost = || Err("the question was lost".to_owned());
    verdict.await.unwrap_or_else(|_| lost()).map_err(Refusal::Vetoed)
}

/// What the application shares; nothing, if the question is lost.
async fn export(ring: &Shared, joining: bool) -> Bytes {
    if ring.shares.load(Relaxed) == 0 {
        return Bytes::new();
    }
    let (reply, shared) = oneshot::channel();
    ring.command(&ring.delegates, ToDelegates::Export { joining, reply });
    shared.await.unwrap_or_default()
}

fn merge_shared(ring: &Shared, from: NodeId, joining: bool, shared: Bytes) {
    if !shared.is_empty() {
        ring.command(&ring.delegates, ToDelegates::MergeShared { from, joining, shared });
    }
}

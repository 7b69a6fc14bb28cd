//! The sender's connection: it dials, says where it stands, and brings what waits to the peer.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::Context,
    time::{Duration, Instant},
};

use bytes::Bytes;
use memberlist_protocol::{
    link::{Carrier, Lane},
    wire::{
        codec,
        frame::StreamKind,
        link::{self as frames, Frame},
        state::Refusal,
    },
};

use tokio::time::timeout;

use super::{
    LinkEvent,
    cell::{Link, What},
    duplex::{self, End, MISSED, Out, SILENT},
    wide,
};
use crate::{
    logs::{self, Line as Say, say},
    messages::ToLink,
    metrics::up,
    peer::present,
    ring::{Shared, now},
    streams::{Failure, Line, count, dial},
};

/// Bytes of a welcome, at most: what was refused, of two lanes.
const MAX_WELCOME: usize = 256 * 1024;

/// A dial that takes longer gives its turn to another one.
const TURN: Duration = Duration::from_millis(500);

/// Tells PeerLink how a connection has ended, however that comes.
struct Ending {
    ring: Shared,
    link: Arc<Link>,
    carrier: Carrier,
    up: Option<Instant>,
    remote: Option<SocketAddr>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.link.down(self.carrier);
        if self.up.is_some() {
            up(&self.ring.counters.links_down);
        }
        let _ = self.link.inbox.insist(ToLink::Ended { carrier: self.carrier, up: self.up });
    }
}

/// One connection, from the dial to its end.
pub(super) async fn run(ring: Shared, link: Arc<Link>, carrier: Carrier) {
    let mut ending = Ending { ring: ring.clone(), link: link.clone(), carrier, up: None, remote: None };
    let Err(failure) = connected(&ring, &link, &mut ending).await else { return };
    count(&ring, &failure);
    if let Failure::Refused(why) = &failure {
        let remote = ending.remote.unwrap_or(ring.view.borrow().local().addr);
        let (peer, why) = (link.peer.clone(), why.clone());
        if why == Refusal::Removed {
            ring.link_event(&LinkEvent::Removed { by: peer.clone() });
        }
        ring.link_event(&LinkEvent::Refused { peer, remote, why });
    }
    let (peer, why) = (logs::node(&link.peer), logs::text(&failure));
    say!(ring, Say::LinkLost, debug, %peer, %why, "a link to a peer has no connection");
}

async fn connected(ring: &Shared, link: &Arc<Link>, ending: &mut Ending) -> Result<(), Failure> {
    let carrier = ending.carrier;
    let limit = ring.config.tcp_timeout;
    let _room = ring.link_room.acquire().await.map_err(|_| Failure::Unserved)?;
    // Many links that come up at once take turns.
    let mut turn = Some(ring.dials.acquire().await.map_err(|_| Failure::Unserved)?);
    let Some(member) = present(ring, &link.peer) else { return Ok(()) };
    ending.remote = Some(member.addr);
    let mut dialling = std::pin::pin!(dial(ring, member.addr, limit));
    let channel = match timeout(TURN, &mut dialling).await {
        Ok(channel) => channel?,
        Err(_) => {
            // Whoever does not answer keeps no other from being dialled.
            turn = None;
            dialling.await?
        }
    };
    let mut line = Line::new(ring, channel);
    line.open(StreamKind::Link).await?;
    if link.is_ended() {
        return Ok(());
    }
    let from = ring.view.borrow().local().id.clone();
    let hello = link.hello(carrier, from, &ring.config);
    line.write(&[&codec::encode_hello(&hello)]).await?;
    let welcome = codec::decode_welcome(&line.answer(MAX_WELCOME).await?)?;
    drop(turn);
    let welcome = welcome.map_err(Failure::Refused)?;
    let at = now();
    link.welcomed(ring, &hello, &welcome, member.addr, at).map_err(|_| nonsense())?;
    ending.up = Some(at);
    up(&ring.counters.links_up);
    match carrier {
        Carrier::Main => {
            // An answer, or an ack of as many refusals as are kept.
            let max = ring.config.max_message_size.max(MAX_WELCOME) + frames::MAX_AROUND;
            let long = ring.config.max_ordered_size + frames::MAX_AROUND;
            let mut speaker = Speaker::new(ring, link, member.addr, hello.answers);
            duplex::run(&ring.counters, line.channel(), &mut speaker, long, max).await
        }
        Carrier::Bulk => wide::send(&mut line, link).await,
    }
}

/// The peer contradicts itself.
pub(super) fn nonsense() -> Failure {
    Failure::Refused(Refusal::Overtaken)
}

/// The sender's end of a main connection.
struct Speaker<'a> {
    ring: &'a Shared,
    link: &'a Link,
    addr: SocketAddr,
    /// Answers below this have arrived, and the peer has been told up to the second.
    answers: (u64, u64),
    asked: Option<(u64, Instant)>,
    pinged: bool,
    /// When the peer has settled something, or nothing was to be settled.
    settled: Instant,
    /// Since when nothing has been under way.
    idle: Option<Instant>,
}

impl<'a> Speaker<'a> {
    fn new(ring: &'a Shared, link: &'a Link, addr: SocketAddr, answers: u64) -> Self {
        let (asked, pinged, settled, idle) = (None, false, now(), None);
        Self { ring, link, addr, answers: (answers, answers), asked, pinged, settled, idle }
    }
}

/// A link that has had nothing to say for so long lets its connection go.
const IDLE: Duration = Duration::from_secs(60);

impl End for Speaker<'_> {
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), Failure> {
        let at = now();
        match frame {
            Frame::Ack { lane, next, refused } if lane.carrier() == Carrier::Main => {
                let refused = frames::refused(refused)?;
                if self.link.acked(self.ring, lane, next, &refused).map_err(|_| nonsense())? {
                    self.settled = at;
                }
            }
            Frame::Answer { number, lane, question, how, payload } => {
                let next = self.link.answered(self.ring, number, (lane, question), how, payload);
                self.answers.0 = next.map_err(|_| nonsense())?;
            }
            Frame::Pong(token) => {
                if let Some((asked, since)) = self.asked.take()
                    && asked == token
                {
                    self.link.measured(at.saturating_duration_since(since));
                }
            }
            Frame::Bye(code) => return Err(Failure::Refused(Refusal::of_code(code))),
            _ => return Err(memberlist_protocol::wire::WireError::Kind.into()),
        }
        let stalled = self.ring.config.link_window.max(SILENT * MISSED);
        if at.saturating_duration_since(self.settled) >= stalled {
            // It is not silent; but whatever it says, it takes nothing.
            if !self.link.is_settled(Carrier::Main) {
                return Err(Failure::Timeout);
            }
            self.settled = at;
        }
        Ok(())
    }

    fn takes_long(&self, frame: &Frame<'_>, len: usize) -> Result<bool, Failure> {
        match frame {
            Frame::Ack { .. } if len <= MAX_WELCOME => Ok(true),
            Frame::Answer { lane, question, .. } => Ok(self.link.awaits((*lane, *question))),
            _ => Err(memberlist_protocol::wire::WireError::TooLong.into()),
        }
    }

    fn fill(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Result<(), Failure> {
        // Nobody is to talk over what has been ended: the peer may have a link again.
        if self.link.is_ended() {
            return Err(Failure::Unserved);
        }
        if self.answers.0 != self.answers.1 {
            self.answers.1 = self.answers.0;
            out.push(&Frame::Answered(self.answers.0), &Bytes::new());
        }
        if !self.pinged {
            // The first one measures the way.
            self.pinged = true;
            self.ping(out);
        }
        let at = now();
        self.link.next(Carrier::Main, cx.waker(), |lane, number, what, bytes| {
            push(out, lane, number, what, bytes, at);
            !out.is_full()
        });
        Ok(())
    }

    fn silent(&mut self, missed: u32, out: &mut Out) -> Result<(), Failure> {
        let at = now();
        self.link.purge(self.ring, at);
        if self.link.is_settled(Carrier::Main) {
            self.settled = at;
        }
        if missed >= MISSED {
            return Err(Failure::Timeout);
        }
        // The address may be another one by now, or nobody's.
        if present(self.ring, &self.link.peer).is_none_or(|member| member.addr != self.addr) {
            return Err(Failure::Unserved);
        }
        // Where there is no room for further links, it is the turn of others.
        let wanted = self.ring.link_room.available_permits() == 0;
        if !self.link.is_idle(Carrier::Main) {
            self.idle = None;
        } else if wanted || at.saturating_duration_since(*self.idle.get_or_insert(at)) >= IDLE {
            return Err(Failure::Unserved);
        }
        self.ping(out);
        Ok(())
    }
}

impl Speaker<'_> {
    fn ping(&mut self, out: &mut Out) {
        let token = self.ring.number();
        self.asked = Some((token, now()));
        out.push(&Frame::Ping(token), &Bytes::new());
    }
}

/// Writes a message.
pub(super) fn push(out: &mut Out, lane: Lane, number: u64, what: What, bytes: &Bytes, at: Instant) {
    out.push(&Frame::Message { lane, number, what: worded(what, at), payload: &[] }, bytes);
}

/// What a message is, as the wire says it.
pub(super) fn worded(what: What, at: Instant) -> frames::What<'static> {
    match what {
        What::Tell(kind) => frames::What::Tell(kind),
        What::Ask(kind, until) => {
            let within = until.saturating_duration_since(at).as_millis();
            frames::What::Ask(kind, u32::try_from(within).unwrap_or(u32::MAX))
        }
        What::Broadcast => frames::What::Broadcast,
    }
}

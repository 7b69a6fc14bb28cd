//! Packets on their way out. When the network takes no more, what users send waits in its queue; a few packets of
//! the membership are held here and leave before it.

use std::{
    collections::VecDeque, io, net::SocketAddr, sync::atomic::Ordering::Relaxed, task::Context,
    time::Duration,
};

use bytes::Bytes;
use memberlist_protocol::{
    member::NodeId,
    probe::{self, Unheard},
    wire::{
        frame::Packer,
        message::{Message, Wait},
    },
};

use super::{OUT, Transport};
use crate::{
    logs::{Line, say},
    messages::ToDetector,
    metrics::{Lost, up},
    network::Endpoint,
    ring::now,
};

/// Packets of users that leave in one turn.
const CASTS_PER_TURN: usize = 32;

/// Packets of the membership that wait for the network. Those of a few rounds: older ones say nothing new.
const MAX_HELD: usize = 64;

/// Longest time for which a node may ask for silence.
const MAX_HOLD: Duration = Duration::from_millis(20);

/// A packet that is ready to leave, and the ping in it.
struct Held {
    to: SocketAddr,
    bytes: Bytes,
    report: Option<u32>,
}

/// What survives a restart: whether the network takes packets, and which have to wait for that.
#[derive(Default)]
pub(crate) struct Outgoing {
    blocked: bool,
    held: VecDeque<Held>,
}

impl Outgoing {
    /// Whether the network takes packets, as far as is known; else the waker is called once it does.
    pub(super) fn is_open(&mut self, endpoint: &dyn Endpoint, cx: &mut Context<'_>) -> bool {
        self.blocked = self.blocked && endpoint.poll_writable(cx).is_pending();
        !self.blocked
    }

    /// Whether packets of the membership wait.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

impl Transport {
    /// Sends a packet with this body, for that run if it is known. What the network does not take just now is held
    /// until it does, if there is room for that.
    pub(super) fn send(&self, to: SocketAddr, run: u64, body: &[u8], report: Option<u32>) {
        OUT.with_borrow_mut(|out| {
            if !self.wrap(run, body, out) {
                return;
            }
            let blocked = self.kept.borrow().outgoing.blocked;
            let sent = if blocked { Err(io::ErrorKind::WouldBlock.into()) } else { self.hand_over(to, out) };
            if let Err(error) = sent {
                self.hold_back(to, out, report, &error);
            }
        });
    }

    /// The same now or never. Says whether the network took it.
    pub(super) fn send_now(&self, to: SocketAddr, run: u64, body: &[u8]) -> bool {
        OUT.with_borrow_mut(|out| {
            self.wrap(run, body, out)
                && self.hand_over(to, out).inspect_err(|error| self.not_sent(to, out, None, error)).is_ok()
        })
    }

    /// Writes the packet around a body. Says whether that worked.
    fn wrap(&self, run: u64, body: &[u8], out: &mut Vec<u8>) -> bool {
        let run = (run != NodeId::ANY_RUN).then_some(run);
        let wrapped = self.ring.guard().wrap(self.ring.run(), run, body, out);
        if let Err(error) = wrapped {
            self.ring.counters.drop(error);
        }
        wrapped.is_ok()
    }

    fn hand_over(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let sent = self.ring.endpoint.try_send(bytes, to);
        match &sent {
            Ok(()) => {
                up(&self.ring.counters.packets_sent);
                self.ring.counters.bytes_sent.fetch_add(bytes.len() as u64, Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.kept.borrow_mut().outgoing.blocked = true;
            }
            Err(_) => {}
        }
        sent
    }

    /// Holds a packet that the network does not take just now.
    fn hold_back(&self, to: SocketAddr, bytes: &[u8], report: Option<u32>, error: &io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            let held = &mut self.kept.borrow_mut().outgoing.held;
            if held.len() < MAX_HELD {
                held.push_back(Held { to, bytes: Bytes::copy_from_slice(bytes), report });
                return;
            }
        }
        self.not_sent(to, bytes, report, error);
    }

    fn not_sent(&self, to: SocketAddr, bytes: &[u8], report: Option<u32>, error: &io::Error) {
        let (ring, len) = (&self.ring, bytes.len());
        if error.kind() == io::ErrorKind::WouldBlock {
            ring.counters.drop(Lost::WouldBlock);
            say!(ring, Line::WouldBlock, debug, %to, "packet not sent: the network takes no more just now");
        } else {
            ring.counters.drop(Lost::SendFailed);
            say!(ring, Line::NotSent, warn, %to, %error, len, "packet not sent");
        }
        if let Some(seq) = report {
            ring.command(ring.detector_inbox(), ToDetector::SendFailed { seq });
        }
    }

    /// Sends what has waited for the network, as far as it takes that.
    pub(super) fn send_held(&self) {
        loop {
            let mut kept = self.kept.borrow_mut();
            let outgoing = &mut kept.outgoing;
            let Some(held) = (if outgoing.blocked { None } else { outgoing.held.pop_front() }) else {
                return;
            };
            drop(kept);
            match self.hand_over(held.to, &held.bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.kept.borrow_mut().outgoing.held.push_front(held);
                }
                Err(error) => self.not_sent(held.to, &held.bytes, held.report, &error),
                Ok(()) => {}
            }
        }
    }

    /// Asks a member to send no users' messages for so long.
    pub(super) fn ask_to_wait(&self, to: &NodeId, addr: SocketAddr, millis: u8) {
        let from = self.ring.view.borrow().local().id.clone();
        let message = Message::Wait(Wait { from, to: to.clone(), millis });
        let mut body = vec![0; self.ring.config.udp_buffer_size];
        let mut packer = Packer::body(&mut body);
        if packer.push(&message) {
            let len = packer.len();
            self.ring.counters.sent(&message);
            self.send(addr, to.run(), &body[..len], None);
        }
    }

    /// A member has asked for that.
    pub(super) fn hold(&self, message: &Wait, from: SocketAddr) -> Result<(), Unheard> {
        let ring = &self.ring;
        let view = ring.view.borrow();
        if view.local().id != message.to {
            return Err(Unheard::NotForMe);
        }
        let member = probe::member_at(&view, &message.from, from).ok_or(Unheard::UnknownAsker)?;
        let wait = Duration::from_millis(message.millis.into()).min(MAX_HOLD);
        ring.casts.hold(member.addr, member.id.run(), now() + wait);
        Ok(())
    }

    /// Sends what users have to say in datagrams, as much as one turn has time for and the network takes.
    pub(super) fn send_casts(&self) {
        let ring = &self.ring;
        let mut body = Vec::new();
        for _ in 0..CASTS_PER_TURN {
            if self.kept.borrow().outgoing.blocked {
                return;
            }
            let Some(packet) = ring.casts.next() else { return };
            if body.is_empty() {
                body.resize(ring.config.udp_buffer_size.saturating_sub(ring.guard().overhead()).max(1), 0);
            }
            let from = ring.view.borrow().local().id.clone();
            let (to, mut packer) = (&packet.to, Packer::body(&mut body));
            if !packer.push_direct(&from, to.id.as_ref(), packet.parts.as_bytes()) {
                ring.counters.drop_many(Lost::NoRoom, packet.parts.parts());
                continue;
            }
            let len = packer.len();
            let sent = OUT.with_borrow_mut(|out| {
                if self.wrap(to.run, &body[..len], out) { self.hand_over(to.addr, out) } else { Ok(()) }
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ring.casts.put_back(packet);
                    return;
                }
                Err(error) => {
                    ring.counters.drop(Lost::SendFailed);
                    say!(ring, Line::NotSent, warn, to = %to.addr, %error, len, "packet not sent");
                }
                Ok(()) => {}
            }
            ring.casts.done(packet);
        }
    }
}

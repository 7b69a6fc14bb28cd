//! Users' messages that have come in a datagram, on their way to the handlers.

use std::net::SocketAddr;

use memberlist_protocol::{member::NodeId, wire::message::Direct};

use super::Transport;
use crate::{events::Sender, metrics::Lost, peer::present, routes::Arrived};

impl Transport {
    /// Gives each handler its own.
    pub(super) fn deliver(&self, message: &Direct, addr: SocketAddr) {
        let ring = &self.ring;
        if message.to.as_ref().is_some_and(|to| ring.view.borrow().local().id != *to) {
            ring.counters.drop(Lost::NotForUs);
            return;
        }
        let (untyped, typed) = self.senders(&message.from, addr);
        let mut count = 0;
        for (kind, bytes) in message.parts.parts() {
            count += 1;
            let from = if kind.is_empty() { &untyped } else { &typed };
            ring.routes.deliver(ring, Arrived { from, kind, bytes, reliable: false, answer: None });
        }
        self.messages.set(self.messages.get() + count);
    }

    /// Who it is that sends: a member, if there is one of that name and run on that host. Handlers of bytes hear of
    /// others by their address, those of types by the name that they give, unless it is a member's.
    fn senders(&self, claimed: &NodeId, addr: SocketAddr) -> (Sender, Sender) {
        match present(&self.ring, claimed) {
            Some(member) if member.addr.ip() == addr.ip() => {
                (Sender::Member(claimed.clone()), Sender::Member(claimed.clone()))
            }
            Some(_) => (Sender::Address(addr), Sender::Address(addr)),
            None => (Sender::Address(addr), Sender::Stranger(claimed.clone())),
        }
    }
}

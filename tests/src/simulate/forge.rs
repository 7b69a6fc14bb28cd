//! Packets that are well formed, and that nobody of the cluster has sent. Only such as must do no harm: without a key
//! whoever knows the label can say what it likes, but for answers to what it was not asked.

use std::net::SocketAddr;

use actix_memberlist::{Config, Key, Member, NodeId};
use memberlist_protocol::{
    accusation::Evidence,
    keyring::Sealing,
    wire::{
        frame::Packer,
        guard::{Guard, Labels},
        message::{Ack, Alive, Dead, Message, Nack, Suspect},
    },
};
use rand::{RngExt, rngs::Xoshiro256PlusPlus};

/// Whoever forges: it has heard who the members are.
pub(super) struct Forger {
    /// The label of the cluster, and no seal.
    plain: Guard,
    /// The label, and another key.
    sealed: Guard,
    /// All that nodes of the cluster have, and another label.
    other: Guard,
    keyed: bool,
}

impl Forger {
    pub(super) fn new(config: &Config, key: Option<&Key>) -> Self {
        let guard = |label: &str, key: Option<&Key>| {
            let ring = key.map(std::slice::from_ref);
            let sealing = if key.is_some() { Sealing::Required } else { Sealing::Off };
            Guard::new(config, Labels::new(label), ring, sealing).expect("a label")
        };
        let wrong = Key::from_bytes(&[8; 32]).expect("it has a length");
        Self {
            plain: guard("shop", None),
            sealed: guard("shop", Some(&wrong)),
            other: guard("bank", key),
            keyed: key.is_some(),
        }
    }

    /// A packet that speaks of `member`, or seems to come from it, and what has read it.
    pub(super) fn packet(&mut self, rng: &mut Xoshiro256PlusPlus, member: &Member, by: &Member) -> Vec<u8> {
        let way = rng.random_range(0..3);
        let message = match way {
            // What a node of an open cluster takes in: then nothing that the member's own run could be meant by.
            0 if !self.keyed => match rng.random_range(0..4) {
                0 => Message::Ack(Ack { seq: rng.random(), payload: Default::default() }),
                1 => Message::Nack(Nack { seq: rng.random() }),
                2 => accusation(NodeId::new(member.name(), rng.random()), member.incarnation + 1, by),
                _ => verdict(
                    NodeId::new(member.name(), rng.random()),
                    member.incarnation + 1,
                    by,
                    rng.random(),
                ),
            },
            _ => match rng.random_range(0..3) {
                0 => accusation(member.id.clone(), member.incarnation, by),
                1 => verdict(member.id.clone(), member.incarnation, by, rng.random()),
                _ => {
                    let mut alive = Alive::of(member);
                    alive.incarnation += rng.random_range(1..10);
                    alive.meta = b"forged"[..].into();
                    Message::Alive(alive)
                }
            },
        };
        let guard = [&mut self.plain, &mut self.sealed, &mut self.other].into_iter().nth(way).expect("a way");
        wrapped(guard, by, &message)
    }

    /// An accusation that a node of an open cluster takes in.
    pub(super) fn accusation(&mut self, about: &Member, by: &Member) -> Vec<u8> {
        wrapped(&mut self.plain, by, &accusation(about.id.clone(), about.incarnation, by))
    }
}

fn wrapped(guard: &mut Guard, by: &Member, message: &Message) -> Vec<u8> {
    let (mut room, mut packet) = ([0; 1200], Vec::new());
    let mut packer = Packer::body(&mut room);
    packer.push(message);
    let body = packer.finish().unwrap_or_default();
    guard.wrap(by.id.run(), None, &body, &mut packet).expect("it is sealed");
    packet
}

fn accusation(id: NodeId, incarnation: u32, by: &Member) -> Message {
    let from = by.id.shared_name().clone();
    Message::Suspect(Suspect { id, incarnation, from, evidence: Evidence::Hearsay })
}

/// That a member is dead, or has left: then it says so itself.
fn verdict(id: NodeId, incarnation: u32, by: &Member, left: bool) -> Message {
    let from = if left { id.shared_name().clone() } else { by.id.shared_name().clone() };
    let evidence = if left { Evidence::Announced } else { Evidence::Hearsay };
    Message::Dead(Dead { id, incarnation, by: from.clone(), from, confirmed_by: Vec::new(), evidence })
}

/// Where forged packets seem to come from.
pub(super) fn seems(by: &Member) -> SocketAddr {
    by.addr
}

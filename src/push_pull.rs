//! The exchange of full states: what a node gives, what it takes, and from whom.

use std::sync::Arc;

use rand::Rng;

use crate::{
    member::{Member, MemberState, Versions},
    members::Members,
    view::View,
    wire::{
        codec,
        message::{Alive, Remembered},
        state::{OwnBytes, Refusal, State, StateHeader},
    },
};

/// A node's own state as bytes, written anew only when the table has changed.
#[derive(Debug, Default)]
pub struct OwnState {
    /// For which version of the table, join or not.
    cached: Option<(u64, OwnBytes)>,
}

impl OwnState {
    /// The state now.
    pub fn get(&mut self, members: &Members, join: bool) -> OwnBytes {
        let mut own = match self.cached.take() {
            Some((version, own)) if version == members.version() => own,
            _ => encode(members),
        };
        self.cached = Some((members.version(), own.clone()));
        own.header.join = join;
        own
    }

    /// Frees the bytes: nobody may ask for long.
    pub fn forget(&mut self) {
        self.cached = None;
    }
}

fn encode(members: &Members) -> OwnBytes {
    let local = members.local();
    let others = members.roster().iter().filter(|m| m.name() != local.name());
    let all = std::iter::once(local).chain(others);
    let (mut bytes, mut count) = (Vec::with_capacity(48 * members.roster().len()), 0);
    for member in all {
        codec::encode_remembered(&Remembered { alive: Alive::of(member), state: member.state }, &mut bytes);
        count += 1;
    }
    let (from, versions) = (local.id.clone(), local.versions);
    let header = StateHeader { from, versions, join: false, tentative: false, members: count, user_len: 0 };
    OwnBytes { header, members: bytes.into() }
}

/// Whether a peer's state is taken. Only the peer's own versions count: a member that it carries along, and
/// that nobody can talk to, spoils nobody else's.
///
/// # Errors
/// [`Refusal::Version`].
pub fn admit(members: &Members, header: &StateHeader) -> Result<(), Refusal> {
    let own: Versions = members.local().versions;
    if !header.versions.is_sound() || !own.can_talk_to(header.versions) {
        return Err(Refusal::Version);
    }
    Ok(())
}

/// Whether the peer's own address is among those allowed.
///
/// # Errors
/// [`Refusal::Address`].
pub fn admit_address(members: &Members, peer: &Alive) -> Result<(), Refusal> {
    let ip = peer.addr.ip();
    if members.config().allows(ip) || peer.id == members.local().id { Ok(()) } else { Err(Refusal::Address) }
}

/// Whether the peer may go by its name: not if another one of that name is present at another address.
///
/// # Errors
/// [`Refusal::NameTaken`].
pub fn admit_name(members: &Members, peer: &Alive) -> Result<(), Refusal> {
    let taken = members.roster().get(peer.id.name()).is_some_and(|held| {
        held.state.is_present()
            && held.id.run() != peer.id.run()
            && held.addr != crate::member::canonical(peer.addr)
    });
    if taken { Err(Refusal::NameTaken) } else { Ok(()) }
}

/// Whether a peer may be dealt with that holds somebody else for the one of this node's name: not if that one
/// is present, at another address. Its cluster would not let this node in.
///
/// # Errors
/// [`Refusal::NameTaken`].
pub fn admit_state(local: &Member, peer: &State) -> Result<(), Refusal> {
    for Remembered { alive, state } in peer.namesakes() {
        let namesake = alive.id.name() == local.name() && alive.id.run() != local.id.run();
        if namesake && state.is_present() && crate::member::canonical(alive.addr) != local.addr {
            return Err(Refusal::NameTaken);
        }
    }
    Ok(())
}

/// A random member that is alive, to exchange states with.
pub fn partner<R: Rng + ?Sized>(view: &View, rng: &mut R) -> Option<Arc<Member>> {
    let local = view.local().clone();
    view.roster().sample(1, rng, |m| m.state == MemberState::Alive && m.id != local.id).pop()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use bytes::Bytes;

    use super::*;
    use crate::{config::Config, member::NodeId};

    fn table(n: usize) -> (Members, Xoshiro256PlusPlus, Instant) {
        let (now, mut rng) = (Instant::now(), Xoshiro256PlusPlus::seed_from_u64(1));
        let member = |name: &str, i: u8| {
            Member::new(NodeId::new(name, 1), (std::net::Ipv4Addr::new(10, 0, 0, i), 1).into(), 1, now)
        };
        let mut table = Members::new(Arc::new(Config::lan()), member("self", 1), 0);
        for i in 1..n {
            let alive = Alive::of(&member(&format!("n{i}"), 1 + i as u8));
            let decision = table.alive(&alive, now, &mut rng).unwrap();
            table.apply(decision, now);
        }
        (table, rng, now)
    }

    fn read(own: &OwnBytes) -> State {
        let mut bytes = State::head(&own.header, 0);
        bytes.extend_from_slice(&own.members);
        State::decode(bytes.into(), "n1").unwrap().unwrap()
    }

    #[test]
    fn weak_point_24_the_state_is_written_once_for_each_change_of_the_table() {
        let (mut table, mut rng, now) = table(10);
        let mut own = OwnState::default();
        let first = own.get(&table, false);
        assert_eq!(own.get(&table, true).members.as_ptr(), first.members.as_ptr());
        let decision = table.update(None, Some(Bytes::from_static(b"m")), &mut rng).unwrap();
        table.apply(decision, now);
        assert_ne!(own.get(&table, false), first);
    }

    #[test]
    fn a_state_tells_every_member_in_any_state() {
        let (table, _, _) = table(10);
        let state = read(&OwnState::default().get(&table, true));
        assert_eq!((state.header.members, state.header.from.name()), (10, "self"));
    }

    #[test]
    fn weak_point_05_versions_of_others_do_not_spoil_an_exchange() {
        let (table, _, _) = table(2);
        let header = |versions| StateHeader {
            from: NodeId::new("p", 1),
            versions,
            join: false,
            tentative: false,
            members: 3,
            user_len: 0,
        };
        assert_eq!(admit(&table, &header(Versions::CURRENT)), Ok(()));
        let later = Versions::from_bytes([2, 3, 2, 0, 0, 0]);
        assert_eq!(admit(&table, &header(later)), Err(Refusal::Version));
        assert_eq!(admit(&table, &header(Versions::from_bytes([0; 6]))), Err(Refusal::Version));
        let application = Versions::from_bytes([1, 1, 1, 1, 2, 2]);
        assert_eq!(admit(&table, &header(application)), Err(Refusal::Version));
    }

    #[test]
    fn a_name_is_taken_only_by_another_one_elsewhere_who_is_there() {
        let (mut table, mut rng, now) = table(3);
        let held = Alive::of(table.roster().get("n1").unwrap());
        assert_eq!(admit_name(&table, &held), Ok(()));
        let restarted = Alive { id: NodeId::new("n1", 2), ..held.clone() };
        assert_eq!(admit_name(&table, &restarted), Ok(()));
        let rival = Alive { addr: "10.0.0.99:1".parse().unwrap(), ..restarted };
        assert_eq!(admit_name(&table, &rival), Err(Refusal::NameTaken));
        let dead = crate::wire::message::Dead {
            from: "self".into(),
            ..crate::wire::message::Dead::farewell(table.roster().get("n1").unwrap())
        };
        let decision = table.dead(&dead, now, &mut rng).unwrap();
        table.apply(decision, now);
        assert_eq!(admit_name(&table, &rival), Ok(()));
    }

    #[test]
    fn weak_point_17_a_peer_that_knows_another_one_of_this_name_is_not_dealt_with() {
        let (table, _, now) = table(3);
        let state = read(&OwnState::default().get(&table, true));
        let me = |run, addr: &str| Member::new(NodeId::new("n1", run), addr.parse().unwrap(), 1, now);
        assert_eq!(admit_state(&me(9, "10.0.0.99:1"), &state), Err(Refusal::NameTaken));
        assert_eq!(admit_state(&me(1, "10.0.0.99:1"), &state), Ok(()), "the same run");
        assert_eq!(admit_state(&me(9, "10.0.0.2:1"), &state), Ok(()), "restarted at its address");
    }

    #[test]
    fn the_partner_is_alive_and_somebody_else() {
        let (table, mut rng, _) = table(1);
        assert!(partner(&table.view(), &mut rng).is_none());
    }
}

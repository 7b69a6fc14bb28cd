//! What travels along in each packet: news of the membership, and users' broadcasts, which always keep a
//! share of the room.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use rand::Rng;

use crate::{
    broadcast::{BroadcastQueue, End, TooLarge},
    config::Config,
    member::{Member, MemberState, NodeId},
    view::View,
    wire::{
        frame::{Envelope, PART_OVERHEAD, Packer},
        message::Message,
    },
};

/// Of this share of a packet's room news of the membership keeps off when users have something to say.
const USER_SHARE: usize = 4;

/// News and broadcasts that wait, and the packets they go into. `T` is a user's ticket for a broadcast.
#[derive(Debug)]
pub struct Gossip<T> {
    envelope: Envelope,
    news: BroadcastQueue<Option<T>>,
    users: BroadcastQueue<Option<T>>,
    buf: Vec<u8>,
}

impl<T> Gossip<T> {
    /// Empty queues with the bounds of the settings.
    pub fn new(config: &Config, envelope: Envelope) -> Self {
        let max_len = envelope.room(config.udp_buffer_size) - PART_OVERHEAD;
        Self {
            news: BroadcastQueue::new(config.max_broadcasts, config.max_broadcast_bytes, max_len),
            users: BroadcastQueue::new(config.max_user_broadcasts, config.max_user_broadcast_bytes, max_len),
            buf: vec![0; config.udp_buffer_size],
            envelope,
        }
    }

    /// Queues news about the member `about`; older news about it goes. Says how many others had to go.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn news(&mut self, about: Arc<str>, bytes: Bytes) -> Result<usize, TooLarge> {
        self.news_with(about, bytes, None)
    }

    /// The same with a ticket, which comes back when the news has been sent as often as it should.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn news_with(&mut self, about: Arc<str>, bytes: Bytes, ticket: Option<T>) -> Result<usize, TooLarge> {
        let mut pruned = 0;
        self.news.push(Some(about), bytes, ticket, |_, end| pruned += usize::from(end == End::Pruned))?;
        Ok(pruned)
    }

    /// Queues a user's broadcast; those that it replaces go.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn user(
        &mut self,
        name: Option<Arc<str>>,
        replaces: &[String],
        bytes: Bytes,
        ticket: Option<T>,
        mut ended: impl FnMut(Option<T>, End),
    ) -> Result<(), TooLarge> {
        if bytes.len() <= self.users.max_len() {
            for name in replaces {
                self.users.invalidate(name, &mut ended);
            }
        }
        self.users.push(name, bytes, ticket, ended)
    }

    /// Drops users' broadcasts of that name and of those that it replaces.
    pub fn invalidate(
        &mut self,
        name: Option<&str>,
        replaces: &[String],
        mut ended: impl FnMut(Option<T>, End),
    ) {
        for name in name.into_iter().chain(replaces.iter().map(String::as_str)) {
            self.users.invalidate(name, &mut ended);
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.news.is_empty() && self.users.is_empty()
    }

    /// Entries that wait: news, and users' broadcasts.
    pub fn len(&self) -> (usize, usize) {
        (self.news.len(), self.users.len())
    }

    /// A packet of what waits: news of the membership first, but a quarter of the room is users' if they want it.
    pub fn packet(&mut self, limit: u32, ended: impl FnMut(Option<T>, End)) -> Option<Bytes> {
        let mut packer = Packer::new(&self.envelope, &mut self.buf);
        fill(&mut self.news, &mut self.users, &mut packer, limit, ended);
        packer.finish()
    }

    /// A packet with a message in front that is written already, and what waits behind it.
    pub fn packet_of(
        &mut self,
        message: &[u8],
        limit: u32,
        ended: impl FnMut(Option<T>, End),
    ) -> Option<Bytes> {
        let mut packer = Packer::new(&self.envelope, &mut self.buf);
        if !packer.push_encoded(message) {
            return None;
        }
        fill(&mut self.news, &mut self.users, &mut packer, limit, ended);
        packer.finish()
    }

    /// Ends everything as sent: there is nobody to tell it to.
    pub fn finish(&mut self, ended: impl FnMut(Option<T>, End)) {
        self.news.finish(|_, _| {});
        self.users.finish(ended);
    }

    /// Most bytes that one piece of news or one broadcast may have.
    pub fn max_len(&self) -> usize {
        self.users.max_len()
    }

    /// A packet with `messages` in front, and what waits behind them when it is to travel along. The first of
    /// them has to go; the others go as far as there is room. Nothing if the first does not fit.
    pub fn packet_with(
        &mut self,
        messages: &[Message],
        piggyback: Piggyback,
        limit: u32,
        ended: impl FnMut(Option<T>, End),
    ) -> Option<Bytes> {
        let mut packer = Packer::new(&self.envelope, &mut self.buf);
        let (first, others) = messages.split_first()?;
        if !packer.push(first) {
            return None;
        }
        for message in others {
            packer.push(message);
        }
        if piggyback == Piggyback::Yes {
            fill(&mut self.news, &mut self.users, &mut packer, limit, ended);
        }
        packer.finish()
    }
}

/// Whether news travels along. Only members get any: a stranger's pings would use up what is meant for them,
/// and would be told who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piggyback {
    /// To a member.
    Yes,
    /// To a stranger.
    No,
}

fn fill<T>(
    news: &mut BroadcastQueue<Option<T>>,
    users: &mut BroadcastQueue<Option<T>>,
    packer: &mut Packer<'_>,
    limit: u32,
    mut ended: impl FnMut(Option<T>, End),
) {
    let spare = if users.is_empty() { 0 } else { packer.room() / USER_SHARE };
    news.fill(packer, spare, limit, &mut ended);
    users.fill(packer, 0, limit, &mut ended);
}

/// Who gets gossip: members that are there, and those that died a short while ago, so that they can refute.
pub fn targets<R: Rng + ?Sized>(view: &View, config: &Config, now: Instant, rng: &mut R) -> Vec<Arc<Member>> {
    let local = view.local().clone();
    view.roster().sample(config.gossip_nodes, rng, |m| {
        let wanted = match m.state {
            MemberState::Alive | MemberState::Suspect => true,
            MemberState::Dead => now.saturating_duration_since(m.since) <= config.gossip_to_the_dead_time,
            MemberState::Left => false,
        };
        wanted && m.id != local.id
    })
}

/// Numbers of broadcasts that are remembered for one origin.
const WINDOW: u64 = 4096;

/// Origins that are remembered.
const ORIGINS: usize = 4096;

/// Which broadcasts of users have been seen: each is handled and passed on once.
#[derive(Debug, Default)]
pub struct Seen {
    origins: BTreeMap<NodeId, Window>,
    age: u64,
}

#[derive(Debug)]
struct Window {
    /// The highest number seen.
    top: u64,
    /// Bit `n % WINDOW` stands for the number `n`, for the last [`WINDOW`] numbers.
    bits: Box<[u64; WINDOW as usize / 64]>,
    age: u64,
}

impl Seen {
    /// Whether the broadcast `id` of `origin` has not been seen before. It has been seen from then on.
    pub fn is_new(&mut self, origin: &NodeId, id: u64) -> bool {
        self.age += 1;
        if !self.origins.contains_key(origin) && self.origins.len() >= ORIGINS {
            let oldest = self.origins.iter().min_by_key(|(_, window)| window.age).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.origins.remove(&id));
        }
        let window = self.origins.entry(origin.clone()).or_insert_with(|| Window {
            top: id,
            bits: Box::new([0; WINDOW as usize / 64]),
            age: 0,
        });
        window.age = self.age;
        window.is_new(id)
    }
}

impl Window {
    fn is_new(&mut self, id: u64) -> bool {
        if id > self.top {
            if id - self.top >= WINDOW {
                self.bits.fill(0);
            } else {
                for n in self.top + 1..id {
                    *self.word(n) &= !(1 << (n % 64));
                }
                *self.word(id) &= !(1 << (id % 64));
            }
            self.top = id;
        } else if self.top - id >= WINDOW {
            return false;
        }
        let bit = 1 << (id % 64);
        let word = self.word(id);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn word(&mut self, n: u64) -> &mut u64 {
        &mut self.bits[(n % WINDOW / 64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;
    use crate::{
        accusation::Evidence,
        view::Roster,
        wire::{
            WireError, codec,
            message::{Ack, Dead},
        },
    };

    fn gossip() -> Gossip<u32> {
        Gossip::new(&Config::lan(), Envelope::new("").unwrap())
    }

    #[test]
    fn weak_point_18_the_largest_answer_fits_the_smallest_packet_whatever_else_is_to_be_told() {
        let long = |c: char| NodeId::new(c.to_string().repeat(255), 1);
        let config = Config { udp_buffer_size: 1024, ..Config::lan() };
        let envelope = Envelope::new(&"l".repeat(255)).unwrap();
        let mut gossip: Gossip<u32> = Gossip::new(&config, envelope.clone());
        let ack = Message::Ack(Ack { seq: u32::MAX, payload: vec![7; Ack::MAX_PAYLOAD].into() });
        let told = Message::Dead(Dead {
            id: long('a'),
            incarnation: u32::MAX,
            from: long('b').name().into(),
            by: long('b').name().into(),
            confirmed_by: Vec::new(),
            evidence: Evidence::Hearsay,
        });
        let packet = gossip.packet_with(&[ack.clone(), told], Piggyback::Yes, 8, |_, _| {}).unwrap();
        let parts: Vec<_> =
            envelope.parts(&packet).unwrap().map(|part| codec::decode(part.unwrap())).collect();
        assert_eq!(parts, [Ok(ack)]);
        let larger = Message::Ack(Ack { seq: 1, payload: vec![7; Ack::MAX_PAYLOAD + 1].into() });
        let bytes = codec::encoded(&larger, usize::MAX).unwrap();
        assert_eq!(codec::decode(&bytes), Err(WireError::Meta), "a larger one is dropped and counted");
    }

    #[test]
    fn users_keep_a_quarter_of_each_packet_however_much_news_there_is() {
        let mut gossip = gossip();
        for i in 0..1000 {
            gossip.news(format!("n{i}").into(), vec![b'n'; 50].into()).unwrap();
            gossip.user(None, &[], vec![b'u'; 50].into(), None, |_, _| {}).unwrap();
        }
        for _ in 0..20 {
            let packet = gossip.packet(8, |_, _| {}).unwrap();
            assert!(packet.len() <= 1400);
            let users = packet.iter().filter(|b| **b == b'u').count();
            assert!((300..450).contains(&users), "{users} bytes");
        }
    }

    #[test]
    fn news_takes_the_whole_packet_when_users_are_silent() {
        let mut gossip = gossip();
        for i in 0..1000 {
            gossip.news(format!("n{i}").into(), vec![b'n'; 50].into()).unwrap();
        }
        assert!(gossip.packet(8, |_, _| {}).unwrap().len() > 1340);
    }

    #[test]
    fn weak_point_35_a_stranger_gets_no_news_and_uses_none_up() {
        let mut gossip = gossip();
        gossip.news("x".into(), vec![b'n'; 50].into()).unwrap();
        let ack = [Message::Ack(crate::wire::message::Ack { seq: 1, payload: Bytes::new() })];
        for _ in 0..100 {
            assert!(gossip.packet_with(&ack, Piggyback::No, 4, |_, _| {}).unwrap().len() < 20);
        }
        assert_eq!(gossip.len(), (1, 0));
        assert!(gossip.packet_with(&ack, Piggyback::Yes, 4, |_, _| {}).unwrap().len() > 50);
    }

    #[test]
    fn gossip_goes_to_the_present_and_to_the_lately_dead() {
        let (config, now, mut rng) = (Config::lan(), Instant::now(), Xoshiro256PlusPlus::seed_from_u64(1));
        let later = now + config.gossip_to_the_dead_time;
        let member = |name: &str, state, since| {
            let member = Member::new(NodeId::new(name, 0), "10.0.0.1:1".parse().unwrap(), 1, now);
            Arc::new(member.turned(state, 1, since))
        };
        let mut roster = Roster::new(0);
        let local = member("self", MemberState::Alive, now);
        for m in [
            local.clone(),
            member("alive", MemberState::Alive, now),
            member("suspect", MemberState::Suspect, now),
            member("dead", MemberState::Dead, now + Duration::from_secs(1)),
            member("long dead", MemberState::Dead, now - Duration::from_secs(1)),
            member("left", MemberState::Left, later),
        ] {
            roster.put(m);
        }
        let view = View::new(1, local, roster);
        let picked = targets(&view, &Config { gossip_nodes: 10, ..config }, later, &mut rng);
        let mut names: Vec<_> = picked.iter().map(|m| m.name()).collect();
        names.sort_unstable();
        assert_eq!(names, ["alive", "dead", "suspect"]);
    }

    #[test]
    fn gossip_to_no_nodes_has_no_targets() {
        let mut roster = Roster::new(0);
        let now = Instant::now();
        for name in ["self", "x"] {
            roster.put(Arc::new(Member::new(NodeId::new(name, 0), "10.0.0.1:1".parse().unwrap(), 1, now)));
        }
        let view = View::new(1, roster.get("self").unwrap().clone(), roster);
        let config = Config { gossip_nodes: 0, ..Config::lan() };
        assert!(targets(&view, &config, now, &mut Xoshiro256PlusPlus::seed_from_u64(1)).is_empty());
    }

    #[test]
    fn a_broadcast_is_new_once_for_each_origin_and_run() {
        let mut seen = Seen::default();
        let (a, b) = (NodeId::new("a", 1), NodeId::new("a", 2));
        for id in [5, 3, 4, 6, 100, 7, 4000] {
            assert!(seen.is_new(&a, id), "{id}");
            assert!(!seen.is_new(&a, id), "{id}");
        }
        assert!(seen.is_new(&b, 5));
        assert!(seen.is_new(&a, 8191));
        assert!(!seen.is_new(&a, 4095), "too old to tell");
        assert!(seen.is_new(&a, 4096) && seen.is_new(&a, u64::MAX) && !seen.is_new(&a, u64::MAX));
    }

    #[test]
    fn a_passing_of_the_window_forgets_what_was_in_it_and_nothing_else() {
        let mut seen = Seen::default();
        let a = NodeId::new("a", 1);
        for id in (0..3 * WINDOW).step_by(3) {
            assert!(seen.is_new(&a, id));
        }
        for id in 2 * WINDOW..3 * WINDOW {
            assert_eq!(seen.is_new(&a, id), id % 3 != 0, "{id}");
        }
    }

    #[test]
    fn the_origins_that_are_remembered_are_bounded() {
        let mut seen = Seen::default();
        for i in 0..ORIGINS as u64 + 10 {
            assert!(seen.is_new(&NodeId::new("a", i), 1));
        }
        assert_eq!(seen.origins.len(), ORIGINS);
    }
}

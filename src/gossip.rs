//! What travels along in each packet: news of the membership, and users' broadcasts, which always keep a
//! share of the room. Of theirs those that began here have the most, and those that are passed on keep a share.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use rand::Rng;

use crate::{
    broadcast::{BroadcastQueue, End, Source, TooLarge},
    config::Config,
    member::{Member, MemberState, NodeId},
    view::View,
    wire::{
        frame::{PART_OVERHEAD, Packer},
        message::Message,
    },
};

/// One part in so many of a packet's room is users' when they have something to say, and of their part what is
/// passed on has as much.
const SHARE: usize = 4;

/// News and broadcasts that wait, and the packets they go into. `T` is a user's ticket for a broadcast.
#[derive(Debug)]
pub struct Gossip<T> {
    /// By the run that it is about.
    news: BroadcastQueue<Option<T>, NodeId>,
    users: BroadcastQueue<Option<T>>,
    /// Of news, of what began here, and of what is passed on.
    lines: [Line; 3],
    buf: Vec<u8>,
}

impl<T> Gossip<T> {
    /// Empty queues with the bounds of the settings, for packets of which `overhead` bytes are for what is around
    /// them.
    pub fn new(config: &Config, overhead: usize) -> Self {
        let size = config.udp_buffer_size.saturating_sub(overhead).max(1 + PART_OVERHEAD);
        let max_len = size - 1 - PART_OVERHEAD;
        Self {
            news: BroadcastQueue::new(config.max_broadcasts, config.max_broadcast_bytes, max_len),
            users: BroadcastQueue::new(config.max_user_broadcasts, config.max_user_broadcast_bytes, max_len),
            lines: [Source::Own, Source::Own, Source::Forwarded].map(Line::new),
            buf: vec![0; size],
        }
    }

    /// Queues news about the member `about`, whatever its run; older news about it goes. Says how many others had to go.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn news(&mut self, about: Arc<str>, bytes: Bytes) -> Result<usize, TooLarge> {
        self.news_with(NodeId::new(about, NodeId::ANY_RUN), bytes, None)
    }

    /// The same about one run, with a ticket, which comes back when the news has been sent as often as it should.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn news_with(&mut self, about: NodeId, bytes: Bytes, ticket: Option<T>) -> Result<usize, TooLarge> {
        let mut pruned = 0;
        self.news.push(Source::Own, Some(about), bytes, ticket, |_, end| {
            pruned += usize::from(end == End::Pruned)
        })?;
        Ok(pruned)
    }

    /// Queues a user's broadcast that begins here; those that it replaces go.
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
                self.users.invalidate(name.as_str(), &mut ended);
            }
        }
        self.users.push(Source::Own, name, bytes, ticket, ended)
    }

    /// Queues a user's broadcast of another node, to be passed on.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn forward(&mut self, bytes: Bytes, ended: impl FnMut(Option<T>, End)) -> Result<(), TooLarge> {
        self.users.push(Source::Forwarded, None, bytes, None, ended)
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

    /// The body of a packet of what waits. A quarter of the room is users' if they want it, and more if news leaves it.
    pub fn packet(&mut self, limit: u32, ended: impl FnMut(Option<T>, End)) -> Option<Bytes> {
        let mut packer = Packer::body(&mut self.buf);
        fill(&mut self.news, &mut self.users, &mut self.lines, &mut packer, limit, ended);
        packer.finish()
    }

    /// A packet with a message in front that is written already, and what waits behind it.
    pub fn packet_of(
        &mut self,
        message: &[u8],
        limit: u32,
        ended: impl FnMut(Option<T>, End),
    ) -> Option<Bytes> {
        let mut packer = Packer::body(&mut self.buf);
        if !packer.push_encoded(message) {
            return None;
        }
        fill(&mut self.news, &mut self.users, &mut self.lines, &mut packer, limit, ended);
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
        let mut packer = Packer::body(&mut self.buf);
        let (first, others) = messages.split_first()?;
        if !packer.push(first) {
            return None;
        }
        for message in others {
            packer.push(message);
        }
        if piggyback == Piggyback::Yes {
            fill(&mut self.news, &mut self.users, &mut self.lines, &mut packer, limit, ended);
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

/// The first in line may be longer than its share: beside others that fill the rest it would never fit. When it
/// has stayed behind as often as makes up for its length, room is kept for it.
#[derive(Debug)]
struct Line {
    source: Source,
    first: Option<(u32, usize, u64)>,
    stayed: usize,
}

impl Line {
    fn new(source: Source) -> Self {
        Self { source, first: None, stayed: 0 }
    }

    /// The room to be kept for the first, of `room` bytes.
    fn due<T, K: Ord + Clone>(&mut self, queue: &BroadcastQueue<T, K>, room: usize) -> usize {
        self.first = queue.first(self.source);
        match self.first {
            Some((_, len, _)) if self.stayed + 1 >= SHARE && len + PART_OVERHEAD <= room => {
                len + PART_OVERHEAD
            }
            _ => 0,
        }
    }

    /// Notes whether the first has gone. A longer one that takes its place does not set it back.
    fn note<T, K: Ord + Clone>(&mut self, queue: &BroadcastQueue<T, K>) {
        let stays = self.first.is_some() && queue.first(self.source) == self.first;
        self.stayed = if stays { self.stayed + 1 } else { 0 };
    }
}

/// Fills the shares from the smallest to the largest, each with what those that go before it leave or owe it.
fn fill<T>(
    news: &mut BroadcastQueue<Option<T>, NodeId>,
    users: &mut BroadcastQueue<Option<T>>,
    [told, own, forwarded]: &mut [Line; 3],
    packer: &mut Packer<'_>,
    limit: u32,
    mut ended: impl FnMut(Option<T>, End),
) {
    let room = packer.room();
    let [news_due, own_due, forwarded_due] =
        [told.due(news, room), own.due(users, room), forwarded.due(users, room)];
    if !users.is_empty() {
        let theirs = share(room, news.room(Source::Own), own_due.max(forwarded_due)).min(room - news_due);
        let passed_on = share(theirs, users.room(Source::Own), forwarded_due);
        let passed_on = passed_on.min(theirs.saturating_sub(own_due));
        users.fill(packer, Source::Forwarded, room - passed_on, limit, &mut ended);
        users.fill(packer, Source::Own, room - theirs, limit, &mut ended);
    }
    news.fill(packer, Source::Own, 0, limit, &mut ended);
    told.note(news);
    own.note(users);
    forwarded.note(users);
}

/// The part of `room` for those that go behind `others`: what these leave, but at least a share and what is due.
fn share(room: usize, others: usize, due: usize) -> usize {
    room.saturating_sub(others).max(room / SHARE).max(due)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;
    use crate::{
        accusation::Evidence,
        keyring::{Key, Sealing},
        view::Roster,
        wire::{
            WireError, codec,
            frame::Parts,
            guard::{Guard, Labels},
            message::{Ack, Dead},
        },
    };

    fn gossip() -> Gossip<u32> {
        Gossip::new(&Config::lan(), 3)
    }

    #[test]
    fn weak_point_18_the_largest_answer_fits_the_smallest_packet_whatever_else_is_to_be_told() {
        let long = |c: char| NodeId::new(c.to_string().repeat(255), 1);
        let config = Config { udp_buffer_size: 1024, ..Config::lan() };
        let label = Labels::new("l".repeat(255));
        let key = [Key::from_bytes(&[1; 32]).unwrap()];
        let mut guard = Guard::new(&config, label, Some(&key), Sealing::Required).unwrap();
        let mut gossip: Gossip<u32> = Gossip::new(&config, guard.overhead());
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
        let parts: Vec<_> = Parts::of(&packet).unwrap().map(|part| codec::decode(part.unwrap())).collect();
        assert_eq!(parts, [Ok(ack.clone())]);
        // All that is around it counts: a packet that is filled up is as long as it may be, under its seal.
        for n in 0..100_u32 {
            gossip.news(n.to_string().into(), vec![b'n'; 20].into()).unwrap();
        }
        let (full, mut sealed) =
            (gossip.packet_with(&[ack], Piggyback::Yes, 8, |_, _| {}).unwrap(), Vec::new());
        guard.wrap(1, Some(2), &full, &mut sealed).unwrap();
        assert!((1000..=1024).contains(&sealed.len()), "{}", sealed.len());
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

    /// How many of the bytes of the next packet are `wanted`.
    fn share_of(gossip: &mut Gossip<u32>, wanted: u8) -> usize {
        gossip.packet(100, |_, _| {}).unwrap().iter().filter(|b| **b == wanted).count()
    }

    fn with_news() -> Gossip<u32> {
        let mut gossip = gossip();
        for i in 0..1000 {
            gossip.news(format!("{i}").into(), vec![b'n'; 50].into()).unwrap();
        }
        gossip
    }

    #[test]
    fn users_keep_their_quarter_behind_a_ping_or_an_ack_too() {
        let mut gossip = with_news();
        for _ in 0..1000 {
            gossip.user(None, &[], vec![b'u'; 50].into(), None, |_, _| {}).unwrap();
        }
        let ack = [Message::Ack(crate::wire::message::Ack { seq: 1, payload: vec![b'a'; 500].into() })];
        for _ in 0..20 {
            let packet = gossip.packet_with(&ack, Piggyback::Yes, 100, |_, _| {}).unwrap();
            assert!(packet.len() <= 1400);
            let users = packet.iter().filter(|b| **b == b'u').count();
            assert!((150..=250).contains(&users), "{users} bytes of the 890 behind the ack");
        }
    }

    #[test]
    fn a_broadcast_longer_than_the_quarter_goes_with_every_fourth_packet_however_much_news_there_is() {
        for source in [Source::Own, Source::Forwarded] {
            let mut gossip = with_news();
            for _ in 0..5 {
                match source {
                    Source::Own => gossip.user(None, &[], vec![b'u'; 1200].into(), None, |_, _| {}),
                    Source::Forwarded => gossip.forward(vec![b'u'; 1200].into(), |_, _| {}),
                }
                .unwrap();
            }
            for i in 1..=20 {
                let expected = if i % 4 == 0 { 1200 } else { 0 };
                assert_eq!(share_of(&mut gossip, b'u'), expected, "{source:?}, packet {i}");
            }
        }
    }

    #[test]
    fn news_gets_the_room_that_users_do_not_take() {
        let mut gossip = with_news();
        gossip.user(None, &[], vec![b'u'; 50].into(), None, |_, _| {}).unwrap();
        let packet = gossip.packet(100, |_, _| {}).unwrap();
        assert!(packet.len() > 1340 && packet.contains(&b'u'), "{} bytes", packet.len());
    }

    #[test]
    fn users_get_the_room_that_news_does_not_take() {
        let mut gossip = gossip();
        gossip.news("x".into(), vec![b'n'; 50].into()).unwrap();
        for _ in 0..1000 {
            gossip.user(None, &[], vec![b'u'; 50].into(), None, |_, _| {}).unwrap();
        }
        let packet = gossip.packet(100, |_, _| {}).unwrap();
        assert!(packet.len() > 1340 && packet.contains(&b'n'), "{} bytes", packet.len());
    }

    #[test]
    fn what_began_here_goes_before_what_is_passed_on_which_keeps_a_quarter_of_the_room_of_users() {
        let mut gossip = gossip();
        for _ in 0..100 {
            gossip.forward(vec![b'f'; 50].into(), |_, _| {}).unwrap();
        }
        assert!(share_of(&mut gossip, b'f') >= 1300, "all of it while nothing begins here");
        for _ in 0..100 {
            gossip.user(None, &[], vec![b'o'; 50].into(), None, |_, _| {}).unwrap();
        }
        for _ in 0..20 {
            let packet = gossip.packet(100, |_, _| {}).unwrap();
            let count = |wanted| packet.iter().filter(|b| **b == wanted).count();
            let (own, forwarded) = (count(b'o'), count(b'f'));
            assert!((300..=350).contains(&forwarded) && own >= 1000, "{own} own, {forwarded} passed on");
        }
    }

    #[test]
    fn long_broadcasts_of_its_own_do_not_keep_a_node_from_passing_on_others() {
        let mut gossip = with_news();
        for _ in 0..100 {
            gossip.user(None, &[], vec![b'o'; 1200].into(), None, |_, _| {}).unwrap();
            gossip.forward(vec![b'f'; 1200].into(), |_, _| {}).unwrap();
        }
        let (mut own, mut forwarded) = (0, 0);
        for _ in 0..80 {
            let packet = gossip.packet(100, |_, _| {}).unwrap();
            own += usize::from(packet.contains(&b'o'));
            forwarded += usize::from(packet.contains(&b'f'));
        }
        assert!(own >= 15 && forwarded >= 10, "{own} own, {forwarded} passed on");
    }

    #[test]
    fn news_that_is_longer_than_three_quarters_is_not_held_up_by_users() {
        let mut gossip = gossip();
        gossip.news("x".into(), vec![b'n'; 1200].into()).unwrap();
        for _ in 0..1000 {
            gossip.user(None, &[], vec![b'u'; 50].into(), None, |_, _| {}).unwrap();
        }
        for i in 1..=20 {
            assert_eq!(share_of(&mut gossip, b'n'), if i % 4 == 0 { 1200 } else { 0 }, "packet {i}");
        }
    }

    #[test]
    fn what_news_travels_along_with_comes_first() {
        let mut gossip = with_news();
        let ack = Message::Ack(crate::wire::message::Ack { seq: 1, payload: Bytes::new() });
        let bytes = crate::wire::codec::encoded(&ack, 100).unwrap();
        let with = gossip.packet_with(&[ack], Piggyback::Yes, 4, |_, _| {}).unwrap();
        let of = gossip.packet_of(&bytes, 4, |_, _| {}).unwrap();
        for packet in [with, of] {
            let parts: Vec<_> = Parts::of(&packet).unwrap().map(Result::unwrap).collect();
            assert_eq!(parts[0], &*bytes);
            assert!(parts.len() > 20 && parts[1..].iter().all(|part| part[0] == b'n'));
        }
    }

    #[test]
    fn a_broadcast_replaces_those_that_it_names_and_no_others() {
        let mut gossip = gossip();
        let mut ended = Vec::new();
        let mut push = |name: &str, replaces: &[&str], ticket| {
            let replaces: Vec<_> = replaces.iter().map(|name| (*name).to_owned()).collect();
            let bytes = Bytes::from_static(b"bytes");
            gossip
                .user(Some(name.into()), &replaces, bytes, Some(ticket), |t, end| ended.push((t, end)))
                .unwrap();
        };
        push("a", &[], 1);
        push("b", &[], 2);
        push("c", &["a", "unknown"], 3);
        push("b", &[], 4);
        assert_eq!(ended, [(Some(1), End::Replaced), (Some(2), End::Replaced)]);
        assert_eq!(gossip.len(), (0, 2));
    }

    #[test]
    fn a_broadcast_that_is_too_long_replaces_nothing() {
        let mut gossip = gossip();
        gossip.user(Some("a".into()), &[], Bytes::from_static(b"a"), Some(1), |_, _| {}).unwrap();
        let too_long = vec![0; 1400].into();
        let replaces = ["a".to_owned()];
        gossip.user(Some("a".into()), &replaces, too_long, Some(2), |t, _| panic!("{t:?}")).unwrap_err();
        assert_eq!(gossip.len(), (0, 1));
    }
}

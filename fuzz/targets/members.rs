//! A life of the membership table: news, accusations, verdicts, farewells, full states and time, in any order. Beside it
//! stands what a subscriber makes of the events, and who is known to have gone.

#![no_main]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use memberlist_protocol::{
    accusation::Evidence,
    config::Config,
    member::{Member, MemberState, NodeId, PackedTags, Tags, Versions},
    members::{Change, Decision, Effects, Members},
    push_pull::OwnState,
    suspicion::Bounds,
    wire::{
        codec,
        message::{Alive, Dead, Message, Remembered, Suspect},
        state::State,
    },
};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

/// The first is the node's own.
const NAMES: [&str; 7] = ["self", "a", "b", "c", "d", "e", "f"];
const OWN_RUN: u64 = 9;
/// All that is said fits into a datagram.
const PACKET: usize = 1400;

#[derive(Arbitrary, Debug)]
struct Life {
    settings: Settings,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct Settings {
    /// Room for four members, or for all.
    crowded: bool,
    /// Room for three tombstones, or for all.
    few_graves: bool,
    /// Steps of eight incarnations at most, or of 2^30.
    small_steps: bool,
    reclaim: bool,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Alive(Word),
    Suspect {
        who: Who,
        by: u8,
        evidence: u8,
    },
    Dead {
        who: Who,
        from: u8,
        by: u8,
        confirmed_by: Option<u8>,
        evidence: u8,
    },
    Merge {
        word: Word,
        state: u8,
    },
    Accuse {
        who: Who,
        evidence: u8,
    },
    Update(u8),
    Announce,
    Leave,
    Rejoin,
    ForceLeave(u8),
    /// The node's own full state comes back to it.
    Echo,
    /// Time goes by while the node runs.
    Pass(Span),
    /// Time goes by, and the node does not run.
    Sleep(Span),
}

#[derive(Arbitrary, Debug)]
struct Who {
    name: u8,
    run: u8,
    incarnation: Incarnation,
}

/// Most are near what is known.
#[derive(Arbitrary, Debug)]
enum Incarnation {
    Near(i8),
    Small(u8),
    /// As far as one step goes, and what is added to that.
    Far(i8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
struct Word {
    who: Who,
    /// A host of its own, or another one.
    host: Option<u8>,
    content: u8,
}

#[derive(Arbitrary, Debug)]
enum Span {
    Millis(u16),
    Seconds(u8),
    Minutes(u8),
}

impl Span {
    fn time(&self) -> Duration {
        match *self {
            Self::Millis(n) => Duration::from_millis(n.into()),
            Self::Seconds(n) => Duration::from_secs(n.into()),
            Self::Minutes(n) => Duration::from_secs(60 * u64::from(n % 64)),
        }
    }
}

fn evidence(n: u8) -> Evidence {
    match n % 7 {
        0 => Evidence::NoAnswer { direct: true, helpers: 3, nacks: n / 7, healthy: n.is_multiple_of(2) },
        1 => Evidence::Refused,
        2 => Evidence::PushPull,
        3 => Evidence::Hearsay,
        4 => Evidence::ForceLeave,
        5 => Evidence::Announced,
        _ => Evidence::Replaced,
    }
}

fn name(n: u8) -> &'static str {
    NAMES[usize::from(n) % NAMES.len()]
}

fn addr(host: u8) -> SocketAddr {
    // One of eight is nobody's.
    SocketAddr::from(([10, 0, 0, host], if host % 8 == 7 { 0 } else { 7946 }))
}

/// What is known of a run that has gone: its highest incarnation, and when that was last so.
type Gone = BTreeMap<NodeId, (u32, Instant)>;

struct Bench {
    table: Members,
    config: Arc<Config>,
    now: Instant,
    rng: Xoshiro256PlusPlus,
    /// What a subscriber has made of the events.
    told: BTreeMap<String, (NodeId, MemberState)>,
    gone: Gone,
    /// For how long a suspect has been one while the node ran.
    doubted: BTreeMap<NodeId, Duration>,
    sleeps: u32,
    own: OwnState,
}

impl Bench {
    fn new(settings: &Settings) -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let config = Arc::new(Config {
            max_members: if settings.crowded { 4 } else { 100 },
            max_tombstones: if settings.few_graves { 3 } else { 10_000 },
            max_incarnation_step: if settings.small_steps { 8 } else { 1 << 30 },
            dead_node_reclaim_time: minutes(u64::from(settings.reclaim)),
            dead_retention: minutes(30),
            left_retention: minutes(10),
            tombstone_retention: minutes(10),
            ..Config::lan()
        });
        let now = Instant::now();
        let local = Member::new(NodeId::new(NAMES[0], OWN_RUN), addr(0), 1, now);
        let told = BTreeMap::from([(NAMES[0].to_owned(), (local.id.clone(), MemberState::Alive))]);
        Self {
            table: Members::new(config.clone(), local, 5),
            config,
            now,
            rng: Xoshiro256PlusPlus::seed_from_u64(1),
            told,
            gone: Gone::new(),
            doubted: BTreeMap::new(),
            sleeps: 0,
            own: OwnState::default(),
        }
    }

    fn id(&self, who: &Who) -> NodeId {
        let own = name(who.name) == NAMES[0] && who.run.is_multiple_of(4);
        let run = if own { self.table.local().id.run() } else { 1 + u64::from(who.run % 4) };
        NodeId::new(name(who.name), run)
    }

    fn incarnation(&self, who: &Who) -> u32 {
        let known = self.table.roster().get(name(who.name)).map_or(1, |member| member.incarnation);
        match who.incarnation {
            Incarnation::Near(n) => known.saturating_add_signed((n % 4).into()),
            Incarnation::Small(n) => n.into(),
            Incarnation::Far(n) => {
                known.saturating_add(self.config.max_incarnation_step).saturating_add_signed((n % 2).into())
            }
            Incarnation::Any(n) => n,
        }
    }

    fn alive(&self, word: &Word) -> Alive {
        let host = word.host.unwrap_or(word.who.name % NAMES.len() as u8);
        let tags = match word.content % 4 {
            0 => Tags::new(),
            n => Tags::from([("k".into(), n.to_string())]),
        };
        let versions = match word.content / 64 {
            0 => Versions { delegate: Versions::CURRENT.protocol, ..Versions::CURRENT },
            _ => Versions::CURRENT,
        };
        Alive {
            id: self.id(&word.who),
            incarnation: self.incarnation(&word.who),
            addr: addr(host),
            tags: PackedTags::pack(&tags),
            meta: vec![word.content; usize::from(word.content % 5)].into(),
            versions,
        }
    }

    fn step(&mut self, step: &Step) {
        let (now, table, rng) = (self.now, &self.table, &mut self.rng.clone());
        let verdict = match step {
            Step::Alive(word) => table.alive(&self.alive(word), now, rng),
            Step::Suspect { who, by, evidence: seen } => {
                let (id, incarnation) = (self.id(who), self.incarnation(who));
                let from = name(*by).into();
                self.accused(&id, incarnation);
                let word = Suspect { id, incarnation, from, evidence: evidence(*seen) };
                self.table.suspect(&word, now, rng)
            }
            Step::Dead { who, from, by, confirmed_by, evidence: seen } => {
                let (id, incarnation) = (self.id(who), self.incarnation(who));
                self.accused(&id, incarnation);
                let word = Dead {
                    id,
                    incarnation,
                    from: name(*from).into(),
                    by: name(*by).into(),
                    confirmed_by: confirmed_by.map(|n| name(n).into()).into_iter().collect(),
                    evidence: evidence(*seen),
                };
                self.table.dead(&word, now, rng)
            }
            Step::Merge { word, state } => {
                let state = [MemberState::Alive, MemberState::Suspect, MemberState::Dead, MemberState::Left]
                    [usize::from(*state) % 4];
                table.merge(&Remembered { alive: self.alive(word), state }, now, rng)
            }
            Step::Accuse { who, evidence: seen } => {
                table.accuse(&self.id(who), self.incarnation(who), evidence(*seen), now, rng)
            }
            Step::Update(n) => table.update(None, Some(Bytes::from(vec![*n; usize::from(*n % 5)])), rng),
            Step::Announce => Ok(table.announced()),
            Step::Leave => table.leave(now),
            Step::Rejoin => table.rejoin(now, rng),
            Step::ForceLeave(n) => {
                if let Ok(decision) = table.force_leave(name(*n), now) {
                    self.apply(decision);
                }
                return;
            }
            Step::Echo => return self.echo(),
            Step::Pass(span) => return self.pass(span.time()),
            Step::Sleep(span) => {
                self.now += span.time();
                self.sleeps += 1;
                return;
            }
        };
        self.rng = rng.clone();
        if let Ok(decision) = verdict {
            self.apply(decision);
        }
    }

    /// What is said against this node, within what it believes, it outbids.
    fn accused(&self, id: &NodeId, incarnation: u32) {
        let (local, rng) = (self.table.local(), &mut self.rng.clone());
        let step = self.config.max_incarnation_step;
        if *id != local.id || self.table.is_leaving() || incarnation > local.incarnation.saturating_add(step)
        {
            return;
        }
        let word = Suspect { id: id.clone(), incarnation, from: "a".into(), evidence: Evidence::Hearsay };
        let decision = self.table.suspect(&word, self.now, rng);
        let refutes = decision.is_ok_and(|decision| format!("{decision:?}").contains("refuted: true"));
        assert_eq!(refutes, incarnation >= local.incarnation, "{incarnation} of {local:?}");
    }

    fn apply(&mut self, decision: Decision) -> Effects {
        let before = self.table.view();
        let version = self.table.version();
        let mut effects = self.table.apply(decision, self.now);
        for (rev, (number, change)) in (before.rev() + 1..).zip(&effects.changes) {
            assert_eq!(*number, rev, "events are numbered without a gap");
            self.hear(change);
        }
        let after = self.table.view();
        assert_eq!(after.rev(), before.rev() + effects.changes.len() as u64);
        let mut changed = false;
        for name in NAMES {
            let (old, new) = (before.get(name), after.get(name));
            let same = match (old, new) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            changed |= !same;
            self.compare(old, new);
        }
        assert!(!changed || self.table.version() > version, "a record has changed, and the version has not");
        for (about, message) in effects.broadcast.iter().map(|(name, message)| (&**name, message)) {
            self.said(about, message);
        }
        if let Some((_, _, message)) = &effects.tell {
            assert!(codec::encoded(message, PACKET).is_ok());
        }
        assert!(!effects.refuted || after.local().state == MemberState::Alive);
        self.check();
        if let Some(claim) = effects.claim.take()
            && let Ok(decision) = self.table.alive(&claim, self.now, &mut self.rng)
        {
            self.apply(decision);
        }
        effects
    }

    /// One name before and after a step.
    fn compare(&mut self, old: Option<&Arc<Member>>, new: Option<&Arc<Member>>) {
        let own = |member: &Member| member.name() == NAMES[0];
        if let (Some(old), Some(new)) = (old, new)
            && old.id == new.id
        {
            assert!(new.incarnation >= old.incarnation, "an incarnation goes back: {old:?} {new:?}");
            let returns = old.state.is_gone() && new.state.is_present();
            assert!(!returns || new.incarnation > old.incarnation, "back without a word: {new:?}");
            let left = (old.state, new.state) == (MemberState::Left, MemberState::Dead);
            assert!(!left, "whoever has left is not held for dead: {new:?}");
            assert!(old.state == new.state || new.since == self.now, "{old:?} {new:?}");
        }
        if let Some(new) = new.filter(|new| !own(new))
            && new.state.is_present()
            && old.is_none_or(|old| old.id != new.id || old.state.is_gone())
            && let Some((incarnation, at)) = self.gone.get(&new.id)
            && self.config.max_tombstones > 3
            && self.now - *at <= self.config.tombstone_retention
        {
            assert!(new.incarnation > *incarnation, "{new:?} is back from the dead of {incarnation}");
        }
        let went = match (old, new) {
            (_, Some(new)) if own(new) => None,
            (Some(old), None) => Some((old.id.clone(), old.incarnation)),
            (Some(old), Some(new)) if old.id != new.id => Some((old.id.clone(), old.incarnation)),
            (_, Some(new)) if new.state.is_gone() && old.is_none_or(|old| !Arc::ptr_eq(old, new)) => {
                Some((new.id.clone(), new.incarnation))
            }
            _ => None,
        };
        if let Some((id, incarnation)) = went {
            let known = self.gone.entry(id).or_insert((incarnation, self.now));
            // What was forgotten in between, tombstone and all, counts no more.
            let still = self.now - known.1 <= self.config.tombstone_retention;
            *known = (if still { known.0.max(incarnation) } else { incarnation }, self.now);
        }
    }

    /// An event, as a subscriber understands it.
    fn hear(&mut self, change: &Change) {
        let state = |bench: &Self, id: &NodeId| bench.told.get(id.name()).cloned();
        let is = |told: &Option<(NodeId, MemberState)>, member: &Member, wanted: &[MemberState]| {
            told.as_ref().is_some_and(|(id, state)| *id == member.id && wanted.contains(state))
        };
        use MemberState::{Alive, Dead, Left, Suspect};
        let (member, fits) = match change {
            Change::Joined(member) => {
                let told = state(self, &member.id);
                (member, member.state == Alive && told.is_none_or(|(_, state)| state.is_gone()))
            }
            Change::Updated { member, before } => {
                let told = state(self, &before.id);
                let fits = member.name() == NAMES[0] || is(&told, member, &[Alive]);
                (member, fits && member.state == Alive)
            }
            Change::Suspected { member, .. } => {
                let told = state(self, &member.id);
                (member, member.state == Suspect && is(&told, member, &[Alive]))
            }
            Change::Refuted(member) => {
                let told = state(self, &member.id);
                (member, member.state == Alive && is(&told, member, &[Suspect]))
            }
            Change::Left { member, .. } => {
                let told = state(self, &member.id);
                let fits = member.name() == NAMES[0] || is(&told, member, &[Alive, Suspect, Dead]);
                (member, fits && member.state == Left)
            }
            Change::Dead { member, .. } => {
                let told = state(self, &member.id);
                (member, member.state == Dead && is(&told, member, &[Alive, Suspect]))
            }
            Change::Reaped(id) => {
                let told = self.told.remove(id.name());
                assert!(told.is_some_and(|(told, state)| told == *id && state.is_gone()), "{change:?}");
                return;
            }
            Change::Conflict { kept, .. } => {
                let held = self.table.roster().get(kept.name());
                assert!(held.is_some_and(|held| held.id == kept.id));
                return;
            }
        };
        assert!(fits, "{change:?} after {:?}", self.told.get(member.name()));
        self.told.insert(member.name().to_owned(), (member.id.clone(), member.state));
    }

    /// What is passed on about a member is what is held of it now.
    fn said(&self, about: &str, message: &Message) {
        assert!(codec::encoded(message, PACKET).is_ok());
        let held = self.table.roster().get(about).expect("news of somebody who is there");
        let waits = self.table.view().is_on_probation(about);
        match message {
            // What somebody on probation says goes round, and so does what is said against that.
            Message::Alive(Alive { id, incarnation, .. })
            | Message::Suspect(Suspect { id, incarnation, .. })
                if waits =>
            {
                assert_eq!((id, held.state), (&held.id, MemberState::Dead));
                assert!(*incarnation > held.incarnation);
            }
            Message::Alive(m) => {
                assert!(m.matches(held) && (&m.id, m.incarnation) == (&held.id, held.incarnation));
                assert_eq!(held.state, MemberState::Alive);
            }
            Message::Suspect(m) => {
                assert_eq!((&m.id, held.state), (&held.id, MemberState::Suspect));
                assert_eq!(m.incarnation, held.incarnation);
            }
            Message::Dead(m) => {
                assert_eq!((&m.id, m.incarnation), (&held.id, held.incarnation));
                // Another node's verdict is an accusation here, and passed on as it is.
                let accused =
                    self.config.own_verdicts && *m.from != *NAMES[0] && held.state == MemberState::Suspect;
                let state = if m.is_left() { MemberState::Left } else { MemberState::Dead };
                assert!(held.state == state || (accused && !m.is_left()), "{m:?} of {held:?}");
            }
            other => panic!("{other:?} about {about}"),
        }
    }

    /// What holds at any time.
    fn check(&mut self) {
        let (roster, local) = (self.table.roster(), self.table.local());
        let mut counts = [0; 4];
        for member in roster.iter() {
            counts[member.state as usize] += 1;
            assert!(roster.get(member.name()).is_some_and(|found| Arc::ptr_eq(found, member)));
            assert!(member.incarnation > 0 && member.versions.is_sound() && member.addr.port() != 0);
            let own = member.name() == NAMES[0];
            let told = self.told.get(member.name()).filter(|(id, _)| *id == member.id || own);
            assert_eq!(told.map(|(_, state)| *state), Some(member.state), "{member:?}");
        }
        assert_eq!(self.told.len(), roster.len(), "the subscriber knows of others");
        assert_eq!(counts.iter().sum::<usize>(), roster.len());
        for (state, count) in [MemberState::Alive, MemberState::Suspect, MemberState::Dead, MemberState::Left]
            .into_iter()
            .zip(counts)
        {
            assert_eq!(roster.count(state), count);
        }
        assert!(roster.len() <= self.config.max_members);
        assert!(roster.get(NAMES[0]).is_some_and(|own| own.id == local.id && own.state == local.state));
        let expected = if self.table.is_leaving() { MemberState::Left } else { MemberState::Alive };
        assert_eq!(local.state, expected);
        let suspects = |id: &NodeId| {
            roster.get(id.name()).is_some_and(|m| m.id == *id && m.state == MemberState::Suspect)
        };
        self.doubted.retain(|id, _| suspects(id));
        for suspect in roster.iter().filter(|m| m.state == MemberState::Suspect) {
            self.doubted.entry(suspect.id.clone()).or_default();
        }
    }

    /// Time goes by, and the node wakes when it has said that it has to.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.table.due().max(self.now).min(end);
            for time in self.doubted.values_mut() {
                *time += next - self.now;
            }
            self.now = next;
            while let Some(decision) = self.table.on_time(self.now, &mut self.rng) {
                self.apply(decision);
            }
            assert!(self.table.due() > self.now, "it is due, and there is nothing to do");
            let longest = Bounds::new(&self.config, NAMES.len()).max * 2
                + self.config.suspicion_base() * 2 * (self.sleeps + 1);
            assert!(
                self.doubted.values().all(|time| *time <= longest),
                "in doubt for long: {:?}",
                self.doubted
            );
            if self.now == end {
                return;
            }
        }
    }

    /// What this node says itself is no news to it.
    fn echo(&mut self) {
        let own = self.own.get(&self.table, false);
        let mut bytes = State::head(&own.header, 0);
        bytes.extend_from_slice(&own.members);
        let mut state = State::decode(bytes.into(), NAMES[0]).expect("a state").expect("no refusal");
        assert_eq!(state.sender().map(|own| own.alive.id), Ok(self.table.local().id.clone()));
        assert_eq!((state.header.members as usize, state.namesakes().len()), (self.table.roster().len(), 1));
        while let Some(member) = state.next_member() {
            if let Ok(decision) = self.table.merge(&member, self.now, &mut self.rng) {
                let effects = self.apply(decision);
                assert!(effects.changes.is_empty() && !effects.refuted, "{member:?}: {effects:?}");
            }
        }
    }
}

fuzz_target!(|life: Life| {
    let mut bench = Bench::new(&life.settings);
    for step in &life.steps {
        bench.step(step);
    }
    // Nothing more is heard: nobody stays suspected, and whoever has gone is forgotten.
    bench.pass(Duration::from_secs(3600));
    let mut left = bench.table.roster().iter().filter(|member| member.name() != NAMES[0]);
    assert!(left.all(|member| member.state == MemberState::Alive));
});

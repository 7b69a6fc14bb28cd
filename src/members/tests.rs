use std::net::SocketAddr;

use bytes::Bytes;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::*;
use crate::{
    accusation::Evidence,
    member::{MAX_INCARNATION_STEP, PackedTags, Tags, VersionRange, Versions},
    suspicion::Bounds,
    wire::message::{Alive, Dead, Message, Remembered, Suspect},
};

const SELF_RUN: u64 = 11;
const RUN: u64 = 7;

/// A word of death counts at once, so that one line makes a member dead. What else becomes of it with verdicts of one's
/// own has tests of its own.
fn believing() -> Config {
    Config { own_verdicts: false, ..Config::lan() }
}

/// A table under test, and what it has answered.
struct Bench {
    table: Members,
    now: Instant,
    rng: Xoshiro256PlusPlus,
}

impl Bench {
    fn new() -> Self {
        Self::with(believing())
    }

    fn with(config: Config) -> Self {
        let now = Instant::now();
        let mut local = Member::new(NodeId::new("self", SELF_RUN), addr(1), 1, now);
        local.versions = config.versions();
        Self {
            table: Members::new(Arc::new(config), local, 5),
            now,
            rng: Xoshiro256PlusPlus::seed_from_u64(1),
        }
    }

    /// A table with `x` alive at incarnation 5, and four others so that confirmations count.
    fn with_x() -> Self {
        Self::with_x_and(believing())
    }

    fn with_x_and(config: Config) -> Self {
        let mut bench = Self::with(config);
        for i in 0..4 {
            bench.alive(alive(&format!("other{i}"), RUN, 1, 50 + i)).unwrap();
        }
        bench.alive(alive("x", RUN, 5, 2)).unwrap();
        bench
    }

    fn apply(&mut self, verdict: Verdict) -> Result<Effects, Ignored> {
        verdict.map(|decision| self.table.apply(decision, self.now))
    }

    fn alive(&mut self, m: Alive) -> Result<Effects, Ignored> {
        let verdict = self.table.alive(&m, self.now, &mut self.rng);
        self.apply(verdict)
    }

    fn suspect(&mut self, name: &str, run: u64, incarnation: u32, from: &str) -> Result<Effects, Ignored> {
        let m = Suspect {
            id: NodeId::new(name, run),
            incarnation,
            from: from.into(),
            evidence: Evidence::Hearsay,
        };
        let verdict = self.table.suspect(&m, self.now, &mut self.rng);
        self.apply(verdict)
    }

    fn dead(&mut self, name: &str, run: u64, incarnation: u32, from: &str) -> Result<Effects, Ignored> {
        let m = Dead {
            id: NodeId::new(name, run),
            incarnation,
            from: from.into(),
            by: from.into(),
            confirmed_by: Vec::new(),
            evidence: Evidence::Hearsay,
        };
        let verdict = self.table.dead(&m, self.now, &mut self.rng);
        self.apply(verdict)
    }

    fn merge(&mut self, alive: Alive, state: MemberState) -> Result<Effects, Ignored> {
        let verdict = self.table.merge(&Remembered { alive, state }, self.now, &mut self.rng);
        self.apply(verdict)
    }

    fn update(&mut self, meta: &'static [u8]) -> Result<Effects, Ignored> {
        let verdict = self.table.update(None, Some(Bytes::from_static(meta)), &mut self.rng);
        self.apply(verdict)
    }

    fn force_leave(&mut self, name: &str) -> Result<Effects, NotForced> {
        let decision = self.table.force_leave(name, self.now);
        decision.map(|decision| self.table.apply(decision, self.now))
    }

    fn rejoin(&mut self) -> Result<Effects, Ignored> {
        let verdict = self.table.rejoin(self.now, &mut self.rng);
        self.apply(verdict)
    }

    fn leave(&mut self) -> Result<Effects, Ignored> {
        let verdict = self.table.leave(self.now);
        self.apply(verdict)
    }

    /// Lets time pass as an actor does: it wakes at each deadline.
    fn wait(&mut self, time: Duration) -> Vec<Change> {
        let end = self.now + time;
        let mut changes = Vec::new();
        loop {
            self.now = self.table.due().max(self.now).min(end);
            while let Some(decision) = self.table.on_time(self.now, &mut self.rng) {
                changes.extend(self.table.apply(decision, self.now).changes.into_iter().map(|(_, c)| c));
            }
            if self.now == end {
                return changes;
            }
        }
    }

    fn state(&self, name: &str) -> Option<(MemberState, u32)> {
        self.table.roster().get(name).map(|m| (m.state, m.incarnation))
    }
}

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7946))
}

fn alive(name: &str, run: u64, incarnation: u32, host: u8) -> Alive {
    Alive {
        id: NodeId::new(name, run),
        incarnation,
        addr: addr(host),
        tags: PackedTags::default(),
        meta: Bytes::new(),
        versions: Versions::CURRENT,
    }
}

fn names(effects: &Effects) -> Vec<&'static str> {
    effects
        .changes
        .iter()
        .map(|(_, change)| match change {
            Change::Joined(_) => "joined",
            Change::Updated { .. } => "updated",
            Change::Suspected { .. } => "suspected",
            Change::Refuted(_) => "refuted",
            Change::Left { .. } => "left",
            Change::Dead { .. } => "dead",
            Change::Reaped(_) => "reaped",
            Change::Conflict { .. } => "conflict",
        })
        .collect()
}

use MemberState::{Alive as A, Dead as D, Left as L, Suspect as S};

#[test]
fn news_of_an_unknown_member_is_a_join_and_is_passed_on() {
    let mut bench = Bench::new();
    let effects = bench.alive(alive("x", RUN, 1, 2)).unwrap();
    assert_eq!(names(&effects), ["joined"]);
    assert!(matches!(effects.broadcast, Some((name, Message::Alive(_))) if &*name == "x"));
    assert_eq!(bench.state("x"), Some((A, 1)));
}

#[test]
fn events_are_numbered_without_a_gap() {
    let mut bench = Bench::new();
    let before = bench.table.view().rev();
    for i in 1..5u64 {
        let effects = bench.alive(alive(&format!("n{i}"), RUN, 1, 2)).unwrap();
        assert_eq!(effects.changes[0].0, before + i);
    }
    assert_eq!(bench.table.view().rev(), before + 4);
}

#[test]
fn only_a_higher_incarnation_clears_a_suspect() {
    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "a").unwrap();
    // It is told of the accusation once, and not again and again.
    let told = bench.alive(alive("x", RUN, 5, 2)).unwrap();
    assert!(matches!(told.tell, Some((to, _, Message::Suspect(_))) if to == addr(2)));
    assert_eq!(bench.alive(alive("x", RUN, 5, 2)).unwrap_err(), Ignored::Stale);
    assert_eq!(bench.state("x"), Some((S, 5)));
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 2)).unwrap()), ["refuted"]);
    assert_eq!(bench.state("x"), Some((A, 6)));
    assert!(bench.wait(Duration::from_secs(100)).is_empty(), "the suspicion must have ended");
}

#[test]
fn the_same_news_twice_changes_nothing() {
    let mut bench = Bench::with_x();
    let since = bench.table.roster().get("x").unwrap().since;
    assert_eq!(bench.alive(alive("x", RUN, 5, 2)).unwrap_err(), Ignored::Stale);
    bench.now += Duration::from_secs(1);
    let effects = bench.alive(alive("x", RUN, 6, 2)).unwrap();
    assert!(effects.changes.is_empty());
    assert_eq!(bench.table.roster().get("x").unwrap().since, since, "the state did not change");
}

#[test]
fn changed_metadata_tags_or_versions_are_an_update() {
    let mut bench = Bench::with_x();
    let mut m = alive("x", RUN, 6, 2);
    m.meta = Bytes::from_static(b"new");
    assert_eq!(names(&bench.alive(m.clone()).unwrap()), ["updated"]);
    m.incarnation += 1;
    m.tags = PackedTags::pack(&Tags::from([("k".into(), "v".into())]));
    assert_eq!(names(&bench.alive(m.clone()).unwrap()), ["updated"]);
    m.incarnation += 1;
    m.versions = Versions::from_bytes([1, 2, 1, 0, 0, 0]);
    assert_eq!(names(&bench.alive(m).unwrap()), ["updated"]);
}

#[test]
fn a_suspect_that_does_not_refute_is_dead_when_its_time_is_up() {
    let mut bench = Bench::with_x();
    assert_eq!(names(&bench.suspect("x", RUN, 5, "a").unwrap()), ["suspected"]);
    assert!(bench.wait(Duration::from_secs(23)).is_empty());
    let changes = bench.wait(Duration::from_secs(2));
    let [Change::Dead { member, why }] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((member.state, &*why.by), (D, "a"));
    assert_eq!(why.confirmed_by.len(), 0);
}

#[test]
fn confirmations_of_others_shorten_a_suspicion_and_are_passed_on() {
    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "a").unwrap();
    assert_eq!(bench.suspect("x", RUN, 5, "a").unwrap_err(), Ignored::Stale);
    assert!(bench.suspect("x", RUN, 5, "b").unwrap().broadcast.is_some());
    let effects = bench.suspect("x", RUN, 5, "c").unwrap();
    assert_eq!(effects.confirmed.unwrap().1.confirmed_by, ["b".into(), "c".into()]);
    assert_eq!(bench.suspect("x", RUN, 5, "d").unwrap_err(), Ignored::Stale);
    let changes = bench.wait(Duration::from_millis(4001));
    assert!(matches!(&changes[..], [Change::Dead { why, .. }] if why.confirmed_by.len() == 2), "{changes:?}");
}

#[test]
fn a_repeated_accusation_neither_moves_the_time_of_the_change_nor_is_passed_on() {
    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "a").unwrap();
    let since = bench.table.roster().get("x").unwrap().since;
    assert!(bench.wait(Duration::from_secs(1)).is_empty());
    assert_eq!(bench.suspect("x", RUN, 5, "a").unwrap_err(), Ignored::Stale);
    let effects = bench.suspect("x", RUN, 5, "b").unwrap();
    assert!(effects.changes.is_empty(), "a confirmation is no change of state");
    assert_eq!(bench.table.roster().get("x").unwrap().since, since);
}

#[test]
fn a_late_confirmation_ends_a_suspicion_at_once_and_only_once() {
    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "a").unwrap();
    // Longer than it takes when all have confirmed, and shorter than when nobody has.
    assert!(bench.wait(Duration::from_secs(20)).is_empty());
    bench.suspect("x", RUN, 5, "b").unwrap();
    bench.suspect("x", RUN, 5, "c").unwrap();
    let changes = bench.wait(Duration::ZERO);
    assert!(matches!(&changes[..], [Change::Dead { .. }]), "{changes:?}");
    bench.suspect("x", RUN, 5, "d").unwrap_err();
    assert!(bench.wait(Duration::from_secs(100)).is_empty());
}

#[test]
fn accusations_of_strangers_of_old_incarnations_and_of_the_gone_change_nothing() {
    let mut bench = Bench::with_x();
    assert_eq!(bench.suspect("nobody", RUN, 1, "a").unwrap_err(), Ignored::Unknown);
    assert_eq!(bench.suspect("x", RUN, 4, "a").unwrap_err(), Ignored::Stale);
    assert_eq!(bench.dead("x", RUN, 4, "a").unwrap_err(), Ignored::Stale);
    assert_eq!(bench.dead("nobody", RUN, 4, "a").unwrap_err(), Ignored::Unknown);
    bench.dead("x", RUN, 5, "a").unwrap();
    assert_eq!(bench.suspect("x", RUN, 5, "a").unwrap_err(), Ignored::Stale);
    assert_eq!(bench.dead("x", RUN, 5, "b").unwrap_err(), Ignored::Stale);
    assert_eq!(bench.state("x"), Some((D, 5)));
}

#[test]
fn a_word_of_death_counts_at_once_and_a_farewell_makes_a_member_left() {
    let mut bench = Bench::with_x();
    assert_eq!(names(&bench.dead("x", RUN, 5, "a").unwrap()), ["dead"]);
    bench.alive(alive("y", RUN, 1, 3)).unwrap();
    assert_eq!(names(&bench.dead("y", RUN, 1, "y").unwrap()), ["left"]);
    assert_eq!(bench.state("y"), Some((L, 1)));
    assert_eq!(bench.dead("y", RUN, 1, "a").unwrap_err(), Ignored::Stale, "left stays left");
}

#[test]
fn with_own_verdicts_nobody_is_dead_on_another_ones_word() {
    let mut bench = Bench::with_x_and(Config { own_verdicts: true, ..Config::lan() });
    let word = |from: &str, confirmed_by: &[&str]| Dead {
        id: NodeId::new("x", RUN),
        incarnation: 5,
        from: from.into(),
        by: from.into(),
        confirmed_by: confirmed_by.iter().map(|name| (*name).into()).collect(),
        evidence: Evidence::NoAnswer { direct: true, helpers: 3, nacks: 3, healthy: true },
    };
    let hear = |bench: &mut Bench, word: &Dead| {
        let verdict = bench.table.dead(word, bench.now, &mut bench.rng);
        bench.apply(verdict)
    };
    // It counts as an accusation, which is passed on in the accuser's name; once.
    let effects = hear(&mut bench, &word("other1", &[])).unwrap();
    assert_eq!(names(&effects), ["suspected"]);
    assert!(matches!(&effects.broadcast, Some((_, Message::Dead(m))) if *m.by == *"other1"));
    assert_eq!(hear(&mut bench, &word("other1", &[])).unwrap_err(), Ignored::Stale);
    // So do those who have confirmed it: with both that are needed it has the shortest time.
    let min = Bounds::new(&Config::lan(), 6).min;
    assert!(hear(&mut bench, &word("other1", &["other2", "other3"])).unwrap().broadcast.is_some());
    assert!(bench.wait(min - Duration::from_millis(1)).is_empty());
    assert!(matches!(&bench.wait(Duration::from_millis(2))[..], [Change::Dead { .. }]));
    // The accused has time to answer.
    let mut bench = Bench::with_x_and(Config { own_verdicts: true, ..Config::lan() });
    hear(&mut bench, &word("other1", &["other2", "other3"])).unwrap();
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 2)).unwrap()), ["refuted"]);
    assert!(bench.wait(Duration::from_secs(600)).is_empty());
    // Unless its host has told enough of them that it is gone.
    let config = Config { own_verdicts: true, count_refusals: true, ..Config::lan() };
    let mut refused = Bench::with_x_and(config);
    let word = Dead { evidence: Evidence::Refused, ..word("other1", &["other2", "other3"]) };
    hear(&mut refused, &word).unwrap();
    assert!(matches!(&refused.wait(Duration::from_millis(1))[..], [Change::Dead { .. }]));
    // Its own farewell needs nobody's judgement.
    assert_eq!(names(&bench.dead("x", RUN, 6, "x").unwrap()), ["left"]);
}

#[test]
fn the_dead_come_back_with_a_higher_incarnation_only() {
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    let told = bench.alive(alive("x", RUN, 5, 2)).unwrap();
    assert!(matches!(told.tell, Some((_, _, Message::Dead(_)))), "it may refute");
    assert_eq!(bench.state("x"), Some((D, 5)));
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 2)).unwrap()), ["joined"]);
}

#[test]
fn this_node_refutes_what_is_said_of_it() {
    let mut bench = Bench::with_x();
    for (accused, next) in [(1, 2), (7, 8)] {
        let effects = bench.suspect("self", SELF_RUN, accused, "a").unwrap();
        assert!(effects.refuted);
        assert!(matches!(effects.broadcast, Some((_, Message::Alive(m))) if m.incarnation == next));
    }
    assert!(bench.dead("self", SELF_RUN, 8, "a").unwrap().refuted);
    assert_eq!(bench.state("self"), Some((A, 9)));
    assert_eq!(bench.suspect("self", SELF_RUN, 8, "a").unwrap_err(), Ignored::Stale);
    assert_eq!(bench.table.local().incarnation, 9);
}

#[test]
fn an_accuser_that_has_missed_a_refutation_is_told_again_once_in_a_while() {
    let mut bench = Bench::with_x();
    let first = bench.suspect("self", SELF_RUN, 1, "x").unwrap();
    assert!(
        first.refuted
            && matches!(first.tell, Some((to, _, Message::Alive(m))) if to == addr(2) && m.incarnation == 2)
    );
    assert_eq!(bench.suspect("self", SELF_RUN, 1, "x").unwrap_err(), Ignored::Stale);
    bench.now += Duration::from_secs(1);
    let told = bench.suspect("self", SELF_RUN, 1, "x").unwrap();
    assert!(matches!(told.tell, Some((to, _, Message::Alive(m))) if to == addr(2) && m.incarnation == 2));
    assert!(!told.refuted && told.broadcast.is_none());
    assert_eq!(bench.dead("self", SELF_RUN, 1, "x").unwrap_err(), Ignored::Stale);
    bench.now += Duration::from_secs(1);
    assert!(bench.dead("self", SELF_RUN, 1, "x").unwrap().tell.is_some());
    assert_eq!(bench.suspect("self", SELF_RUN, 1, "stranger").unwrap_err(), Ignored::Stale);
}

#[test]
fn foreign_news_about_this_node_is_outbid_and_its_own_echo_is_not() {
    let mut bench = Bench::new();
    let mut echo = alive("self", SELF_RUN, 1, 1);
    assert_eq!(bench.alive(echo.clone()).unwrap_err(), Ignored::Stale);
    echo.meta = Bytes::from_static(b"before the restart");
    assert!(bench.alive(echo).unwrap().refuted);
    assert_eq!(bench.table.local().incarnation, 2);
    assert!(bench.table.local().meta.is_empty());
}

#[test]
fn a_new_run_at_the_same_address_outbids_the_old_one_that_it_is_shown() {
    let mut bench = Bench::with_x();
    let effects = bench.alive(alive("x", RUN + 1, 1, 2)).unwrap();
    let Some((to, _, Message::Alive(shown))) = effects.tell else { panic!("{effects:?}") };
    assert_eq!((to, shown.id.run(), shown.incarnation), (addr(2), RUN, 5));
    let effects = bench.alive(alive("x", RUN + 1, 6, 2)).unwrap();
    assert_eq!(names(&effects), ["dead", "joined"], "one node went, another came");
    assert_eq!(bench.alive(alive("x", RUN, 5, 2)).unwrap_err(), Ignored::Tombstone);

    // The other side: a restarted node is shown what is left of its last run.
    let mut bench = Bench::new();
    assert!(bench.alive(alive("self", SELF_RUN + 1, 5, 1)).unwrap().refuted);
    assert_eq!(bench.table.local().incarnation, 6);
    assert_eq!(bench.table.local().id.run(), SELF_RUN);
}

#[test]
fn a_new_run_takes_the_place_of_the_dead_and_the_left_at_any_address() {
    for from in ["a", "x"] {
        let mut bench = Bench::with_x();
        bench.dead("x", RUN, 5, from).unwrap();
        assert_eq!(names(&bench.alive(alive("x", RUN + 1, 1, 99)).unwrap()), ["joined"]);
        assert_eq!(bench.state("x"), Some((A, 1)));
    }
}

#[test]
fn a_name_that_is_there_is_not_taken_from_another_address() {
    let mut bench = Bench::with_x();
    for rival in [alive("x", RUN + 1, 9, 99), alive("x", RUN, 9, 98)] {
        assert_eq!(names(&bench.alive(rival.clone()).unwrap()), ["conflict"]);
        assert_eq!(bench.alive(rival).unwrap_err(), Ignored::NameTaken, "reported once in a while");
        bench.now += Duration::from_secs(1);
    }
    assert_eq!(bench.state("x"), Some((A, 5)));
    assert_eq!(names(&bench.alive(alive("self", 1, 9, 99)).unwrap()), ["conflict"]);
    assert_eq!(bench.table.local().incarnation, 1);
}

#[test]
fn the_claim_of_another_run_waits_until_the_name_is_free() {
    for gone_by in ["a", "x"] {
        let mut bench = Bench::with_x();
        assert!(bench.alive(alive("x", RUN + 1, 1, 99)).unwrap().claim.is_none());
        assert!(bench.suspect("x", RUN, 5, "a").unwrap().claim.is_none());
        let claim = bench.dead("x", RUN, 5, gone_by).unwrap().claim.expect("it waits");
        assert_eq!(names(&bench.alive(claim).unwrap()), ["joined"]);
        assert_eq!(bench.table.roster().get("x").unwrap().id.run(), RUN + 1);
    }
}

#[test]
fn a_claim_is_forgotten_when_the_member_outlives_it_or_moves_itself() {
    let mut bench = Bench::with_x();
    bench.alive(alive("x", RUN + 1, 1, 99)).unwrap();
    bench.now += Bounds::new(&Config::lan(), 2).max;
    assert!(bench.dead("x", RUN, 5, "a").unwrap().claim.is_none());
    let mut bench = Bench::with_x();
    bench.alive(alive("x", RUN, 6, 99)).unwrap();
    assert!(bench.dead("x", RUN, 5, "a").unwrap().claim.is_none());
}

#[test]
fn the_same_run_reclaims_its_name_elsewhere_only_after_the_reclaim_time() {
    let config = Config { dead_node_reclaim_time: Duration::from_secs(10), ..believing() };
    let mut bench = Bench::with(config);
    bench.alive(alive("x", RUN, 5, 2)).unwrap();
    bench.dead("x", RUN, 5, "a").unwrap();
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 3)).unwrap()), ["conflict"]);
    bench.wait(Duration::from_secs(11));
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 3)).unwrap()), ["joined"]);
}

#[test]
fn whoever_reports_a_former_run_of_this_node_dead_is_reminded_of_the_present_one() {
    let mut bench = Bench::new();
    let effects = bench.dead("self", SELF_RUN + 1, 3, "a").unwrap();
    assert!(matches!(effects.broadcast, Some((_, Message::Alive(m))) if m.id.run() == SELF_RUN));
    assert!(!effects.refuted);
    assert_eq!(bench.dead("self", SELF_RUN + 1, 3, "a").unwrap_err(), Ignored::OtherRun);
}

#[test]
fn the_gone_are_forgotten_after_their_time() {
    let hours = |n: u64| Duration::from_secs(3600 * n);
    let mut bench = Bench::with_x();
    bench.alive(alive("y", RUN, 1, 3)).unwrap();
    bench.dead("x", RUN, 5, "a").unwrap();
    bench.dead("y", RUN, 1, "y").unwrap();
    assert!(matches!(&bench.wait(hours(25))[..], [Change::Reaped(id)] if id.name() == "y"));
    assert!(matches!(&bench.wait(hours(48))[..], [Change::Reaped(id)] if id.name() == "x"));
    assert_eq!(bench.state("x"), None);
}

#[test]
fn a_member_that_came_back_is_not_forgotten() {
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    bench.alive(alive("x", RUN, 6, 2)).unwrap();
    assert!(bench.wait(Duration::from_secs(100 * 3600)).is_empty());
}

#[test]
fn weak_point_45_a_full_table_takes_nobody_in_but_for_the_longest_gone_and_never_forgets_the_living() {
    let mut bench = Bench::with(Config { max_members: 3, ..believing() });
    bench.alive(alive("x", RUN, 1, 2)).unwrap();
    bench.alive(alive("y", RUN, 1, 3)).unwrap();
    assert_eq!(bench.alive(alive("z", RUN, 1, 4)).unwrap_err(), Ignored::TableFull);
    bench.dead("x", RUN, 1, "a").unwrap();
    assert_eq!(names(&bench.alive(alive("z", RUN, 1, 4)).unwrap()), ["reaped", "joined"]);
    assert_eq!(bench.table.roster().len(), 3);
}

#[test]
fn who_was_held_for_dead_itself_gives_those_whom_it_suspects_their_time_again_once() {
    let mut bench = Bench::with_x();
    let time = Bounds::new(&Config::lan(), 6).max;
    bench.suspect("x", RUN, 5, "self").unwrap();
    let almost = time - Duration::from_secs(1);
    assert!(bench.wait(almost).is_empty());
    bench.dead("self", SELF_RUN, 1, "a").unwrap();
    assert!(bench.wait(almost).is_empty(), "it has all the time again");
    bench.dead("self", SELF_RUN, 2, "a").unwrap();
    assert!(matches!(bench.wait(Duration::from_secs(2))[..], [Change::Dead { .. }]), "but only once");

    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "self").unwrap();
    assert!(bench.wait(almost).is_empty());
    bench.suspect("self", SELF_RUN, 1, "a").unwrap();
    let died = bench.wait(Duration::from_secs(2));
    assert!(matches!(died[..], [Change::Dead { .. }]), "a mere suspicion is no such sign: {died:?}");
}

#[test]
fn a_full_state_of_another_node_is_read_with_doubt() {
    let mut bench = Bench::with_x();
    for (name, run) in [("s", 1), ("d", 1), ("l", 1)] {
        bench.alive(alive(name, run, 1, 9)).unwrap();
    }
    assert_eq!(names(&bench.merge(alive("new", 1, 1, 8), A).unwrap()), ["joined"]);
    for (name, state) in [("s", S), ("d", D)] {
        assert!(bench.merge(alive(name, 1, 1, 9), state).unwrap().changes.is_empty(), "in doubt");
    }
    let accused: Vec<_> =
        second(&mut bench).into_iter().chain(second(&mut bench)).flat_map(|e| e.changes).collect();
    let [(_, Change::Suspected { why, .. }), _] = &accused[..] else { panic!("{accused:?}") };
    assert_eq!((&*why.by, why.evidence), ("self", Evidence::PushPull));
    assert_eq!(names(&bench.merge(alive("l", 1, 1, 9), L).unwrap()), ["left"]);
    assert_eq!(bench.merge(alive("unknown", 1, 1, 9), D).unwrap_err(), Ignored::Unknown);
}

/// What time alone brings, in steps of a second.
fn second(bench: &mut Bench) -> Vec<Effects> {
    bench.now += Duration::from_secs(1);
    let mut all = Vec::new();
    while let Some(decision) = bench.table.on_time(bench.now, &mut bench.rng) {
        all.push(bench.table.apply(decision, bench.now));
    }
    all
}

#[test]
fn one_that_another_node_holds_for_dead_is_told_so_and_suspected_only_if_it_does_not_answer() {
    let mut bench = Bench::with_x();
    bench.merge(alive("x", RUN, 7, 2), D).unwrap();
    assert_eq!(bench.merge(alive("x", RUN, 6, 2), D).unwrap_err(), Ignored::Stale, "it is in doubt already");
    assert!(bench.table.due() <= bench.now + Duration::from_secs(1));
    let told = second(&mut bench);
    let [Effects { tell: Some((to, _, Message::Dead(word))), .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((*to, word.incarnation, &*word.from), (addr(2), 7, "self"));
    assert_eq!(bench.state("x"), Some((A, 5)));
    let suspected = second(&mut bench);
    assert_eq!(names(&suspected[0]), ["suspected"]);
    assert_eq!(bench.state("x"), Some((S, 7)));
}

#[test]
fn a_doubt_ends_with_news_of_the_member_itself() {
    let mut bench = Bench::with_x();
    bench.merge(alive("x", RUN, 5, 2), D).unwrap();
    assert_eq!(second(&mut bench).len(), 1, "told");
    bench.alive(alive("x", RUN, 6, 2)).unwrap();
    assert!(second(&mut bench).is_empty());
    assert_eq!(bench.state("x"), Some((A, 6)));
    // A far incarnation, another run and this node itself are judged as ever.
    assert_eq!(
        bench.merge(alive("x", RUN, 7 + MAX_INCARNATION_STEP, 2), D).unwrap_err(),
        Ignored::IncarnationStep
    );
    assert_eq!(bench.merge(alive("x", 99, 9, 2), D).unwrap_err(), Ignored::OtherRun);
    assert!(bench.merge(alive("self", SELF_RUN, 1, 1), D).unwrap().refuted);
}

#[test]
fn when_this_node_did_not_run_its_suspects_get_their_time_back() {
    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "a").unwrap();
    bench.now += Duration::from_secs(600);
    assert!(bench.table.on_time(bench.now, &mut bench.rng).is_none(), "x could not reach a stopped node");
    assert_eq!(bench.state("x"), Some((S, 5)));
    assert_eq!(bench.wait(Duration::from_secs(25)).len(), 1);
}

#[test]
fn a_suspicion_that_begins_as_this_node_wakes_lasts_no_longer_than_any_other() {
    let mut bench = Bench::with_x();
    bench.suspect("other0", RUN, 1, "a").unwrap();
    bench.now += Duration::from_secs(600);
    // It is heard before it is noticed how late it is.
    bench.suspect("x", RUN, 5, "a").unwrap();
    assert!(bench.table.on_time(bench.now, &mut bench.rng).is_none());
    assert_eq!(bench.wait(Duration::from_secs(25)).len(), 2);
}

#[test]
fn a_grave_outlasts_the_memory_of_who_lies_in_it() {
    let config = Config::lan();
    let (kept, covered) = (config.left_retention, config.tombstone_retention);
    let mut bench = Bench::with(config);
    bench.alive(alive("x", RUN, 5, 2)).unwrap();
    bench.dead("x", RUN, 5, "x").unwrap();
    bench.wait(kept + Duration::from_secs(1));
    assert_eq!(bench.state("x"), None);
    bench.wait(covered - Duration::from_secs(1));
    assert_eq!(bench.alive(alive("x", RUN, 5, 2)).unwrap_err(), Ignored::Tombstone);
    bench.wait(Duration::from_secs(120));
    assert_eq!(names(&bench.alive(alive("x", RUN, 5, 2)).unwrap()), ["joined"]);
}

#[test]
fn leaving_is_said_once_and_nothing_is_said_after() {
    let mut bench = Bench::with_x();
    let effects = bench.leave().unwrap();
    assert_eq!(names(&effects), ["left"]);
    assert!(matches!(effects.broadcast, Some((_, Message::Dead(m))) if m.is_farewell()));
    assert_eq!(bench.leave().unwrap_err(), Ignored::Leaving);
    assert_eq!(bench.suspect("self", SELF_RUN, 1, "a").unwrap_err(), Ignored::Leaving);
    assert_eq!(bench.dead("self", SELF_RUN, 1, "a").unwrap_err(), Ignored::Leaving);
    assert_eq!(bench.alive(alive("self", SELF_RUN, 9, 1)).unwrap_err(), Ignored::Leaving);
    assert_eq!(bench.update(b"late").unwrap_err(), Ignored::Leaving);
}

#[test]
fn weak_point_04_the_state_that_users_see_is_the_state_that_is_held() {
    let mut bench = Bench::with_x();
    bench.suspect("x", RUN, 5, "a").unwrap();
    assert_eq!(bench.table.view().get("x").unwrap().state, S);
    let changes = bench.wait(Duration::from_secs(30));
    assert!(matches!(&changes[..], [Change::Dead { member, .. }] if member.state == D));
    assert_eq!(bench.table.view().get("x").unwrap().state, D);
}

#[test]
fn weak_point_05_unsound_versions_never_enter_the_table() {
    let mut bench = Bench::new();
    for bytes in [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [2, 1, 1, 0, 0, 0]] {
        let m = Alive { versions: Versions::from_bytes(bytes), ..alive("x", RUN, 1, 2) };
        assert_eq!(bench.alive(m).unwrap_err(), Ignored::Versions);
    }
    assert_eq!(bench.table.roster().len(), 1);
}

#[test]
fn weak_point_05_a_member_that_this_node_cannot_talk_to_spoils_nothing_but_its_own_membership() {
    let delegate_version = VersionRange { min: 1, max: 2, current: 2 };
    let mut bench = Bench::with(Config { delegate_version, ..Config::lan() });
    let speaks = |name: &str, delegate: [u8; 3]| {
        let [min, max, current] = delegate;
        Alive { versions: Versions::from_bytes([1, 1, 1, min, max, current]), ..alive(name, RUN, 1, 2) }
    };
    for delegate in [[0, 0, 0], [1, 1, 1], [3, 4, 3], [1, 3, 3]] {
        assert_eq!(bench.alive(speaks("x", delegate)).unwrap_err(), Ignored::Incompatible, "{delegate:?}");
    }
    let later = Alive { versions: Versions::from_bytes([2, 3, 2, 1, 2, 2]), ..alive("x", RUN, 1, 2) };
    assert_eq!(bench.alive(later).unwrap_err(), Ignored::Incompatible);
    assert_eq!(names(&bench.alive(speaks("y", [2, 5, 2])).unwrap()), ["joined"]);
    assert_eq!((bench.state("x"), bench.state("y")), (None, Some((A, 1))));
}

#[test]
fn weak_point_14_an_address_outside_the_list_never_enters_the_table() {
    let cidrs_allowed = Some(vec!["10.0.0.0/30".parse().unwrap()]);
    let mut bench = Bench::with(Config { cidrs_allowed, ..Config::lan() });
    assert_eq!(bench.alive(alive("x", RUN, 1, 4)).unwrap_err(), Ignored::NotAllowed);
    assert_eq!(names(&bench.alive(alive("x", RUN, 1, 2)).unwrap()), ["joined"]);
    // Nor does a member move there, and a rival from there is not even a conflict.
    assert_eq!(bench.alive(alive("x", RUN + 1, 2, 4)).unwrap_err(), Ignored::NotAllowed);
    assert_eq!(bench.alive(alive("self", RUN, 9, 4)).unwrap_err(), Ignored::NotAllowed);
    assert_eq!(bench.state("x"), Some((A, 1)));
    let remembered = |name: &str| Remembered { alive: alive(name, RUN, 1, 4), state: A };
    let verdict = bench.table.merge(&remembered("y"), bench.now, &mut bench.rng);
    assert_eq!(verdict.unwrap_err(), Ignored::NotAllowed);
}

#[test]
fn weak_point_14_with_an_empty_list_a_node_still_has_itself() {
    let mut bench = Bench::with(Config { cidrs_allowed: Some(Vec::new()), ..Config::lan() });
    assert_eq!(bench.alive(alive("x", RUN, 1, 2)).unwrap_err(), Ignored::NotAllowed);
    let effects = bench.alive(alive("self", SELF_RUN, 5, 1)).unwrap();
    assert!(effects.refuted, "it still hears of itself");
    assert_eq!(bench.table.local().incarnation, 6);
}

#[test]
fn weak_point_06_incarnation_zero_leaves_no_ghost() {
    let mut bench = Bench::new();
    assert_eq!(bench.alive(alive("x", RUN, 0, 2)).unwrap_err(), Ignored::Stale);
    assert_eq!(bench.state("x"), None);
}

#[test]
fn weak_point_07_the_two_forms_of_an_address_are_no_conflict() {
    let mut bench = Bench::with_x();
    let mut m = alive("x", RUN, 6, 2);
    m.addr = "[::ffff:10.0.0.2]:7946".parse().unwrap();
    let effects = bench.alive(m).unwrap();
    assert!(effects.changes.is_empty());
    assert_eq!(bench.table.roster().get("x").unwrap().addr, addr(2));
}

#[test]
fn weak_point_08_a_refutation_is_queued_under_the_name_and_never_wraps() {
    let mut bench = Bench::new();
    let effects = bench.suspect("self", SELF_RUN, 1, "a").unwrap();
    assert_eq!(&*effects.broadcast.unwrap().0, "self");
    for _ in 0..4 {
        assert_eq!(bench.table.local().id.run(), SELF_RUN);
        let own = bench.table.local().incarnation;
        let accused = own.saturating_add(MAX_INCARNATION_STEP);
        bench.suspect("self", SELF_RUN, accused, "a").unwrap();
    }
    assert_ne!(bench.table.local().id.run(), SELF_RUN, "at the end of the numbers it is another run");
    assert_eq!(bench.table.local().incarnation, 1);
}

#[test]
fn weak_point_09_an_update_outbids_an_accusation_that_comes_between() {
    let mut bench = Bench::new();
    bench.update(b"one").unwrap();
    bench.suspect("self", SELF_RUN, 2, "a").unwrap();
    let effects = bench.update(b"two").unwrap();
    let Some((_, Message::Alive(m))) = effects.broadcast else { panic!() };
    assert_eq!((m.incarnation, &m.meta[..]), (4, &b"two"[..]));
}

#[test]
fn weak_point_11_a_node_that_left_still_knows_itself_and_answers_errors() {
    let mut bench = Bench::new();
    bench.leave().unwrap();
    bench.wait(Duration::from_secs(100 * 3600));
    assert_eq!(bench.table.local().state, L);
    assert!(bench.table.view().get("self").is_some());
    assert_eq!(bench.update(b"x").unwrap_err(), Ignored::Leaving);
}

#[test]
fn weak_point_12_old_news_from_an_old_address_does_not_revive_one_that_left() {
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "x").unwrap();
    assert_eq!(bench.alive(alive("x", RUN, 4, 99)).unwrap_err(), Ignored::Stale);
    assert_eq!(bench.state("x"), Some((L, 5)));
}

#[test]
fn weak_point_13_a_forgotten_member_does_not_return_by_old_news() {
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    bench.wait(Duration::from_secs(73 * 3600));
    assert_eq!(bench.state("x"), None);
    assert_eq!(bench.alive(alive("x", RUN, 5, 2)).unwrap_err(), Ignored::Tombstone);
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 2)).unwrap()), ["joined"], "it refutes");
}

#[test]
fn weak_point_38_an_incarnation_far_above_the_known_one_is_refused() {
    let mut bench = Bench::with_x();
    for far in [u32::MAX, 5 + MAX_INCARNATION_STEP + 1] {
        assert_eq!(bench.suspect("x", RUN, far, "a").unwrap_err(), Ignored::IncarnationStep);
        assert_eq!(bench.dead("x", RUN, far, "a").unwrap_err(), Ignored::IncarnationStep);
        assert_eq!(bench.alive(alive("x", RUN, far, 2)).unwrap_err(), Ignored::IncarnationStep);
        assert_eq!(bench.suspect("self", SELF_RUN, far, "a").unwrap_err(), Ignored::IncarnationStep);
        assert_eq!(bench.alive(alive("self", SELF_RUN, far, 1)).unwrap_err(), Ignored::IncarnationStep);
    }
    assert_eq!((bench.state("x"), bench.table.local().incarnation), (Some((A, 5)), 1));
    assert_eq!(bench.alive(alive("new", RUN, u32::MAX, 3)).unwrap_err(), Ignored::IncarnationStep);
}

#[test]
fn weak_point_38_the_highest_step_of_an_incarnation_is_a_setting() {
    let mut bench = Bench::with(Config { max_incarnation_step: 100_000, ..Config::lan() });
    bench.alive(alive("x", RUN, 500_000, 2)).expect("a newcomer may have had a long life");
    let far = 600_001;
    assert_eq!(bench.suspect("x", RUN, far, "a").unwrap_err(), Ignored::IncarnationStep);
    assert_eq!(bench.dead("x", RUN, far, "a").unwrap_err(), Ignored::IncarnationStep);
    assert_eq!(bench.alive(alive("x", RUN, far, 2)).unwrap_err(), Ignored::IncarnationStep);
    assert_eq!(bench.suspect("self", SELF_RUN, 100_002, "a").unwrap_err(), Ignored::IncarnationStep);
    assert_eq!(bench.alive(alive("self", SELF_RUN, 100_002, 1)).unwrap_err(), Ignored::IncarnationStep);
    assert!(bench.suspect("self", SELF_RUN, 100_001, "a").is_ok());
    assert_eq!(bench.table.local().incarnation, 100_002);
    assert!(bench.alive(alive("x", RUN, far - 1, 2)).is_ok());
}

#[test]
fn evidence_of_a_higher_incarnation_closes_the_gap_for_older_news() {
    // Dead at 5; the cluster has seen it alive, and accused, up to 8. News of 7 must not revive it.
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    assert!(bench.dead("x", RUN, 8, "b").unwrap().changes.is_empty());
    assert_eq!(bench.state("x"), Some((D, 8)));
    assert!(bench.alive(alive("x", RUN, 7, 2)).is_ok_and(|effects| effects.changes.is_empty()));
    assert_eq!(bench.state("x"), Some((D, 8)));
    // The same for a suspect.
    bench.alive(alive("y", RUN, 1, 3)).unwrap();
    bench.suspect("y", RUN, 1, "a").unwrap();
    bench.suspect("y", RUN, 4, "a").unwrap();
    assert_eq!(bench.state("y"), Some((S, 4)));
}

#[test]
fn a_decision_that_is_not_applied_changes_nothing() {
    let mut bench = Bench::with_x();
    let (rev, version) = (bench.table.view().rev(), bench.table.version());
    let _ =
        bench.table.dead(&Dead::farewell(bench.table.roster().get("x").unwrap()), bench.now, &mut bench.rng);
    let _ = bench.table.leave(bench.now);
    assert_eq!((bench.table.view().rev(), bench.table.version()), (rev, version));
    assert_eq!(bench.state("x"), Some((A, 5)));
}

/// An operator's word about `x`, as it comes over the wire.
fn word(incarnation: u32) -> Dead {
    Dead {
        id: NodeId::new("x", RUN),
        incarnation,
        from: "operator".into(),
        by: "operator".into(),
        confirmed_by: Vec::new(),
        evidence: Evidence::ForceLeave,
    }
}

#[test]
fn an_operator_declares_only_the_dead_to_have_left() {
    let mut bench = Bench::with_x();
    assert_eq!(bench.force_leave("nobody").unwrap_err(), NotForced::Unknown);
    assert_eq!(bench.force_leave("x").unwrap_err(), NotForced::StillAlive);
    assert_eq!(bench.force_leave("self").unwrap_err(), NotForced::StillAlive);
    bench.suspect("x", RUN, 5, "a").unwrap();
    assert_eq!(bench.force_leave("x").unwrap_err(), NotForced::StillAlive, "it may still refute");
    bench.dead("x", RUN, 5, "a").unwrap();
    let effects = bench.force_leave("x").unwrap();
    let [(_, Change::Left { member, why })] = &effects.changes[..] else { panic!("{effects:?}") };
    assert_eq!((member.state, &*why.by, why.evidence), (L, "self", Evidence::ForceLeave));
    assert!(matches!(&effects.broadcast, Some((_, Message::Dead(m))) if m.is_left() && !m.is_farewell()));
    // Once more it is only told once more.
    let again = bench.force_leave("x").unwrap();
    assert!(again.changes.is_empty() && again.broadcast.is_some());
    assert_eq!(bench.state("x"), Some((L, 5)));
    bench.leave().unwrap();
    assert_eq!(bench.force_leave("x").unwrap_err(), NotForced::Leaving);
    assert_eq!(bench.force_leave("self").unwrap_err(), NotForced::Leaving);
}

#[test]
fn of_dead_and_left_at_the_same_incarnation_left_wins_in_whichever_order_they_come() {
    let farewell = Dead { from: "x".into(), by: "x".into(), evidence: Evidence::Announced, ..word(5) };
    let merged = Remembered { alive: alive("x", RUN, 5, 2), state: L };
    for how in 0..3 {
        for left_first in [true, false] {
            let mut bench = Bench::with_x();
            if !left_first {
                bench.dead("x", RUN, 5, "a").unwrap();
            }
            let verdict = match how {
                0 => bench.table.dead(&word(5), bench.now, &mut bench.rng),
                1 => bench.table.dead(&farewell, bench.now, &mut bench.rng),
                _ => bench.table.merge(&merged, bench.now, &mut bench.rng),
            };
            let effects = bench.apply(verdict).unwrap();
            assert_eq!(names(&effects), ["left"]);
            assert!(
                matches!(effects.broadcast, Some((_, Message::Dead(m))) if m.is_left()),
                "it is passed on"
            );
            if left_first {
                assert_eq!(bench.dead("x", RUN, 5, "a").unwrap_err(), Ignored::Stale);
                assert_eq!(bench.merge(alive("x", RUN, 5, 2), D).unwrap_err(), Ignored::Stale);
            }
            assert_eq!(bench.state("x"), Some((L, 5)), "{how}");
        }
    }
}

#[test]
fn an_operators_word_counts_at_the_incarnation_that_it_names_and_no_higher_one() {
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    bench.alive(alive("x", RUN, 6, 2)).unwrap();
    let late = bench.table.dead(&word(5), bench.now, &mut bench.rng);
    assert_eq!(bench.apply(late).unwrap_err(), Ignored::Stale);
    assert_eq!(bench.state("x"), Some((A, 6)));
    // About the node itself it is an accusation as any other.
    let me = Dead { id: NodeId::new("self", SELF_RUN), ..word(1) };
    let verdict = bench.table.dead(&me, bench.now, &mut bench.rng);
    assert!(bench.apply(verdict).unwrap().refuted);
}

#[test]
fn one_that_was_declared_to_have_left_comes_back_higher_or_as_another_run_and_hears_why_it_must() {
    for back in [alive("x", RUN, 6, 2), alive("x", RUN + 1, 1, 99)] {
        let mut bench = Bench::with_x();
        bench.dead("x", RUN, 5, "a").unwrap();
        bench.force_leave("x").unwrap();
        let told = bench.alive(alive("x", RUN, 5, 2)).unwrap();
        assert!(matches!(told.tell, Some((to, _, Message::Dead(_))) if to == addr(2)));
        assert_eq!(names(&bench.alive(back).unwrap()), ["joined"]);
    }
}

#[test]
fn one_that_turns_from_dead_to_left_is_forgotten_as_one_that_left_and_the_time_of_its_death_is_void() {
    let hours = |n: u64| Duration::from_secs(3600 * n);
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    bench.wait(hours(60));
    bench.force_leave("x").unwrap();
    assert!(bench.wait(hours(23)).is_empty(), "it was dead for 72 hours meanwhile");
    assert!(matches!(&bench.wait(hours(2))[..], [Change::Reaped(_)]));
}

#[test]
fn after_a_leave_this_node_comes_back_as_another_run_with_what_it_said_of_itself() {
    let mut bench = Bench::with_x();
    assert_eq!(bench.rejoin().unwrap_err(), Ignored::Stale, "it has not left");
    bench.update(b"meta").unwrap();
    bench.leave().unwrap();
    let effects = bench.rejoin().unwrap();
    assert_eq!(names(&effects), ["joined"]);
    let local = bench.table.local().clone();
    assert_ne!(local.id.run(), SELF_RUN);
    assert_eq!((local.state, local.incarnation, &local.meta[..]), (A, 3, &b"meta"[..]));
    assert!(matches!(effects.broadcast, Some((_, Message::Alive(m))) if m.id == local.id));
    assert_eq!(bench.table.roster().present(), bench.table.roster().len());

    // What is late of the old run does not concern it, but for a reminder.
    assert_eq!(bench.suspect("self", SELF_RUN, 9, "x").unwrap_err(), Ignored::OtherRun);
    assert!(!bench.dead("self", SELF_RUN, 2, "self").unwrap().refuted);
    assert_eq!(bench.alive(alive("self", SELF_RUN, 2, 1)).unwrap_err(), Ignored::Stale);
    assert_eq!(bench.table.local().id, local.id);
    // What is said of the new one does.
    assert!(bench.suspect("self", local.id.run(), 3, "a").unwrap().refuted);
    assert!(bench.update(b"new").is_ok());
    assert!(bench.leave().is_ok() && bench.rejoin().is_ok());
}

#[test]
fn who_holds_a_node_for_left_or_has_missed_its_farewell_takes_its_new_run_and_nothing_late_of_the_old_one() {
    for heard in [true, false] {
        let mut bench = Bench::with_x();
        if heard {
            bench.dead("x", RUN, 5, "x").unwrap();
        }
        let effects = bench.alive(alive("x", RUN + 1, 6, 2)).unwrap();
        assert_eq!(names(&effects).last(), Some(&"joined"));
        assert_eq!(bench.dead("x", RUN, 5, "x").unwrap_err(), Ignored::OtherRun);
        assert_eq!(bench.merge(alive("x", RUN, 5, 2), L).unwrap_err(), Ignored::OtherRun);
        assert_eq!(bench.suspect("x", RUN, 5, "a").unwrap_err(), Ignored::OtherRun);
        assert_eq!(bench.alive(alive("x", RUN, 5, 2)).unwrap_err(), Ignored::Tombstone);
        assert_eq!(bench.table.roster().get("x").unwrap().id.run(), RUN + 1);
    }
}

/// `x` is accused with good reason, by a node of that number.
fn accuse_x(bench: &mut Bench, incarnation: u32, by: usize) -> Result<Effects, Ignored> {
    let evidence = Evidence::NoAnswer { direct: true, helpers: 3, nacks: 3, healthy: true };
    let from = format!("other{by}").into();
    let m = Suspect { id: NodeId::new("x", RUN), incarnation, from, evidence };
    let verdict = bench.table.suspect(&m, bench.now, &mut bench.rng);
    bench.apply(verdict)
}

#[test]
fn one_that_dies_again_soon_waits_until_nobody_accuses_it() {
    let secs = Duration::from_secs;
    let mut bench = Bench::with_x();
    bench.dead("x", RUN, 5, "a").unwrap();
    assert_eq!(names(&bench.alive(alive("x", RUN, 6, 2)).unwrap()), ["joined"], "once is nothing");
    bench.wait(secs(299));
    bench.dead("x", RUN, 6, "a").unwrap();
    // It speaks, which is passed on, and is watched.
    let effects = bench.alive(alive("x", RUN, 7, 2)).unwrap();
    assert!(effects.changes.is_empty() && effects.watched.as_deref() == Some("x"));
    assert!(matches!(&effects.broadcast, Some((_, Message::Alive(m))) if m.incarnation == 7));
    assert_eq!((bench.state("x"), bench.table.view().is_on_probation("x")), (Some((D, 6)), true));
    assert_eq!(bench.alive(alive("x", RUN, 7, 2)).unwrap_err(), Ignored::Stale);
    // An accusation with good reason prolongs it, and is passed on once in a while; a weak one does nothing.
    assert!(bench.wait(secs(29)).is_empty());
    assert!(accuse_x(&mut bench, 7, 1).unwrap().broadcast.is_some());
    assert!(accuse_x(&mut bench, 7, 2).unwrap().broadcast.is_none());
    assert!(bench.wait(secs(15)).is_empty());
    assert_eq!(accuse_x(&mut bench, 6, 3).unwrap_err(), Ignored::Stale, "it has refuted that");
    assert_eq!(bench.suspect("x", RUN, 7, "b").unwrap_err(), Ignored::Stale);
    assert_eq!(bench.alive(alive("x", RUN, 8, 2)).unwrap().watched, None);
    assert_eq!(bench.state("x").unwrap().0, D);
    // Then it is over.
    let changes = bench.wait(secs(30));
    assert!(matches!(&changes[..], [Change::Joined(m)] if m.incarnation == 8), "{changes:?}");
    assert!(!bench.table.view().is_on_probation("x"));
    // It is not held against it for ever.
    bench.wait(secs(301));
    bench.dead("x", RUN, 8, "a").unwrap();
    assert_eq!(names(&bench.alive(alive("x", RUN, 9, 2)).unwrap()), ["joined"]);
    // Nor against another run.
    bench.dead("x", RUN, 9, "a").unwrap();
    assert_eq!(names(&bench.alive(alive("x", RUN + 1, 1, 2)).unwrap()), ["joined"]);
}

#[test]
fn a_probation_ends_with_what_it_is_about() {
    let on_probation = || {
        let mut bench = Bench::with_x();
        for incarnation in [5, 6] {
            bench.dead("x", RUN, incarnation, "a").unwrap();
            bench.alive(alive("x", RUN, incarnation + 1, 2)).unwrap();
        }
        assert!(bench.table.view().is_on_probation("x"));
        bench
    };
    // Another run takes its place, an operator declares it to have left, or it leaves.
    let mut bench = on_probation();
    assert_eq!(names(&bench.alive(alive("x", RUN + 1, 1, 2)).unwrap()), ["joined"]);
    assert!(bench.wait(Duration::from_secs(100)).is_empty());
    let mut bench = on_probation();
    bench.force_leave("x").unwrap();
    assert!(bench.wait(Duration::from_secs(100)).is_empty());
    let mut bench = on_probation();
    bench.dead("x", RUN, 7, "x").unwrap();
    assert!(bench.wait(Duration::from_secs(100)).is_empty());
    assert_eq!(bench.state("x"), Some((L, 7)));
    // A verdict on its last word: it has to speak again.
    let mut bench = on_probation();
    bench.dead("x", RUN, 7, "a").unwrap();
    assert!(!bench.table.view().is_on_probation("x") && bench.wait(Duration::from_secs(100)).is_empty());
    bench.alive(alive("x", RUN, 8, 2)).unwrap();
    assert_eq!(bench.wait(Duration::from_secs(31)).len(), 1);
    // Where too few could accuse it, or where it is switched off, nobody waits.
    for (others, config) in [(1, believing()), (4, Config { flap_probation: Duration::ZERO, ..believing() })]
    {
        let mut bench = Bench::with(config);
        for i in 0..others {
            bench.alive(alive(&format!("other{i}"), RUN, 1, 50 + i)).unwrap();
        }
        bench.alive(alive("x", RUN, 1, 2)).unwrap();
        for incarnation in 1..5 {
            bench.dead("x", RUN, incarnation, "a").unwrap();
            assert_eq!(names(&bench.alive(alive("x", RUN, incarnation + 1, 2)).unwrap()), ["joined"]);
        }
    }
}

#[test]
fn when_many_flap_at_once_it_is_the_network_and_nobody_waits() {
    let mut bench = Bench::with_x();
    for incarnation in [1, 2] {
        for i in 0..3 {
            bench.dead(&format!("other{i}"), RUN, incarnation, "a").unwrap();
        }
        for i in 0..3 {
            let back = alive(&format!("other{i}"), RUN, incarnation + 1, 50 + i);
            assert_eq!(names(&bench.alive(back).unwrap()), ["joined"]);
        }
    }
}

#[test]
fn one_that_is_accused_again_and_again_is_dead_and_waits() {
    let mut bench = Bench::with_x();
    let limit = bench.table.config().flap_limit;
    for n in 0..limit {
        assert_eq!(names(&accuse_x(&mut bench, 5 + n, n as usize % 4).unwrap()), ["suspected"]);
        bench.wait(Duration::from_secs(2));
        assert_eq!(names(&bench.alive(alive("x", RUN, 6 + n, 2)).unwrap()), ["refuted"]);
    }
    // A weak accusation is one like any other.
    assert_eq!(names(&bench.suspect("x", RUN, 5 + limit, "a").unwrap()), ["suspected"]);
    bench.alive(alive("x", RUN, 6 + limit, 2)).unwrap();
    let effects = accuse_x(&mut bench, 6 + limit, 1).unwrap();
    assert_eq!(names(&effects), ["dead"]);
    assert!(matches!(&effects.broadcast, Some((_, Message::Dead(m))) if *m.by == *"other1"));
    assert_eq!(bench.alive(alive("x", RUN, 7 + limit, 2)).unwrap().watched.as_deref(), Some("x"));
    // Those who are accused now and then, or as often as everybody else, are not.
    let mut bench = Bench::with_x();
    for n in 0..3 * limit {
        assert_eq!(names(&accuse_x(&mut bench, 5 + n, n as usize % 4).unwrap()), ["suspected"]);
        bench.wait(Duration::from_secs(9));
        assert_eq!(names(&bench.alive(alive("x", RUN, 6 + n, 2)).unwrap()), ["refuted"]);
    }
    let mut bench = Bench::with_x();
    for n in 0..2 * limit {
        for (name, first, host) in [("x", 5, 2), ("other0", 1, 50), ("other1", 1, 51), ("other2", 1, 52)] {
            let evidence = Evidence::NoAnswer { direct: true, helpers: 3, nacks: 3, healthy: true };
            let (id, incarnation) = (NodeId::new(name, RUN), first + n);
            let m = Suspect { id, incarnation, from: "other3".into(), evidence };
            let verdict = bench.table.suspect(&m, bench.now, &mut bench.rng);
            assert_eq!(names(&bench.apply(verdict).unwrap()), ["suspected"]);
            bench.alive(alive(name, RUN, incarnation + 1, host)).unwrap();
        }
        bench.wait(Duration::from_secs(2));
    }
}

#[test]
fn what_the_gone_say_of_others_counts_nothing() {
    let mut bench = Bench::with_x();
    bench.dead("other1", RUN, 1, "a").unwrap();
    assert_eq!(accuse_x(&mut bench, 5, 1).unwrap_err(), Ignored::Accuser);
    accuse_x(&mut bench, 5, 2).unwrap();
    assert_eq!(accuse_x(&mut bench, 5, 1).unwrap_err(), Ignored::Accuser);
    assert!(accuse_x(&mut bench, 5, 3).unwrap().confirmed.is_some());
    let mut bench = Bench::with_x_and(Config { weigh_accusers: false, ..believing() });
    bench.dead("other1", RUN, 1, "a").unwrap();
    assert_eq!(names(&accuse_x(&mut bench, 5, 1).unwrap()), ["suspected"]);
}

#[test]
fn who_hears_nobody_judges_for_itself_alone() {
    let deaf = Evidence::NoAnswer { direct: true, helpers: 3, nacks: 0, healthy: true };
    let mut bench = Bench::with_x();
    let accuse = |bench: &mut Bench, evidence| {
        let verdict =
            bench.table.accuse(&NodeId::new("x", RUN), 5, evidence, bench.now, &mut bench.rng).unwrap();
        bench.table.apply(verdict, bench.now)
    };
    let effects = accuse(&mut bench, deaf);
    assert_eq!((names(&effects), effects.broadcast.is_none()), (vec!["suspected"], true));
    // The accused hears of it all the same: it may be able to answer by now.
    let (to, run, told) = effects.tell.expect("somebody is told");
    assert_eq!((to, run), (addr(2), RUN));
    assert!(matches!(told, Message::Suspect(Suspect { incarnation: 5, .. })), "{told:?}");
    // Its verdict stays with it, too.
    bench.now = bench.table.due();
    let decision = bench.table.on_time(bench.now, &mut bench.rng).unwrap();
    let effects = bench.table.apply(decision, bench.now);
    assert_eq!((names(&effects), effects.broadcast.is_none()), (vec!["dead"], true));
    // Where nacks come too late, or where it does not matter who accuses, it says nothing that there are none.
    for config in
        [Config { early_nacks: false, ..believing() }, Config { weigh_accusers: false, ..believing() }]
    {
        let mut bench = Bench::with_x_and(config);
        assert!(accuse(&mut bench, deaf).broadcast.is_some());
    }
    // One helper that says so much as that it has no answer is enough; and so is one other accuser.
    let mut bench = Bench::with_x();
    let heard = Evidence::NoAnswer { direct: true, helpers: 3, nacks: 1, healthy: true };
    assert!(accuse(&mut bench, heard).broadcast.is_some());
    let mut bench = Bench::with_x();
    accuse(&mut bench, deaf);
    accuse_x(&mut bench, 5, 1).unwrap();
    bench.now = bench.table.due();
    let decision = bench.table.on_time(bench.now, &mut bench.rng).unwrap();
    assert!(bench.table.apply(decision, bench.now).broadcast.is_some());
}

#[test]
fn an_echo_of_what_is_known_is_found_stale_by_the_rules_too() {
    type Turn = fn(&mut Bench);
    let turns: [Turn; 4] = [
        |_| {},
        |bench| drop(bench.suspect("x", RUN, 5, "other1").unwrap()),
        |bench| drop(bench.dead("x", RUN, 5, "other1").unwrap()),
        |bench| drop(bench.dead("x", RUN, 5, "x").unwrap()),
    ];
    let mut echoes = 0;
    for (turn, name, run) in turns.iter().flat_map(|turn| {
        [("x", RUN), ("x", RUN + 1), ("stranger", RUN), ("self", SELF_RUN)].map(|(n, r)| (turn, n, r))
    }) {
        for (incarnation, host, newer) in [0, 1, 4, 5, 6]
            .into_iter()
            .flat_map(|i| [1, 2, 3].map(|h| (i, h)))
            .flat_map(|(i, h)| [(i, h, false), (i, h, true)])
        {
            let mut bench = Bench::with_x();
            turn(&mut bench);
            let mut news = alive(name, run, incarnation, host);
            if newer {
                news.versions.delegate = VersionRange { min: 3, max: 4, current: 3 };
            }
            if bench.table.view().is_echo(&news) {
                echoes += 1;
                assert_eq!(bench.alive(news.clone()).err(), Some(Ignored::Stale), "{news:?}");
            }
        }
    }
    assert_eq!(echoes, 4, "of the member that is alive, in the four incarnations up to its own");
}

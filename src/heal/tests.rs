use std::collections::BTreeSet;

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::*;
use crate::{member::NodeId, view::Roster};

const INTERVAL: Duration = Duration::from_secs(5);

fn addr(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250) as u8 + 1], 7946))
}

/// A view of node 0, with the others in the given states.
fn view(states: impl IntoIterator<Item = MemberState>, now: Instant) -> View {
    let mut roster = Roster::new(3);
    let local = Arc::new(Member::new(NodeId::new("n0", 7), addr(0), 1, now));
    roster.put(local.clone());
    for (i, state) in states.into_iter().enumerate() {
        let member = Member::new(NodeId::new(format!("n{}", i + 1), 7), addr(i + 1), 1, now);
        roster.put(Arc::new(member.turned(state, 1, now)));
    }
    View::new(1, local, roster)
}

fn states(present: usize, dead: usize, left: usize) -> Vec<MemberState> {
    let of = |state, n| std::iter::repeat_n(state, n);
    of(MemberState::Alive, present)
        .chain(of(MemberState::Dead, dead))
        .chain(of(MemberState::Left, left))
        .collect()
}

struct Search {
    heal: Heal,
    now: Instant,
    rng: Xoshiro256PlusPlus,
}

impl Search {
    fn new(seed: u64) -> Self {
        let (now, mut rng) = (Instant::now(), Xoshiro256PlusPlus::seed_from_u64(seed));
        Self { heal: Heal::new(&Config::lan(), now, &mut rng), now, rng }
    }

    /// What is attempted at the next time that something is due.
    fn next(&mut self, view: &View, seeds: &Seeds) -> Option<Attempt> {
        self.now = self.heal.due().expect("it looks");
        self.heal.on_time(view, || seeds.clone(), self.now, &mut self.rng)
    }

    fn attempts(&mut self, n: usize, view: &View, seeds: &Seeds) -> Vec<Attempt> {
        (0..n).filter_map(|_| self.next(view, seeds)).collect()
    }
}

#[test]
fn who_was_found_at_a_seed_is_asked_first_and_nobody_is_missed_for_it() {
    use rand::RngExt;
    let (mut rng, now) = (Xoshiro256PlusPlus::seed_from_u64(4), Instant::now());
    let mut seeds = Seeds::default();
    [0, 2, 3, 5, 99].into_iter().for_each(|i| seeds.note(addr(i)));
    let (mut there, mut counts) = (Vec::new(), BTreeSet::new());
    for _ in 0..500 {
        let all = [MemberState::Alive, MemberState::Suspect, MemberState::Dead, MemberState::Left];
        let view = view((0..6).map(|_| all[rng.random_range(0..4)]), now);
        let is_there = |a: &SocketAddr| view.all().any(|m| m.addr == *a && m.state != MemberState::Dead);
        let expected: Vec<_> = seeds.iter().filter(|a| *a != addr(0) && !is_there(a)).collect();
        assert_eq!(seeds.missing(&view, &mut there), expected);
        counts.insert(expected.len());
        assert!(there.len() <= 3);
    }
    assert_eq!(counts, BTreeSet::from([1, 2, 3, 4]));
}

#[test]
fn with_nobody_missing_nobody_is_looked_for_and_never_one_that_left() {
    let mut search = Search::new(1);
    let mut seeds = Seeds::default();
    seeds.note(addr(0));
    seeds.note(addr(1));
    seeds.note(addr(4));
    let view = view(states(3, 0, 3), search.now);
    assert!(search.attempts(1000, &view, &seeds).is_empty());
}

#[test]
fn an_attempt_comes_every_five_seconds_give_or_take_a_half() {
    let mut search = Search::new(2);
    let view = view(states(3, 1, 0), search.now);
    let mut pauses = Vec::new();
    for _ in 0..1000 {
        let before = search.now;
        assert!(search.next(&view, &Seeds::default()).is_some());
        pauses.push(search.now - before);
    }
    assert!(pauses.iter().all(|pause| (INTERVAL / 2..INTERVAL * 3 / 2).contains(pause)));
    let mean = pauses.iter().sum::<Duration>() / 1000;
    assert!((4.8..5.2).contains(&mean.as_secs_f64()), "{mean:?}");
    assert!(pauses.iter().max().unwrap().as_secs_f64() - pauses.iter().min().unwrap().as_secs_f64() > 4.5);
}

#[test]
fn an_interval_of_zero_is_never_due() {
    let mut search = Search::new(3);
    let config = Config { heal_interval: Duration::ZERO, ..Config::lan() };
    search.heal = Heal::new(&config, search.now, &mut search.rng);
    search.heal.died("x".into(), &mut search.rng);
    assert_eq!(search.heal.due(), None);
    let view = view(states(3, 1, 0), search.now);
    assert_eq!(search.heal.on_time(&view, Seeds::default, search.now, &mut search.rng), None);
}

#[test]
fn each_of_ten_thousand_dead_is_tried_even_if_others_die_all_the_time() {
    let mut search = Search::new(4);
    let view = view(states(3, 10_000, 0), search.now);
    let mut tried = BTreeSet::new();
    for i in 0..25_000 {
        // One of those who are new over and over.
        search.heal.died(format!("n{}", 4 + i % 10).into(), &mut search.rng);
        if let Some(Attempt { whom: Missing::Member(name), .. }) = search.next(&view, &Seeds::default()) {
            tried.insert(name);
        }
    }
    assert_eq!(tried.len(), 10_000);
}

#[test]
fn who_died_last_is_tried_soon_and_not_by_all_in_the_same_order() {
    let orders: BTreeSet<Vec<Arc<str>>> = (0..8)
        .map(|seed| {
            let mut search = Search::new(seed);
            let view = view(states(3, 1000, 0), search.now);
            search.attempts(1, &view, &Seeds::default());
            for i in 0..8 {
                search.heal.died(format!("n{}", 10 + i).into(), &mut search.rng);
            }
            let tried = search.attempts(16, &view, &Seeds::default());
            let late: Vec<_> = (10..18).map(|i| format!("n{i}")).collect();
            let found = |attempt: &Attempt| match &attempt.whom {
                Missing::Member(name) if late.iter().any(|l| **l == **name) => Some(name.clone()),
                _ => None,
            };
            let order: Vec<_> = tried.iter().filter_map(found).collect();
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 8, "{order:?}");
            order
        })
        .collect();
    assert!(orders.len() > 4, "all go the same way");
}

#[test]
fn a_single_dead_host_is_not_tried_by_everybody() {
    let mut search = Search::new(5);
    let many = view(states(1999, 1, 0), search.now);
    let tried = search.attempts(5000, &many, &Seeds::default()).len();
    assert!((25..85).contains(&tried), "{tried} of 5000, with 2000 nodes and 20 of them in each interval");
    let half = view(states(1000, 1000, 0), search.now);
    assert_eq!(search.attempts(100, &half, &Seeds::default()).len(), 100, "of a half each tries each time");
}

#[test]
fn one_attempt_in_four_goes_over_a_stream_and_one_to_a_missing_seed() {
    let mut search = Search::new(6);
    let view = view(states(3, 5, 1), search.now);
    let none = Seeds::default();
    let dialled = search.attempts(400, &view, &none).iter().filter(|a| a.way == Way::Dial).count();
    assert_eq!(dialled, 100);
    let mut seeds = Seeds::default();
    // Present, dead, unknown.
    for i in [1, 4, 100] {
        seeds.note(addr(i));
    }
    let tried = search.attempts(400, &view, &seeds);
    let to = |i| tried.iter().filter(|a| a.whom == Missing::Seed && a.addr == addr(i)).count();
    assert_eq!((to(1), to(4) + to(100)), (0, 100));
    assert!(to(4) > 30 && to(100) > 30);
    assert!(tried.iter().all(|a| a.whom != Missing::Seed || a.way == Way::Dial));
    // A seed that is gone for good keeps no dead member from being dialled.
    let dialled = |a: &&Attempt| a.way == Way::Dial && a.whom != Missing::Seed;
    assert_eq!(tried.iter().filter(dialled).count(), 100);
}

#[test]
fn one_that_takes_long_costs_nobody_else_a_turn() {
    let mut search = Search::new(6);
    let view = view(states(3, 50, 0), search.now);
    let mut tried = BTreeSet::new();
    for _ in 0..50 {
        let attempt = search.next(&view, &Seeds::default()).expect("somebody is dead");
        tried.insert(attempt.addr);
        if attempt.way == Way::Dial {
            let due = search.heal.due().expect("it looks");
            search.heal.wait(due, &mut search.rng);
            assert!(search.heal.due().is_some_and(|next| next > due));
        }
    }
    assert_eq!(tried.len(), 50);
}

#[test]
fn whoever_is_back_or_replaced_is_not_looked_for_any_more() {
    let mut search = Search::new(7);
    let before = view(states(0, 1, 0), search.now);
    let attempt = search.next(&before, &Seeds::default()).expect("one is dead");
    assert!(!attempt.is_over(&before));
    assert!(attempt.is_over(&view(states(1, 0, 0), search.now)));
    let seed = Attempt { whom: Missing::Seed, ..attempt };
    assert!(!seed.is_over(&before) && seed.is_over(&view(states(1, 0, 0), search.now)));
}

#[test]
fn at_most_64_seeds_are_remembered_and_those_used_last_are() {
    let mut seeds = Seeds::default();
    for i in 0..100 {
        seeds.note(addr(0));
        seeds.note(addr(i));
    }
    let kept: Vec<_> = seeds.iter().collect();
    assert_eq!(kept.len(), MAX_SEEDS);
    assert!(kept.contains(&addr(0)) && kept.contains(&addr(99)) && !kept.contains(&addr(30)));
}

#[test]
fn the_pause_before_an_exchange_grows_with_the_cluster_and_has_an_end() {
    let mut search = Search::new(8);
    let now = search.now;
    let mut longest = |present, dead| {
        let view = view(states(present, dead, 0), now);
        search.attempts(200, &view, &Seeds::default()).iter().map(|a| a.pause).max().unwrap()
    };
    assert!(longest(0, 9) <= Duration::from_millis(10));
    let hundred = longest(99, 100);
    assert!((Duration::from_millis(800)..=Duration::from_secs(1)).contains(&hundred), "{hundred:?}");
    assert!(longest(2000, 2000) <= INTERVAL);
}

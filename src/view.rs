//! The members that a node knows, as a value that is cheap to clone and shares its parts with the ones
//! before and after it.
//!
//! Members lie in pages by the hash of their name. A change copies one page of some twelve members and the
//! list of pages; a lookup hashes the name once; a random member is a random page and a random place in it,
//! drawn again when nobody is there. The hash is keyed, so that nobody can choose names that share a page.
//! A page is as long as it has members, and lies in one piece: a node has many, and most lookups find them cold.

use std::{collections::BTreeSet, fmt, hash::Hasher, sync::Arc};

use rand::{Rng, RngExt, seq::SliceRandom};
use siphasher::sip::SipHasher13;

use crate::{
    member::{Member, MemberState, NodeId},
    wire::message::Alive,
};

/// Members per page at which the pages double. Each entry takes 16 bytes.
const CROWDED: usize = 16;

type Entry = (u32, Arc<Member>);
type Page = Arc<[Entry]>;

/// The table itself: members by name.
#[derive(Clone)]
pub struct Roster {
    pages: Arc<[Page]>,
    key: u64,
    longest: usize,
    counts: [usize; 4],
}

impl Roster {
    /// Empty; `key` decides which names share a page.
    pub fn new(key: u64) -> Self {
        Self { pages: Arc::new([Page::default()]), key, longest: 0, counts: [0; 4] }
    }

    /// Members in any state.
    pub fn len(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Members in `state`.
    pub fn count(&self, state: MemberState) -> usize {
        self.counts[state as usize]
    }

    /// Members that are alive or suspect.
    pub fn present(&self) -> usize {
        self.count(MemberState::Alive) + self.count(MemberState::Suspect)
    }

    /// The member of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Member>> {
        let hash = self.hash(name);
        self.page(hash).iter().find(|(h, m)| *h == hash && m.name() == name).map(|(_, m)| m)
    }

    /// Puts a member in, and takes out the one of the same name.
    pub fn put(&mut self, member: Arc<Member>) -> Option<Arc<Member>> {
        let hash = self.hash(member.name());
        self.counts[member.state as usize] += 1;
        let page = self.page_mut(hash);
        let place = page.iter().position(|(h, m)| *h == hash && m.name() == member.name());
        let old = match place {
            Some(at) => Some(std::mem::replace(&mut Arc::make_mut(page)[at].1, member)),
            None => {
                *page = page.iter().cloned().chain([(hash, member)]).collect();
                None
            }
        };
        let len = page.len();
        self.longest = self.longest.max(len);
        match &old {
            Some(old) => self.counts[old.state as usize] -= 1,
            None if self.len() > self.pages.len() * CROWDED => self.double(),
            None => {}
        }
        old
    }

    /// Takes a member out.
    pub fn remove(&mut self, name: &str) -> Option<Arc<Member>> {
        let hash = self.hash(name);
        let at = self.page(hash).iter().position(|(h, m)| *h == hash && m.name() == name)?;
        let page = self.page_mut(hash);
        let mut rest = page.to_vec();
        let (_, old) = rest.swap_remove(at);
        *page = rest.into();
        self.counts[old.state as usize] -= 1;
        Some(old)
    }

    /// All members, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.pages.iter().flat_map(|page| page.iter().map(|(_, m)| m))
    }

    /// Up to `k` different members of which `wanted` holds, each with the same chance.
    ///
    /// Small tables are searched whole. In large ones members are drawn at random, and the table is searched
    /// only when nearly nobody is wanted.
    pub fn sample<R: Rng + ?Sized>(
        &self,
        k: usize,
        rng: &mut R,
        mut wanted: impl FnMut(&Member) -> bool,
    ) -> Vec<Arc<Member>> {
        let mut picked: Vec<Arc<Member>> = Vec::with_capacity(k.min(self.len()));
        if k == 0 {
            return picked;
        }
        if self.len() > 8 * k {
            // Enough draws that a table of which a tenth is wanted is hardly ever searched.
            for _ in 0..32 * k {
                let Some(member) = self.draw(rng) else { continue };
                if wanted(member) && !picked.iter().any(|p| Arc::ptr_eq(p, member)) {
                    picked.push(member.clone());
                    if picked.len() == k {
                        return picked;
                    }
                }
            }
        }
        let mut rest: Vec<&Arc<Member>> =
            self.iter().filter(|m| wanted(m) && !picked.iter().any(|p| Arc::ptr_eq(p, m))).collect();
        let missing = (k - picked.len()).min(rest.len());
        let (chosen, _) = rest.partial_shuffle(rng, missing);
        picked.extend(chosen.iter().map(|m| Arc::clone(m)));
        picked
    }

    /// One draw: each member has the same chance, and so has each free place.
    fn draw<R: Rng + ?Sized>(&self, rng: &mut R) -> Option<&Arc<Member>> {
        let page = &self.pages[rng.random_range(0..self.pages.len())];
        page.get(rng.random_range(0..self.longest)).map(|(_, m)| m)
    }

    fn hash(&self, name: &str) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(self.key, 0);
        hasher.write(name.as_bytes());
        hasher.finish() as u32
    }

    fn page(&self, hash: u32) -> &[Entry] {
        &self.pages[hash as usize & (self.pages.len() - 1)]
    }

    fn page_mut(&mut self, hash: u32) -> &mut Page {
        let pages = Arc::make_mut(&mut self.pages);
        let at = hash as usize & (pages.len() - 1);
        &mut pages[at]
    }

    fn double(&mut self) {
        let count = self.pages.len() * 2;
        let mut pages: Vec<Vec<Entry>> = vec![Vec::new(); count];
        for (hash, member) in self.pages.iter().flat_map(|page| page.iter()) {
            pages[*hash as usize & (count - 1)].push((*hash, member.clone()));
        }
        self.longest = pages.iter().map(Vec::len).max().unwrap_or(0);
        self.pages = pages.into_iter().map(Page::from).collect();
    }
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|m| format!("{} {}", m.id, m.state))).finish()
    }
}

/// What a node knew at one moment. It never changes; the node makes a new one when it learns more.
#[derive(Clone, Debug)]
pub struct View {
    rev: u64,
    local: Arc<Member>,
    roster: Roster,
    /// Names of dead members that are on probation.
    watched: Arc<BTreeSet<Arc<str>>>,
}

impl View {
    /// The view after event number `rev`.
    pub fn new(rev: u64, local: Arc<Member>, roster: Roster) -> Self {
        Self { rev, local, roster, watched: Arc::default() }
    }

    /// With those who are on probation.
    #[must_use]
    pub fn with_watched(self, watched: Arc<BTreeSet<Arc<str>>>) -> Self {
        Self { watched, ..self }
    }

    /// The number of the last event that is in it.
    pub fn rev(&self) -> u64 {
        self.rev
    }

    /// This node itself.
    pub fn local(&self) -> &Arc<Member> {
        &self.local
    }

    /// The member of that name, in any state.
    pub fn get(&self, name: &str) -> Option<&Arc<Member>> {
        self.roster.get(name)
    }

    /// The members that count, this node among them: alive ones, and suspects, which may still refute. In no
    /// particular order.
    pub fn alive(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.all().filter(|m| m.state.is_present())
    }

    /// All members that are remembered, dead and left ones too. In no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.roster.iter()
    }

    /// How many members [`View::alive`] gives, without counting them.
    pub fn alive_count(&self) -> usize {
        self.roster.present()
    }

    /// How many members are in `state`, without counting them.
    pub fn count(&self, state: MemberState) -> usize {
        self.roster.count(state)
    }

    /// How many members that count come before `id` in the order of names; nothing if `id` does not count.
    /// The same on each node that has the same view, so it can stagger work among nodes.
    pub fn rank(&self, id: &NodeId) -> Option<usize> {
        let own = self.get(id.name()).filter(|m| m.id == *id && m.state.is_present())?;
        Some(self.alive().filter(|m| m.name() < own.name()).count())
    }

    /// Whether the member of that name is dead, speaks again, and has to go without a well-founded accusation for a while
    /// before it is held for alive: it has died again too soon, or was accused too often
    /// ([`Config::flap_probation`](crate::config::Config::flap_probation)).
    pub fn is_on_probation(&self, name: &str) -> bool {
        self.watched.contains(name)
    }

    /// Those who are on probation.
    pub fn on_probation(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.watched.iter()
    }

    /// Whether news says nothing that is not known of a member that is alive: an echo, of which gossip brings many.
    /// It changes nothing, and [`Members::alive`](crate::members::Members::alive) finds it
    /// [stale](crate::members::Ignored::Stale).
    pub fn is_echo(&self, news: &Alive) -> bool {
        self.get(news.id.name()).is_some_and(|record| {
            record.state == MemberState::Alive
                && record.id == news.id
                && record.incarnation >= news.incarnation
                && record.addr == news.addr
                && record.versions == news.versions
                && record.id != self.local.id
        })
    }

    /// The table.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::Instant,
    };

    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    fn member(i: usize, state: MemberState) -> Arc<Member> {
        let addr = "127.0.0.1:1".parse().unwrap();
        let member = Member::new(NodeId::new(format!("n{i}"), 7), addr, 1, Instant::now());
        Arc::new(member.turned(state, 1, member.since))
    }

    fn roster(n: usize) -> Roster {
        let mut roster = Roster::new(3);
        for i in 0..n {
            assert!(roster.put(member(i, MemberState::Alive)).is_none());
        }
        roster
    }

    #[test]
    fn each_member_is_found_by_its_name_until_it_is_taken_out() {
        let mut roster = roster(1000);
        assert_eq!((roster.len(), roster.present(), roster.iter().count()), (1000, 1000, 1000));
        for i in 0..1000 {
            assert_eq!(roster.get(&format!("n{i}")).unwrap().name(), format!("n{i}"));
        }
        assert_eq!(roster.put(member(5, MemberState::Dead)).unwrap().state, MemberState::Alive);
        assert_eq!((roster.len(), roster.present(), roster.count(MemberState::Dead)), (1000, 999, 1));
        assert!(roster.remove("n5").is_some());
        assert!(roster.remove("n5").is_none());
        assert!(roster.get("n5").is_none());
        assert_eq!(roster.len(), 999);
    }

    #[test]
    fn an_older_copy_does_not_see_a_change() {
        let mut new = roster(100);
        let old = new.clone();
        new.put(member(5, MemberState::Dead));
        new.remove("n6");
        assert_eq!(old.get("n5").unwrap().state, MemberState::Alive);
        assert!(old.get("n6").is_some());
        assert_eq!((old.len(), new.len()), (100, 99));
    }

    #[test]
    fn weak_point_24_a_change_copies_one_page_and_not_the_table() {
        let mut new = roster(5000);
        let old = new.clone();
        new.put(member(5, MemberState::Dead));
        let copied = old.pages.iter().zip(new.pages.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
    }

    #[test]
    fn each_member_is_drawn_equally_often() {
        let (roster, mut rng) = (roster(60), Xoshiro256PlusPlus::seed_from_u64(1));
        let mut drawn = BTreeMap::new();
        for _ in 0..20_000 {
            let sample = roster.sample(3, &mut rng, |_| true);
            assert_eq!(sample.len(), 3);
            let different: BTreeSet<_> = sample.iter().map(|member| member.name()).collect();
            assert_eq!(different.len(), 3, "nobody is drawn twice at once");
            for member in sample {
                *drawn.entry(member.name().to_owned()).or_insert(0) += 1;
            }
        }
        assert_eq!(drawn.len(), 60);
        assert!(drawn.values().all(|n| (850..1150).contains(n)), "{drawn:?}");
    }

    #[test]
    fn a_sample_finds_the_few_that_are_wanted() {
        let (mut roster, mut rng) = (roster(1000), Xoshiro256PlusPlus::seed_from_u64(2));
        roster.put(member(77, MemberState::Suspect));
        let sample = roster.sample(3, &mut rng, |m| m.state == MemberState::Suspect);
        assert_eq!(sample.len(), 1);
        assert_eq!(sample[0].name(), "n77");
        let of_short_names_or_suspect = |m: &Member| m.state == MemberState::Suspect || m.name().len() == 2;
        assert_eq!(roster.sample(100, &mut rng, of_short_names_or_suspect).len(), 11, "all that there are");
        assert!(roster.sample(0, &mut rng, |_| true).is_empty());
        assert!(Roster::new(0).sample(3, &mut rng, |_| true).is_empty());
    }

    #[test]
    fn rank_is_the_place_among_those_that_count() {
        let mut roster = roster(3);
        roster.put(member(0, MemberState::Dead));
        let view = View::new(1, member(1, MemberState::Alive), roster);
        let rank = |name: &str, run| view.rank(&NodeId::new(name, run));
        assert_eq!(rank("n1", 7), Some(0));
        assert_eq!(rank("n2", 7), Some(1));
        assert_eq!(rank("n0", 7), None, "dead");
        assert_eq!(rank("n1", 8), None, "another run");
    }

    #[test]
    fn ten_thousand_members_cost_at_most_64_bytes_each_beyond_their_record() {
        let roster = roster(10_000);
        // A page has two counts in front, and the list of pages an address and a length; 16 bytes go to the allocator.
        let pages: usize = roster.pages.iter().map(|page| size_of_val(&**page) + 16 + 16 + 16).sum();
        assert!(pages / 10_000 <= 64, "{} bytes", pages / 10_000);
    }
}

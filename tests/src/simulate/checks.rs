//! What must hold at every step, whatever goes wrong. Each rule has a name.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    sync::Arc,
    time::Duration,
};

use actix_memberlist::{Accusation, Evidence, Member, MemberEvent, MemberState, NodeId, View};
use bytes::Bytes;
use tokio::time::Instant;

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What is known of a run of a member never gets older.
    Incarnations,
    /// Who is dead or has left does not come back without saying something new.
    Resurrection,
    /// What a member says of itself in one incarnation is one thing.
    Metadata,
    /// Nobody of another cluster is ever a member.
    Strangers,
    /// A subscriber who adds up the events has the view.
    Events,
    /// Whoever is held for dead was accused by somebody who suspected it, and what that one saw can have been seen.
    Accusers,
    /// Who has left has left: nobody says later that it died, and nobody finds it before it joins again.
    Leaves,
    /// Each start is another run, and one that has its record begins above the last one.
    Runs,
    /// Queues and tables are bounded.
    Bounds,
    /// So is the memory of a node, and all of it is given back.
    Memory,
    /// No actor panics by itself.
    Panics,
    /// A suspicion ends in its time.
    Suspicions,
    /// Who is accused without a reason refutes, and all hear that in time.
    Refutations,
    /// Nobody whom no fault has befallen is held for dead for long by another one of that sort.
    FalseAlarms,
    /// After the faults all agree, without help.
    Agreement,
    /// When all agree and nothing goes wrong, nothing happens.
    Calm,
    /// When nothing goes wrong, a node soon trusts its own judgement again.
    Health,
    /// A node that dies in a calm cluster is held for dead by all in time, and one that leaves for left.
    Detection,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Incarnations,
        Self::Resurrection,
        Self::Metadata,
        Self::Strangers,
        Self::Events,
        Self::Accusers,
        Self::Leaves,
        Self::Runs,
        Self::Bounds,
        Self::Memory,
        Self::Panics,
        Self::Suspicions,
        Self::Refutations,
        Self::FalseAlarms,
        Self::Agreement,
        Self::Calm,
        Self::Health,
        Self::Detection,
    ];

    /// Its name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Incarnations => "incarnations",
            Self::Resurrection => "resurrection",
            Self::Metadata => "metadata",
            Self::Strangers => "strangers",
            Self::Events => "events",
            Self::Accusers => "accusers",
            Self::Leaves => "leaves",
            Self::Runs => "runs",
            Self::Bounds => "bounds",
            Self::Memory => "memory",
            Self::Panics => "panics",
            Self::Suspicions => "suspicions",
            Self::Refutations => "refutations",
            Self::FalseAlarms => "false-alarms",
            Self::Agreement => "agreement",
            Self::Calm => "calm",
            Self::Health => "health",
            Self::Detection => "detection",
        }
    }
}

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub rule: Rule,
    /// How.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule.name(), self.how)
    }
}

pub(super) fn broken<T>(rule: Rule, how: impl fmt::Display) -> Result<T, Broken> {
    Err(Broken { rule, how: how.to_string() })
}

/// One book for a whole cluster.
#[derive(Default)]
pub(super) struct Sayings {
    /// What each run of each member has said of itself, in which incarnation.
    said: BTreeMap<(NodeId, u32), (Bytes, Arc<Member>)>,
    /// Who has ever suspected whom, by their names.
    suspected: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Deaths of which it is still to be seen whether the accuser has suspected the member.
    open: Vec<(Arc<str>, Arc<str>, String, Instant)>,
}

/// An actor that panicked tells within this time what it has sent before.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// Helpers that a probe asks at most.
const HELPERS: u8 = 3;

impl Sayings {
    fn hear(&mut self, member: &Arc<Member>) -> Result<(), Broken> {
        match self.said.entry((member.id.clone(), member.incarnation)) {
            Entry::Vacant(entry) => {
                entry.insert((member.meta.clone(), member.clone()));
            }
            Entry::Occupied(entry) => {
                let (meta, known) = entry.get();
                if *meta != member.meta || known.tags != member.tags {
                    return broken(
                        Rule::Metadata,
                        format_args!("{} in incarnation {} is two things", member.id, member.incarnation),
                    );
                }
            }
        }
        Ok(())
    }

    /// `by` no longer holds that member for alive.
    fn suspect(&mut self, by: Option<&Arc<str>>, member: &Member) {
        if let Some(by) = by.filter(|_| member.state != MemberState::Alive) {
            self.suspected.insert((by.clone(), member.id.shared_name().clone()));
        }
    }

    /// Whether a death can have come about like that.
    fn weigh(&mut self, member: &Member, why: &Accusation, at: Option<&Arc<str>>) -> Result<(), Broken> {
        let Accusation { by, confirmed_by, evidence, .. } = why;
        let id = &member.id;
        if by.is_empty() {
            return broken(Rule::Accusers, format_args!("nobody says that {id} is dead"));
        }
        let all: BTreeSet<_> = confirmed_by.iter().chain([by]).collect();
        if all.len() != confirmed_by.len() + 1 {
            return broken(
                Rule::Accusers,
                format_args!("{by} and {confirmed_by:?} count twice against {id}"),
            );
        }
        if let Evidence::NoAnswer { helpers, nacks, .. } = *evidence
            && (nacks > helpers || helpers > HELPERS)
        {
            return broken(Rule::Accusers, format_args!("{nacks} nacks of {helpers} helpers against {id}"));
        }
        let name = id.shared_name().clone();
        let seen = matches!(evidence, Evidence::NoAnswer { .. } | Evidence::Refused | Evidence::PushPull);
        if seen && !self.suspected.contains(&(by.clone(), name.clone())) {
            let how = format!("{id} is dead at {at:?} by {by}, who never suspected it: {evidence:?}");
            if at == Some(by) {
                return broken(Rule::Accusers, how);
            }
            self.open.push((by.clone(), name, how, Instant::now()));
        }
        Ok(())
    }

    /// Whoever is said to have suspected a member, has: when all are heard, and those who panicked run again.
    pub(super) fn settle(&mut self, within: Duration) -> Result<(), Broken> {
        for (by, name, how, since) in std::mem::take(&mut self.open) {
            if self.suspected.contains(&(by.clone(), name.clone())) {
                continue;
            }
            if since.elapsed() >= within {
                return broken(Rule::Accusers, how);
            }
            self.open.push((by, name, how, since));
        }
        Ok(())
    }
}

/// What one run of a node has told its subscriber.
#[derive(Default)]
pub(super) struct Told {
    rev: Option<u64>,
    /// The number of the view that was found to be as it was told.
    compared: Option<u64>,
    all: BTreeMap<Arc<str>, Arc<Member>>,
    /// The highest incarnation of each run that was seen, and how that was seen to end.
    ever: BTreeMap<NodeId, (u32, Option<MemberState>)>,
    /// Whom it suspects, and since when.
    suspects: BTreeMap<NodeId, Instant>,
    /// A refutation that has brought something new: that is told next.
    owed: Option<Arc<str>>,
    /// Whose story it is.
    of: Option<Arc<str>>,
    /// Events, by kind: how much has happened.
    pub(super) heard: BTreeMap<&'static str, u64>,
}

/// What a member says of itself.
fn says(member: &Member) -> (&Bytes, std::net::SocketAddr, impl PartialEq + '_, impl PartialEq + '_) {
    (&member.meta, member.addr, &member.tags, &member.versions)
}

/// Which cluster a node is of: its name says so.
pub(super) fn is_stranger(name: &str) -> bool {
    name.starts_with("other")
}

impl Told {
    /// What the next run tells is another story; what was counted stays.
    pub(super) fn of_another_run(self) -> Self {
        Self { heard: self.heard, ..Self::default() }
    }

    /// An event as a line that says who tells it.
    pub(super) fn line(&self, event: &MemberEvent) -> String {
        let of = self.of.as_deref().unwrap_or("?");
        let about = |what: &str, m: &Member| format!("{of}: {what} {} in {}", m.id, m.incarnation);
        match event {
            MemberEvent::Snapshot(view) => {
                format!("{}: starts with {} members", view.local().id, view.all().count())
            }
            MemberEvent::Joined { member, .. } => about("joined", member),
            MemberEvent::Updated { member, .. } => about("updated", member),
            MemberEvent::Suspected { member, why, .. } => {
                format!("{} by {why:?}", about("suspected", member))
            }
            MemberEvent::Refuted { member, .. } => about("refuted", member),
            MemberEvent::Left { member, .. } => about("left", member),
            MemberEvent::Dead { member, why, .. } => format!("{} by {why:?}", about("dead", member)),
            other => format!("{of}: {other:?}"),
        }
    }

    /// Hears an event.
    pub(super) fn hear(&mut self, event: &MemberEvent, sayings: &mut Sayings) -> Result<(), Broken> {
        let (rev, kind) = match event {
            MemberEvent::Snapshot(view) => {
                self.all =
                    view.all().map(|member| (member.id.shared_name().clone(), member.clone())).collect();
                self.of = Some(view.local().id.shared_name().clone());
                self.rev = Some(view.rev());
                let suspects = view.all().filter(|member| member.state == MemberState::Suspect);
                self.suspects = suspects.map(|member| (member.id.clone(), Instant::now())).collect();
                *self.heard.entry("snapshot").or_default() += 1;
                return view.all().try_for_each(|member| self.see(member, sayings));
            }
            MemberEvent::Joined { rev, .. } => (*rev, "joined"),
            MemberEvent::Updated { rev, .. } => (*rev, "updated"),
            MemberEvent::Suspected { rev, .. } => (*rev, "suspected"),
            MemberEvent::Refuted { rev, .. } => (*rev, "refuted"),
            MemberEvent::Left { rev, .. } => (*rev, "left"),
            MemberEvent::Dead { rev, .. } => (*rev, "dead"),
            MemberEvent::Reaped { rev, .. } => (*rev, "reaped"),
            MemberEvent::Conflict { rev, .. } => (*rev, "conflict"),
            _ => return broken(Rule::Events, "an event of a new kind"),
        };
        *self.heard.entry(kind).or_default() += 1;
        if self.rev.is_some_and(|before| rev != before + 1) {
            return broken(Rule::Events, format_args!("{kind} is number {rev} after {:?}", self.rev));
        }
        self.rev = Some(rev);
        self.follows(event, kind)?;
        match event {
            MemberEvent::Joined { member, .. }
            | MemberEvent::Updated { member, .. }
            | MemberEvent::Suspected { member, .. }
            | MemberEvent::Refuted { member, .. }
            | MemberEvent::Left { member, .. } => {
                self.see(member, sayings)?;
                self.all.insert(member.id.shared_name().clone(), member.clone());
            }
            MemberEvent::Dead { member, why, .. } => {
                if why.evidence != Evidence::Replaced {
                    sayings.weigh(member, why, self.of.as_ref())?;
                }
                self.see(member, sayings)?;
                self.all.insert(member.id.shared_name().clone(), member.clone());
            }
            MemberEvent::Reaped { id, .. } => {
                self.all.remove(id.name());
                // It is forgotten: whatever comes after that is new.
                self.ever.retain(|known, _| known.name() != id.name());
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether an event can come after what was told of that member, and says all that has changed.
    fn follows(&mut self, event: &MemberEvent, kind: &str) -> Result<(), Broken> {
        use MemberState::{Alive, Dead, Left, Suspect};
        let (member, state) = match event {
            MemberEvent::Joined { member, .. } => (member, Alive),
            MemberEvent::Updated { member, .. } => (member, Alive),
            MemberEvent::Suspected { member, .. } => (member, Suspect),
            MemberEvent::Refuted { member, .. } => (member, Alive),
            MemberEvent::Left { member, .. } => (member, Left),
            MemberEvent::Dead { member, .. } => (member, Dead),
            _ => return Ok(()),
        };
        let told = self.all.get(member.name());
        let same_run = told.is_some_and(|told| told.id == member.id);
        let same = told.is_some_and(|told| says(told) == says(member));
        let was = told.map(|told| told.state);
        let owed = self.owed.take();
        let fits = match event {
            MemberEvent::Joined { .. } => was.is_none_or(MemberState::is_gone),
            MemberEvent::Updated { before, .. } => {
                // A program may say the same of its own node once more.
                let news = !same || self.of.as_ref() == Some(before.id.shared_name());
                was == Some(Alive) && same_run && (news || owed.as_ref() == Some(before.id.shared_name()))
            }
            MemberEvent::Suspected { .. } => was == Some(Alive) && same_run && same,
            MemberEvent::Refuted { .. } => {
                self.owed = (!same).then(|| member.id.shared_name().clone());
                was == Some(Suspect) && same_run
            }
            _ => was.is_some_and(|was| was != state && was != Left) && same_run && same,
        };
        if !fits || member.state != state {
            return broken(Rule::Events, format_args!("{kind} of {member:?} after {told:?}"));
        }
        if let Some(name) = owed.filter(|name| kind != "updated" || name != member.id.shared_name()) {
            return broken(
                Rule::Events,
                format_args!("{name} has refuted with something new, which is not told"),
            );
        }
        match state {
            Suspect => drop(self.suspects.insert(member.id.clone(), Instant::now())),
            _ => drop(self.suspects.remove(&member.id)),
        }
        Ok(())
    }

    fn see(&mut self, member: &Arc<Member>, sayings: &mut Sayings) -> Result<(), Broken> {
        if is_stranger(member.name()) {
            return broken(Rule::Strangers, format_args!("{} is a member", member.id));
        }
        if member.state == MemberState::Alive {
            // An accusation may be newer than what the member was last heard to say.
            sayings.hear(member)?;
        }
        sayings.suspect(self.of.as_ref(), member);
        let gone = member.state.is_gone().then_some(member.state);
        let (incarnation, over) = self.ever.entry(member.id.clone()).or_insert((member.incarnation, gone));
        if member.incarnation < *incarnation {
            let how =
                format_args!("{} was {incarnation} and is {}", member.id, member.incarnation).to_string();
            return broken(Rule::Incarnations, how);
        }
        if (*over, gone) == (Some(MemberState::Left), Some(MemberState::Dead)) {
            return broken(Rule::Leaves, format_args!("{} has left, and is held for dead", member.id));
        }
        if over.is_some() && gone.is_none() && member.incarnation == *incarnation {
            let how =
                format_args!("{} is {:?} in incarnation {incarnation}", member.id, member.state).to_string();
            return broken(Rule::Resurrection, how);
        }
        (*incarnation, *over) = (member.incarnation, gone);
        Ok(())
    }

    /// Whom this node has suspected for the longest time, and since when.
    pub(super) fn longest_suspicion(&self) -> Option<(&NodeId, Instant)> {
        self.suspects.iter().map(|(id, since)| (id, *since)).min_by_key(|(_, since)| *since)
    }

    /// The number of the last event.
    pub(super) fn rev(&self) -> Option<u64> {
        self.rev
    }

    /// What that member was told to be.
    pub(super) fn holds(&self, name: &str) -> Option<MemberState> {
        self.all.get(name).map(|member| member.state)
    }

    /// How all others than `name` are, as far as was told: each one's run, state and incarnation.
    pub(super) fn quiet(&self, name: &str) -> Vec<(NodeId, MemberState, u32)> {
        let others = self.all.values().filter(|member| member.name() != name);
        others.map(|member| (member.id.clone(), member.state, member.incarnation)).collect()
    }

    /// Whether that member was told to be suspect or dead.
    pub(super) fn accuses(&self, name: &str) -> bool {
        matches!(self.holds(name), Some(MemberState::Suspect | MemberState::Dead))
    }

    /// Compares what was told with how things are.
    pub(super) fn compare(&mut self, view: &View, thoroughly: bool) -> Result<(), Broken> {
        if !thoroughly && self.compared == Some(view.rev()) {
            return Ok(());
        }
        if self.rev != Some(view.rev()) {
            // More is on its way to the subscriber.
            return Ok(());
        }
        let mut count = 0;
        for member in view.all() {
            count += 1;
            let told = self.all.get(member.name());
            let same = told.is_some_and(|told| {
                if Arc::ptr_eq(told, member) {
                    return true;
                }
                // A refutation that changes nothing else is no event.
                (&told.id, told.state, &told.meta, told.addr)
                    == (&member.id, member.state, &member.meta, member.addr)
            });
            if !same {
                return broken(Rule::Events, format_args!("told {told:?}, is {member:?}"));
            }
        }
        if count != self.all.len() {
            return broken(
                Rule::Events,
                format_args!("told of {} members, there are {count}", self.all.len()),
            );
        }
        self.compared = Some(view.rev());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, run: u64, incarnation: u32, state: MemberState) -> Arc<Member> {
        let id = NodeId::new(name, run);
        let now = Instant::now().into_std();
        let mut member = Member::new(id, ([10, 0, 0, 1], 7946).into(), incarnation, now);
        member.state = state;
        Arc::new(member)
    }

    /// The rule that these members break, told one after the other.
    fn first_broken(members: &[Arc<Member>]) -> Option<Rule> {
        let (mut told, mut sayings) = (Told::default(), Sayings::default());
        members.iter().find_map(|member| told.see(member, &mut sayings).err()).map(|broken| broken.rule)
    }

    #[test]
    fn each_rule_of_what_is_told_can_be_broken() {
        use MemberState::{Alive, Dead, Left, Suspect};
        let of = |run, incarnation, state| member("a", run, incarnation, state);
        let good = [of(1, 1, Alive), of(1, 1, Suspect), of(1, 2, Alive), of(1, 2, Dead), of(2, 1, Alive)];
        assert_eq!(first_broken(&good), None);
        assert_eq!(first_broken(&[of(1, 2, Alive), of(1, 1, Suspect)]), Some(Rule::Incarnations));
        assert_eq!(first_broken(&[of(1, 2, Dead), of(1, 2, Alive)]), Some(Rule::Resurrection));
        assert_eq!(first_broken(&[of(1, 2, Left), of(1, 2, Suspect)]), Some(Rule::Resurrection));
        assert_eq!(first_broken(&[of(1, 2, Left), of(1, 2, Dead)]), Some(Rule::Leaves));
        assert_eq!(first_broken(&[of(1, 2, Dead), of(1, 2, Left)]), None);
        let mut other = Member::clone(&of(1, 1, Alive));
        other.meta = Bytes::from_static(b"other");
        assert_eq!(first_broken(&[of(1, 1, Alive), Arc::new(other)]), Some(Rule::Metadata));
        assert_eq!(first_broken(&[member("other001", 1, 1, Alive)]), Some(Rule::Strangers));
    }

    #[test]
    fn a_death_that_nobody_can_have_seen_is_noticed() {
        let mut sayings = Sayings::default();
        sayings.suspect(Some(&"x".into()), &member("a", 1, 1, MemberState::Suspect));
        let mut weigh = |by: &str, confirmed_by: &[&str], evidence| {
            let confirmed_by = confirmed_by.iter().map(|name| (*name).into()).collect();
            let at = Instant::now().into_std();
            let why = Accusation { by: by.into(), confirmed_by, evidence, at };
            let dead = member("a", 1, 1, MemberState::Dead);
            sayings.weigh(&dead, &why, None).and_then(|()| sayings.settle(Duration::ZERO)).is_ok()
        };
        let seen = |helpers, nacks| Evidence::NoAnswer { direct: true, helpers, nacks, healthy: true };
        assert!(weigh("x", &["y", "z"], seen(3, 3)));
        assert!(!weigh("x", &["y", "y"], seen(3, 3)));
        assert!(!weigh("x", &["x"], seen(3, 3)));
        assert!(!weigh("x", &[], seen(2, 3)));
        assert!(!weigh("", &[], Evidence::Hearsay));
        assert!(weigh("x", &[], Evidence::PushPull));
        assert!(!weigh("y", &[], Evidence::PushPull));
    }

    #[test]
    fn an_event_that_is_missing_and_a_view_that_was_not_told_are_noticed() {
        let (mut told, mut sayings) = (Told::default(), Sayings::default());
        let joined = |rev| MemberEvent::Joined { rev, member: member("a", 1, 1, MemberState::Alive) };
        assert_eq!(told.hear(&joined(1), &mut sayings), Ok(()));
        assert_eq!(told.hear(&joined(3), &mut sayings).map_err(|broken| broken.rule), Err(Rule::Events));
        // Nor can somebody join who is there.
        assert_eq!(told.hear(&joined(2), &mut sayings).map_err(|broken| broken.rule), Err(Rule::Events));
    }
}

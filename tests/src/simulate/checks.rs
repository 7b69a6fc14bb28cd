//! What must hold at every step, whatever goes wrong. Each rule has a name.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::Arc,
};

use actix_memberlist::{Member, MemberEvent, MemberState, NodeId, View};
use bytes::Bytes;

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
    /// Whoever is held for dead was accused by somebody.
    Accusers,
    /// Queues are bounded.
    Bounds,
    /// No actor panics by itself.
    Panics,
    /// Nobody whom no fault has befallen is held for dead for long by another one of that sort.
    FalseAlarms,
    /// After the faults all agree, without help.
    Agreement,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Incarnations,
        Self::Resurrection,
        Self::Metadata,
        Self::Strangers,
        Self::Events,
        Self::Accusers,
        Self::Bounds,
        Self::Panics,
        Self::FalseAlarms,
        Self::Agreement,
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
            Self::Bounds => "bounds",
            Self::Panics => "panics",
            Self::FalseAlarms => "false-alarms",
            Self::Agreement => "agreement",
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

/// What each run of each member has said of itself, in which incarnation: one book for a whole cluster.
#[derive(Default)]
pub(super) struct Sayings(BTreeMap<(NodeId, u32), (Bytes, Arc<Member>)>);

impl Sayings {
    fn hear(&mut self, member: &Arc<Member>) -> Result<(), Broken> {
        match self.0.entry((member.id.clone(), member.incarnation)) {
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
}

/// What one run of a node has told its subscriber.
#[derive(Default)]
pub(super) struct Told {
    rev: Option<u64>,
    /// The number of the view that was found to be as it was told.
    compared: Option<u64>,
    all: BTreeMap<Arc<str>, Arc<Member>>,
    /// The highest incarnation of each run that was seen, and whether that was seen to end.
    ever: BTreeMap<NodeId, (u32, bool)>,
    /// Events, by kind: how much has happened.
    pub(super) heard: BTreeMap<&'static str, u64>,
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

    /// Hears an event.
    pub(super) fn hear(&mut self, event: &MemberEvent, sayings: &mut Sayings) -> Result<(), Broken> {
        let (rev, kind) = match event {
            MemberEvent::Snapshot(view) => {
                self.all =
                    view.all().map(|member| (member.id.shared_name().clone(), member.clone())).collect();
                self.rev = Some(view.rev());
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
                if why.by.is_empty() {
                    return broken(Rule::Accusers, format_args!("nobody says that {} is dead", member.id));
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

    fn see(&mut self, member: &Arc<Member>, sayings: &mut Sayings) -> Result<(), Broken> {
        if is_stranger(member.name()) {
            return broken(Rule::Strangers, format_args!("{} is a member", member.id));
        }
        if member.state == MemberState::Alive {
            // An accusation may be newer than what the member was last heard to say.
            sayings.hear(member)?;
        }
        let gone = matches!(member.state, MemberState::Dead | MemberState::Left);
        let (incarnation, over) = self.ever.entry(member.id.clone()).or_insert((member.incarnation, gone));
        if member.incarnation < *incarnation {
            let how =
                format_args!("{} was {incarnation} and is {}", member.id, member.incarnation).to_string();
            return broken(Rule::Incarnations, how);
        }
        if *over && !gone && member.incarnation == *incarnation {
            let how =
                format_args!("{} is {:?} in incarnation {incarnation}", member.id, member.state).to_string();
            return broken(Rule::Resurrection, how);
        }
        (*incarnation, *over) = (member.incarnation, gone);
        Ok(())
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
    use tokio::time::Instant;

    use super::*;

    fn member(name: &str, run: u64, incarnation: u32, state: MemberState) -> Arc<Member> {
        let id = NodeId::new(name, run);
        let now = Instant::now().into_std();
        let mut member = Member::new(id, ([10, 0, 0, 1], 7946).into(), incarnation, now);
        member.state = state;
        Arc::new(member)
    }

    /// The rule that these members break, one event each.
    fn first_broken(members: &[Arc<Member>]) -> Option<Rule> {
        let (mut told, mut sayings) = (Told::default(), Sayings::default());
        let mut events =
            members.iter().zip(7..).map(|(member, rev)| MemberEvent::Joined { rev, member: member.clone() });
        events.find_map(|event| told.hear(&event, &mut sayings).err()).map(|broken| broken.rule)
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
        let mut other = Member::clone(&of(1, 1, Alive));
        other.meta = Bytes::from_static(b"other");
        assert_eq!(first_broken(&[of(1, 1, Alive), Arc::new(other)]), Some(Rule::Metadata));
        assert_eq!(first_broken(&[member("other001", 1, 1, Alive)]), Some(Rule::Strangers));
    }

    #[test]
    fn an_event_that_is_missing_and_a_view_that_was_not_told_are_noticed() {
        let (mut told, mut sayings) = (Told::default(), Sayings::default());
        let joined = |rev| MemberEvent::Joined { rev, member: member("a", 1, 1, MemberState::Alive) };
        assert_eq!(told.hear(&joined(1), &mut sayings), Ok(()));
        assert_eq!(told.hear(&joined(3), &mut sayings).map_err(|broken| broken.rule), Err(Rule::Events));
    }
}

//! Changes of keys, labels and seals of a whole cluster, step by step, and the orders that they are made of:
//! giving one to a member, and following one.
//!
//! A change goes through steps, such as: all open with the new key too; all seal with it; all forget the others.
//! Nobody is cut off while one step after the other holds everywhere. So a step that does not hold at a single
//! member ends the change, with that member's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use memberlist_protocol::{
    keyring::{Key, KeyId, Sealing},
    member::{Member, MemberState, NodeId},
    wire::{
        WireError, codec,
        frame::{Envelope, StreamKind},
        order::{MAX_ORDER, MAX_STANDING, Order, Ordered, Standing},
    },
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    keyring::Keyring,
    logs::{self, Line as Kind, say},
    messages::ToTransport,
    metrics::{Lost, up},
    ring::{Doors, Shared, after},
    streams::{Failure, Line, Permit, count, dial},
    transport::{Open, Use},
};

/// Members that get an order at once.
const AT_ONCE: usize = 64;

/// Pause before those are asked again that did not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of a change of the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rollout {
    /// The last step that was tried: "install", "use", "remove" of a key; "hear", "say", "hear only" of a label;
    /// "seal", "require seals".
    pub step: &'static str,
    /// Nodes that it had to hold at, this one included: all members but those that have left. The dead are among
    /// them, who may come back: declare those to have left that will not
    /// ([`Cluster::force_leave`](crate::Cluster::force_leave)).
    pub members: usize,
    /// Nodes at which it was seen to hold.
    pub acknowledged: usize,
    /// The others, and why.
    pub failed: BTreeMap<NodeId, String>,
}

impl Rollout {
    /// Nothing could be done, because of this node.
    pub(crate) fn impossible(local: NodeId, why: &str) -> Self {
        Self { step: "nothing", members: 1, acknowledged: 0, failed: [(local, why.to_owned())].into() }
    }
}

impl std::fmt::Display for Rollout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} holds at {} of {} nodes", self.step, self.acknowledged, self.members)?;
        self.failed.iter().try_for_each(|(id, why)| write!(f, "; not at {id}: {why}"))
    }
}

fn name(order: &Order) -> &'static str {
    match order {
        Order::Tell => "tell",
        Order::Install(_) => "install",
        Order::Use(_) => "use",
        Order::Keep(_) => "remove",
        Order::Hear(_) => "hear",
        Order::Say(_) => "say",
        Order::HearOnly(_) => "hear only",
        Order::Seal(Sealing::Required) => "require seals",
        Order::Seal(_) => "seal",
    }
}

/// The steps to another key.
pub(crate) fn to_key(key: Key) -> Vec<Order> {
    let id = key.id();
    vec![Order::Install(key), Order::Use(id), Order::Keep(id)]
}

/// The steps to another label.
pub(crate) fn to_label(label: &str) -> Vec<Order> {
    [Order::Hear, Order::Say, Order::HearOnly].map(|order| order(label.to_owned())).into()
}

/// The steps from a cluster whose nodes have the key in use here, but do not seal with it.
pub(crate) fn to_seals(keyring: &Keyring) -> Vec<Order> {
    let steps = [Sealing::Outgoing, Sealing::Required].map(Order::Seal);
    // A node without the key is found before anything changes.
    keyring.list().into_iter().next().map(|key| Order::Use(key.id())).into_iter().chain(steps).collect()
}

/// Takes the cluster through `steps` within that time.
pub(crate) async fn roll(doors: Arc<Doors>, steps: Vec<Order>, within: Duration) -> Result<Rollout, Rollout> {
    let deadline = Instant::from_std(after(within));
    let mut report = Rollout::default();
    for order in steps {
        report = step(&doors, &order, deadline).await;
        if report.acknowledged < report.members {
            return Err(report);
        }
    }
    Ok(report)
}

/// Gives an order to all members until it holds at each of them, or time is up. Nobody waits for one that does not
/// answer but that one itself.
async fn step(doors: &Arc<Doors>, order: &Order, deadline: Instant) -> Rollout {
    let mut report = Rollout { step: name(order), ..Rollout::default() };
    // What takes something away is done here when it is done everywhere else.
    let last = matches!(order, Order::Keep(_) | Order::HearOnly(_));
    let local = doors.view.borrow().local().id.clone();
    if let Err(why) = if last { Ok(()) } else { doors.admission.follow(order) } {
        report.failed.insert(local, why);
        report.members = 1 + others(doors).len();
        return report;
    }
    let (mut holds, mut verifying, mut settled) = (BTreeSet::new(), false, false);
    let (mut running, mut not_before) = (Vec::<Asking<'_>>::new(), BTreeMap::new());
    let mut changes = doors.view.follow();
    loop {
        drop(changes.see());
        let members = others(doors);
        let missing = || members.iter().filter(|member| !holds.contains(&member.id));
        let missed = missing().count();
        (report.members, report.acknowledged) = (members.len() + 1, members.len() - missed);
        if missed == 0 && verifying && last && !std::mem::replace(&mut settled, true) {
            // Somebody may have come in elsewhere by what was just taken away, and be known here in a moment.
            sleep_until(deadline.min(Instant::now() + PAUSE)).await;
            continue;
        }
        if missed == 0 && verifying {
            report.failed.clear();
            match if last { doors.admission.follow(order) } else { Ok(()) } {
                Ok(()) => report.acknowledged += 1,
                Err(why) => drop(report.failed.insert(local, why)),
            }
            return report;
        }
        if missed == 0 {
            // Each is asked once more how things stand: somebody may have been started anew meanwhile.
            verifying = true;
            holds.clear();
            not_before.clear();
            running.clear();
            continue;
        }
        let now = Instant::now();
        if now >= deadline {
            report.failed.retain(|id, _| missing().any(|member| member.id == *id));
            for member in missing() {
                let asked = running.iter().any(|(id, _)| *id == member.id);
                let why = if asked { "no answer in time" } else { "it was not asked in time" };
                let why =
                    if member.state == MemberState::Dead { format!("dead, and {why}") } else { why.into() };
                report.failed.entry(member.id.clone()).or_insert(why);
            }
            if last {
                report.failed.insert(local, "it waits for the others".into());
            } else {
                report.acknowledged += 1;
            }
            return report;
        }
        for member in missing() {
            let waits = not_before.get(&member.id).is_some_and(|then| *then > now);
            if running.len() < AT_ONCE && !waits && running.iter().all(|(id, _)| *id != member.id) {
                let asked = if verifying { Order::Tell } else { order.clone() };
                let asking = Box::pin(ask(doors.clone(), member.clone(), asked, deadline));
                running.push((member.id.clone(), asking));
            }
        }
        let (id, answer) = tokio::select! {
            biased;
            answered = first_of(&mut running) => answered,
            // Somebody has come or gone.
            _ = changes.changed() => continue,
            () = sleep_until(deadline.min(now + PAUSE)) => continue,
        };
        let why = match answer {
            Ok(standing) if standing.follows(order) => {
                report.failed.remove(&id);
                holds.insert(id);
                continue;
            }
            Ok(standing) => standing.refused.unwrap_or_else(|| "it has not followed".into()),
            Err(why) => {
                let dead = members.iter().any(|m| m.id == id && m.state == MemberState::Dead);
                if dead { format!("dead, and {why}") } else { why }
            }
        };
        // Whoever only was to say how things stand is given the order again at once.
        if !std::mem::take(&mut verifying) {
            not_before.insert(id.clone(), Instant::now() + PAUSE);
        }
        report.failed.insert(id, why);
    }
}

/// All members but this one and those that have left.
fn others(doors: &Doors) -> Vec<Arc<Member>> {
    let view = doors.view.borrow();
    let local = &view.local().id;
    view.all().filter(|m| m.id != *local && m.state != MemberState::Left).cloned().collect()
}

type Answer = Result<Standing, String>;

type Asking<'a> = (NodeId, Pin<Box<dyn Future<Output = Answer> + Send + 'a>>);

/// The first answer to come.
async fn first_of(running: &mut Vec<Asking<'_>>) -> (NodeId, Answer) {
    poll_fn(|cx| {
        for i in 0..running.len() {
            if let Poll::Ready(answer) = running[i].1.as_mut().poll(cx) {
                return Poll::Ready((running.swap_remove(i).0, answer));
            }
        }
        Poll::Pending
    })
    .await
}

/// Asks a member to follow an order. A key travels only to those who do not have it, and not at all if it was
/// installed by hand: who lacks it then may be somebody who knows no more than the old one.
async fn ask(doors: Arc<Doors>, member: Arc<Member>, order: Order, deadline: Instant) -> Answer {
    if let Order::Install(key) = &order {
        let standing = give_through(&doors, member.clone(), Order::Tell, deadline).await?;
        if standing.follows(&order) {
            return Ok(standing);
        }
        if !doors.admission.read().travelled.contains(&key.id()) {
            return Err("it does not have the key, which was installed by hand here: install it there".into());
        }
    }
    give_through(&doors, member, order, deadline).await
}

async fn give_through(doors: &Doors, member: Arc<Member>, order: Order, deadline: Instant) -> Answer {
    let (reply, answer) = oneshot::channel();
    if doors.transport.command(ToTransport::Order { member, order, reply }).is_err() {
        doors.counters.drop(Lost::InboxControl);
        return Err("this node is busy, or stops".into());
    }
    match timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err("this node is busy, or stops".into()),
        Err(_) => Err("no answer in time".into()),
    }
}

/// The key and the label that an order goes under.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) key: KeyId,
    pub(crate) label: Option<Envelope>,
}

/// Gives an order to whoever is at that address, and says how things stand there.
pub(crate) async fn give(
    ring: &Shared,
    _permit: &Permit,
    to: NodeId,
    addr: SocketAddr,
    order: Order,
    way: Option<Way>,
) -> Answer {
    let given = async {
        let key = way.as_ref().map(|way| way.key).or_else(|| ring.guard().seals().primary());
        let key = key.ok_or(WireError::Unsealed)?;
        let from = ring.view.borrow().local().id.clone();
        let mut line = Line::new(ring, dial(ring, addr, ring.config.tcp_timeout).await?);
        line.open_sealed(StreamKind::Order, key, way.as_ref().and_then(|way| way.label.as_ref())).await?;
        let bytes = codec::encode_order(&Ordered { from, to: to.clone(), order });
        line.write(&[&bytes]).await?;
        let standing = codec::decode_standing(&line.answer(MAX_STANDING).await?)?;
        Ok::<_, Failure>(standing)
    };
    match given.await {
        Ok(standing) if standing.id == to => Ok(standing),
        Ok(standing) => Err(format!("{} answers in its place", logs::node(&standing.id))),
        Err(failure) => {
            if matches!(failure, Failure::Tls(_)) {
                count(ring, &failure);
            }
            Err(failure.to_string())
        }
    }
}

/// Serves somebody who gives an order.
pub(crate) async fn serve(ring: &Shared, line: &mut Line<'_>, from: SocketAddr) -> Result<(), Failure> {
    if line.key().is_none() {
        return Err(WireError::Unsealed.into());
    }
    let bytes = line.frame(MAX_ORDER).await?;
    let ordered = codec::decode_order(&bytes);
    // It may have been a key.
    if let Ok(mut bytes) = bytes.try_into_mut() {
        zeroize::Zeroize::zeroize(&mut bytes[..]);
    }
    let Ordered { from: by, to, order } = ordered?;
    line.met_member(from, &by).await?;
    let id = ring.view.borrow().local().id.clone();
    let refused =
        if to == id { ring.admission.follow(&order).err() } else { Some("it is another node".into()) };
    if order != Order::Tell {
        up(&ring.counters.orders);
        let (by, refused) = (logs::node(&by), refused.as_deref().unwrap_or("no"));
        let what = name(&order);
        say!(ring, Kind::Order, info, %by, %from, what, refused, "an order about keys, labels or seals");
    }
    let standing = Standing { refused, ..ring.admission.standing(id) };
    line.write(&[&codec::encode_standing(&standing)]).await
}

/// A newcomer that came under an older key or label learns of the present ones: nobody else speaks to it under
/// those that it has.
pub(crate) fn hand_over(ring: &Shared, open: &Rc<Open>, to: NodeId, addr: SocketAddr, way: Way) {
    let admitted = ring.admission.read();
    let mut orders = Vec::new();
    if let Some(primary) = admitted.keys.first().filter(|key| key.id() != way.key) {
        // What was given to each node by hand does not travel under a key that others may know.
        if !admitted.travelled.contains(&primary.id()) {
            let to = logs::node(&to);
            say!(ring, Kind::Order, warn, %to, "a newcomer under an older key is not told of the present one, which was installed by hand here: install it there");
            return;
        }
        orders.extend([Order::Install(primary.clone()), Order::Use(primary.id())]);
    }
    if way.label.as_ref().is_some_and(|label| label.label() != admitted.labels.own.as_bytes()) {
        orders.extend([Order::Hear(admitted.labels.own.clone()), Order::Say(admitted.labels.own)]);
    }
    if orders.is_empty() {
        return;
    }
    let Some(permit) = open.permit(Use::Own) else { return ring.counters.drop(Lost::TooManyStreams) };
    let (ring, task) = (ring.clone(), ring.clone());
    task.spawn("hand over", async move {
        for order in orders {
            let what = name(&order);
            let given = give(&ring, &permit, to.clone(), addr, order, Some(way.clone())).await;
            if let Err(error) = given {
                let (to, error) = (logs::node(&to), logs::text(error));
                say!(ring, Kind::Order, warn, %to, what, %error, "a newcomer under an older key or label was not told of the present one");
                return;
            }
        }
        up(&ring.counters.handed_over);
    });
}

//! Looking for members that are missing: one attempt at a time.

use std::{rc::Rc, time::Instant};

use memberlist_protocol::{
    heal::{Attempt, Missing, Way},
    member::NodeId,
};
use tokio::{sync::oneshot, time::sleep};

use super::NodeState;
use crate::{
    logs::{self, Line, say},
    messages::{Exchange, Then, ToDetector, ToTransport},
    metrics::up,
    ring::Shared,
};

impl NodeState {
    /// Looks for somebody who is missing, if it is time to.
    pub(super) fn heal(&self, now: Instant) {
        let ring = &self.ring;
        let (attempt, held) = {
            let mut kept = self.kept.borrow_mut();
            if kept.heal.due().is_none_or(|due| now < due) {
                return;
            }
            if Rc::strong_count(&kept.attempt) > 1 {
                kept.heal.wait(now, &mut *ring.rng.borrow_mut());
                return;
            }
            let view = kept.members.view();
            let seeds = || ring.seeds().clone();
            let Some(attempt) = kept.heal.on_time(&view, seeds, now, &mut *ring.rng.borrow_mut()) else {
                return;
            };
            (attempt, kept.attempt.clone())
        };
        up(&ring.counters.heal_attempts);
        let shared = ring.clone();
        ring.spawn("heal", async move {
            let _held = held;
            if find(&shared, attempt).await.is_some() {
                up(&shared.counters.heals);
            }
        });
    }
}

/// Carries an attempt out. Nothing comes of it in most cases: who is missing does not answer, or comes back
/// meanwhile.
async fn find(ring: &Shared, attempt: Attempt) -> Option<()> {
    let addr = attempt.addr;
    if let (Way::Ping, Missing::Member(name)) = (attempt.way, &attempt.whom) {
        let (reply, answer) = oneshot::channel();
        ring.command(
            ring.detector_inbox(),
            ToDetector::Ask {
                target: NodeId::new(name.clone(), NodeId::ANY_RUN),
                addr,
                then: Then::Tell(reply),
            },
        );
        answer.await.ok()?.ok()?;
    }
    sleep(attempt.pause).await;
    if attempt.is_over(&ring.view.borrow()) {
        return None;
    }
    let why = match attempt.whom {
        Missing::Member(_) => Exchange::Heal,
        Missing::Seed => Exchange::Join,
    };
    let (reply, answer) = oneshot::channel();
    ring.command(&ring.transport, ToTransport::Join { addr, why, reply });
    // It has the time limits of any exchange: a large state may be long on its way.
    match answer.await.ok()? {
        Ok(id) => {
            let member = logs::node(&id);
            say!(ring, Line::Found, info, %member, %addr, "one who was missing answers");
            Some(())
        }
        Err(error) => {
            let error = logs::text(error);
            say!(ring, Line::NoExchange, debug, %addr, %error, "no exchange of states");
            None
        }
    }
}

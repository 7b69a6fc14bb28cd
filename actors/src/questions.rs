//! What the node asks its users' actors, and what it tells them besides events. None of it runs in the node:
//! a question is a message with a deadline, and no answer counts as the safe one.

use std::{net::SocketAddr, sync::Arc};

use actix::{Actor, Context, Handler, Message, Recipient};
use bytes::Bytes;
use memberlist_protocol::member::{Member, NodeId};
use tokio::time::timeout;

use crate::{
    logs::{Line, say},
    metrics::Lost,
    pump::{Pump, Queue},
    ring::Shared,
};

/// May somebody in? The answer is due within [`Config::question_timeout`](crate::Config::question_timeout);
/// none, or one that comes later, is a no. The reason of a no is told to whoever wants in, cut to 200
/// characters.
#[derive(Message, Clone, Debug)]
#[rtype(result = "Result<(), String>")]
#[non_exhaustive]
pub enum Admit {
    /// A member whose name is seen for the first time, that comes back from dead or left, or that has moved
    /// to another address. What is said of it waits; nobody else does. A no holds for a minute, or until it
    /// comes back with a higher incarnation. It keeps the member out of this node's view only: each node
    /// asks its own application. What a member that was let in says about itself later, such as new tags, is
    /// told as an event and not asked about.
    Member(Arc<Member>),
    /// A join, on both sides of it. A no cancels the join on both sides. A joiner is asked about at each join,
    /// also as a member.
    Merge {
        /// Where the other side is.
        from: SocketAddr,
        /// All members that it knows, the node itself first.
        members: Vec<Arc<Member>>,
    },
}

/// What is the state that this application shares? Asked for each exchange of states with another node. No
/// answer is an empty state, which is not sent.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "Bytes")]
pub struct Export {
    /// Whether one of the two joins the other.
    pub joining: bool,
}

/// The state that the application of another node shares. Merging must be commutative, associative and
/// idempotent: states come again and again, in any order.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Merge {
    /// Whose it is.
    pub from: NodeId,
    /// Whether one of the two joins the other.
    pub joining: bool,
    /// Its answer to [`Export`]; never empty.
    pub state: Bytes,
}

/// An actor whose state all nodes share: it is exchanged along with the members, about every
/// [`Config::push_pull_interval`](crate::Config::push_pull_interval) and at each join.
///
/// ```
/// use actix::prelude::*;
/// use actix_memberlist::{Export, Merge, SharedState};
/// use bytes::Bytes;
///
/// /// The highest number that any node has seen.
/// struct Highest(u8);
///
/// impl Actor for Highest {
///     type Context = Context<Self>;
/// }
/// impl Handler<Export> for Highest {
///     type Result = MessageResult<Export>;
///     fn handle(&mut self, _: Export, _: &mut Context<Self>) -> Self::Result {
///         MessageResult(Bytes::from(vec![self.0]))
///     }
/// }
/// impl Handler<Merge> for Highest {
///     type Result = ();
///     fn handle(&mut self, m: Merge, _: &mut Context<Self>) {
///         self.0 = self.0.max(m.state.first().copied().unwrap_or(0));
///     }
/// }
/// impl SharedState for Highest {
///     const KEY: &'static str = "highest/1";
/// }
/// ```
pub trait SharedState: Actor<Context = Context<Self>> + Handler<Export> + Handler<Merge> {
    /// Under which name the state travels: 1 to 255 bytes, or the program does not compile; the same on all
    /// nodes. At most 64 keys are shared; what is beyond is not sent, and counted.
    const KEY: &'static str;
}

/// A shared state of this node's own application.
pub(crate) struct Sharing {
    pub(crate) number: u64,
    pub(crate) key: &'static str,
    pub(crate) export: Recipient<Export>,
    pub(crate) merges: Arc<Queue<Merge>>,
    pub(crate) pump: Option<Pump>,
}

impl Drop for Sharing {
    /// Nobody is left to wait for states that will never come.
    fn drop(&mut self) {
        self.merges.close();
    }
}

/// Asks a user's actor. Nothing, if there is no answer in time; that is counted, and `what` logged.
pub(crate) async fn ask<M>(
    ring: &Shared,
    what: impl std::fmt::Display,
    to: &Recipient<M>,
    question: M,
) -> Option<M::Result>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    let limit = ring.config.question_limit();
    match timeout(limit, to.send(question)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(_)) => {
            ring.counters.drop(Lost::QuestionFailed);
            say!(ring, Line::Unanswered, warn, "{what}: the actor that was asked has stopped or panicked");
            None
        }
        Err(_) => {
            ring.counters.drop(Lost::QuestionLate);
            say!(ring, Line::Unanswered, warn, "{what}: no answer within {limit:?}");
            None
        }
    }
}

//! What the nodes of a campaign say to each other, and who listens.

use std::{cell::Cell, rc::Rc, time::Duration};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, MessageResult, WrapFuture};
use actix_memberlist::{Cluster, Lane, NodeId, PeerMessage, UserBytes};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::book::Pages;

/// A message, by the lane that its type names.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
pub struct Tell<const LANE: usize> {
    pub number: usize,
    pub body: Bytes,
}

/// A question. Its answer has its number, and as many bytes as it asks for.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "(usize, Bytes)")]
pub struct Ask<const LANE: usize> {
    pub number: usize,
    pub answer: usize,
    pub body: Bytes,
}

impl<const LANE: usize> PeerMessage for Tell<LANE> {
    const KIND: &'static str = ["tell-urgent/1", "tell-ordered/1", "tell-bulk/1"][LANE];
    const LANE: Lane = Lane::ALL[LANE];
}

impl<const LANE: usize> PeerMessage for Ask<LANE> {
    const KIND: &'static str = ["ask-urgent/1", "ask-ordered/1", "ask-bulk/1"][LANE];
    const LANE: Lane = Lane::ALL[LANE];
}

/// Bytes that begin with their number.
pub fn numbered(number: usize, size: usize) -> Bytes {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(bytes.len() + size, 7);
    bytes.into()
}

/// Notes what it hears; each message takes it a pause.
pub struct Ear {
    at: NodeId,
    /// Its number: one that has stopped may hear what lay in its mailbox beside its successor.
    number: usize,
    pages: Pages,
    pause: Rc<Cell<Duration>>,
}

impl Ear {
    /// Starts one that hears everything which comes to this node, until it is told to [`Stop`].
    pub fn listen(node: &Cluster, pages: &Pages, pause: &Rc<Cell<Duration>>) -> actix::Addr<Self> {
        let at = node.view().local().id.clone();
        pages.borrow_mut().ears += 1;
        let number = pages.borrow().ears;
        let ear = Self { at, number, pages: pages.clone(), pause: pause.clone() }.start();
        let to = || ear.clone();
        node.serve_bytes(to().recipient()).expect("it runs").detach();
        node.serve::<Tell<0>>(to().recipient()).expect("it runs").detach();
        node.serve::<Tell<1>>(to().recipient()).expect("it runs").detach();
        node.serve::<Tell<2>>(to().recipient()).expect("it runs").detach();
        node.serve::<Ask<0>>(to().recipient()).expect("it runs").detach();
        node.serve::<Ask<1>>(to().recipient()).expect("it runs").detach();
        node.serve::<Ask<2>>(to().recipient()).expect("it runs").detach();
        ear
    }

    fn hear(&self, number: usize, ctx: &mut Context<Self>) {
        self.pages.borrow_mut().heard(number, &self.at, self.number);
        if !self.pause.get().is_zero() {
            ctx.wait(sleep(self.pause.get()).into_actor(self));
        }
    }
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl<const LANE: usize> Handler<Tell<LANE>> for Ear {
    type Result = ();
    fn handle(&mut self, m: Tell<LANE>, ctx: &mut Context<Self>) {
        self.hear(m.number, ctx);
    }
}

impl<const LANE: usize> Handler<Ask<LANE>> for Ear {
    type Result = MessageResult<Ask<LANE>>;
    fn handle(&mut self, m: Ask<LANE>, ctx: &mut Context<Self>) -> Self::Result {
        self.hear(m.number, ctx);
        MessageResult((m.number, vec![3; m.answer].into()))
    }
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, m: UserBytes, ctx: &mut Context<Self>) {
        match m.bytes.first_chunk() {
            Some(number) => self.hear(usize::from_le_bytes(*number), ctx),
            None => self.pages.borrow_mut().empties_heard += 1,
        }
    }
}

/// The handler ends, with all that lies in its mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

impl Handler<Stop> for Ear {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

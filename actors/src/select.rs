//! Messages to many peers at once, each over its own link.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use memberlist_protocol::member::{Member, NodeId};

use crate::{
    errors::{AskError, SendError},
    peer::Peer,
    typed::{self, PeerMessage},
};

/// Which members are meant. This node itself is never among them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// All others.
    Others,
    /// Those that have this tag with this value.
    Tagged(String, String),
    /// These, as far as they are there.
    Only(Vec<NodeId>),
}

impl Select {
    pub(crate) fn names(&self, member: &Member) -> bool {
        match self {
            Self::Others => true,
            Self::Tagged(key, value) => member.tags.get(key) == Some(value),
            Self::Only(ids) => ids.contains(&member.id),
        }
    }
}

/// What has become of a message to many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fanout {
    /// For how many it waits now.
    pub queued: usize,
    /// For whom it was not taken, and why.
    pub refused: Vec<(NodeId, SendError)>,
}

pub(crate) fn send_all<M: PeerMessage>(peers: Vec<Peer>, msg: &M) -> Fanout {
    let mut fanout = Fanout::default();
    // They share its bytes.
    let bytes = typed::encode(msg);
    for peer in peers {
        match bytes.clone().and_then(|bytes| peer.send_encoded::<M>(bytes)) {
            Ok(_) => fanout.queued += 1,
            Err(error) => fanout.refused.push((peer.id().clone(), error)),
        }
    }
    fanout
}

type Asking<R> = Pin<Box<dyn Future<Output = (NodeId, Result<R, AskError>)> + Send>>;

/// Questions that are under way.
struct Answers<R>(Vec<Asking<R>>);

impl<R> Stream for Answers<R> {
    type Item = (NodeId, Result<R, AskError>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let ready = self.0.iter_mut().enumerate().find_map(|(at, asking)| match asking.as_mut().poll(cx) {
            Poll::Ready(answer) => Some((at, answer)),
            Poll::Pending => None,
        });
        match ready {
            Some((at, answer)) => {
                drop(self.0.swap_remove(at));
                Poll::Ready(Some(answer))
            }
            None if self.0.is_empty() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

pub(crate) fn ask_all<M: PeerMessage>(
    peers: Vec<Peer>,
    msg: &M,
    within: Duration,
) -> impl Stream<Item = (NodeId, Result<M::Result, AskError>)> + Send + Unpin + use<M> {
    let bytes = typed::encode(msg);
    let ask = |peer: Peer| -> Asking<M::Result> {
        // It is taken now, whenever the stream is polled.
        let asked = peer.question::<M>(bytes.clone(), within);
        Box::pin(async move { (peer.id().clone(), asked.await) })
    };
    Answers(peers.into_iter().map(ask).collect())
}

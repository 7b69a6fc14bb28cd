//! Uploads: a message with a body of any length behind it, in pieces, on a connection of its own. TCP's window is the
//! credit: whoever reads slowly is sent to slowly, and nothing else waits.
//!
//! ```text
//!   there:  address, KIND, head | piece | piece | .. | nothing: the end
//!   back:   receipt              |                              answer, at any time
//! ```

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix::{Message, Recipient};
use bytes::Bytes;
use futures_core::Stream;
use memberlist_protocol::{
    member::NodeId,
    wire::{
        WireError, codec,
        frame::StreamKind,
        link::How,
        message::{Address, MAX_KIND, Receipt},
    },
};
use tokio::{io::AsyncReadExt, sync::mpsc, time::sleep};

use crate::{
    answers::{self, Answered},
    errors::{AskError, Cause, NotSent},
    messages::Reply,
    metrics::Lost,
    peer::present,
    ring::{Ring, Shared},
    streams::{Failure, Line, Permit, count, dial},
    supervisor::catch,
    typed::PeerMessage,
};

mod pace;

use pace::Pace;

/// Longest piece of a body, in bytes; longer ones are cut.
pub(crate) const PIECE: usize = 64 * 1024;

/// Pieces that wait between a stream and whoever reads or writes the body.
pub(crate) const WAITING: usize = 4;

/// Uploads that one handler is given at once.
const AT_ONCE: usize = 64;

/// Room in front of a head: two names, two runs, a KIND.
const MAX_AROUND: usize = 1024;

/// How long either side may do nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A message with a body behind it, as its handler gets it ([`Cluster::serve_upload`](crate::Cluster::serve_upload)).
#[derive(Debug)]
pub struct Upload<M> {
    /// Who sends it.
    pub from: NodeId,
    /// The message.
    pub head: M,
    /// What comes behind it.
    pub body: Body,
}

impl<M: PeerMessage> Message for Upload<M> {
    type Result = M::Result;
}

/// The body of an upload: pieces as they come. An error says that it was cut off; without one the end is its end.
/// It has to be read: nothing more comes while four pieces wait.
#[derive(Debug)]
pub struct Body {
    pieces: mpsc::Receiver<Piece>,
    over: bool,
}

/// A part of a body, or its end.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Bytes),
    End,
}

impl Stream for Body {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        self.over = !matches!(piece, Some(Piece::Bytes(_)));
        Poll::Ready(match piece {
            Some(Piece::Bytes(bytes)) => Some(Ok(bytes)),
            Some(Piece::End) => None,
            None => Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload was cut off"))),
        })
    }
}

/// An upload on its way out.
pub(crate) struct Outgoing {
    pub(crate) to: NodeId,
    pub(crate) kind: &'static str,
    pub(crate) head: Bytes,
    pub(crate) pieces: mpsc::Receiver<Piece>,
    pub(crate) reply: Reply<Result<Bytes, AskError>>,
}

/// Brings an upload to its peer.
pub(crate) async fn send(ring: Shared, permit: Permit, mut upload: Outgoing) {
    // From the moment on at which its head is on its way, until a refusal has come back.
    let mut doubtful = false;
    let peer = upload.to.clone();
    let gone = async {
        let mut views = ring.view.follow();
        while present(&ring, &peer).is_some() && views.changed().await.is_ok() {}
    };
    let sent = tokio::select! {
        biased;
        // Whoever asked does not wait any more.
        () = upload.reply.closed() => return,
        () = gone => Err(AskError::NotSent(if doubtful {
            NotSent::Unknown(Cause::PeerDead)
        } else {
            NotSent::Never(Cause::PeerDead)
        })),
        sent = brought(&ring, &upload.to, upload.kind, &upload.head, &mut upload.pieces, &mut doubtful) => {
            sent.unwrap_or_else(|failure| {
                count(&ring, &failure);
                let not_sent = if doubtful { NotSent::Unknown } else { NotSent::Never };
                Err(AskError::NotSent(not_sent(Cause::LinkLost)))
            })
        }
    };
    let _ = upload.reply.send(sent);
    drop(permit);
}

async fn brought(
    ring: &Shared,
    to: &NodeId,
    kind: &str,
    head: &Bytes,
    pieces: &mut mpsc::Receiver<Piece>,
    doubtful: &mut bool,
) -> Result<Result<Bytes, AskError>, Failure> {
    let Some(member) = present(ring, to) else {
        return Ok(Err(AskError::NotSent(NotSent::Never(Cause::PeerDead))));
    };
    let mut line = Line::new(ring, dial(ring, member.addr, ring.config.tcp_timeout).await?);
    line.open(StreamKind::Upload).await?;
    let from = ring.view.borrow().local().id.clone();
    let address = codec::encode_address(&Address::Direct { from, to: to.clone() });
    *doubtful = true;
    line.write(&[&address, &[kind.len() as u8], kind.as_bytes(), head]).await?;
    let receipt = line.answer(1).await?;
    let receipt = codec::decode_receipt(*receipt.first().ok_or(WireError::Truncated)?)?;
    let never = |cause| Ok(Err(AskError::NotSent(NotSent::Never(cause))));
    match receipt {
        Receipt::Taken => {}
        Receipt::NoHandler => return never(Cause::NoHandler),
        Receipt::Busy => return never(Cause::Busy),
        Receipt::NotMe => return never(Cause::Replaced),
        Receipt::Undecodable => return never(Cause::Undecodable),
    }
    line.limit = PATIENCE;
    let max = ring.config.max_message_size + 1;
    let (mut pace, mut open) = (Pace::default(), true);
    let answer = loop {
        let mut first = [0];
        // It may be answered before its end, and the body may stand still. A handler may take its time as well: the peer
        // says now and then that it is there.
        let next = tokio::select! {
            biased;
            read = line.channel().read(&mut first) => Err(read?),
            piece = pieces.recv(), if open => Ok(piece),
            () = sleep(PATIENCE) => return Err(Failure::Timeout),
        };
        match next {
            // Without an end the stream just closes, and the other side knows that something is missing.
            Ok(None) => open = false,
            Ok(Some(Piece::End)) => {
                let _ = line.write(&[]).await;
                open = false;
            }
            // When it has been answered nobody reads the rest.
            Ok(Some(Piece::Bytes(bytes))) => match line.write(&[&bytes]).await {
                Ok(()) => pace.step(ring, bytes.len()).await,
                Err(_) => open = false,
            },
            Err(0) => return Err(WireError::Truncated.into()),
            Err(_) => {
                let answer = line.rest_of_answer(first[0], max).await?;
                if !answer.is_empty() {
                    break answer;
                }
            }
        }
    };
    let how = How::of(answer[0]).ok_or(WireError::Kind)?;
    Ok(answers::told(how, answer.slice(1..)))
}

/// Serves an upload that somebody has begun.
pub(crate) async fn serve(
    ring: &Shared,
    _permit: &Permit,
    line: &mut Line<'_>,
    from: SocketAddr,
) -> Result<(), Failure> {
    let first = line.frame(MAX_AROUND + ring.config.max_ordered_size).await?;
    let (address, used) = codec::decode_address(&first)?;
    let Address::Direct { from: claimed, to } = address else { return Err(WireError::Kind.into()) };
    line.met_member(from, &claimed).await?;
    let rest = &first[used..];
    let len = usize::from(*rest.first().ok_or(WireError::Truncated)?);
    let kind = rest.get(1..1 + len).filter(|_| len <= MAX_KIND).ok_or(WireError::Truncated)?;
    let kind = std::str::from_utf8(kind).map_err(|_| WireError::Name)?;
    let proven = present(ring, &claimed).is_some_and(|m| line.key().is_some() || m.addr.ip() == from.ip());
    let (pieces, body) = mpsc::channel(WAITING);
    let body = Body { pieces: body, over: false };
    let begun = if ring.view.borrow().local().id != to {
        Err(Receipt::NotMe)
    } else if !proven {
        Err(Receipt::NoHandler)
    } else {
        ring.routes.upload(ring, kind, claimed, &rest[1 + len..], body)
    };
    let receipt = begun.as_ref().err().copied().unwrap_or(Receipt::Taken);
    line.write(&[&[codec::encode_receipt(receipt)]]).await?;
    let Ok(mut answered) = begun else { return Ok(()) };
    line.limit = PATIENCE;
    let mut pace = Pace::default();
    loop {
        let room = tokio::select! {
            biased;
            answer = &mut answered => return reply(line, answer.unwrap_or(Answered::HandlerGone)).await,
            room = pieces.reserve() => room,
        };
        // A handler that reads no more has no use for what comes.
        let Ok(room) = room else { break };
        let piece = tokio::select! {
            biased;
            answer = &mut answered => return reply(line, answer.unwrap_or(Answered::HandlerGone)).await,
            piece = line.frame(PIECE) => piece?,
        };
        if piece.is_empty() {
            room.send(Piece::End);
            break;
        }
        let len = piece.len();
        room.send(Piece::Bytes(piece));
        pace.step(ring, len).await;
    }
    drop(pieces);
    loop {
        tokio::select! {
            biased;
            answer = &mut answered => return reply(line, answer.unwrap_or(Answered::HandlerGone)).await,
            () = sleep(PATIENCE / 4) => line.write(&[]).await?,
        }
    }
}

async fn reply(line: &mut Line<'_>, answered: Answered) -> Result<(), Failure> {
    let (how, bytes) = answered.split();
    line.write(&[&[how as u8], &bytes]).await
}

/// The way of uploads of one type to their handler.
pub(crate) trait Receives {
    fn is_open(&self) -> bool;
    fn begin(
        &self,
        ring: &Ring,
        from: NodeId,
        head: &[u8],
        body: Body,
    ) -> Result<tokio::sync::oneshot::Receiver<Answered>, Receipt>;
}

pub(crate) struct Receiver<M: PeerMessage> {
    to: Recipient<Upload<M>>,
    now: Rc<Cell<usize>>,
}

impl<M: PeerMessage> Receiver<M> {
    pub(crate) fn new(to: Recipient<Upload<M>>) -> Self {
        Self { to, now: Rc::default() }
    }
}

/// Counts an upload for as long as its handler has it.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<M: PeerMessage> Receives for Receiver<M> {
    fn is_open(&self) -> bool {
        self.to.connected()
    }

    fn begin(
        &self,
        ring: &Ring,
        from: NodeId,
        head: &[u8],
        body: Body,
    ) -> Result<tokio::sync::oneshot::Receiver<Answered>, Receipt> {
        if self.now.get() >= AT_ONCE {
            ring.counters.drop(Lost::HandlerBusy);
            return Err(Receipt::Busy);
        }
        let Ok(Ok(head)) = catch(|| codec::decode_payload(head)) else {
            ring.counters.drop(Lost::Undecodable);
            return Err(Receipt::Undecodable);
        };
        self.now.set(self.now.get() + 1);
        let counted = Counted(self.now.clone());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let asked = self.to.send(Upload { from, head, body });
        let max = ring.config.max_message_size;
        ring.spawn("upload", async move {
            let _counted = counted;
            let answered = match asked.await {
                Ok(result) => Answered::encode(&result, max),
                Err(_) => Answered::HandlerGone,
            };
            let _ = answer.send(answered);
        });
        Ok(answered)
    }
}

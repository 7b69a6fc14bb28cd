//! Large messages: one after the other on a connection of their own, each acknowledged before the next. TCP's window
//! is their credit; memory for those that come in is taken from what all streams share.

use std::{future::poll_fn, net::SocketAddr, task::Poll, time::Duration};

use bytes::Bytes;
use memberlist_protocol::{
    link::{Carrier, Lane, Received},
    wire::{
        WireError, codec,
        link::{self as frames, Frame, LENGTH, MAX_AROUND},
        message::Receipt,
    },
};
use tokio::{sync::oneshot, time::timeout};

use super::{
    cell::{Link, What},
    inbound::{Inbound, Seat},
    outbound::{nonsense, worded},
};
use crate::{
    inbox::Refused,
    messages::ToDelegates,
    metrics::Lost,
    ring::{Shared, now},
    streams::{Failure, Line, Permit},
};

/// A connection over which nothing large has gone for so long is closed.
const IDLE: Duration = Duration::from_secs(5);

/// A large message may be as slow as this, in bytes a second, however long that takes: 20 MiB get 80 s.
const SLOWEST: u32 = 256 * 1024;

/// Sends what waits, until there has been nothing for a while.
pub(super) async fn send(line: &mut Line<'_>, link: &Link) -> Result<(), Failure> {
    let ring = line.ring;
    line.pace = Some(SLOWEST);
    while let Ok((number, what, bytes)) = timeout(IDLE, next(link)).await {
        let head = Frame::Message { lane: Lane::Bulk, number, what: worded(what, now()), payload: &[] };
        let mut out = Vec::with_capacity(MAX_AROUND);
        frames::begin(&head, bytes.len(), &mut out);
        line.write(&[&out[LENGTH..], &bytes]).await?;
        let answer = line.answer(MAX_AROUND).await?;
        match frames::read(&answer)? {
            Frame::Ack { lane: Lane::Bulk, next, refused } => {
                let refused = frames::refused(refused)?;
                link.acked(ring, Lane::Bulk, next, &refused).map_err(|_| nonsense())?;
            }
            _ => return Err(WireError::Kind.into()),
        }
    }
    Ok(())
}

/// The next message.
async fn next(link: &Link) -> (u64, What, Bytes) {
    poll_fn(|cx| {
        let mut found = None;
        link.next(Carrier::Bulk, cx.waker(), |_, number, what, bytes| {
            found = Some((number, what, bytes.clone()));
            false
        });
        found.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Serves such a connection.
pub(super) async fn serve(
    ring: &Shared,
    permit: &Permit,
    line: &mut Line<'_>,
    inbound: &Inbound,
    seat: &Seat,
    from: SocketAddr,
) -> Result<(), Failure> {
    let max = ring.config.max_message_size + MAX_AROUND;
    line.pace = Some(SLOWEST);
    while let Some(bytes) = line.next_frame_or_way(max, permit).await? {
        let Frame::Message { lane, number, what, payload } = frames::read(&bytes)? else {
            return Err(WireError::Kind.into());
        };
        if payload.len() > ring.config.max_message_size {
            return Err(WireError::TooLong.into());
        }
        let payload = bytes.slice_ref(payload);
        if inbound.receive(seat, lane, number)? == Received::New {
            let receipt = match what {
                frames::What::Broadcast => {
                    let len = payload.len();
                    let receipt = broadcast(ring, payload, from).await?;
                    ring.counters.lanes[lane as usize].received(len, receipt);
                    receipt
                }
                _ => inbound.deliver(ring, seat, lane, number, what, payload),
            };
            // It may have been overtaken meanwhile: the later connection brings the message again, and a broadcast is
            // known by its number.
            inbound.receive(seat, lane, number)?;
            inbound.settle(lane, receipt);
        }
        let mut out = Vec::new();
        let Some(ack) = inbound.ack(lane) else {
            return Err(WireError::Replayed.into());
        };
        let mut refused = Vec::new();
        frames::append_refused(&ack.refused, &mut refused);
        frames::begin(&Frame::Ack { lane, next: ack.next, refused: &refused }, 0, &mut out);
        line.write(&[&out[LENGTH..]]).await?;
    }
    Ok(())
}

/// Gives a broadcast to Delegates, which knows those that have come before.
async fn broadcast(ring: &Shared, mut payload: Bytes, from: SocketAddr) -> Result<Receipt, Failure> {
    let (address, used) = codec::decode_address(&payload)?;
    let bytes = payload.split_off(used);
    let (reply, receipt) = oneshot::channel();
    match ring.delegates.command(ToDelegates::Deliver { address, bytes, from, reply }) {
        // Without a word the sender cannot know whether a handler has got it.
        Ok(()) => receipt.await.map_err(|_| Failure::Unserved),
        Err(Refused::Busy) => {
            ring.counters.drop(Lost::InboxControl);
            Ok(Receipt::Busy)
        }
        Err(Refused::Closed) => Err(Failure::Unserved),
    }
}

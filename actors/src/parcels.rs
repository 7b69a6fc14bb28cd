//! Bytes of users over streams: emptying the lane of one peer, and serving such a stream. A stream carries one
//! message after the other, each answered by a receipt before the next is sent.
//!
//! ```text
//! there:  length (address bytes)     back:  1 (receipt)
//! ```

use std::net::SocketAddr;

use memberlist_protocol::{
    member::MemberState,
    wire::{
        WireError, codec,
        frame::StreamKind,
        message::{Address, Receipt},
    },
};
use tokio::sync::oneshot;

use crate::{
    errors::{Cause, NotSent},
    inbox::Refused,
    messages::ToDelegates,
    metrics::{Lost, up},
    outbox::{Parcel, Run},
    peer::present,
    ring::Shared,
    streams::{Failure, Line, Permit, count, dial},
};

/// Parcels after which a lane lets another one have its stream.
const PARCELS_PER_RUN: usize = 64;

/// Room for an address in front of a user's bytes: two names and two runs.
const MAX_ADDRESS: usize = 1024;

/// Empties a lane, and ends when there is nothing in it.
pub(crate) async fn run(ring: Shared, permit: Permit, lane: Run) {
    let mut open: Option<Line<'_>> = None;
    let mut turn = 0..PARCELS_PER_RUN;
    // When others wait for a stream, it is their turn after a while; what is left here waits for the next.
    while (turn.next().is_some() || !lane.others_wait())
        && let Some(parcel) = lane.next()
    {
        let Some(member) = present(&ring, &lane.peer) else {
            let outcome = NotSent::Never(gone(&ring, &lane));
            parcel.fate.end(Err(outcome));
            ring.counters.drop_many(Lost::Undelivered, 1 + lane.end_all(outcome));
            break;
        };
        let mut line = match open.take() {
            Some(line) => line,
            None => match connect(&ring, member.addr).await {
                Ok(line) => line,
                Err(failure) => {
                    count(&ring, &failure);
                    let outcome = NotSent::Never(Cause::LinkLost);
                    parcel.fate.end(Err(outcome));
                    ring.counters.drop_many(Lost::Undelivered, 1 + lane.end_all(outcome));
                    break;
                }
            },
        };
        match send(&mut line, &parcel).await {
            Ok(receipt) => {
                let outcome = outcome(receipt);
                if outcome.is_ok() {
                    up(&ring.counters.user_messages_sent);
                } else {
                    ring.counters.drop(Lost::Undelivered);
                }
                parcel.fate.end(outcome);
                open = Some(line);
            }
            Err(failure) => {
                count(&ring, &failure);
                ring.counters.drop(Lost::Undelivered);
                parcel.fate.end(Err(NotSent::Unknown(Cause::LinkLost)));
            }
        }
    }
    drop((lane, permit));
}

fn gone(ring: &Shared, lane: &Run) -> Cause {
    let view = ring.view.borrow();
    match view.get(lane.peer.name()) {
        Some(member) if member.id == lane.peer && member.state == MemberState::Left => Cause::PeerLeft,
        _ => Cause::PeerDead,
    }
}

async fn connect(ring: &Shared, addr: SocketAddr) -> Result<Line<'_>, Failure> {
    let mut line = Line::new(ring, dial(ring, addr, ring.config.tcp_timeout).await?);
    line.open(StreamKind::User).await?;
    Ok(line)
}

async fn send(line: &mut Line<'_>, parcel: &Parcel) -> Result<Receipt, Failure> {
    let address = codec::encode_address(&parcel.address);
    line.write(&[&address, &parcel.bytes]).await?;
    let answer = line.answer(1).await?;
    let &[byte] = &answer[..] else { return Err(WireError::Truncated.into()) };
    Ok(codec::decode_receipt(byte)?)
}

fn outcome(receipt: Receipt) -> Result<(), NotSent> {
    match receipt {
        Receipt::Taken => Ok(()),
        Receipt::NoHandler => Err(NotSent::Never(Cause::NoHandler)),
        Receipt::Busy => Err(NotSent::Never(Cause::Busy)),
        Receipt::NotMe => Err(NotSent::Never(Cause::PeerDead)),
        Receipt::Undecodable => Err(NotSent::Never(Cause::Undecodable)),
    }
}

/// Serves a stream of users' bytes until the other side ends it.
pub(crate) async fn serve(
    ring: &Shared,
    permit: &Permit,
    line: &mut Line<'_>,
    from: SocketAddr,
) -> Result<(), Failure> {
    let max = ring.config.max_message_size.saturating_add(MAX_ADDRESS);
    while let Some(mut bytes) = line.next_frame_or_way(max, permit).await? {
        let (address, used) = codec::decode_address(&bytes)?;
        let bytes = bytes.split_off(used);
        if bytes.len() > ring.config.max_message_size {
            return Err(WireError::TooLong.into());
        }
        let receipt = deliver(ring, address, bytes, from).await?;
        line.write(&[&[codec::encode_receipt(receipt)]]).await?;
    }
    Ok(())
}

async fn deliver(
    ring: &Shared,
    address: Address,
    bytes: bytes::Bytes,
    from: SocketAddr,
) -> Result<Receipt, Failure> {
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

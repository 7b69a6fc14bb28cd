//! A remote member where an actix `Recipient` is asked for: a small actor that passes on what it is sent.

use std::marker::PhantomData;

use actix::{Actor, Context, Handler, Recipient};

use crate::{
    errors::Stopped, messages::ToDelegates, metrics::Lost, peer::Peer, ring::Doors, supervisor::catch,
    typed::PeerMessage,
};

struct Relay<M> {
    peer: Peer,
    _passes: PhantomData<fn(M)>,
}

impl<M: PeerMessage<Result = ()> + Unpin> Actor for Relay<M> {
    type Context = Context<Self>;
}

impl<M: PeerMessage<Result = ()> + Unpin> Handler<M> for Relay<M> {
    type Result = ();

    fn handle(&mut self, msg: M, _: &mut Context<Self>) {
        // It runs under no supervisor, and `Serialize` is the user's: a panic there costs this message alone.
        let sent = catch(|| self.peer.send(&msg).is_ok());
        if sent != Ok(true) {
            self.peer.doors().counters.drop(Lost::Undelivered);
        }
    }
}

/// Messages that may wait for a relay; `Recipient::do_send` does not heed it.
const MAILBOX: usize = 1024;

/// Starts one on the node's thread.
pub(crate) fn start<M: PeerMessage<Result = ()> + Unpin>(
    peer: Peer,
    doors: &Doors,
) -> Result<Recipient<M>, Stopped> {
    let (sender, receiver) = actix::dev::channel::channel(MAILBOX);
    let relay = async move {
        let context = Context::with_receiver(receiver);
        drop(context.run(Relay { peer, _passes: PhantomData::<fn(M)> }));
    };
    doors.delegates.insist(ToDelegates::Work(Box::pin(relay))).map_err(|_| Stopped)?;
    Ok(actix::Addr::new(sender).recipient())
}

//! Requests to one actor that are under way at once. Each is polled only when it has been woken, so that a wake-up
//! costs what has ended and not what waits.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::AcqRel},
    },
    task::{Context, Poll, Wake, Waker},
};

use actix::{MailboxError, Message, dev::RecipientRequest};

/// Requests that are under way at most: as many as a word has bits.
const WIDTH: usize = u64::BITS as usize;

/// Which requests have been woken, and who looks after them.
#[derive(Default)]
struct Woken {
    bits: AtomicU64,
    keeper: Mutex<Option<Waker>>,
}

impl Woken {
    fn keeper(&self) -> MutexGuard<'_, Option<Waker>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes one of the requests.
struct Bell {
    woken: Arc<Woken>,
    bit: u64,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // If others have been woken before, the keeper is on its way.
        if self.woken.bits.fetch_or(self.bit, AcqRel) == 0 {
            let keeper = self.woken.keeper().clone();
            if let Some(keeper) = keeper {
                keeper.wake();
            }
        }
    }
}

struct Slot<T, C>
where
    T: Message<Result: Send> + Send,
{
    request: Pin<Box<Option<RecipientRequest<T>>>>,
    about: Option<C>,
    bell: Waker,
}

/// Requests, each with what its sender has to know when it ends.
pub(super) struct Window<T, C>
where
    T: Message<Result: Send> + Send,
{
    slots: Vec<Slot<T, C>>,
    busy: u64,
    woken: Arc<Woken>,
}

/// What has become of a request.
pub(super) type Ended<T, C> = (C, Result<<T as Message>::Result, MailboxError>);

impl<T, C> Window<T, C>
where
    T: Message<Result: Send> + Send,
{
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), busy: 0, woken: Arc::default() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.busy == u64::MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.busy == 0
    }

    /// Takes a request that was made just now, if there is room, and polls it for the first time: one that found
    /// the mailbox full gets into it only then, and must not be overtaken by the next.
    pub(super) fn push(&mut self, request: RecipientRequest<T>, about: C) -> Option<Ended<T, C>> {
        let at = (!self.busy).trailing_zeros() as usize;
        if at == self.slots.len() && at < WIDTH {
            let bell = Arc::new(Bell { woken: self.woken.clone(), bit: 1 << at });
            self.slots.push(Slot { request: Box::pin(None), about: None, bell: bell.into() });
        }
        let slot = self.slots.get_mut(at)?;
        slot.request.as_mut().set(Some(request));
        slot.about = Some(about);
        self.busy |= 1 << at;
        self.poll_slot(at)
    }

    /// Hands over those that have ended since the last time, each once.
    pub(super) fn poll_woken(&mut self, cx: &Context<'_>, mut ended: impl FnMut(Ended<T, C>)) {
        let mut keeper = self.woken.keeper();
        if !keeper.as_ref().is_some_and(|keeper| keeper.will_wake(cx.waker())) {
            *keeper = Some(cx.waker().clone());
        }
        drop(keeper);
        let mut bits = self.woken.bits.swap(0, AcqRel) & self.busy;
        while bits != 0 {
            let at = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if let Some(end) = self.poll_slot(at) {
                ended(end);
            }
        }
    }

    fn poll_slot(&mut self, at: usize) -> Option<Ended<T, C>> {
        let slot = self.slots.get_mut(at)?;
        let request = slot.request.as_mut().as_pin_mut()?;
        let Poll::Ready(result) = request.poll(&mut Context::from_waker(&slot.bell)) else { return None };
        slot.request.as_mut().set(None);
        self.busy &= !(1 << at);
        slot.about.take().map(|about| (about, result))
    }
}

//! What is around a child: it polls the child's context, catches its panics, and carries out what the
//! supervisor decides.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{self, Poll},
};

use actix::{
    ActorContext, ActorFutureExt, Addr, AsyncContext, Context,
    dev::{ContextFut, channel::AddressReceiver},
    fut,
};
use tokio::sync::mpsc;

use super::{
    Child,
    orders::{self, Order},
    panic,
    watchdog::Pulse,
};

/// What the supervisor is told.
pub(super) enum Report {
    /// A child panicked, and waits for an order.
    Panicked { number: usize, panic: String },
    /// A child has stopped.
    Ended { number: usize },
    /// A child was dropped together with its arbiter.
    Vanished { number: usize, name: &'static str },
    /// A task panicked.
    TaskPanicked { task: &'static str, panic: String },
}

pub(super) struct Shell<A: Child, F> {
    context: ContextFut<A, Context<A>>,
    factory: Rc<RefCell<F>>,
    /// Without an address left a context refuses to restart.
    _addr: Addr<A>,
    orders: orders::Inbox,
    pulse: Option<Arc<Pulse>>,
    post: Post,
}

/// Reports; also when it is dropped before its time.
struct Post {
    number: usize,
    name: &'static str,
    reports: mpsc::UnboundedSender<Report>,
    done: bool,
}

impl Drop for Post {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.reports.send(Report::Vanished { number: self.number, name: self.name });
        }
    }
}

enum Heard {
    Order(Order),
    Panic(String),
    End,
}

impl<A: Child, F: FnMut() -> A + 'static> Shell<A, F> {
    pub(super) fn new(
        (number, name): (usize, &'static str),
        receiver: AddressReceiver<A>,
        addr: Addr<A>,
        mut factory: F,
        orders: orders::Inbox,
        reports: mpsc::UnboundedSender<Report>,
        pulse: Option<Arc<Pulse>>,
    ) -> Self {
        let first = factory();
        let mut context = Context::with_receiver(receiver).into_future(first);
        context.ctx().wait(fut::ready(()).map(|(), act: &mut A, ctx| act.boot(ctx)));
        let post = Post { number, name, reports, done: false };
        Self { context, factory: Rc::new(RefCell::new(factory)), _addr: addr, orders, pulse, post }
    }

    #[expect(clippy::manual_async_fn, reason = "the future of that would have room for the shell twice")]
    pub(super) fn run(mut self) -> impl Future<Output = ()> {
        async move {
            let mut down = false;
            loop {
                let heard = poll_fn(|cx| self.poll(down, cx)).await;
                match heard {
                    Heard::Order(Order::Restart) => {
                        self.restart();
                        down = false;
                    }
                    Heard::Order(Order::Stop) => {
                        self.stop().await;
                        return;
                    }
                    Heard::Panic(panic) => {
                        down = true;
                        let _ = self.post.reports.send(Report::Panicked { number: self.post.number, panic });
                    }
                    Heard::End => {
                        self.end();
                        return;
                    }
                }
            }
        }
    }

    fn poll(&mut self, down: bool, cx: &mut task::Context<'_>) -> Poll<Heard> {
        if let Poll::Ready(order) = self.orders.poll(cx.waker()) {
            return Poll::Ready(Heard::Order(order));
        }
        // A child that is down keeps its mailbox, and is not polled.
        if down {
            return Poll::Pending;
        }
        if let Some(pulse) = &self.pulse {
            pulse.enter(self.post.name);
        }
        let polled = panic::catch(|| Pin::new(&mut self.context).poll(cx));
        if let Some(pulse) = &self.pulse {
            pulse.leave();
        }
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Heard::End),
            Err(panic) => Poll::Ready(Heard::Panic(panic)),
        }
    }

    /// Puts a fresh instance into the context, before its next message. The factory runs inside the context,
    /// so that its panic counts as the child's.
    fn restart(&mut self) {
        let context = &mut self.context;
        // What the old instance had spawned is dropped here, and may panic once more.
        let _ = panic::catch(|| context.restart());
        let factory = self.factory.clone();
        self.context.ctx().wait(fut::ready(()).map(move |(), act: &mut A, ctx| {
            *act = (factory.borrow_mut())();
            act.boot(ctx);
        }));
    }

    /// Lets the child stop in an ordinary poll, so that its hooks run while nothing unwinds.
    async fn stop(&mut self) {
        let context = &mut self.context;
        context.ctx().stop();
        let stopped = poll_fn(|cx| match panic::catch(|| Pin::new(&mut *context).poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        });
        // Hooks of a user's actor may wait; not for ever. Apart, since until then nobody needs the room.
        let _ = Box::pin(tokio::time::timeout(std::time::Duration::from_secs(1), stopped)).await;
        self.context.ctx().terminate();
        self.end();
    }

    fn end(&mut self) {
        self.post.done = true;
        let _ = self.post.reports.send(Report::Ended { number: self.post.number });
    }
}

//! A supervisor that restarts actors which panic.
//!
//! actix's own `Supervisor` restarts an actor that stops itself; one that panics is gone, and with it each
//! message in its mailbox. This one owns each child's context, catches the panic, and puts a fresh instance
//! into the same place: mailbox, [`Addr`] and [`Recipient`](actix::Recipient) survive. What is lost is the
//! message whose handler panicked, whose asker gets an error, and what the old instance had spawned.
//!
//! ```text
//!            panic                       verdict of the ladder
//!   shell ───────────► Supervisor task ─────────────────────────► shell: fresh instance, boot
//!   (one per child,        │  gives up, is stopped, or panics itself
//!    polls its context)    └─────────────────────────────────────► all shells: stop
//! ```
//!
//! Two rules for a child, which actix sets:
//! - Start timers, streams and futures in [`Child::boot`], not in `Actor::started`: after a restart actix may
//!   cancel what `started` has spawned.
//! - Spawn through the context, or with [`Supervisor::spawn`]; a panic in a bare `actix_rt::spawn`, or in a
//!   `ResponseFuture`, is nobody's.
//!
//! ```
//! use actix::prelude::*;
//! use actix_memberlist::supervisor::{Child, RestartPolicy, Supervisor};
//!
//! struct Divider;
//! impl Actor for Divider { type Context = Context<Self>; }
//! impl actix::Supervised for Divider {}
//! impl Child for Divider {}
//!
//! #[derive(Message)]
//! #[rtype(result = "u32")]
//! struct Divide(u32, u32);
//! impl Handler<Divide> for Divider {
//!     type Result = u32;
//!     fn handle(&mut self, m: Divide, _: &mut Context<Self>) -> u32 { m.0 / m.1 }
//! }
//!
//! # actix::System::new().block_on(async {
//! let supervisor = Supervisor::start(RestartPolicy::default(), |event| println!("{event:?}"));
//! let divider = supervisor.supervise("divider", 16, || Divider);
//! assert!(divider.send(Divide(1, 0)).await.is_err());
//! assert_eq!(divider.send(Divide(6, 3)).await.unwrap(), 2);
//! supervisor.stop().await;
//! # });
//! ```

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix::{Actor, Addr, Context, dev::channel};
pub use memberlist_protocol::restart::RestartPolicy;
use memberlist_protocol::restart::{Ladder, Record, Verdict};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

mod orders;
mod panic;
mod shell;
pub(crate) mod watchdog;

pub(crate) use panic::catch;

use orders::{Desk, Order};
use shell::{Report, Shell};
use watchdog::Pulse;

/// An actor that can be supervised.
pub trait Child: actix::Supervised + Actor<Context = Context<Self>> {
    /// Runs first in each instance, before any message. Use it in place of `Actor::started`.
    fn boot(&mut self, ctx: &mut Context<Self>) {
        let _ = ctx;
    }
}

/// What a supervisor tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A child panicked, and runs again.
    Restarted {
        /// Its name.
        actor: &'static str,
        /// The panic's message and place.
        panic: String,
        /// How many panics of it there have been.
        nth: u32,
    },
    /// All children were restarted, because delayed restarts came too often.
    AllRestarted,
    /// A task panicked. It does not run again.
    TaskPanicked {
        /// Its name.
        task: &'static str,
        /// The panic's message and place.
        panic: String,
    },
    /// The supervisor restarts nothing any more, and stops all children.
    GaveUp {
        /// Whose panic was the last.
        actor: &'static str,
        /// Its message and place.
        panic: String,
    },
}

/// How a supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// A child panicked more often than the policy allows.
    GaveUp {
        /// Which.
        actor: &'static str,
    },
    /// The supervisor itself panicked, in its owner's code. The children are stopped, so that nobody runs
    /// unsupervised.
    Panicked(String),
    /// The arbiter that it lived on has stopped.
    ArbiterGone,
}

/// A handle on a supervisor. Its children stop when it is stopped, not when handles are dropped.
#[derive(Clone)]
pub struct Supervisor {
    commands: mpsc::UnboundedSender<Command>,
    reports: mpsc::UnboundedSender<Report>,
    ended: watch::Receiver<Option<Ended>>,
    pulse: Option<Arc<Pulse>>,
    children: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("ended", &*self.ended.borrow()).finish_non_exhaustive()
    }
}

enum Command {
    Add { number: usize, name: &'static str, orders: Desk },
    Stop,
}

impl Supervisor {
    /// Starts a supervisor on the current arbiter. `observer` hears of each event, on that arbiter; if it
    /// panics, everything stops.
    pub fn start(policy: RestartPolicy, observer: impl FnMut(Event) + 'static) -> Self {
        Self::with_pulse(policy, observer, None)
    }

    /// With a pulse that the watchdog looks at.
    pub(crate) fn with_pulse(
        policy: RestartPolicy,
        observer: impl FnMut(Event) + 'static,
        pulse: Option<Arc<Pulse>>,
    ) -> Self {
        panic::note_places();
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (reports, report_queue) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        let mut keeper = Keeper {
            ladder: Ladder::new(policy),
            children: Vec::new(),
            observer: Box::new(observer),
            commands: command_queue,
            reports: report_queue,
        };
        spawn(async move {
            let mut last_word = LastWord(Some(end));
            let outcome = CatchPanic(Box::pin(keeper.run())).await.unwrap_or_else(Ended::Panicked);
            drop(keeper);
            last_word.say(outcome);
        });
        Self { commands, reports, ended, pulse, children: Arc::default() }
    }

    /// Starts a child on the current arbiter, with room for `capacity` messages in its mailbox (0 = no
    /// limit). It runs until it stops itself or the supervisor stops it. `factory` makes the first instance, here, and each later one in place of one that panicked.
    /// What is to survive a panic lives outside of the actor, in what `factory` captures.
    pub fn supervise<A: Child>(
        &self,
        name: &'static str,
        capacity: usize,
        factory: impl FnMut() -> A + 'static,
    ) -> Addr<A> {
        let number = self.children.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel::channel(capacity);
        let (desk, orders) = Desk::new();
        let addr = Addr::new(sender);
        let reports = self.reports.clone();
        let shell =
            Shell::new((number, name), receiver, addr.clone(), factory, orders, reports, self.pulse.clone());
        // Commands are handled before reports, so the child is known before its first panic.
        let _ = self.commands.send(Command::Add { number, name, orders: desk });
        spawn(shell.run());
        addr
    }

    /// Runs a task on the current arbiter. It is not restarted, but its panic is an event.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let reports = self.reports.clone();
        spawn(async move {
            if let Err(panic) = CatchPanic(Box::pin(task)).await {
                let _ = reports.send(Report::TaskPanicked { task: name, panic });
            }
        });
    }

    /// Stops the children, the last one first, and waits until they have stopped.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        self.ended().await;
    }

    /// Waits for the supervisor's end, and says how it came.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ended::ArbiterGone),
            Err(_) => Ended::ArbiterGone,
        }
    }
}

/// Says how it ended, also when the arbiter drops the task.
struct LastWord(Option<watch::Sender<Option<Ended>>>);

impl LastWord {
    fn say(&mut self, outcome: Ended) {
        if let Some(end) = self.0.take() {
            end.send_replace(Some(outcome));
        }
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        self.say(Ended::ArbiterGone);
    }
}

struct Slot {
    number: usize,
    name: &'static str,
    orders: Desk,
    record: Record,
    panics: u32,
    /// When it runs again, while it is paused.
    resumes: Option<(Instant, String)>,
    running: bool,
}

/// The supervisor's own task.
struct Keeper {
    ladder: Ladder,
    children: Vec<Slot>,
    observer: Box<dyn FnMut(Event)>,
    commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Keeper {
    async fn run(&mut self) -> Ended {
        loop {
            let resume = self.next_resume();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Add { number, name, orders }) => self.add(number, name, orders),
                    Some(Command::Stop) | None => {
                        self.stop_all().await;
                        return Ended::Stopped;
                    }
                },
                Some(report) = self.reports.recv() => {
                    if let Some(actor) = self.heed(report) {
                        self.stop_all().await;
                        return Ended::GaveUp { actor };
                    }
                }
                () = sleep_until(resume), if resume.is_some() => self.resume_due(),
            }
        }
    }

    fn add(&mut self, number: usize, name: &'static str, orders: Desk) {
        self.children.push(Slot {
            number,
            name,
            orders,
            record: Record::default(),
            panics: 0,
            resumes: None,
            running: true,
        });
    }

    fn slot(&mut self, number: usize) -> Option<&mut Slot> {
        self.children.iter_mut().find(|slot| slot.number == number)
    }

    /// Returns the actor whose panic was one too many.
    fn heed(&mut self, report: Report) -> Option<&'static str> {
        match report {
            Report::TaskPanicked { task, panic } => (self.observer)(Event::TaskPanicked { task, panic }),
            Report::Ended { number } => self.children.retain(|slot| slot.number != number),
            Report::Vanished { number, name } => {
                if self.slot(number).is_none_or(|slot| slot.running) {
                    (self.observer)(Event::GaveUp { actor: name, panic: "its arbiter is gone".into() });
                    return Some(name);
                }
            }
            Report::Panicked { number, panic } => {
                let slot = self.children.iter_mut().find(|slot| slot.number == number)?;
                slot.panics += 1;
                let name = slot.name;
                match self.ladder.panicked(&mut slot.record, Instant::now().into_std()) {
                    Verdict::Now => self.restart(number, panic),
                    Verdict::After(delay) => slot.resumes = Some((Instant::now() + delay, panic)),
                    Verdict::All => {
                        let event = Event::Restarted { actor: name, panic, nth: slot.panics };
                        for slot in &mut self.children {
                            slot.resumes = None;
                            slot.orders.give(Order::Restart);
                        }
                        (self.observer)(event);
                        (self.observer)(Event::AllRestarted);
                    }
                    Verdict::GiveUp => {
                        (self.observer)(Event::GaveUp { actor: name, panic });
                        return Some(name);
                    }
                }
            }
        }
        None
    }

    fn restart(&mut self, number: usize, panic: String) {
        let Some(slot) = self.slot(number) else { return };
        slot.resumes = None;
        slot.orders.give(Order::Restart);
        let event = Event::Restarted { actor: slot.name, panic, nth: slot.panics };
        (self.observer)(event);
    }

    fn next_resume(&self) -> Option<Instant> {
        self.children.iter().filter_map(|slot| slot.resumes.as_ref().map(|(at, _)| *at)).min()
    }

    fn resume_due(&mut self) {
        let now = Instant::now();
        for at in 0..self.children.len() {
            let slot = &mut self.children[at];
            if let Some((_, panic)) = slot.resumes.take_if(|(at, _)| *at <= now) {
                let number = slot.number;
                self.restart(number, panic);
            }
        }
    }

    /// One after the other, so that each one's last messages still find the ones that were there before it.
    async fn stop_all(&mut self) {
        for at in (0..self.children.len()).rev() {
            self.children[at].orders.give(Order::Stop);
            while self.children[at].running {
                match self.reports.recv().await {
                    Some(Report::Ended { number } | Report::Vanished { number, .. }) => {
                        if let Some(slot) = self.slot(number) {
                            slot.running = false;
                        }
                    }
                    // Whoever panics while everything stops has stopped.
                    Some(Report::Panicked { number, .. }) => {
                        if let Some(slot) = self.slot(number) {
                            slot.orders.give(Order::Stop);
                        }
                    }
                    Some(Report::TaskPanicked { .. }) => {}
                    None => return,
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A future whose panic is its output.
pub(crate) struct CatchPanic<F>(pub(crate) F);

impl<F: Future + Unpin> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        use std::task::Poll;
        match panic::catch(|| std::pin::Pin::new(&mut self.0).poll(cx)) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

/// The one place where a task is spawned bare: each that comes through here catches its own panics.
#[expect(clippy::disallowed_methods, reason = "this is what the others are to use")]
fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(actix_rt::spawn(task));
}

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use actix::{Actor, Addr, Arbiter, AsyncContext, Context, Handler, MailboxError, Message, System};

use super::*;

/// Runs on a paused clock.
fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    System::with_tokio_rt(runtime).block_on(test)
}

#[derive(Default, Clone)]
struct Kept {
    seen: Rc<RefCell<Vec<u32>>>,
    boots: Rc<Cell<u32>>,
    panic_in_boot: Rc<Cell<bool>>,
    stopped: Rc<RefCell<Vec<&'static str>>>,
}

struct Worker {
    name: &'static str,
    kept: Kept,
}

impl Actor for Worker {
    type Context = Context<Self>;
    fn stopped(&mut self, _: &mut Context<Self>) {
        self.kept.stopped.borrow_mut().push(self.name);
    }
}
impl actix::Supervised for Worker {}
impl Child for Worker {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        self.kept.boots.set(self.kept.boots.get() + 1);
        assert!(!self.kept.panic_in_boot.replace(false), "in boot");
        ctx.run_interval(Duration::from_secs(3600), |_, _| {});
    }
}

#[derive(Message)]
#[rtype(result = "u32")]
enum Job {
    Note(u32),
    Panic,
    PanicLater,
    CancelAndPanic,
}

impl Handler<Job> for Worker {
    type Result = u32;
    fn handle(&mut self, job: Job, ctx: &mut Context<Self>) -> u32 {
        match job {
            Job::Note(n) => self.kept.seen.borrow_mut().push(n),
            Job::Panic => panic!("as told"),
            Job::PanicLater => {
                ctx.run_later(Duration::from_millis(1), |_, _| panic!("in a timer"));
            }
            Job::CancelAndPanic => {
                let handle = ctx.run_later(Duration::from_secs(1), |_, _| {});
                ctx.cancel_future(handle);
                panic!("after a cancel");
            }
        }
        0
    }
}

struct Bench {
    supervisor: Supervisor,
    kept: Kept,
    events: Rc<RefCell<Vec<Event>>>,
}

impl Bench {
    fn new(policy: RestartPolicy) -> Self {
        let events: Rc<RefCell<Vec<Event>>> = Rc::default();
        let log = events.clone();
        let supervisor = Supervisor::start(policy, move |event| log.borrow_mut().push(event));
        Self { supervisor, kept: Kept::default(), events }
    }

    fn worker(&self, name: &'static str) -> Addr<Worker> {
        let kept = self.kept.clone();
        self.supervisor.supervise(name, 0, move || Worker { name, kept: kept.clone() })
    }

    fn restarts(&self) -> usize {
        self.events.borrow().iter().filter(|event| matches!(event, Event::Restarted { .. })).count()
    }
}

#[test]
fn a_panic_loses_its_message_alone_and_the_address_survives() {
    paused(async {
        let bench = Bench::new(RestartPolicy::default());
        let worker = bench.worker("worker");
        worker.do_send(Job::Note(1));
        let lost = worker.send(Job::Panic);
        worker.do_send(Job::Note(2));
        assert_eq!(lost.await, Err(MailboxError::Closed), "the asker gets an error");
        worker.send(Job::Note(3)).await.unwrap();
        assert_eq!(*bench.kept.seen.borrow(), [1, 2, 3]);
        assert_eq!(bench.kept.boots.get(), 2);
        let events = bench.events.borrow();
        let [Event::Restarted { actor: "worker", panic, nth: 1 }] = &events[..] else { panic!("{events:?}") };
        assert!(panic.contains("as told") && panic.contains("tests.rs"), "{panic}");
    });
}

#[test]
fn a_thousand_panics_among_messages_lose_nothing_else_and_keep_the_order() {
    paused(async {
        let policy = RestartPolicy { immediate: u32::MAX, ..RestartPolicy::default() };
        let bench = Bench::new(policy);
        let worker = bench.worker("worker");
        for n in 0..1000 {
            worker.do_send(Job::Note(n));
            worker.do_send(Job::Panic);
        }
        worker.send(Job::Note(1000)).await.unwrap();
        assert!(bench.kept.seen.borrow().iter().copied().eq(0..=1000));
        assert_eq!(bench.restarts(), 1000);
    });
}

#[test]
fn a_panic_in_a_timer_or_in_boot_is_caught_too() {
    paused(async {
        let bench = Bench::new(RestartPolicy::default());
        let worker = bench.worker("worker");
        worker.send(Job::PanicLater).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(bench.restarts(), 1);
        bench.kept.panic_in_boot.set(true);
        worker.do_send(Job::Panic);
        worker.send(Job::Note(1)).await.unwrap();
        assert_eq!(bench.restarts(), 3);
    });
}

/// actix keeps the list of cancelled futures over a restart, and numbers the new ones from the start again.
#[test]
fn what_boot_starts_is_not_cancelled_by_the_instance_before() {
    struct Ticker(Rc<Cell<u32>>);
    impl Actor for Ticker {
        type Context = Context<Self>;
    }
    impl actix::Supervised for Ticker {}
    impl Child for Ticker {
        fn boot(&mut self, ctx: &mut Context<Self>) {
            for _ in 0..8 {
                ctx.run_interval(Duration::from_millis(10), |ticker, _| ticker.0.set(ticker.0.get() + 1));
            }
        }
    }
    impl Handler<Job> for Ticker {
        type Result = u32;
        fn handle(&mut self, _: Job, ctx: &mut Context<Self>) -> u32 {
            for _ in 0..8 {
                let handle = ctx.run_later(Duration::from_secs(9), |_, _| {});
                ctx.cancel_future(handle);
            }
            panic!("after some cancels");
        }
    }
    paused(async {
        let bench = Bench::new(RestartPolicy::default());
        let ticks: Rc<Cell<u32>> = Rc::default();
        let inner = ticks.clone();
        let ticker = bench.supervisor.supervise("ticker", 0, move || Ticker(inner.clone()));
        assert!(ticker.send(Job::CancelAndPanic).await.is_err());
        ticks.set(0);
        tokio::time::sleep(Duration::from_millis(105)).await;
        assert!(ticks.get() >= 80, "{} ticks", ticks.get());
    });
}

#[test]
fn the_first_three_panics_in_a_second_restart_at_once_and_the_fourth_after_a_pause() {
    paused(async {
        let bench = Bench::new(RestartPolicy::default());
        let worker = bench.worker("worker");
        let start = Instant::now();
        for _ in 0..3 {
            assert!(worker.send(Job::Panic).await.is_err());
        }
        worker.send(Job::Note(1)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(worker.send(Job::Panic).await.is_err());
        worker.send(Job::Note(2)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(10), "messages wait for the pause to end");
    });
}

#[test]
fn the_pause_doubles_up_to_its_limit() {
    paused(async {
        let policy = RestartPolicy { immediate: 0, delayed_before_all: 1000, ..RestartPolicy::default() };
        let bench = Bench::new(policy);
        let worker = bench.worker("worker");
        for millis in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            let start = Instant::now();
            assert!(worker.send(Job::Panic).await.is_err());
            worker.send(Job::Note(1)).await.unwrap();
            assert_eq!(start.elapsed(), Duration::from_millis(millis));
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let start = Instant::now();
        assert!(worker.send(Job::Panic).await.is_err());
        worker.send(Job::Note(1)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(10), "forgotten after ten quiet seconds");
    });
}

#[test]
fn too_many_pauses_restart_all_in_place_and_once_more_gives_up() {
    paused(async {
        let policy = RestartPolicy { immediate: 0, ..RestartPolicy::default() };
        let bench = Bench::new(policy);
        let (worker, other) = (bench.worker("worker"), bench.worker("other"));
        other.send(Job::Note(0)).await.unwrap();
        for _ in 0..10 {
            assert!(worker.send(Job::Panic).await.is_err());
            worker.send(Job::Note(1)).await.unwrap();
        }
        let boots = bench.kept.boots.get();
        assert!(worker.send(Job::Panic).await.is_err());
        worker.send(Job::Note(2)).await.unwrap();
        other.send(Job::Note(3)).await.unwrap();
        assert_eq!(bench.kept.boots.get(), boots + 2, "both were restarted");
        assert!(bench.events.borrow().contains(&Event::AllRestarted));
        for _ in 0..10 {
            assert!(worker.send(Job::Panic).await.is_err());
            worker.send(Job::Note(4)).await.unwrap();
        }
        assert!(worker.send(Job::Panic).await.is_err());
        assert_eq!(bench.supervisor.ended().await, Ended::GaveUp { actor: "worker" });
        assert!(matches!(bench.events.borrow().last(), Some(Event::GaveUp { actor: "worker", .. })));
        assert!(other.send(Job::Note(5)).await.is_err(), "nobody runs on");
    });
}

#[test]
fn without_restarts_the_first_panic_ends_everything() {
    paused(async {
        let bench = Bench::new(RestartPolicy::never());
        let worker = bench.worker("worker");
        assert!(worker.send(Job::Panic).await.is_err());
        assert_eq!(bench.supervisor.ended().await, Ended::GaveUp { actor: "worker" });
        assert!(worker.send(Job::Note(1)).await.is_err());
    });
}

#[test]
fn a_panic_in_the_supervisor_itself_stops_everybody() {
    paused(async {
        let supervisor = Supervisor::start(RestartPolicy::default(), |event| panic!("observer of {event:?}"));
        let kept = Kept::default();
        let inner = kept.clone();
        let worker =
            supervisor.supervise("worker", 0, move || Worker { name: "worker", kept: inner.clone() });
        assert!(worker.send(Job::Panic).await.is_err());
        let Ended::Panicked(panic) = supervisor.ended().await else { panic!() };
        assert!(panic.contains("observer of"), "{panic}");
        // The fresh instance may still take what had been queued before the news came.
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(worker.send(Job::Note(1)).await.is_err());
        assert_eq!(*kept.stopped.borrow(), ["worker"]);
    });
}

#[test]
fn a_stop_ends_the_last_child_first_and_runs_its_hooks() {
    paused(async {
        let bench = Bench::new(RestartPolicy::default());
        let first = bench.worker("first");
        let _second = bench.worker("second");
        bench.supervisor.stop().await;
        assert_eq!(bench.supervisor.ended().await, Ended::Stopped);
        assert_eq!(*bench.kept.stopped.borrow(), ["second", "first"]);
        assert!(first.send(Job::Note(1)).await.is_err());
    });
}

#[test]
fn a_task_that_panics_is_an_event_and_disturbs_nobody() {
    paused(async {
        let bench = Bench::new(RestartPolicy::default());
        let worker = bench.worker("worker");
        bench.supervisor.spawn("task", async { panic!("in a task") });
        tokio::time::sleep(Duration::from_millis(1)).await;
        worker.send(Job::Note(1)).await.unwrap();
        assert!(matches!(&bench.events.borrow()[..], [Event::TaskPanicked { task: "task", .. }]));
    });
}

#[test]
fn when_its_arbiter_goes_away_that_is_known() {
    System::new().block_on(async {
        let arbiter = Arbiter::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        arbiter.spawn_fn(move || {
            let bench = Bench::new(RestartPolicy::default());
            let worker = bench.worker("worker");
            let _ = sender.send((bench.supervisor.clone(), worker));
        });
        let (supervisor, worker) = receiver.await.unwrap();
        arbiter.stop();
        assert_eq!(supervisor.ended().await, Ended::ArbiterGone);
        assert!(worker.send(Job::Note(1)).await.is_err());
        arbiter.join().unwrap();
    });
}

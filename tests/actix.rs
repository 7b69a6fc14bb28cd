//! What the library counts on in actix: another version that does it another way is noticed here.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{
    Actor, ActorContext, Addr, Arbiter, AsyncContext, Context, Handler, MailboxError, Message, Recipient,
    System, WrapFuture, dev::SendError,
};
use futures_util::{FutureExt, future::join_all};
use memberlist_tests::paused;
use tokio::time::{sleep, timeout};

#[derive(Message)]
#[rtype(result = "u32")]
struct Number(u32);

/// Keeps the numbers that it hears. 1,000 makes it stop, 1,001 panic.
#[derive(Default)]
struct Ear {
    heard: Rc<RefCell<Vec<u32>>>,
    pause: Duration,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<Number> for Ear {
    type Result = u32;
    fn handle(&mut self, Number(n): Number, ctx: &mut Context<Self>) -> u32 {
        self.heard.borrow_mut().push(n);
        match n {
            1000 => ctx.stop(),
            1001 => panic!("asked to"),
            _ if !self.pause.is_zero() => ctx.wait(sleep(self.pause).into_actor(self)),
            _ => {}
        }
        n
    }
}

fn ear(pause: Duration) -> (Rc<RefCell<Vec<u32>>>, Addr<Ear>) {
    let ear = Ear { pause, ..Ear::default() };
    (ear.heard.clone(), ear.start())
}

async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

#[test]
fn do_send_knows_no_capacity() {
    paused(async {
        let (heard, addr) = ear(Duration::ZERO);
        let to: Recipient<Number> = addr.recipient();
        (0..5000).for_each(|_| to.do_send(Number(1)));
        settle().await;
        assert_eq!(heard.borrow().len(), 5000);
    });
}

#[test]
fn try_send_fills_the_mailbox_of_sixteen_and_has_no_answer() {
    paused(async {
        let (heard, addr) = ear(Duration::ZERO);
        let to: Recipient<Number> = addr.recipient();
        let taken = |n| matches!(to.try_send(Number(n)), Ok(()));
        assert_eq!((0..500).filter(|n| taken(*n)).count(), 16);
        assert!(matches!(to.try_send(Number(1)), Err(SendError::Full(_))));
        settle().await;
        assert_eq!(heard.borrow().len(), 16);
    });
}

#[test]
fn a_request_that_finds_the_mailbox_full_gets_into_it_when_it_is_first_polled() {
    paused(async {
        let (heard, addr) = ear(Duration::ZERO);
        let to: Recipient<Number> = addr.recipient();
        let mut polled = Vec::new();
        for n in 0..64 {
            let mut request = to.send(Number(n)).boxed_local();
            assert!((&mut request).now_or_never().is_none());
            polled.push(request);
        }
        let unpolled: Vec<_> = (64..70).map(|n| to.send(Number(n))).collect();
        settle().await;
        assert_eq!(*heard.borrow(), (0..64).collect::<Vec<_>>(), "in order, whatever the capacity");
        // It is not woken when there is room: whoever does not poll it waits for ever.
        assert_eq!(join_all(unpolled).await.len(), 6);
        assert_eq!(heard.borrow().len(), 70);
    });
}

#[test]
fn a_request_that_is_dropped_before_it_is_handled_is_not_handled() {
    paused(async {
        let (heard, addr) = ear(Duration::from_secs(1));
        let to: Recipient<Number> = addr.recipient();
        let mut kept = Vec::new();
        for n in 0..5 {
            let mut request = to.send(Number(n)).boxed_local();
            assert!((&mut request).now_or_never().is_none());
            if n % 2 == 0 {
                kept.push(request);
            }
        }
        assert_eq!(join_all(kept).await, [Ok(0), Ok(2), Ok(4)]);
        assert_eq!(*heard.borrow(), [0, 2, 4]);
    });
}

#[test]
fn an_actor_that_stops_or_panics_is_not_connected_and_its_requests_are_closed() {
    paused(async {
        for end in [1000, 1001] {
            let (_, addr) = ear(Duration::from_secs(1));
            let to: Recipient<Number> = addr.recipient();
            assert!(to.connected());
            let fates = join_all([1, end, 2].map(|n| to.send(Number(n)))).await;
            assert_eq!((fates[0], fates[2]), (Ok(1), Err(MailboxError::Closed)));
            settle().await;
            assert!(!to.connected());
            assert_eq!(to.send(Number(3)).await, Err(MailboxError::Closed));
        }
    });
}

#[test]
fn a_recipient_keeps_its_actor_alive() {
    paused(async {
        let (heard, addr) = ear(Duration::ZERO);
        let to: Recipient<Number> = addr.recipient();
        sleep(Duration::from_secs(1)).await;
        assert_eq!((to.send(Number(1)).await, Rc::strong_count(&heard)), (Ok(1), 2));
        drop(to);
        settle().await;
        assert_eq!(Rc::strong_count(&heard), 1, "nobody can reach it");
    });
}

#[test]
fn an_actor_starts_in_an_arbiter_from_any_thread_and_not_otherwise() {
    // Two threads: in real time.
    System::new().block_on(async {
        let arbiter = Arbiter::new();
        let handle = arbiter.handle();
        let elsewhere = std::thread::spawn(move || {
            let bare = std::panic::catch_unwind(|| Ear::default().start());
            (bare.is_err(), Lone::start_in_arbiter(&handle, |_| Lone))
        });
        let (bare, lone) = elsewhere.join().expect("no panic gets out");
        assert!(bare);
        assert_eq!(timeout(Duration::from_secs(60), lone.send(Number(4))).await, Ok(Ok(5)));
        arbiter.stop();
        arbiter.join().expect("it ends");
    });
}

struct Lone;

impl Actor for Lone {
    type Context = Context<Self>;
}

impl Handler<Number> for Lone {
    type Result = u32;
    fn handle(&mut self, Number(n): Number, _: &mut Context<Self>) -> u32 {
        n + 1
    }
}

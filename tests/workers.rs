//! A node among the other threads of a program: the workers of a web server, and a system that stops.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use actix::{Actor, Arbiter, Context, Handler, Message, ResponseFuture, System};
use actix_memberlist::{AskError, Cluster, Config, NotSent, Peer, PeerMessage};
use serde::{Deserialize, Serialize};

/// As many as actix-web starts on a host of eight cores.
const WORKERS: u64 = 8;

const SOON: Duration = Duration::from_secs(30);

/// The answer is the double; 0 is never answered.
#[derive(Message, Serialize, Deserialize, Clone)]
#[rtype(result = "u64")]
struct Double(u64);

impl PeerMessage for Double {
    const KIND: &'static str = "double/1";
}

struct Calculator;

impl Actor for Calculator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1000);
    }
}

impl Handler<Double> for Calculator {
    type Result = ResponseFuture<u64>;
    fn handle(&mut self, Double(n): Double, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move { if n == 0 { std::future::pending().await } else { n * 2 } })
    }
}

async fn node(name: &str, arbiter: Option<Arbiter>) -> Cluster {
    let builder = Cluster::builder(name).config(Config::local()).bind(([127, 0, 0, 1], 0).into());
    let builder = match arbiter {
        Some(arbiter) => builder.arbiter(arbiter.handle()),
        None => builder,
    };
    builder.start().await.expect("it starts")
}

/// Two nodes, and the second one as the first one sees it.
async fn pair(arbiter: Option<Arbiter>) -> (Cluster, Cluster, Peer) {
    let (one, other) = (node("one", arbiter).await, node("other", None).await);
    let there = other.view().local().clone();
    one.join(&[&there.addr.to_string()]).await.expect("it is there");
    other.serve::<Double>(Calculator.start().recipient()).expect("it runs").detach();
    let peer = one.peer(&there.id).expect("it is there");
    (one, other, peer)
}

#[test]
fn eight_workers_use_one_handle_at_once() {
    System::new().block_on(async {
        let (one, other, peer) = pair(None).await;
        let (done, mut all) = tokio::sync::mpsc::unbounded_channel();
        let workers: Vec<_> = (0..WORKERS).map(|_| Arbiter::new()).collect();
        for (n, worker) in (1..).zip(&workers) {
            let (cluster, peer, done) = (one.clone(), peer.clone(), done.clone());
            worker.spawn(async move {
                for i in 0..200 {
                    let question = Double(n * 1000 + i);
                    assert_eq!(peer.ask(&question, SOON).await.expect("an answer"), question.0 * 2);
                    let sent = peer.send_wait(&question).await.expect("it is there");
                    assert_eq!(sent.await, Ok(()));
                    assert_eq!(cluster.view().alive_count(), 2);
                    assert_eq!(cluster.peers().len(), 1);
                }
                done.send(n).expect("somebody waits");
            });
        }
        let mut ended = Vec::new();
        while ended.len() < workers.len() {
            let next = tokio::time::timeout(SOON, all.recv()).await.expect("in time");
            ended.push(next.expect("each of them ends"));
        }
        ended.sort_unstable();
        assert_eq!(ended, (1..=WORKERS).collect::<Vec<_>>());
        assert_eq!(other.metrics().lanes["ordered"].received, WORKERS * 400);
        for node in [one, other] {
            assert!(node.metrics().restarts.values().all(|n| *n == 0));
            node.shutdown().await;
        }
        workers.iter().for_each(|worker| assert!(worker.stop()));
    });
}

/// Asks what is never answered, stops the system, and says what has become of the questions.
fn stopped_while_asking(own_arbiter: bool) -> Vec<Result<u64, AskError>> {
    let (tell, told) = mpsc::channel();
    let asker = System::new().block_on(async move {
        let arbiter = own_arbiter.then(Arbiter::new);
        let (one, other, peer) = pair(arbiter).await;
        // Not a thread of actix: it outlives the system.
        let asker = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async {
                let questions = (0..20).map(|_| peer.ask(&Double(0), Duration::from_secs(600)));
                let all = futures_util::future::join_all(questions);
                let started = Instant::now();
                tell.send(all.await).expect("somebody waits");
                assert!(started.elapsed() < SOON * 2);
            });
        });
        // They are on their way, or there.
        let deadline = Instant::now() + SOON;
        while other.metrics().lanes["ordered"].received < 20 {
            assert!(Instant::now() < deadline, "the questions arrive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        System::current().stop();
        drop(one);
        asker
    });
    let all = told.recv_timeout(SOON * 2).expect("no question waits for ever");
    asker.join().expect("it ends");
    all
}

#[test]
fn a_system_that_stops_leaves_no_question_without_an_outcome() {
    for own_arbiter in [false, true] {
        let all = stopped_while_asking(own_arbiter);
        assert_eq!(all.len(), 20);
        for outcome in all {
            let fits = matches!(outcome, Err(AskError::NotSent(NotSent::Unknown(_)) | AskError::HandlerGone));
            assert!(fits, "{outcome:?}");
        }
    }
}

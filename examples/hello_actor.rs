//! A plain actix app in which a node is one more actor: `cargo run --example hello_actor`.

use std::{error::Error, time::Duration};

use actix::prelude::*;
use actix_memberlist::{
    Cluster, Config, Join, Leave, MemberEvent, Members, Node, Replay, SetMeta, Shutdown, Subscribe,
};
use tokio::sync::oneshot;

/// An actor of our own, which tells what it hears of the members.
struct Greeter {
    bob: Addr<Node>,
    done: Option<oneshot::Sender<()>>,
}

impl Actor for Greeter {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Greeter {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        match event {
            MemberEvent::Joined { member, .. } => println!("hello, {}", member.name()),
            MemberEvent::Updated { member, .. } => {
                println!("{} says {:?}", member.name(), String::from_utf8_lossy(&member.meta));
                self.bob.do_send(Leave { within: Duration::from_secs(5) });
            }
            MemberEvent::Left { member, .. } => {
                println!("goodbye, {}", member.name());
                self.done.take().map(|done| done.send(()));
            }
            other => println!("{other:?}"),
        }
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let start =
        |name| Cluster::builder(name).config(Config::local()).bind(([127, 0, 0, 1], 0).into()).start();
    let (a, b) = (start("ann").await?, start("bob").await?);
    let (ann, bob) = (a.addr(), b.addr());

    let (done, gone) = oneshot::channel();
    let greeter = Greeter { bob: bob.clone(), done: Some(done) }.start();
    let _subscription = ann.send(Subscribe { to: greeter.recipient(), replay: Replay::None }).await??;

    let seed = ann.send(Members).await??.local().addr.to_string();
    bob.send(Join { seeds: vec![seed] }).await??;
    bob.send(SetMeta { meta: "good morning".into() }).await??;
    gone.await?;
    bob.send(Shutdown).await?;
    Ok(ann.send(Shutdown).await?)
}

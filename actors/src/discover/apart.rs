//! A source on a thread of its own: users' code, which may block, hang or panic.

use std::{io, pin::pin, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Discover, Seeds};
use crate::supervisor::{CatchPanic, catch};

/// Threads that a source's blocking calls may take, such as reads of files.
const BLOCKING: usize = 4;

/// Why a source gave no seeds.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Failed(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("it panicked: {0}")]
    Panicked(String),
    #[error("its thread has ended")]
    Gone,
}

pub(super) type Answer = Result<Vec<String>, Trouble>;

/// The node's end. When it is dropped, so is what is under way, and the thread ends.
pub(super) struct Apart(mpsc::Sender<oneshot::Sender<Answer>>);

impl Apart {
    /// Starts the thread. Each question may take `limit`.
    pub(super) fn start(source: Box<dyn Discover>, limit: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
        let (asks, asked) = mpsc::channel(1);
        let run = move || run(source, asked, runtime, limit);
        std::thread::Builder::new().name("seeds".into()).spawn(run)?;
        Ok(Self(asks))
    }

    pub(super) async fn ask(&self) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| Trouble::Gone)?;
        answer.await.unwrap_or(Err(Trouble::Gone))
    }
}

/// The thread.
fn run(
    mut source: Box<dyn Discover>,
    mut asked: mpsc::Receiver<oneshot::Sender<Answer>>,
    runtime: Runtime,
    limit: Duration,
) {
    let serve = async {
        while let Some(mut reply) = asked.recv().await {
            let answer = tokio::select! {
                biased;
                () = reply.closed() => continue,
                answer = timeout(limit, answer(&mut *source)) => answer,
            };
            let _ = reply.send(answer.unwrap_or(Err(Trouble::Late(limit))));
        }
    };
    // Whatever panics, also where it is dropped, ends the thread at most.
    let _ = catch(|| runtime.block_on(serve));
    let _ = catch(|| drop(source));
    // A blocking call that hangs is not waited for.
    runtime.shutdown_background();
}

async fn answer(source: &mut dyn Discover) -> Answer {
    let seeds = catch(|| source.seeds()).map_err(Trouble::Panicked)?;
    let answer = pin!(CatchPanic(Guarded(Some(seeds)))).await;
    Ok(answer.map_err(Trouble::Panicked)??)
}

/// A user's future. If its drop panics, that is the end of it.
struct Guarded<'a>(Option<Seeds<'a>>);

impl Future for Guarded<'_> {
    type Output = io::Result<Vec<String>>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        match &mut self.0 {
            Some(seeds) => seeds.as_mut().poll(cx),
            None => std::task::Poll::Pending,
        }
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        let seeds = self.0.take();
        let _ = catch(|| drop(seeds));
    }
}

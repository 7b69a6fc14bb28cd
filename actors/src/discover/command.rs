//! Seeds from a program.

use std::{ffi::OsString, io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};

use super::{Discover, Seeds, lines};

/// Bytes that a program may print: a thousand of the longest names.
const MAX_BYTES: usize = 512 << 10;

/// Bytes of its complaints that an error repeats.
const QUOTED: usize = 300;

/// What a program prints: one seed a line, comments after `#`, at most 512 KiB. It is run anew each time, with
/// an empty standard input, and must end with success. It is killed when it takes too long, and when the node
/// ends; what it has started itself is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromCommand {
    program: OsString,
    args: Vec<OsString>,
    within: Duration,
}

impl FromCommand {
    /// Runs `program`, found as the system finds programs, without a shell.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), args: Vec::new(), within: Duration::from_secs(10) }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Time limit, 10 s without it. What any source may take,
    /// [`Config::join_timeout`](crate::Config::join_timeout), holds besides.
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    async fn run(&self) -> io::Result<Vec<String>> {
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (text, complaint, status) =
                tokio::try_join!(at_most(stdout, MAX_BYTES), beginning(stderr), child.wait())?;
            if status.success() {
                return Ok(text);
            }
            let complaint: String = String::from_utf8_lossy(&complaint).trim().chars().take(QUOTED).collect();
            Err(io::Error::other(format!("it ended with {status}: {complaint}")))
        };
        let done = timeout(self.within, work).await;
        if !matches!(done, Ok(Ok(_))) {
            // One that has ended already cannot be killed, which is as well.
            let _ = child.kill().await;
        }
        let late =
            || io::Error::new(io::ErrorKind::TimedOut, format!("it took longer than {:?}", self.within));
        lines(done.map_err(|_| late())??)
    }
}

/// All that comes, if it is not too much.
async fn at_most(from: Option<impl AsyncRead + Unpin>, max: usize) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(from) = from {
        from.take(max as u64 + 1).read_to_end(&mut text).await?;
    }
    if text.len() > max {
        Err(io::Error::other(format!("it prints more than {max} bytes")))
    } else {
        Ok(text)
    }
}

/// The first that comes. The rest is taken as well, so that the program does not wait for a reader.
async fn beginning(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(QUOTED as u64).read_to_end(&mut text).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(text)
}

impl Discover for FromCommand {
    fn seeds(&mut self) -> Seeds<'_> {
        Box::pin(async move {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", self.program.to_string_lossy()))
            };
            self.run().await.map_err(named)
        })
    }
}

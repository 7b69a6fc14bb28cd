//! Where seeds come from while a node runs.
//!
//! A node that is told its seeds once is lost when they were not there yet, or have moved. So it can be given
//! *sources* of seeds, and asks them for as long as it runs: at the start; soon again as long as it is alone;
//! every [`Config::discover_interval`](crate::Config::discover_interval) once it has company, so that two
//! halves which lost each other meet again. It then joins those that are no members yet.
//!
//! ```
//! use actix_memberlist::{Cluster, Config, discover::{Discover, FromDns, FromFile, Seeds}};
//!
//! /// One's own: whatever can be asked for addresses.
//! struct Registry { entries: Vec<String> }
//!
//! impl Discover for Registry {
//!     fn seeds(&mut self) -> Seeds<'_> {
//!         Box::pin(async move { Ok(self.entries.clone()) })
//!     }
//! }
//!
//! # actix::System::new().block_on(async {
//! let node = Cluster::builder("a")
//!     .config(Config::local())
//!     .bind("127.0.0.1:0".parse()?)
//!     .seeds(["127.0.0.1:7946", "_gossip._tcp.shop.example"])
//!     .seeds(FromDns::new("shop.example:7946"))
//!     .seeds(FromFile::new("/etc/shop/seeds"))
//!     .seeds(Registry { entries: vec!["127.0.0.1:7947".into()] })
//!     .start()
//!     .await?;
//! node.shutdown().await;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! A source other than a fixed list or a name runs on a thread of its own, so one that blocks or panics harms
//! neither the node nor another source. An answer that takes longer than
//! [`Config::join_timeout`](crate::Config::join_timeout) is given up; one that panics is asked again. With
//! the node ends the future that is under way, and the thread, unless something blocks it: then as soon as
//! that lets go.

use std::{future::Future, io, pin::Pin};

mod apart;
mod command;
mod file;
mod search;

pub use command::FromCommand;
pub use file::FromFile;
pub(crate) use search::{Running, Source, search};

/// Sources that one node may have.
pub(crate) const MAX_SOURCES: usize = 16;

/// Seeds that are taken from one answer; the rest is counted as `too_many_seeds`.
pub(crate) const MAX_SEEDS: usize = 1024;

/// Seeds on their way.
pub type Seeds<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<String>>> + Send + 'a>>;

/// A source of seeds, in the forms that [`Cluster::join`](crate::Cluster::join) takes.
pub trait Discover: Send + 'static {
    /// The seeds as they are now; at most 1,024 are used. It is asked again and again, one question at a time,
    /// on a thread of its own that a tokio runtime runs on. What is under way is dropped when it takes too
    /// long, and when the node ends.
    ///
    /// # Errors
    /// Whatever went wrong: it is logged, and the source asked again later.
    fn seeds(&mut self) -> Seeds<'_>;

    /// The seeds if they never change: asked once, when the builder is given the source, and then the source
    /// needs no thread. Names among them are resolved anew each time all the same.
    fn fixed(&self) -> Option<Vec<String>> {
        None
    }
}

fn owned<S: AsRef<str>>(seeds: &[S]) -> Vec<String> {
    seeds.iter().map(|seed| seed.as_ref().to_owned()).collect()
}

/// A list is a source that never changes.
macro_rules! fixed_list {
    ($([$($generics:tt)*] $list:ty),* $(,)?) => { $(
        impl<$($generics)*> Discover for $list {
            fn seeds(&mut self) -> Seeds<'_> {
                Box::pin(std::future::ready(Ok(owned(&self[..]))))
            }

            fn fixed(&self) -> Option<Vec<String>> {
                Some(owned(&self[..]))
            }
        }
    )* };
}

fixed_list!([] Vec<String>, [] Vec<&'static str>, [] &'static [&'static str], [const N: usize] [String; N], [const N: usize] [&'static str; N]);

/// A name that the node's [`Resolver`](crate::Resolver) is asked for each time: `host`, `host:port`, or
/// `_service._proto.domain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromDns([String; 1]);

impl FromDns {
    /// The seeds are the addresses of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self([name.into()])
    }
}

impl Discover for FromDns {
    fn seeds(&mut self) -> Seeds<'_> {
        self.0.seeds()
    }

    fn fixed(&self) -> Option<Vec<String>> {
        self.0.fixed()
    }
}

/// One seed a line; what follows a `#` is a comment.
fn lines(text: Vec<u8>) -> io::Result<Vec<String>> {
    let text =
        String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))?;
    let seeds = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(seeds.filter(|seed| !seed.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_seed_a_line_and_comments() {
        let text = b"# ours\n10.0.0.1:1\n\n  db  # the old one\r\n#db2".to_vec();
        assert_eq!(lines(text).unwrap(), ["10.0.0.1:1", "db"]);
        assert_eq!(lines(vec![0xff]).unwrap_err().to_string(), "not UTF-8");
    }

    #[test]
    fn lists_and_names_never_change_and_files_do() {
        assert_eq!(["a"].fixed(), Some(vec!["a".to_owned()]));
        assert_eq!(vec!["a".to_owned()].fixed(), Some(vec!["a".to_owned()]));
        assert_eq!(FromDns::new("a:1").fixed(), Some(vec!["a:1".to_owned()]));
        assert_eq!(FromFile::new("a").fixed(), None);
    }
}

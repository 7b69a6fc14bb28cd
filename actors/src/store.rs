//! Where a node keeps what it must not forget when it ends: its incarnation, and the members that it knew.
//!
//! A node that starts without that starts from incarnation 1, and is told by the others what they hold of its last
//! run, and outbids it; and it must be told a seed. With it, it starts above its last run and tries the members that
//! it knew, until it is not alone. That costs one small file, written at most every
//! [`Config::rejoin_interval`](crate::Config::rejoin_interval), when something in it has changed.
//!
//! ```
//! # let dir = std::env::temp_dir().join(format!("rejoin-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! # let file = dir.join("a");
//! # actix::System::new().block_on(async {
//! use actix_memberlist::{Cluster, Config};
//!
//! let start = || {
//!     Cluster::builder("a")
//!         .config(Config::local())
//!         .bind("127.0.0.1:0".parse().unwrap())
//!         .rejoin_file(&file)
//!         .start()
//! };
//! let node = start().await?;
//! assert_eq!(node.view().local().incarnation, 1);
//! # // A slow disk may take longer than a node that ends waits for it.
//! # while !file.exists() { actix::clock::sleep(std::time::Duration::from_millis(10)).await; }
//! node.shutdown().await;
//!
//! let node = start().await?;
//! assert_eq!(node.view().local().incarnation, 2);
//! node.shutdown().await;
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing that is wrong with the file keeps a node from starting or running. Each of these is a warning in the log,
//! which names the file, and is counted as `memberlist_rejoin_failures`:
//!
//! | what is wrong | what the node does |
//! |---|---|
//! | it is torn or damaged, or of a later version | it starts as if there were none, and writes it anew |
//! | it cannot be read, or not within a second | the same |
//! | it is another node's, of another label, or no such file at all | it starts as if there were none, and leaves it as it is: it writes nothing |
//! | it is a directory, a device, a pipe or a socket | it starts as if there were none, leaves it as it is, and looks again as if it could not be written |
//! | it is older than [`Config::dead_retention`](crate::Config::dead_retention) | it takes the incarnation, which does no harm, but not the members: their addresses may be another cluster's by now |
//! | it cannot be written | it tries again, less and less often, down to once in a minute |
//!
//! After a [leave](crate::Cluster::leave) the file has the incarnation and no members: whoever left comes back when it
//! is told to.

use std::io;

mod apart;
mod file;
#[cfg(feature = "testing")]
mod memory;

pub(crate) use apart::{Running, Trouble};
pub use file::FileStore;
#[cfg(feature = "testing")]
pub use memory::MemoryStore;

/// A place for one small record. Its calls run on a thread of their own, one at a time, and may block.
pub trait Store: Send + 'static {
    /// What was saved last, whole; nothing, if there never was anything.
    ///
    /// # Errors
    /// Whatever went wrong; the node starts without.
    fn load(&mut self) -> io::Result<Option<Vec<u8>>>;

    /// Puts this in the place of what was there. A crash at any moment must leave one or the other.
    ///
    /// # Errors
    /// Whatever went wrong; the node tries again later.
    fn save(&mut self, record: &[u8]) -> io::Result<()>;

    /// What people call this place, for the log. The builder asks, once.
    fn place(&self) -> String;
}

/// A store as the builder was given it.
pub(crate) enum Place {
    Apart(String, Box<dyn Store>),
    #[cfg(feature = "testing")]
    Memory(MemoryStore),
}

impl Place {
    pub(crate) fn new<S: Store>(store: S) -> Self {
        Self::Apart(store.place(), Box::new(store))
    }
}

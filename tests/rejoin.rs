//! The rejoin file: what is in it, when it is written, and that nothing that is wrong with it, or with the disk under
//! it, keeps a node from its work.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use actix_memberlist::{
    Cluster, ClusterBuilder, Config, FileStore, MemberState, Store, Until, store::MemoryStore,
};
use memberlist_protocol::rejoin::Rejoin;
use memberlist_tests::{World, addr, log::Log, paused};
use tokio::time::{Instant, sleep, timeout};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = secs(60);

/// Runs a test in real time.
fn real<T>(test: impl Future<Output = T>) -> T {
    actix::System::new().block_on(async { timeout(PATIENCE * 2, test).await.expect("it hangs") })
}

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("rejoin-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("n000.rejoin")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn local(name: &str) -> ClusterBuilder {
    Cluster::builder(name).config(Config::local()).bind(([127, 0, 0, 1], 0).into())
}

async fn started(builder: ClusterBuilder) -> Cluster {
    builder.start().await.expect("a node starts")
}

/// Waits in real time.
async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: in vain");
        sleep(ms(10)).await;
    }
}

fn kept(store: &MemoryStore) -> Rejoin {
    Rejoin::decode(&store.record().expect("it was saved")).expect("it is whole")
}

/// Two nodes that know each other, of which the first keeps its notes in memory.
async fn pair(world: &mut World, store: &MemoryStore) {
    let first = started(world.builder(0).memory_store(store)).await;
    let second = started(world.builder(1)).await;
    second.join(&[&addr(0).to_string()]).await.expect("a node joins");
    world.nodes.extend([first, second]);
    assert_eq!(world.nodes[0].ready(Until::Members(2), secs(10)).await, Ok(true));
}

fn failures(node: &Cluster) -> u64 {
    node.metrics().rejoin_failures
}

#[test]
fn a_node_comes_back_by_its_file_alone_above_its_old_incarnation_and_as_another_run() {
    real(async {
        let dir = Directory::new();
        let other = started(local("n001")).await;
        let seed = other.view().local().addr.to_string();
        let config = Config { rejoin_interval: ms(100), ..Config::local() };
        let node = local("n000").config(config).rejoin_file(dir.file()).seeds([seed]).seed(7);
        let node = started(node).await;
        assert_eq!(node.ready(Until::Members(2), PATIENCE).await, Ok(true));
        node.set_meta("new".into()).await.expect("it runs");
        let before = node.view().local().clone();
        // A slow disk may take longer than a node that ends waits for it.
        wait_until("it is written", || {
            let record = fs::read(dir.file()).ok().and_then(|bytes| Rejoin::decode(&bytes).ok());
            record.is_some_and(|record| record.incarnation == before.incarnation && record.peers.len() == 1)
        })
        .await;
        node.shutdown().await;
        wait_until("nothing is being written any more", || dir.names() == ["n000.rejoin"]).await;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.file()).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }

        // With the same chance: even then it is another run.
        let node = started(local("n000").rejoin_file(dir.file()).seed(7)).await;
        let after = node.view().local().clone();
        assert!(after.incarnation > before.incarnation);
        assert_ne!(after.id, before.id);
        assert_eq!(node.ready(Until::Members(2), PATIENCE).await, Ok(true));
        wait_until("the other one sees it", || {
            other.view().get("n000").is_some_and(|m| m.id == after.id && m.state == MemberState::Alive)
        })
        .await;
        node.shutdown().await;
        other.shutdown().await;
    });
}

#[test]
fn the_file_is_written_at_most_once_in_its_interval_and_only_when_it_changes() {
    paused(async {
        let (mut world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        pair(&mut world, &store).await;
        sleep(secs(30)).await;
        let saves = store.saves();
        assert!((2..=3).contains(&saves), "{saves}: itself alone, and then its company");
        assert_eq!(kept(&store).peers.iter().map(|p| p.addr).collect::<Vec<_>>(), [addr(1)]);
        sleep(secs(1800)).await;
        assert_eq!(store.saves(), saves, "nothing has changed");
        for i in 0..100 {
            world.nodes[0].set_meta(format!("{i}").into()).await.expect("it runs");
            sleep(ms(200)).await;
        }
        sleep(secs(10)).await;
        assert!((4..=6).contains(&(store.saves() - saves)), "{} in 20 s", store.saves() - saves);
        assert_eq!(
            kept(&store).incarnation,
            world.nodes[0].view().local().incarnation,
            "the last state wins"
        );
        let saves = store.saves();
        sleep(secs(3700)).await;
        assert_eq!(store.saves(), saves + 1, "after an hour its age is brought up to date");
        assert_eq!(world.nodes[0].metrics().rejoin_saves, store.saves());
    });
}

#[test]
fn with_an_interval_of_zero_the_file_is_written_at_the_end_alone() {
    paused(async {
        let config = Config { rejoin_interval: Duration::ZERO, ..Config::lan() };
        let (mut world, store) = (World::new(1, config), MemoryStore::new());
        pair(&mut world, &store).await;
        sleep(secs(60)).await;
        assert_eq!(store.saves(), 0);
        world.kill(0).await;
        assert_eq!((store.saves(), kept(&store).peers.len()), (1, 1));
    });
}

#[test]
fn whoever_left_starts_above_its_old_incarnation_and_looks_for_nobody() {
    paused(async {
        let (mut world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        pair(&mut world, &store).await;
        sleep(secs(10)).await;
        world.nodes[0].leave(secs(5)).await.expect("it runs");
        let before = world.nodes[0].view().local().clone();
        world.kill(0).await;
        assert!(kept(&store).left && kept(&store).peers.is_empty());

        let node = started(world.builder(0).memory_store(&store)).await;
        let after = node.view().local().clone();
        assert_eq!(after.incarnation, before.incarnation + 1);
        assert_ne!(after.id, before.id);
        sleep(secs(20)).await;
        assert_eq!(node.metrics().discoveries, 0);
        node.join(&[&addr(1).to_string()]).await.expect("it is told to");
        sleep(secs(10)).await;
        assert!(!kept(&store).left);
        assert_eq!(kept(&store).peers.len(), 1);
    });
}

#[test]
fn torn_or_damaged_anywhere_it_is_a_warning_and_a_start_and_is_written_anew() {
    Log::of(async |log| {
        let (mut world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        pair(&mut world, &store).await;
        world.kill(0).await;
        let good = store.record().expect("it was saved");
        let torn = (0..good.len()).map(|n| good[..n].to_vec());
        // Beyond what tells that this is a rejoin file at all.
        let flipped = (25 * 8..good.len() * 8).step_by(7).map(|bit| {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        });
        for bad in torn.chain(flipped) {
            log.clear();
            store.put(Some(bad));
            let node = started(world.builder(0).memory_store(&store)).await;
            assert_eq!(node.view().local().incarnation, 1);
            assert_eq!(failures(&node), 1);
            let warnings = log.with("the rejoin file is of no use");
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].fields.contains("file=memory"), "{}", warnings[0].fields);
            node.shutdown().await;
            assert_eq!(kept(&store).incarnation, 1);
        }
    });
}

#[test]
fn the_file_of_somebody_else_is_left_as_it_is() {
    Log::of(async |log| {
        let (world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        let mine = started(world.builder(0).label("shop").memory_store(&store)).await;
        mine.shutdown().await;
        let record = store.record().expect("it was saved");
        let text = b"root:x:0:0:root:/root:/bin/sh\n".to_vec();
        let strange = [
            (world.builder(0).label("bank"), record.clone(), "of the cluster with the label"),
            (world.builder(1).label("shop"), record.clone(), "is the one of node"),
            (world.builder(0).label("shop"), text, "no rejoin file"),
            (world.builder(0).label("shop"), vec![0; 1 << 20], "no rejoin file"),
        ];
        for (builder, content, words) in strange {
            log.clear();
            store.put(Some(content.clone()));
            let saves = store.saves();
            let node = started(builder.memory_store(&store)).await;
            assert_eq!(node.view().local().incarnation, 1);
            sleep(secs(60)).await;
            node.shutdown().await;
            assert_eq!((store.record(), store.saves()), (Some(content), saves));
            let warnings = log.with("is not this node's");
            assert!(warnings.len() == 1 && warnings[0].fields.contains(words), "{warnings:?}");
        }
        store.put(Some(record));
        let node = started(world.builder(0).label("shop").memory_store(&store)).await;
        assert_eq!((node.view().local().incarnation, failures(&node)), (2, 0));
    });
}

#[test]
fn a_file_that_is_too_old_gives_its_incarnation_and_no_members() {
    Log::of(async |log| {
        let (mut world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        pair(&mut world, &store).await;
        world.kill(0).await;
        world.kill(1).await;
        for (hours, stale) in [(71, 0), (73, 1)] {
            let before = kept(&store).incarnation;
            log.clear();
            store.age(secs(hours * 3600));
            let node = started(world.builder(0).memory_store(&store)).await;
            assert_eq!(node.view().local().incarnation, before + 1);
            sleep(secs(20)).await;
            assert_eq!(node.metrics().discoveries == 0, stale == 1, "after {hours} h");
            assert_eq!(log.with("the rejoin file is too old").len(), stale);
            assert_eq!(failures(&node), stale as u64);
            node.shutdown().await;
            assert_eq!(kept(&store).peers.len(), 1 - stale, "who is not tried is not kept");
        }
    });
}

#[test]
fn a_full_disk_is_told_of_once_in_a_while_and_used_again_when_there_is_room() {
    Log::of(async |log| {
        let (mut world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        pair(&mut world, &store).await;
        store.fail(Some(io::ErrorKind::StorageFull));
        world.nodes[0].set_meta("new".into()).await.expect("it runs");
        sleep(secs(600)).await;
        let node = &world.nodes[0];
        let failed = failures(node);
        assert!((9..20).contains(&failed), "{failed} attempts in ten minutes");
        let told = log.with("the rejoin file cannot be written");
        let more = log.with("writes of the rejoin file that failed");
        assert!((5..13).contains(&(told.len() + more.len())), "{told:#?} {more:#?}");
        assert!(told[0].fields.contains("file=memory"), "{}", told[0].fields);
        store.fail(None);
        sleep(secs(61)).await;
        assert_eq!(kept(&store).incarnation, node.view().local().incarnation);
        assert_eq!(world.state(1, 0), Some(MemberState::Alive));
    });
}

#[test]
fn what_cannot_be_read_is_a_warning_and_a_start() {
    Log::of(async |log| {
        let (world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        store.fail(Some(io::ErrorKind::PermissionDenied));
        let node = started(world.builder(0).memory_store(&store)).await;
        assert_eq!(log.with("the rejoin file cannot be read").len(), 1);
        assert!(failures(&node) >= 1);
        store.fail(None);
        sleep(secs(20)).await;
        assert_eq!(kept(&store).incarnation, 1);
    });
}

#[test]
fn a_disk_that_takes_a_minute_delays_a_start_by_a_second_and_nothing_else() {
    Log::of(async |log| {
        let (mut world, store) = (World::new(1, Config::lan()), MemoryStore::new());
        store.slow(secs(60));
        let start = Instant::now();
        pair(&mut world, &store).await;
        assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
        assert_eq!(log.with("no answer within 1s").len(), 1);
        for _ in 0..100 {
            let rtt = world.nodes[1].ping("n000", addr(0)).await.expect("it answers");
            assert!(rtt < ms(20), "{rtt:?}");
            sleep(secs(1)).await;
        }
        assert!(!log.with("its disk does not answer").is_empty());
        let start = Instant::now();
        world.kill(0).await;
        assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
        assert_eq!(world.nodes[1].metrics().suspect_messages, 0);
    });
}

/// A store that blocks where it is told to, until it is let go.
struct Blocked {
    load: bool,
    let_go: mpsc::Receiver<()>,
    saved: Arc<AtomicU64>,
}

impl Store for Blocked {
    fn load(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.load {
            let _ = self.let_go.recv();
        }
        Ok(None)
    }

    fn save(&mut self, _: &[u8]) -> io::Result<()> {
        let _ = self.let_go.recv();
        self.saved.fetch_add(1, SeqCst);
        Ok(())
    }

    fn place(&self) -> String {
        "a place that hangs".into()
    }
}

#[test]
fn a_store_that_blocks_its_thread_keeps_a_node_neither_from_starting_nor_from_answering_nor_from_its_end() {
    for load in [true, false] {
        real(async {
            let (release, let_go) = mpsc::channel();
            let saved = Arc::new(AtomicU64::new(0));
            let start = std::time::Instant::now();
            let store = Blocked { load, let_go, saved: saved.clone() };
            let node = started(local("n000").store(store)).await;
            let other = started(local("n001").seeds([node.view().local().addr.to_string()])).await;
            assert_eq!(other.ready(Until::Members(2), PATIENCE).await, Ok(true));
            other.ping("n000", node.view().local().addr).await.expect("it answers");
            node.shutdown().await;
            other.shutdown().await;
            assert!(start.elapsed() < PATIENCE);
            assert_eq!(saved.load(SeqCst), 0);
            drop(release);
            // What waited is written when the disk comes back: the last state is the one that stays.
            wait_until("the writes that waited", || saved.load(SeqCst) >= 1).await;
        });
    }
}

/// A store that panics at each call.
struct Panics(Arc<AtomicU64>);

impl Store for Panics {
    fn load(&mut self) -> io::Result<Option<Vec<u8>>> {
        panic!("a bug in load")
    }

    fn save(&mut self, _: &[u8]) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        panic!("a bug in save")
    }

    fn place(&self) -> String {
        "a faulty place".into()
    }
}

#[test]
fn a_store_that_panics_is_asked_again_and_harms_nobody() {
    real(async {
        let calls = Arc::new(AtomicU64::new(0));
        let config = Config { rejoin_interval: ms(100), ..Config::local() };
        let node = started(local("n000").config(config).store(Panics(calls.clone()))).await;
        wait_until("a second save", || calls.load(SeqCst) >= 2).await;
        wait_until("it is counted", || failures(&node) >= 3).await;
        assert!(node.metrics().restarts.values().all(|n| *n == 0));
        node.shutdown().await;
    });
}

/// Starts a node with that file, which must not harm it.
async fn survives(file: &Path, at: SocketAddr) {
    let config = Config { rejoin_interval: ms(100), ..Config::local() };
    let node = started(local("n000").config(config).bind(at).rejoin_file(file)).await;
    wait_until("it is counted", || failures(&node) >= 2).await;
    assert_eq!(node.view().local().incarnation, 1);
    node.shutdown().await;
}

#[test]
fn a_path_that_leads_nowhere_is_no_reason_not_to_run() {
    real(async {
        let (dir, any) = (Directory::new(), ([127, 0, 0, 1], 0).into());
        fs::write(dir.0.join("file"), "").expect("a file");
        fs::create_dir(dir.0.join("dir")).expect("a directory");
        for path in ["file/rejoin", "missing/rejoin", "dir"] {
            survives(&dir.0.join(path), any).await;
        }
        let mut names = dir.names();
        names.sort();
        assert_eq!(names, ["dir", "file"], "nothing was left beside them");
    });
}

#[test]
fn a_file_is_put_in_place_as_a_whole_and_what_lies_beside_it_is_not_followed() {
    let dir = Directory::new();
    let mut store = FileStore::new(dir.file());
    assert_eq!(store.load().expect("there is none"), None);
    store.save(b"first").expect("a file");
    // A crash may leave this.
    fs::write(dir.0.join("n000.rejoin.new"), "half of the sec").expect("a file");
    assert_eq!(store.load().expect("it is there").as_deref(), Some(&b"first"[..]));
    store.save(b"second").expect("a file");
    assert_eq!(store.load().expect("it is there").as_deref(), Some(&b"second"[..]));
    #[cfg(unix)]
    {
        let victim = dir.0.join("victim");
        fs::write(&victim, "precious").expect("a file");
        std::os::unix::fs::symlink(&victim, dir.0.join("n000.rejoin.new")).expect("a link");
        store.save(b"third").expect("a file");
        assert_eq!(fs::read(&victim).expect("a file"), b"precious");
        assert!(FileStore::new("/dev/null").load().is_err(), "no regular file");
    }
    fs::write(dir.file(), vec![b'x'; 10 << 20]).expect("a file");
    assert!(store.load().expect("it is there").is_some_and(|record| record.len() < 1 << 20));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_left_where_it_is() {
    use std::os::unix::{fs::FileTypeExt, net::UnixListener};
    let dir = Directory::new();
    let _socket = UnixListener::bind(dir.file()).expect("a socket is made");
    let mut store = FileStore::new(dir.file());
    assert!(store.load().is_err());
    assert_eq!(store.save(b"a record").expect_err("it is refused").to_string(), "not a regular file");
    assert!(std::fs::metadata(dir.file()).expect("it is there").file_type().is_socket());
}

//! Networks of hosts on one machine, as the script `netns` makes them.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use actix_memberlist::DEFAULT_PORT;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/netns");

/// What the script says when a machine cannot.
const CANNOT: i32 = 77;

/// Whether networks may be built here. If not, the reason is printed, once.
pub fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let asked = std::env::var("NETNS").unwrap_or_default();
        let left_out = |why: &str| {
            assert!(asked != "require", "namespaces: {why}");
            // Not `eprintln!`, which nobody sees of a test that passes.
            let _ = writeln!(std::io::stderr(), "namespaces: left out; {why}");
            false
        };
        if asked.is_empty() || asked == "0" {
            return left_out("with NETNS=1, as root, networks are built on this machine, cut and mended");
        }
        let check = Command::new(SCRIPT).arg("check").output().unwrap();
        match check.status.code() {
            Some(0) => {
                // What a run before this one may have left behind, if it was killed.
                assert!(Command::new(SCRIPT).arg("sweep").status().unwrap().success());
                true
            }
            Some(CANNOT) => left_out(String::from_utf8_lossy(&check.stdout).trim()),
            _ => panic!("the script fails: {check:?}"),
        }
    })
}

/// A set of hosts. They go when this is dropped, and also when this process dies: the script waits for that.
pub(crate) struct Network {
    id: String,
    holder: Child,
}

impl Network {
    pub(crate) fn build(name: &str, hosts: usize) -> Self {
        let id = format!("{}-{name}", std::process::id());
        let mut holder = Command::new(SCRIPT)
            .args(["hold", &hosts.to_string()])
            .env("NETNS_ID", &id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let network = Self { id, holder };
        assert_eq!(ready, "ready\n", "the script has built no network");
        network
    }

    pub(crate) fn script(&self) -> Command {
        let mut command = Command::new(SCRIPT);
        command.env("NETNS_ID", &self.id);
        command
    }

    /// A command of the script, in words.
    pub(crate) fn run(&self, words: &str) {
        let status = self.script().args(words.split(' ')).status().unwrap();
        assert!(status.success(), "netns {words}");
    }

    pub(crate) fn addr(&self, host: usize) -> String {
        let output = self.script().args(["addr", &host.to_string()]).output().unwrap();
        format!("{}:{DEFAULT_PORT}", String::from_utf8(output.stdout).unwrap().trim())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

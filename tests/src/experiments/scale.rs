//! What a virtual second of a calm cluster costs the machine that simulates it, and how much memory its nodes take.

use std::time::Duration;

use cpu_time::ThreadTime;
use tokio::time::sleep;

use super::{Options, fleet::Fleet, table::Row, watch::QUIET};
use crate::paused;

/// So long nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// Each size once, one after the other.
pub(super) fn cost(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for n in options.nodes.map_or(vec![100, 300, 1000], |n| vec![n]) {
        rows.extend(options.policies().map(|policy| {
            let config = options.config(policy);
            paused(async move {
                let cpu = ThreadTime::now();
                let begin = tokio::time::Instant::now();
                let mut fleet = Fleet::new(options.seed, config);
                fleet.gather(n).await;
                let (together, together_cpu) = (begin.elapsed(), cpu.elapsed());
                sleep(QUIET).await;
                let (before, cpu) = (fleet.load(), ThreadTime::now());
                sleep(IDLE).await;
                let cpu = cpu.elapsed().as_secs_f64() / IDLE.as_secs_f64();
                let (packets, bytes) = fleet.load().since(before, n, IDLE);
                let memory = resident_kb();
                fleet.end().await;
                vec![
                    ("policy", policy.name().into()),
                    ("nodes", n.into()),
                    ("together_s", together.into()),
                    ("together_cpu_s", together_cpu.into()),
                    ("second_cpu_ms", (cpu * 1000.0).into()),
                    ("second_node_cpu_us", (cpu * 1e6 / n as f64).into()),
                    ("node_kb", memory.map(|kb| kb / n as u64).into()),
                    ("node_member_bytes", memory.map(|kb| kb * 1024 / (n * n) as u64).into()),
                    ("packets_node_s", packets.into()),
                    ("bytes_node_s", bytes.into()),
                ]
            })
        }));
    }
    rows
}

/// Memory of this process, where the system tells.
fn resident_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

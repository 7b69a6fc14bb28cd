//! I11: some members stand still for a minute, as one does that is stopped by a signal, or whose virtual machine is moved.

use std::time::Duration;

use super::{
    Options,
    fleet::Fleet,
    table::Row,
    watch::{row, watch},
};

/// They stand still for so long.
const STOPPED: Duration = Duration::from_secs(60);

/// Nothing gets into a member that is stopped, nor out of it; its timers go on, which is worse than a real stop: when it
/// goes on it has lost trust in everybody.
pub(super) fn stopped(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(200);
    let mut rows = Vec::new();
    for percent in [1, 10] {
        rows.extend(options.policies().map(|policy| {
            let what = format!("{percent} % stop");
            row(&what, n, (n * percent / 100).max(1), policy, options, async |fleet: &mut Fleet, who| {
                watch(fleet, who, STOPPED, async |fleet, _| {
                    who.iter().for_each(|i| fleet.network.pause(fleet.addr(*i)));
                    Duration::MAX
                })
                .await
            })
        }));
    }
    rows
}

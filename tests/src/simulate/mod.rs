//! A simulator that hunts: clusters of the real actors over a network in memory, in virtual time, with faults drawn from
//! a seed, and rules that must hold at every step.

mod campaign;
mod checks;
mod forge;
mod run;
mod schedule;
mod weather;

pub use campaign::{Campaign, KINDS, RARE, STATES, shrink};
pub use checks::{Broken, Rule};
pub use run::{AGREEMENT, DETECTION, FALSE_ALARM, HORIZON, Plan, Report, SETTLED, hash, run, trace};
pub use schedule::{Event, Fault, draw};

/// Panics that a schedule asks for are nothing to be told: not even how they came about, which takes memory that stays.
pub fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let said = info.payload().downcast_ref::<&str>().copied();
            let said = said.or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
            if !said.is_some_and(|why| why.starts_with("struck: ")) {
                tell(info);
            }
        }));
    });
}

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

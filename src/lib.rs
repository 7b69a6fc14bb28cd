//! The rules of SWIM cluster membership with Lifeguard's failure detection, free of I/O, clocks and actors.
//!
//! Everything here takes the time and a random generator as arguments, and returns what should happen. The
//! crate `actix-memberlist` makes it happen, on real sockets or on ones in memory.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the settings, and three presets |
//! | [`member`], [`view`] | who is a member; all of them as a value |
//! | [`members`] | the table, and the rules that change it |
//! | [`accusation`], [`suspicion`], [`awareness`] | who accuses whom; how long a suspect has; how healthy this node is |
//! | [`probe`], [`allowance`] | the failure detector; what one datagram may make it send |
//! | [`broadcast`], [`gossip`] | what is still to be said, and to whom |
//! | [`heal`] | whom to look for of those who are missing |
//! | [`gate`] | newcomers about whom the application is asked |
//! | [`seen`] | which broadcasts of users have been handled |
//! | [`link`] | messages from one node to one other one, over whatever connections there are |
//! | [`push_pull`] | the exchange of full states |
//! | [`limiter`], [`throttle`] | what may happen once in a while, what may be said so often |
//! | [`rejoin`] | what a node keeps over a restart |
//! | [`limiter`], [`throttle`], [`bucket`] | what may happen once in a while, what may be said so often, what may happen so often in a second |
//! | [`restart`] | when an actor that panicked runs again |
//! | [`wire`] | bytes |

pub mod accusation;
pub mod allowance;
pub mod awareness;
pub mod broadcast;
pub mod bucket;
pub mod config;
pub mod gate;
pub mod gossip;
pub mod heal;
pub mod keyring;
pub mod limiter;
pub mod link;
pub mod member;
pub mod members;
pub mod probe;
pub mod push_pull;
pub mod rejoin;
pub mod restart;
pub mod seen;
mod span;
pub mod suspicion;
pub mod throttle;
pub mod tombstones;
pub mod view;
pub mod wire;

//! What the examples share: the command line's words.

#![allow(dead_code, reason = "each example uses a part of it")]

pub(crate) mod access;
pub(crate) mod options;

use std::io::IsTerminal;

use actix_memberlist::{Config, Evidence, MemberEvent};

/// The settings of a profile's name.
pub(crate) fn profile(name: &str) -> Result<Config, lexopt::Error> {
    match name {
        "lan" => Ok(Config::lan()),
        "wan" => Ok(Config::wan()),
        "local" => Ok(Config::local()),
        _ => Err(format!("no profile {name:?}: there are lan, wan and local").into()),
    }
}

/// Prints what the library logs to standard error; `RUST_LOG` says how much of it.
pub(crate) fn logs(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

/// An event in a few words: its name, whom it is about, and what else there is to say.
pub(crate) fn words(event: &MemberEvent) -> (&'static str, String, String) {
    match event {
        MemberEvent::Snapshot(view) => ("snapshot", String::new(), format!("{} members", view.alive_count())),
        MemberEvent::Joined { member, .. } => ("joined", member.name().into(), member.addr.to_string()),
        MemberEvent::Updated { member, .. } => {
            ("updated", member.name().into(), format!("metadata {:?}", String::from_utf8_lossy(&member.meta)))
        }
        MemberEvent::Suspected { member, why, .. } => {
            ("suspected", member.name().into(), format!("by {}, {}", why.by, evidence(why.evidence)))
        }
        MemberEvent::Refuted { member, .. } => ("refuted", member.name().into(), String::new()),
        MemberEvent::Left { member, .. } => ("left", member.name().into(), String::new()),
        MemberEvent::Dead { member, why, .. } => {
            let confirmed: String =
                why.confirmed_by.iter().map(|name| format!(", confirmed by {name}")).collect();
            ("dead", member.name().into(), format!("by {}{confirmed}, {}", why.by, evidence(why.evidence)))
        }
        MemberEvent::Reaped { id, .. } => ("reaped", id.name().into(), String::new()),
        MemberEvent::Conflict { kept, other, .. } => {
            ("conflict", kept.name().into(), format!("{other} claims the name"))
        }
        _ => ("event", String::new(), String::new()),
    }
}

/// What an accuser has seen, in words.
pub(crate) fn evidence(evidence: Evidence) -> String {
    match evidence {
        Evidence::NoAnswer { direct, helpers, nacks, .. } => {
            let ping = if direct { "no answer" } else { "the ping could not be sent" };
            match helpers {
                0 => format!("{ping}, and nobody else could be asked"),
                _ => format!("{ping}, nor had {nacks} of {helpers} others that tried"),
            }
        }
        Evidence::Refused => "its host refused the connection".into(),
        Evidence::PushPull => "another node's state said so".into(),
        Evidence::Hearsay => "heard from others".into(),
        Evidence::ForceLeave => "an operator said so".into(),
        Evidence::Announced => "it said so itself".into(),
        Evidence::Replaced => "a new run took its name".into(),
        _ => "for another reason".into(),
    }
}

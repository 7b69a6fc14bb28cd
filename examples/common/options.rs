//! The options of a program that is one node of a cluster.

use std::net::{Ipv4Addr, SocketAddr};

use actix_memberlist::{Cluster, ClusterBuilder, Config, DEFAULT_PORT};
use lexopt::prelude::*;

use super::access::Access;

/// What they say.
pub(crate) struct Options {
    pub(crate) name: String,
    pub(crate) bind: SocketAddr,
    pub(crate) seeds: Vec<String>,
    pub(crate) config: Config,
    pub(crate) access: Access,
}

impl Options {
    const USAGE: &str = "--name NAME [--bind ADDR (default 127.0.0.1:7946)] [--join SEED[,SEED..]].. \
                         [--profile lan|wan|local (default local)] [--key HEX] [--label NAME]";

    /// Reads the command line. What these options do not know is `other`'s, which says whether it does. If the line is
    /// wrong, or asks for help, the program says `usage` and ends.
    pub(crate) fn read(
        usage: &str,
        other: impl FnMut(&str, &mut lexopt::Parser) -> Result<bool, lexopt::Error>,
    ) -> Self {
        Self::parse(usage, other).unwrap_or_else(|error| {
            eprintln!("{error}\n{usage} {}", Self::USAGE);
            std::process::exit(2);
        })
    }

    fn parse(
        usage: &str,
        mut other: impl FnMut(&str, &mut lexopt::Parser) -> Result<bool, lexopt::Error>,
    ) -> Result<Self, lexopt::Error> {
        let mut options = Self {
            name: String::new(),
            bind: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(),
            seeds: Vec::new(),
            config: Config::local(),
            access: Access::default(),
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            let Long(option) = arg else { return Err(arg.unexpected()) };
            match option.to_owned().as_str() {
                "name" => options.name = args.value()?.parse()?,
                "bind" => options.bind = args.value()?.parse()?,
                "join" => {
                    let seeds: String = args.value()?.parse()?;
                    options.seeds.extend(seeds.split(',').map(|seed| seed.trim().to_owned()));
                }
                "profile" => options.config = super::profile(&args.value()?.string()?)?,
                "key" => options.access.set_key(args.value()?)?,
                "label" => options.access.label = args.value()?.parse()?,
                "help" => {
                    println!("{usage} {}", Self::USAGE);
                    std::process::exit(0);
                }
                option if other(option, &mut args)? => {}
                option => return Err(format!("there is no option --{option}").into()),
            }
        }
        if options.name.is_empty() {
            return Err("--name is missing: each node of a cluster has one of its own".into());
        }
        Ok(options)
    }

    /// A node as they say.
    pub(crate) fn builder(&self) -> ClusterBuilder {
        let builder = Cluster::builder(&self.name).config(self.config.clone()).bind(self.bind);
        self.access.grant(builder)
    }

    /// The same for one that may be there before its seeds: it asks for them as long as it runs.
    pub(crate) fn searching(&self) -> ClusterBuilder {
        match self.seeds.as_slice() {
            [] => self.builder(),
            seeds => self.builder().seeds(seeds.to_vec()),
        }
    }

    /// Joins the others, now, if it is said where they are.
    pub(crate) async fn join(&self, node: &Cluster) -> Result<(), actix_memberlist::JoinError> {
        if self.seeds.is_empty() {
            return Ok(());
        }
        let seeds: Vec<&str> = self.seeds.iter().map(String::as_str).collect();
        node.join(&seeds).await.map(drop)
    }
}

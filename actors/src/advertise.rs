//! Which address the others are told: the one that is named, the one that is bound, or, for a node that is
//! bound to all, one of its host's; and whether anybody can reach it.

use std::net::{IpAddr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use memberlist_protocol::{
    config::{Config, ConfigError},
    member::canonical,
};

use crate::network::Host;

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// For use within an organisation (RFC 6890, sections 2.2.2 and 2.2.3).
const PRIVATE_V4: [Ipv4Net; 4] =
    [v4(10, 0, 0, 8), v4(172, 16, 0, 12), v4(192, 168, 0, 16), v4(100, 64, 0, 10)];
const PRIVATE_V6: [Ipv6Net; 1] = [v6(0xfc00, 0, 7)];

/// For texts about networks, not for networks (RFC 6890, as above; RFC 9637).
const DOCUMENTATION_V4: [Ipv4Net; 3] = [v4(192, 0, 2, 24), v4(198, 51, 100, 24), v4(203, 0, 113, 24)];
const DOCUMENTATION_V6: [Ipv6Net; 2] = [v6(0x2001, 0xdb8, 32), v6(0x3fff, 0, 20)];

/// Never one host's that others reach (RFC 6890, as above), and groups (RFC 5771, RFC 4291).
const NOBODY_V4: [Ipv4Net; 4] = [v4(0, 0, 0, 8), v4(192, 0, 0, 24), v4(224, 0, 0, 4), v4(240, 0, 0, 4)];
const NOBODY_V6: [Ipv6Net; 2] = [v6(0xff00, 0, 8), v6(0x100, 0, 64)];

/// What an address is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Public,
    Private,
    Loopback,
    LinkLocal,
    Documentation,
    Nobody,
}

fn kind(ip: IpAddr) -> Kind {
    let is_in = |v4: &[Ipv4Net], v6: &[Ipv6Net]| match ip {
        IpAddr::V4(ip) => v4.iter().any(|net| net.contains(&ip)),
        IpAddr::V6(ip) => v6.iter().any(|net| net.contains(&ip)),
    };
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() {
        Kind::Loopback
    } else if ip.is_unspecified() || is_in(&NOBODY_V4, &NOBODY_V6) {
        Kind::Nobody
    } else if link_local {
        Kind::LinkLocal
    } else if is_in(&DOCUMENTATION_V4, &DOCUMENTATION_V6) {
        Kind::Documentation
    } else if is_in(&PRIVATE_V4, &PRIVATE_V6) {
        Kind::Private
    } else {
        Kind::Public
    }
}

/// The address of a host that a node bound to all of `bind` is known by: that of the default route, else the
/// first private one of an interface that is up, IPv4 before IPv6. Nothing that others could not reach.
fn choose(bind: IpAddr, host: &Host) -> Option<IpAddr> {
    let fits = |ip: &IpAddr| bind.is_ipv6() || ip.is_ipv4();
    let routed = host.routed.iter().map(|ip| ip.to_canonical()).filter(fits);
    let up = host.interfaces.iter().filter(|one| one.up).map(|one| one.ip.to_canonical()).filter(fits);
    let (four, six): (Vec<_>, Vec<_>) = up.filter(|ip| kind(*ip) == Kind::Private).partition(IpAddr::is_ipv4);
    let routed = routed.filter(|ip| matches!(kind(*ip), Kind::Private | Kind::Public));
    routed.min_by_key(IpAddr::is_ipv6).or_else(|| four.into_iter().chain(six).next())
}

/// What a node is known by, and what its users should know of that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Advertised {
    /// Port 0 stands for the one that is bound.
    pub(crate) addr: SocketAddr,
    /// Why only some can reach it.
    pub(crate) warning: Option<&'static str>,
}

/// Says what a node bound to `bind` is known by.
///
/// # Errors
/// [`ConfigError`] when nobody could reach it there, or when it would not reach itself.
pub(crate) fn settle(
    bind: SocketAddr,
    named: Option<SocketAddr>,
    config: &Config,
    host: impl FnOnce() -> Host,
) -> Result<Advertised, ConfigError> {
    let bind = canonical(bind);
    let (field, addr) = match named {
        Some(named) => ("advertise", canonical(named)),
        None if bind.ip().is_unspecified() => {
            let host = host();
            let ip = choose(bind.ip(), &host).ok_or_else(|| {
                let value = format!(
                    "not set, and of {} addresses under {bind} none has the default route or is private",
                    host.interfaces.len()
                );
                ConfigError::new("advertise", value, "name the address that others reach with .advertise(..)")
            })?;
            ("advertise", SocketAddr::new(ip, 0))
        }
        None => ("bind", bind),
    };
    let ip = addr.ip();
    let bad = |limit| Err(ConfigError::new(field, addr.to_string(), limit));
    let warning = match kind(ip) {
        Kind::Public | Kind::Private => unlikely(bind.ip(), ip),
        Kind::Nobody => return bad("the address of one host, which others can reach"),
        Kind::Loopback if bind.ip().is_loopback() => None,
        Kind::Loopback if bind.ip().is_unspecified() => {
            Some("it is on loopback: nodes of other hosts will look for it on theirs")
        }
        Kind::Loopback => return bad("an address that is bound: others would not find the node on loopback"),
        // The interface that such an address needs is another one on each host.
        Kind::LinkLocal if ip.is_ipv6() => return bad("an address that needs no interface beside it"),
        Kind::LinkLocal => Some("it is link-local: only nodes on the same link reach it"),
        Kind::Documentation => Some("it is one for documentation: no network routes it"),
    };
    let nets = config.cidrs_allowed.as_deref().unwrap_or_default();
    if !nets.is_empty() && !config.allows(ip) {
        let shown: Vec<_> = nets.iter().take(5).map(ToString::to_string).collect();
        let limit = format!("networks that the node's own address {ip} is in");
        return Err(ConfigError::new("cidrs_allowed", shown.join(", "), limit));
    }
    Ok(Advertised { addr, warning })
}

/// Why an address that others could reach is probably not where the node is.
fn unlikely(bind: IpAddr, ip: IpAddr) -> Option<&'static str> {
    if bind.is_loopback() {
        Some("the node is bound to loopback: others reach it only if something forwards to it")
    } else if bind.is_ipv4() && ip.is_ipv6() {
        Some("it is an IPv6 address, and the node is bound to an IPv4 one")
    } else if bind.is_ipv6() && !bind.is_unspecified() && ip.is_ipv4() {
        Some("it is an IPv4 address, and the node is bound to an IPv6 one")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Interface;

    fn host(routed: &[&str], interfaces: &[(&str, bool)]) -> Host {
        Host {
            routed: routed.iter().map(|ip| ip.parse().unwrap()).collect(),
            interfaces: interfaces
                .iter()
                .enumerate()
                .map(|(i, (ip, up))| Interface { name: format!("eth{i}"), ip: ip.parse().unwrap(), up: *up })
                .collect(),
        }
    }

    fn settled(bind: &str, named: Option<&str>, host: Host) -> Result<Advertised, ConfigError> {
        let named = named.map(|addr| addr.parse().unwrap());
        settle(bind.parse().unwrap(), named, &Config::lan(), || host)
    }

    #[test]
    fn bound_to_all_a_node_is_known_by_the_default_route_else_by_its_first_private_address() {
        let up = |ip| (ip, true);
        let cases: [(&str, Host, Option<&str>); 14] = [
            (
                "0.0.0.0",
                host(&["10.0.0.7"], &[up("127.0.0.1"), up("192.168.1.1"), up("10.0.0.7")]),
                Some("10.0.0.7"),
            ),
            // A host with a public address, and a bridge of containers that nobody reaches.
            ("0.0.0.0", host(&["8.8.4.4"], &[up("8.8.4.4"), up("172.17.0.1")]), Some("8.8.4.4")),
            ("0.0.0.0", host(&[], &[up("8.8.4.4"), up("172.17.0.1")]), Some("172.17.0.1")),
            (
                "0.0.0.0",
                host(&[], &[("10.0.0.1", false), up("100.64.0.9"), up("10.0.0.2")]),
                Some("100.64.0.9"),
            ),
            ("0.0.0.0", host(&[], &[("10.0.0.1", false), up("127.0.0.1"), up("169.254.3.4")]), None),
            // memberlist chooses IPv6 on such a host, for a socket that takes IPv4.
            ("0.0.0.0", host(&["fd00::1"], &[up("203.0.113.5"), up("fd00::1")]), None),
            ("::", host(&["fd00::1"], &[up("203.0.113.5"), up("fd00::1")]), Some("fd00::1")),
            ("::", host(&["fd00::1", "10.0.0.7"], &[]), Some("10.0.0.7")),
            (
                "::",
                host(&["fe80::1", "127.0.0.1"], &[up("fe80::1"), up("fd00::2"), up("10.0.0.3")]),
                Some("10.0.0.3"),
            ),
            ("::", host(&[], &[up("2a00:1450::1"), up("::1")]), None),
            ("::", host(&["2a00:1450::1"], &[up("2a00:1450::1")]), Some("2a00:1450::1")),
            ("::", host(&["::ffff:10.0.0.7"], &[]), Some("10.0.0.7")),
            ("0.0.0.0", host(&["203.0.113.5"], &[]), None),
            ("0.0.0.0", Host::default(), None),
        ];
        for (bind, host, expected) in cases {
            let chosen = choose(bind.parse().unwrap(), &host);
            assert_eq!(chosen, expected.map(|ip| ip.parse().unwrap()), "{bind} {host:?}");
        }
    }

    #[test]
    fn what_is_named_or_bound_is_not_chosen() {
        let never = || -> Host { panic!("nobody asks") };
        let lan = Config::lan();
        let named = settle("0.0.0.0:1".parse().unwrap(), Some("10.0.0.9:7".parse().unwrap()), &lan, never);
        assert_eq!(named, Ok(Advertised { addr: "10.0.0.9:7".parse().unwrap(), warning: None }));
        let bound = settle("[::ffff:10.0.0.8]:7".parse().unwrap(), None, &lan, never);
        assert_eq!(bound, Ok(Advertised { addr: "10.0.0.8:7".parse().unwrap(), warning: None }));
        let chosen = settled("0.0.0.0:7946", None, host(&["10.0.0.7"], &[])).unwrap();
        assert_eq!(chosen.addr, "10.0.0.7:0".parse().unwrap(), "with the port that is bound");
    }

    #[test]
    fn a_host_without_a_fitting_address_is_told_to_name_one() {
        let error = settled("0.0.0.0:7946", None, host(&[], &[("127.0.0.1", true)])).unwrap_err();
        assert_eq!(error.field, "advertise");
        assert!(error.to_string().contains(".advertise(..)"), "{error}");
    }

    #[test]
    fn an_address_that_nobody_reaches_is_an_error_and_one_that_some_reach_a_warning() {
        let cases: [(&str, &str, Option<&str>); 22] = [
            ("127.0.0.1:1", "10.9.9.9:1", Some("bound to loopback")),
            ("0.0.0.0:1", "[2a00:1450::1]:1", Some("IPv6 address")),
            ("[2a00:1450::1]:1", "10.9.9.9:1", Some("IPv4 address")),
            ("[::]:1", "10.9.9.9:1", None),
            ("10.0.0.1:1", "10.0.0.1:1", None),
            ("10.0.0.1:1", "8.8.4.4:1", None),
            ("127.0.0.1:1", "127.0.0.1:1", None),
            ("[::1]:1", "[::1]:1", None),
            ("0.0.0.0:1", "127.0.0.1:1", Some("loopback")),
            ("10.0.0.1:1", "169.254.1.1:1", Some("link-local")),
            ("10.0.0.1:1", "203.0.113.5:1", Some("documentation")),
            ("10.0.0.1:1", "[2001:db8::1]:1", Some("documentation")),
            ("10.0.0.1:1", "127.0.0.1:1", Some("error")),
            ("10.0.0.1:1", "[::1]:1", Some("error")),
            ("10.0.0.1:1", "[fe80::1]:1", Some("error")),
            ("10.0.0.1:1", "0.0.0.0:1", Some("error")),
            ("10.0.0.1:1", "[::]:1", Some("error")),
            ("10.0.0.1:1", "0.1.2.3:1", Some("error")),
            ("10.0.0.1:1", "224.0.0.1:1", Some("error")),
            ("10.0.0.1:1", "[ff02::1]:1", Some("error")),
            ("10.0.0.1:1", "255.255.255.255:1", Some("error")),
            ("10.0.0.1:1", "192.0.0.9:1", Some("error")),
        ];
        for (bind, named, expected) in cases {
            match (settled(bind, Some(named), Host::default()), expected) {
                (Ok(Advertised { warning: None, .. }), None) => {}
                (Ok(Advertised { warning: Some(text), .. }), Some(expected)) if text.contains(expected) => {}
                (Err(error), Some("error")) => assert_eq!((error.field, &*error.value), ("advertise", named)),
                (settled, _) => panic!("{bind} {named}: {settled:?}"),
            }
        }
        assert_eq!(settled("224.0.0.1:1", None, Host::default()).unwrap_err().field, "bind");
        assert_eq!(settled("[fe80::1]:1", None, Host::default()).unwrap_err().field, "bind");
    }

    #[test]
    fn weak_point_14_a_node_that_denies_itself_does_not_start() {
        let with = |nets: &[&str]| {
            let cidrs_allowed = Some(nets.iter().map(|net| net.parse().unwrap()).collect());
            let config = Config { cidrs_allowed, ..Config::lan() };
            settle("10.0.0.1:1".parse().unwrap(), None, &config, Host::default)
        };
        let error = with(&["192.168.0.0/16", "fd00::/8"]).unwrap_err();
        assert_eq!((error.field, &*error.value), ("cidrs_allowed", "192.168.0.0/16, fd00::/8"));
        assert!(error.limit.contains("10.0.0.1"), "{error}");
        assert!(with(&["192.168.0.0/16", "10.0.0.0/8"]).is_ok());
        assert!(with(&[]).is_ok(), "alone with itself");
    }
}

//! The allow list: from which networks others are listened to and taken in.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Config;

/// Bits in front of an IPv4 address in its mapped form, `::ffff:a.b.c.d`.
const MAPPED: u8 = 96;

impl Config {
    /// Whether `ip` is in one of the networks allowed. IPv4 addresses and networks in their mapped form are
    /// IPv4; `::/0` is all of IPv6, and nothing of IPv4.
    pub fn allows(&self, ip: IpAddr) -> bool {
        self.cidrs_allowed.as_ref().is_none_or(|nets| nets.iter().any(|net| holds(net, ip.to_canonical())))
    }
}

fn holds(net: &IpNet, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpNet::V6(net), IpAddr::V4(ip)) if net.prefix_len() >= MAPPED => net.contains(&ip.to_ipv6_mapped()),
        _ => net.contains(&ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(nets: &[&str], ip: &str) -> bool {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        Config { cidrs_allowed: Some(nets), ..Config::lan() }.allows(ip.parse().unwrap())
    }

    #[test]
    fn without_a_list_every_address_is_allowed() {
        for ip in ["10.0.0.1", "203.0.113.9", "::1", "2001:db8::1"] {
            assert!(Config::lan().allows(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn weak_point_14_an_empty_list_allows_nobody() {
        assert!(!allows(&[], "127.0.0.1") && !allows(&[], "::1"));
    }

    #[test]
    fn a_list_allows_what_is_in_one_of_its_networks_and_in_one_form_of_ipv4_as_in_the_other() {
        let cases = [
            (&["10.0.0.0/8"][..], "10.1.2.3", true),
            (&["10.0.0.0/8"], "::ffff:10.1.2.3", true),
            (&["10.0.0.0/8"], "11.0.0.1", false),
            (&["10.0.0.0/8"], "fd00::1", false),
            (&["::ffff:10.0.0.0/104"], "10.1.2.3", true),
            (&["::ffff:10.0.0.0/104"], "11.1.2.3", false),
            (&["::/0"], "fd00::1", true),
            (&["::/0"], "10.1.2.3", false),
            (&["0.0.0.0/0"], "fd00::1", false),
            (&["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"], "fd12::1", true),
            (&["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"], "192.0.2.7", true),
            (&["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"], "192.0.2.8", false),
        ];
        for (nets, ip, expected) in cases {
            assert_eq!(allows(nets, ip), expected, "{ip} in {nets:?}");
        }
    }
}

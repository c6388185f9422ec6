//! Ports, addresses and address ranges.

use std::net::IpAddr;

use serde_json::Value;

use super::field::{At, Faults};
use super::names;

/// Checks the number or the name of a port.
pub(super) fn port(port: &Value, at: &At, faults: &mut Faults) {
    match port {
        Value::String(name) => faults.invalid_for(at, name, names::port_name(name)),
        number => faults.in_range(at, number, 1, 65_535),
    }
}

/// An IP address; zeros may lead its parts, as they always might in these fields.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() == 4 && !text.contains(':') {
        let plain: Vec<&str> = parts
            .iter()
            .map(|part| {
                let short = part.trim_start_matches('0');
                if short.is_empty() && !part.is_empty() { "0" } else { short }
            })
            .collect();
        return plain.join(".").parse().ok();
    }
    text.parse().ok()
}

/// Checks an IP address; whether it is one.
pub(super) fn ip(text: &str, at: &At, faults: &mut Faults) -> bool {
    let good = address(text).is_some();
    if !good {
        faults.invalid(at, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    good
}

/// A range of addresses.
pub(super) fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let (ip, bits) = (address(ip)?, bits.parse::<u8>().ok()?);
    let most = if ip.is_ipv4() { 32 } else { 128 };
    (bits <= most).then_some((ip, bits))
}

/// Checks a range of addresses; whether it is one.
pub(super) fn cidr(text: &str, at: &At, faults: &mut Faults) -> bool {
    let good = range(text).is_some();
    if !good {
        faults.invalid(at, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
    good
}

/// Checks an address that traffic is sent to.
pub(super) fn reachable(text: &str, at: &At, faults: &mut Faults) {
    let Some(ip) = address(text) else { return };
    let kind = match ip {
        ip if ip.is_unspecified() => "unspecified",
        ip if ip.is_loopback() => "in the loopback range",
        IpAddr::V4(v4) if v4.is_link_local() => "in the link-local range",
        IpAddr::V4(v4) if v4.octets()[..3] == [224, 0, 0] => "in the link-local multicast range",
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 => "in the link-local range",
        IpAddr::V6(v6) if v6.segments()[0] & 0xff0f == 0xff02 => "in the link-local multicast range",
        _ => return,
    };
    let more = match kind {
        "unspecified" => "",
        "in the loopback range" => " (127.0.0.0/8, ::1/128)",
        "in the link-local range" => " (169.254.0.0/16, fe80::/10)",
        _ => " (224.0.0.0/24, ff02::/10)",
    };
    let shown = if kind == "unspecified" {
        format!("may not be {kind} ({text})")
    } else {
        format!("may not be {kind}{more}")
    };
    faults.invalid(at, text, &shown);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.1.1.1", true)]
    #[case("010.001.0.00", true)]
    #[case("10.1.1", false)]
    #[case("256.1.1.1", false)]
    #[case("2001:db8::1", true)]
    #[case("nonsense", false)]
    fn addresses_are_told_from_other_texts(#[case] text: &str, #[case] good: bool) {
        let mut faults = Faults::default();
        assert!(ip(text, &At::root("ip"), &mut faults) == good);
        assert!((faults.count() == 0) == good);
    }

    #[rstest]
    #[case("10.0.0.0/8", true)]
    #[case("10.0.0.0/33", false)]
    #[case("::/0", true)]
    #[case("10.0.0.0", false)]
    fn ranges_are_told_from_other_texts(#[case] text: &str, #[case] good: bool) {
        assert!(cidr(text, &At::root("cidr"), &mut Faults::default()) == good);
    }
}

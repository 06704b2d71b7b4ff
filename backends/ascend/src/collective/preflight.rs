//! Settings that keep ranks from finding each other, checked before HCCL waits for minutes.

use std::{
    env, fs,
    net::{IpAddr, UdpSocket},
};

use halyard_sdk::{Error, Result};

use crate::driver;

/// The host's address at which ranks meet.
const ADDRESS: &str = "HCCL_IF_IP";
/// The host's interfaces of which one is taken, unless there is an address.
const INTERFACES: &str = "HCCL_SOCKET_IFNAME";

/// Refuses an address that is not this host's, and interfaces that it does not have.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the variable, its value and what there is.
pub(crate) fn check() -> Result<()> {
    if let Ok(text) = env::var(ADDRESS) {
        return check_address(&text);
    }
    let Ok(pattern) = env::var(INTERFACES) else { return Ok(()) };
    let Ok(folder) = fs::read_dir("/sys/class/net") else { return Ok(()) };
    let names: Vec<String> =
        folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if names.iter().any(|name| matches(&pattern, name)) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{INTERFACES}={pattern} names no network interface of this host, which has: {}",
        names.join(", ")
    )))
}

fn check_address(text: &str) -> Result<()> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(Error::invalid(format!("{ADDRESS}={text} is no IP address")));
    };
    // Only an address of the host's own can be bound.
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::invalid(format!(
            "{ADDRESS}={text} is no address of this host ({error}); it names the interface at which ranks meet"
        ))),
    }
}

/// Whether HCCL takes an interface: a list of prefixes, with `=` of whole names, with `^` of what is not taken.
fn matches(pattern: &str, name: &str) -> bool {
    let (excludes, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (whole, list) = rest.strip_prefix('=').map_or((false, rest), |rest| (true, rest));
    let is_in = list
        .split(',')
        .map(str::trim)
        .any(|one| if whole { one == name } else { name.starts_with(one) });
    is_in != excludes
}

/// An error of HCCL's with what decides how ranks reach each other: the first to look at when they do not. `hccn_tool` is asked for the
/// NPUs' own network, if it is there.
pub(crate) fn explain(error: &Error) -> Error {
    let setting = |name: &str| match env::var(name) {
        Ok(value) => format!("{name}={value}"),
        Err(_) => format!("{name} not set"),
    };
    let settings = [ADDRESS, INTERFACES, "HCCL_IF_BASE_PORT"].map(setting).join(", ");
    let network = driver::diagnosis(&driver::machine_numbers());
    let message = format!("{} ({settings}; {network})", error.message);
    Error { message: message.into(), ..error.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_named_as_hccl_takes_them() {
        for (pattern, name, taken) in [
            ("eth", "eth0", true),
            ("eth", "lo", false),
            ("lo,eth", "eth1", true),
            ("=eth0", "eth0", true),
            ("=eth", "eth0", false),
            ("^eth", "eth0", false),
            ("^eth", "lo", true),
            ("^=eth0", "eth1", true),
            ("^=eth0", "eth0", false),
        ] {
            assert_eq!(matches(pattern, name), taken, "{pattern} {name}");
        }
    }

    #[test]
    fn addresses_are_the_hosts_own() {
        assert!(check_address("127.0.0.1").is_ok());
        for (text, why) in [("192.0.2.1", "no address of this host"), ("eth0", "no IP address")] {
            let error = check_address(text).unwrap_err();
            assert!(error.message.contains(why), "{error}");
        }
    }
}

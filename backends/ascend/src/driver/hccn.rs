//! `hccn_tool`, the driver's tool for the NPUs' own network, on which devices of several hosts reach each other.

use std::{fs, io::ErrorKind, process::Command};

/// Where the driver puts it, if it is on no search path.
const USUAL: &str = "/usr/local/Ascend/driver/tools/hccn_tool";

/// Addresses that the driver sets when the machine starts.
const CONFIGURATION: &str = "/etc/hccn.conf";

/// What the tool prints to a question; none if it is not there.
fn ask(device: u32, question: &str) -> Option<String> {
    let device = device.to_string();
    ["hccn_tool", USUAL].into_iter().find_map(|program| {
        match Command::new(program).args(["-i", &device, question, "-g"]).output() {
            // What it says of its failures is on either.
            Ok(done) => {
                Some(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(error.to_string()),
        }
    })
}

/// What of the network keeps these devices of the machine from others, and what to do about it, in one sentence.
pub(crate) fn diagnosis(devices: &[u32]) -> String {
    let configuration = fs::read_to_string(CONFIGURATION).ok();
    let mut problems = Vec::new();
    for &device in devices {
        let (Some(link), Some(address)) = (ask(device, "-link"), ask(device, "-ip")) else {
            return "the state of the NPUs' own network is not known: hccn_tool of the driver is not there; devices of one host do without \
                    that network"
                .into();
        };
        problems.extend(problems_of(device, [&link, &address], configuration.as_deref()));
    }
    if problems.is_empty() {
        return "the NPUs' own network has its links up and addresses set".into();
    }
    format!("between hosts: {}", problems.join("; "))
}

fn problems_of(
    device: u32,
    [link, address]: [&str; 2],
    configuration: Option<&str>,
) -> Vec<String> {
    let field = |text: &str, label: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(label));
        value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let mut problems = Vec::new();
    match field(link, "link status:") {
        Some(state) if state == "UP" => {}
        Some(state) => problems.push(format!(
            "the link of device {device} is {state}: look at its cable and at the switch's port"
        )),
        None => problems
            .push(format!("hccn_tool does not tell the link of device {device}: {}", said(link))),
    }
    if field(address, "ipaddr:").is_none() {
        problems.push(format!(
            "device {device} has no address: `hccn_tool -i {device} -ip -s address ADDRESS netmask MASK` sets one"
        ));
    } else if configuration.is_some_and(|all| field(all, &format!("address_{device}=")).is_none()) {
        problems.push(format!(
            "{CONFIGURATION} has no address_{device}, so that the device loses its address when the machine starts"
        ));
    }
    problems
}

/// What was printed, in one line.
fn said(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: &str = "link status: UP\n";
    const ADDRESS: &str = "ipaddr:192.168.100.101\nnetmask:255.255.255.0\n";

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let configuration = "address_0=192.168.100.101\nnetmask_0=255.255.255.0\n";
        let of = |device, texts, all| problems_of(device, texts, all).join("; ");
        assert_eq!(of(0, [UP, ADDRESS], Some(configuration)), "");
        assert_eq!(of(0, [UP, ADDRESS], None), "");
        for (device, texts, wanted) in [
            (
                0,
                ["link status: DOWN\n", ADDRESS],
                "the link of device 0 is DOWN: look at its cable",
            ),
            (0, [UP, "Cmd execute failed!\n"], "`hccn_tool -i 0 -ip -s address ADDRESS"),
            (1, [UP, ADDRESS], "/etc/hccn.conf has no address_1"),
            (2, ["no\nright", ADDRESS], "does not tell the link of device 2: no right"),
        ] {
            let told = of(device, texts, Some(configuration));
            assert!(told.contains(wanted), "{told}");
        }
    }
}

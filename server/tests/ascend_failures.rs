//! What goes wrong with NPUs, on the software NPU: each failure ends in one clear message, and the server stays able to say so.

mod common;

use common::{
    Server, body_of,
    failure::{lost, refused},
    golden::{PLAIN, greedy},
    npu::Npus,
};
use serde_json::json;

const F16: [&str; 2] = ["--dtype", "float16"];

#[test]
fn no_cann_or_one_that_is_of_no_use() {
    let none = Npus::without_cann("910B1");
    let words = ["no CANN toolkit", "libascendcl.so", "install CANN and source its set_env.sh"];
    refused(&mut none.serve("llama", &F16), &words);
    let part = Npus::with("cann-8.1", "910B1").lacking("libopapi.so");
    refused(&mut part.serve("llama", &F16), &["no CANN toolkit", "libopapi.so"]);
    let base = Npus::with("cann-8.5", "910B1").lacking("libnnopbase.so");
    refused(&mut base.serve("llama", &F16), &["no CANN toolkit", "libnnopbase.so"]);
    let other = Npus::with("cann-8.1", "910B1").mistaking("libascendcl.so", "libdcmi.so");
    refused(&mut other.serve("llama", &F16), &["the installed CANN has no aclInit"]);
}

#[test]
fn a_cann_that_is_too_old_or_in_part() {
    let old = Npus::with("cann-8.0", "910B1");
    let words = [
        "the installed CANN (8.0.0) has no aclnnFusedInferAttentionScoreV3, aclnnFusedInferAttentionScoreV4;",
        "CANN 8.1.RC1 or newer is needed",
    ];
    refused(&mut old.serve("llama", &F16), &words);
    let listed = old.halyard("devices").output().expect("the binary starts");
    let log = String::from_utf8(listed.stderr).expect("UTF-8");
    let told: Vec<_> = log.lines().filter(|line| line.contains("CANN (8.0.0)")).collect();
    assert!(told.len() == 1 && words.iter().all(|word| told[0].contains(word)), "{log}");
    let part = Npus::with("cann-8.5", "910B1").lacking("libopapi_transformer.so");
    let words = ["the installed CANN (8.5.0) has no aclnn", "with its package of operators"];
    refused(&mut part.serve("llama", &F16), &words);
}

#[test]
fn no_device_or_too_few_of_them() {
    let none = Npus::with("cann-8.1", "");
    let words = ["ascend:0 is not there", "CANN is there, but no device"];
    refused(&mut none.serve("llama", &F16), &words);
    let two = Npus::with("cann-8.1", "910B1,910B1");
    let flags = [&F16[..], &["-tp", "4"]].concat();
    let words = ["--tensor-parallel-size 4 needs 4 devices", "ascend has 2"];
    refused(&mut two.serve("llama", &flags), &words);
    let busy = Npus::with("cann-8.1", "910B1").failing("aclrtSetDevice:207005@1+");
    let words = ["cannot open the device ascend:0", "aclrtSetDevice", "resources are taken"];
    refused(&mut busy.serve("llama", &F16), &words);
}

#[test]
fn devices_that_share_a_model_need_hccl_and_a_way_to_each_other() {
    let flags = [&F16[..], &["-tp", "2"]].concat();
    let devices = "910B1,910B1";
    let without = Npus::with("cann-8.1", devices).lacking("libhccl.so");
    let words = ["tensor_parallel_size", "no HCCL", "libhccl.so", "source its set_env.sh"];
    refused(&mut without.serve("llama", &flags), &words);
    let interface = Npus::with("cann-8.1", devices).set("HCCL_SOCKET_IFNAME", "=moon0");
    let words = ["HCCL_SOCKET_IFNAME==moon0 names no network interface of this host", "lo"];
    refused(&mut interface.serve("llama", &flags), &words);
    let address = Npus::with("cann-8.1", devices).set("HCCL_IF_IP", "192.0.2.1");
    let words = ["HCCL_IF_IP=192.0.2.1 is no address of this host"];
    refused(&mut address.serve("llama", &flags), &words);
    let link = Npus::with("cann-8.1", devices).failing("HcclCommInitRootInfo:19@1+");
    let words = ["HcclCommInitRootInfo", "network error", "HCCL_IF_IP not set", "hccn_tool"];
    refused(&mut link.serve("llama", &flags), &words);
}

/// The driver's tools for its network: one device's link is down, the other has no address.
const HCCN_TOOL: &str = r#"
case "$*" in
    "-i 0 -link -g") echo "link status: UP" ;;
    "-i 1 -link -g") echo "link status: DOWN" ;;
    "-i 1 -ip -g") printf "ipaddr:192.168.100.101\nnetmask:255.255.255.0\n" ;;
    *) echo "Cmd execute failed!" >&2; exit 1 ;;
esac"#;

#[test]
fn the_network_of_the_npus_is_looked_at_when_ranks_do_not_meet() {
    let flags = [&F16[..], &["-tp", "2"]].concat();
    let broken = || Npus::with("cann-8.1", "910B1,910B1").failing("HcclCommInitRootInfo:19@1+");
    let words = [
        "device 0 has no address: `hccn_tool -i 0 -ip -s address",
        "the link of device 1 is DOWN: look at its cable",
    ];
    let tool = broken().program("hccn_tool", HCCN_TOOL);
    refused(&mut tool.serve("llama", &flags), &words);
    let words = ["hccn_tool of the driver is not there; devices of one host do without"];
    refused(&mut broken().serve("llama", &flags), &words);
}

/// The driver's tool, of the second card.
const NPU_SMI: &str = r#"
case "$*" in
    "info -m") printf "NPU ID Chip ID Chip Logic ID Chip Name\n4 0 0 Ascend 910B1\n4 1 - Mcu\n" ;;
    "info -t usages -i 4 -c 0") printf "\tHBM Bandwidth Usage Rate(%%) : 40\n\tNPU Utilization(%%) : 96\n" ;;
    "info -t temp -i 4 -c 0") printf "\tNPU Temperature (C) : 45\n" ;;
    "info -t power -i 4 -c 0") printf "\tNPU Real-time Power(W) : 94.2\n" ;;
    *) echo "This device does not support querying." ; exit 1 ;;
esac"#;

#[test]
fn npu_smi_measures_where_dcmi_is_missing() {
    let npus = Npus::with("cann-8.1", "910B1").lacking("libdcmi.so");
    let listed = npus.program("npu-smi", NPU_SMI).halyard("devices").output().expect("it starts");
    let table = String::from_utf8(listed.stdout).expect("UTF-8");
    let row = table.lines().find(|line| line.starts_with("ascend:0")).expect("a row");
    assert!(row.contains("96 % busy, 45 °C, 94 W"), "{table}");
}

#[test]
fn too_little_memory_is_said_with_the_numbers() {
    // After what the device itself takes.
    let full = Npus::with("cann-8.1", "910B4").failing("aclrtMalloc:207018@3+");
    let words = ["device out of memory", "MiB are wanted", "of the device's 32768 MiB are free"];
    refused(&mut full.serve("llama", &F16), &words);
}

/// Whether decode steps of a server are replayed.
fn replays(npus: &Npus, flags: &[&str]) -> bool {
    let server = Server::run(&mut npus.serve("llama", &[&F16[..], flags].concat()));
    let client = server.client();
    body_of(client.send(PLAIN, &greedy(&json!("a"), 4)), 200);
    let metrics = client.get("/metrics");
    let launches = metrics.lines().find(|l| l.starts_with("halyard:graph_launches_total"));
    !launches.expect("a metric").ends_with(" 0")
}

#[test]
fn a_release_without_graphs_serves_without_them_and_says_so() {
    assert!(replays(&Npus::with("cann-8.1", "910B1"), &[]));
    assert!(!replays(&Npus::with("cann-8.1", "910B1"), &["--enforce-eager"]));
    let lacking = Npus::without("aclmdlRICaptureTaskGrpEnd", "cann-8.1", "910B1");
    assert!(!replays(&lacking, &[]));
    let listed = lacking.halyard("devices").output().expect("the binary starts");
    let log = String::from_utf8(listed.stderr).expect("UTF-8");
    let told: Vec<_> = log.lines().filter(|line| line.contains("no graphs")).collect();
    assert!(told.len() == 1 && told[0].contains("aclmdlRICaptureTaskGrpEnd"), "{log}");
}

#[test]
fn graphs_that_cannot_be_captured_are_told_with_the_flag_that_does_without() {
    for (function, code, words) in [
        ("aclmdlRICaptureBegin", 107_030, "aclmdlRICaptureBegin"),
        ("aclmdlRICaptureTaskGrpEnd", 107_000, "aclmdlRICaptureTaskGrpEnd"),
        ("aclmdlRICaptureEnd", 507_903, "aclmdlRICaptureEnd"),
    ] {
        let npus = Npus::with("cann-8.1", "910B1").failing(&format!("{function}:{code}@2"));
        let flag = "capturing decode steps in graphs failed (--enforce-eager does without)";
        refused(&mut npus.serve("llama", &F16), &[flag, words, "(vendor code"]);
    }
}

#[test]
fn a_device_that_is_lost_ends_all_requests_and_is_told_on_health() {
    for (code, name) in [(507_015, "AI core exception"), (507_053, "device memory error")] {
        let fault = format!("device:aclnnFusedInferAttentionScoreV3:{code}@40");
        let npus = Npus::with("cann-8.1", "910B1").failing(&fault);
        let server = Server::run(&mut npus.serve("llama", &F16));
        lost(server, "ascend:0", &[name, &format!("(vendor code {code})")]);
    }
}

#[test]
fn a_link_that_is_gone_is_told() {
    let npus = Npus::with("cann-8.1", "910B1,910B1").failing("hccl:HcclAllGather:19@60");
    let flags = [&F16[..], &["-tp", "2"]].concat();
    let server = Server::run(&mut npus.serve("llama", &flags));
    // Both ranks find out; who is first is the one that is named.
    lost(server, "ascend:0", &[" of 2: HCCL: ", "HcclResult"]);
}

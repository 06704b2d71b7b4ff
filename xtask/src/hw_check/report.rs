//! The report for people.

use std::fmt::Write;

use serde_json::Value;

use super::{CublasLt, Findings, Gemm, Kernel, Limits};

/// Entries of `conformance/cases/perf.toml` by the outputs and inputs of their linear layers.
const LAYERS: [(&str, [usize; 2]); 2] =
    [("llama_8b_qkv", [6144, 4096]), ("llama_8b_down", [4096, 14336])];

pub(super) fn markdown(found: &Findings) -> String {
    let mut text = String::new();
    head(&mut text, found);
    proofs(&mut text, found);
    kernels(&mut text, found);
    gemms(&mut text, found);
    bench(&mut text, found.bench.as_ref(), &found.limits);
    text
}

/// Adds a line.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {
        let _ = writeln!($text, $($format)*);
    };
}

fn head(text: &mut String, found: &Findings) {
    let first = &found.devices[0];
    let software = found.stand_in.map(|what| format!(" ({})", what.trim_start_matches("the ")));
    let software = software.unwrap_or_default();
    line!(text, "# {}{software}\n", first.name);
    line!(text, "Written by `cargo xtask hw-check` of commit {}.", found.commit);
    if let Some(stand_in) = found.stand_in {
        line!(
            text,
            "\n**This is {stand_in}: nothing here has run on hardware, and no time is a time of hardware.**"
        );
    }
    for cut in &found.cut {
        line!(text, "\n**Not a whole run: {cut}.**");
    }
    line!(
        text,
        "\n| device | name | arch | driver | memory | processors |\n|---|---|---|---|---|---|"
    );
    for device in &found.devices {
        let gib = device
            .memory_bytes
            .map_or("-".into(), |b| format!("{:.1} GiB", b as f64 / f64::from(1 << 30)));
        let units = device.compute_units.map_or("-".into(), |units| units.to_string());
        line!(
            text,
            "| {} | {} | {} | {} | {gib} | {units} |",
            device.device,
            device.name,
            device.arch,
            device.driver
        );
    }
}

fn proofs(text: &mut String, found: &Findings) {
    let counts = &found.verified;
    line!(text, "\n## Correctness\n");
    line!(
        text,
        "`halyard verify`: {} cases passed, {} failed, {} unsupported, {} unavailable.\n",
        counts.passed,
        counts.failed,
        counts.unsupported,
        counts.unavailable
    );
    line!(text, "Golden models, greedy tokens against an independent implementation:\n");
    line!(text, "| model | devices | graphs | tokens |\n|---|---|---|---|");
    for trial in &found.golden {
        let graphs = if trial.graphs { "yes" } else { "no" };
        let outcome = trial.problem.as_deref().unwrap_or("all as expected");
        let outcome = outcome.replace('|', "/").replace('\n', " ");
        line!(text, "| {} | {} | {graphs} | {outcome} |", trial.model, trial.ranks);
    }
}

fn kernels(text: &mut String, found: &Findings) {
    let limits = &found.limits;
    let giga = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
    line!(text, "\n## Kernels\n");
    line!(
        text,
        "Memory: {} by the device's attributes (clock and width of the bus), {} read and written by a copy.\n",
        limits.peak_bytes_per_s.map_or_else(|| "not told".into(), giga),
        giga(limits.copy_bytes_per_s)
    );
    if found.kernels.is_empty() {
        line!(text, "Kernels were not timed.");
        return;
    }
    line!(
        text,
        "Times are medians of {} runs, each itself a median; shares are of the attributes' bandwidth if there is one, else of the copy's.\n",
        found.runs
    );
    let limit = limits.bandwidth();
    line!(text, "| kernel | µs | GB/s | of the bandwidth | TFLOP/s |\n|---|---|---|---|---|");
    for kernel in &found.kernels {
        let Some(micros) = kernel.micros else {
            let why = kernel.error.as_deref().unwrap_or("not timed").replace('\n', " ");
            line!(text, "| {} | {why} | | | |", kernel.name);
            continue;
        };
        let rate = kernel.bytes as f64 / micros * 1e6;
        let flops = if kernel.flops == 0 {
            "-".into()
        } else {
            format!("{:.2}", kernel.flops as f64 / micros / 1e6)
        };
        line!(
            text,
            "| {} | {micros:.1} | {:.1} | {:.0} % | {flops} |",
            kernel.name,
            rate / 1e9,
            100.0 * rate / limit
        );
    }
}

fn gemms(text: &mut String, found: &Findings) {
    let Some(cublaslt) = &found.limits.cublaslt else { return };
    line!(text, "\n## Dense linear layers beside cuBLASLt\n");
    let (version, gemms) = match cublaslt {
        CublasLt::Missing(why) => {
            line!(text, "Not measured: {why}.");
            return;
        }
        CublasLt::Measured { version, gemms } => (version, gemms),
    };
    line!(text, "cuBLASLt {version}, bf16 with sums in f32, its first choice of algorithm.\n");
    line!(
        text,
        "| tokens | outputs | inputs | halyard µs | cuBLASLt µs | time of cuBLASLt |\n|---|---|---|---|---|---|"
    );
    for gemm in gemms {
        let Gemm { tokens, outputs, inputs, micros } = gemm;
        let ours = ours(&found.kernels, gemm);
        let share = ours.map_or("-".into(), |ours| format!("{:.2}", ours / micros));
        let ours = ours.map_or("not timed".into(), |ours| format!("{ours:.1}"));
        line!(text, "| {tokens} | {outputs} | {inputs} | {ours} | {micros:.1} | {share} |");
    }
}

/// The time of the backend's own kernel for the same product.
fn ours(kernels: &[Kernel], gemm: &Gemm) -> Option<f64> {
    let (entry, _) = LAYERS.iter().find(|(_, layer)| *layer == [gemm.outputs, gemm.inputs])?;
    let name = format!("{entry}/T={}/same", gemm.tokens);
    kernels.iter().find(|kernel| kernel.name == name)?.micros
}

fn bench(text: &mut String, report: Option<&Value>, limits: &Limits) {
    line!(text, "\n## Tokens a second\n");
    let Some(report) = report else {
        line!(text, "Not measured: no model was named (`--bench PATH`).");
        return;
    };
    let model = report["model"].as_str().unwrap_or_default();
    let number = |of: &Value| of.as_f64().unwrap_or(f64::NAN);
    let weights = number(&report["weight_bytes"]);
    line!(
        text,
        "{model} on the first device, weights {:.1} MB, which a step of generation reads once:\n",
        weights / 1e6
    );
    line!(text, "| test | batch | tokens/s | ± | of the bandwidth |\n|---|---|---|---|---|");
    for row in report["results"].as_array().into_iter().flatten() {
        let test = row["test"].as_str().unwrap_or_default();
        let (speed, batch) = (number(&row["tokens_per_second"]), number(&row["batch"]));
        let share = 100.0 * speed / batch * weights / limits.bandwidth();
        let share = if test.starts_with("tg") { format!("{share:.1} %") } else { "-".into() };
        let spread = number(&row["spread"]);
        line!(text, "| {test} | {batch} | {speed:.2} | {spread:.2} | {share} |");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{Counts, Device, golden::Trial},
        *,
    };

    fn findings(name: &str, stand_in: Option<&'static str>, cublaslt: CublasLt) -> Findings {
        let device = Device {
            device: "cuda:0".into(),
            name: name.into(),
            arch: "sm_90".into(),
            driver: "CUDA 12.2".into(),
            memory_bytes: Some(80 << 30),
            compute_units: Some(132),
            error: None,
        };
        let kernel = Kernel {
            name: "llama_8b_qkv/T=1/same".into(),
            bytes: 50_000_000,
            flops: 50_000_000,
            micros: Some(20.0),
            error: None,
        };
        Findings {
            commit: "abc".into(),
            stand_in,
            cut: Vec::new(),
            runs: 3,
            devices: vec![device],
            verified: Counts { passed: 5, failed: 0, unsupported: 0, unavailable: 0 },
            golden: vec![Trial { model: "llama".into(), ranks: 1, graphs: true, problem: None }],
            limits: Limits {
                peak_bytes_per_s: Some(3.35e12),
                copy_bytes_per_s: 3e12,
                cuda_version: Some(12020),
                cublaslt: Some(cublaslt),
            },
            kernels: vec![kernel],
            bench: Some(json!({
                "model": "m",
                "weight_bytes": 1_000_000_000u64,
                "results": [{"test": "tg4", "batch": 2, "tokens_per_second": 3350.0, "spread": 1.0}],
            })),
        }
    }

    #[test]
    fn hardware_has_shares_and_a_peer() {
        let gemms = vec![Gemm { tokens: 1, outputs: 6144, inputs: 4096, micros: 25.0 }];
        let measured = CublasLt::Measured { version: 120_000, gemms };
        let text = markdown(&findings("NVIDIA H100", None, measured));
        assert!(text.starts_with("# NVIDIA H100\n"), "{text}");
        assert!(!text.contains("software GPU"), "{text}");
        // 2.5 of 3.35 TB/s, and 20 of 25 µs.
        assert!(text.contains("| llama_8b_qkv/T=1/same | 20.0 | 2500.0 | 75 % | 2.50 |"), "{text}");
        // Half of 3350 steps a second, each with 1 GB.
        assert!(text.contains("| tg4 | 2 | 3350.00 | 1.00 | 50.0 % |"), "{text}");
        assert!(text.contains("| 1 | 6144 | 4096 | 20.0 | 25.0 | 0.80 |"), "{text}");
    }

    #[test]
    fn a_stand_in_is_told_and_so_is_what_was_left_out() {
        let missing = CublasLt::Missing("no libcublasLt.so".into());
        let mut found = findings("Simulated H100", Some("the software GPU"), missing);
        found.cut.push("only timed kernels with `copy` in the name".into());
        found.golden[0].problem = Some("prompt 0, token 1".into());
        let text = markdown(&found);
        assert!(text.starts_with("# Simulated H100 (software GPU)\n"), "{text}");
        for part in [
            "This is the software GPU: nothing here has run on hardware",
            "Not a whole run: only timed kernels",
            "prompt 0, token 1",
            "Not measured: no libcublasLt.so.",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!found.passed());
    }

    #[test]
    fn a_bandwidth_that_only_a_copy_tells_is_the_limit() {
        let missing = CublasLt::Missing(String::new());
        let mut found = findings("Ascend910B1", Some("the software NPU"), missing);
        found.limits = Limits {
            peak_bytes_per_s: None,
            copy_bytes_per_s: 1.25e12,
            cuda_version: None,
            cublaslt: None,
        };
        let text = markdown(&found);
        assert!(text.starts_with("# Ascend910B1 (software NPU)\n"), "{text}");
        assert!(text.contains("Memory: not told by the device's attributes"), "{text}");
        assert!(!text.contains("cuBLASLt"), "{text}");
        // 2.5 of 1.25 TB/s.
        assert!(
            text.contains("| llama_8b_qkv/T=1/same | 20.0 | 2500.0 | 200 % | 2.50 |"),
            "{text}"
        );
    }
}

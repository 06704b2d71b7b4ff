//! Which calls of CANN a session comes to, on the software NPU.

mod common;

use std::{collections::BTreeMap, fs};

use common::{MODELS, golden::prompts, npu::Npus, printed};
use serde_json::json;

/// How often each function was called and succeeded.
struct Calls(BTreeMap<String, i64>);

impl Calls {
    fn of(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    fn all(&self, wanted: impl Fn(&str) -> bool) -> i64 {
        self.0.iter().filter(|(name, _)| wanted(name)).map(|(_, count)| count).sum()
    }

    /// First phases of operators.
    fn plans(&self) -> i64 {
        self.all(|name| name.starts_with("aclnn") && name.ends_with("GetWorkspaceSize"))
    }

    /// Second phases.
    fn runs(&self) -> i64 {
        self.all(|name| name.starts_with("aclnn") && !name.ends_with("GetWorkspaceSize"))
    }
}

/// Those of a whole session that generates so many tokens.
fn session(model: &str, tokens: usize) -> Calls {
    let npus = Npus::with("cann-8.5", "910B1");
    let folder = tempfile::tempdir().expect("a folder");
    let [record, input] = ["calls", "input"].map(|name| folder.path().join(name));
    let request = json!({
        "prompt": prompts(model)[0].ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
    });
    fs::write(&input, format!("{request}\n")).expect("written");
    let mut generate = npus.halyard("generate");
    generate.arg(format!("{MODELS}/{model}")).args(["--quiet", "--device", "ascend"]);
    generate.args(["--dtype", "bfloat16", "--conformance", "off", "--input"]).arg(&input);
    printed(generate.env("HALYARD_SIM_ASCEND_CALLS", &record));
    let text = fs::read_to_string(record).expect("a record");
    let mut calls = BTreeMap::new();
    for name in text.lines().filter_map(|line| line.strip_suffix(" 0")) {
        *calls.entry(name.to_owned()).or_insert(0) += 1;
    }
    Calls(calls)
}

#[test]
fn steps_use_plans_again_allocate_nothing_and_leave_nothing_behind() {
    for model in ["llama", "qwen3_moe"] {
        let [short, long] = [4, 20].map(|tokens| session(model, tokens));
        for calls in [&short, &long] {
            let of = |name: &str| calls.of(name);
            // A list destroys its one tensor.
            let freed = of("aclDestroyTensor") + of("aclDestroyTensorList");
            assert_eq!(of("aclCreateTensor"), freed, "{model}");
            for kind in ["TensorList", "Scalar", "IntArray"] {
                let [made, freed] =
                    ["Create", "Destroy"].map(|verb| of(&format!("acl{verb}{kind}")));
                assert_eq!(made, freed, "{model}: {kind}");
            }
            let (kept, freed) =
                (of("aclSetAclOpExecutorRepeatable"), of("aclDestroyAclOpExecutor"));
            assert!(kept > 0 && kept == freed, "{model}: {kept} {freed}");
            assert_eq!(of("aclrtMalloc"), of("aclrtFree"), "{model}");
        }
        // What the sessions differ in are 16 steps.
        let more = |count: fn(&Calls) -> i64| count(&long) - count(&short);
        let (plans, runs) = (more(Calls::plans), more(Calls::runs));
        let attention = |calls: &Calls| calls.all(|name| name.starts_with("aclnnFusedInfer"));
        let attended = more(attention) / 2;
        eprintln!(
            "{model}: {} first and {} second phases a step, {} of attention",
            plans as f64 / 16.0,
            runs as f64 / 16.0,
            attended as f64 / 16.0
        );
        // Lengths are arguments of attention, so it is planned each time.
        assert_eq!(plans, attended, "{model}");
        assert!(runs > 10 * plans, "{model}: {runs} {plans}");
        assert_eq!(more(|calls| calls.of("aclrtMalloc")), 0, "{model}");
    }
}

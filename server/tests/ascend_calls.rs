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
fn session(model: &str, tokens: usize, flags: &[&str]) -> Calls {
    let npus = Npus::with("cann-8.5", "910B1");
    let folder = tempfile::tempdir().expect("a folder");
    let [record, input] = ["calls", "input"].map(|name| folder.path().join(name));
    let request = json!({
        "prompt": prompts(model)[0].ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
    });
    fs::write(&input, format!("{request}\n")).expect("written");
    let mut generate = npus.halyard("generate");
    generate.arg(format!("{MODELS}/{model}")).args(["--quiet", "--device", "ascend"]);
    generate.args(["--dtype", "bfloat16", "--conformance", "off"]).args(flags);
    generate.arg("--input").arg(&input);
    printed(generate.env("HALYARD_SIM_ASCEND_CALLS", &record));
    let text = fs::read_to_string(record).expect("a record");
    let mut calls = BTreeMap::new();
    for name in text.lines().filter_map(|line| line.strip_suffix(" 0")) {
        *calls.entry(name.to_owned()).or_insert(0) += 1;
    }
    Calls(calls)
}

/// Whatever a session makes it gives back.
fn check_balance(calls: &Calls, model: &str) {
    let of = |name: &str| calls.of(name);
    // A list destroys its one tensor.
    let freed = of("aclDestroyTensor") + of("aclDestroyTensorList");
    assert_eq!(of("aclCreateTensor"), freed, "{model}");
    for kind in ["TensorList", "Scalar", "IntArray"] {
        let [made, freed] = ["Create", "Destroy"].map(|verb| of(&format!("acl{verb}{kind}")));
        assert_eq!(made, freed, "{model}: {kind}");
    }
    let (kept, freed) = (of("aclSetAclOpExecutorRepeatable"), of("aclDestroyAclOpExecutor"));
    assert!(kept > 0 && kept == freed, "{model}: {kept} {freed}");
    assert_eq!(of("aclrtMalloc"), of("aclrtFree"), "{model}");
    assert_eq!(of("aclrtCreateStreamWithConfig"), of("aclrtDestroyStream"), "{model}");
    assert_eq!(of("aclrtCreateEventExWithFlag"), of("aclrtDestroyEvent"), "{model}");
    let begun = of("aclmdlRICaptureBegin");
    for name in ["aclmdlRICaptureEnd", "aclmdlRIDestroy"] {
        assert_eq!(of(name), begun, "{model}: {name}");
    }
}

/// Steps between sessions of 4 and of 20 tokens.
const STEPS: i64 = 16;

/// Products of codes with codes read weights as the chip does, and no others are called.
#[test]
fn layers_of_eight_bits_are_multiplied_in_fractals() {
    for (model, like) in [("qwen2_w8a8", "qwen2"), ("qwen3_moe_w8a8", "qwen3_moe")] {
        let tokenizer = format!("{MODELS}/{like}");
        let calls = session(model, 2, &["--enforce-eager", "--tokenizer", &tokenizer]);
        assert!(calls.of("aclnnQuantMatmulWeightNz") > 0, "{model}");
        let others = calls.all(|name| ["aclnnQuantMatmulV4", "aclnnQuantMatmulV5"].contains(&name));
        assert_eq!(others, 0, "{model}");
    }
}

/// What a step comes to.
struct Step {
    plans: i64,
    runs: i64,
    attended: i64,
    updates: i64,
    launches: i64,
}

impl Step {
    fn of(model: &str, flags: &[&str]) -> Self {
        let [short, long] = [4, 20].map(|tokens| session(model, tokens, flags));
        check_balance(&short, model);
        check_balance(&long, model);
        let each = |count: &dyn Fn(&Calls) -> i64| {
            let more = count(&long) - count(&short);
            assert_eq!(more % STEPS, 0, "{model}: {more} calls in {STEPS} steps");
            more / STEPS
        };
        assert_eq!(each(&|calls| calls.of("aclrtMalloc")), 0, "{model}");
        Self {
            plans: each(&Calls::plans),
            runs: each(&Calls::runs),
            attended: each(&|calls| calls.all(|name| name.starts_with("aclnnFusedInfer"))) / 2,
            updates: each(&|calls| calls.of("aclmdlRICaptureTaskUpdateEnd")),
            launches: each(&|calls| calls.of("aclmdlRIExecuteAsync")),
        }
    }
}

#[test]
fn steps_use_plans_again_allocate_nothing_and_leave_nothing_behind() {
    for model in ["llama", "qwen3_moe"] {
        let eager = Step::of(model, &["--enforce-eager"]);
        // Lengths are arguments of attention, so it is planned each time.
        assert_eq!((eager.plans, eager.updates, eager.launches), (eager.attended, 0, 0), "{model}");
        assert!(eager.runs > 10 * eager.plans, "{model}: {} {}", eager.runs, eager.plans);
        // Replayed from two graphs, attention alone is replaced in one of them; what follows is the choice of a token.
        let graphs = Step::of(model, &[]);
        assert_eq!((graphs.plans, graphs.attended), (eager.plans, eager.attended), "{model}");
        assert_eq!((graphs.updates, graphs.launches), (eager.attended, 2), "{model}");
        eprintln!(
            "{model}: {} first phases a step, of attention; {} second phases launched, {} replayed",
            eager.plans, eager.runs, graphs.runs
        );
        assert!(graphs.runs < eager.runs / 10, "{model}: {} {}", graphs.runs, eager.runs);
    }
}

//! The oracle beside an independent implementation, PyTorch: `conformance/golden/make_golden.py` makes the vectors.
#![expect(clippy::unwrap_used, reason = "the file is this repository's own")]

use halyard_cpu_ref::sampling::{Rule, choose, uniform};
use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::{Act, attrs},
};
use serde_json::Value;

use crate::harness::{Filled, Tensor, absent, dense, is_close, output, run, tensor};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../../conformance/golden/golden.json")).unwrap()
}

/// Numbers, in which null is -inf.
fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NEG_INFINITY)).collect()
}

fn slot(t: &Value) -> Tensor {
    if t.is_null() {
        return absent();
    }
    let dtype = DType::from_name(t["dtype"].as_str().unwrap()).unwrap();
    let dims: Vec<i64> = t["dims"].as_array().unwrap().iter().filter_map(Value::as_i64).collect();
    match &t["values"] {
        Value::Null => output(dtype, &dims),
        values => tensor(dtype, &dims, &numbers(values)),
    }
}

fn weight(w: &Value) -> Filled {
    let size = |name: &str| w[name].as_u64().unwrap();
    let groups = u32::try_from(size("groups")).unwrap();
    let desc = WeightDesc::batched(Scheme::DENSE, DType::F32, groups, size("n"), size("k"));
    dense(desc, &numbers(&w["values"]))
}

/// Launches a case's op on its tensors.
fn launch(case: &Value, t: &mut [Tensor], w: &[Filled]) {
    let a = &case["attrs"];
    let float = |name: &str| a[name].as_f64().unwrap();
    let int = |name: &str| a[name].as_i64().unwrap();
    let flag = |name: &str| a[name].as_bool().unwrap();
    let act = || [Act::Silu, Act::GeluTanh, Act::GeluErf][usize::try_from(int("act")).unwrap()];
    macro_rules! attention {
        ($op:ident) => {
            attrs::$op {
                scale: float("scale"),
                causal: flag("causal"),
                window: int("window"),
                softcap: float("softcap"),
            }
        };
    }
    match case["op"].as_str().unwrap() {
        "copy" => run(&attrs::Copy {}, t, w),
        "rms_norm" => {
            run(&attrs::RmsNorm { eps: float("eps"), plus_one: flag("plus_one") }, t, w);
        }
        "rope" => {
            run(&attrs::Rope { interleaved: flag("interleaved"), offset: int("offset") }, t, w);
        }
        "act_mul" => run(&attrs::ActMul { act: act(), limit: float("limit") }, t, w),
        "batched_linear" => run(&attrs::BatchedLinear {}, t, w),
        "quant_act" => run(&attrs::QuantAct { mode: int("mode") }, t, w),
        "paged_attention" => run(&attention!(PagedAttention), t, w),
        "varlen_attention" => run(&attention!(VarlenAttention), t, w),
        "mla_attention" => run(&attention!(MlaAttention), t, w),
        "merge_attention" => run(&attrs::MergeAttention {}, t, w),
        "moe_router" => {
            let router = attrs::MoeRouter {
                sigmoid: flag("sigmoid"),
                n_group: int("n_group"),
                topk_group: int("topk_group"),
                group_sum_of_two: flag("group_sum_of_two"),
                norm: flag("norm"),
                scale: float("scale"),
            };
            run(&router, t, w);
        }
        "moe_experts" => {
            let experts = attrs::MoeExperts {
                expert_start: int("expert_start"),
                act: act(),
                limit: float("limit"),
                ..Default::default()
            };
            run(&experts, t, w);
        }
        "logprobs" => run(&attrs::Logprobs {}, t, w),
        other => panic!("no case of {other} is expected"),
    }
}

#[test]
fn every_op_agrees_with_pytorch() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 45, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let mut t: Vec<Tensor> = case["tensors"].as_array().unwrap().iter().map(slot).collect();
        let w: Vec<Filled> = case["weights"].as_array().unwrap().iter().map(weight).collect();
        launch(case, &mut t, &w);
        for (at, want) in case["want"].as_object().unwrap() {
            let (got, want) = (t[at.parse::<usize>().unwrap()].memory(), numbers(want));
            if !is_close(&got, &want) {
                wrong.push(format!("{} slot {at}:\ngot  {got:?}\nwant {want:?}", case["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn uniform_numbers_are_philox() {
    for case in golden()["sampling"]["uniforms"].as_array().unwrap() {
        let word = |name: &str| case[name].as_str().unwrap().parse().unwrap();
        let got = uniform(word("seed"), word("offset"));
        let want = case["bits"].as_f64().unwrap() / f64::from(1 << 24);
        assert_eq!(got.to_bits(), want.to_bits(), "{case}");
    }
}

#[test]
fn draws_follow_the_filtered_distribution() {
    for case in golden()["sampling"]["filters"].as_array().unwrap() {
        let float = |name: &str| case[name].as_f64().unwrap();
        let rule = Rule {
            temperature: float("temperature"),
            top_k: case["top_k"].as_i64().unwrap(),
            top_p: float("top_p"),
            min_p: float("min_p"),
        };
        let (logits, ids, p) =
            (numbers(&case["logits"]), numbers(&case["ids"]), numbers(&case["p"]));
        let mut before = 0.0;
        for (&id, p) in ids.iter().zip(&p) {
            // Just inside either end of what the id has, and in the middle.
            for share in [1e-4, 0.5, 1.0 - 1e-4] {
                let u = before + share * p;
                let drawn = choose(&logits, &rule, u);
                assert_eq!((drawn as f64).to_bits(), id.to_bits(), "u = {u} of {rule:?}");
            }
            before += p;
        }
        assert!((before - 1.0).abs() < 1e-6, "{rule:?} sums to {before}");
    }
}

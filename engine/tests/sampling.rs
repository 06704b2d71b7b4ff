//! What each sampling parameter does, end to end.

mod support;

use halyard_engine::{
    EngineEvent, EngineHandle, FinishReason, LoadOptions, SamplingParams, TokenLogprobs,
    TokenOutput,
};
use support::{devices, events, greedy, ids, options, start, submit, tokens};

const PROMPT: [u32; 6] = [1019, 498, 335, 345, 82, 17];
const VOCAB: u32 = 1024;

/// Runs a test on an engine over every backend.
fn on_each(test: impl Fn(&EngineHandle)) {
    for device in devices() {
        let engine = start(&device, "llama", &LoadOptions { max_logprobs: VOCAB, ..options() });
        test(&engine);
        engine.shutdown();
    }
}

fn run(engine: &EngineHandle, params: SamplingParams) -> Vec<TokenOutput> {
    tokens(submit(engine, &PROMPT, params))
}

fn drawn(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: Some(seed), ..greedy(12) }
}

fn logprobs(token: &TokenOutput) -> &TokenLogprobs {
    token.logprobs.as_ref().expect("asked for")
}

#[test]
fn a_seed_fixes_the_draws_and_no_seed_does_not() {
    on_each(|engine| {
        let one = ids(&run(engine, drawn(1)));
        assert_eq!(one, ids(&run(engine, drawn(1))));
        assert_ne!(one, ids(&run(engine, drawn(2))));
        let free = SamplingParams { seed: None, ..drawn(1) };
        assert_ne!(ids(&run(engine, free.clone())), ids(&run(engine, free)));
    });
}

#[test]
fn narrow_filters_leave_the_likeliest() {
    on_each(|engine| {
        let likeliest = ids(&run(engine, greedy(12)));
        for narrow in [
            SamplingParams { top_k: 1, ..drawn(3) },
            SamplingParams { top_p: 1e-6, ..drawn(3) },
            SamplingParams { min_p: 1.0, ..drawn(3) },
            SamplingParams { temperature: 1e-4, ..drawn(3) },
        ] {
            assert_eq!(ids(&run(engine, narrow.clone())), likeliest, "{narrow:?}");
        }
    });
}

#[test]
fn bias_and_allowed_ids_decide_but_logprobs_stay_the_models() {
    on_each(|engine| {
        let all = SamplingParams { logprobs: Some(VOCAB), ..greedy(1) };
        let plain = run(engine, all.clone());
        let of = |id: u32| {
            let top = &logprobs(&plain[0]).top;
            top.iter().find(|entry| entry.0 == id).expect("all are there").1
        };
        let biased = SamplingParams { logit_bias: vec![(77, 100.0), (78, -100.0)], ..all.clone() };
        let allowed = SamplingParams { allowed_token_ids: Some(vec![900]), ..all.clone() };
        for (params, id) in [(biased, 77), (allowed, 900)] {
            let found = run(engine, params);
            assert_eq!(found[0].id, id);
            assert_eq!(logprobs(&found[0]).logprob.to_bits(), of(id).to_bits());
            assert_eq!(logprobs(&found[0]).top, logprobs(&plain[0]).top);
        }
        let pair = SamplingParams { allowed_token_ids: Some(vec![3, 900]), ..drawn(5) };
        let found = ids(&run(engine, SamplingParams { temperature: 100.0, ..pair }));
        assert!(found.contains(&3) && found.contains(&900), "{found:?}");
        assert!(found.iter().all(|id| [3, 900].contains(id)), "{found:?}");
    });
}

#[test]
fn penalties_act_on_what_occurred() {
    on_each(|engine| {
        let two = SamplingParams { allowed_token_ids: Some(vec![1, 2, 3, 4]), ..greedy(4) };
        for penalty in [
            SamplingParams { presence_penalty: 100.0, ..two.clone() },
            SamplingParams { frequency_penalty: 100.0, ..two.clone() },
        ] {
            let mut found = ids(&run(engine, penalty));
            found.sort_unstable();
            assert_eq!(found, [1, 2, 3, 4]);
        }
        // A repetition penalty counts the prompt too: shrunk towards zero, or pushed below it.
        let first = ids(&run(engine, greedy(1)))[0];
        let prompt: Vec<u32> = PROMPT.iter().copied().chain([first]).collect();
        let strong = SamplingParams { repetition_penalty: 1e6, ..greedy(6) };
        let mut found = ids(&tokens(submit(engine, &prompt, strong)));
        assert!(found.iter().all(|id| !prompt.contains(id)), "{found:?}");
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 6, "nothing twice");
    });
}

#[test]
fn no_end_comes_before_its_time() {
    on_each(|engine| {
        let free = ids(&run(engine, greedy(5)));
        let stop = SamplingParams { stop_token_ids: vec![free[1]], ..greedy(5) };
        let early = events(submit(engine, &PROMPT, stop.clone()));
        assert_eq!(early.last(), Some(&EngineEvent::Finished(FinishReason::StopToken(free[1]))));
        let late = ids(&run(engine, SamplingParams { min_tokens: 5, ..stop }));
        assert_eq!((late.len(), late[0]), (5, free[0]));
        assert!(!late.contains(&free[1]));
    });
}

#[test]
fn prompt_logprobs_do_not_depend_on_chunks() {
    for device in devices() {
        let prompt: Vec<u32> = (0..90).map(|at| at * 11 % 1000).collect();
        let params = SamplingParams { prompt_logprobs: Some(4), ..greedy(0) };
        let score = |tokens: usize| {
            let options = LoadOptions { max_num_batched_tokens: Some(tokens), ..options() };
            let engine = start(&device, "llama32", &options);
            // The second time, the prefix cache must not swallow what is asked for.
            let first = events(submit(&engine, &prompt, params.clone()));
            let second = events(submit(&engine, &prompt, params.clone()));
            assert_eq!(first, second);
            engine.shutdown();
            first
        };
        let whole = score(256);
        assert_eq!(whole, score(16));
        assert_eq!(whole.len(), 2);
        let EngineEvent::Prompt(output) = &whole[0] else { panic!("{whole:?}") };
        let scores = output.logprobs.as_ref().expect("asked for");
        assert_eq!((scores.len(), scores[0].is_none()), (90, true));
        for score in scores[1..].iter().flatten() {
            assert_eq!(score.top.len(), 4);
            assert!(score.top.is_sorted_by(|a, b| a.1 >= b.1));
            assert!(score.logprob <= score.top[0].1);
        }
    }
}

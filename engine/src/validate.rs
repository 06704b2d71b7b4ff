//! What a request must satisfy before the engine takes it.

use crate::request::{EngineInfo, EngineRequest, SamplingParams, SubmitError};

/// Refuses a request that the engine cannot carry out, naming the parameter.
pub(crate) fn validate(info: &EngineInfo, request: &EngineRequest) -> Result<(), SubmitError> {
    prompt(info, request)?;
    ranges(&request.params)?;
    token_ids(info, &request.params)?;
    logprobs(info, &request.params)
}

fn invalid(param: &'static str, message: String) -> SubmitError {
    SubmitError::Invalid { param, message }
}

fn prompt(info: &EngineInfo, request: &EngineRequest) -> Result<(), SubmitError> {
    let len = request.prompt.len();
    let max = info.max_model_len;
    if len == 0 {
        return Err(invalid("prompt", "the prompt must have at least one token".into()));
    }
    if len > max {
        return Err(invalid(
            "input_tokens",
            format!(
                "This model's maximum context length is {max} tokens. However, your prompt contains \
                 at least {len} input tokens."
            ),
        ));
    }
    if len == max && request.params.max_tokens > 0 {
        return Err(invalid(
            "input_tokens",
            format!(
                "This model's maximum context length is {max} tokens. However, your prompt contains \
                 {len} input tokens, which leaves no room for an output token."
            ),
        ));
    }
    known("prompt", info, &request.prompt)
}

fn ranges(params: &SamplingParams) -> Result<(), SubmitError> {
    let check = |ok: bool, param, value: f32, allowed: &str| {
        if ok {
            Ok(())
        } else {
            Err(invalid(param, format!("{param} must be {allowed}, got {value}")))
        }
    };
    let t = params.temperature;
    check(t >= 0.0 && t.is_finite(), "temperature", t, "non-negative")?;
    let p = params.top_p;
    check(p > 0.0 && p <= 1.0, "top_p", p, "in (0, 1]")?;
    let p = params.min_p;
    check((0.0..=1.0).contains(&p), "min_p", p, "in [0, 1]")?;
    let r = params.repetition_penalty;
    check(r > 0.0 && r.is_finite(), "repetition_penalty", r, "greater than zero")?;
    let p = params.presence_penalty;
    check(p.is_finite(), "presence_penalty", p, "a finite number")?;
    let p = params.frequency_penalty;
    check(p.is_finite(), "frequency_penalty", p, "a finite number")?;
    if params.min_tokens > params.max_tokens {
        let (min, max) = (params.min_tokens, params.max_tokens);
        let message = format!("min_tokens must be at most max_tokens={max}, got {min}");
        return Err(invalid("min_tokens", message));
    }
    Ok(())
}

fn token_ids(info: &EngineInfo, params: &SamplingParams) -> Result<(), SubmitError> {
    for &(id, bias) in &params.logit_bias {
        known("logit_bias", info, &[id])?;
        if !bias.is_finite() {
            let message = format!("logit_bias of token {id} must be a finite number, got {bias}");
            return Err(invalid("logit_bias", message));
        }
    }
    match &params.allowed_token_ids {
        Some(ids) if ids.is_empty() => {
            Err(invalid("allowed_token_ids", "allowed_token_ids must not be empty".into()))
        }
        Some(ids) => known("allowed_token_ids", info, ids),
        None => Ok(()),
    }
}

fn known(param: &'static str, info: &EngineInfo, ids: &[u32]) -> Result<(), SubmitError> {
    let vocab = info.vocab_size;
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(invalid(
            param,
            format!("token id {id} is out of vocabulary, which has {vocab} ids"),
        )),
        None => Ok(()),
    }
}

fn logprobs(info: &EngineInfo, params: &SamplingParams) -> Result<(), SubmitError> {
    let max = info.max_logprobs;
    for (param, asked) in
        [("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)]
    {
        if let Some(asked) = asked.filter(|&asked| asked > max) {
            let message = format!("{param} must be at most {max}, got {asked}");
            return Err(invalid(param, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{info, request};

    #[test]
    fn each_bad_parameter_is_named() {
        let plain = SamplingParams::default;
        let cases: Vec<(&str, Vec<u32>, SamplingParams)> = vec![
            ("prompt", vec![], plain()),
            ("prompt", vec![1000], plain()),
            ("input_tokens", vec![1; 201], plain()),
            ("input_tokens", vec![1; 200], plain()),
            ("temperature", vec![1], SamplingParams { temperature: -1.0, ..plain() }),
            ("temperature", vec![1], SamplingParams { temperature: f32::NAN, ..plain() }),
            ("top_p", vec![1], SamplingParams { top_p: 0.0, ..plain() }),
            ("min_p", vec![1], SamplingParams { min_p: 1.5, ..plain() }),
            ("repetition_penalty", vec![1], SamplingParams { repetition_penalty: 0.0, ..plain() }),
            ("presence_penalty", vec![1], SamplingParams { presence_penalty: f32::NAN, ..plain() }),
            (
                "frequency_penalty",
                vec![1],
                SamplingParams { frequency_penalty: f32::INFINITY, ..plain() },
            ),
            ("min_tokens", vec![1], SamplingParams { min_tokens: 20, ..plain() }),
            ("logit_bias", vec![1], SamplingParams { logit_bias: vec![(1000, 1.0)], ..plain() }),
            ("logit_bias", vec![1], SamplingParams { logit_bias: vec![(1, f32::NAN)], ..plain() }),
            (
                "allowed_token_ids",
                vec![1],
                SamplingParams { allowed_token_ids: Some(vec![]), ..plain() },
            ),
            (
                "allowed_token_ids",
                vec![1],
                SamplingParams { allowed_token_ids: Some(vec![1000]), ..plain() },
            ),
            ("logprobs", vec![1], SamplingParams { logprobs: Some(6), ..plain() }),
            ("prompt_logprobs", vec![1], SamplingParams { prompt_logprobs: Some(6), ..plain() }),
        ];
        for (expected, prompt, params) in cases {
            match validate(&info(), &request(&prompt, &params)) {
                Err(SubmitError::Invalid { param, .. }) => assert_eq!(param, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_full_prompt_may_be_scored() {
        let params = SamplingParams { max_tokens: 0, ..SamplingParams::default() };
        assert_eq!(validate(&info(), &request(&[1; 200], &params)), Ok(()));
    }
}

//! Checks what a request asks for and turns it into what the engine takes.

use halyard_engine::{EngineInfo, SamplingParams};
use halyard_text::StopMatcher;
use sha2::{Digest, Sha256};

use crate::{
    api::ApiError,
    wire::{Common, Unsupported},
};

/// Choices or candidates a prompt, at most: each costs a place in the queue.
const MAX_SEQUENCES: i64 = 1024;
/// Stop strings, at most, and their length: each is looked for after every token.
const MAX_STOPS: usize = 128;
const MAX_STOP_BYTES: usize = 1024;

/// What bounds a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    /// Facts of the engine.
    pub(crate) info: &'a EngineInfo,
    /// Values for what a request leaves out.
    pub(crate) defaults: &'a Defaults,
    /// Whether requests may have a priority.
    pub(crate) priority_allowed: bool,
}

/// Values for sampling fields that a request leaves out; `None` is the API's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// As the request's field.
    pub temperature: Option<f32>,
    /// As the request's field.
    pub top_p: Option<f32>,
    /// As the request's field.
    pub top_k: Option<i64>,
    /// As the request's field.
    pub min_p: Option<f32>,
    /// As the request's field.
    pub repetition_penalty: Option<f32>,
    /// As the request's field.
    pub presence_penalty: Option<f32>,
    /// As the request's field.
    pub frequency_penalty: Option<f32>,
    /// For `max_tokens`.
    pub max_new_tokens: Option<u32>,
}

impl Defaults {
    /// These, and where they have none, the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature.or(other.temperature),
            top_p: self.top_p.or(other.top_p),
            top_k: self.top_k.or(other.top_k),
            min_p: self.min_p.or(other.min_p),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
            max_new_tokens: self.max_new_tokens.or(other.max_new_tokens),
        }
    }
}

/// The checked shared fields of a request.
#[derive(Clone, Debug)]
pub(crate) struct Sampling {
    /// `max_tokens` and `logprobs` are still to be set by the endpoint.
    pub(crate) params: SamplingParams,
    /// Choices a prompt.
    pub(crate) n: usize,
    /// Candidates a prompt, at least `n`.
    pub(crate) best_of: usize,
    pub(crate) stops: StopMatcher,
    pub(crate) cache_salt: Option<u64>,
    pub(crate) priority: i32,
}

/// A prompt as the engine takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptIds {
    pub(crate) ids: Vec<u32>,
    /// The text it came from; `None` if it came as ids.
    pub(crate) text: Option<String>,
    /// Most tokens to generate after it.
    pub(crate) max_tokens: u32,
}

/// Checks the shared fields.
pub(crate) fn sampling(common: &mut Common, limits: Limits<'_>) -> Result<Sampling, ApiError> {
    refuse_unsupported(common)?;
    let vocab_size = limits.info.vocab_size;
    let mut params = SamplingParams {
        seed: common.seed.map(i64::cast_unsigned),
        ignore_eos: common.ignore_eos,
        min_tokens: count("min_tokens", common.min_tokens.unwrap_or(0))?,
        prompt_logprobs: num_logprobs("prompt_logprobs", common.prompt_logprobs, limits)?,
        logit_bias: logit_bias(common, vocab_size)?,
        allowed_token_ids: allowed_token_ids(common, vocab_size)?,
        ..SamplingParams::default()
    };
    distribution(&mut params, common, limits.defaults)?;
    let stop_ids = common.stop_token_ids.take().unwrap_or_default();
    // Ids beyond the vocabulary are never chosen; clients send those of a family to all its models.
    params.stop_token_ids = stop_ids.into_iter().filter(|&id| is_known(id, vocab_size)).collect();
    if common.stream && common.prompt_logprobs.is_some() {
        return Err(ApiError::invalid(
            "prompt_logprobs",
            "`prompt_logprobs` are not available when `stream` is true.",
        ));
    }
    if common.stream_options.is_some() && !common.stream {
        return Err(ApiError::invalid(
            "stream_options",
            "Stream options can only be given when `stream` is true.",
        ));
    }
    let (n, best_of) = num_sequences(common, params.temperature)?;
    Ok(Sampling {
        params,
        n,
        best_of,
        stops: stops(common)?,
        cache_salt: cache_salt(common)?,
        priority: priority(common, limits)?,
    })
}

/// Everything that shapes the distribution.
fn distribution(
    params: &mut SamplingParams,
    common: &Common,
    defaults: &Defaults,
) -> Result<(), ApiError> {
    let value = |given: Option<f32>, default: Option<f32>, otherwise: f32| {
        given.or(default).unwrap_or(otherwise)
    };
    params.temperature = value(common.temperature, defaults.temperature, 1.0);
    if params.temperature < 0.0 {
        let got = params.temperature;
        let message = format!("temperature must be non-negative, got {got:?}.");
        return Err(ApiError::invalid("temperature", message));
    }
    within("temperature", params.temperature, params.temperature <= 2.0, "in [0, 2]")?;
    params.top_p = value(common.top_p, defaults.top_p, 1.0);
    let top_p = params.top_p;
    within("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "in (0, 1]")?;
    params.min_p = value(common.min_p, defaults.min_p, 0.0);
    within("min_p", params.min_p, (0.0..=1.0).contains(&params.min_p), "in [0, 1]")?;
    for (name, given, default, into) in [
        (
            "presence_penalty",
            common.presence_penalty,
            defaults.presence_penalty,
            &mut params.presence_penalty,
        ),
        (
            "frequency_penalty",
            common.frequency_penalty,
            defaults.frequency_penalty,
            &mut params.frequency_penalty,
        ),
    ] {
        *into = value(given, default, 0.0);
        within(name, *into, (-2.0..=2.0).contains(into), "in [-2, 2]")?;
    }
    params.repetition_penalty = value(common.repetition_penalty, defaults.repetition_penalty, 1.0);
    let penalty = params.repetition_penalty;
    let is_above_zero = penalty > 0.0 && penalty.is_finite();
    within("repetition_penalty", penalty, is_above_zero, "greater than zero")?;
    params.top_k = match common.top_k.or(defaults.top_k).unwrap_or(0) {
        -1 | 0 => 0,
        k if k < -1 => {
            let message = format!("top_k must be 0 or -1 (off), or at least 1, got {k}.");
            return Err(ApiError::invalid("top_k", message));
        }
        // Beyond any vocabulary is all of it.
        k => u32::try_from(k).unwrap_or(u32::MAX),
    };
    Ok(())
}

fn within(name: &str, value: f32, is_ok: bool, range: &str) -> Result<(), ApiError> {
    if is_ok {
        return Ok(());
    }
    Err(ApiError::invalid(name, format!("{name} must be {range}, got {value:?}.")))
}

fn count(name: &str, value: i64) -> Result<u32, ApiError> {
    u32::try_from(value).map_err(|_| {
        ApiError::invalid(name, format!("{name} must be greater than or equal to 0, got {value}."))
    })
}

/// A number of alternatives, within what the server allows.
pub(crate) fn num_logprobs(
    name: &str,
    value: Option<i64>,
    limits: Limits<'_>,
) -> Result<Option<u32>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let max = limits.info.max_logprobs;
    match u32::try_from(value) {
        Ok(value) if value <= max => Ok(Some(value)),
        Ok(_) => {
            let message =
                format!("Requested {name} of {value}, which is greater than max allowed: {max}.");
            Err(ApiError::invalid(name, message))
        }
        Err(_) => {
            let message = format!("{name} must be at least 0, got {value}.");
            Err(ApiError::invalid(name, message))
        }
    }
}

fn num_sequences(common: &Common, temperature: f32) -> Result<(usize, usize), ApiError> {
    let n = common.n.unwrap_or(1);
    let best_of = common.best_of.unwrap_or(n);
    for (name, value) in [("n", n), ("best_of", best_of)] {
        if !(1..=MAX_SEQUENCES).contains(&value) {
            let message =
                format!("{name} must be at least 1 and at most {MAX_SEQUENCES}, got {value}.");
            return Err(ApiError::invalid(name, message));
        }
        if value > 1 && temperature <= 0.0 {
            let message = format!("{name} must be 1 when using greedy sampling, got {value}.");
            return Err(ApiError::invalid(name, message));
        }
    }
    if best_of < n {
        let message = format!("best_of must be at least n, got n={n} and best_of={best_of}.");
        return Err(ApiError::invalid("best_of", message));
    }
    if best_of > n && common.stream {
        let message = "best_of must equal n when `stream` is true: the best are known at the end.";
        return Err(ApiError::invalid("best_of", message));
    }
    let usize_of = |value: i64| usize::try_from(value).unwrap_or(1);
    Ok((usize_of(n), usize_of(best_of)))
}

fn logit_bias(common: &mut Common, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias = common.logit_bias.take().unwrap_or_default();
    let checked = bias.into_iter().map(|(id, bias)| match id.parse::<u32>() {
        Ok(id) if is_known(id, vocab_size) => Ok((id, bias.clamp(-100.0, 100.0))),
        _ => {
            let id = crate::api::bounded(&id, 40);
            let message = format!(
                "token_id {id} in logit_bias is not an id of the vocabulary, which has {vocab_size}."
            );
            Err(ApiError::invalid("logit_bias", message))
        }
    });
    checked.collect()
}

fn allowed_token_ids(common: &mut Common, vocab_size: usize) -> Result<Option<Vec<u32>>, ApiError> {
    let Some(ids) = common.allowed_token_ids.take() else { return Ok(None) };
    if ids.is_empty() {
        let message = "allowed_token_ids must not be empty.";
        return Err(ApiError::invalid("allowed_token_ids", message));
    }
    if let Some(id) = ids.iter().find(|&&id| !is_known(id, vocab_size)) {
        let message =
            format!("allowed_token_ids holds {id}, but the vocabulary has {vocab_size} ids.");
        return Err(ApiError::invalid("allowed_token_ids", message));
    }
    Ok(Some(ids))
}

/// Whether the vocabulary has this id.
pub(crate) fn is_known(id: u32, vocab_size: usize) -> bool {
    usize::try_from(id).is_ok_and(|id| id < vocab_size)
}

fn stops(common: &mut Common) -> Result<StopMatcher, ApiError> {
    let stops = common.stop.take().map(crate::wire::Stop::into_vec).unwrap_or_default();
    if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        let message =
            format!("stop may hold {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes each, at most.");
        return Err(ApiError::invalid("stop", message));
    }
    StopMatcher::new(stops, common.include_stop_str_in_output)
        .map_err(|_| ApiError::invalid("stop", "stop cannot contain an empty string."))
}

fn cache_salt(common: &mut Common) -> Result<Option<u64>, ApiError> {
    let Some(salt) = common.cache_salt.take() else { return Ok(None) };
    let is_ok = (1..=128).contains(&salt.chars().count()) && !salt.contains(['@', '/', '\\', '\0']);
    if !is_ok {
        let message = "cache_salt must have 1 to 128 characters, none of them @, /, \\ or NUL.";
        return Err(ApiError::invalid("cache_salt", message));
    }
    let digest: [u8; 32] = Sha256::digest(salt.as_bytes()).into();
    let (head, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    Ok(Some(u64::from_le_bytes(*head)))
}

fn priority(common: &Common, limits: Limits<'_>) -> Result<i32, ApiError> {
    let priority = common.priority.unwrap_or(0);
    if priority != 0 && !limits.priority_allowed {
        let message = "priority other than 0 needs a server with `--scheduling-policy priority`.";
        return Err(ApiError::invalid("priority", message));
    }
    i32::try_from(priority).map_err(|_| {
        ApiError::invalid("priority", format!("priority {priority} is beyond 32 bits."))
    })
}

/// Refuses what the API has and this server has not, so that nobody takes free text for a schema's.
fn refuse_unsupported(common: &Common) -> Result<(), ApiError> {
    let Unsupported {
        suffix,
        structured_outputs,
        guided_json,
        guided_regex,
        guided_choice,
        guided_grammar,
        use_beam_search,
        bad_words,
        logits_processors,
        kv_transfer_params,
        repetition_detection,
    } = &common.unsupported;
    for (name, value) in [
        ("structured_outputs", structured_outputs),
        ("guided_json", guided_json),
        ("guided_regex", guided_regex),
        ("guided_choice", guided_choice),
        ("guided_grammar", guided_grammar),
    ] {
        if value.is_some() {
            return Err(ApiError::unsupported(name, "the output is free text."));
        }
    }
    match common.response_format.as_ref().map(|format| format.r#type.as_str()) {
        None | Some("text") => {}
        Some("json_object" | "json_schema" | "structural_tag") => {
            return Err(ApiError::unsupported("response_format", "its `type` must be `text`."));
        }
        Some(other) => {
            let other = crate::api::bounded(other, 40);
            let message = format!("response_format has no type `{other}`; `text` is supported.");
            return Err(ApiError::invalid("response_format", message));
        }
    }
    if suffix.as_ref().is_some_and(|suffix| suffix != "") {
        return Err(ApiError::unsupported("suffix", "text is continued, not filled in."));
    }
    if *use_beam_search {
        return Err(ApiError::unsupported("use_beam_search", "tokens are sampled."));
    }
    if !bad_words.is_empty() {
        return Err(ApiError::unsupported("bad_words", "`logit_bias` bans single tokens."));
    }
    for (name, value) in [
        ("logits_processors", logits_processors),
        ("kv_transfer_params", kv_transfer_params),
        ("repetition_detection", repetition_detection),
    ] {
        if value.is_some() {
            return Err(ApiError::unsupported(name, "leave it out."));
        }
    }
    Ok(())
}

/// Checks a prompt's length and settles how many tokens may follow it.
///
/// `asked` is the request's `max_tokens`; `otherwise` is taken, as far as the context allows, where
/// there is none.
pub(crate) fn check_length(
    prompt: &mut PromptIds,
    asked: Option<u32>,
    otherwise: u32,
    info: &EngineInfo,
) -> Result<(), ApiError> {
    let context = info.max_model_len;
    let length = prompt.ids.len();
    if length == 0 {
        return Err(ApiError::invalid("prompt", "The prompt must hold at least one token."));
    }
    if let Some(id) = prompt.ids.iter().find(|&&id| !is_known(id, info.vocab_size)) {
        let message = format!("Token id {id} is out of vocabulary, which has {}.", info.vocab_size);
        return Err(ApiError::invalid("prompt", message));
    }
    let usize_of = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    if let Some(asked) = asked.filter(|&asked| usize_of(asked) > context) {
        let message = format!("max_tokens={asked} cannot be greater than max_model_len={context}.");
        return Err(ApiError::invalid("max_tokens", message));
    }
    let wanted = asked.unwrap_or(otherwise.min(1));
    if length.saturating_add(usize_of(wanted)) > context {
        return Err(too_long(length, context, asked));
    }
    let room = u32::try_from(context - length).unwrap_or(u32::MAX);
    prompt.max_tokens = asked.unwrap_or(otherwise).min(room);
    Ok(())
}

/// The message every client knows, with what it asked for.
pub(crate) fn too_long(length: usize, context: usize, asked: Option<u32>) -> ApiError {
    let asked = match asked {
        Some(asked) if asked > 0 => format!("you requested {asked} output tokens and "),
        _ => String::new(),
    };
    let message = format!(
        "This model's maximum context length is {context} tokens. However, {asked}your prompt \
         contains at least {length} input tokens. Please reduce the length of the input or the \
         number of requested output tokens."
    );
    ApiError::invalid("input_tokens", message)
}

//! Values of flags that need more than `FromStr` of a plain number.

use std::{fmt, str::FromStr};

use halyard_weights::QuantMethod;

/// `2048`, `4k` (4000), `4K` (4096), `1.5k`, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// As long as the model and the memory allow.
    Auto,
    /// This many tokens.
    Tokens(usize),
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" || text == "-1" {
            return Ok(Self::Auto);
        }
        parse_count(text).map(Self::Tokens)
    }
}

/// Parses `2048`, `4k` (decimal) and `4K` (binary), and so on for m, g and t.
///
/// # Errors
/// What is expected, for people.
pub fn parse_count(text: &str) -> Result<usize, String> {
    let wrong = || {
        format!(
            "`{text}` is no count: expected a whole number above 0, or one with a unit such as 1k (1000) or 1K (1024)"
        )
    };
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], Some(unit)),
        _ => (text, None),
    };
    let scale: u64 = match unit {
        None => 1,
        Some('k') => 1000,
        Some('m') => 1_000_000,
        Some('g') => 1_000_000_000,
        Some('K') => 1 << 10,
        Some('M') => 1 << 20,
        Some('G') => 1 << 30,
        Some(_) => return Err(wrong()),
    };
    let count = match number.split_once('.') {
        None => number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)),
        // `1.5k` only: a binary unit or none has no decimal places.
        Some((whole, places)) if matches!(unit, Some('k' | 'm' | 'g')) => {
            decimal(whole, places, scale)
        }
        Some(_) => None,
    };
    match count.map(usize::try_from) {
        Some(Ok(count)) if count > 0 => Ok(count),
        _ => Err(wrong()),
    }
}

fn decimal(whole: &str, places: &str, scale: u64) -> Option<u64> {
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let divisor = 10_u64.checked_pow(u32::try_from(places.len()).ok()?)?;
    let part = places.parse::<u64>().ok()?.checked_mul(scale)?;
    (part % divisor == 0).then(|| whole.checked_add(part / divisor))?
}

/// `auto`, `cpu`, `cuda:0` or any other backend's id or library, with the devices to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// A backend's id, or the path of its library; `None` lets the server choose.
    pub backend: Option<String>,
    /// Device numbers; empty is the first.
    pub indices: Vec<u32>,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (backend, list) = match text.rsplit_once(':') {
            None => (text, None),
            Some((backend, list)) => (backend, Some(list)),
        };
        let is_path = backend.contains('/');
        let id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if backend.is_empty() || !(is_path || backend.chars().all(id)) {
            return Err(format!(
                "`{text}` is no device: expected auto, cpu, a backend's id or the path of its library, with device numbers as in cuda:0,1"
            ));
        }
        let mut indices = Vec::new();
        for part in list.into_iter().flat_map(|list| list.split(',')) {
            let wrong = || format!("`{part}` in `{text}` is no device number");
            let number = |digits: &str| digits.parse::<u16>().map(u32::from).map_err(|_| wrong());
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            indices.extend(number(first)?..=number(last)?);
        }
        let backend = match backend {
            "auto" => None,
            path if is_path => Some(path.to_owned()),
            id => Some(id.to_ascii_lowercase()),
        };
        Ok(Self { backend, indices })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.as_deref().unwrap_or("auto"))?;
        for (i, index) in self.indices.iter().enumerate() {
            write!(f, "{}{index}", if i == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

/// The type the model computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// The checkpoint's own; 32-bit for quantised weights.
    #[default]
    Auto,
    /// 16-bit IEEE.
    #[value(name = "float16", alias = "half", alias = "fp16", alias = "f16")]
    Float16,
    /// 16-bit with the range of 32.
    #[value(name = "bfloat16", alias = "bf16")]
    Bfloat16,
    /// 32-bit IEEE.
    #[value(name = "float32", alias = "float", alias = "fp32", alias = "f32")]
    Float32,
}

/// What the weights must be quantised by; `None` for `none`, which asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization(pub Option<QuantMethod>);

/// A method by vLLM's names, also those of its kernels.
///
/// # Errors
/// What is expected, for people.
pub fn parse_quantization(text: &str) -> Result<Quantization, String> {
    let method = match text {
        "none" | "None" => return Ok(Quantization(None)),
        kernel => kernel.strip_suffix("_marlin").unwrap_or(kernel),
    };
    method.parse().map(|method| Quantization(Some(method)))
}

/// What the server makes of a backend's conformance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Conformance {
    /// A kernel that fails its check ends the start.
    #[default]
    Require,
    /// It is logged, and the server serves.
    Warn,
    /// Nothing is checked.
    Off,
}

/// What the ranks of a model are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExecutorBackend {
    /// Threads of the server.
    #[default]
    Threads,
    /// Processes, each with one device.
    Mp,
}

impl FromStr for ExecutorBackend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mp" => Ok(Self::Mp),
            // vLLM's name for a single process.
            "threads" | "uni" => Ok(Self::Threads),
            "ray" => Err("a model runs on one machine so far: there are threads and mp".into()),
            _ => Err(format!("`{text}` is no executor: there are threads and mp")),
        }
    }
}

/// Who goes first when requests wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SchedulingPolicy {
    /// In order of arrival.
    #[default]
    Fcfs,
    /// By the request's `priority`, smaller first, then by arrival.
    Priority,
}

/// `cuda=0123…`: the hash that a backend's library must have.
///
/// # Errors
/// What is expected, for people.
pub fn parse_pin(text: &str) -> Result<(String, String), String> {
    let is_hash = |hash: &str| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    match text.split_once('=') {
        Some((id, hash)) if !id.is_empty() && is_hash(hash) => Ok((id.into(), hash.into())),
        _ => Err(format!("`{text}` is no pin: expected a backend's id, `=` and 64 hex digits")),
    }
}

/// A share above 0, at most 1.
///
/// # Errors
/// What is expected, for people.
pub fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("`{text}` is no share: expected a number above 0 and at most 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_know_units() {
        let cases = [("2048", 2048), ("1k", 1000), ("1K", 1024), ("1.5k", 1500), ("2M", 2 << 20)];
        for (text, count) in cases {
            assert_eq!(parse_count(text), Ok(count), "{text}");
        }
        for wrong in [
            "",
            "0",
            "-5",
            "k",
            "1.5",
            "1.5K",
            "1.23456k",
            "1x",
            "99999999999999999999",
            "9999999999999G",
            "é",
            "1é",
        ] {
            assert!(parse_count(wrong).is_err(), "{wrong}");
        }
        assert_eq!("auto".parse(), Ok(Length::Auto));
        assert_eq!("-1".parse(), Ok(Length::Auto));
    }

    #[test]
    fn executors_have_the_names_of_vllm() {
        assert_eq!("mp".parse(), Ok(ExecutorBackend::Mp));
        assert_eq!("uni".parse(), Ok(ExecutorBackend::Threads));
        let ray = "ray".parse::<ExecutorBackend>().expect_err("no other machines");
        assert!(ray.contains("one machine"), "{ray}");
    }

    #[test]
    fn quantisations_have_the_names_of_vllm() {
        let method = |text| parse_quantization(text).map(|Quantization(method)| method);
        assert_eq!(method("awq_marlin"), Ok(Some(QuantMethod::Awq)));
        assert_eq!(method("compressed-tensors"), Ok(Some(QuantMethod::CompressedTensors)));
        assert_eq!(method("None"), Ok(None));
        assert!(method("bitsandbytes").expect_err("unknown").contains("there are awq, gptq"));
    }

    #[test]
    fn devices_are_a_backend_and_numbers() {
        let parse = |text: &str| text.parse::<DeviceChoice>();
        let choice = |backend: Option<&str>, indices: &[u32]| {
            Ok(DeviceChoice { backend: backend.map(Into::into), indices: indices.to_vec() })
        };
        assert_eq!(parse("auto"), choice(None, &[]));
        assert_eq!(parse("cpu"), choice(Some("cpu"), &[]));
        assert_eq!(parse("CUDA:0,1"), choice(Some("cuda"), &[0, 1]));
        assert_eq!(parse("./A/b.so:1"), choice(Some("./A/b.so"), &[1]));
        assert_eq!(parse("cann:0-2,5"), choice(Some("cann"), &[0, 1, 2, 5]));
        for wrong in ["", ":0", "cuda:", "cuda:x", "cuda:0,", "cuda:1-", "a b", "a:b:0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("cuda:0,1").expect("valid").to_string(), "cuda:0,1");
    }
}

//! Which instruction set the kernels run on, found once when the device opens.

use crate::simd::Simd;
use crate::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set this processor is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512 {
        bf16: bool,
    },
}

/// Work that is compiled once per instruction set.
pub(crate) trait Op {
    type Out;
    /// The work; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

impl Isa {
    /// The best instruction set of this processor.
    pub(crate) fn detect() -> Self {
        Self::all_available()[0]
    }

    /// Every instruction set this processor can run, best first.
    pub(crate) fn all_available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 {
                all.push(Self(Level::Avx512 { bf16: is_x86_feature_detected!("avx512bf16") }));
            }
            if avx2 {
                all.push(Self(Level::Avx2));
            }
        }
        all.push(Self(Level::Portable));
        all
    }

    /// The instruction set called `name`, or which names this processor has.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let all = Self::all_available();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
            format!(
                "instruction set `{name}` is unknown or absent here; have: {}",
                names.join(", ")
            )
        })
    }

    /// The name that [`Isa::named`] takes.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { .. } => "avx512",
        }
    }

    /// Architecture and what of it is used, for people.
    pub(crate) fn describe(self) -> String {
        let detail = match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2-fma",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { bf16: false } => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { bf16: true } => "avx512-bf16-vnni",
        };
        format!("{} {detail}", std::env::consts::ARCH)
    }

    /// Whether pairs of bfloat16 can be multiplied and added in one instruction.
    pub(crate) fn has_bf16_dot(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { bf16 } => bf16,
            _ => false,
        }
    }

    /// Runs `op` compiled for this instruction set with its bf16 dot product, if it has one.
    #[inline]
    pub(crate) fn dispatch_bf16<O: Op>(self, op: O) -> O::Out {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level is only made where its features were detected.
            Level::Avx512 { bf16: true } => unsafe { run_avx512_bf16(op) },
            _ => self.dispatch(op),
        }
    }

    /// Runs `op` compiled for this instruction set.
    #[inline]
    pub(crate) fn dispatch<O: Op>(self, op: O) -> O::Out {
        match self.0 {
            Level::Portable => run_portable(op),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level is only made where its features were detected.
            Level::Avx2 => unsafe { run_avx2(op) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level is only made where its features were detected.
            Level::Avx512 { .. } => unsafe { run_avx512(op) },
        }
    }
}

/// [`Op::run`] as a function of its own, here and below.
#[inline(never)]
pub(crate) fn run_portable<O: Op>(op: O) -> O::Out {
    op.run(Portable)
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run_avx2<O: Op>(op: O) -> O::Out {
    // SAFETY: this function has the features `Avx2` stands for.
    op.run(unsafe { Avx2::assume() })
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn run_avx512<O: Op>(op: O) -> O::Out {
    // SAFETY: this function has the features `Avx512` stands for.
    op.run(unsafe { Avx512::<false>::assume() })
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(crate) fn run_avx512_bf16<O: Op>(op: O) -> O::Out {
    // SAFETY: this function has the features `Avx512` with bf16 stands for.
    op.run(unsafe { Avx512::<true>::assume() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_list_what_there_is() {
        for isa in Isa::all_available() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
        }
        let err = Isa::named("sse9").unwrap_err();
        assert!(err.contains("sse9") && err.contains("portable"), "{err}");
    }
}

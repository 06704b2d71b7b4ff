//! A mutant: one bug around one op of a backend that is right.

use halyard_sdk::{Attr, OpKind, Result, TensorSpec, WeightDesc, abi::AttrKey};

use crate::{
    call::Call,
    device::Habit,
    weights::{Fill, Part},
};

/// What an op is prepared from.
#[derive(Debug)]
pub(crate) struct Desc {
    pub(crate) attrs: Vec<Attr>,
    pub(crate) tensors: Vec<TensorSpec>,
}

impl Desc {
    /// Changes the bits of an attribute.
    pub(crate) fn set(&mut self, key: AttrKey, change: impl Fn(u64) -> u64) {
        for attr in self.attrs.iter_mut().filter(|a| a.key == key) {
            attr.bits = change(attr.bits);
        }
    }

    /// Changes a number.
    pub(crate) fn set_float(&mut self, key: AttrKey, change: impl Fn(f64) -> f64) {
        self.set(key, |bits| change(f64::from_bits(bits)).to_bits());
    }

    /// A number; 0 if there is none of this name.
    pub(crate) fn float(&self, key: AttrKey) -> f64 {
        self.attrs.iter().find(|a| a.key == key).map_or(0.0, |a| f64::from_bits(a.bits))
    }
}

/// One bug. What it does not touch is right.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Unique; begins with the op's name or what is broken.
    pub name: &'static str,
    /// The op whose cases must catch it.
    pub op: OpKind,
    /// What is wrong, for people.
    pub wrong: &'static str,
    /// The profile of the cases that must catch it, if not any of the op's.
    pub profile: Option<&'static str>,
    /// The cases that must catch it, by a part of their names, where only few of the op's can.
    pub case: Option<&'static str>,
    /// What the failure must say, where more than a wrong number is meant.
    pub told: Option<&'static str>,
    /// Changes what is prepared.
    pub(crate) desc: Option<fn(&mut Desc)>,
    /// Stands around a launch.
    pub(crate) launch: Option<fn(&Call<'_>) -> Result<()>>,
    /// Changes the parts of one group of a weight, once all of its rows have come.
    pub(crate) weight: Option<fn(&WeightDesc<'_>, &mut [Part])>,
    /// Changes where rows of a weight go; the number says how many rows came before.
    pub(crate) fill: Option<fn(&mut Fill, u64)>,
    /// Bytes of scratch that the kernel asks for.
    pub(crate) scratch: u64,
    /// What the whole device does.
    pub(crate) habit: Option<Habit>,
}

/// A mutant that does nothing yet.
pub(crate) const fn bug(name: &'static str, op: OpKind, wrong: &'static str) -> Mutant {
    Mutant {
        name,
        op,
        wrong,
        profile: None,
        case: None,
        told: None,
        desc: None,
        launch: None,
        weight: None,
        fill: None,
        scratch: 0,
        habit: None,
    }
}

impl Mutant {
    pub(crate) const fn desc(mut self, change: fn(&mut Desc)) -> Self {
        self.desc = Some(change);
        self
    }

    pub(crate) const fn launch(mut self, around: fn(&Call<'_>) -> Result<()>) -> Self {
        self.launch = Some(around);
        self
    }

    pub(crate) const fn weight(mut self, change: fn(&WeightDesc<'_>, &mut [Part])) -> Self {
        self.weight = Some(change);
        self
    }

    pub(crate) const fn fill(mut self, change: fn(&mut Fill, u64)) -> Self {
        self.fill = Some(change);
        self
    }

    pub(crate) const fn scratch(mut self, bytes: u64) -> Self {
        self.scratch = bytes;
        self
    }

    pub(crate) const fn habit(mut self, habit: Habit) -> Self {
        self.habit = Some(habit);
        self
    }

    pub(crate) const fn profile(mut self, name: &'static str) -> Self {
        self.profile = Some(name);
        self
    }

    pub(crate) const fn case(mut self, part: &'static str) -> Self {
        self.case = Some(part);
        self
    }

    pub(crate) const fn told(mut self, text: &'static str) -> Self {
        self.told = Some(text);
        self
    }
}

//! What devices of capability 9.0 have beside: `mbarrier`, fences of proxies, clusters of one block.

use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{CLUSTER_BARRIER, Class, Flow, Hopper, Int, Op, Slot, Together, Width};
use halyard_sim_cuda_ptx::{Address, Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    pub(super) fn hopper(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        match m.base {
            "mbarrier" => self.mbarrier(m, operands),
            "mapa" => self.map_address(m, operands),
            "griddepcontrol" => {
                // Launches begin when those before them have ended, so there is nothing to wait for.
                if m.take_any(&["wait", "launch_dependents"]).is_none() {
                    return Err("expected .wait or .launch_dependents".to_owned());
                }
                self.push(Op::Nop, Class::Barrier);
                Ok(())
            }
            _ => self.set_registers(m, operands),
        }
    }

    /// `setmaxnreg`: registers are not modelled, but what it may say is.
    fn set_registers(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let way = m.take_any(&["inc", "dec"]);
        if way.is_none() || !(m.take("sync") & m.take("aligned") & m.take("u32")) {
            return Err("expected .inc or .dec, .sync.aligned.u32".to_owned());
        }
        match operands {
            [Operand::Int(count)] if (24..=256).contains(count) && count % 8 == 0 => {}
            _ => return Err("expected a multiple of 8 from 24 to 256".to_owned()),
        }
        self.push(Op::Nop, Class::Control).together = Together::Warp;
        Ok(())
    }

    /// An address in shared memory as a 32-bit register.
    pub(super) fn shared_address(&mut self, operand: &Operand<'a>) -> Decoded<Slot> {
        let Operand::Address(address) = operand else {
            return Err("expected an address in shared memory".to_owned());
        };
        self.shared_base(address)
    }

    fn shared_base(&mut self, address: &Address<'a>) -> Decoded<Slot> {
        let (base, long) = self.base(address)?;
        let base = if long { self.narrowed(base)? } else { base };
        if address.offset == 0 {
            return Ok(base);
        }
        let sum = self.names.slot(File::Word)?;
        let mut slots = Slots::default();
        slots.push(sum)?;
        slots.push(base)?;
        slots.push(self.word_constant(address.offset as u32)?)?;
        self.push_with(Op::Int(Int::Add, Width::W32), Class::Integer, slots);
        Ok(sum)
    }

    fn mbarrier(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let names = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "test_wait",
            "try_wait",
            "pending_count",
        ];
        // `arrive.expect_tx` is an arrival.
        let name = if m.take("arrive") { Some("arrive") } else { m.take_any(&names) };
        for part in [
            "shared",
            "shared::cta",
            "shared::cluster",
            "release",
            "acquire",
            "relaxed",
            "cta",
            "cluster",
        ] {
            m.take(part);
        }
        if !m.take("b64") {
            return Err("expected .b64".to_owned());
        }
        match name {
            Some("arrive") => self.arrive(m, operands),
            Some("test_wait" | "try_wait") => {
                self.barrier_wait(m, name == Some("try_wait"), operands)
            }
            Some("pending_count") => {
                let [to, state] = exactly(operands)?;
                let mut slots = Slots::default();
                slots.push(self.target(to, File::Word)?)?;
                slots.push(self.long(state, T::B64)?)?;
                self.push_with(Op::Hopper(Hopper::BarrierPending), Class::Barrier, slots);
                Ok(())
            }
            Some("inval") => {
                let [at] = exactly(operands)?;
                let mut slots = Slots::default();
                slots.push(self.shared_address(at)?)?;
                self.push_with(Op::Hopper(Hopper::BarrierInval), Class::Barrier, slots);
                Ok(())
            }
            Some(name @ ("init" | "expect_tx" | "complete_tx")) => {
                let [at, count] = exactly(operands)?;
                let mut slots = Slots::default();
                slots.push(self.shared_address(at)?)?;
                slots.push(self.word(count, T::U32)?)?;
                let op = match name {
                    "init" => Hopper::BarrierInit,
                    name => Hopper::BarrierExpect { negative: name == "complete_tx" },
                };
                self.push_with(Op::Hopper(op), Class::Barrier, slots);
                Ok(())
            }
            Some(name) => Err(format!("unsupported: .{name}")),
            None => Err("expected an operation such as .init".to_owned()),
        }
    }

    fn arrive(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let expects = m.take("expect_tx");
        let completes = !m.take("noComplete");
        let (to, operands) = match operands {
            [Operand::Address(_), ..] => (&Operand::Sink, operands),
            [to, rest @ ..] => (to, rest),
            [] => return Err("expected an address".to_owned()),
        };
        let (at, count) = match operands {
            [at] if !expects && completes => (at, None),
            [at, count] => (at, Some(count)),
            _ => return Err("expected an address and a number".to_owned()),
        };
        let at = self.shared_address(at)?;
        let count = count.map(|count| self.word(count, T::U32)).transpose()?;
        let (zero, one) = (self.word_constant(0)?, self.word_constant(1)?);
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Long)?)?;
        slots.push(at)?;
        slots.push(count.filter(|_| !expects).unwrap_or(one))?;
        slots.push(count.filter(|_| expects).unwrap_or(zero))?;
        self.push_with(Op::Hopper(Hopper::BarrierArrive { completes }), Class::Barrier, slots);
        Ok(())
    }

    fn barrier_wait(
        &mut self,
        m: &mut Mnemonic<'_>,
        waits: bool,
        operands: &[Operand<'a>],
    ) -> Decoded {
        let parity = m.take("parity");
        let (to, at, phase) = match operands {
            [to, at, phase] => (to, at, phase),
            // How long a device lets it wait changes no result.
            [to, at, phase, _] if waits => (to, at, phase),
            _ => return Err("expected a predicate, an address and a phase".to_owned()),
        };
        let at = self.shared_address(at)?;
        let (word, long) = if parity {
            (self.word(phase, T::U32)?, self.long_constant(0)?)
        } else {
            (self.word_constant(0)?, self.long(phase, T::B64)?)
        };
        let mut slots = Slots::default();
        for slot in [self.target(to, File::Predicate)?, at, word, long] {
            slots.push(slot)?;
        }
        let op = if waits {
            Op::Flow(Flow::BarrierWait { parity })
        } else {
            Op::Hopper(Hopper::BarrierTest { parity })
        };
        self.push_with(op, Class::Barrier, slots);
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`.
    pub(super) fn copies_arrive(
        &mut self,
        m: &mut Mnemonic<'_>,
        operands: &[Operand<'a>],
    ) -> Decoded {
        for part in ["shared", "shared::cta", "b64"] {
            m.take(part);
        }
        if !m.take("arrive") {
            return Err("expected .arrive".to_owned());
        }
        let counted = m.take("noinc");
        let [at] = exactly(operands)?;
        let mut slots = Slots::default();
        slots.push(self.shared_address(at)?)?;
        self.push_with(Op::Hopper(Hopper::CopiesArrive { counted }), Class::AsyncCopy, slots);
        Ok(())
    }

    /// `fence.proxy.async`, `fence.proxy.alias`, `fence.mbarrier_init`.
    pub(super) fn special_fence(&mut self, m: &mut Mnemonic<'_>) -> Decoded<bool> {
        if m.take("mbarrier_init") {
            // Its barriers are ordered as other writes are.
            m.take("release");
            m.take("cluster");
            self.push(Op::Nop, Class::Barrier);
            return Ok(true);
        }
        if !m.take("proxy") {
            return Ok(false);
        }
        if !m.take("async") {
            // Of global memory nothing is told apart by proxies.
            let global = ["async::global", "tensormap::generic", "alias"];
            if m.take_any(&global).is_none() {
                return Err("unsupported: this proxy".to_owned());
            }
            for part in ["acquire", "release", "cta", "cluster", "gpu", "sys"] {
                m.take(part);
            }
            self.push(Op::Nop, Class::Barrier);
            return Ok(true);
        }
        for part in ["shared::cta", "shared::cluster", "shared"] {
            m.take(part);
        }
        if m.take("global") {
            self.push(Op::Nop, Class::Barrier);
        } else {
            self.push(Op::Hopper(Hopper::ProxyFence), Class::Barrier);
        }
        Ok(true)
    }

    /// `barrier.cluster`, of a cluster of one block.
    pub(super) fn cluster_barrier(&mut self, m: &mut Mnemonic<'_>) -> Decoded {
        let wait = m.take("wait");
        if !wait && !m.take("arrive") {
            return Err("expected .arrive or .wait".to_owned());
        }
        for part in ["release", "relaxed", "acquire"] {
            m.take(part);
        }
        let aligned = m.take("aligned");
        let mut slots = Slots::default();
        slots.push(self.word_constant(CLUSTER_BARRIER)?)?;
        let flow = Flow::Barrier { counted: false, wait, aligned, vote: None };
        self.push_with(Op::Flow(flow), Class::Barrier, slots);
        Ok(())
    }

    fn map_address(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        m.take("shared::cluster");
        let long = match m.take_any(&["u32", "u64"]) {
            Some("u64") => true,
            Some(_) => false,
            None => return Err("expected .u32 or .u64".to_owned()),
        };
        let file = if long { File::Long } else { File::Word };
        let [to, from, rank] = exactly(operands)?;
        let mut slots = Slots::default();
        slots.push(self.target(to, file)?)?;
        slots.push(if long { self.long(from, T::U64)? } else { self.word(from, T::U32)? })?;
        slots.push(self.word(rank, T::U32)?)?;
        self.push_with(Op::Hopper(Hopper::MapAddress { long }), Class::Integer, slots);
        Ok(())
    }
}

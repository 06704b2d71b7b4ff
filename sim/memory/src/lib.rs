//! Memory of simulated devices: a table of allocations, and checked copies; and what their streams have done.
//!
//! Addresses of device memory are ones that no process can have, so that a host that follows one crashes at once.
//! An address is never given out twice, and a gap lies behind each allocation.

mod allocation;
mod arena;
mod marks;
mod past;
mod ticket;
mod writers;

pub use allocation::{Allocation, Conflict, Fresh, Home, SECTOR};
pub use arena::Arena;
pub use past::{Order, Past};
pub use ticket::Ticket;
pub use writers::{WORD, Writer, Writers};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Where device addresses begin: beyond what user space of a 48-bit machine can map.
const FIRST_ADDRESS: u64 = 1 << 48;
/// Bytes without owner behind each allocation.
const GAP: u64 = 1 << 20;
/// How many freed allocations are remembered, to say so when one is used.
const REMEMBERED: usize = 65_536;
/// What bytes that nobody wrote read as.
pub const POISON: u8 = 0xcd;

/// The memory of all devices, and the host memory that devices reach.
#[derive(Debug)]
pub struct Memory {
    table: RwLock<Table>,
    used: Mutex<Vec<u64>>,
    capacity: Vec<u64>,
    writing: Mutex<()>,
}

#[derive(Debug)]
struct Table {
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Base to bytes.
    freed: BTreeMap<u64, usize>,
    next: u64,
}

/// Why memory could not be had or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The device has not enough left.
    #[error("{bytes} bytes wanted, {free} of device {device} free")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes left.
        free: u64,
        /// Index of the device.
        device: u32,
    },
    /// The host, whose memory holds what a device's does, has not enough left.
    #[error("the host has no {bytes} bytes to simulate memory with")]
    Host {
        /// Bytes asked for.
        bytes: usize,
    },
    /// No allocation has these bytes.
    #[error("{what}")]
    Invalid {
        /// Which bytes, and what lies near.
        what: String,
    },
    /// Memory that was freed.
    #[error("{what}")]
    Freed {
        /// Which bytes.
        what: String,
    },
    /// An operation on another stream uses them, unordered with this one.
    #[error("{what}")]
    StreamRace {
        /// Which operations and bytes.
        what: String,
        /// The other operation's number.
        op: u32,
    },
    /// Bytes that nothing wrote.
    #[error("{what}")]
    Unwritten {
        /// Which bytes.
        what: String,
    },
}

impl Memory {
    /// The memory of devices that have so many bytes each.
    #[must_use]
    pub fn new(capacity: Vec<u64>) -> Self {
        let table = Table { live: BTreeMap::new(), freed: BTreeMap::new(), next: FIRST_ADDRESS };
        let used = Mutex::new(vec![0; capacity.len()]);
        Self { table: RwLock::new(table), used, capacity, writing: Mutex::new(()) }
    }

    /// Held by whoever compares, notes and writes as one.
    pub fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free and total bytes of a device.
    #[must_use]
    pub fn info(&self, device: u32) -> (u64, u64) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let total = self.capacity.get(device as usize).copied().unwrap_or(0);
        (total - used.get(device as usize).copied().unwrap_or(0), total)
    }

    /// `bytes` new bytes, which count as never written; its address.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`], [`MemoryError::Host`].
    pub fn allocate(&self, bytes: usize, home: Home) -> Result<u64, MemoryError> {
        if let Home::Device(device) = home {
            self.take(device, bytes as u64)?;
        }
        let mut table = self.write();
        let base = (home != Home::Host).then_some(table.next + 256);
        let Some(allocation) = Allocation::new(base, bytes, home) else {
            drop(table);
            self.give_back(home, bytes);
            return Err(MemoryError::Host { bytes });
        };
        let base = allocation.base;
        table.next += (bytes as u64).next_multiple_of(512) + GAP;
        table.freed.remove(&base);
        table.live.insert(base, Arc::new(allocation));
        Ok(base)
    }

    fn take(&self, device: u32, bytes: u64) -> Result<(), MemoryError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let total = self.capacity.get(device as usize).copied().unwrap_or(0);
        let Some(used) = used.get_mut(device as usize) else {
            return Err(MemoryError::OutOfMemory { bytes, free: 0, device });
        };
        if bytes > total - *used {
            return Err(MemoryError::OutOfMemory { bytes, free: total - *used, device });
        }
        *used += bytes;
        Ok(())
    }

    /// Frees the allocation that begins at `base`, as the operation `order`.
    ///
    /// # Errors
    /// No allocation begins there, it is freed already, or an operation that `order` does not follow uses it.
    pub fn free(&self, base: u64, order: &Order) -> Result<(), MemoryError> {
        let mut table = self.write();
        let Some(allocation) = table.live.get(&base).cloned() else {
            return Err(table.missing(base, 1, "free of"));
        };
        if !order.past.is_whole(order.op)
            && let Some(conflict) = allocation.unordered_use(order)
        {
            return Err(stream_race(&allocation, "free", conflict));
        }
        allocation.set_freed();
        table.live.remove(&base);
        table.freed.insert(base, allocation.bytes);
        if table.freed.len() > REMEMBERED {
            table.freed.pop_first();
        }
        self.give_back(allocation.home, allocation.bytes);
        Ok(())
    }

    fn give_back(&self, home: Home, bytes: usize) {
        if let Home::Device(device) = home {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used[device as usize] -= bytes as u64;
        }
    }

    /// Copies bytes of the host to `to`.
    ///
    /// # Errors
    /// They are not inside one allocation, or an operation that `order` does not follow uses them.
    pub fn write_bytes(&self, to: u64, from: &[u8], order: &Order) -> Result<(), MemoryError> {
        let (allocation, at) = self.find(to, from.len(), "copy to")?;
        used(&allocation, (at, from.len()), true, order)?;
        allocation.data.store_slice(at, from);
        allocation.mark_written(at, from.len());
        allocation.settle();
        Ok(())
    }

    /// Copies bytes at `from` to the host. What was never written reads as `0xcd`.
    ///
    /// # Errors
    /// As [`Self::write_bytes`].
    pub fn read_bytes(&self, from: u64, into: &mut [u8], order: &Order) -> Result<(), MemoryError> {
        let (allocation, at) = self.find(from, into.len(), "copy from")?;
        used(&allocation, (at, into.len()), false, order)?;
        allocation.data.load_slice(at, into);
        let mut from = 0;
        while let Some(unwritten) = allocation.unwritten(at + from, into.len() - from) {
            into[unwritten - at] = POISON;
            from = unwritten - at + 1;
        }
        Ok(())
    }

    /// Copies bytes at `from` to the host, all of which must have been written.
    ///
    /// # Errors
    /// As [`Self::write_bytes`], or [`MemoryError::Unwritten`].
    pub fn read_written(
        &self,
        from: u64,
        into: &mut [u8],
        order: &Order,
    ) -> Result<(), MemoryError> {
        let (allocation, at) = self.find(from, into.len(), "read of")?;
        used(&allocation, (at, into.len()), false, order)?;
        if let Some(unwritten) = allocation.unwritten(at, into.len()) {
            let (base, size) = (allocation.base, allocation.bytes);
            let what = format!(
                "read of {} bytes at {from:#x}: nothing wrote byte {unwritten} of the {size} bytes allocated at {base:#x}",
                into.len()
            );
            return Err(MemoryError::Unwritten { what });
        }
        allocation.data.load_slice(at, into);
        Ok(())
    }

    /// Copies `bytes` bytes between allocations, of one device or two; what was never written stays so.
    ///
    /// # Errors
    /// As [`Self::write_bytes`], for either side.
    pub fn copy(&self, to: u64, from: u64, bytes: usize, order: &Order) -> Result<(), MemoryError> {
        let (source, source_at) = self.find(from, bytes, "copy from")?;
        let (target, target_at) = self.find(to, bytes, "copy to")?;
        used(&source, (source_at, bytes), false, order)?;
        used(&target, (target_at, bytes), true, order)?;
        let mut buffer = vec![0; bytes];
        source.data.load_slice(source_at, &mut buffer);
        target.data.store_slice(target_at, &buffer);
        let mut at = 0;
        while at < bytes {
            let end = source.unwritten(source_at + at, bytes - at).map_or(bytes, |x| x - source_at);
            target.mark_written(target_at + at, end - at);
            at = end + 1;
        }
        target.settle();
        Ok(())
    }

    /// Repeats `pattern` over `bytes` bytes from `to`.
    ///
    /// # Errors
    /// As [`Self::write_bytes`].
    pub fn fill(
        &self,
        to: u64,
        pattern: &[u8],
        bytes: usize,
        order: &Order,
    ) -> Result<(), MemoryError> {
        let (allocation, at) = self.find(to, bytes, "memset of")?;
        used(&allocation, (at, bytes), true, order)?;
        if let [byte] = pattern {
            allocation.data.fill(at, bytes, *byte);
        } else {
            for start in (0..bytes).step_by(pattern.len().max(1)) {
                allocation
                    .data
                    .store_slice(at + start, &pattern[..pattern.len().min(bytes - start)]);
            }
        }
        allocation.mark_written(at, bytes);
        allocation.settle();
        Ok(())
    }

    /// The allocation that has the byte at `address`: its base, its bytes and where it lives.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Option<(u64, usize, Home)> {
        let found = self.containing(address)?;
        Some((found.base, found.bytes, found.home))
    }

    /// The allocation that has the byte at `address`.
    #[must_use]
    pub fn containing(&self, address: u64) -> Option<Arc<Allocation>> {
        let table = self.read();
        let (_, found) = table.live.range(..=address).next_back()?;
        (address - found.base < found.bytes.max(1) as u64).then(|| found.clone())
    }

    fn find(
        &self,
        address: u64,
        bytes: usize,
        what: &str,
    ) -> Result<(Arc<Allocation>, usize), MemoryError> {
        let missing = || self.read().missing(address, bytes, what);
        let found = self.containing(address).ok_or_else(missing)?;
        let at = usize::try_from(address - found.base).map_err(|_| missing())?;
        if bytes > found.bytes - at {
            return Err(missing());
        }
        Ok((found, at))
    }

    /// Whether `address` was freed, and a description of what lies there or near.
    #[must_use]
    pub fn describe(&self, address: u64, bytes: usize, what: &str) -> (bool, String) {
        match self.read().missing(address, bytes, what) {
            MemoryError::Freed { what } => (true, what),
            other => (false, other.to_string()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Says what is wrong with `bytes` bytes at `address`.
    fn missing(&self, address: u64, bytes: usize, what: &str) -> MemoryError {
        let access = format!("{what} {bytes} bytes at {address:#x}");
        let near = |base: u64, size: usize| address - base < size as u64 + GAP;
        let live = self.live.range(..=address).next_back();
        let freed = self.freed.range(..=address).next_back();
        let freed = freed.filter(|(base, size)| address - **base < **size as u64);
        let live = live.filter(|(base, found)| near(**base, found.bytes));
        match (live, freed) {
            (_, Some((base, size))) => {
                let what = format!("{access}: freed memory ({size} bytes at {base:#x})");
                MemoryError::Freed { what }
            }
            (Some((base, found)), None) => {
                let size = found.bytes;
                let place = if address - base < size as u64 {
                    format!("across the end of the {size} bytes allocated at {base:#x}")
                } else {
                    let past = address - base - size as u64;
                    format!("{past} bytes past the end of the {size} bytes allocated at {base:#x}")
                };
                MemoryError::Invalid { what: format!("{access}: {place}") }
            }
            _ => MemoryError::Invalid { what: format!("{access}: no memory is allocated there") },
        }
    }
}

fn used(
    found: &Allocation,
    range: (usize, usize),
    write: bool,
    order: &Order,
) -> Result<(), MemoryError> {
    let what = if write { "write by a copy or memset" } else { "read by a copy" };
    found
        .touch(range, write, order, &mut Fresh::default())
        .map(drop)
        .map_err(|conflict| stream_race(found, what, conflict))
}

/// Says which use of `found` is not ordered with the operation that does `what`.
#[must_use]
pub fn stream_race(found: &Allocation, what: &str, conflict: Conflict) -> MemoryError {
    let Conflict { op, wrote, offset } = conflict;
    let verb = if wrote { "writes" } else { "reads" };
    let (base, bytes) = (found.base, found.bytes);
    let what = format!(
        "{what} at byte {offset} of the {bytes} bytes allocated at {base:#x}, which operation {op}, on another stream, \
         {verb}: no event or synchronisation orders the two"
    );
    MemoryError::StreamRace { what, op }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_the_host_lacks_is_an_error() {
        let memory = Memory::new(vec![1 << 62]);
        let refused = memory.allocate(1 << 61, Home::Device(0)).unwrap_err();
        assert_eq!(refused, MemoryError::Host { bytes: 1 << 61 });
        assert_eq!(memory.info(0), (1 << 62, 1 << 62));
    }

    #[test]
    fn reading_what_nothing_wrote_is_an_error_where_it_must_have_been() {
        let memory = Memory::new(vec![1 << 20]);
        let base = memory.allocate(64, Home::Device(0)).unwrap();
        let order = Order { op: 1, past: Past::default() };
        memory.write_bytes(base, &[1; 32], &order).unwrap();
        let mut bytes = [0; 64];
        assert!(matches!(
            memory.read_written(base, &mut bytes, &order),
            Err(MemoryError::Unwritten { .. })
        ));
        memory.read_written(base, &mut bytes[..32], &order).unwrap();
        memory.read_bytes(base, &mut bytes, &order).unwrap();
        assert_eq!((bytes[0], bytes[63]), (1, POISON));
    }
}

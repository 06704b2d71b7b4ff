//! Collectives for devices that are the host's own processor: ranks are threads of one process or processes of one host.
//!
//! Ranks meet in a file of shared memory, whose name is the communicator's id; nobody else can open it, and it is unlinked as soon
//! as all have joined. Data moves through buffers in it:
//!
//! - **Collectives** go in steps. In a step every rank writes a piece into its own buffer, waits until all have, and reads what it
//!   needs. Buffers alternate, so that one wait a step is enough: who has come to step `s` is done with step `s - 1`.
//! - **Sends** go through a ring of two pieces for each ordered pair of ranks. A group advances all its transfers in turn, so
//!   their order does not matter.
//!
//! Reductions combine the ranks' elements in the order of ranks, 8- and 16-bit floats in f32: every rank gets the same bits, every time.
//!
//! A rank holds a file lock while it lives. The kernel releases it however the process ends, which is how the others notice.
//!
//! Files: `region` the memory, `lock` who lives, `member` waiting and failing, `step` and `channel` moving data, `reduce` numbers,
//! `work` checked calls, `communicator` the trait, `control` membership alone.

mod call;
mod channel;
mod communicator;
mod control;
mod group;
mod lock;
mod member;
mod reduce;
mod region;
mod step;
mod work;

#[cfg(test)]
mod tests;

use std::{fs::File, io::Read};

use halyard_abi::{AttrKey, Code, CommDesc};

use crate::{Collective, Error, Result};
use communicator::Communicator;
pub use communicator::outsider;
pub use control::Control;
pub use group::Group;
use member::{Member, Seat};
pub use reduce::reduce;

/// Writes a fresh communicator id to `out` if it fits; returns its size. The id is 128 random bits: who has it can join.
///
/// # Errors
/// `IO` if the system gives no random numbers.
pub fn unique_id(out: &mut [u8]) -> Result<u32> {
    let id = Id::fresh()?.to_bytes();
    if let Some(place) = out.get_mut(..id.len()) {
        place.copy_from_slice(&id);
    }
    Ok(Id::BYTES as u32)
}

/// Joins a communicator; waits until all ranks have come.
///
/// # Errors
/// `INVALID_ARGUMENT` for an id of another kind, a rank or world that cannot be or that is taken, and a timeout of 0; `UNSUPPORTED` for an
/// attribute that is not known; `COMM_ERROR` naming who did not come in time; `IO` if there is no shared memory.
pub fn join(desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
    Ok(Box::new(Communicator::new(sit(desc)?)))
}

/// Joins as a member, whatever that is used for.
fn sit(desc: &CommDesc<'_>) -> Result<Member> {
    if let Some(attr) = desc.attrs.iter().find(|a| a.key != AttrKey::COMM) {
        return Err(Error::unsupported(format!("communicator attribute {}", attr.key)));
    }
    let id = Id::from_bytes(&desc.id)?;
    let name = desc.name.to_string();
    let (rank, world, timeout_ms) = (desc.rank, desc.world, desc.timeout_ms);
    Member::join(&id, Seat { rank, world, timeout_ms, name })
}

/// A communicator's id: the name of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id([u8; Id::RANDOM]);

impl Id {
    const RANDOM: usize = 16;
    /// Tells ids of this transport from others', and its revisions from each other.
    const MAGIC: [u8; 8] = *b"HALYSHM1";
    const BYTES: usize = Self::MAGIC.len() + Self::RANDOM;

    fn fresh() -> Result<Self> {
        let mut random = [0; Self::RANDOM];
        File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut random))
            .map_err(|e| Error::new(Code::IO, format!("/dev/urandom: {e}")))?;
        Ok(Self(random))
    }

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut all = [0; Self::BYTES];
        all[..Self::MAGIC.len()].copy_from_slice(&Self::MAGIC);
        all[Self::MAGIC.len()..].copy_from_slice(&self.0);
        all
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let random = bytes.strip_prefix(&Self::MAGIC).and_then(|r| r.try_into().ok());
        random.map(Self).ok_or_else(|| {
            let count = bytes.len();
            Error::invalid(format!("{count} bytes that are no id of a communicator on one host"))
        })
    }

    /// Of nothing but hexadecimal digits after a fixed prefix, so that no id leads out of the folder.
    fn file_name(self) -> String {
        let digits: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        format!("halyard-{digits}")
    }
}

//! Ranks in processes of their own (`docs/adr/0012`): `peers` is rank 0's side, `leader` that of every other.
//!
//! A process gets its end of a socket as its standard input and reads the command line of rank 0's process from it. Both then make a
//! [`Plan`](crate::Plan), tell each other what their devices can do, agree, and load; from then on the socket carries the parts of
//! steps. Who ends closes its socket, however that comes about, and the other side sees that.

mod device;
mod leader;
mod message;
mod peers;
mod wire;

pub use device::{RankDevice, Trial};
pub use leader::{Ended, Leader, Lost};
pub use message::{Start, Tried};
pub use peers::RankProcesses;

pub(crate) use leader::Next;
pub(crate) use message::{Agreed, FIRST_PART, Failed, FromRank, Offer, ToRank};
pub(crate) use peers::{Peer, Report};
pub(crate) use wire::{Fields, FrameReader, FrameWriter, Malformed};

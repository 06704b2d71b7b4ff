//! The shared memory of a communicator: what lies where, and how a rank comes to it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, AtomicU64},
};

use halyard_abi::{Code, collective::MAX_WORLD};
use memmap2::MmapRaw;

use super::{Id, call::SharedCall, lock::Held};
use crate::{Error, Result};

/// Where a host keeps shared memory.
const FOLDER: &str = "/dev/shm";
/// Bytes of a rank's buffer, of which there are two: what a step of a collective moves.
pub(super) const PIECE: usize = 64 << 10;
/// Bytes of a slot of a channel, of which there are two for each ordered pair of ranks.
pub(super) const PACKET: usize = 16 << 10;
/// The byte of the file that whoever sets it up holds locked; those before are the ranks'.
const SETUP_LOCK: u64 = MAX_WORLD as u64;
/// Words of a failure's text.
pub(super) const TEXT_WORDS: usize = 64;

/// Written last by whoever sets the memory up; a change of anything here needs a new number.
const MAGIC: u64 = u64::from_le_bytes(*b"halyshm1");

/// The state that all ranks share. All zeros is its beginning.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Control {
    /// What it is and how many ranks it is for: the file's head, see `prepare`.
    _head: [AtomicU64; 2],
    /// How it ended: see `member`.
    pub(super) failure: AtomicU32,
    pub(super) text: [AtomicU64; TEXT_WORDS],
    /// Ranks that have joined.
    pub(super) joined: AtomicU32,
    /// Arrivals at steps, of all ranks together.
    pub(super) arrived: AtomicU64,
    pub(super) ranks: [Rank; MAX_WORLD as usize],
}

/// What a rank shows the others.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Rank {
    /// Changes whenever something may have come that this rank waits for.
    pub(super) bell: AtomicU32,
    /// 1 while it sleeps until the bell changes.
    pub(super) asleep: AtomicU32,
    /// 1 once it holds its lock.
    pub(super) joined: AtomicU32,
    /// Steps it has come to.
    pub(super) steps: AtomicU64,
    /// What it calls in the steps of each parity.
    pub(super) calls: [SharedCall; 2],
}

/// Counters of a channel from one rank to another.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Channel {
    /// Packets that were put in.
    pub(super) sent: AtomicU64,
    /// Packets that were taken out.
    pub(super) received: AtomicU64,
    /// What the packets of each parity belong to.
    pub(super) calls: [SharedCall; 2],
}

/// The mapped memory and its file, whose locks tell who lives.
#[derive(Debug)]
pub(super) struct Region {
    map: MmapRaw,
    pub(super) file: File,
    path: PathBuf,
    world: usize,
}

impl Region {
    /// Opens the memory of a communicator; fills it if this is the first to come.
    pub(super) fn open(id: &Id, world: u32, tries: u64) -> Result<Self> {
        let path = Path::new(FOLDER).join(id.file_name());
        let failed = |e: io::Error| Error::new(Code::IO, format!("{}: {e}", path.display()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        // SAFETY: the call has no preconditions.
        let me = unsafe { libc::geteuid() };
        if !found.is_file() || found.uid() != me || found.mode() & 0o077 != 0 {
            return Err(failed(io::Error::other("not a file of this user's alone")));
        }
        let setup = Held::wait(&file, SETUP_LOCK, tries)?;
        prepare(&file, world).map_err(failed)??;
        let map = MmapRaw::map_raw(&file).map_err(failed)?;
        drop(setup);
        Ok(Self { map, file, path, world: world as usize })
    }

    /// Keeps others from joining meanwhile.
    pub(super) fn setup(&self, tries: u64) -> Result<Held<'_>> {
        Held::wait(&self.file, SETUP_LOCK, tries)
    }

    /// Takes the name away: nobody can join any more.
    pub(super) fn unlink(&self) {
        // Others may have done so before.
        let _ = fs::remove_file(&self.path);
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins with a page")]
    pub(super) fn control(&self) -> &Control {
        // SAFETY: the mapping is page-aligned, as long as `layout` says (`prepare`), lives as long as `self`, and begins with a
        // `Control`, which is made of atomics only: any bytes are valid, and others may change them at any time.
        unsafe { &*self.map.as_ptr().cast::<Control>() }
    }

    /// The channel from one rank to another.
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "a mapping begins with a page, and offsets keep to 64"
    )]
    pub(super) fn channel(&self, from: u32, to: u32) -> &Channel {
        let at = CHANNELS_AT + self.pair(from, to) * size_of::<Channel>();
        // SAFETY: the place is inside the mapping (`layout`) and a multiple of 64; the rest is as for `control`.
        unsafe { &*self.at(at).cast::<Channel>() }
    }

    /// A rank's buffer for steps of a parity: [`PIECE`] bytes.
    pub(super) fn piece(&self, rank: u32, parity: usize) -> *mut u8 {
        assert!((rank as usize) < self.world && parity < 2, "rank {rank}, parity {parity}");
        self.at(pieces_at(self.world) + (rank as usize * 2 + parity) * PIECE)
    }

    /// A slot of the channel from one rank to another: [`PACKET`] bytes.
    pub(super) fn packet(&self, from: u32, to: u32, parity: usize) -> *mut u8 {
        assert!(parity < 2, "parity {parity}");
        self.at(packets_at(self.world) + (self.pair(from, to) * 2 + parity) * PACKET)
    }

    fn pair(&self, from: u32, to: u32) -> usize {
        let (from, to) = (from as usize, to as usize);
        assert!(from < self.world && to < self.world, "rank {from} to {to} of {}", self.world);
        from * self.world + to
    }

    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: the callers' offsets are of parts that `layout` has counted, for the world the file was made for.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }
}

const CHANNELS_AT: usize = size_of::<Control>();

fn pieces_at(world: usize) -> usize {
    (CHANNELS_AT + world * world * size_of::<Channel>()).next_multiple_of(4096)
}

fn packets_at(world: usize) -> usize {
    pieces_at(world) + world * 2 * PIECE
}

/// Bytes altogether.
fn layout(world: usize) -> usize {
    packets_at(world) + world * world * 2 * PACKET
}

/// Fills a fresh file; checks one that another rank has filled. The inner error is the caller's, not the system's.
///
/// The file is written, not just lengthened: what does not fit into the system's shared memory is an error here, and not a fault on
/// the first touch.
fn prepare(file: &File, world: u32) -> io::Result<Result<()>> {
    let mut head = [0; 16];
    let whole = layout(world as usize) as u64;
    let filled = file.metadata()?.len() >= head.len() as u64 && {
        file.read_exact_at(&mut head, 0)?;
        head[..8] == MAGIC.to_le_bytes()
    };
    if !filled {
        let zeros = vec![0; PIECE];
        for at in (0..whole).step_by(PIECE) {
            let count = (whole - at).min(PIECE as u64) as usize;
            file.write_all_at(&zeros[..count], at)?;
        }
        file.write_all_at(&u64::from(world).to_le_bytes(), 8)?;
        file.write_all_at(&MAGIC.to_le_bytes(), 0)?;
        return Ok(Ok(()));
    }
    let there = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|i: usize| head[i]));
    if there == u64::from(world) && file.metadata()?.len() == whole {
        return Ok(Ok(()));
    }
    Ok(Err(Error::invalid(format!("a world of {world}, but other ranks joined one of {there}"))))
}

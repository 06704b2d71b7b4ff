//! Locks on single bytes of a file that belong to the opened file, not to the process ("open file description locks"): threads of one
//! process exclude each other, and the kernel releases them when the last descriptor closes, however that comes about.

use std::{fs::File, io, os::fd::AsRawFd, thread, time::Duration};

use crate::{Error, Result};
use halyard_abi::Code;

/// How often a lock that somebody holds is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// Takes the lock of a byte; false if another opened file holds it.
pub(super) fn try_lock(file: &File, byte: u64) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK, byte, libc::F_WRLCK) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether an opened file other than this one holds the lock of a byte.
pub(super) fn is_held(file: &File, byte: u64) -> io::Result<bool> {
    Ok(control(file, libc::F_OFD_GETLK, byte, libc::F_WRLCK)? != libc::F_UNLCK)
}

/// The lock of a byte, released when dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    file: &'a File,
    byte: u64,
}

impl<'a> Held<'a> {
    /// Waits for the lock, `tries` milliseconds or so.
    pub(super) fn wait(file: &'a File, byte: u64, tries: u64) -> Result<Self> {
        for _ in 0..tries.max(1) {
            match try_lock(file, byte) {
                Ok(true) => return Ok(Self { file, byte }),
                Ok(false) => thread::sleep(RETRY),
                Err(e) => return Err(Error::new(Code::IO, format!("locking shared memory: {e}"))),
            }
        }
        let message = "another rank did not get through its set-up of the shared memory";
        Err(Error::new(Code::COMM_ERROR, message))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Cannot fail for a lock that is held; closing the file would release it too.
        let _ = control(self.file, libc::F_OFD_SETLK, self.byte, libc::F_UNLCK);
    }
}

/// The lock type that the call left, as `F_OFD_GETLK` reports.
fn control(file: &File, command: i32, byte: u64, kind: i32) -> io::Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte.cast_signed(),
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open while `file` is borrowed; the kernel reads and writes the struct only, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(i32::from(lock.l_type)) }
}

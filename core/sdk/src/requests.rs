//! What every device asks of a host's requests, wherever its memory is.

use halyard_abi::{AllocReq, CopyReq, MemRef};

use crate::{Error, Result};

/// Refuses what no device can allocate; the alignment, 1 where none is wanted.
pub(crate) fn alignment(req: &AllocReq) -> Result<u64> {
    let align = req.align.max(1);
    if req.bytes == 0 || req.flags != 0 || !align.is_power_of_two() {
        return Err(Error::invalid(format!(
            "allocation of {} bytes aligned to {} with flags {:#x}",
            req.bytes, req.align, req.flags
        )));
    }
    Ok(align)
}

/// Bytes from the first to the last of a copy's destination and of its source; `None` if there is nothing to copy.
pub(crate) fn spans(req: &CopyReq) -> Result<Option<[u64; 2]>> {
    if req.rows == 0 || req.row_bytes == 0 {
        return Ok(None);
    }
    if req.rows > 1 && req.dst_pitch < req.row_bytes {
        return Err(Error::invalid("destination rows overlap"));
    }
    let span = |pitch: u64| {
        let span = (req.rows - 1).checked_mul(pitch).and_then(|b| b.checked_add(req.row_bytes));
        span.ok_or_else(|| Error::invalid("a copy larger than the address space"))
    };
    Ok(Some([span(req.dst_pitch)?, span(req.src_pitch)?]))
}

/// Refuses a fill that is not of whole words.
pub(crate) fn check_fill(bytes: u64) -> Result<()> {
    if bytes.is_multiple_of(4) {
        return Ok(());
    }
    Err(Error::invalid(format!("a fill of {bytes} bytes, not a multiple of 4")))
}

/// Refuses `bytes` bytes at a place in the caller's own memory that no process can have.
pub(crate) fn check_host(place: &MemRef, bytes: u64) -> Result<()> {
    let end = place.offset.checked_add(bytes);
    if place.base == 0 || end.and_then(|e| place.base.checked_add(e)).is_none() {
        return Err(Error::invalid("a host address of 0, or beyond the address space"));
    }
    Ok(())
}

/// Refuses `bytes` bytes at a place that leave its buffer.
pub(crate) fn check_inside(place: &MemRef, bytes: u64, buffer: u64) -> Result<()> {
    if place.offset.checked_add(bytes).is_some_and(|end| end <= buffer) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{bytes} bytes at offset {} of a buffer of {buffer} bytes",
        place.offset
    )))
}

/// Nothing has this handle.
pub(crate) fn unknown(what: &str, handle: u64) -> Error {
    Error::invalid(format!("no {what} {handle:#x}"))
}

//! Groups: what a thread calls between `ncclGroupStart` and `ncclGroupEnd` begins together.

use std::{cell::RefCell, sync::Arc};

use crate::{
    call::Call,
    comm::{Comm, in_progress},
    result::{Failure, Outcome},
    staging::issue,
};

#[derive(Default)]
struct Group {
    depth: u32,
    /// Communicators that are being made.
    joins: Vec<Arc<Comm>>,
    /// By communicator, in the order of their first calls.
    calls: Vec<(Arc<Comm>, Vec<Call>)>,
    /// The first call that was refused: the group fails with it.
    refused: Option<Failure>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// `ncclGroupStart`.
pub(crate) fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// `ncclGroupEnd`.
pub(crate) fn end() -> Outcome {
    let group = GROUP.with_borrow_mut(|group| match group.depth {
        0 => Err(Failure::usage("ncclGroupEnd without ncclGroupStart")),
        1 => Ok(Some(std::mem::take(group))),
        _ => {
            group.depth -= 1;
            Ok(None)
        }
    })?;
    let Some(group) = group else { return Ok(()) };
    let patient: Vec<_> = group.joins.iter().filter(|comm| comm.blocking).collect();
    let mut waits = group.joins.len() > patient.len();
    for comm in patient {
        comm.wait()?;
    }
    if let Some(refused) = group.refused {
        return Err(refused);
    }
    for (comm, calls) in &group.calls {
        issue(comm, calls)?;
        waits |= !comm.blocking;
    }
    if waits { Err(in_progress()) } else { Ok(()) }
}

/// Waits for a join, or leaves that to the end of the group.
pub(crate) fn join(comm: &Arc<Comm>) -> Outcome {
    let later = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.joins.push(Arc::clone(comm));
        }
        group.depth > 0
    });
    match comm.blocking {
        _ if later => Ok(()),
        true => comm.wait(),
        false => Err(in_progress()),
    }
}

/// Issues a call, or leaves that to the end of the group.
pub(crate) fn call(comm: &Arc<Comm>, call: Call) -> Outcome {
    let checked = comm.member().and_then(|m| call.check(m.rank, m.world));
    let later = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return false;
        }
        match &checked {
            Err(failure) => _ = group.refused.get_or_insert_with(|| failure.clone()),
            Ok(()) => match group.calls.iter_mut().find(|(c, _)| Arc::ptr_eq(c, comm)) {
                Some((_, calls)) => calls.push(call),
                None => group.calls.push((Arc::clone(comm), vec![call])),
            },
        }
        true
    });
    checked?;
    if later {
        return Ok(());
    }
    issue(comm, &[call])?;
    if comm.blocking { Ok(()) } else { Err(in_progress()) }
}

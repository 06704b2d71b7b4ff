//! Launches after and beside others, streams, memory around what is a backend's own, and what is lost.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use halyard_sdk::{LaunchArgs, OpKind, Result, Stream, TensorView, Weight, abi::RSlice};

use crate::{
    call::Call,
    device::Habit,
    mutant::{Mutant, bug},
    queue::QueueBug,
};

/// Memory that nobody frees.
pub(crate) fn lose(bytes: usize) {
    // Or the compiler would see that nobody needs it.
    let _lost: &mut [u8] = black_box(Box::leak(vec![1; bytes].into_boxed_slice()));
}

/// What kernels remember of their launch before, by their address.
type Remembered<T> = LazyLock<Mutex<HashMap<usize, T>>>;
static VIEWS: Remembered<TensorView> = LazyLock::new(Mutex::default);
static WEIGHTS: Remembered<Vec<Weight>> = LazyLock::new(Mutex::default);
static LENGTHS: Remembered<Vec<i64>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts something in the place of what the launch before left there; nothing for a kernel's first launch.
fn before<T>(c: &Call<'_>, all: &Remembered<T>, now: T) -> Option<T> {
    let key = std::ptr::from_ref(c.kernel).cast::<()>() as usize;
    lock(all).insert(key, now).filter(|_| c.before > 0)
}

/// The second operand from where the launch before had it, if that was as large.
fn last_operand(c: &Call<'_>) -> Result<()> {
    let now = c.view("b");
    match before(c, &VIEWS, now) {
        Some(old) if old.dims() == now.dims() && old.dtype == now.dtype => {
            c.edit().view("b", |v| *v = old).run()
        }
        _ => c.run(),
    }
}

/// The weights of the launch before.
fn last_weights(c: &Call<'_>) -> Result<()> {
    let Some(old) = before(c, &WEIGHTS, c.args.weights.to_vec()) else { return c.run() };
    let args = LaunchArgs { weights: RSlice::from_slice(&old), ..*c.args };
    c.kernel.launch(Stream::NONE, &args)
}

/// The lengths of the launch before, if there were as many and none was longer.
fn last_lengths(c: &Call<'_>) -> Result<()> {
    let now = c.ints("kv_len");
    match before(c, &LENGTHS, now.clone()) {
        Some(old) if old.len() == now.len() && old.iter().zip(&now).all(|(o, n)| o <= n) => {
            c.edit().ints("kv_len", &old).run()
        }
        _ => c.run(),
    }
}

/// Bytes of a cache, which the reference keeps row by row.
fn cache_bytes(c: &Call<'_>, name: &str) -> u64 {
    let elements: usize = c.dims(name).iter().product();
    c.dtype(name).bytes(elements as u64).unwrap_or(0)
}

const COPY: OpKind = OpKind::COPY;

const fn queues(name: &'static str, op: OpKind, wrong: &'static str, bug_: QueueBug) -> Mutant {
    bug(name, op, wrong).habit(Habit::Queues(bug_))
}

pub(super) const MUTANTS: &[Mutant] = &[
    queues("event_wait_ignored", COPY, "a stream does not wait for events", QueueBug::WaitIgnored)
        .told("by a stream that waited for the event"),
    queues(
        "event_reached_at_once",
        COPY,
        "an event counts as reached when it is recorded",
        QueueBug::ReachedAtOnce,
    )
    .told("waited for the event"),
    queues("event_without_time", COPY, "no time passes between events", QueueBug::NoTime)
        .told("between two events"),
    queues(
        "fill_overtakes_launch",
        COPY,
        "a fill does not wait for what its stream has to do",
        QueueBug::FillOvertakes,
    ),
    queues(
        "launch_on_default_stream",
        COPY,
        "a launch goes to the default stream, whatever it is told",
        QueueBug::OneStream,
    ),
    queues(
        "async_error_lost",
        OpKind::KV_WRITE,
        "work that fails on its stream says nothing",
        QueueBug::ErrorLost,
    )
    .case("again_")
    .told("no error for an index out of range"),
    queues(
        "async_error_kept",
        OpKind::KV_WRITE,
        "an error that was told is told again",
        QueueBug::ErrorKept,
    )
    .case("again_"),
    bug("kernels_lost", OpKind::EMBEDDING, "a kernel leaves memory behind when it goes")
        .case("leaks")
        .told("preparing a kernel loses memory")
        .habit(Habit::LosesKernels),
    bug("launches_lose", OpKind::EMBEDDING, "a launch leaves memory behind")
        .case("leaks")
        .told("launching a kernel loses memory")
        .launch(|c| {
            lose(64);
            c.run()
        }),
    bug("weights_kept", OpKind::EMBEDDING, "a weight stays when it is destroyed")
        .case("leaks")
        .told("packing a weight loses memory")
        .habit(Habit::KeepsWeights),
    bug("memory_kept", OpKind::EMBEDDING, "memory stays when it is freed")
        .case("leaks")
        .told("allocating memory loses memory")
        .habit(Habit::KeepsMemory),
    bug("scratch_overrun", OpKind::RMS_NORM, "a number is written behind the scratch memory")
        .told("after scratch memory")
        .scratch(64)
        .launch(|c| {
            c.behind_scratch();
            c.run()
        }),
    bug("kv_write_behind_cache", OpKind::KV_WRITE, "a number is written behind the cache")
        .told("after a cache")
        .launch(|c| {
            c.run()?;
            c.scribble("k_cache", cache_bytes(c, "k_cache"));
            Ok(())
        }),
    bug("kv_write_before_cache", OpKind::KV_WRITE, "slot -1 is written in front of the cache")
        .told("before a cache")
        .launch(|c| {
            c.run()?;
            if c.ints("slots").contains(&-1) {
                c.scribble("k_cache", 4u64.wrapping_neg());
            }
            Ok(())
        }),
    bug(
        "attention_writes_cache",
        OpKind::PAGED_ATTENTION,
        "the first key is overwritten after it was read",
    )
    .case("decode")
    .told("the cache was changed")
    .launch(|c| {
        c.run()?;
        c.scribble("k_cache", 0);
        Ok(())
    }),
    bug("copy_loses_sign_of_zero", COPY, "-0 becomes 0")
        .told("a zero of the other sign")
        .launch(|c| c.then("y", |_, y| if y == 0.0 { 0.0 } else { y })),
    bug("add_keeps_last_operand", OpKind::ADD, "an operand's address is of the launch before")
        .launch(last_operand),
    bug("linear_keeps_last_weight", OpKind::LINEAR, "the weight is of the launch before")
        .case("again_")
        .told("by turns")
        .launch(last_weights),
    bug(
        "attention_keeps_last_lengths",
        OpKind::PAGED_ATTENTION,
        "lengths are of the launch before",
    )
    .case("again_")
    .launch(last_lengths),
    bug("rope_works_once", OpKind::ROPE, "launches after the first do nothing")
        .launch(|c| if c.before > 0 { Ok(()) } else { c.run() }),
    bug("add_strides_of_a", OpKind::ADD, "b is read with the strides of a").launch(|c| {
        let a = c.view("a");
        let same = a.dims() == c.view("b").dims();
        c.edit()
            .view("b", |v| {
                if same {
                    v.strides = a.strides;
                }
            })
            .run()
    }),
    bug("mul_offset_of_a", OpKind::MUL, "b is read from the offset of a").launch(|c| {
        let a = c.view("a");
        c.edit().view("b", |v| v.byte_offset = a.byte_offset).run()
    }),
    bug("fill_loses_single_rows", OpKind::LINEAR, "a fill of a single row among others is lost")
        .case("linear_sizes")
        .fill(|f, came| {
            if f.rows == 1 && came > 0 {
                f.parts.iter_mut().for_each(|part| part.fill(0));
            }
        }),
    bug("fill_unchecked", OpKind::LINEAR, "rows may come twice or never")
        .case("again_")
        .told("rows that came twice")
        .fill(|_, _| {}),
];

//! Worker threads that spin briefly for the next job, then sleep.
//!
//! The engine launches thousands of short kernels a second, and waking a sleeping thread costs more
//! than many of them. So a worker that has just finished a job keeps looking for the next one for
//! [`SPIN`], and parks after that: an idle process uses no processor time.
//!
//! A job is a number of independent tasks that the threads claim one by one; the calling thread works
//! too. Running a job allocates nothing. A worker that comes late simply does not join, so a caller
//! never waits for a thread that has not started, and a pool that is busy with another caller's job
//! costs that caller its help only: the tasks then run on the calling thread alone.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it parks. Longer than the gaps between the kernels
/// of one forward pass, shorter than a person would notice on a battery.
const SPIN: Duration = Duration::from_micros(200);

/// Threads beyond this are refused.
pub(crate) const MAX_THREADS: usize = 1024;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// A fixed set of worker threads; see the module's text.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Thread>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    /// Held by the caller whose job the workers are on.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// Its own cache line: workers spin on `gate` while tasks hammer on `next`.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// `job number << 32 | OPEN? | workers inside`.
    gate: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    job: UnsafeCell<Job>,
    asleep: Box<[AtomicBool]>,
    stop: AtomicBool,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    /// The caller's closure, its lifetime erased; valid while the gate is open or workers are inside.
    task: Option<*const (dyn Fn(usize) + Sync)>,
    tasks: usize,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

// SAFETY: `job` is written only by the caller that holds `turn`, while the gate is shut and nobody is
// inside, and read only by workers that entered through the open gate.
unsafe impl Sync for Shared {}
// SAFETY: the task pointer is only followed under the rule above.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the calling one included.
    ///
    /// # Errors
    /// What the system says if it cannot start a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let workers = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            gate: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { task: None, tasks: 0 }),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(workers),
            handles: Mutex::new(Vec::with_capacity(workers)),
            turn: Mutex::new(()),
        };
        for index in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("halyard-cpu-{index}"))
                .spawn(move || shared.work(index))?;
            pool.workers.push(handle.thread().clone());
            pool.handles.get_mut().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        Ok(pool)
    }

    /// Threads that work on a job, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, ..., `task(tasks - 1)`, each once, on any of the threads, and returns when all
    /// have returned. A panic in a task is raised again here.
    pub(crate) fn run(&self, tasks: usize, task: Task<'_>) {
        let turn =
            if tasks > 1 && !self.workers.is_empty() { self.turn.try_lock().ok() } else { None };
        let Some(_turn) = turn else {
            return (0..tasks).for_each(task);
        };
        // SAFETY: only the lifetime changes; `Session` keeps the closure borrowed until the gate is
        // shut and nobody is inside.
        let erased = unsafe {
            std::mem::transmute::<Task<'_>, *const (dyn Fn(usize) + Sync + 'static)>(task)
        };
        let session = self.open(Job { task: Some(erased), tasks });
        self.shared.claim(tasks, task);
        drop(session);
        if let Some(panic) = self.shared.take_panic() {
            resume_unwind(panic);
        }
    }

    fn open(&self, job: Job) -> Session<'_> {
        let shared = &*self.shared;
        // Left behind if a caller and a worker panicked in the same job.
        drop(shared.take_panic());
        // SAFETY: this caller holds `turn`; the gate is shut and nobody is inside (`Session::drop`).
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        let number = (shared.gate.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // Sequentially consistent with `asleep`: either the worker sees this job, or we see it asleep.
        shared.gate.0.store(number << 32 | OPEN, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::SeqCst) {
                worker.unpark();
            }
        }
        Session(shared)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.workers.iter().for_each(Thread::unpark);
        for handle in self.handles.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A worker catches its tasks' panics, so joining cannot fail; if it did, nothing is lost.
            let _ = handle.join();
        }
    }
}

/// An open gate; dropping it shuts the gate and waits for the workers inside, also when unwinding.
struct Session<'a>(&'a Shared);

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let gate = &self.0.gate.0;
        let mut spins = 0u32;
        if gate.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE == 0 {
            return;
        }
        while gate.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < 4096 {
                std::hint::spin_loop();
            } else {
                // The worker lost its processor, perhaps to us.
                std::thread::yield_now();
            }
        }
    }
}

impl Shared {
    /// Claims and runs tasks until none is left.
    fn claim(&self, tasks: usize, task: Task<'_>) {
        loop {
            let i = self.next.0.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                return;
            }
            task(i);
        }
    }

    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        let panicked = self.panicked.load(Ordering::Relaxed);
        if !panicked {
            return None;
        }
        self.panicked.store(false, Ordering::Relaxed);
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        let mut done = 0;
        while let Some(gate) = self.wait(index, done) {
            done = gate >> 32;
            let entered = self.gate.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |g| {
                (g >> 32 == done && g & OPEN != 0).then(|| g + 1)
            });
            if entered.is_err() {
                continue;
            }
            // SAFETY: entered through the open gate, so the job stands until we leave.
            let job = unsafe { *self.job.get() };
            if let Some(task) = job.task {
                // SAFETY: as above: the caller's closure is borrowed until we leave.
                let task = unsafe { &*task };
                let result = catch_unwind(AssertUnwindSafe(|| self.claim(job.tasks, task)));
                if let Err(panic) = result {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    self.panicked.store(true, Ordering::Relaxed);
                    // The caller is to fail soon: leave no task for others.
                    self.next.0.store(job.tasks, Ordering::Relaxed);
                }
            }
            self.gate.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open job after `done`; `None` when the pool is to end.
    fn wait(&self, index: usize, done: u64) -> Option<u64> {
        let fresh = |order| {
            let g = self.gate.0.load(order);
            (g >> 32 != done && g & OPEN != 0).then_some(g)
        };
        let mut since = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(g) = fresh(Ordering::Acquire) {
                    return Some(g);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if since.elapsed() < SPIN {
                continue;
            }
            self.asleep[index].store(true, Ordering::SeqCst);
            if fresh(Ordering::SeqCst).is_none() && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep[index].store(false, Ordering::Relaxed);
            since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 17, 100] {
                let hits: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_jobs_from_many_callers() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..3000 {
                        let sum = AtomicUsize::new(0);
                        pool.run(1 + round % 7, &|i| {
                            sum.fetch_add(i + 1, Ordering::Relaxed);
                        });
                        let n = 1 + round % 7;
                        assert_eq!(sum.load(Ordering::Relaxed), n * (n + 1) / 2);
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 9000);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, &|i| assert_ne!(i, bad, "planted"));
            }));
            assert!(result.is_err());
            let n = AtomicUsize::new(0);
            pool.run(8, &|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.load(Ordering::Relaxed), 8);
        }
    }

    #[test]
    fn a_nested_job_runs_inline() {
        let pool = Pool::new(2).unwrap();
        let n = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(4, &|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(n.load(Ordering::Relaxed), 16);
    }

    #[test]
    fn idle_workers_sleep() {
        use std::os::unix::thread::JoinHandleExt;
        let pool = Pool::new(3).unwrap();
        let cpu_time = || {
            let handles = pool.handles.lock().unwrap();
            let times = handles.iter().map(|handle| {
                let mut clock = 0;
                let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: the thread lives, and `clock` is a valid place for the answer.
                let got =
                    unsafe { libc::pthread_getcpuclockid(handle.as_pthread_t(), &raw mut clock) };
                assert_eq!(got, 0);
                // SAFETY: `t` is a valid place for the answer.
                assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut t) }, 0);
                Duration::new(t.tv_sec.cast_unsigned(), t.tv_nsec as u32)
            });
            times.sum::<Duration>()
        };
        pool.run(3, &|_| {});
        std::thread::sleep(Duration::from_millis(50));
        let before = cpu_time();
        std::thread::sleep(Duration::from_millis(100));
        assert!(cpu_time() - before < Duration::from_millis(5));
    }
}

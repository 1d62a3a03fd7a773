//! A team of threads that a step's operations are spread over.
//!
//! A decode step is some hundreds of short operations, one after another: a general pool, whose threads sleep between
//! them, costs as much as the operations do. Here the threads watch for the next one for as long as a step lasts, and
//! sleep only between steps. Outside a team, and inside an operation, everything runs on the calling thread.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr::null,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
        },
    },
    thread::{JoinHandle, Thread, park},
    time::{Duration, Instant},
};

/// How long a thread watches for work before it sleeps: longer than the pauses inside a step.
const PATIENCE: Duration = Duration::from_micros(300);
/// Looks between two looks at the clock.
const LOOKS: usize = 64;

/// Threads that work together on one operation at a time.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while somebody's operations use the team.
    turn: Mutex<()>,
}

/// What the caller and the workers share.
///
/// An operation is open from `open = epoch` to `open = 0`. A worker that sees a new epoch counts itself in, and takes
/// part only if the operation is still open then; the caller closes it when no task is left and waits until nobody is
/// in. So a worker that sleeps or comes late delays nobody.
struct Shared {
    threads: usize,
    /// Counts the operations; workers watch it.
    epoch: Line<AtomicUsize>,
    open: AtomicUsize,
    inside: AtomicUsize,
    job: UnsafeCell<Job>,
    /// The next task of each thread's part of the operation: neighbouring tasks read neighbouring memory, so a thread has
    /// a range of them, and helps with the others' when it is through.
    next: Vec<Line<AtomicUsize>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Whether anybody is in `sleepers`.
    asleep: AtomicBool,
    sleepers: Mutex<Vec<Thread>>,
}

/// A cache line of its own.
#[repr(align(64))]
struct Line<T>(T);

/// An operation: `call(data, i)` for every i below `tasks`.
#[derive(Clone, Copy)]
struct Job {
    data: *const (),
    call: unsafe fn(*const (), usize),
    tasks: usize,
}

// SAFETY: `job` is written by the one caller while the operation is closed, and read by workers only while it is open;
// what `data` points to is `Sync` and outlives the operation, see `Shared::run`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

thread_local! {
    /// The team that this thread's operations are spread over.
    static CURRENT: Cell<*const Shared> = const { Cell::new(null()) };
}

/// Puts back what was current, also in a panic.
struct Restore(*const Shared);

impl Restore {
    /// Makes `current` current until this is dropped.
    fn after(current: *const Shared) -> Self {
        Self(CURRENT.replace(current))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

unsafe fn nothing(_: *const (), _: usize) {}

impl Team {
    /// A team of `threads` (0 is one for each core), the calling thread of [`Self::install`] among them.
    ///
    /// # Errors
    /// What the system says when it gives no thread.
    pub fn new(threads: usize) -> io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        let shared = Arc::new(Shared {
            threads,
            epoch: Line(AtomicUsize::new(0)),
            open: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { data: null(), call: nothing, tasks: 0 }),
            next: (0..threads).map(|_| Line(AtomicUsize::new(0))).collect(),
            panic: Mutex::default(),
            stop: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            sleepers: Mutex::default(),
        });
        let mut team = Self { shared, workers: Vec::new(), turn: Mutex::default() };
        for i in 1..threads {
            let shared = team.shared.clone();
            let worker = std::thread::Builder::new().name(format!("bitdelta-{i}")).spawn(move || shared.work(i));
            team.workers.push(worker?);
        }
        Ok(team)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f` on this thread, its operations spread over the team. Others who call meanwhile wait for their turn.
    pub fn install<R>(&self, f: impl FnOnce() -> R) -> R {
        if CURRENT.get() == Arc::as_ptr(&self.shared) {
            return f();
        }
        let _turn = lock(&self.turn);
        let _restore = Restore::after(Arc::as_ptr(&self.shared));
        f()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.wake();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks and has none of its own.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Calls `f(i)` for every i below `tasks`, on all threads, and returns when all calls have.
    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, f: &F) {
        unsafe fn call<F: Fn(usize)>(data: *const (), i: usize) {
            // SAFETY: `data` is the `&F` below, which lives until `run` returns.
            unsafe { (*data.cast::<F>())(i) }
        }
        let job = Job { data: std::ptr::from_ref(f).cast(), call: call::<F>, tasks };
        // SAFETY: the last operation is closed and all who took part are out of it (the end of this function), and only
        // the holder of the team's turn calls this.
        unsafe { *self.job.get() = job };
        for (thread, next) in self.next.iter().enumerate() {
            next.0.store(self.part(tasks, thread), Relaxed);
        }
        let epoch = self.epoch.0.load(Relaxed) + 1;
        self.open.store(epoch, SeqCst);
        self.epoch.0.store(epoch, SeqCst);
        if self.asleep.load(SeqCst) {
            self.wake();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job, 0)));
        self.open.store(0, SeqCst);
        // Whoever saw the operation open had counted itself in before it closed, and so before this.
        wait_until(|| self.inside.load(SeqCst) == 0);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    /// The first task of a thread's part.
    fn part(&self, tasks: usize, thread: usize) -> usize {
        tasks * thread / self.threads
    }

    fn take_tasks(&self, job: Job, me: usize) {
        for thread in (me..self.threads).chain(0..me) {
            let end = self.part(job.tasks, thread + 1);
            loop {
                let i = self.next[thread].0.fetch_add(1, Relaxed);
                if i >= end {
                    break;
                }
                // SAFETY: the operation is open, or this is its caller: `data` is alive.
                unsafe { (job.call)(job.data, i) };
            }
        }
    }

    /// A worker's life.
    fn work(&self, me: usize) {
        let mut seen = 0;
        while self.await_epoch(seen) {
            seen = self.epoch.0.load(SeqCst);
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) == seen {
                // SAFETY: it is open and this worker counted, so the caller waits until it is out.
                let job = unsafe { *self.job.get() };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job, me))) {
                    *lock(&self.panic) = Some(panic);
                }
            }
            self.inside.fetch_sub(1, Release);
        }
    }

    /// Waits for an epoch after `seen`; false at the end of the team.
    fn await_epoch(&self, seen: usize) -> bool {
        loop {
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE {
                for _ in 0..LOOKS {
                    if self.epoch.0.load(Acquire) != seen {
                        return true;
                    }
                    std::hint::spin_loop();
                }
            }
            {
                let mut sleepers = lock(&self.sleepers);
                sleepers.push(std::thread::current());
                self.asleep.store(true, SeqCst);
            }
            // What was published before is seen here; what comes later finds this thread among the sleepers. A park
            // that ends for no reason only means to watch for a while again.
            if self.epoch.0.load(SeqCst) == seen && !self.stop.load(SeqCst) {
                park();
            }
            if self.stop.load(SeqCst) {
                return false;
            }
        }
    }

    fn wake(&self) {
        let mut sleepers = lock(&self.sleepers);
        self.asleep.store(false, SeqCst);
        sleepers.drain(..).for_each(|thread| thread.unpark());
    }
}

/// Watches for what other threads are about to bring about.
#[inline]
fn wait_until(done: impl Fn() -> bool) {
    let mut looks = 0usize;
    while !done() {
        looks += 1;
        if looks.is_multiple_of(1 << 12) {
            // Somebody else may need this core to end a task.
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// A lock whose data stays valid when a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer to the result, which threads write at places of their own.
#[derive(Clone, Copy)]
pub(crate) struct Output<T = f32>(*mut T);

impl<T: Copy> Output<T> {
    pub(crate) fn new(y: &mut [T]) -> Self {
        Self(y.as_mut_ptr())
    }

    pub(crate) fn pointer(self) -> *mut T {
        self.0
    }
}

// SAFETY: each task has its own range of outputs, and the kernels write only inside it.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

/// Calls `task(i)` for every i below `tasks`, on the team's threads where this thread has one.
pub fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    let current = CURRENT.get();
    if current.is_null() || tasks <= 1 {
        return (0..tasks).for_each(task);
    }
    // Operations inside this one run where they are.
    let _restore = Restore::after(null());
    // SAFETY: `install` put it there on this thread and holds the team, and its turn, until it returns.
    unsafe { (*current).run(tasks, &task) };
}

/// Calls `f(i, chunk)` for every chunk of `width` values of `y` (the last may be shorter), as [`for_each`] does.
///
/// # Panics
/// When `width` is 0.
pub fn for_each_chunk<T: Send + Copy>(y: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let (length, out) = (y.len(), Output::new(y));
    for_each(length.div_ceil(width), |i| {
        let at = i * width;
        // SAFETY: chunk i lies inside y, and no two tasks have the same i.
        f(i, unsafe { std::slice::from_raw_parts_mut(out.pointer().add(at), width.min(length - at)) });
    });
}

/// Small tasks that must all be done before what an operation's other tasks need of them, without an operation of their own:
/// whoever comes first does them, and who needs them waits for those alone that others are still at.
pub(crate) struct Before {
    tasks: usize,
    next: Line<AtomicUsize>,
    done: Line<AtomicUsize>,
}

/// Counts a task as done, also in a panic: nobody may wait for it then.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Release);
    }
}

impl Before {
    pub fn new(tasks: usize) -> Self {
        Self { tasks, next: Line(AtomicUsize::new(0)), done: Line(AtomicUsize::new(0)) }
    }

    /// Does tasks while there are any that nobody began.
    #[inline]
    pub fn help(&self, task: impl Fn(usize)) {
        while self.next.0.load(Relaxed) < self.tasks {
            let i = self.next.0.fetch_add(1, Relaxed);
            if i < self.tasks {
                let _done = Done(&self.done.0);
                task(i);
            }
        }
    }

    /// Helps, and returns when all tasks are done.
    #[inline]
    pub fn wait(&self, task: impl Fn(usize)) {
        self.help(task);
        wait_until(|| self.done.0.load(Acquire) >= self.tasks);
    }
}

/// Threads that an operation of this thread is spread over.
pub fn threads() -> usize {
    let current = CURRENT.get();
    // SAFETY: as in `for_each`.
    if current.is_null() { 1 } else { unsafe { (*current).threads } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(sum: &AtomicUsize, i: usize) {
        sum.fetch_add(i, Relaxed);
    }

    #[test]
    fn every_task_runs_once_in_every_operation() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).expect("threads");
            team.install(|| {
                for operation in 0..2000 {
                    let tasks = operation % 17;
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    for_each(tasks, |i| {
                        counts[i].fetch_add(1, Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "operation {operation} of {threads}");
                }
            });
        }
    }

    #[test]
    fn what_comes_before_is_done_once_and_whole_when_it_is_needed() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).expect("threads");
            team.install(|| {
                for operation in 0..500 {
                    let (tasks, before) = (operation % 7, Before::new(operation % 7));
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    let task = |i: usize| add(&counts[i], 1);
                    for_each(operation % 11, |_| {
                        before.help(task);
                        before.wait(task);
                        assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "operation {operation}");
                    });
                }
            });
        }
        let before = Before::new(1);
        assert!(catch_unwind(AssertUnwindSafe(|| before.help(|_| panic!("on purpose")))).is_err());
        before.wait(|_| unreachable!("it was begun"));
    }

    #[test]
    fn a_team_that_slept_wakes_and_ends() {
        let team = Team::new(3).expect("threads");
        for _ in 0..5 {
            std::thread::sleep(PATIENCE * 4);
            let sum = AtomicUsize::new(0);
            team.install(|| for_each(100, |i| add(&sum, i)));
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn an_operation_inside_an_operation_runs_where_it_is() {
        let team = Team::new(2).expect("threads");
        let sum = AtomicUsize::new(0);
        team.install(|| for_each(10, |_| for_each(10, |i| add(&sum, i))));
        assert_eq!(sum.into_inner(), 450);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_whole() {
        let team = Team::new(3).expect("threads");
        for _ in 0..20 {
            let panicking = || team.install(|| for_each(50, |i| assert_ne!(i, 30, "on purpose")));
            assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
        }
        let sum = AtomicUsize::new(0);
        team.install(|| for_each(100, |i| add(&sum, i)));
        assert_eq!(sum.into_inner(), 4950);
    }

    #[test]
    fn callers_take_turns() {
        let team = Team::new(2).expect("threads");
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| team.install(|| (0..100).for_each(|_| for_each(4, |i| add(&sum, i)))));
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * 6);
    }
}

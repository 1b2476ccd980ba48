//! A simulated machine.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

/// The wall clock at the start of a simulation, in seconds since 1970: 2026-01-01.
const EPOCH_S: u64 = 1_767_225_600;

thread_local! {
    static STARTED: RefCell<Option<Instant>> = const { RefCell::new(None) };
    /// The machine whose task is polled.
    static CURRENT: RefCell<Option<Arc<Machine>>> = const { RefCell::new(None) };
}

/// Starts the wall clock, in tokio's runtime with a paused clock.
pub fn start_clock() {
    STARTED.with_borrow_mut(|started| *started = Some(Instant::now()));
}

/// Stops the wall clock, before the runtime ends.
pub fn stop_clock() {
    STARTED.with_borrow_mut(|started| *started = None);
}

/// Returns the time since [`start_clock`]; `None` before it, and on other threads.
#[must_use]
pub fn elapsed() -> Option<Duration> {
    let started = STARTED.try_with(|started| *started.borrow()).ok().flatten();
    started.map(|started| started.elapsed())
}

/// Returns the wall clock's time of the world: that of AWS.
#[must_use]
pub fn true_now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_S) + elapsed().unwrap_or_default()
}

/// Returns the time of the wall clock of the machine whose task runs.
#[must_use]
pub fn now() -> SystemTime {
    let ahead = CURRENT.with_borrow(|machine| machine.as_ref().map_or(0, |machine| machine.state().clock_s));
    let offset = Duration::from_secs(ahead.unsigned_abs());
    if ahead >= 0 { true_now() + offset } else { true_now() - offset }
}

/// Returns what the machine whose task runs says, or the world if none does.
fn on_current<T>(of_machine: impl FnOnce(&Machine) -> T, of_world: impl FnOnce() -> T) -> T {
    CURRENT.with_borrow(|machine| machine.as_ref().map_or_else(of_world, |machine| of_machine(machine)))
}

/// Returns the id of the boot of the machine whose task runs: it boots once.
#[must_use]
pub fn boot_id() -> String {
    on_current(|machine| format!("boot-of-{}", machine.name), || "boot-of-the-world".to_owned())
}

/// Returns the name of the machine whose task runs.
#[must_use]
pub fn host_name() -> String {
    on_current(|machine| machine.name.clone(), || "world".to_owned())
}

/// Returns the number of cores of each machine: the same wherever the simulation runs.
#[must_use]
pub const fn cores() -> usize {
    2
}

/// Returns the time since the boot of the machine whose task runs.
#[must_use]
pub fn uptime() -> Duration {
    on_current(|machine| machine.booted.elapsed(), || elapsed().unwrap_or_default())
}

/// A machine: its tasks can be frozen or ended, its disk can be full, and it has a clock of its own.
#[derive(Debug)]
pub struct Machine {
    name: String,
    booted: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_frozen: bool,
    waiting: Vec<Waker>,
    /// How far its clock is ahead of the world's, in seconds.
    clock_s: i64,
    is_disk_full: bool,
    /// How often its tasks were polled, and when they are polled no more.
    polls: u64,
    polls_max: Option<u64>,
    stopped: Arc<tokio::sync::Notify>,
}

impl Machine {
    /// Boots a machine.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), booted: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how far its clock is ahead of the world's, in seconds.
    pub fn set_clock(&self, ahead_s: i64) {
        self.state().clock_s = ahead_s;
    }

    /// Sets whether its disk is full.
    pub fn set_disk_full(&self, is_full: bool) {
        self.state().is_disk_full = is_full;
    }

    /// Ends its process when its tasks were polled so often: none is polled again, and [`Machine::stopped`] returns.
    pub fn stop_at(&self, polls: u64) {
        self.state().polls_max = Some(polls);
    }

    /// Waits until its process has ended by [`Machine::stop_at`].
    pub async fn stopped(&self) {
        let stopped = Arc::clone(&self.state().stopped);
        stopped.notified().await;
    }

    /// Freezes all its tasks: none runs until [`Machine::thaw`].
    pub fn freeze(&self) {
        self.state().is_frozen = true;
    }

    /// Lets its tasks go on.
    pub fn thaw(&self) {
        let waiting = {
            let mut state = self.state();
            state.is_frozen = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Returns whether its tasks are to wait, and remembers who waits.
    fn must_wait(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        if state.is_frozen {
            state.waiting.push(waker.clone());
            return true;
        }
        state.polls += 1;
        // The next process of the machine is not concerned.
        let is_last = state.polls_max.is_some_and(|most| state.polls >= most);
        if is_last {
            state.polls_max = None;
            state.stopped.notify_one();
        }
        is_last
    }
}

/// A task of a machine.
pub struct MachineFuture<F: ?Sized> {
    machine: Option<Arc<Machine>>,
    task: Pin<Box<F>>,
}

impl<F: Future + ?Sized> Future for MachineFuture<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.machine.as_ref().is_some_and(|machine| machine.must_wait(context.waker())) {
            return Poll::Pending;
        }
        let before = CURRENT.with_borrow_mut(|current| std::mem::replace(current, self.machine.clone()));
        let polled = self.task.as_mut().poll(context);
        CURRENT.with_borrow_mut(|current| *current = before);
        polled
    }
}

/// Makes a future a task of a machine; the tasks that it starts by [`spawn`] are the same machine's.
pub fn on_machine<F: Future>(machine: &Arc<Machine>, task: F) -> MachineFuture<F> {
    MachineFuture { machine: Some(Arc::clone(machine)), task: Box::pin(task) }
}

/// Returns the size and the free space of the disk of the machine whose task runs: 64 GiB are free, or nothing.
///
/// # Errors
/// The system's.
pub fn disk(folder: &Path) -> io::Result<rustix::fs::StatVfs> {
    let free_blocks = if check_room().is_ok() { 16 << 20 } else { 0 };
    let mut stat = rustix::fs::statvfs(folder)?;
    (stat.f_bsize, stat.f_frsize) = (4096, 4096);
    (stat.f_blocks, stat.f_bfree, stat.f_bavail) = (32 << 20, free_blocks, free_blocks);
    (stat.f_files, stat.f_ffree, stat.f_favail) = (1 << 20, 1 << 19, 1 << 19);
    Ok(stat)
}

/// Runs a function that waits for the disk, here.
///
/// # Errors
/// None.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    Ok(work())
}

/// Starts a task in a set, on the machine whose task runs.
pub fn spawn<T: Send + 'static>(set: &mut JoinSet<T>, task: impl Future<Output = T> + Send + 'static) {
    let machine = CURRENT.with_borrow(Clone::clone);
    set.spawn(MachineFuture { machine, task: Box::pin(task) });
}

/// A file whose operations run where they are called.
#[derive(Debug)]
pub struct File {
    file: std::fs::File,
}

impl File {
    /// Creates a file.
    ///
    /// # Errors
    /// The system's.
    #[expect(clippy::unused_async, reason = "as on a real machine")]
    pub async fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        std::fs::File::create(path).map(Self::from_std)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// The system's.
    #[expect(clippy::unused_async, reason = "as on a real machine")]
    pub async fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        std::fs::File::open(path).map(Self::from_std)
    }

    /// Takes an open file.
    #[must_use]
    pub const fn from_std(file: std::fs::File) -> Self {
        Self { file }
    }

    /// Does nothing: there is no buffer.
    pub const fn set_max_buf_size(&mut self, _: usize) {}
}

/// Reads a whole file.
///
/// # Errors
/// The system's.
pub async fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

/// Writes a whole file.
///
/// # Errors
/// The system's.
pub async fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
    check_room()?;
    // The kernel's time would be that of the real machine: two writes that are minutes apart could have one time.
    let mut file = std::fs::File::create(path)?;
    file.write_all(contents.as_ref())?;
    file.set_modified(now())
}

/// Writes bytes at their place in a file.
///
/// # Errors
/// The system's.
pub fn write_at(file: &std::fs::File, bytes: &[u8], at: u64) -> io::Result<()> {
    check_room()?;
    file.write_all_at(bytes, at)
}

/// Reads a file's metadata.
///
/// # Errors
/// The system's.
pub async fn metadata(path: impl AsRef<Path>) -> io::Result<std::fs::Metadata> {
    std::fs::metadata(path)
}

impl AsyncRead for File {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.file.read(buffer.initialize_unfilled());
        Poll::Ready(count.map(|count| buffer.advance(count)))
    }
}

/// Returns an error if the disk of the machine whose task runs is full.
fn check_room() -> io::Result<()> {
    let is_full = CURRENT.with_borrow(|machine| machine.as_ref().is_some_and(|machine| machine.state().is_disk_full));
    if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

impl AsyncWrite for File {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(check_room().and_then(|()| self.file.write(bytes)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.file.flush())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.file.flush())
    }
}

impl AsyncSeek for File {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        self.file.seek(position).map(drop)
    }

    fn poll_complete(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(self.file.stream_position())
    }
}

//! `lighthpc status --watch`: a live screen on a terminal, plain lines elsewhere.
//!
//! ```text
//!   a thread reads keys ──► the model ──► draw
//!   every few seconds   ──► the summary, and one page of tasks ──► the model
//! ```

mod model;
mod view;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use local_cloud::LocalCloud;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::failure::Failure;
use super::place::MissionPlace;
use super::{explain, screen, signals, wait};
use crate::command::exit::ExitCode;
use crate::domain::ids::SrcId;
use crate::domain::task::State;
use crate::logging;
use crate::summary::{Selected, Selection, Summary};
use crate::worker::Stopping;

use model::{Action, LiveScreen, NodeLine};

/// How long the thread waits for a key before it looks whether the screen is closed.
const KEY_PAUSE: Duration = Duration::from_millis(100);
/// The pause between two reads of a local mission by the process that works on it: a read takes some milliseconds.
const EVERY_LOCAL: Duration = Duration::from_secs(1);
/// The most tasks that are listed: two reads of 100 rows.
const TASKS_MAX: usize = 200;

/// How the user closed the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    /// By a key of the screen.
    Quit,
    /// By Ctrl-C, which is a key while the screen is open.
    Interrupt,
}

/// Shows a mission until a key or a signal ends it. Without a terminal, waits and prints a line per change.
pub(super) async fn run(place: MissionPlace, id: &str, every: Duration) -> Result<ExitCode, Failure> {
    if !std::io::stdout().is_terminal() {
        return wait::until_ended(place, id, wait::Until::default()).await;
    }
    place.mission(id).await?;
    let stopping = Stopping::default();
    let internal = |error: std::io::Error| Failure { exit: ExitCode::Internal, error: error.into(), hint: None };
    let _listener = signals::listen(stopping.clone()).map_err(internal)?;
    let Ok(mut screen) = OpenScreen::open() else {
        // There is a terminal for output, and none for keys.
        return wait::until_ended(place, id, wait::Until::default()).await;
    };
    let shown = screen.show(place, id, every, &stopping).await;
    screen.close().await;
    let is_interrupted = shown? == Closed::Interrupt || stopping.drain.is_cancelled();
    Ok(if is_interrupted { ExitCode::Interrupted } else { ExitCode::Ok })
}

/// Shows the local mission of this process while it works on it, until the work ends or the user closes the screen; then
/// the work goes on without it. Ctrl-C drains the work. Other output is held until the screen is closed.
pub(super) async fn beside<T>(cloud: &LocalCloud, id: &str, stopping: &Stopping, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let place = MissionPlace::of_this_process(cloud);
    let mut live = match OpenScreen::open() {
        Ok(live) => live,
        Err(error) => {
            tracing::warn!("the live screen cannot be shown: {error}");
            return work.await;
        }
    };
    logging::hold();
    let (done, shown) = tokio::select! {
        done = &mut work => (Some(done), Ok(Closed::Quit)),
        // May be dropped: it only reads and draws.
        shown = live.show(place, id, EVERY_LOCAL, stopping) => (None, shown),
    };
    live.close().await;
    logging::release();
    match shown {
        Ok(Closed::Quit) if done.is_none() && !stopping.drain.is_cancelled() => {
            screen::to_stderr("the run goes on; Ctrl-C stops it\n");
        }
        Ok(Closed::Quit) => {}
        Ok(Closed::Interrupt) => stopping.drain.cancel(),
        Err(failure) => tracing::warn!("the live screen was closed: {}", failure.error),
    }
    match done {
        Some(done) => done,
        None => work.await,
    }
}

/// A terminal that shows the screen, and a thread that reads its keys.
struct OpenScreen {
    terminal: ratatui::DefaultTerminal,
    pressed: mpsc::Receiver<Event>,
    is_over: Arc<AtomicBool>,
    reader: JoinSet<()>,
}

impl OpenScreen {
    /// Opens the screen. On a terminal that cannot be used, returns the system's error.
    fn open() -> std::io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let (keys, pressed) = mpsc::channel(64);
        let is_over = Arc::new(AtomicBool::new(false));
        let mut reader = JoinSet::new();
        let closed = is_over.clone();
        reader.spawn_blocking(move || read_keys(&keys, &closed));
        Ok(Self { terminal, pressed, is_over, reader })
    }

    /// Gives the terminal back.
    async fn close(mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // The reader may wait until a key is taken.
        self.pressed.close();
        ratatui::restore();
        while self.reader.join_next().await.is_some() {}
    }

    /// Shows a mission until the user closes the screen, or until a drain.
    async fn show(
        &mut self,
        place: MissionPlace,
        id: &str,
        every: Duration,
        stopping: &Stopping,
    ) -> Result<Closed, Failure> {
        let disk =
            |error: std::io::Error| Failure { exit: ExitCode::OutputNotWritten, error: error.into(), hint: None };
        let (mut model, flag) = (LiveScreen::new(), place.flag());
        // Reads run beside the keys. They are dropped with the screen.
        let mut reads: JoinSet<Read> = JoinSet::new();
        let (mut next_read, mut is_reading) = (Instant::now(), false);
        loop {
            self.terminal.draw(|frame| view::draw(frame, &model, &flag)).map_err(disk)?;
            let event = tokio::select! {
                event = self.pressed.recv() => event,
                Some(read) = reads.join_next() => {
                    let read = read.unwrap_or_else(|panic| Read::Problem(panic.to_string()));
                    if !matches!(read, Read::Page(_)) {
                        (is_reading, next_read) = (false, Instant::now() + every);
                    }
                    take(&mut model, read);
                    continue;
                }
                () = tokio::time::sleep_until(next_read), if !is_reading => {
                    is_reading = true;
                    reads.spawn(read(place.clone(), id.to_owned(), model.state));
                    continue;
                }
                () = stopping.drain.cancelled() => return Ok(Closed::Quit),
            };
            let action = match event {
                None => return Ok(Closed::Quit),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => model.press(key),
                // A change of the size: it is drawn again.
                Some(_) => Action::None,
            };
            match action {
                Action::None => {}
                Action::Quit => return Ok(Closed::Quit),
                Action::Interrupt => return Ok(Closed::Interrupt),
                Action::Reload => {
                    reads.abort_all();
                    (is_reading, next_read) = (false, Instant::now());
                }
                Action::Open(src) => {
                    reads.spawn(open(place.clone(), id.to_owned(), src));
                }
            }
        }
    }
}

/// Reads keys and changes of the terminal's size until the screen is closed.
fn read_keys(keys: &mpsc::Sender<Event>, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        match event::poll(KEY_PAUSE) {
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if keys.blocking_send(event).is_err() {
                    return;
                }
            }
            Ok(false) => {}
            Err(_) => return,
        }
    }
}

/// What was read.
enum Read {
    /// The summary, a page of tasks, and the nodes.
    Figures(Box<(Summary, Selected, Vec<NodeLine>)>),
    /// The page about one task.
    Page(String),
    /// Why nothing was read.
    Problem(String),
}

/// Shows what was read.
fn take(model: &mut LiveScreen, read: Read) {
    match read {
        Read::Figures(figures) => {
            let (summary, selected, nodes) = *figures;
            (model.tasks, model.is_cut) = (selected.tasks, selected.is_cut);
            (model.summary, model.nodes, model.problem) = (Some(summary), nodes, None);
        }
        Read::Page(text) => model.page = Some(model::Page { text: crate::domain::printable::lines(&text), scroll: 0 }),
        Read::Problem(problem) => model.problem = Some(problem),
    }
}

async fn read(place: MissionPlace, id: String, state: State) -> Read {
    let read = async {
        let place = place.reopened()?;
        let mission = place.mission(&id).await?;
        let selection = Selection { states: vec![state], limit: Some(TASKS_MAX), ..Selection::default() };
        let selected = selection.read_indexed(&place.backend, &mission).await?;
        let instances = place.backend.fleet.list_instances(&place.backend.ledger.tables().tasks).await;
        let nodes = instances.unwrap_or_default().into_iter().filter(|instance| instance.is_of(&mission.id));
        let nodes: Vec<NodeLine> = nodes
            .map(|instance| NodeLine {
                id: instance.id.clone(),
                purchase: if instance.is_spot { "Spot" } else { "On-Demand" },
                age: screen::duration(instance.age),
                task: instance.src.clone().unwrap_or_else(|| mission.id.to_string()),
            })
            .collect();
        Ok::<_, Failure>((Summary::read(&place.backend, mission).await?, selected, nodes))
    };
    match read.await {
        Ok(figures) => Read::Figures(Box::new(figures)),
        Err(failure) => Read::Problem(failure.error.to_string()),
    }
}

async fn open(place: MissionPlace, id: String, src: SrcId) -> Read {
    let text = async {
        let place = place.reopened()?;
        let mission = place.mission(&id).await?;
        let task = place.task(&mission, src.as_str()).await?;
        Ok::<_, Failure>(explain::page_of(&place, &mission, &task).await)
    };
    match text.await {
        Ok(text) => Read::Page(text),
        Err(failure) => Read::Problem(failure.error.to_string()),
    }
}

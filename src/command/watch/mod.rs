//! `lighthpc status --watch`: a live screen on a terminal, plain lines elsewhere.
//!
//! ```text
//!   a thread reads keys ──► the model ──► draw
//!   every few seconds   ──► the summary, and one page of tasks ──► the model
//! ```

mod model;
mod view;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::failure::Failure;
use super::place::MissionPlace;
use super::{explain, screen, signals, wait};
use crate::command::exit::ExitCode;
use crate::domain::ids::SrcId;
use crate::logging;
use crate::summary::{Selection, Summary};
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
    let mut screen = OpenScreen::new();
    let shown = screen.show(place, id, every, &stopping).await;
    screen.close().await;
    shown?;
    Ok(if stopping.drain.is_cancelled() { ExitCode::Interrupted } else { ExitCode::Ok })
}

/// Shows a local mission while this process works on it, until the work ends or the user closes the screen; then the
/// work goes on without it. Ctrl-C drains the work. Other output is held until the screen is closed.
pub(super) async fn beside<T>(dir: &Path, id: &str, stopping: &Stopping, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let place = match MissionPlace::local(dir.to_owned()) {
        Ok(place) => place,
        Err(failure) => {
            tracing::warn!("the live screen cannot be shown: {}", failure.error);
            return work.await;
        }
    };
    logging::hold();
    let mut screen = OpenScreen::new();
    let (done, shown) = tokio::select! {
        done = &mut work => (Some(done), Ok(Closed::Quit)),
        // May be dropped: it only reads and draws.
        shown = screen.show(place, id, EVERY_LOCAL, stopping) => (None, shown),
    };
    screen.close().await;
    logging::release();
    match shown {
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
    fn new() -> Self {
        let (keys, pressed) = mpsc::channel(64);
        let is_over = Arc::new(AtomicBool::new(false));
        let mut reader = JoinSet::new();
        let closed = is_over.clone();
        reader.spawn_blocking(move || read_keys(&keys, &closed));
        Self { terminal: ratatui::init(), pressed, is_over, reader }
    }

    /// Gives the terminal back.
    async fn close(mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        ratatui::restore();
        while self.reader.join_next().await.is_some() {}
    }

    /// Shows a mission until the user closes the screen, or until a drain.
    async fn show(
        &mut self,
        mut place: MissionPlace,
        id: &str,
        every: Duration,
        stopping: &Stopping,
    ) -> Result<Closed, Failure> {
        let disk =
            |error: std::io::Error| Failure { exit: ExitCode::OutputNotWritten, error: error.into(), hint: None };
        let mut model = LiveScreen::new();
        let mut next_read = Instant::now();
        loop {
            let flag = place.flag();
            self.terminal.draw(|frame| view::draw(frame, &model, &flag)).map_err(disk)?;
            // A read that is due is done here: a key waits for it, at most some seconds.
            let event = tokio::select! {
                event = self.pressed.recv() => event,
                () = tokio::time::sleep_until(next_read) => {
                    place = place.reopened()?;
                    read(&place, id, &mut model).await;
                    next_read = Instant::now() + every;
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
                Action::Reload => next_read = Instant::now(),
                Action::Open(src) => open(&place, id, &src, &mut model).await,
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

async fn read(place: &MissionPlace, id: &str, model: &mut LiveScreen) {
    let read = async {
        let mission = place.mission(id).await?;
        let selection = Selection { states: vec![model.state], limit: Some(TASKS_MAX), ..Selection::default() };
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
        Ok((summary, selected, nodes)) => {
            (model.tasks, model.is_cut) = (selected.tasks, selected.is_cut);
            (model.summary, model.nodes, model.problem) = (Some(summary), nodes, None);
        }
        Err(failure) => model.problem = Some(failure.error.to_string()),
    }
}

async fn open(place: &MissionPlace, id: &str, src: &SrcId, model: &mut LiveScreen) {
    let text = async {
        let mission = place.mission(id).await?;
        let task = place.task(&mission, src.as_str()).await?;
        Ok::<_, Failure>(explain::page_of(place, &mission, &task).await)
    };
    match text.await {
        Ok(text) => model.page = Some(model::Page { text: crate::domain::printable::lines(&text), scroll: 0 }),
        Err(failure) => model.problem = Some(failure.error.to_string()),
    }
}

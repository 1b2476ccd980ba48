//! What the live screen shows, and what keys change. It reads and draws nothing.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::domain::ids::SrcId;
use crate::domain::task::{State, Task};
use crate::summary::Summary;

/// What is listed below the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Tasks,
    Nodes,
}

/// The order of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    State,
    Time,
    Attempts,
}

impl Sort {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::Time => "time",
            Self::Attempts => "attempts",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Name => Self::State,
            Self::State => Self::Time,
            Self::Time => Self::Attempts,
            Self::Attempts => Self::Name,
        }
    }
}

/// A running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeLine {
    pub(super) id: String,
    pub(super) purchase: &'static str,
    pub(super) age: String,
    pub(super) task: String,
}

/// A text that covers the list: one task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) text: String,
    pub(super) scroll: u16,
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Quit,
    /// Ctrl-C: a terminal in raw mode sends no signal.
    Interrupt,
    /// Other tasks are wanted.
    Reload,
    /// One task is wanted.
    Open(SrcId),
}

/// The live screen.
#[derive(Clone, Debug)]
pub(super) struct LiveScreen {
    pub(super) summary: Option<Summary>,
    pub(super) tasks: Vec<Task>,
    /// Whether there are more tasks than are listed.
    pub(super) is_cut: bool,
    pub(super) nodes: Vec<NodeLine>,
    pub(super) tab: Tab,
    pub(super) sort: Sort,
    /// The state that is listed.
    pub(super) state: State,
    pub(super) search: String,
    /// Whether keys go into the search.
    pub(super) is_typing: bool,
    pub(super) selected: usize,
    pub(super) page: Option<Page>,
    /// Why the figures are old.
    pub(super) problem: Option<String>,
}

impl LiveScreen {
    pub(super) fn new() -> Self {
        Self {
            summary: None,
            tasks: Vec::new(),
            is_cut: false,
            nodes: Vec::new(),
            tab: Tab::Tasks,
            sort: Sort::Name,
            state: State::Running,
            search: String::new(),
            is_typing: false,
            selected: 0,
            page: None,
            problem: None,
        }
    }

    /// Returns the tasks that are shown, in order.
    pub(super) fn shown(&self) -> Vec<&Task> {
        let search = self.search.to_lowercase();
        let is_found = |task: &&Task| {
            let reason = task.error.as_deref().unwrap_or_default().to_lowercase();
            search.is_empty() || task.src.as_str().to_lowercase().contains(&search) || reason.contains(&search)
        };
        let mut tasks: Vec<&Task> = self.tasks.iter().filter(is_found).collect();
        match self.sort {
            Sort::Name => tasks.sort_by(|a, b| a.src.cmp(&b.src)),
            Sort::State => tasks.sort_by(|a, b| (a.state.as_str(), &a.src).cmp(&(b.state.as_str(), &b.src))),
            Sort::Time => tasks.sort_by_key(|task| (std::cmp::Reverse(task.time_cost_ms), task.src.clone())),
            Sort::Attempts => tasks.sort_by_key(|task| (std::cmp::Reverse(task.attempt), task.src.clone())),
        }
        tasks
    }

    fn len(&self) -> usize {
        match self.tab {
            Tab::Tasks => self.shown().len(),
            Tab::Nodes => self.nodes.len(),
        }
    }

    fn select(&mut self, step: isize) {
        let last = self.len().saturating_sub(1);
        self.selected = self.selected.saturating_add_signed(step).min(last);
    }

    fn list(&mut self, state: State) -> Action {
        (self.state, self.tab, self.selected) = (state, Tab::Tasks, 0);
        Action::Reload
    }

    /// Does what a key means.
    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
        if is_interrupt {
            return Action::Interrupt;
        }
        if self.is_typing {
            return self.type_in(key.code);
        }
        if let Some(page) = &mut self.page {
            match key.code {
                KeyCode::Down | KeyCode::Char('j') => page.scroll = page.scroll.saturating_add(1),
                KeyCode::Up | KeyCode::Char('k') => page.scroll = page.scroll.saturating_sub(1),
                KeyCode::PageDown | KeyCode::Char(' ') => page.scroll = page.scroll.saturating_add(10),
                KeyCode::PageUp => page.scroll = page.scroll.saturating_sub(10),
                _ => self.page = None,
            }
            return Action::None;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::PageDown => self.select(10),
            KeyCode::PageUp => self.select(-10),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = self.len().saturating_sub(1),
            KeyCode::Tab => {
                self.tab = if self.tab == Tab::Tasks { Tab::Nodes } else { Tab::Tasks };
                self.selected = 0;
            }
            KeyCode::Char('r') => return self.list(State::Running),
            KeyCode::Char('f') => return self.list(State::Failed),
            KeyCode::Char('p') => return self.list(State::Pending),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Enter if self.tab == Tab::Tasks => {
                if let Some(task) = self.shown().get(self.selected) {
                    return Action::Open(task.src.clone());
                }
            }
            _ => {}
        }
        Action::None
    }

    fn type_in(&mut self, code: KeyCode) -> Action {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.search.clear();
            }
            KeyCode::Backspace => {
                self.search.pop();
            }
            KeyCode::Char(c) => self.search.push(c),
            _ => {}
        }
        self.selected = 0;
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, ms: u64) -> Task {
        let mut task = Task::new(SrcId::new(name).unwrap(), None);
        task.time_cost_ms = ms;
        task
    }

    fn press(screen: &mut LiveScreen, keys: &str) -> Action {
        let mut action = Action::None;
        for c in keys.chars() {
            let code = match c {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                c => KeyCode::Char(c),
            };
            action = screen.press(KeyEvent::new(code, KeyModifiers::NONE));
        }
        action
    }

    #[test]
    fn tasks_are_sorted_searched_and_opened() {
        let mut screen = LiveScreen::new();
        screen.tasks = vec![task("b", 1), task("a", 2), task("c", 3)];
        let names = |screen: &LiveScreen| screen.shown().iter().map(|task| task.src.to_string()).collect::<String>();
        assert_eq!(names(&screen), "abc");
        press(&mut screen, "ss");
        assert_eq!(names(&screen), "cab");
        assert_eq!(press(&mut screen, "jj\n"), Action::Open(SrcId::new("b").unwrap()));
        press(&mut screen, "/a\n");
        assert_eq!((names(&screen).as_str(), screen.is_typing), ("a", false));
        // Letters are text while a search is typed.
        assert_eq!(press(&mut screen, "/q"), Action::None);
        assert_eq!(press(&mut screen, "\n"), Action::None);
        assert_eq!((names(&screen).as_str(), press(&mut screen, "\n")), ("", Action::None));
        assert_eq!(press(&mut screen, "f"), Action::Reload);
        assert_eq!(screen.state, State::Failed);
        assert_eq!(press(&mut screen, "q"), Action::Quit);
    }

    #[test]
    fn a_page_is_scrolled_and_closed() {
        let mut screen = LiveScreen::new();
        screen.page = Some(Page { text: "x".to_owned(), scroll: 0 });
        press(&mut screen, "jjk");
        assert_eq!(screen.page.as_ref().unwrap().scroll, 1);
        assert_eq!(press(&mut screen, "q"), Action::None);
        assert!(screen.page.is_none());
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.press(interrupt), Action::Interrupt);
    }
}

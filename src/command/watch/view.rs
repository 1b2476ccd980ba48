//! Draws the live screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, TableState, Wrap};

use super::model::{LiveScreen, Tab};
use crate::command::{listing, screen, summary_text};

/// The most lines of the summary: with fewer lines of terminal, the list keeps at least a half.
const SUMMARY_LINES: u16 = 9;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &LiveScreen, flag: &str) {
    let area = frame.area();
    let head = SUMMARY_LINES.min(area.height / 2).max(1);
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(head), Constraint::Min(1), Constraint::Length(1)]).areas(area);
    summary(frame, top, model, flag);
    match (&model.page, model.tab) {
        (Some(page), _) => {
            let text = Paragraph::new(page.text.as_str()).wrap(Wrap { trim: false }).scroll((page.scroll, 0));
            frame.render_widget(text.block(Block::new().borders(Borders::TOP).title(" one task ")), middle);
        }
        (None, Tab::Tasks) => tasks(frame, middle, model),
        (None, Tab::Nodes) => nodes(frame, middle, model),
    }
    frame.render_widget(Line::styled(keys(model), Style::new().add_modifier(Modifier::REVERSED)), bottom);
}

fn summary(frame: &mut Frame<'_>, area: Rect, model: &LiveScreen, flag: &str) {
    let text = match &model.summary {
        None => "reading …".to_owned(),
        Some(summary) => summary_text::head(summary, flag),
    };
    frame.render_widget(Paragraph::new(text), area);
}

fn keys(model: &LiveScreen) -> String {
    if model.is_typing {
        return format!("search: {}_  (Enter: keep, Esc: clear)", screen::plain(&model.search));
    }
    if let Some(problem) = &model.problem {
        return format!("no answer, these figures are old: {}", screen::plain(problem));
    }
    if model.page.is_some() {
        return "up/down: scroll   any other key: back".to_owned();
    }
    "r f p: choose a state  s: sort  /: find  Enter: open  Tab: nodes  q: quit".to_owned()
}

fn tasks(frame: &mut Frame<'_>, area: Rect, model: &LiveScreen) {
    let shown = model.shown();
    let rows = shown.iter().map(|task| {
        Row::new([
            screen::plain(task.src.as_str()),
            task.state.as_str().to_owned(),
            screen::plain(&task.progress),
            screen::duration(listing::time(task)),
            task.attempt.to_string(),
            listing::why(task),
        ])
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(7),
        Constraint::Fill(2),
    ];
    let more = if model.is_cut { "+" } else { "" };
    let search =
        if model.search.is_empty() { String::new() } else { format!(", with \"{}\"", screen::plain(&model.search)) };
    let kind = format!("{} task", model.state.as_str());
    let title = format!(
        " {} by {}{search} ",
        screen::counted(shown.len() as u64, &kind, |n| format!("{n}{more}")),
        model.sort.word()
    );
    let table = Table::new(rows, widths)
        .header(
            Row::new(["TASK", "STATE", "PROGRESS", "TIME", "ATTEMPT", "REASON"])
                .style(Style::new().add_modifier(Modifier::BOLD)),
        )
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::new().borders(Borders::TOP).title(title));
    let mut state = TableState::new().with_selected(Some(model.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn nodes(frame: &mut Frame<'_>, area: Rect, model: &LiveScreen) {
    let rows = model
        .nodes
        .iter()
        .map(|node| Row::new([node.id.clone(), node.purchase.to_owned(), node.age.clone(), screen::plain(&node.task)]));
    let widths = [Constraint::Length(20), Constraint::Length(10), Constraint::Length(12), Constraint::Fill(1)];
    let table = Table::new(rows, widths)
        .header(Row::new(["INSTANCE", "PURCHASE", "AGE", "FOR"]).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(
            Block::new().borders(Borders::TOP).title(format!(" {} ", screen::count(model.nodes.len() as u64, "node"))),
        );
    let mut state = TableState::new().with_selected(Some(model.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::{LiveScreen, NodeLine, Page};
    use super::*;
    use crate::domain::ids::{MissionId, SrcId};
    use crate::domain::mission::{Mission, Tally};
    use crate::domain::task::{State, Task};
    use crate::domain::verdict::Verdict;
    use crate::summary::{Nodes, Reasons, Summary};

    fn model() -> LiveScreen {
        let mut mission = Mission::unknown(MissionId::new("M001").unwrap());
        mission.trans_number = Some(2000);
        let total = Tally { ok: 979, failed: 21, time_cost_ms: 12_000_000, seq: 1000, ..Tally::default() };
        let tasks: Vec<Task> = (0..30)
            .map(|n| {
                let mut task = Task::new(SrcId::new(format!("M001/sample{n:02}.txt")).unwrap(), None);
                (task.state, task.verdict) = (State::Failed, Some(Verdict::AppError));
                (task.error, task.time_cost_ms) = (Some(format!("the workload exited with code {}", n % 4)), n * 1000);
                task
            })
            .collect();
        let failures = Reasons::of_failures(&tasks, 21);
        let summary = Summary {
            mission,
            total,
            running: 40,
            pending: Some(960),
            failures,
            waits: Reasons::default(),
            nodes: Some(Nodes { spot: 10, on_demand: 0 }),
        };
        LiveScreen { summary: Some(summary), tasks, state: State::Failed, ..LiveScreen::new() }
    }

    fn drawn(model: &LiveScreen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, "")).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>());
        lines.map(|line| format!("{}\n", line.trim_end())).collect()
    }

    #[test]
    fn the_screen_is_reviewed_at_two_sizes() {
        let mut model = model();
        let mut text = String::new();
        for (width, height) in [(80, 24), (120, 30)] {
            text.push_str(&format!("== {width} x {height}\n{}", drawn(&model, width, height)));
        }
        model.tab = Tab::Nodes;
        model.nodes = vec![NodeLine {
            id: "i-0123456789abcdef0".to_owned(),
            purchase: "Spot",
            age: "12 min 3 s".to_owned(),
            task: "M001".to_owned(),
        }];
        text.push_str(&format!("== nodes\n{}", drawn(&model, 80, 14)));
        model.page = Some(Page { text: "task M001/sample01.txt\n  state  failed\n".to_owned(), scroll: 0 });
        text.push_str(&format!("== one task\n{}", drawn(&model, 80, 14)));
        expect_test::expect_file!["../snapshots/watch.txt"].assert_eq(&text);
    }

    #[test]
    fn a_tiny_terminal_and_odd_names_do_no_harm() {
        let mut model = model();
        model.tasks[0].src = SrcId::new("M001/\u{1b}[2J\u{202e}").unwrap();
        model.search = "\u{1b}[2J".to_owned();
        for (width, height) in [(1, 1), (2, 3), (10, 4), (300, 100)] {
            drawn(&model, width, height);
        }
        model.search.clear();
        assert!(!drawn(&model, 120, 30).contains('\u{1b}'));
    }
}

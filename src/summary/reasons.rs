//! Groups tasks by the reason why they failed, or why they wait.

use std::collections::HashMap;

use crate::domain::ids::SrcId;
use crate::domain::mission::Mission;
use crate::domain::task::Task;
use crate::domain::verdict::Verdict;

/// The most groups that are kept; the others are counted together.
const GROUPS_MAX: usize = 8;

/// Tasks by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// The groups, the largest first.
    pub groups: Vec<Group>,
    /// How many tasks there are.
    pub total: u64,
    /// How many of them were read: with fewer than [`Reasons::total`], the counts of the groups are of these only.
    pub read: u64,
}

/// Tasks with the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The verdict, if the tasks failed.
    pub verdict: Option<&'static str>,
    /// The reason, as the first task has it.
    pub reason: String,
    /// How many of the tasks that were read have it.
    pub count: u64,
    /// One of them.
    pub example: SrcId,
}

impl Reasons {
    /// Groups failed tasks by verdict and error.
    #[must_use]
    pub fn of_failures(rows: &[Task], total: u64) -> Self {
        let reason = |row: &Task| {
            let verdict = row.verdict.map(Verdict::as_str);
            let error = row.error.clone().unwrap_or_else(|| match row.exit_code {
                Some(code) => format!("the workload exited with code {code}"),
                None => "no reason was kept".to_owned(),
            });
            Some((verdict, error))
        };
        Self::of(rows, total, reason)
    }

    /// Groups pending tasks by why they wait. Most have no reason: their turn has not come.
    #[must_use]
    pub fn of_waits(rows: &[Task], mission: &Mission, total: u64) -> Self {
        if let Some(error) = mission.launch_error.as_ref().filter(|_| mission.nodes.is_some())
            && let Some(first) = rows.first()
        {
            let group =
                Group { verdict: None, reason: format!("no node: {error}"), count: total, example: first.src.clone() };
            return Self { groups: vec![group], total, read: total };
        }
        let reason = |row: &Task| {
            let why = match &row.launch.error {
                Some(error) => format!("no node: {error}"),
                None if row.is_suspect => "its node crashed: it waits until a node can run it alone".to_owned(),
                None => return None,
            };
            Some((None, why))
        };
        Self::of(rows, total, reason)
    }

    fn of(rows: &[Task], total: u64, reason: impl Fn(&Task) -> Option<(Option<&'static str>, String)>) -> Self {
        let mut groups: HashMap<(Option<&'static str>, String), Group> = HashMap::new();
        for row in rows {
            let Some((verdict, reason)) = reason(row) else { continue };
            let key = (verdict, common(&reason, row.src.as_str()));
            let group =
                groups.entry(key).or_insert_with(|| Group { verdict, reason, count: 0, example: row.src.clone() });
            group.count += 1;
            if row.src < group.example {
                group.example = row.src.clone();
            }
        }
        let mut groups: Vec<Group> = groups.into_values().collect();
        groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.example.cmp(&b.example)));
        if groups.len() > GROUPS_MAX {
            let rest = groups.split_off(GROUPS_MAX - 1);
            let count = rest.iter().map(|group| group.count).sum();
            let reason = format!("{} other reasons", rest.len());
            groups.push(Group { verdict: None, reason, count, example: rest[0].example.clone() });
        }
        Self { groups, total, read: rows.len() as u64 }
    }
}

/// Returns what errors of different tasks have in common: without the task's name, and without numbers.
#[must_use]
pub fn common(reason: &str, src: &str) -> String {
    let without_name = without_word(reason, src);
    // Codes and signals stay: they are what differs between reasons.
    let is_code = reason.contains("the workload exited") || reason.contains("the workload was killed");
    if is_code {
        return without_name;
    }
    let mut text = String::new();
    for c in without_name.chars() {
        match c {
            '0'..='9' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            c => text.push(c),
        }
    }
    text
}

/// Replaces a name where it stands alone: a short one is also a part of other words.
fn without_word(text: &str, word: &str) -> String {
    let (mut rest, mut result) = (text, String::new());
    while let Some(at) = rest.find(word).filter(|_| !word.is_empty()) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let is_part = before.ends_with(char::is_alphanumeric) || after.starts_with(char::is_alphanumeric);
        result.push_str(before);
        result.push_str(if is_part { word } else { "*" });
        rest = after;
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(src: &str, verdict: Verdict, error: &str) -> Task {
        let mut task = Task::new(SrcId::new(src).unwrap(), None);
        (task.verdict, task.error) = (Some(verdict), Some(error.to_owned()));
        task
    }

    #[test]
    fn errors_that_differ_in_names_and_numbers_are_one_reason() {
        let rows = [
            failed("m/b", Verdict::Infra, "the input s3://in/m/b does not exist"),
            failed("m/a", Verdict::Infra, "the input s3://in/m/a does not exist"),
            failed("m/c", Verdict::AppError, "the workload exited with code 3"),
            failed("m/d", Verdict::AppError, "the workload exited with code 4"),
            failed("m/e", Verdict::Infra, "no answer within 30 s"),
            failed("m/f", Verdict::Infra, "no answer within 9 s"),
            failed("w", Verdict::Infra, "no answer within 10 s"),
        ];
        let reasons = Reasons::of_failures(&rows, 100);
        let seen: Vec<(u64, &str)> = reasons.groups.iter().map(|group| (group.count, group.example.as_str())).collect();
        assert_eq!(seen, [(3, "m/e"), (2, "m/a"), (1, "m/c"), (1, "m/d")]);
        assert_eq!((reasons.read, reasons.total), (7, 100));
    }

    #[test]
    fn many_reasons_are_cut() {
        let rows: Vec<Task> = (0..30)
            .map(|n| failed(&format!("m/{n:02}"), Verdict::AppError, &format!("the workload exited with code {n}")))
            .collect();
        let reasons = Reasons::of_failures(&rows, 30);
        assert_eq!(reasons.groups.len(), GROUPS_MAX);
        assert_eq!(reasons.groups.last().unwrap().reason, "23 other reasons");
        assert_eq!(reasons.groups.iter().map(|group| group.count).sum::<u64>(), 30);
    }

    #[test]
    fn a_row_of_an_earlier_version_has_a_reason_too() {
        let mut row = failed("a", Verdict::AppError, "");
        (row.error, row.exit_code) = (None, Some(3));
        assert_eq!(Reasons::of_failures(&[row], 1).groups[0].reason, "the workload exited with code 3");
    }
}

//! Parses a task's row.

use super::history::past_attempt;
use super::item::{self, Row};
use super::{request, work};
use crate::domain::ids::{AttemptNumber, InstanceId, MissionId, SrcId};
use crate::domain::task::{Launch, Seen, State, Task};
use crate::domain::value::Form;
use crate::domain::verdict::Verdict;

impl Row<'_> {
    /// Returns whether the first version finished this task. It did not have `state`, only a progress of 100 % and a
    /// result.
    pub(super) fn is_finished_by_first_version(self) -> bool {
        !self.0.contains_key(item::STATE)
            && self.text(item::PROGRESS).as_deref() == Some("100%")
            && self.0.contains_key(item::RESULT)
    }

    /// Parses a task's row.
    #[must_use]
    pub fn task(self, src: SrcId) -> Task {
        let state = match self.form(item::STATE) {
            Form::Absent if self.is_finished_by_first_version() => State::Done,
            Form::Absent => State::Pending,
            Form::Text(word) => State::parse(&word).unwrap_or(State::Unknown),
            Form::Number(_) | Form::Other(_) => State::Unknown,
        };
        let open = self.text(item::OPEN_AS);
        let open = open.as_deref().and_then(|open| open.split_once('#'));
        Task {
            src,
            mission: self.text(item::MISSION).and_then(|id| MissionId::new(id).ok()),
            bucket: self.text(item::BUCKET),
            work: work::read(self),
            made_at: self.text(item::TIME_BOARDING),
            state,
            attempt: AttemptNumber(self.number(item::ATTEMPT).unwrap_or(0)),
            beat: self.number(item::BEAT).unwrap_or(0),
            claim_token: self.text(item::CLAIM_TOKEN),
            instance: self.text(item::INSTANCE).and_then(|id| InstanceId::new(id).ok()),
            progress: self.text(item::PROGRESS).unwrap_or_default(),
            time_cost_ms: self.time_cost_ms(),
            result: self.text(item::RESULT),
            result_etag: self.text(item::RESULT_ETAG),
            result_bytes: self.number(item::RESULT_BYTES),
            input_etag: self.text(item::INPUT_ETAG),
            verdict: self.text(item::VERDICT).as_deref().and_then(Verdict::parse),
            exit_code: self.signed(item::EXIT_CODE),
            signal: self.signed(item::SIGNAL),
            error: self.text(item::ERROR),
            checkpoint: self.text(item::CHECKPOINT),
            app_failures: self.number(item::APP_FAILURES).unwrap_or(0),
            interruptions: self.number(item::INTERRUPTIONS).unwrap_or(0),
            crashes: self.number(item::CRASHES).unwrap_or(0),
            is_suspect: self.is_set(item::SUSPECT),
            history: self.list(item::HISTORY).iter().filter_map(past_attempt).collect(),
            open_since: open.map(|(_, since)| since.to_owned()),
            launch: Launch {
                at_attempt: self.number(item::LAUNCH_AT_ATTEMPT).map(AttemptNumber),
                tries: self.number(item::LAUNCH_TRIES).unwrap_or(0),
                at: self.text(item::LAUNCH_AT).unwrap_or_default(),
                instance: self.text(item::LAUNCH_INSTANCE),
                lost: self.number(item::LAUNCHES_LOST).unwrap_or(0),
                request: self.0.get(item::LAUNCH_REQUEST).and_then(request::read),
                error: self.text(item::LAUNCH_ERROR),
                after: self.text(item::LAUNCH_AFTER),
            },
            cancelled: self.0.contains_key(item::CANCELLED),
            open_as: open.and_then(|(state, _)| State::parse(state)),
            seen: Some(Box::new(Seen {
                mission: self.form(item::MISSION),
                state: self.form(item::STATE),
                attempt: self.form(item::ATTEMPT),
                beat: self.form(item::BEAT),
                launch_at_attempt: self.form(item::LAUNCH_AT_ATTEMPT),
                launch_tries: self.form(item::LAUNCH_TRIES),
                open_as: self.form(item::OPEN_AS),
                suspect: self.form(item::SUSPECT),
            })),
        }
    }
}

//! The history of attempts in a task's row.

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{Row, number, text};
use super::key::Item;
use crate::backend::{CloudError, Kind, error_chain};
use crate::domain::ids::AttemptNumber;
use crate::domain::machine_info::{MachineInfo, MicroUsd, PurchaseOption};
use crate::domain::task::{AttemptEnd, Marks, PastAttempt};
use crate::domain::verdict::Verdict;

/// Returns whether the row may have no space for the history that a commit contained. The commit is more important, and
/// is repeated without the history.
pub(super) fn takes_no_history(error: &CloudError, history: &[PastAttempt]) -> bool {
    let is_so = error.kind == Kind::Invalid && !history.is_empty();
    if is_so {
        tracing::warn!("the history of the attempt could not be written: {}", error_chain(&error));
    }
    is_so
}

/// Parses an entry of `history`; `None` if another program wrote something else.
pub(super) fn past_attempt(value: &AttributeValue) -> Option<PastAttempt> {
    let row = Row(value.as_m().ok()?);
    Some(PastAttempt {
        attempt: AttemptNumber(row.number("attempt")?),
        instance: row.text("instance").unwrap_or_default(),
        started: row.text("started").unwrap_or_default(),
        ended: row.text("ended").unwrap_or_default(),
        machine: MachineInfo {
            instance_type: row.text("type"),
            zone: row.text("zone"),
            purchase: row.text("purchase").as_deref().and_then(PurchaseOption::parse),
            usd_per_hour: row.text("usdPerHour").as_deref().and_then(MicroUsd::parse),
        },
        end: AttemptEnd {
            verdict: row.text("verdict").as_deref().and_then(Verdict::parse)?,
            exit_code: row.signed("exitCode").and_then(|code| i32::try_from(code).ok()),
            signal: row.signed("signal").and_then(|signal| i32::try_from(signal).ok()),
            peak_memory: row.number("peakMemory"),
            error: row.text("error"),
        },
        marks: Marks { spot_notice_at: row.text("spotNoticeAt"), checkpoint_at: row.text("checkpointAt") },
        log: row.text("log"),
    })
}

/// Returns the value of `history`.
pub(super) fn history(attempts: &[PastAttempt]) -> AttributeValue {
    let entry = |past: &PastAttempt| {
        let mut map = Item::from([
            ("attempt".to_owned(), number(past.attempt.0)),
            ("instance".to_owned(), text(&past.instance)),
            ("started".to_owned(), text(&past.started)),
            ("ended".to_owned(), text(&past.ended)),
            ("verdict".to_owned(), text(past.end.verdict.as_str())),
        ]);
        let (machine, end) = (&past.machine, &past.end);
        let decimal = |value: String| AttributeValue::N(value);
        let known = [
            ("type", machine.instance_type.as_ref().map(text)),
            ("zone", machine.zone.as_ref().map(text)),
            ("purchase", machine.purchase.map(|purchase| text(purchase.as_str()))),
            ("usdPerHour", machine.usd_per_hour.map(|price| decimal(price.to_string()))),
            ("exitCode", end.exit_code.map(|code| decimal(code.to_string()))),
            ("signal", end.signal.map(|signal| decimal(signal.to_string()))),
            ("peakMemory", end.peak_memory.map(number)),
            ("error", end.error.as_ref().map(text)),
            ("spotNoticeAt", past.marks.spot_notice_at.as_ref().map(text)),
            ("checkpointAt", past.marks.checkpoint_at.as_ref().map(text)),
            ("log", past.log.as_ref().map(text)),
        ];
        map.extend(known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        AttributeValue::M(map)
    };
    AttributeValue::L(attempts.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_reads_back() {
        let past = PastAttempt {
            attempt: AttemptNumber(2),
            instance: "i-1".to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            ended: "2026-01-01T00:01:00Z".to_owned(),
            machine: MachineInfo {
                instance_type: Some("c7i.large".to_owned()),
                zone: Some("us-east-1a".to_owned()),
                purchase: Some(PurchaseOption::Spot),
                usd_per_hour: Some(MicroUsd(72_500)),
            },
            end: AttemptEnd {
                exit_code: Some(-9),
                signal: Some(9),
                peak_memory: Some(1 << 40),
                ..AttemptEnd::of(Verdict::AppError, "the workload exited with code -9")
            },
            marks: Marks {
                spot_notice_at: Some("2026-01-01T00:00:30Z".to_owned()),
                checkpoint_at: Some("2026-01-01T00:00:31Z".to_owned()),
            },
            log: None,
        };
        let value = history(std::slice::from_ref(&past));
        assert_eq!(
            value.as_l().unwrap().iter().filter_map(past_attempt).collect::<Vec<_>>(),
            std::slice::from_ref(&past)
        );

        // As earlier versions wrote it.
        let bare = PastAttempt {
            machine: MachineInfo::default(),
            end: AttemptEnd { error: None, ..AttemptEnd::of(Verdict::Lost, "") },
            marks: Marks::default(),
            ..past
        };
        let value = history(std::slice::from_ref(&bare));
        assert_eq!(value.as_l().unwrap()[0].as_m().unwrap().len(), 5);
        assert_eq!(value.as_l().unwrap().iter().filter_map(past_attempt).collect::<Vec<_>>(), [bare]);
    }
}

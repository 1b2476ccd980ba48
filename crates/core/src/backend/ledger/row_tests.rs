//! Rows of the first version, and rows with any values.

use aws_sdk_dynamodb::types::AttributeValue;
use proptest::prelude::*;

use super::item::{self, Row, text};
use super::key::Item;
use super::mission_row::SLOTS_MAX;
use crate::domain::ids::{AttemptNumber, MissionId, SrcId};
use crate::domain::mission::TALLY_SHARDS_MAX;
use crate::domain::task::State;

fn row_of(pairs: &[(&str, AttributeValue)]) -> Item {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

#[test]
fn rows_of_the_first_version_are_read() {
    let row = row_of(&[
        (item::BUCKET, text("in")),
        (item::TRIG_NAME, text("ObjectCreated:Put")),
        (item::PROGRESS, text("20.0%")),
        (item::TIME_COST, text("47")),
    ]);
    let task = Row(&row).task(SrcId::new("a.dat").unwrap());
    assert_eq!((task.state, task.attempt, task.time_cost_s()), (State::Pending, AttemptNumber(0), 47));

    let row = row_of(&[
        (item::TRANS_NUMBER, text("15")),
        (item::TRANS_OK, text("4")),
        (item::RESULT_LIST, AttributeValue::L(vec![text("rsltList")])),
        (item::NOTIFIED, text("No")),
    ]);
    let mission = Row(&row).mission(MissionId::new("M001").unwrap());
    assert_eq!((mission.trans_number, mission.tally_base, mission.tally_shards), (Some(15), 4, 1));
    assert!(mission.counts_as_strings);
    assert_eq!(mission.results, ["rsltList"]);
}

#[test]
fn a_task_that_the_first_version_finished_is_done() {
    let mut row = row_of(&[(item::PROGRESS, text("100%")), (item::RESULT, text("s3://b/rslt_a"))]);
    assert_eq!(Row(&row).task(SrcId::new("a").unwrap()).state, State::Done);
    row.insert(item::STATE.to_owned(), text("pending"));
    assert_eq!(Row(&row).task(SrcId::new("a").unwrap()).state, State::Pending);
}

/// A value of any type that `DynamoDB` has, with words and numbers as people write them among the texts.
fn any_value() -> impl Strategy<Value = AttributeValue> {
    let word = prop_oneof![
        "\\PC{0,12}",
        Just("pending".to_owned()),
        Just("Running".to_owned()),
        Just("Sending".to_owned()),
        Just("1e38".to_owned()),
        Just("-1".to_owned()),
        Just(" 12.0 ".to_owned()),
        Just("pending#".to_owned()),
    ];
    let number = prop_oneof!["-?[0-9]{1,38}", Just("2.5".to_owned()), Just("1e125".to_owned())];
    let leaf = prop_oneof![
        word.clone().prop_map(AttributeValue::S),
        number.clone().prop_map(AttributeValue::N),
        any::<bool>().prop_map(AttributeValue::Bool),
        Just(AttributeValue::Null(true)),
        proptest::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| AttributeValue::B(bytes.into())),
        proptest::collection::vec(word.clone(), 1..3).prop_map(AttributeValue::Ss),
        proptest::collection::vec(number, 1..3).prop_map(AttributeValue::Ns),
    ];
    leaf.prop_recursive(2, 8, 4, move |inner| {
        let names = prop_oneof![word.clone(), Just("attempt".to_owned()), Just("upload".to_owned())];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(AttributeValue::L),
            proptest::collection::hash_map(names, inner, 0..4).prop_map(AttributeValue::M),
        ]
    })
}

const NAMES: &[&str] = &[
    item::BUCKET,
    item::TIME_BOARDING,
    item::NUM_LOG,
    item::MISSION,
    item::STATE,
    item::ATTEMPT,
    item::CLAIM_TOKEN,
    item::BEAT,
    item::INSTANCE,
    item::PROGRESS,
    item::TIME_COST,
    item::RESULT,
    item::RESULT_ETAG,
    item::RESULT_BYTES,
    item::VERDICT,
    item::EXIT_CODE,
    item::CHECKPOINT,
    item::APP_FAILURES,
    item::INTERRUPTIONS,
    item::HISTORY,
    item::OPEN_IN,
    item::OPEN_AS,
    item::LAUNCH_AT_ATTEMPT,
    item::LAUNCH_TRIES,
    item::LAUNCH_AT,
    item::LAUNCH_INSTANCE,
    item::LAUNCHES_LOST,
    item::LAUNCH_ERROR,
    item::LAUNCH_REQUEST,
    item::LAUNCH_REQUESTS,
    item::LAUNCH_AFTER,
    item::CANCELLED,
    item::TRANS_NUMBER,
    item::TRANS_OK,
    item::TRANS_FAILED,
    item::RESULT_LIST,
    item::NOTIFIED,
    item::NOTIFY_BY,
    item::NOTIFY_TOKEN,
    item::NOTIFY_BEAT,
    item::MANIFEST,
    item::MANIFEST_PROGRESS,
    item::TALLY_SHARDS,
    item::TALLY_BASE,
    item::TALLY_SEQ,
    item::EXEC,
    item::MISSION_NAME,
    item::NODES,
    item::NODES_LAUNCHED,
    item::SLOTS,
    item::UPLOADS,
    item::NOTIFY_ON,
    item::FAILURE_NOTIFIED,
    item::STALL_NOTIFIED,
    item::IDLE_SEQ,
    item::IDLE_SINCE,
    item::CANCELLED_AT,
    item::LATE,
    item::CLOSED,
    item::LAUNCH_ROUND,
    item::OPENED,
    item::TIME_CFG,
    "bidMode",
    "maxUnitprice",
    "maxWaitTime",
    "onDemandFloor",
];

proptest! {
    #[test]
    fn a_row_of_any_values_is_read(values in proptest::collection::vec(any_value(), NAMES.len()), kept in any::<u64>()) {
        let row: Item = NAMES.iter().zip(values).enumerate()
            .filter(|(n, _)| kept >> n & 1 == 1)
            .map(|(_, (name, value))| ((*name).to_owned(), value))
            .collect();
        let task = Row(&row).task(SrcId::new("a").unwrap());
        prop_assert!(task.state != State::Running || task.lease().is_some());
        prop_assert!(row.contains_key(item::STATE) || task.state != State::Unknown);
        let mission = Row(&row).mission(MissionId::new("M").unwrap());
        prop_assert!((1..=TALLY_SHARDS_MAX).contains(&mission.tally_shards));
        prop_assert!(mission.slots.is_none_or(|slots| (1..=SLOTS_MAX).contains(&slots)));
        Row(&row).tally();
    }
}

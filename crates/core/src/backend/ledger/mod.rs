//! DynamoDB: the tasks table, the missions table, and all expressions for them.
//!
//! No other module uses an attribute's name. Each write of an attempt has the fence `state = running AND attempt =
//! mine` ([`expression::Expression::fence`]). A refused condition is a result, not an error, and includes the row
//! (`ReturnValuesOnConditionCheckFailure`), which saves a read.
//!
//! The SDK repeats a call whose answer was lost. The documentation of each write states the effect of a repetition.

mod claim;
mod client;
mod commit;
mod cursor;
mod expression;
mod history;
mod item;
mod key;
mod launch;
mod mission;
mod mission_row;
mod nodes;
mod open;
mod preflight;
mod publish;
mod renew;
mod request;
mod reserve;
#[cfg(test)]
mod row_tests;
mod rows;
mod settings;
mod tables;
mod task_row;
mod transaction;
mod work;

pub use claim::{Claim, Claimant};
pub use client::{Fence, Ledger};
pub use commit::{Commit, Completion, Finish};
pub use cursor::Cursor;
pub use item::Row;
pub use launch::{Failed, GivenUp};
pub use mission::{NewMission, NodeCost, Notice};
pub use nodes::{NodeCount, Shown, StoredLimits, Ticket, hour_of};
pub use open::{INDEX, OpenPage, OpenTask, PAGE_LEN, Partition};
pub use preflight::TableKind;
pub use publish::{Announcement, Publication};
pub use renew::{Beat, Release};
pub use reserve::Note;
pub use rows::{Made, NewTask, Redrive};
pub use settings::SETTINGS;
pub use transaction::fresh_token;

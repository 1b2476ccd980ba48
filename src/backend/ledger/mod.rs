//! DynamoDB: the tasks table, the missions table, and every expression on them.
//!
//! No other module knows an attribute's name. Each write that belongs to an attempt carries the fence
//! `state = running AND attempt = mine` ([`expression::Expression::fence`]); a refused condition is a result, not an
//! error, and brings the row along (`ReturnValuesOnConditionCheckFailure`), so nothing is read twice.
//!
//! The SDK repeats a call whose answer was lost. Each write here says what a repeat finds and why that is right.

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
mod nodes;
mod open;
mod preflight;
mod publish;
mod renew;
mod request;
mod reserve;
mod rows;
mod settings;
mod tables;
mod transaction;

pub use claim::{Claim, Claimant};
pub use client::{Fence, Ledger};
pub use commit::{Commit, Completion, Finish};
pub use cursor::Cursor;
pub use item::Row;
pub use launch::Failed;
pub use mission::NewMission;
pub use nodes::{NodeCount, Shown, StoredLimits, Ticket, hour_of};
pub use open::{INDEX, OpenPage, OpenTask, PAGE_LEN, Partition};
pub use preflight::TableKind;
pub use publish::{Announcement, Publication};
pub use renew::{Beat, Release};
pub use reserve::Note;
pub use rows::{Made, NewTask, Redrive};
pub use settings::SETTINGS;

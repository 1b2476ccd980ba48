//! AWS, as the worker needs it: always the real SDK, whatever the wire under it.
//!
//! [`Backend`] has five parts: the `ledger` (DynamoDB: claims, fences, the tally), the `store` (S3), the
//! `notifier` (SNS), the `machine` (EC2, IMDS, power), and the `fleet` (EC2: launches). On AWS they speak over the SDK's own HTTPS client;
//! for `--local` and in tests over the cloud in this process ([`Wire::plugged`]). The conditional
//! expressions are written once, and nothing here knows which of the two it is.

mod create_fleet;
pub mod error;
mod failures;
pub mod fleet;
pub mod ledger;
pub mod machine;
pub mod notifier;
pub mod parallel;
mod pools;
mod renewal;
pub mod sdk;
pub mod store;
mod unknown;

pub use error::{CloudError, Kind, Scope, error_chain};
pub use fleet::Fleet;
pub use ledger::Ledger;
pub use machine::Machine;
pub use notifier::Notifier;
pub use sdk::Wire;
pub use store::Store;

/// The names of the tables, as settings give them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The tasks table. Default `tblTrans2`.
    pub tasks: String,
    /// The missions table. Default `tblMission`.
    pub missions: String,
}

impl Default for Tables {
    fn default() -> Self {
        Self { tasks: "tblTrans2".to_owned(), missions: "tblMission".to_owned() }
    }
}

/// The services a node talks to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backend {
    /// DynamoDB: tasks, missions, and the tally.
    pub ledger: Ledger,
    /// S3: inputs, results, logs.
    pub store: Store,
    /// SNS: tells people.
    pub notifier: Notifier,
    /// EC2 and IMDS: who this machine is, and its end.
    pub machine: Machine,
    /// EC2: what is launched, and what runs.
    pub fleet: Fleet,
}

impl Backend {
    /// Makes the clients over a wire. Sends nothing.
    #[must_use]
    pub fn new(wire: &Wire, tables: Tables, power_off: machine::PowerOff) -> Self {
        Self {
            ledger: Ledger::new(wire, tables),
            store: Store::new(wire),
            notifier: Notifier::new(wire),
            machine: Machine::new(wire, power_off),
            fleet: Fleet::new(wire),
        }
    }
}

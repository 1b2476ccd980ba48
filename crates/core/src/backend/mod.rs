//! AWS, through the SDK only.
//!
//! [`Backend`] has six parts: the `ledger` (DynamoDB: claims, fences, the tally), the `store` (S3), the `notifier`
//! (SNS), the `machine` (EC2, IMDS, power-off), the `fleet` (EC2 launches), and the `logs` (CloudWatch Logs). On AWS they use the SDK's HTTPS client;
//! for `--local` and in tests the HTTP client of the in-process cloud ([`Wire::plugged`]). The code is the same for
//! both.

mod create_fleet;
pub mod error;
mod failures;
pub mod fleet;
pub mod ledger;
pub mod logs;
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
pub use logs::Logs;
pub use machine::Machine;
pub use notifier::Notifier;
pub use sdk::Wire;
pub use store::Store;

/// The names of the tables, from the settings.
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

/// The service clients of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backend {
    /// DynamoDB: tasks, missions, and the tally.
    pub ledger: Ledger,
    /// S3: inputs, results, logs.
    pub store: Store,
    /// SNS: notifications.
    pub notifier: Notifier,
    /// EC2 and IMDS: this machine's identity and termination.
    pub machine: Machine,
    /// EC2: launches and lists of instances.
    pub fleet: Fleet,
    /// CloudWatch Logs: log lines, if they are sent there.
    pub logs: Logs,
}

impl Backend {
    /// Creates the clients. Sends no requests.
    #[must_use]
    pub fn new(wire: &Wire, tables: Tables, power_off: machine::PowerOff) -> Self {
        Self {
            ledger: Ledger::new(wire, tables),
            store: Store::new(wire),
            notifier: Notifier::new(wire),
            machine: Machine::new(wire, power_off),
            fleet: Fleet::new(wire),
            logs: Logs::new(wire),
        }
    }
}

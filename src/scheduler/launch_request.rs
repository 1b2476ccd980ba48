//! The request of a launch.

use super::{Scheduler, SchedulerError};
use crate::domain::keys::digest_hex;
use crate::domain::policy::{Policy, Purchase};
use crate::domain::request::Request;

impl Scheduler {
    /// Returns the request of one launch, as it would be sent. `--dry-run` prints it, too.
    pub(super) async fn request(
        &self,
        policy: &Policy,
        purchase: Purchase,
        count: u32,
        tags: Vec<(String, String)>,
        token: String,
    ) -> Result<Request, SchedulerError> {
        let fleet = &self.backend.fleet;
        let dice = digest_hex(&[&token], 8);
        let dice = usize::from_str_radix(&dice, 16).unwrap_or(0);
        Ok(Request {
            template: self.settings.template.clone().ok_or(SchedulerError::NoTemplate)?,
            instance_types: self.offers.types(fleet, &policy.instance_types).await,
            subnets: self.offers.subnets(fleet, &self.settings.subnets, dice).await,
            purchase,
            max_price: policy.max_price.clone(),
            count,
            tags,
            token,
        })
    }
}

//! The settings of the scheduler's commands.

use std::path::Path;

use local_cloud::{LocalCloud, RESULT_BUCKET, SOURCE_BUCKET, TOPIC_ARN};

use super::failure::Failure;
use super::flags::{SchedulerArgs, text};
use super::local_dir;
use crate::backend::fleet::Template;
use crate::backend::machine::PowerOff;
use crate::backend::{Backend, Wire};
use crate::domain::budget::Limits;
use crate::domain::ids::MissionId;
use crate::domain::policy::{Policy, words};
use crate::scheduler::{OwnLimits, PER_SECOND, Scheduler, SchedulerSettings};

/// Creates a scheduler that uses AWS.
pub(super) async fn scheduler(args: &SchedulerArgs) -> Result<Scheduler, Failure> {
    let settings = settings(args)?;
    let tables = args.aws.tables.tables();
    let backend = Backend::new(&Wire::aws().await?, tables, PowerOff::Never);
    Ok(Scheduler::new(backend, settings))
}

/// Creates a scheduler that uses AWS or, with `local`, the folder of a local mission, which no other process may use
/// meanwhile. It launches nothing there.
pub(super) async fn scheduler_at(local: Option<&Path>, args: &SchedulerArgs) -> Result<Scheduler, Failure> {
    let Some(dir) = local else { return scheduler(args).await };
    local_dir::note_ignored();
    if !dir.join(".lighthpc").exists() {
        let hint = "set --local=DIR to the folder of a local mission";
        return Err(Failure::usage(format!("there is no lighthpc folder at {}", dir.display()), hint));
    }
    let cloud = LocalCloud::open(dir)?;
    let backend = local_dir::backend(&cloud, None);
    let settings = SchedulerSettings {
        template: None,
        source_bucket: Some(SOURCE_BUCKET.to_owned()),
        result_bucket: Some(RESULT_BUCKET.to_owned()),
        topic_arn: Some(TOPIC_ARN.to_owned()),
        default_mission: None,
        ..settings(args)?
    };
    Ok(Scheduler::new(backend, settings))
}

pub(super) fn settings(args: &SchedulerArgs) -> Result<SchedulerSettings, Failure> {
    let (source_bucket, result_bucket) = (args.aws.source_bucket(), args.aws.result_bucket());
    if source_bucket.is_some() && source_bucket == result_bucket {
        let message = format!("--source-bucket and --result-bucket are both {}", source_bucket.unwrap_or_default());
        return Err(Failure::usage(
            message,
            "use two buckets, because results in the source bucket would become tasks",
        ));
    }
    let policy = Policy::read(|name| match name {
        "bidMode" => args.bid_mode.as_deref(),
        "bidInstanceType" => args.instance_types.as_deref(),
        "maxUnitprice" => args.max_unit_price.as_deref(),
        "maxWaitTime" => args.max_wait.as_deref(),
        "onDemandFloor" => args.on_demand_floor.as_deref(),
        _ => None,
    });
    let hint = "check --bid-mode, --max-unit-price, --max-wait and --on-demand-floor";
    // The mission is created on the first upload, so the id must be valid for a new mission.
    let default_mission = text(args.default_mission.as_deref()).map(MissionId::for_a_new_mission).transpose();
    Ok(SchedulerSettings {
        template: text(args.launch_template.as_deref())
            .map(|name| Template { name, version: args.launch_template_version.trim().to_owned() }),
        subnets: args.subnets.as_deref().map(words).unwrap_or_default(),
        policy: policy.map_err(|error| Failure::usage(error, hint))?,
        source_bucket,
        result_bucket,
        topic_arn: args.aws.topic_arn()?,
        default_mission: default_mission.map_err(|error| Failure::usage(error, "check LIGHTHPC_MISSION"))?,
        lease: args.lease,
        limits: Limits { max_interruptions: args.max_interruptions, ..Limits::default() },
        node_limits: OwnLimits { at_a_time: args.max_nodes, per_hour: args.max_nodes_per_hour },
        pace: PER_SECOND,
    })
}

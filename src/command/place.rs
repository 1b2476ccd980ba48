//! Where a mission is: in AWS, or in the folder of a local mission. For commands that only read.

use std::path::PathBuf;

use clap::Args;
use local_cloud::{LocalCloud, RESULT_BUCKET};

use super::failure::Failure;
use super::flags::{TableArgs, text};
use super::local_dir::{self, DEFAULT_DIR};
use crate::backend::machine::PowerOff;
use crate::backend::{Backend, Wire};
use crate::command::exit::ExitCode;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::Mission;
use crate::domain::task::Task;

/// Where to find a mission.
#[derive(Clone, Debug, Args)]
pub(super) struct PlaceArgs {
    /// The mission is a local one, in DIR
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    #[command(flatten)]
    pub(super) tables: TableArgs,
    /// S3 bucket of results, logs and manifests
    #[arg(long, env = "LIGHTHPC_RESULT_BUCKET", value_name = "BUCKET", help_heading = "AWS")]
    pub(super) result_bucket: Option<String>,
}

/// A place that is open for reading.
#[derive(Clone)]
pub(super) struct MissionPlace {
    pub(super) backend: Backend,
    /// The bucket of results and logs, if it is known.
    pub(super) result_bucket: Option<String>,
    /// The folder of the local mission.
    pub(super) dir: Option<PathBuf>,
    /// The local mission's cloud: a copy of its tables, as of the moment it was opened.
    pub(super) cloud: Option<LocalCloud>,
    /// Whether this process has the mission's cloud open itself, so that no copy is needed.
    is_own: bool,
}

impl PlaceArgs {
    /// Opens the place for reading. A local mission may run meanwhile, and may belong to another user.
    pub(super) async fn open(&self) -> Result<MissionPlace, Failure> {
        match &self.local {
            Some(dir) => MissionPlace::local(dir.clone()),
            None => Ok(MissionPlace {
                backend: Backend::new(&Wire::aws().await?, self.tables.tables(), PowerOff::Never),
                result_bucket: text(self.result_bucket.as_deref()),
                dir: None,
                cloud: None,
                is_own: false,
            }),
        }
    }
}

impl MissionPlace {
    /// Opens the folder of a local mission for reading.
    pub(super) fn local(dir: PathBuf) -> Result<Self, Failure> {
        let cloud = LocalCloud::attach(&dir)?;
        let backend = local_dir::backend(&cloud, None);
        Ok(Self {
            backend,
            result_bucket: Some(RESULT_BUCKET.to_owned()),
            dir: Some(dir),
            cloud: Some(cloud),
            is_own: false,
        })
    }

    /// Makes the place of a local mission that this process has open.
    pub(super) fn of_this_process(cloud: &LocalCloud) -> Self {
        let (backend, dir) = (local_dir::backend(cloud, None), cloud.dir().to_owned());
        let bucket = Some(RESULT_BUCKET.to_owned());
        Self { backend, result_bucket: bucket, dir: Some(dir), cloud: Some(cloud.clone()), is_own: true }
    }

    /// Opens the place again: the tables of a local mission are read again.
    pub(super) fn reopened(self) -> Result<Self, Failure> {
        match &self.dir {
            Some(dir) if !self.is_own => Self::local(dir.clone()),
            _ => Ok(self),
        }
    }

    /// Returns the command that continues a local mission that no process works on; `None` if one does, or on AWS.
    pub(super) fn to_continue(&self) -> Option<String> {
        let is_idle = !self.is_own && self.cloud.as_ref()?.is_in_use() == Some(false);
        is_idle.then(|| format!("lighthpc run{}", self.flag()))
    }

    /// Returns the flag that names this place, for the next command that is proposed.
    pub(super) fn flag(&self) -> String {
        self.dir.as_deref().map(local_dir::flag).unwrap_or_default()
    }

    /// Reads a mission's row.
    ///
    /// # Errors
    /// A [`Failure`] with [`ExitCode::NoTask`] if it does not exist.
    pub(super) async fn mission(&self, id: &str) -> Result<Mission, Failure> {
        let id = MissionId::new(id).map_err(|error| Failure::usage(error, "give the id of the mission"))?;
        let mission = self.backend.ledger.mission(&id).await?;
        mission.ok_or_else(|| {
            let place = match &self.dir {
                Some(dir) => dir.display().to_string(),
                None => format!("table {}", self.backend.ledger.tables().missions),
            };
            Failure {
                exit: ExitCode::NoTask,
                error: anyhow::anyhow!("{place} has no mission {id}"),
                hint: Some(format!("list the missions with `lighthpc status{}`", self.flag())),
            }
        })
    }

    /// Reads the row of a task of a mission. The mission's prefix may be left out.
    ///
    /// # Errors
    /// A [`Failure`] with [`ExitCode::NoTask`] if it does not exist, or is of another mission.
    pub(super) async fn task(&self, mission: &Mission, name: &str) -> Result<Task, Failure> {
        for name in [name.to_owned(), format!("{}/{name}", mission.id)] {
            let src = SrcId::new(&name).map_err(|error| Failure::usage(error, "give the name of a task"))?;
            match self.backend.ledger.task(&src).await? {
                Some(row) if row.mission.as_ref() == Some(&mission.id) => return Ok(row),
                _ => {}
            }
        }
        Err(Failure {
            exit: ExitCode::NoTask,
            error: anyhow::anyhow!("mission {} has no task {name}", mission.id),
            hint: Some(format!(
                "list its tasks with `lighthpc list{} {}`",
                self.flag(),
                crate::domain::printable::shell(mission.id.as_str())
            )),
        })
    }
}

//! What every test needs: a cloud, clients to look at it with, and nodes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::backend::fleet::Template;
use lighthpc::backend::ledger::{Made, NewMission, NewTask, SETTINGS};
use lighthpc::backend::machine::{EndOrder, PowerOff, has_process};
use lighthpc::backend::{Backend, Tables, Wire};
use lighthpc::domain::budget::{Limits, SizeLimits};
use lighthpc::domain::ids::{MissionId, SrcId};
use lighthpc::domain::mission::{Mission, Notified, Tally};
use lighthpc::domain::policy::Policy;
use lighthpc::domain::task::Task;
use lighthpc::domain::work::Work;
use lighthpc::scheduler::{self, Scheduler};
use lighthpc::worker::{self, Life, Node, NodeSettings, Pricing, Report, Stopping};
use lighthpc::workload::{Bounds, Simulation, Workload};
use local_cloud::{ACCESS_KEY, Faults, Gate, LocalCloud, REGION, RESULT_BUCKET, SECRET_KEY, SOURCE_BUCKET, TOPIC_ARN};

/// A bound on what a test waits for; nothing here takes a tenth of it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A workload that answers with its input, backwards: no result is right by chance.
pub(crate) const REVERSE: &str = r#"rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#;

/// Waits until something is so; panics after `PATIENCE`.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "{what}: never");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The line that a workload writes to a file. The file exists before its line is written: a shell opens it, then runs
/// `echo`.
pub(crate) async fn line_of(path: &Path) -> String {
    let mut text = String::new();
    until("a line", async || {
        text = std::fs::read_to_string(path).unwrap_or_default();
        text.ends_with('\n')
    })
    .await;
    text.trim_end().to_owned()
}

pub(crate) struct TestCloud {
    pub(crate) local: LocalCloud,
    pub(crate) backend: Backend,
    pub(crate) dir: tempfile::TempDir,
}

impl TestCloud {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cloud = LocalCloud::in_memory(&dir.path().join("cloud")).unwrap();
        let backend = backend(&cloud, None, &Faults::new(), PowerOff::Never);
        backend.ledger.create_tables().await.unwrap();
        // Each node of each test is held to this, whatever goes wrong in its life.
        cloud.deny_instances(&backend.ledger.tables().missions, SETTINGS);
        Self { local: cloud, backend, dir }
    }

    /// A mission of tasks whose inputs are their own names.
    pub(crate) async fn mission(&self, id: &str, tasks: &[&str]) {
        let id = mission_id(id);
        let new = NewMission::of(id.clone(), tasks.len() as u64);
        assert!(self.backend.ledger.create_mission(&new).await.unwrap());
        for task in tasks {
            self.input(task, task.as_bytes()).await;
            self.row(task, &id).await;
        }
    }

    pub(crate) async fn row(&self, task: &str, mission: &MissionId) {
        let new = NewTask {
            src: src(task),
            mission: Some((mission.clone(), 1)),
            bucket: Some(SOURCE_BUCKET.to_owned()),
            work: Work::default(),
            now: "2026-01-01T00:00:00Z".to_owned(),
            trigger_time: "2026-01-01T00:00:00Z".to_owned(),
            trigger: "test".to_owned(),
        };
        assert_eq!(self.backend.ledger.create_task(&new).await.unwrap(), Made::New);
    }

    pub(crate) async fn input(&self, key: &str, bytes: &[u8]) {
        self.backend.store.put_bytes(SOURCE_BUCKET, key, bytes.to_vec()).await.unwrap();
    }

    /// A node on an instance of its own, tagged with the task and the mission.
    pub(crate) fn node(&self, task: &str, mission: &str) -> TestNode {
        self.node_with(task, mission, Faults::new())
    }

    pub(crate) fn node_with(&self, task: &str, mission: &str, faults: Faults) -> TestNode {
        let instance = self.local.launch(&[("srcID", task), ("missionID", mission)]);
        self.node_on(instance, faults)
    }

    pub(crate) fn node_on(&self, instance: String, faults: Faults) -> TestNode {
        let settings = NodeSettings {
            src: None,
            mission: None,
            source_bucket: Some(SOURCE_BUCKET.to_owned()),
            result_bucket: Some(RESULT_BUCKET.to_owned()),
            topic_arn: Some(TOPIC_ARN.to_owned()),
            work_dir: self.dir.path().join("work").join(&instance),
            lease: Duration::from_secs(90),
            heartbeat: Duration::from_secs(20),
            checkpoint_every: Duration::from_mins(5),
            slots: None,
            claim_ahead: Duration::from_secs(30),
            left: Vec::new(),
            log_every: Duration::from_mins(1),
            max_idle: Duration::from_secs(1),
            max_lifetime: None,
            end_order: EndOrder::IfNode,
            holds_work_dir: true,
            workload: Some(Workload::Shell(REVERSE.to_owned())),
            simulation: Simulation::default(),
            bounds: Bounds { time_limit: None, grace: Duration::from_secs(5), echo: false, sandbox: None },
            limits: Limits::default(),
            sizes: SizeLimits::default(),
            pricing: Pricing::Local,
            log: None,
            disk: Arc::default(),
            preflight: Arc::default(),
            report: tokio::sync::watch::Sender::new(Report::default()),
        };
        let power_off = format!("echo {instance} >> '{}'", self.dir.path().join("powered-off").display());
        let backend = backend(&self.local, Some(&instance), &faults, PowerOff::By(power_off));
        TestNode { instance, backend, settings, stopping: Stopping::default() }
    }

    /// A node on an instance that bears our mark, as a scheduler launches it.
    pub(crate) fn ours(&self, task: &str, mission: &str) -> TestNode {
        let tags = [("srcID", task), ("missionID", mission), ("lighthpc", "tblTrans2")];
        self.node_on(self.local.launch(&tags), Faults::new())
    }

    pub(crate) fn scheduler_settings() -> scheduler::SchedulerSettings {
        scheduler::SchedulerSettings {
            template: Some(Template { name: "nodes".to_owned(), version: "$Latest".to_owned() }),
            subnets: Vec::new(),
            policy: Policy::default(),
            source_bucket: Some(SOURCE_BUCKET.to_owned()),
            result_bucket: Some(RESULT_BUCKET.to_owned()),
            topic_arn: Some(TOPIC_ARN.to_owned()),
            default_mission: None,
            lease: Duration::from_millis(1500),
            limits: Limits::default(),
            node_limits: scheduler::OwnLimits::default(),
            pace: 1e6,
        }
    }

    pub(crate) fn scheduler(&self, faults: &Faults) -> Scheduler {
        self.scheduler_with(faults, Self::scheduler_settings())
    }

    pub(crate) fn scheduler_with(&self, faults: &Faults, settings: scheduler::SchedulerSettings) -> Scheduler {
        Scheduler::new(backend(&self.local, None, faults, PowerOff::Never), settings)
    }

    fn dynamo(&self) -> aws_sdk_dynamodb::Client {
        let wire = Wire::plugged(self.local.http_client(None), REGION, ACCESS_KEY, SECRET_KEY);
        aws_sdk_dynamodb::Client::new(wire.sdk_config())
    }

    /// A text attribute of a task's row, as it is written.
    pub(crate) async fn attribute(&self, key: &str, name: &str) -> String {
        let get = self.dynamo().get_item().table_name("tblTrans2").key("srcFilename", text(key));
        get.send().await.unwrap().item.unwrap()[name].as_s().unwrap().clone()
    }

    pub(crate) async fn set_attribute(&self, key: &str, name: &str, value: &str) {
        self.set("tblTrans2", "srcFilename", key, name, text(value)).await;
    }

    pub(crate) async fn set_mission_attribute(&self, id: &str, name: &str, value: &str) {
        self.set("tblMission", "timePush", id, name, text(value)).await;
    }

    pub(crate) async fn set_mission_number(&self, id: &str, name: &str, value: u64) {
        self.set("tblMission", "timePush", id, name, AttributeValue::N(value.to_string())).await;
    }

    /// Writes any value into a task's row, as another program or a person would.
    pub(crate) async fn set_value(&self, key: &str, name: &str, value: AttributeValue) {
        self.set("tblTrans2", "srcFilename", key, name, value).await;
    }

    /// Writes any value into an item of the missions table.
    pub(crate) async fn set_mission_value(&self, id: &str, name: &str, value: AttributeValue) {
        self.set("tblMission", "timePush", id, name, value).await;
    }

    /// Makes the launches that a task's row and a mission's row keep, if they do, so many seconds older.
    pub(crate) async fn age_launches(&self, task: Option<&str>, mission: Option<&str>, by: u64) {
        let mut aged = Vec::new();
        if let Some(key) = task {
            let request = self.task(key).await.launch.request.unwrap();
            let asked_at = request.asked_at - by;
            aged.push(("tblTrans2", "srcFilename", key, "launchRequest.askedAt".to_owned(), asked_at));
        }
        if let Some(id) = mission {
            for (place, request) in self.mission_row(id).await.requests.iter().enumerate() {
                let path = format!("launchRequests[{place}].askedAt");
                aged.push(("tblMission", "timePush", id, path, request.asked_at - by));
            }
        }
        assert!(!aged.is_empty());
        for (table, key, id, path, asked_at) in aged {
            self.set_at(table, key, id, &path, AttributeValue::N(asked_at.to_string())).await;
        }
    }

    /// Writes any value into a mission's row, at a path such as `launchRequests[0].askedAt`.
    pub(crate) async fn set_path(&self, id: &str, path: &str, value: AttributeValue) {
        self.set_at("tblMission", "timePush", id, path, value).await;
    }

    async fn set_at(&self, table: &str, key: &str, id: &str, path: &str, value: AttributeValue) {
        // `token` is a reserved word.
        let update = self.dynamo().update_item().table_name(table).key(key, text(id));
        let path = path.split('.').enumerate().map(|(n, part)| {
            let (name, rest) = part.split_at(part.find('[').unwrap_or(part.len()));
            (format!("#n{n}"), name.to_owned(), rest.to_owned())
        });
        let path: Vec<_> = path.collect();
        let text: Vec<String> = path.iter().map(|(mark, _, rest)| format!("{mark}{rest}")).collect();
        let names = path.into_iter().map(|(mark, name, _)| (mark, name)).collect();
        let update = update.update_expression(format!("SET {} = :v", text.join(".")));
        let update = update.set_expression_attribute_names(Some(names));
        update.expression_attribute_values(":v", value).send().await.unwrap();
    }

    /// Removes an attribute of a task's row.
    pub(crate) async fn remove_attribute(&self, key: &str, name: &str) {
        let update = self.dynamo().update_item().table_name("tblTrans2").key("srcFilename", text(key));
        update.update_expression("REMOVE #n").expression_attribute_names("#n", name).send().await.unwrap();
    }

    /// The attributes of a task's row, as they are written.
    pub(crate) async fn row_of(&self, key: &str) -> std::collections::HashMap<String, AttributeValue> {
        let get = self.dynamo().get_item().table_name("tblTrans2").key("srcFilename", text(key));
        get.send().await.unwrap().item.unwrap()
    }

    async fn set(&self, table: &str, key: &str, id: &str, name: &str, value: AttributeValue) {
        let update = self.dynamo().update_item().table_name(table).key(key, text(id));
        let update = update.update_expression("SET #n = :v").expression_attribute_names("#n", name);
        update.expression_attribute_values(":v", value).send().await.unwrap();
    }

    pub(crate) async fn task(&self, key: &str) -> Task {
        self.backend.ledger.task(&src(key)).await.unwrap().unwrap()
    }

    pub(crate) async fn mission_row(&self, id: &str) -> Mission {
        self.backend.ledger.mission(&mission_id(id)).await.unwrap().unwrap()
    }

    pub(crate) async fn tally(&self, id: &str) -> Tally {
        self.backend.ledger.tally(&self.mission_row(id).await).await.unwrap()
    }

    pub(crate) fn result(&self, key: &str) -> Option<String> {
        std::fs::read_to_string(self.local.object_path(RESULT_BUCKET, key)).ok()
    }

    /// Returns whether the instance was ended: by EC2, or by its power-off.
    pub(crate) fn has_ended(&self, instance: &str) -> bool {
        let terminated = self.local.instances().iter().any(|i| i.id == instance && i.state == "terminated");
        let off = std::fs::read_to_string(self.dir.path().join("powered-off")).unwrap_or_default();
        terminated || off.lines().any(|line| line == instance)
    }

    /// Asserts what must be true of a mission of one task at its end, however it came there.
    pub(crate) async fn assert_done(&self, task: &str, mission: &str, context: &str) {
        let row = self.task(task).await;
        let reversed: String = task.chars().rev().collect();
        assert_eq!(row.state.as_str(), "done", "{context}");
        assert_eq!(row.verdict.unwrap().as_str(), "ok", "{context}");
        assert_eq!(row.progress, "100%", "{context}");
        assert_eq!(self.result(&format!("rslt_{task}")).as_deref(), Some(reversed.as_str()), "{context}");
        let stored = self.backend.store.head(RESULT_BUCKET, &format!("rslt_{task}")).await.unwrap().unwrap();
        assert_eq!(row.result_etag.as_deref(), Some(stored.etag.as_str()), "{context}");
        assert_eq!(row.result_bytes, Some(stored.bytes), "{context}");
        let tally = self.tally(mission).await;
        assert_eq!((tally.ok, tally.failed), (1, 0), "{context}");
        let mission = self.mission_row(mission).await;
        assert_eq!(mission.notified, Notified::Yes, "{context}");
        assert_eq!(mission.rolled.ok, 1, "{context}");
        assert_eq!(mission.results, ["rsltList", &format!("s3://results/rslt_{task}")], "{context}");
    }
}

/// A node that is still to be run.
pub(crate) struct TestNode {
    pub(crate) instance: String,
    pub(crate) backend: Backend,
    pub(crate) settings: NodeSettings,
    pub(crate) stopping: Stopping,
}

impl TestNode {
    pub(crate) fn shell(mut self, line: &str) -> Self {
        self.settings.workload = Some(Workload::Shell(line.to_owned()));
        self
    }

    pub(crate) fn lease(mut self, lease: Duration, heartbeat: Duration) -> Self {
        self.settings.lease = lease;
        self.settings.heartbeat = heartbeat;
        self
    }

    /// Runs the node until it stands at a gate, and drops it there: to the node, its process is gone.
    pub(crate) async fn die_at(self, gate: &Gate) {
        let instance = self.instance.clone();
        tokio::select! {
            life = self.run() => panic!("it never came to the gate: {life:?}"),
            () = gate.arrived(1) => {}
        }
        // The runtime drops its tasks one after another; a process's death takes all of them at once.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while has_process(&instance) {
            assert!(tokio::time::Instant::now() < deadline, "the dead node still has its place");
            tokio::task::yield_now().await;
        }
    }

    /// Runs the node to its end, within the test's patience.
    pub(crate) fn run(self) -> impl Future<Output = Life> + Send + 'static {
        let node = Node { backend: self.backend, settings: Arc::new(self.settings), stopping: self.stopping };
        async move { tokio::time::timeout(PATIENCE, worker::run(node)).await.unwrap() }
    }

    /// As [`TestNode::run`], with tasks that the caller gives.
    pub(crate) fn run_given(
        self,
        tasks: tokio::sync::mpsc::Receiver<worker::GivenTask>,
    ) -> impl Future<Output = Life> + Send + 'static {
        let node = Node { backend: self.backend, settings: Arc::new(self.settings), stopping: self.stopping };
        async move { tokio::time::timeout(PATIENCE, worker::run_given(node, tasks)).await.unwrap() }
    }
}

pub(crate) fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub(crate) fn backend(cloud: &LocalCloud, instance: Option<&str>, faults: &Faults, power_off: PowerOff) -> Backend {
    let wire = Wire::plugged(cloud.faulty_http_client(instance, faults.clone()), REGION, ACCESS_KEY, SECRET_KEY);
    Backend::new(&wire, Tables::default(), power_off)
}

pub(crate) fn src(key: &str) -> SrcId {
    SrcId::new(key).unwrap()
}

pub(crate) fn mission_id(id: &str) -> MissionId {
    MissionId::new(id).unwrap()
}

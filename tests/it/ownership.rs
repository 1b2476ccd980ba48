//! Which machine is ended, and who owns a task: no machine without proof that it is a node, and no owner that fits two
//! processes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lighthpc::backend::machine::{EndOrder, MachineEnd};
use lighthpc::domain::ids::is_ec2_instance;
use lighthpc::worker::{NodeError, Outcome};
use lighthpc::workload::Workload;
use local_cloud::Service::{Dynamodb, Ec2, Imds, S3};
use local_cloud::{Fault, Faults, When};

use crate::test_cloud::{PATIENCE, REVERSE, TestCloud, TestNode, src, until};

// In this process: a node's own ways out.

/// A way out of a node's life: what is done to it, and what comes of its task.
type WayOut = (&'static str, fn(&TestCloud, &mut TestNode, &Faults));

const WAYS_OUT: &[WayOut] = &[
    ("the task is done", |_, _, _| {}),
    ("the workload fails", |_, node, _| node.settings.workload = Some(Workload::Shell("exit 3".to_owned()))),
    ("no program", |_, node, _| {
        node.settings.workload = Some(Workload::Program(vec!["/no/such/program".to_owned()]));
    }),
    ("no input", |cloud, _, _| std::fs::remove_file(cloud.local.object_path("source", "abc")).unwrap()),
    ("no result bucket", |_, node, _| node.settings.result_bucket = None),
    ("no task", |_, node, _| node.settings.src = None),
    ("stopped at once", |_, node, _| node.stopping.drain.cancel()),
    ("stopped twice at once", |_, node, _| {
        node.stopping.drain.cancel();
        node.stopping.hurry.cancel();
    }),
    ("its life is over", |_, node, _| {
        node.settings.max_lifetime = Some(Duration::from_millis(300));
        node.settings.workload = Some(Workload::Shell("sleep 30".to_owned()));
    }),
    ("a broken work folder", |cloud, node, _| {
        node.settings.work_dir = cloud.dir.path().join("file/below");
        std::fs::write(cloud.dir.path().join("file"), "").unwrap();
    }),
    ("a panic", |_, _, faults| {
        faults.before(Dynamodb, "UpdateItem", 1, || panic!("a panic of the test"));
    }),
    ("no right to the table", |_, _, faults| {
        faults.add(Dynamodb, "UpdateItem", When::Always, Fault::Status(400, "AccessDeniedException"));
    }),
    ("no right to the bucket", |_, _, faults| {
        faults.add(S3, "PutObject", When::Always, Fault::Status(403, "AccessDenied"));
    }),
    ("no right to terminate", |_, _, faults| {
        faults.add(Ec2, "TerminateInstances", When::Always, Fault::Status(403, "UnauthorizedOperation"));
    }),
];

/// Runs one way out on an instance with these tags. Returns whether the machine was ended, and how often EC2 was asked
/// for that.
async fn way_out(
    (_, change): &WayOut,
    tags: &[(&str, &str)],
    order: EndOrder,
    more: impl FnOnce(&TestCloud, &Faults),
) -> (bool, usize, MachineEnd) {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let mut node = cloud.node_on(cloud.local.launch(tags), faults.clone());
    node.settings.src = Some(src("abc"));
    node.settings.limits.max_attempts = 1;
    node.settings.end_order = order;
    change(&cloud, &mut node, &faults);
    more(&cloud, &faults);
    let instance = node.instance.clone();
    let life = node.run().await;
    (cloud.has_ended(&instance), faults.count(Ec2, "TerminateInstances"), life.end.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_out_ends_a_machine_that_is_no_node() {
    for way in WAYS_OUT {
        for tags in [&[("Name", "a workstation")] as &[_], &[], &[("srcid", "abc"), ("lighthpc2", "x")]] {
            let outcome = way_out(way, tags, EndOrder::IfNode, |_, _| {}).await;
            assert_eq!(outcome, (false, 0, MachineEnd::LeftRunning), "{} with {tags:?}", way.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_out_ends_a_node() {
    for way in WAYS_OUT {
        for tag in ["srcID", "missionID", "lighthpc"] {
            let (has_ended, ..) = way_out(way, &[(tag, "abc"), ("Name", "x")], EndOrder::IfNode, |_, _| {}).await;
            assert!(has_ended, "{} with {tag}", way.0);
        }
        let (has_ended, ..) = way_out(way, &[("Name", "x")], EndOrder::Terminate, |_, _| {}).await;
        assert!(has_ended, "{} by --terminate", way.0);
        let kept = way_out(way, &[("srcID", "abc")], EndOrder::Keep, |_, _| {}).await;
        assert_eq!(kept, (false, 0, MachineEnd::LeftRunning), "{} with --no-terminate", way.0);
    }
}

/// IMDS hides the tags, or fails: EC2 knows them. If neither answers, nothing proves that this is a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_read_from_ec2_where_imds_hides_them_and_without_an_answer_nothing_is_ended() {
    let way = &WAYS_OUT[0];
    let hidden = |cloud: &TestCloud, _: &Faults| cloud.local.set_instance_tags_in_imds(false);
    let refused = |cloud: &TestCloud, faults: &Faults| {
        cloud.local.set_instance_tags_in_imds(false);
        faults.add(Ec2, "DescribeTags", When::Always, Fault::Status(403, "UnauthorizedOperation"));
    };
    let ours = &[("lighthpc", "tblTrans2")];
    let other = &[("Name", "x")];
    assert!(way_out(way, ours, EndOrder::IfNode, hidden).await.0);
    assert_eq!(way_out(way, other, EndOrder::IfNode, hidden).await, (false, 0, MachineEnd::LeftRunning));
    assert_eq!(way_out(way, ours, EndOrder::IfNode, refused).await, (false, 0, MachineEnd::LeftRunning));
    assert!(way_out(way, ours, EndOrder::Terminate, refused).await.0);
    // A short failure of EC2 costs no termination.
    let throttled = |cloud: &TestCloud, faults: &Faults| {
        cloud.local.set_instance_tags_in_imds(false);
        faults.add(Ec2, "DescribeTags", When::First(7), Fault::Status(503, "RequestLimitExceeded"));
    };
    assert!(way_out(way, ours, EndOrder::IfNode, throttled).await.0);
    let imds_fails = |_: &TestCloud, faults: &Faults| {
        faults.add(Imds, "/latest/meta-data/tags/instance", When::Always, Fault::Status(403, "Forbidden"));
    };
    assert!(way_out(way, ours, EndOrder::IfNode, imds_fails).await.0);
    assert_eq!(way_out(way, other, EndOrder::IfNode, imds_fails).await, (false, 0, MachineEnd::LeftRunning));
}

/// What one instance's tags prove does not end another, and a machine knows itself by IMDS alone.
#[tokio::test]
async fn the_proof_of_one_instance_does_not_end_another() {
    let cloud = TestCloud::new().await;
    let node = cloud.node("abc", "M");
    let other = cloud.node_on(cloud.local.launch(&[("Name", "x")]), Faults::new());
    let seen = node.backend.machine.node_tags().await.unwrap().proof;
    assert!(seen.is_some());
    let end = other.backend.machine.end(EndOrder::IfNode, seen.clone()).await.unwrap();
    assert_eq!(end, MachineEnd::LeftRunning);
    assert!(!cloud.has_ended(&other.instance) && !cloud.has_ended(&node.instance));
    assert_eq!(node.backend.machine.end(EndOrder::IfNode, seen).await.unwrap(), MachineEnd::Terminated);
    assert!(!cloud.has_ended(&other.instance) && cloud.has_ended(&node.instance));
}

// Owners.

fn waiting(cloud: &TestCloud) -> (String, PathBuf, PathBuf) {
    let (began, go) = (cloud.dir.path().join("began"), cloud.dir.path().join("go"));
    let line =
        format!("echo $$ >> '{}'; until [ -e '{}' ]; do sleep 0.02; done; {REVERSE}", began.display(), go.display());
    (line, began, go)
}

/// Two processes on one instance: whichever folders they use, the second does not take the first one's task for its
/// own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_of_an_instance_does_not_take_up_the_first_ones_task() {
    for holds_work_dir in [true, false] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let (line, began, go) = waiting(&cloud);
        let first = cloud.node("abc", "M").shell(&line).lease(Duration::from_secs(6), Duration::from_millis(100));
        let instance = first.instance.clone();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(first.run());
        until("the workload's start", async || began.exists()).await;

        let mut second = cloud.node_on(instance.clone(), Faults::new());
        second.settings.work_dir = cloud.dir.path().join("another");
        second.settings.holds_work_dir = holds_work_dir;
        let life = second.lease(Duration::from_secs(6), Duration::from_millis(100)).run().await;

        assert_eq!(life.end.unwrap(), MachineEnd::LeftRunning, "the first process still works here");
        let is_held = matches!(&life.outcome, Ok(Outcome::HeldByOther(holder)) if holder.as_str() == instance);
        assert!(is_held, "{:?}", life.outcome);
        let row = cloud.task("abc").await;
        assert_eq!((row.attempt.0, row.instance.unwrap().to_string()), (1, instance.clone()));
        std::fs::write(go, "").unwrap();
        running.join_all().await.pop().unwrap().outcome.unwrap();
        cloud.assert_done("abc", "M", "by the first process").await;
        assert_eq!(std::fs::read_to_string(began).unwrap().lines().count(), 1, "one workload ran");
        assert!(cloud.has_ended(&instance), "the first process ends the machine");
    }
}

/// Two at the same moment: one of them is the instance, both tasks end once, and whoever is the last ends the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_an_instance_have_two_owners_and_the_last_ends_the_machine() {
    for round in 0..5 {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc", "xyz"]).await;
        let instance = cloud.local.launch(&[("missionID", "M")]);
        let (line, began, go) = waiting(&cloud);
        let mut running = tokio::task::JoinSet::new();
        for task in ["abc", "xyz"] {
            let mut node = cloud.node_on(instance.clone(), Faults::new()).shell(&line);
            node.settings.src = Some(src(task));
            running.spawn(node.run());
        }
        until("both starts", async || std::fs::read_to_string(&began).unwrap_or_default().lines().count() == 2).await;
        let owner = async |task| cloud.task(task).await.instance.unwrap().to_string();
        let owners = [owner("abc").await, owner("xyz").await];
        std::fs::write(go, "").unwrap();
        assert!(running.join_all().await.iter().all(|life| life.outcome.is_ok()));
        assert_eq!(owners.iter().filter(|owner| **owner == instance).count(), 1, "{owners:?}");
        assert_eq!(owners.iter().filter(|owner| is_ec2_instance(owner)).count(), 1, "{owners:?}");
        assert!(cloud.has_ended(&instance), "round {round}: each left the machine's end to the other");
    }
}

/// Off EC2 each process has a name of its own, and no task needs `--no-terminate`.
#[tokio::test]
async fn off_ec2_each_process_has_an_owner_of_its_own_and_nothing_is_ended() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "xyz"]).await;
    let mut owners = Vec::new();
    for task in ["abc", "xyz"] {
        let faults = Faults::new();
        faults.add(Imds, "/latest/api/token", When::Always, Fault::FailBefore);
        let mut node = cloud.node_on("nowhere".to_owned(), faults);
        node.settings.src = Some(src(task));
        let life = node.run().await;
        life.outcome.unwrap();
        assert_eq!(life.end.unwrap(), MachineEnd::LeftRunning);
        owners.push(cloud.task(task).await.instance.unwrap().to_string());
    }
    assert_ne!(owners[0], owners[1]);
    assert!(owners.iter().all(|owner| !owner.starts_with("i-") && owner.len() > 17), "{owners:?}");
    assert!(!cloud.has_ended("nowhere"), "the power-off command was run");
}

#[tokio::test]
async fn a_node_that_is_stopped_before_it_begins_claims_nothing() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let node = cloud.node("abc", "M");
    node.stopping.drain.cancel();
    let instance = node.instance.clone();
    let life = node.run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
    assert_eq!(cloud.task("abc").await.attempt.0, 0);
    assert!(cloud.has_ended(&instance));
}

#[tokio::test]
async fn a_node_without_a_task_ends_if_it_bears_our_mark_alone() {
    let cloud = TestCloud::new().await;
    let node = cloud.node_on(cloud.local.launch(&[("lighthpc", "tblTrans2")]), Faults::new());
    let instance = node.instance.clone();
    let life = node.run().await;
    assert!(matches!(&life.outcome, Err(NodeError::NoTask { instance: named }) if *named == instance), "{life:?}");
    assert!(cloud.has_ended(&instance));
}

// In processes of their own: what happens before there is a node, and signals.

/// IMDS and EC2 of one instance. All other services refuse.
struct Stub {
    url: String,
    id: String,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Default)]
struct StubInstance {
    id: String,
    /// The tags; as IMDS shows them, if it does.
    tags: Vec<&'static str>,
    hides_tags: bool,
    /// Whether EC2 refuses everything, so that the power-off command is what ends the machine.
    refuses: bool,
    has_role: bool,
}

impl Stub {
    fn new(mut instance: StubInstance) -> Self {
        // The tests run beside each other on one machine, which knows its processes by the instance's id.
        instance.id = format!("i-0{:016x}", rand::random::<u64>());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, id) = (asked.clone(), instance.id.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (instance, log) = (instance.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &instance, &log));
            }
        });
        Self { url, id, asked }
    }

    fn was_asked(&self, what: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.contains(what))
    }
}

fn serve(mut stream: TcpStream, instance: &StubInstance, log: &Mutex<Vec<String>>) -> Option<()> {
    let (mut text, mut buffer) = (Vec::new(), [0_u8; 8192]);
    let (head, length) = loop {
        let read = stream.read(&mut buffer).ok().filter(|&read| read > 0)?;
        text.extend_from_slice(&buffer[..read]);
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, _)) = so_far.split_once("\r\n\r\n") {
            let lower = head.to_ascii_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            break (head.to_owned(), length.unwrap_or(0));
        }
    };
    while text.len() < head.len() + 4 + length {
        let read = stream.read(&mut buffer).ok().filter(|&read| read > 0)?;
        text.extend_from_slice(&buffer[..read]);
    }
    let body = String::from_utf8_lossy(&text[head.len() + 4..]).into_owned();
    let line = head.lines().next()?;
    log.lock().unwrap().push(format!("{line} {body}"));
    let path = line.split(' ').nth(1)?;
    let (status, answer) = reply(path, &body, instance);
    let ttl = if path == "/latest/api/token" { "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n" } else { "" };
    let length = answer.len();
    let reply = format!("HTTP/1.1 {status} X\r\n{ttl}Content-Length: {length}\r\nConnection: close\r\n\r\n{answer}");
    stream.write_all(reply.as_bytes()).ok()
}

fn reply(path: &str, body: &str, instance: &StubInstance) -> (u16, String) {
    if path == "/latest/api/token" {
        return (200, "a-token".to_owned());
    }
    if let Some(item) = path.strip_prefix("/latest/meta-data/") {
        let tag = item.strip_prefix("tags/instance");
        return match (item, tag) {
            ("instance-id", _) => (200, instance.id.clone()),
            ("iam/security-credentials/", _) if instance.has_role => (200, "role".to_owned()),
            ("iam/security-credentials/role", _) if instance.has_role => (
                200,
                r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAX","SecretAccessKey":"s","Token":"t",
                    "LastUpdated":"2026-01-01T00:00:00Z","Expiration":"2099-01-01T00:00:00Z"}"#
                    .to_owned(),
            ),
            (_, Some("" | "/")) if !instance.hides_tags => (200, instance.tags.join("\n")),
            (_, Some(key)) if !instance.hides_tags && instance.tags.contains(&key.trim_start_matches('/')) => {
                (200, String::new())
            }
            _ => (404, String::new()),
        };
    }
    if instance.refuses {
        let refusal = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error>\
                       </Errors><RequestID>0</RequestID></Response>";
        return (403, refusal.to_owned());
    }
    if body.contains("Action=DescribeTags") {
        let tags: String = instance.tags.iter().map(|key| format!("<item><key>{key}</key><value/></item>")).collect();
        return (200, format!("<DescribeTagsResponse><tagSet>{tags}</tagSet></DescribeTagsResponse>"));
    }
    if body.contains("Action=TerminateInstances") {
        return (200, "<TerminateInstancesResponse><instancesSet/></TerminateInstancesResponse>".to_owned());
    }
    if path != "/" {
        // S3's requests name a bucket; DynamoDB's do not.
        return (403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>".to_owned());
    }
    (400, r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"not authorized"}"#.to_owned())
}

/// A machine: its services, and a folder with what its power-off leaves.
struct Host {
    stub: Stub,
    dir: tempfile::TempDir,
}

impl Host {
    fn new(instance: StubInstance) -> Self {
        Self { stub: Stub::new(instance), dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") || name.to_string_lossy().starts_with("LIGHTHPC_") {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", &self.stub.url)
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.stub.url)
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
            .env("LIGHTHPC_WORK_DIR", self.dir.path().join("work"))
            .env("LIGHTHPC_POWER_OFF_COMMAND", format!("echo off >> '{}'", self.mark().display()))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn lighthpc(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_lighthpc"));
        command.args(arguments);
        command
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("powered-off")
    }

    fn has_ended(&self) -> bool {
        self.mark().exists() || self.stub.was_asked("Action=TerminateInstances")
    }
}

/// Waits for a process, and ends one that does not end by itself.
fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process never ended");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send(child: &Child, signal: &str) {
    Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
}

/// Command lines and surroundings that are wrong, each with its exit code.
type Wrong = (&'static [&'static str], &'static [(&'static str, &'static str)], i32);

const WRONG: &[Wrong] = &[
    (&["run", "--no-such-flag"], &[], 2),
    (&["run", "--lease", "never"], &[], 2),
    (&["--log-format", "json", "run", "--slots", "0"], &[], 2),
    (&["run", "--lease", "3", "--heartbeat", "2"], &[], 2),
    (&["run", "--topic-arn", "NotifyMe"], &[], 2),
    (&["run"], &[("LIGHTHPC_LOG", "loud")], 2),
    (&["run"], &[("LIGHTHPC_LEASE", "soon")], 2),
    (&["run"], &[("AWS_REGION", "")], 12),
    (&["run", "--src-id", "abc", "--result-bucket", "b"], &[], 11),
    (&["run", "--src-id", "abc"], &[], 2),
    (&["run", "--src-id", "abc", "--result-bucket", "b"], &[("LIGHTHPC_WORK_DIR", "/dev/null/x")], 2),
];

fn run_wrong(instance: &StubInstance, (arguments, variables, code): &Wrong, more: &[(&str, &str)]) -> bool {
    let host = Host::new(instance.clone());
    let mut command = host.lighthpc(arguments);
    for (name, value) in variables.iter().chain(more) {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    let status = wait(&mut command.spawn().unwrap());
    assert_eq!(status.code(), Some(*code), "{arguments:?} {variables:?} {more:?}");
    host.has_ended()
}

#[test]
fn a_wrong_setting_ends_only_what_is_proved_to_be_a_node() {
    let workstation = StubInstance { tags: vec!["Name"], has_role: true, ..StubInstance::default() };
    let hidden = StubInstance { hides_tags: true, ..workstation.clone() };
    let node = StubInstance { tags: vec!["Name", "lighthpc"], has_role: true, ..StubInstance::default() };
    let hidden_node = StubInstance { hides_tags: true, ..node.clone() };
    for wrong in WRONG {
        let (arguments, ..) = wrong;
        assert!(!run_wrong(&workstation, wrong, &[]), "{wrong:?}: a workstation was ended");
        assert!(!run_wrong(&hidden, wrong, &[]), "{wrong:?}: a workstation without tags in IMDS was ended");
        assert!(run_wrong(&workstation, wrong, &[("LIGHTHPC_TERMINATE", "1")]), "{wrong:?}: by order");
        let both = [("LIGHTHPC_TERMINATE", "1"), ("LIGHTHPC_NO_TERMINATE", "1")];
        assert!(!run_wrong(&node, wrong, &both), "{wrong:?}: --no-terminate wins");
        // Without a region nothing can be asked.
        if !wrong.1.iter().any(|(name, _)| *name == "AWS_REGION") {
            assert!(run_wrong(&node, wrong, &[]), "{arguments:?}: a node was left running");
            assert!(run_wrong(&hidden_node, wrong, &[]), "{arguments:?}: a node without tags in IMDS was left running");
        }
    }
}

#[test]
fn without_credentials_a_node_is_switched_off_and_a_workstation_is_not() {
    let case = |tags: Vec<&'static str>, hides_tags| {
        let host = Host::new(StubInstance { tags, hides_tags, ..StubInstance::default() });
        let status = wait(&mut host.lighthpc(&["run", "--src-id", "abc", "--result-bucket", "b"]).spawn().unwrap());
        assert_eq!(status.code(), Some(10));
        host.has_ended()
    };
    assert!(case(vec!["srcID"], false));
    assert!(!case(vec!["Name"], false));
    assert!(!case(vec!["srcID"], true), "its tags cannot be read");
}

#[test]
fn both_orders_on_one_command_line_are_refused_and_end_nothing() {
    let node = StubInstance { tags: vec!["lighthpc"], has_role: true, ..StubInstance::default() };
    let host = Host::new(node.clone());
    let output = host.lighthpc(&["run", "--terminate", "--no-terminate"]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("--terminate") && words.contains("--no-terminate"), "{words}");
    assert!(!host.has_ended());
    // The image's variable is no flag: the person's flag wins over it.
    let host = Host::new(node);
    let status = wait(&mut host.lighthpc(&["run", "--no-terminate"]).env("LIGHTHPC_TERMINATE", "1").spawn().unwrap());
    assert_ne!(status.code(), Some(0));
    assert!(!host.has_ended());
    assert!(host.stub.was_asked("instance-id"), "the node ran");
}

/// A command line that cannot be read does not end a node under another process's task.
#[test]
fn a_wrong_command_line_beside_a_working_node_leaves_the_machine_to_that() {
    let host = Host::new(StubInstance { tags: vec!["lighthpc"], has_role: true, ..StubInstance::default() });
    let wrong = || wait(&mut host.lighthpc(&["run", "--no-such-flag"]).spawn().unwrap());
    let name = SocketAddr::from_abstract_name(format!("lighthpc/{}/3", host.stub.id)).unwrap();
    let living = UnixDatagram::bind_addr(&name).unwrap();
    assert_eq!(wrong().code(), Some(2));
    assert!(!host.has_ended());
    drop(living);
    assert_eq!(wrong().code(), Some(2));
    assert!(host.has_ended());
}

/// Returns whether a process catches a signal, by the bit of its number.
fn catches(pid: u32, signal: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// A signal at any moment from the first on: whatever is caught ends the machine, too. What is not caught yet is the
/// loader's time.
#[test]
fn a_signal_in_the_first_milliseconds_still_ends_a_node() {
    let instance = StubInstance { tags: vec!["Name"], refuses: true, has_role: true, ..StubInstance::default() };
    let arguments = ["run", "--src-id", "abc", "--result-bucket", "b"];
    let mut caught_at_once = 0;
    for wait_ms in [0, 1, 2, 5, 10, 20] {
        for round in 0..8 {
            let host = Host::new(instance.clone());
            let (signal, name) = if round % 2 == 0 { (15, "-TERM") } else { (2, "-INT") };
            let started = Instant::now();
            let mut node = host.lighthpc(&arguments).env("LIGHTHPC_TERMINATE", "1").spawn().unwrap();
            while started.elapsed() < Duration::from_millis(wait_ms) {
                std::hint::spin_loop();
            }
            let is_caught = catches(node.id(), signal);
            send(&node, name);
            let status = wait(&mut node);
            if is_caught {
                caught_at_once += 1;
                assert_eq!(status.signal(), None, "{name} after {wait_ms} ms");
            }
            if status.signal().is_none() {
                assert!(host.mark().exists(), "{name} after {wait_ms} ms: {status:?}, and the machine runs on");
            }
        }
    }
    // The same at the very moment from which it is caught.
    for round in 0..20 {
        let host = Host::new(instance.clone());
        let mut node = host.lighthpc(&arguments).env("LIGHTHPC_TERMINATE", "1").spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !catches(node.id(), 15) {
            assert!(Instant::now() < deadline && node.try_wait().unwrap().is_none(), "SIGTERM is never caught");
        }
        send(&node, if round % 2 == 0 { "-TERM" } else { "-HUP" });
        let status = wait(&mut node);
        assert_eq!(status.signal(), None, "round {round}");
        assert!(host.mark().exists(), "round {round}: {status:?}, and the machine runs on");
    }
    assert!(caught_at_once > 0, "no signal came late enough to be caught");
}

#[test]
fn a_signal_does_not_end_a_workstation_either() {
    for name in ["-TERM", "-INT", "-HUP"] {
        let host = Host::new(StubInstance { tags: vec!["Name"], has_role: true, ..StubInstance::default() });
        let mut node = host.lighthpc(&["run", "--src-id", "abc", "--result-bucket", "b"]).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !catches(node.id(), 15) && node.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline);
        }
        send(&node, name);
        wait(&mut node);
        assert!(!host.has_ended(), "{name}");
    }
}

/// A command that is no node has nothing to hand back: a signal ends it at once, whatever it waits for.
#[test]
fn a_signal_ends_other_commands_at_once() {
    // A service that takes a connection and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
        for arguments in [&["status"] as &[_], &["submit", "--mission", "M", "-", "--no-launch"], &["cancel", "M"]] {
            let host = Host::new(StubInstance::default());
            let mut command = host.lighthpc(arguments);
            command.env("AWS_ENDPOINT_URL", &url).env("AWS_ACCESS_KEY_ID", "k").env("AWS_SECRET_ACCESS_KEY", "s");
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(if number == 2 { 0 } else { 200 }));
            let sent = Instant::now();
            send(&child, name);
            let status = wait(&mut child);
            assert_eq!(status.signal(), Some(number), "{arguments:?} {name}: {status:?}");
            assert!(sent.elapsed() < Duration::from_secs(10), "{arguments:?} {name} took {:?}", sent.elapsed());
        }
    }
}

/// What was ignored at the start stays ignored; what was not still ends the run.
#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    for (ignored, name) in [("HUP", "-HUP"), ("INT", "-INT"), ("TERM", "-TERM")] {
        let host = Host::new(StubInstance::default());
        let file = |name: &str| host.dir.path().join(name);
        std::fs::write(file("a.txt"), "a").unwrap();
        // The workload starts in its scratch folder, so the files are named in full.
        let workload = format!(
            r#"echo x > '{}'; until [ -e '{}' ]; do sleep 0.02; done; : > "$LIGHTHPC_OUTPUT""#,
            file("began").display(),
            file("go").display()
        );
        let mut command = host.command("sh");
        command.args(["-c", r#"trap "" "$1"; exec "$0" run --local a.txt"#, env!("CARGO_BIN_EXE_lighthpc"), ignored]);
        command.env("LIGHTHPC_EXEC", workload).env_remove("AWS_ENDPOINT_URL");
        let mut run = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !file("began").exists() {
            assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "the workload never began");
            std::thread::sleep(Duration::from_millis(5));
        }
        send(&run, name);
        send(&run, name);
        std::fs::write(file("go"), "").unwrap();
        let status = wait(&mut run);
        assert_eq!(status.code(), Some(0), "{name}: {status:?}");
        assert!(Path::new(&file("lighthpc-local/results/rslt_a.txt")).exists());
    }
}

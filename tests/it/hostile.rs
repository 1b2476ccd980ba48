//! Hostile values, one list of them, and what each boundary makes of them: keys, tags, rows, ids, flags, file names, output.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::domain::ids::{MissionId, SrcId};
use lighthpc::domain::mission::Notified;
use lighthpc::domain::tags;
use lighthpc::domain::task::State;
use lighthpc::scheduler::{Finding, Ingested, SubmitPlan, TaskIngest, What};
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Faults;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::names::names;
use crate::scheduler::{board, upload};
use crate::test_cloud::{TestCloud, mission_id, src, text};

/// Values of other types than a name has in a row.
fn other_types() -> Vec<AttributeValue> {
    let number = |n: &str| AttributeValue::N(n.to_owned());
    vec![
        number("1"),
        number("-1"),
        number("1e125"),
        AttributeValue::Bool(true),
        AttributeValue::Null(true),
        AttributeValue::B(aws_sdk_dynamodb::primitives::Blob::new([0, 255])),
        AttributeValue::L(vec![text("M")]),
        AttributeValue::M(HashMap::from([("S".to_owned(), text("M"))])),
        AttributeValue::Ss(vec!["M".to_owned()]),
        AttributeValue::Ns(vec!["1".to_owned()]),
    ]
}

/// Keys of items of the missions table that are no missions.
const ITEMS: &[&str] =
    &["M#tally#0", "N#tally#", "~sweep", "~nodes", "~", "~key:00000000000000000000000000000000", "~x/y"];

async fn sweep(cloud: &TestCloud) -> Vec<Finding> {
    cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap()
}

fn of(found: &[Finding], what: What) -> Vec<&str> {
    found.iter().filter(|finding| finding.what == what).map(|finding| finding.subject.as_str()).collect()
}

#[test]
fn an_id_of_a_new_mission_is_harmless_in_all_that_is_made_of_it() {
    let mut taken = 0;
    for name in names() {
        let Ok(id) = MissionId::for_a_new_mission(&name) else { continue };
        taken += 1;
        let id = id.as_str();
        assert!((1..=200).contains(&id.len()) && id.trim() == id, "{id:?}");
        assert!(!id.contains(['/', '#', '~', '%', '?']) && !id.starts_with('-') && !id.starts_with("aws:"), "{id:?}");
        assert!(id != "." && id != ".." && !id.contains(char::is_control), "{id:?}");
        assert_eq!(lighthpc::domain::printable::one_line(id), id);
        assert_eq!(tags::mission_value(&mission_id(id)), id);
        assert_eq!(lighthpc::domain::keys::manifest_key(&mission_id(id)), format!("manifests/{id}.json"));
    }
    assert!(taken > 100, "{taken}");
}

/// The mechanism behind the commands: whoever forgets to check an id is refused by the ledger.
#[tokio::test]
async fn the_ledger_makes_no_mission_with_an_unfit_id() {
    let cloud = TestCloud::new().await;
    for id in names().iter().filter_map(|name| MissionId::new(name).ok()) {
        let new = lighthpc::backend::ledger::NewMission::of(id.clone(), 1);
        assert_eq!(cloud.backend.ledger.create_mission(&new).await.is_ok(), id.unfit().is_none(), "{id:?}");
    }
}

/// Every key that S3 can have is taken in or refused with a reason; none of them counts for a mission that is not its own, or
/// changes an item of the missions table.
#[tokio::test]
async fn no_key_of_an_upload_reaches_another_mission_or_an_item_that_is_none() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["M/honest"]).await;
    cloud.mission("N", &["N/other"]).await;
    cloud.node("N/other", "N").run().await.outcome.unwrap();
    sweep(&cloud).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let mut ingest = TaskIngest::new(&scheduler);
    for name in names() {
        for key in [name.clone(), format!("{name}/e"), format!("M/{name}")] {
            let Ok(src) = SrcId::new(&key) else { continue };
            let boarded = ingest.ingest(&upload(&key)).await.unwrap();
            if matches!(boarded, Ingested::Refused(_)) {
                continue;
            }
            let mission = cloud.backend.ledger.task(&src).await.unwrap().unwrap().mission;
            let prefix = key.split_once('/').map(|(prefix, _)| prefix);
            let its = prefix.filter(|prefix| ["M", "N"].contains(prefix)).map(mission_id);
            assert_eq!(mission, its, "{key:?}");
        }
    }
    let missions: Vec<String> =
        cloud.backend.ledger.missions().await.unwrap().iter().map(|m| m.id.to_string()).collect();
    assert_eq!(missions, ["M", "N"]);
    assert_eq!((cloud.tally("M").await.seq, cloud.tally("N").await.ok), (0, 1));
}

/// The attack: tasks of a "mission" that is the tally item of another. Their end used to overwrite the tally.
#[tokio::test]
async fn the_tally_of_a_mission_is_no_mission() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    for key in ["M#tally#0/e0", "M#tally#0/e1", "~sweep/e0"] {
        cloud.input(key, b"x").await;
        let Ingested::Launched(instance) = board(&scheduler, key).await else { panic!("{key}") };
        assert_eq!(cloud.task(key).await.mission, None, "{key}");
        cloud.node_on(instance, Faults::new()).run().await.outcome.unwrap();
        assert_eq!(cloud.task(key).await.state, State::Done, "{key}");
        // Nor by a tag that somebody has set.
        let life = cloud.node("abc", "M#tally#0").run().await;
        assert!(matches!(life.outcome, Err(NodeError::BadName(_))), "{life:?}");
    }
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "beside tasks of its tally").await;
    assert!(cloud.backend.ledger.missions().await.unwrap().iter().all(|mission| mission.id == mission_id("M")));
}

/// A hand writes the key of such an item, or another type, into a row, in any state: no claim, no count, no change; the sweep says
/// so, and everybody else goes on.
#[tokio::test]
async fn a_row_that_names_an_item_as_its_mission_counts_for_none() {
    let reserved = ITEMS.iter().map(|key| text(key));
    let mut cases = JoinSet::new();
    for value in reserved.chain(other_types()) {
        for state in ["pending", "running", "failed", "done"] {
            if state == "pending" || matches!(value, AttributeValue::S(_)) {
                cases.spawn(counts_for_none(value.clone(), state));
            }
        }
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

async fn counts_for_none(value: AttributeValue, state: &'static str) {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "odd"]).await;
    cloud.set_mission_number("M", "transNumber", 1).await;
    cloud.set_value("odd", "missionID", value.clone()).await;
    cloud.set_attribute("odd", "state", state).await;
    let context = format!("{state} {value:?}");

    let alone = cloud.node("odd", "M").run().await;
    let is_open = ["pending", "running"].contains(&state);
    assert_eq!(
        matches!(alone.outcome, Err(NodeError::OddRow { .. })),
        is_open && !is_number(&value),
        "{context}: {alone:?}"
    );
    let found = sweep(&cloud).await;
    if is_open && !is_number(&value) {
        assert_eq!(of(&found, What::Failure), ["odd"], "{context}: {found:?}");
    }
    let serves = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), Faults::new()).run().await;
    assert!(matches!(serves.outcome, Ok(Outcome::Served { .. })), "{context}: {serves:?}");
    let scheduler = cloud.scheduler(&Faults::new());
    let redriven = scheduler.redrive(&mission_id("M"), None, &[src("odd")]).await.unwrap();
    assert_eq!(redriven.put_back, 0, "{context}");
    scheduler.cancel(&mission_id("M"), std::time::Duration::ZERO).await.unwrap();

    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed, cloud.mission_row("M").await.notified), (1, 0, Notified::Yes), "{context}");
    if !is_number(&value) {
        let row = cloud.row_of("odd").await;
        assert_eq!((&row["missionID"], &row["state"]), (&value, &text(state)), "{context}");
    }
    assert_eq!(cloud.backend.ledger.missions().await.unwrap().len(), 1, "{context}");
}

/// A number is read as its digits, which may be a mission's id.
fn is_number(value: &AttributeValue) -> bool {
    matches!(value, AttributeValue::N(_))
}

/// A row of the missions table that was meant as a mission, and can be none, is named by each sweep.
#[tokio::test]
async fn a_mission_that_can_be_none_is_reported() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.set_mission_number("~mine", "transNumber", 3).await;
    cloud.set_mission_number("M#tally#0", "transNumber", 3).await;
    let found = sweep(&cloud).await;
    let mut odd = of(&found, What::Failure);
    odd.sort_unstable();
    assert_eq!(odd, ["M#tally#0", "~mine"], "{found:?}");
    assert_eq!(cloud.backend.ledger.missions().await.unwrap().len(), 1);
}

/// Missions that an earlier version made under ids that no new one may have: a node for each task, or nodes of the mission, are
/// launched, find their mission by the tag, and bring it to its end. The sweep says what is wrong with the id.
#[tokio::test]
async fn an_older_mission_with_an_unfit_id_is_worked_at_and_reported() {
    let long = "x".repeat(1_000);
    let mut cases = JoinSet::new();
    for id in ["a/b", "a#b", "a~b%?", "new\nline", " a ", "aws:a", "..", "-rf", "a\u{202e}b", &long] {
        for nodes in [0, 1] {
            cases.spawn(is_worked_at(id.to_owned(), nodes));
        }
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

async fn is_worked_at(id: String, nodes: u64) {
    let id = id.as_str();
    let cloud = TestCloud::new().await;
    cloud.set_mission_number(id, "transNumber", 1).await;
    cloud.set_mission_value(id, "rsltList", AttributeValue::L(vec![text("rsltList")])).await;
    if nodes > 0 {
        cloud.set_mission_number(id, "nodes", nodes).await;
    }
    cloud.input("abc", b"abc").await;
    cloud.row("abc", &mission_id(id)).await;

    let found = sweep(&cloud).await;

    assert_eq!(of(&found, What::Failure), [id], "{found:?}");
    let [instance] = &cloud.local.instances()[..] else { panic!("{id:?}: {found:?}") };
    let tag = instance.tags.iter().find(|(key, _)| key == "missionID").map(|(_, value)| value.as_str());
    assert!(tag.is_some_and(|tag| tag.chars().count() <= 256 && !tag.contains(char::is_control)), "{tag:?}");
    // A node that is there is seen: no second is launched.
    assert!(of(&sweep(&cloud).await, What::Launched).is_empty(), "{id:?}");
    cloud.node_on(instance.id.clone(), Faults::new()).run().await.outcome.unwrap();
    cloud.assert_done("abc", id, id).await;
    cloud.scheduler(&Faults::new()).cancel(&mission_id(id), std::time::Duration::ZERO).await.unwrap();
}

fn plan(uploads: Option<bool>, keys: &[&str]) -> SubmitPlan {
    SubmitPlan {
        mission: mission_id("M"),
        name: None,
        bucket: Some(local_cloud::SOURCE_BUCKET.to_owned()),
        srcs: keys.iter().map(|key| src(key)).collect(),
        works: HashMap::new(),
        exec: None,
        nodes: None,
        slots: None,
        uploads,
        notify_on: None,
    }
}

/// A stranger's object below the prefix of a submitted mission is neither a row nor a launch, and does not end the mission.
#[tokio::test]
async fn an_upload_does_not_count_for_a_mission_that_takes_none() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    cloud.input("M/honest", b"tsenoh/M").await;
    let plan = plan(None, &["M/honest"]);
    let prepared = scheduler.prepare(&plan).await.unwrap();
    scheduler.make_rows(&plan, &prepared, |_| {}).await.unwrap();

    for key in ["M/evil", "M/", "M//", "M/honest/..", "M/\u{1b}[2J"] {
        let boarded = board(&scheduler, key).await;
        assert!(matches!(boarded, Ingested::Refused(_)), "{key}: {boarded:?}");
        assert_eq!(cloud.backend.ledger.task(&src(key)).await.unwrap(), None, "{key}");
    }
    assert_eq!(board(&scheduler, "M/honest").await, Ingested::Duplicate);
    assert!(cloud.local.instances().is_empty());
    assert_eq!(cloud.mission_row("M").await.notified, Notified::No);

    cloud.node("M/honest", "M").run().await.outcome.unwrap();
    let row = cloud.mission_row("M").await;
    assert_eq!((row.trans_number, cloud.tally("M").await.ok, row.notified), (Some(1), 1, Notified::Yes));
}

/// What stands in `uploads`, and what a submission makes of it.
#[tokio::test]
async fn a_mission_takes_uploads_as_its_row_says() {
    let values = [
        (None, true),
        (Some(text("yes")), true),
        (Some(text(" Yes\n")), true),
        (Some(AttributeValue::Bool(true)), true),
        (Some(text("no")), false),
        (Some(text("NO")), false),
        (Some(AttributeValue::Bool(false)), false),
        (Some(text("")), false),
        (Some(text("maybe")), false),
        (Some(AttributeValue::L(vec![])), false),
        (Some(AttributeValue::N("1".to_owned())), false),
    ];
    for (value, is_open) in values {
        for uploads in [None, Some(true), Some(false)] {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &["M/a"]).await;
            if let Some(value) = &value {
                cloud.set_mission_value("M", "uploads", value.clone()).await;
            }
            let scheduler = cloud.scheduler(&Faults::new());
            let submitted = plan(uploads, &["M/a", "M/b"]);
            let prepared = scheduler.prepare(&submitted).await.unwrap();
            scheduler.make_rows(&submitted, &prepared, |_| {}).await.unwrap();

            let boarded = board(&scheduler, "M/evil").await;

            let is_open = uploads.unwrap_or(is_open);
            assert_eq!(!matches!(boarded, Ingested::Refused(_)), is_open, "{value:?} {uploads:?}: {boarded:?}");
            assert_eq!(cloud.mission_row("M").await.accepts_uploads, is_open);
        }
    }
    // One that is made by a submission takes none, unless it is opened to them.
    for uploads in [None, Some(true), Some(false)] {
        let cloud = TestCloud::new().await;
        let made = cloud.scheduler(&Faults::new()).prepare(&plan(uploads, &["M/a"])).await.unwrap();
        assert_eq!(made.mission.accepts_uploads, uploads == Some(true));
    }
}

/// Nor by way of the default mission.
#[tokio::test]
async fn an_upload_without_a_mission_does_not_count_for_a_default_mission_that_takes_none() {
    let cloud = TestCloud::new().await;
    cloud.scheduler(&Faults::new()).prepare(&plan(None, &["M/a"])).await.unwrap();
    let mut settings = TestCloud::scheduler_settings();
    settings.default_mission = Some(mission_id("M"));
    let scheduler = cloud.scheduler_with(&Faults::new(), settings);
    assert!(matches!(board(&scheduler, "evil").await, Ingested::Refused(_)));
    cloud.backend.ledger.set_uploads(&mission_id("M"), true).await.unwrap();
    assert!(matches!(board(&scheduler, "good").await, Ingested::Launched(_)));
}

/// A program run in `dir`, without any setting of this machine.
fn lighthpc(dir: &std::path::Path, arguments: &[&std::ffi::OsStr], variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lighthpc"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") || name.to_string_lossy().starts_with("LIGHTHPC_") {
            command.env_remove(name);
        }
    }
    // Nothing here may reach a service.
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1").env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(variables.iter().copied()).args(arguments).current_dir(dir).stdin(std::process::Stdio::null());
    command.output().unwrap()
}

/// What a terminal gets has no character that acts on it, and is text.
fn assert_plain(output: &std::process::Output, context: &str) -> (String, String) {
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{context}: {error}")).to_owned();
        let acting = text.chars().find(|&c| c != '\n' && lighthpc::domain::printable::is_unsafe(c));
        assert_eq!(acting, None, "{context}: {text}");
        text
    };
    (text(&output.stdout), text(&output.stderr))
}

/// Files with hostile names are run, shown, and counted; no name makes a line of its own or acts on the terminal, and what the
/// workload writes does not either.
#[test]
fn hostile_names_of_files_are_run_and_printed_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<std::path::PathBuf> = names()
        .into_iter()
        .filter(|name| {
            !name.contains(['/', '\0']) && !name.is_empty() && name != "." && name != ".." && name.len() <= 255
        })
        .step_by(4)
        .map(|name| dir.path().join(name))
        .collect();
    for file in &files {
        std::fs::write(file, "input").unwrap();
    }
    let exec = r#"printf 'a\033[2J\r%s\n' "$LIGHTHPC_SRC_ID"; case "$LIGHTHPC_SRC_ID" in *x*) exit 3;; esac; cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#;
    for (format, runs) in [("text", 1), ("json", 2)] {
        let mut arguments: Vec<&std::ffi::OsStr> =
            ["run", "--local=m", "--exec", exec, "--log-format", format].map(std::ffi::OsStr::new).to_vec();
        arguments.extend(files.iter().map(|file| file.as_os_str()));
        let ran = lighthpc(dir.path(), &arguments, &[("LIGHTHPC_LOG", "debug")]);
        let (_, stderr) = assert_plain(&ran, format);
        assert_eq!(ran.status.code(), Some(20), "{stderr}");
        if runs == 1 {
            let ended = stderr.lines().filter(|line| line.starts_with('[')).count();
            assert_eq!(ended, files.len(), "{stderr}");
        } else {
            let logged: Vec<&str> = stderr.lines().filter(|line| line.starts_with('{')).collect();
            assert!(
                !logged.is_empty() && logged.iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
            );
        }
    }
    let status = lighthpc(dir.path(), &["list", "--local=m", "local"].map(std::ffi::OsStr::new), &[]);
    let (stdout, _) = assert_plain(&status, "list");
    assert_eq!(stdout.trim_end().lines().count(), 1 + files.len(), "{stdout}");
    let status = lighthpc(dir.path(), &["list", "--local=m", "local", "--json"].map(std::ffi::OsStr::new), &[]);
    let (stdout, _) = assert_plain(&status, "status --json");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let shown: std::collections::HashSet<&str> =
        json["tasks"].as_array().unwrap().iter().map(|task| task["srcFilename"].as_str().unwrap()).collect();
    for file in &files {
        assert!(shown.contains(file.file_name().unwrap().to_str().unwrap()), "{file:?}");
    }
}

/// Hostile values of flags and of variables: an unfit id of a new mission is refused before anything is asked of AWS, and
/// whatever is refused, the refusal is plain.
#[test]
fn hostile_values_of_flags_and_variables_are_refused_plainly() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    let os = std::ffi::OsStr::new;
    for name in names().into_iter().filter(|name| !name.contains('\0')).step_by(3) {
        if MissionId::for_a_new_mission(&name).is_ok() {
            continue;
        }
        let flag = format!("--mission={name}");
        let refused = lighthpc(dir.path(), &[os("submit"), os(&flag), os("a")], &[]);
        let (_, stderr) = assert_plain(&refused, &name);
        assert_eq!(refused.status.code(), Some(2), "{name:?}: {stderr}");
        let made = lighthpc(dir.path(), &[os("run"), os("--local=m"), os(&flag), os("--exec=true"), os("a")], &[]);
        let (_, stderr) = assert_plain(&made, &name);
        // Nothing, or blanks, is no id at all: the folder's own mission is meant.
        assert!(made.status.code() == Some(2) || name.trim().is_empty(), "{name:?}: {stderr}");
        for (variable, value) in [("LIGHTHPC_LOG", &name), ("LIGHTHPC_LEASE", &name), ("LIGHTHPC_TOPIC_ARN", &name)] {
            let asked = lighthpc(dir.path(), &[os("sweep")], &[("LIGHTHPC_MISSION", "a#b"), (variable, value)]);
            assert_plain(&asked, &format!("{variable}={name:?}"));
            assert_eq!(asked.status.code(), Some(2), "{variable}={name:?}");
        }
    }
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\x1b[2J\n");
    for arguments in [vec![os("run"), os("--local=n"), bytes], vec![os("submit"), bytes], vec![bytes]] {
        let refused = lighthpc(dir.path(), &arguments, &[]);
        assert_plain(&refused, "no UTF-8");
        assert!(!refused.status.success());
    }
}

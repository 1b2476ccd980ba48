//! Tasks that are not one file each: rows of a table, lines, numbers, and groups of files.

use std::collections::{BTreeMap, HashMap};

use lighthpc::backend::ledger::NewTask;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::domain::work::{Inputs, ObjectName, Work};
use lighthpc::scheduler::{SchedulerError, SubmitPlan};
use local_cloud::{Faults, SOURCE_BUCKET};
use serde_json::Value;

use crate::cli::{Project, code, stderr, stdout};
use crate::test_cloud::{TestCloud, mission_id, src};

const PRINT: &str = r#"printf '%s|' "$@" "$LIGHTHPC_SRC_ID" "${LIGHTHPC_INPUT-none}" "${LIGHTHPC_INPUT_DIR-none}" \
    "${LIGHTHPC_INDEX-none}" "${LIGHTHPC_PARAM_ALPHA-none}" > "$LIGHTHPC_OUTPUT""#;

fn result(project: &Project, name: &str) -> String {
    std::fs::read_to_string(project.path("lighthpc-local/results").join(format!("rslt_{name}"))).unwrap()
}

#[test]
fn a_table_is_a_mission() {
    let project = Project::new(&[]);
    project.program(PRINT);
    std::fs::write(project.path("sweep.csv"), "name,alpha\nfirst,0.5\n; rm -rf *,\"a b\n'$(x)'\"\n").unwrap();
    let run =
        ["run", "--local", "--csv", "sweep.csv", "--", "./program.sh", "--alpha={param.alpha}", "{index}", "{name}"];

    let first = project.run(&run);
    let again = project.run(&run);

    assert_eq!((code(&first), code(&again)), (0, 0), "{}{}", stderr(&first), stderr(&again));
    assert_eq!(result(&project, "first"), "--alpha=0.5|1|first|first|none|none|1|0.5|");
    let odd = "a b\n'$(x)'";
    assert_eq!(result(&project, "; rm -rf *"), format!("--alpha={odd}|2|; rm -rf *|; rm -rf *|none|none|2|{odd}|"));
    assert!(stderr(&again).contains("already done: 2"), "{}", stderr(&again));
    let page = stdout(&project.run(&["explain", "--local", "local", "first"]));
    assert!(page.contains("parameters  alpha=0.5  name=first") && page.contains("index       1"), "{page}");
    let list = project.run(&["list", "--local", "local", "--json"]);
    let tasks: Value = serde_json::from_slice(&list.stdout).unwrap();
    let first = tasks["tasks"].as_array().unwrap().iter().find(|task| task["srcFilename"] == "first").unwrap();
    assert_eq!((&first["params"]["alpha"], &first["index"]), (&"0.5".into(), &1.into()));
}

#[test]
fn lines_and_numbers_are_missions() {
    let project = Project::new(&[]);
    std::fs::write(project.path("lines"), "one two\n\n; echo harm\n").unwrap();
    let exec = r#"printf '%s|%s' {param.line} "$LIGHTHPC_INDEX" > {output}"#;
    let lines = project.run(&["run", "--local=lines-dir", "--each-line", "lines", "--exec", exec]);
    assert_eq!(code(&lines), 0, "{}", stderr(&lines));
    let of = |name: &str| std::fs::read_to_string(project.path("lines-dir/results").join(name)).unwrap();
    assert_eq!((of("rslt_1"), of("rslt_2")), ("one two|1".to_owned(), "; echo harm|2".to_owned()));

    project.program(PRINT);
    let array = project.run(&["run", "--local", "--array", "8-12:2", "--", "./program.sh", "{index}"]);
    assert_eq!(code(&array), 0, "{}", stderr(&array));
    assert_eq!(result(&project, "10"), "10|10|none|none|10|none|");
    // A name that another form has taken.
    std::fs::write(project.path("12"), "a file").unwrap();
    let other = project.run(&["run", "--local", "12"]);
    assert_eq!(code(&other), 2);
    assert!(stderr(&other).contains("task 12 exists in this folder, and it has other inputs"), "{}", stderr(&other));
}

#[test]
fn lines_are_read_from_standard_input() {
    let project = Project::new(&[]);
    let mut command =
        project.command(&["run", "--local", "--each-line", "-", "--exec", "echo {param.line} > {output}"]);
    let mut run = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut run.stdin.take().unwrap(), b"a\nb").unwrap();
    assert!(run.wait().unwrap().success());
    assert_eq!((result(&project, "1"), result(&project, "2")), ("a\n".to_owned(), "b\n".to_owned()));
}

/// The first run with other flags of the same folder must not lose a task.
#[test]
fn names_of_two_missions_that_meet_are_refused() {
    let project = Project::new(&[]);
    std::fs::write(project.path("a.csv"), "name,v\nx,1\n").unwrap();
    std::fs::write(project.path("b.csv"), "name,v\nx,2\nB/x,3\n").unwrap();
    let run = |mission: &str, file: &str| {
        project.run(&["run", "--local", "--mission", mission, "--csv", file, "--exec", "echo {param.v} > {output}"])
    };
    assert_eq!(code(&run("A", "a.csv")), 0);
    let met = run("B", "b.csv");
    assert_eq!((code(&met), stderr(&met).contains("two tasks would have the name B/x")), (2, true), "{}", stderr(&met));
    let status = project.run(&["status", "--local", "--json"]);
    assert!(!stdout(&status).contains("\"B\""), "nothing was written: {}", stdout(&status));
}

#[test]
fn groups_of_two_missions_with_files_of_one_name_are_apart() {
    let project = Project::new(&[]);
    for folder in ["d1", "d2"] {
        std::fs::create_dir(project.path(folder)).unwrap();
        for file in ["s_R1.fq", "s_R2.fq"] {
            std::fs::write(project.path(folder).join(file), format!("{folder} {file}\n")).unwrap();
        }
    }
    for (mission, folder, name) in [("A", "d1", "s"), ("B", "d2", "B/s"), ("B", "d2", "B/s"), ("A", "d1", "s")] {
        let exec = r#"cat "$LIGHTHPC_INPUT_DIR"/* > {output}"#;
        let run = ["run", "--local", "--mission", mission, "--group-by", r"(.*)_R[12]\.fq", "--exec", exec, folder];
        let run = project.run(&run);
        assert_eq!(code(&run), 0, "{mission}: {}", stderr(&run));
        assert!(result(&project, name).starts_with(&format!("{folder} s_R1.fq\n{folder} s_R2.fq\n")), "{mission}");
    }
}

#[test]
fn links_to_one_file_are_inputs_of_their_own_names() {
    let project = Project::new(&["real.fq"]);
    for link in ["a_R1.fq", "a_R2.fq"] {
        std::os::unix::fs::symlink("real.fq", project.path(link)).unwrap();
    }
    let exec = r#"ls "$LIGHTHPC_INPUT_DIR" > {output}"#;
    let run = ["run", "--local", "--group-by", "(.*)_R[12]", "--exec", exec, "a_R1.fq", "a_R2.fq"];
    let (first, again) = (project.run(&run), project.run(&run));
    assert_eq!((code(&first), code(&again)), (0, 0), "{}", stderr(&again));
    assert_eq!(result(&project, "a"), "a_R1.fq\na_R2.fq\n");
}

/// A program that the mission has already is checked for each task, too.
#[test]
fn a_stored_program_is_checked_for_new_tasks() {
    let project = Project::new(&[]);
    std::fs::write(project.path("a.csv"), "alpha\n1\n").unwrap();
    for exec in [&["--exec", "echo {param.alpha} > {output}"][..], &["--", "sh", "-c", "echo {param.alpha} > {output}"]]
    {
        let first = project.run(&[&["run", "--local", "--csv", "a.csv"], exec].concat());
        assert_eq!(code(&first), 0, "{}", stderr(&first));
        let array = project.run(&["run", "--local", "--array", "10-12"]);
        assert_eq!((code(&array), stderr(&array).contains("has no value")), (2, true), "{}", stderr(&array));
        std::fs::remove_dir_all(project.path("lighthpc-local")).unwrap();
    }
    std::fs::write(project.path("fails.sh"), "exit 3").unwrap();
    let failed = project.run(&["run", "--local", "--csv", "a.csv", "--", "sh", "fails.sh"]);
    assert_eq!(code(&failed), 20, "{}", stderr(&failed));
    let other = project.run(&["run", "--local", "--", "sh", "-c", "echo {param.nope} > {output}"]);
    assert_eq!((code(&other), stderr(&other).contains("has no value")), (2, true), "{}", stderr(&other));
}

#[test]
fn a_folder_is_its_files_and_patterns_select_among_them() {
    let project = Project::new(&["outside.txt"]);
    for file in ["in/a.txt", "in/deep/b.txt", "in/deep/c.log", "in/.hidden/x.txt", "in/.y.txt"] {
        std::fs::create_dir_all(project.path(file).parent().unwrap()).unwrap();
        std::fs::write(project.path(file), file).unwrap();
    }
    std::os::unix::fs::symlink("..", project.path("in/loop")).unwrap();
    let run = |dir: &str, flags: &[&str]| {
        let output = project.run(&[&["run", dir, "--exec", "cp {input} {output}"], flags].concat());
        let results = project.path(dir.strip_prefix("--local=").unwrap()).join("results");
        let names = std::fs::read_dir(results).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("rslt_"));
        names.sort();
        (code(&output), names.join(" "), stderr(&output))
    };
    let (code, names, _) = run("--local=all", &["in", "outside.txt"]);
    assert_eq!((code, names.as_str()), (0, "rslt_a.txt rslt_b.txt rslt_c.log rslt_outside.txt"));
    let (code, names, _) =
        run("--local=some", &["in", "--include", "*.txt", "--include", "*.log", "--exclude", "deep/b*"]);
    assert_eq!((code, names.as_str()), (0, "rslt_a.txt rslt_c.log"));
    let (code, names, words) = run("--local=none", &["in", "--exclude", "*"]);
    assert!((code, names.as_str()) == (2, "") && words.contains("no input is left"), "{words}");
    std::fs::create_dir(project.path("empty")).unwrap();
    let (code, _, words) = run("--local=none", &["empty"]);
    assert!(code == 2 && words.contains("the folder empty has no files"), "{words}");
}

#[test]
fn files_are_listed_on_standard_input() {
    let project = Project::new(&["a b.txt", "c.txt"]);
    for arguments in [&["run", "--local", "-"][..], &["run", "--local=other", "-"]] {
        let mut command = project.command(&[arguments, &["--exec", "cat {input} > {output}"]].concat());
        let mut run = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut run.stdin.take().unwrap(), b"a b.txt\r\n\nc.txt").unwrap();
        assert!(run.wait().unwrap().success(), "{arguments:?}");
    }
    assert_eq!(result(&project, "a b.txt"), "input a b.txt\n");
    assert_eq!(result(&project, "c.txt"), "input c.txt\n");
    let nothing = project.run(&["run", "--local=third", "-"]);
    assert_eq!((code(&nothing), stderr(&nothing).contains("names no file")), (2, true), "{}", stderr(&nothing));
    let both = project.run(&["run", "--local=third", "-", "c.txt"]);
    assert_eq!((code(&both), stderr(&both).contains("cannot be combined")), (2, true), "{}", stderr(&both));
}

#[test]
fn a_group_of_files_is_a_task() {
    let files = ["s 1_R1.fq", "s 1_R2.fq", "s2_R1.fq", "s2_R2.fq"];
    let project = Project::new(&files);
    project.program(r#"cat "$LIGHTHPC_INPUT_DIR"/*_R[12].fq > "$LIGHTHPC_OUTPUT"; echo "${LIGHTHPC_INPUT-none}" >> "$LIGHTHPC_OUTPUT""#);
    let run = |files: &[&str]| {
        let mut arguments = vec!["run", "--local", "--group-by", r"(.*)_R[12]\.fq$", "--group-size", "2"];
        arguments.extend(files);
        arguments.extend(["--", "./program.sh"]);
        project.run(&arguments)
    };
    let first = run(&files);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    assert_eq!(result(&project, "s 1"), "input s 1_R1.fq\ninput s 1_R2.fq\nnone\n");
    let again = run(&files);
    assert!(stderr(&again).contains("already done: 2"), "{}", stderr(&again));

    let alone = run(&["s2_R1.fq"]);
    assert_eq!(code(&alone), 2);
    assert!(stderr(&alone).contains("the group s2 has 1 input, not 2: s2_R1.fq"), "{}", stderr(&alone));
}

#[test]
fn the_same_files_in_another_mission_of_a_folder_are_other_tasks() {
    let project = Project::new(&["a.txt", "b_1.txt", "b_2.txt"]);
    for (mission, names) in [("one", ["a.txt", "b"]), ("two", ["two/a.txt", "two/b"]), ("two", ["two/a.txt", "two/b"])]
    {
        let exec = format!(r#"echo {mission} > {{output}}; cat "$LIGHTHPC_INPUT_DIR"/* >> {{output}}"#);
        let named = ["run", "--local", "--mission", mission, "--exec", &exec];
        let file = project.run(&[&named[..], &["a.txt"]].concat());
        let group = project.run(&[&named[..], &["--group-by", "(b)_", "b_1.txt", "b_2.txt"]].concat());
        assert_eq!((code(&file), code(&group)), (0, 0), "{}{}", stderr(&file), stderr(&group));
        assert_eq!(result(&project, names[0]), format!("{mission}\ninput a.txt\n"));
        assert_eq!(result(&project, names[1]), format!("{mission}\ninput b_1.txt\ninput b_2.txt\n"));
    }
    let status = project.run(&["status", "--local", "two", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["states"]["done"], 2, "{status}");
}

#[test]
fn what_is_wrong_is_found_before_anything_is_written() {
    let project = Project::new(&["a_1.txt"]);
    project.program(PRINT);
    std::fs::write(project.path("ok.csv"), "alpha\n1\n").unwrap();
    std::fs::write(project.path("ragged.csv"), "alpha,b\n1,2\n3\n").unwrap();
    for (arguments, words) in [
        (
            &["--csv", "ragged.csv", "--", "./program.sh"][..],
            "ragged.csv, line 3: it has 1 column, and the header has 2",
        ),
        (&["--csv", "none.csv", "--", "./program.sh"], "none.csv cannot be read"),
        (&["--csv", "ok.csv", "--", "./program.sh", "{param.beta}"], "{param.beta} has no value"),
        (&["--csv", "ok.csv", "--", "./program.sh", "{input}"], "{input} has no value"),
        (&["--csv", "ok.csv", "--exec", "sh -c 'echo {param.alpha}'"], "it is inside single quotes"),
        (&["--csv", "ok.csv", "--exec", "sh -c \"echo {param.alpha}\""], "a shell would run the value as code"),
        (&["--csv", "ok.csv", "--", "sh", "-c", "echo {param.typo} > {output}"], "has no value"),
        (&["a_1.txt", "--csv", "ok.csv"], "without input files"),
        (&["--csv", "ok.csv", "--array", "1-2"], "cannot be used with"),
        (&["--array", "2-1"], "must not be above the last"),
        (&["--group-by", "(.*)_1"], "no inputs to group"),
        (&["a_1.txt", "--group-by", "a_1"], "no group in parentheses"),
        (&["a_1.txt", "--group-by", "(b)"], "does not match the input a_1.txt"),
        (&["a_1.txt", "--", "./program.sh", "{index}"], "{index} has no value"),
        (&["a_1.txt", "--group-size", "2"], "--group-by"),
    ] {
        let mut command = vec!["run", "--local=new"];
        command.extend(arguments);
        let failed = project.run(&command);
        assert_eq!(code(&failed), 2, "{arguments:?}: {}", stderr(&failed));
        assert!(stderr(&failed).contains(words), "{arguments:?}: {}", stderr(&failed));
        assert!(!project.path("new").exists(), "{arguments:?}");
    }
}

/// A plan of a table's rows.
fn plan(rows: &[(&str, &str)]) -> SubmitPlan {
    let work =
        |(value, index): (&str, i64)| Work::of_params(index, BTreeMap::from([("p".to_owned(), value.to_owned())]));
    let works = rows.iter().zip(1..).map(|((name, value), index)| (src(&format!("M/{name}")), work((*value, index))));
    SubmitPlan {
        mission: mission_id("M"),
        name: None,
        bucket: None,
        srcs: rows.iter().map(|(name, _)| src(&format!("M/{name}"))).collect(),
        works: works.collect::<HashMap<_, _>>(),
        exec: None,
        nodes: None,
        slots: None,
        uploads: None,
        notify_on: None,
    }
}

#[tokio::test]
async fn a_name_is_reused_only_for_the_same_work() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    let submit = async |plan: &SubmitPlan| {
        let prepared = scheduler.prepare(plan).await?;
        scheduler.make_rows(plan, &prepared, |_| {}).await
    };
    let rows = [("a", "1"), ("b", "2")];
    assert_eq!(submit(&plan(&rows)).await.unwrap().made, 2);
    // In another order, and with one more.
    let more = submit(&plan(&[("c", "3"), ("b", "2"), ("a", "1")])).await.unwrap();
    assert_eq!((more.made, more.there), (1, 2));

    let plain = SubmitPlan { bucket: Some(SOURCE_BUCKET.to_owned()), works: HashMap::new(), ..plan(&rows) };
    for (other, words) in [(plan(&[("a", "2"), ("new", "9")]), "another value of p"), (plain, "other inputs")] {
        let error = submit(&other).await.unwrap_err();
        assert!(matches!(&error, SchedulerError::OtherWork { what, .. } if what.contains(words)), "{error:?}");
    }
    assert_eq!(cloud.backend.ledger.task(&src("M/new")).await.unwrap(), None, "nothing is written");
    assert_eq!(cloud.mission_row("M").await.trans_number, Some(3));
}

async fn row(cloud: &TestCloud, name: &str, work: Work) {
    let new = NewTask {
        src: src(name),
        mission: Some((mission_id("M"), 1)),
        bucket: None,
        work,
        now: "2026-01-01T00:00:00Z".to_owned(),
        trigger_time: String::new(),
        trigger: "test".to_owned(),
    };
    cloud.backend.ledger.create_task(&new).await.unwrap();
}

/// A task without a bucket, on a node that has no source bucket either; and one whose objects are in several buckets.
#[tokio::test]
async fn a_node_brings_what_a_task_works_on() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    cloud.input("x/1.txt", b"one").await;
    cloud.input("y/2.txt", b"two").await;
    row(&cloud, "params", Work::of_params(7, BTreeMap::from([("p".to_owned(), "a b".to_owned())]))).await;
    let sources =
        ["x/1.txt", "y/2.txt"].map(|key| ObjectName { bucket: SOURCE_BUCKET.to_owned(), key: key.to_owned() });
    row(&cloud, "pair", Work { inputs: Inputs::Several(sources.to_vec()), ..Work::default() }).await;
    row(&cloud, "key", Work { inputs: Inputs::Key("x/1.txt".to_owned()), ..Work::default() }).await;
    let line = r#"{ cat "${LIGHTHPC_INPUT_DIR:-/none}"/*; echo "$LIGHTHPC_INDEX $LIGHTHPC_PARAM_P"; echo "${LIGHTHPC_INPUT##*/}"; } > {output} 2>/dev/null; :"#;

    for name in ["params", "pair", "key"] {
        let mut node = cloud.node(name, "M").shell(line);
        node.settings.source_bucket = (name == "key").then(|| SOURCE_BUCKET.to_owned());
        node.run().await.outcome.unwrap();
    }

    assert_eq!(cloud.result("rslt_params").unwrap(), "7 a b\n\n");
    assert_eq!(cloud.result("rslt_pair").unwrap(), "onetwo \n\n");
    assert_eq!(cloud.result("rslt_key").unwrap(), "one \n1.txt\n");
}

/// What nobody can understand fails its task once, with the reason, and the others go on.
#[tokio::test]
async fn a_row_whose_work_cannot_be_understood_fails() {
    use aws_sdk_dynamodb::types::AttributeValue as Value;
    let text = |text: &str| Value::S(text.to_owned());
    let params = |name: &str, value: Value| Value::M(HashMap::from([(name.to_owned(), value)]));
    for (name, value, words) in [
        ("params", text("x"), "its params are \"x\", which is no map"),
        ("params", params("a b", text("1")), "cannot be the name of a variable"),
        ("params", params("a", Value::Bool(true)), "neither text nor a number"),
        ("sources", text("s3://b/k"), "no list of s3://BUCKET/KEY"),
        ("sources", Value::L(vec![text("b/k")]), "one of its sources is not s3://BUCKET/KEY"),
        ("sourceKey", Value::N("7".to_owned()), "its sourceKey is 7"),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        cloud.set_value("abc", name, value).await;

        let outcome = cloud.node("abc", "M").run().await.outcome.unwrap_err();

        let task = cloud.task("abc").await;
        assert_eq!((task.state, task.verdict), (State::Failed, Some(Verdict::Infra)), "{name}: {outcome}");
        assert!(task.error.unwrap().contains(words), "{name}: {outcome}");
    }
    // Another program's attribute of that name.
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.set_value("abc", "index", text("many")).await;
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "with another program's index").await;
}

/// A plan of objects that are submitted under other names than their keys.
fn plan_of_keys(mission: &str, keys: &[&str]) -> SubmitPlan {
    let work = |key: &str| Work { inputs: Inputs::Key(key.to_owned()), ..Work::default() };
    let name = |key: &&str| src(&format!("{mission}/{key}"));
    SubmitPlan {
        mission: mission_id(mission),
        bucket: Some(SOURCE_BUCKET.to_owned()),
        srcs: keys.iter().map(name).collect(),
        works: keys.iter().map(|key| (name(key), work(key))).collect(),
        ..plan(&[])
    }
}

#[tokio::test]
async fn the_same_objects_under_another_mission_are_other_tasks() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    cloud.input("in/a", b"abc").await;
    for mission in ["M", "N"] {
        let plan = plan_of_keys(mission, &["in/a"]);
        let prepared = scheduler.prepare(&plan).await.unwrap();
        assert_eq!(scheduler.make_rows(&plan, &prepared, |_| {}).await.unwrap().made, 1);
        let name = format!("{mission}/in/a");
        let line = format!(r#"echo "{mission} ${{LIGHTHPC_INPUT##*/}}" > {{output}}; cat {{input}} >> {{output}}"#);
        cloud.node(&name, mission).shell(&line).run().await.outcome.unwrap();
        assert_eq!(cloud.result(&format!("rslt_{name}")).unwrap(), format!("{mission} a\nabc"));
    }
}

async fn row_of(cloud: &TestCloud, name: &str, bucket: Option<&str>, work: Work) {
    let new = NewTask {
        src: src(name),
        mission: None,
        bucket: bucket.map(ToOwned::to_owned),
        work,
        now: "2026-01-01T00:00:00Z".to_owned(),
        trigger_time: String::new(),
        trigger: "ObjectCreated:Put".to_owned(),
    };
    cloud.backend.ledger.create_task(&new).await.unwrap();
}

/// What an event has made of an object ends only if nobody has claimed it, and it belongs to nobody.
#[tokio::test]
async fn the_task_that_an_event_made_of_a_submitted_object_ends_unless_it_was_claimed() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    cloud.mission("other", &["theirs"]).await;
    for key in ["new", "claimed", "done"] {
        cloud.input(key, key.as_bytes()).await;
        row_of(&cloud, key, Some(SOURCE_BUCKET), Work::default()).await;
    }
    cloud.node("done", "").run().await.outcome.unwrap();
    let text = |text: &str| aws_sdk_dynamodb::types::AttributeValue::S(text.to_owned());
    cloud.set_value("claimed", "attempt", aws_sdk_dynamodb::types::AttributeValue::N("1".to_owned())).await;
    cloud.set_value("claimed", "state", text("running")).await;

    // Other work that has the name of a key.
    row_of(&cloud, "elsewhere", Some("another-bucket"), Work::default()).await;
    row_of(&cloud, "params", None, Work::of_params(1, BTreeMap::new())).await;

    let plan = plan_of_keys("M", &["new", "claimed", "done", "theirs", "nothing", "elsewhere", "params"]);
    let prepared = scheduler.prepare(&plan).await.unwrap();
    scheduler.make_rows(&plan, &prepared, |_| {}).await.unwrap();

    let of_event = cloud.task("new").await;
    assert_eq!((of_event.state, of_event.verdict), (State::Failed, Some(Verdict::Cancelled)));
    assert!(of_event.error.unwrap().contains("submitted as a task of mission M"));
    assert_eq!((cloud.task("claimed").await.state, cloud.task("done").await.state), (State::Running, State::Done));
    for key in ["theirs", "elsewhere", "params"] {
        assert_eq!(cloud.task(key).await.state, State::Pending, "{key}");
    }
    assert_eq!(cloud.tally("M").await.failed, 0);
    assert_eq!(cloud.task("M/new").await.state, State::Pending);
}

/// An earlier version named the tasks of a prefix after their keys.
#[tokio::test]
async fn a_mission_that_an_earlier_version_submitted_keeps_its_names() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    cloud.mission("M", &["in/a", "in/b"]).await;
    let mut plan = plan_of_keys("M", &["in/a", "in/new"]);
    scheduler.keep_names(&mut plan).await.unwrap();
    assert_eq!(plan.srcs, [src("in/a"), src("M/in/new")]);
    assert_eq!(plan.works.len(), 1);
    let prepared = scheduler.prepare(&plan).await.unwrap();
    let submitted = scheduler.make_rows(&plan, &prepared, |_| {}).await.unwrap();
    assert_eq!((submitted.made, submitted.there), (1, 1));
    assert_eq!(cloud.mission_row("M").await.trans_number, Some(3));
}

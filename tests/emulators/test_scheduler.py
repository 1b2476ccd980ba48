"""The scheduler as a person uses it: submit, sweep, redrive, and cancel as processes, against DynamoDB, S3, and EC2.

Launches go to moto, which starts nothing: a case starts the node of an instance that it wants to live.
"""

import json

import pytest
from harness import scan, wait_until
from imds_server import ImdsServer, Instance

COPY = 'cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"\n'


@pytest.fixture
def account(cloud):
    """The cloud, with a launch template and the settings of a scheduler."""
    ec2 = cloud.clients.ec2
    name = f"nodes-{cloud.tasks.name}"
    ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "t3.micro"}
    )
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    cloud.settings = {
        "LIGHTHPC_LAUNCH_TEMPLATE": name,
        "LIGHTHPC_INSTANCE_TYPES": "t3.micro,t3.small",
        "LIGHTHPC_SUBNETS": subnet,
        "LIGHTHPC_LEASE": 3,
    }
    return cloud


def run(account, *arguments, code=0, **env):
    """Runs a command of the scheduler; returns what it printed."""
    finished = account.run_command(*arguments, **(account.settings | env))
    assert finished.returncode == code, finished.stderr
    return finished


def instances(account, *states):
    """The instances of this cloud: {id: tags}."""
    filters = [
        {"Name": "tag:lighthpc", "Values": [account.tasks.name]},
        {"Name": "instance-state-name", "Values": list(states or ("pending", "running"))},
    ]
    pages = account.clients.ec2.get_paginator("describe_instances").paginate(Filters=filters)
    found = [it for page in pages for reservation in page["Reservations"] for it in reservation["Instances"]]
    return {it["InstanceId"]: {tag["Key"]: tag["Value"] for tag in it["Tags"]} for it in found}


def start(account, instance_id, tags, *arguments, program):
    """Starts the node of an instance that a scheduler launched."""
    account._imds[instance_id] = ImdsServer(Instance(instance_id, tags=tags)).start()
    return account.start_node(instance_id, *arguments, program=program, LIGHTHPC_LEASE=3, LIGHTHPC_HEARTBEAT=1)


def findings(finished):
    """What a sweep printed: {(what, subject)}."""
    return {(line["what"], line["subject"]) for line in map(json.loads, finished.stdout.splitlines())}


def test_local_files_become_a_mission_and_its_nodes_do_it(account, tmp_path):
    files = []
    for name in ("one.txt", "two + ü.txt", "three.txt"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
        files.append(tmp_path / "in" / name)

    first = run(account, "submit", "--mission", "M001", "--name", "a try", "--json", *files)
    again = run(account, "submit", "--mission", "M001", "--json", *files)

    said = json.loads(first.stdout)
    estimate = said.pop("estimate")
    assert estimate["usdPerHour"]["low"] > 0 and estimate["warnings"] == []
    assert said | {"reasons": []} == {
        "mission": "M001",
        "isNew": True,
        "tasks": 3,
        "rowsMade": 3,
        "rowsThere": 0,
        "launched": 3,
        "waiting": 0,
        "reasons": [],
    }
    answer = json.loads(again.stdout)
    assert (answer["isNew"], answer["rowsMade"], answer["rowsThere"], answer["launched"]) == (False, 0, 3, 0)
    launched = instances(account)
    assert sorted(tags["srcID"] for tags in launched.values()) == ["M001/one.txt", "M001/three.txt", "M001/two + ü.txt"]
    assert {tags["missionID"] for tags in launched.values()} == {"M001"}
    nodes = [start(account, id, tags, program=account.script(COPY)) for id, tags in launched.items()]
    assert [node.wait().returncode for node in nodes] == [0, 0, 0]
    assert account.object("rslt_M001/two + ü.txt") == "two + ü.txt".encode()
    assert account.tally("M001") == (3, 0)
    assert len(wait_until(account.notifications, 10, "the notification arrives")) == 1
    assert instances(account) == {}


def test_a_few_nodes_serve_a_mission_of_keys(account):
    keys = [f"in/{n:03}" for n in range(40)]
    for key in keys:
        account.put_input(key, key.encode())
    exec_ = "cp $LIGHTHPC_INPUT $LIGHTHPC_OUTPUT"

    submitted = run(
        account,
        *("submit", "--mission", "M001", "--nodes", 2, "--slots", 3, "--exec", exec_),
        f"s3://{account.source_bucket}/in/",
    )

    assert "40 tasks: 40 rows created" in submitted.stdout and "2 launched" in submitted.stdout
    launched = instances(account)
    assert [("srcID" in tags, tags["missionID"]) for tags in launched.values()] == [(False, "M001")] * 2
    nodes = [start(account, id, tags, program=None) for id, tags in launched.items()]
    finished = [node.wait() for node in nodes]
    assert [one.returncode for one in finished] == [0, 0], finished[0].stderr
    assert account.tally("M001") == (40, 0)
    assert sorted(account.result_keys()) == [f"rslt_M001/{key}" for key in keys]
    assert {row["attempt"] for row in scan(account.tasks)} == {1}
    assert instances(account) == {}


def test_the_rows_of_a_table_become_a_mission(account, tmp_path):
    table = tmp_path / "sweep.tsv"
    table.write_text("name\talpha\none\t0.5\n'; echo harm\t$(echo b)\n")
    script = 'printf "%s|" {param.alpha} {index} "${LIGHTHPC_INPUT-none}" "$LIGHTHPC_SRC_ID" >{output}'
    arguments = ("submit", "--mission", "M001", "--nodes", 1, "--csv", table)

    shown = run(account, *arguments, "--dry-run", "--", "sh", "-c", script)
    submitted = run(account, *arguments, "--", "sh", "-c", script)
    again = run(account, *arguments, "--no-launch")
    table.write_text("name\talpha\none\t0.7\n")
    other = run(account, *arguments, "--no-launch", code=2)

    assert "M001/one  alpha=0.5  name=one" in shown.stdout
    assert "2 rows created" in submitted.stdout and "0 rows created, 2 already existed" in again.stdout
    assert "task M001/one exists, and it has another value of alpha" in other.stderr
    ((id, tags),) = instances(account).items()
    finished = start(account, id, tags, program=None).wait()
    assert finished.returncode == 0, finished.stderr
    assert account.object("rslt_M001/one") == b"0.5|1|none|M001/one|"
    assert account.object("rslt_M001/'; echo harm") == b"$(echo b)|2|none|M001/'; echo harm|"
    assert account.tally("M001") == (2, 0)


def test_pairs_of_files_become_a_mission(account, tmp_path):
    for name in ("s 1_R1.fq", "s 1_R2.fq", "s2_R1.fq", "s2_R2.fq"):
        (tmp_path / name).write_text(name)
    arguments = ("submit", "--mission", "M001", "--nodes", 1, "--group-by", r"(.*)_R[12]\.fq$", "--group-size", 2)
    exec_ = ("--exec", 'cat "$LIGHTHPC_INPUT_DIR"/*_R1.fq "$LIGHTHPC_INPUT_DIR"/*_R2.fq >{output}')

    submitted = run(account, *arguments, *exec_, *sorted(tmp_path.glob("*.fq")))
    again = run(account, *arguments, "--no-launch", *sorted(tmp_path.glob("*.fq")))
    alone = run(account, *arguments, "--no-launch", tmp_path / "s2_R1.fq", code=2)

    assert "2 rows created" in submitted.stdout and "2 already existed" in again.stdout
    assert "the group s2 has 1 input, not 2" in alone.stderr
    ((id, tags),) = instances(account).items()
    finished = start(account, id, tags, program=None).wait()
    assert finished.returncode == 0, finished.stderr
    assert account.object("rslt_M001/s 1") == b"s 1_R1.fqs 1_R2.fq"
    assert account.object("rslt_M001/s2") == b"s2_R1.fqs2_R2.fq"


def test_a_dry_run_shows_and_changes_nothing(account):
    account.put_input("in/a")

    shown = run(account, "submit", "--mission", "M001", "--dry-run", f"s3://{account.source_bucket}/in/")

    assert "in/a" in shown.stdout and "nothing was changed" in shown.stdout
    assert "USD" in shown.stdout
    assert account.mission("M001") is None and scan(account.tasks) == [] and instances(account) == {}


def bad(*arguments, env=None, code=2, says=""):
    return pytest.param(arguments, env or {}, code, says, id=says.replace(" ", "-") or str(arguments))


@pytest.mark.parametrize(
    ("arguments", "env", "code", "says"),
    [
        bad("s3://BUCKET/none/", says="at least one input"),
        bad("s3://elsewhere/x", says="not the source bucket"),
        bad("s3:///x", says="has no bucket"),
        bad("s3://BUCKET/in/", "--mission", "a/b", says="cannot be a mission's id"),
        bad("s3://BUCKET/in/", "more", says="cannot be combined with other inputs"),
        bad("/no/such/file", says="cannot be used"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_LAUNCH_TEMPLATE": ""}, says="no launch template"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_LAUNCH_TEMPLATE": "none-such"}, code=26, says="launch template"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_MAX_UNIT_PRICE": "a lot"}, says="a lot"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_BID_MODE": "cheap"}, says="cheap"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_BID_MODE": "mix"}, says="onDemandFloor"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_RESULT_BUCKET": "BUCKET"}, says="are both"),
        bad("s3://BUCKET/in/", env={"LIGHTHPC_TASKS_TABLE": "none-such"}, code=13, says="none-such"),
    ],
)
def test_bad_input_is_named_with_a_hint(account, arguments, env, code, says):
    account.put_input("in/a")
    here = account.source_bucket
    arguments = [text.replace("BUCKET", here) for text in arguments]
    env = {name: value.replace("BUCKET", here) for name, value in env.items()}

    finished = run(account, "submit", *arguments, code=code, **env)

    assert says in finished.stderr and "hint: " in finished.stderr, finished.stderr
    # What the submission refuses, its rehearsal refuses too; and neither has written anything.
    rehearsed = run(account, "submit", "--dry-run", *arguments, code=code, **env)
    assert says in rehearsed.stderr, rehearsed.stderr
    assert instances(account) == {} and scan(account.tasks) == [] and scan(account.missions) == []


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"LIGHTHPC_LAUNCH_TEMPLATE": ""}, 2),
        ({"LIGHTHPC_LAUNCH_TEMPLATE": "none-such"}, 26),
        ({"LIGHTHPC_SOURCE_BUCKET": "none-such-bucket"}, 14),
        ({"LIGHTHPC_BID_MODE": "mix"}, 2),
    ],
)
def test_files_go_up_only_once_nothing_can_refuse_the_submission(account, tmp_path, env, code):
    (tmp_path / "one.txt").write_text("one")

    run(account, "submit", "--mission", "M001", tmp_path / "one.txt", code=code, **env)
    run(account, "submit", "--mission", "M001", "--dry-run", tmp_path / "one.txt", code=code, **env)

    s3, bucket = account.clients.s3, account.source_bucket
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert scan(account.tasks) == [] and scan(account.missions) == []


def test_a_mission_of_another_kind_is_refused_and_the_same_objects_are_other_tasks_of_another_mission(account):
    account.put_input("in/a", b"abc")
    here = f"s3://{account.source_bucket}/in/"
    run(account, "submit", "--mission", "M001", "--exec", "echo 1 >{output}; cat {input} >>{output}", here)

    other = run(account, "submit", "--mission", "M001", "--exec", "false", here, code=2)
    run(account, "submit", "--mission", "M002", "--exec", "echo 2 >{output}; cat {input} >>{output}", here)

    assert "M001" in other.stderr and "one workload" in other.stderr
    nodes = [start(account, id, tags, program=None) for id, tags in instances(account).items()]
    assert [node.wait().returncode for node in nodes] == [0, 0]
    assert account.object("rslt_M001/in/a") == b"1\nabc"
    assert account.object("rslt_M002/in/a") == b"2\nabc"
    assert account.tally("M001") == account.tally("M002") == (1, 0)


def test_a_sweep_heals_what_was_lost_and_ends_what_leaked(account):
    for key in ("M001/lost", "M001/never"):
        account.put_input(key)
    run(account, "submit", "--mission", "M001", "--no-launch", f"s3://{account.source_bucket}/M001/")
    assert instances(account) == {}
    first = findings(run(account, "sweep", "--json"))
    assert first == {("launched", "M001/lost"), ("launched", "M001/never")}
    launched = {tags["srcID"]: (id, tags) for id, tags in instances(account).items()}
    id, tags = launched["M001/lost"]
    began = account.folder / "began"
    node = start(account, id, tags, program=account.script(f"touch '{began}'\nsleep 60\n" + COPY))
    wait_until(began.exists, 20, "the workload begins")
    node.close()
    account.clients.ec2.terminate_instances(InstanceIds=[id])
    account.clients.ec2.create_tags(
        Resources=[leak := account.launch_instance()], Tags=[{"Key": "lighthpc", "Value": account.tasks.name}]
    )

    second = findings(run(account, "sweep", "--json"))

    assert second == {("put-back", "M001/lost"), ("launched", "M001/lost"), ("ended", leak)}
    assert account.instance_state(leak) in ("shutting-down", "terminated")
    row = account.task("M001/lost")
    assert (row["state"], row["interruptions"], row["history"][0]["verdict"]) == ("pending", 1, "lost")
    for id, tags in instances(account).items():
        assert start(account, id, tags, program=account.script(COPY)).wait().returncode == 0
    assert account.tally("M001") == (2, 0)
    assert findings(run(account, "sweep", "--json")) == set()
    assert len(account.notifications()) == 1


def test_failed_tasks_are_redriven_and_a_mission_is_cancelled(account):
    account.put_input("in/a")
    here = f"s3://{account.source_bucket}/in/"
    run(account, "submit", "--mission", "M001", here)
    ((id, tags),) = instances(account).items()
    assert start(account, id, tags, program=account.script("exit 3\n")).wait().returncode == 20
    assert account.tally("M001") == (0, 1)

    none = run(account, "redrive", "M001", "--verdict", "oom")
    redriven = run(account, "redrive", "M001", "--verdict", "app-error")
    missing = run(account, "redrive", "M001", "in/none", code=2)

    assert "0 tasks set to pending" in none.stdout
    assert "1 task set to pending, 1 node launched" in redriven.stdout
    assert "in/none" in missing.stderr
    assert account.tally("M001") == (0, 0)
    ((id, tags),) = instances(account).items()
    began = account.folder / "began"
    node = start(account, id, tags, program=account.script(f"touch '{began}'\nsleep 60\n" + COPY))
    wait_until(began.exists, 20, "the workload begins")

    cancelled = run(account, "cancel", "M001", timeout_s=40)

    assert "is cancelled: 0 tasks ended, 1 requested to stop, 0 still running" in cancelled.stdout
    assert node.wait().returncode == 130
    row = account.task("M001/in/a")
    assert (row["state"], row["verdict"]) == ("failed", "cancelled")
    assert account.mission("M001")["notifyEmail"] == "Yes"
    assert instances(account) == {}
    assert "is cancelled" in run(account, "submit", "--mission", "M001", here, code=2).stderr
    assert "no mission M009" in run(account, "cancel", "M009", code=17).stderr
    assert "not a verdict" in run(account, "redrive", "M001", "--verdict", "bad", code=2).stderr


def test_the_function_is_no_function_off_lambda(account):
    finished = run(account, "lambda", code=2)
    assert "AWS_LAMBDA_RUNTIME_API" in finished.stderr and "hint: " in finished.stderr

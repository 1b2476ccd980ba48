"""The real binary as a process, from its instance's tag to its own end, against DynamoDB, S3, SNS, EC2, and IMDS.

Every case ends by reading rows and objects back with boto3. Whatever a case does to a node, its instance must end.
"""

import contextlib
import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import types

import harness
import pytest
from chaos_proxy import Events, Proxy
from harness import KEYS, wait_until

COPY = 'cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"\n'
SHORT_LEASE = ("--lease", 3, "--heartbeat", 1)

shifts_clocks = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler (cc) for the library that shifts a node's clock"
)


def waiting_script(cloud):
    """A program whose first attempt waits for a file, and whose later ones do not.

    Returns (program, the file that says that attempt 1 has begun, the file that lets it go on, and one that says
    that its work is done).
    """
    began, go, ended = (cloud.folder / f"script-{name}" for name in ("began", "go", "ended"))
    # The wait is bounded: a workload whose node was killed must not outlive the test for long.
    program = cloud.script(f"""
echo "40 waiting" >>"$LIGHTHPC_PROGRESS"
if [ "$LIGHTHPC_ATTEMPT" = 1 ]; then
    touch '{began}'
    n=0
    until [ -e '{go}' ] || [ "$n" -ge 500 ]; do n=$((n + 1)); sleep 0.1; done
fi
echo "attempt $LIGHTHPC_ATTEMPT" >"$LIGHTHPC_OUTPUT"
[ "$LIGHTHPC_ATTEMPT" != 1 ] || touch '{ended}'
""")
    return program, began, go, ended


def assert_done(cloud, src, content, attempt=1, uploads=0):
    """The row is done, and says of the result what S3 says of it; returns the row.

    `uploads` are begun and neither completed nor aborted.
    """
    row = cloud.task(src)
    key = f"rslt_{src}"
    head = cloud.object_head(key)
    assert cloud.object(key) == content
    assert row["state"] == "done"
    assert row["verdict"] == "ok"
    assert row["strIndiProgress"] == "100%"
    assert row["attempt"] == attempt
    assert row["rsltFilename"] == f"s3://{cloud.result_bucket}/{key}"
    assert row["resultBytes"] == len(content)
    assert row["resultETag"].strip('"') == head["ETag"].strip('"')
    assert re.fullmatch(r"\d+", row["timeCost"])
    assert len(cloud.uploads_in_progress()) == uploads
    return row


def assert_announced(cloud, mission, *words):
    """People were told exactly once, in the article's sense; returns the text."""
    wait_until(cloud.notifications, 10, "the notification arrives")
    notes = cloud.notifications()
    assert len(notes) == 1
    text = f"{notes[0].get('Subject') or ''}\n{notes[0]['Message']}"
    for word in ("HPC mission", mission, "accomplished at", *words):
        assert word in text
    assert cloud.mission(mission)["notifyEmail"] == "Yes"
    return text


def ahead_s(text):
    """How far a time, RFC 3339, is ahead of this machine's clock."""
    return datetime.datetime.fromisoformat(text).timestamp() - time.time()


def assert_hint(finished):
    """The user is told the cause and the next command."""
    assert [line for line in finished.stderr.splitlines() if "hint:" in line], finished.stderr


# The main road.


def test_a_task_goes_from_its_tag_to_a_committed_result(cloud):
    cloud.put_input("in/sample.txt", b"acgt\n")
    cloud.put_task("in/sample.txt", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="in/sample.txt", missionID="M001")
    program = cloud.python("""
import os
with open(os.environ["LIGHTHPC_INPUT"]) as file:
    text = file.read()
with open(os.environ["LIGHTHPC_OUTPUT"], "w") as file:
    file.write(text.upper())
""")

    finished = cloud.run_node(instance, program=program)

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "in/sample.txt", b"ACGT\n")
    assert row["execInstanceID"] == instance
    assert (row["bucketname"], row["numlog"]) == (cloud.source_bucket, "1"), "the scheduler's attributes are kept"
    assert int(cloud.mission("M001#tally#0")["transOK"]) == 1
    assert int(cloud.mission("M001")["transOK"]) == 1
    assert_announced(cloud, "M001")
    cloud.assert_terminated(instance)
    assert cloud.imds(instance).refused == 0, "it never asks without a token"


def test_the_workload_may_be_a_shell_command_line(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, LIGHTHPC_EXEC='tr a-z A-Z <"$LIGHTHPC_INPUT" >"$LIGHTHPC_OUTPUT"')

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"SOME INPUT\n")
    assert row["bucketname"] == cloud.source_bucket, "a node launched by hand makes the row"
    cloud.assert_terminated(instance)


def test_without_a_program_the_articles_workload_is_simulated(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, "--steps", 2, "--step-seconds", "0..0")

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", cloud.object("rslt_a"))
    cloud.assert_terminated(instance)


def test_tags_come_from_ec2_where_imds_does_not_offer_them(cloud):
    cloud.put_input("a b/文件.txt")
    cloud.put_mission("M001", 2)
    instance = cloud.launch_instance(srcID="a b/文件.txt", missionID="M001")
    cloud.imds(instance).default.tags_enabled = False

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a b/文件.txt", b"some input\n")
    assert cloud.tally("M001") == (1, 0)
    cloud.assert_terminated(instance)


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_illness_of_imds_is_survived(cloud, status):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    cloud.imds(instance).fail_next(2, status)

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", b"some input\n")
    cloud.assert_terminated(instance)


def test_a_task_that_is_done_is_left_alone(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001", state="done", attempt=3, strIndiProgress="100%", rsltFilename="s3://elsewhere/rslt_a")
    cloud.put_mission("M001", 5)
    before = cloud.task("a")
    instance = cloud.launch_instance(srcID="a", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script(f"touch '{cloud.folder}/script-ran'\n" + COPY))

    assert finished.returncode == 0, finished.stderr
    assert cloud.task("a") == before
    assert cloud.keys() == []
    assert cloud.tally("M001") == (0, 0)
    assert not (cloud.folder / "script-ran").exists()
    cloud.assert_terminated(instance)


def test_nothing_is_a_valid_input_and_a_valid_result(cloud):
    cloud.put_input("empty", b"")
    instance = cloud.launch_instance(srcID="empty")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "empty", b"")
    cloud.assert_terminated(instance)


def test_forty_mebibytes_come_down_and_go_up_unchanged(cloud):
    content = os.urandom(40 << 20)
    cloud.put_input("large", content)
    instance = cloud.launch_instance(srcID="large")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "large", content)
    assert re.search(r"-\d+\W?$", row["resultETag"]), "it was a multipart upload"
    cloud.assert_terminated(instance)


def test_a_directory_goes_up_file_by_file(cloud):
    cloud.put_input("in/a")
    instance = cloud.launch_instance(srcID="in/a")
    program = cloud.script("""
mkdir -p "$LIGHTHPC_OUTPUT/deep/er"
echo one >"$LIGHTHPC_OUTPUT/one.txt"
echo two >"$LIGHTHPC_OUTPUT/deep/er/two + 2.txt"
: >"$LIGHTHPC_OUTPUT/deep/empty"
""")

    finished = cloud.run_node(instance, program=program)

    assert finished.returncode == 0, finished.stderr
    assert cloud.object("rslt_in/a/one.txt") == b"one\n"
    assert cloud.object("rslt_in/a/deep/er/two + 2.txt") == b"two\n"
    assert cloud.object("rslt_in/a/deep/empty") == b""
    row = cloud.task("in/a")
    assert (row["state"], row["verdict"]) == ("done", "ok")
    assert row["rsltFilename"].startswith(f"s3://{cloud.result_bucket}/rslt_in/a")
    cloud.assert_terminated(instance)


ODD_KEYS = [
    "a b+c.txt",
    "x/../y.txt",
    "../../../up",
    "ünïcödé/文件.dat",
    "100%/a%2Fb",
    "/lead",
    "trail/",
    "two//slashes",
    "q?x=1&y#z",
    "-rf",
    "k" * 1019,  # its result key has 1,024 bytes, all that S3 allows
    "ü" * 509 + "k",  # the same, of two-byte characters
]


@pytest.mark.parametrize("src", ODD_KEYS, ids=lambda src: src if len(src) < 30 else f"{len(src)}-characters")
def test_any_s3_key_is_a_legal_source(cloud, src):
    cloud.put_input(src, src.encode())
    if len(src) <= 256:
        instance, arguments = cloud.launch_instance(srcID=src), []
    else:  # no tag can hold it
        instance, arguments = cloud.launch_instance(lighthpc=cloud.tasks.name), [f"--src-id={src}"]
    program = cloud.script(
        'printf %s "$LIGHTHPC_SRC_ID" >"$LIGHTHPC_SCRATCH/id"\n'
        'cat "$LIGHTHPC_INPUT" "$LIGHTHPC_SCRATCH/id" >"$LIGHTHPC_OUTPUT"\n'
    )

    finished = cloud.run_node(instance, *arguments, program=program)

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, src, src.encode() * 2)
    assert cloud.result_keys() == [f"rslt_{src}"]
    ours = ("work-", "node-", "script-")
    assert [path.name for path in cloud.folder.iterdir() if not path.name.startswith(ours)] == []
    cloud.assert_terminated(instance)


# Missions.


def test_rows_of_the_first_version_are_carried_on(cloud):
    mission = {
        "timePush": "2019-11-11T11:11:11",
        "bidMode": "Spot",
        "bidInstanceType": "c5.large",
        "maxUnitprice": "0.05",
        "maxWaitTime": "3600",
        "timeCfg": "2019-11-11 11:11:11",
        "transNumber": "2",
        "transOK": "0",
        "rsltList": ["rsltList"],
        "notifyEmail": "No",
    }
    key = mission["timePush"]
    cloud.missions.put_item(Item=mission)
    for src in ("a.mol", "b.mol"):
        cloud.put_input(src, src.encode())
        cloud.put_task(src, state=None, missionID=None)
    by_tag = cloud.launch_instance(srcID="a.mol", missionID=key)
    by_flag = cloud.launch_instance(srcID="b.mol")

    first = cloud.run_node(by_tag, program=cloud.script(COPY))
    early = cloud.notifications()
    second = cloud.run_node(by_flag, "--mission", key, program=cloud.script(COPY))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    results = [f"s3://{cloud.result_bucket}/rslt_{src}" for src in ("a.mol", "b.mol")]
    for src in ("a.mol", "b.mol"):
        assert assert_done(cloud, src, src.encode())["missionID"] == key
    row = cloud.mission(key)
    assert int(row["transOK"]) == 2
    assert row["rsltList"][0] == "rsltList" and sorted(row["rsltList"][1:]) == results
    assert {name: row[name] for name in ("bidMode", "maxUnitprice", "timeCfg")} == {
        name: mission[name] for name in ("bidMode", "maxUnitprice", "timeCfg")
    }
    assert not early, "nobody is told at half time"
    assert re.search(r"\b2\b", assert_announced(cloud, key).replace(key, ""))
    manifests = cloud.manifests(key)
    assert len(manifests) == 1
    (text,) = manifests.values()
    assert all(f"rslt_{src}" in text for src in ("a.mol", "b.mol"))
    cloud.assert_terminated(by_tag, by_flag)


def test_six_tasks_each_launched_twice_are_six_results_and_one_notification(cloud):
    sources = [f"part {number}" for number in range(6)]
    cloud.put_mission("M001", len(sources))
    for src in sources:
        cloud.put_input(src, src.encode())
        cloud.put_task(src, "M001")
    # All six workloads end at once, so that their commits meet.
    here = cloud.folder / "script-here"
    program = cloud.script(
        f"""
touch '{here}'-$$
n=0
until set -- '{here}'-* && [ $# -ge {len(sources)} ] || [ "$n" -ge 200 ]; do n=$((n + 1)); sleep 0.05; done
"""
        + COPY
    )
    instances = [cloud.launch_instance(srcID=src, missionID="M001") for src in sources * 2]

    nodes = [cloud.start_node(instance, "--lease", 6, "--heartbeat", 1, program=program) for instance in instances]
    finished = [node.wait() for node in nodes]

    assert [one.returncode for one in finished] == [0] * 12, "\n".join(one.stderr for one in finished)
    for src in sources:
        assert_done(cloud, src, src.encode())
    assert sorted(cloud.result_keys()) == [f"rslt_{src}" for src in sources]
    assert cloud.tally("M001") == (6, 0)
    assert int(cloud.mission("M001")["transOK"]) == 6
    assert len(cloud.mission("M001")["rsltList"]) >= 6
    assert re.search(r"\b6\b", assert_announced(cloud, "M001"))
    cloud.assert_terminated(*instances)


def test_a_mission_that_does_not_say_how_many_tasks_it_has_is_never_announced(cloud):
    cloud.put_input("a")
    cloud.missions.put_item(Item={"timePush": "M001", "notifyEmail": "No"})
    instance = cloud.launch_instance(srcID="a", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", b"some input\n")
    assert cloud.tally("M001") == (1, 0)
    assert cloud.notifications() == []
    cloud.assert_terminated(instance)


def test_status_counts_and_lists_as_json(cloud):
    cloud.put_mission("M001", 3)
    cloud.put_input("one")
    cloud.put_task("one", "M001")
    cloud.put_task("two", "M001")
    instance = cloud.launch_instance(srcID="one", missionID="M001")
    assert cloud.run_node(instance, program=cloud.script(COPY)).returncode == 0

    status = cloud.run_command("status", "M001", "--json")

    assert status.returncode == 0, status.stderr
    told = json.loads(status.stdout)
    assert "M001" in json.dumps(told)
    counts = [value for _, value in leaves(told) if isinstance(value, int)]
    assert 1 in counts and 3 in counts
    assert {"done", "one", "two"} <= {value for _, value in leaves(told) if isinstance(value, str)}


def leaves(value, name=""):
    """All (name, value) pairs at the ends of a JSON value."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, key)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, name)]
    return [(name, value)]


# The workload's contract.


def test_the_workload_sees_its_contract_and_no_credentials(cloud):
    cloud.put_input("in/a.txt")
    instance = cloud.launch_instance(srcID="in/a.txt", missionID="M001")
    program = cloud.python("""
import json, os
seen = dict(os.environ)
assert os.path.isdir(seen["LIGHTHPC_SCRATCH"]) and os.path.isdir(seen["LIGHTHPC_CHECKPOINT_DIR"])
assert os.path.isfile(seen["LIGHTHPC_INPUT"]) and not os.path.exists(seen["LIGHTHPC_OUTPUT"])
open(os.path.join(seen["LIGHTHPC_SCRATCH"], "left behind"), "w").close()
with open(seen["LIGHTHPC_PROGRESS"], "a") as file:
    file.write("50%\\n")
with open(seen["LIGHTHPC_OUTPUT"], "w") as file:
    json.dump(seen, file)
""")
    keys = KEYS | {"AWS_SESSION_TOKEN": "a session token"}

    finished = cloud.run_node(instance, program=program, HOMEMADE="is kept", **keys)

    assert finished.returncode == 0, finished.stderr
    seen = json.loads(cloud.object("rslt_in/a.txt"))
    assert [name for name in seen if name.startswith("AWS_")] == []
    assert not [name for name, value in seen.items() if value in ("a session token", cloud.imds(instance).url)]
    assert seen["LIGHTHPC_SRC_ID"] == "in/a.txt"
    assert seen["LIGHTHPC_MISSION"] == "M001"
    assert seen["LIGHTHPC_ATTEMPT"] == "1"
    assert seen.get("LIGHTHPC_RESUMED", "0") in ("", "0")
    assert not os.path.exists(seen["LIGHTHPC_SCRATCH"])
    cloud.assert_terminated(instance)


def test_two_hundred_megabytes_on_stdout_do_not_block(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    program = cloud.script('yes "a line that nobody is going to read" | head -c 200000000\n' + COPY)

    finished = cloud.run_node(instance, program=program)

    assert finished.returncode == 0, finished.stderr[-2000:]
    assert_done(cloud, "a", b"some input\n")
    cloud.assert_terminated(instance)


def test_chatty_progress_is_coalesced_and_nonsense_is_warned_about_once(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    program = cloud.python("""
import os, time
with open(os.environ["LIGHTHPC_PROGRESS"], "a", buffering=1) as progress:
    for line in range(2000):
        progress.write("nearly there\\n" if line % 400 == 7 else f"{line / 20}% step {line}\\n")
        time.sleep(0.0015)
open(os.environ["LIGHTHPC_OUTPUT"], "w").close()
""")

    finished = cloud.run_node(instance, "--lease", 5, "--heartbeat", 1, program=program)

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"")
    assert 1 <= row["beat"] <= 8
    assert len(finished.says("warn", "progress")) == 1, finished.stderr
    cloud.assert_terminated(instance)


# What goes wrong: exit code, row, hint, and always the instance's end.


def test_a_failing_workload_is_final_and_counted(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script('echo "no such atom" >&2\nexit 3\n'))

    assert finished.returncode == 20, finished.stderr
    assert_hint(finished)
    row = cloud.task("a")
    assert (row["state"], row["verdict"], row["exitCode"]) == ("failed", "app-error", 3)
    assert "rsltFilename" not in row
    assert cloud.result_keys() == []
    assert cloud.tally("M001") == (0, 1)
    text = assert_announced(cloud, "M001")
    assert re.search(r"1\s+failed|failed\D{0,12}1\b", text, re.IGNORECASE), text
    cloud.assert_terminated(instance)


def no_source_bucket(cloud):
    return {"LIGHTHPC_SOURCE_BUCKET": "no-such-bucket-anywhere"}


def no_result_bucket(cloud):
    return {"LIGHTHPC_RESULT_BUCKET": "no-such-bucket-anywhere"}


def no_tasks_table(cloud):
    return {"LIGHTHPC_TASKS_TABLE": "no-such-table"}


def another_tables_key(cloud):
    return {"LIGHTHPC_TASKS_TABLE": cloud.table_with_key("id")}


@pytest.mark.parametrize(
    ("setting", "code"),
    [(no_tasks_table, 13), (no_source_bucket, 14), (no_result_bucket, 14), (another_tables_key, 15)],
)
def test_a_wrong_setting_has_an_exit_code_and_a_hint(cloud, setting, code):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, program=cloud.script(COPY), **setting(cloud))

    assert finished.returncode == code, finished.stderr
    assert_hint(finished)
    assert "panicked" not in finished.stderr
    assert cloud.keys() == []
    assert (cloud.task("a") or {}).get("state") != "done"
    cloud.assert_terminated(instance)


def test_a_missing_input_fails_the_task(cloud):
    cloud.put_task("never put", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="never put", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 16, finished.stderr
    assert_hint(finished)
    assert cloud.task("never put")["state"] == "failed"
    assert cloud.tally("M001") == (0, 1)
    cloud.assert_terminated(instance)


def test_no_result_is_not_an_empty_result(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, program=cloud.script("exit 0\n"))

    assert finished.returncode == 22, finished.stderr
    assert_hint(finished)
    row = cloud.task("a")
    assert (row["state"], row["verdict"]) == ("failed", "no-result")
    assert cloud.result_keys() == []
    cloud.assert_terminated(instance)


@pytest.fixture
def memory_cgroup():
    """A cgroup with room for a node, and not for a workload that wants more."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(harness.small_cgroup(256 << 20))
        except OSError as error:
            pytest.skip(f"no cgroup with a memory limit can be made here: {error}")
        yield folder


@pytest.mark.parametrize("eater", ["is the program", "is its child"])
def test_a_workload_that_the_kernel_ends_for_want_of_memory_is_named_as_that(memory_cgroup, cloud, eater):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")
    # The score makes sure that the kernel chooses the eater, and neither the node nor the shell between them.
    program = cloud.python("""
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
eaten = [b"x" * (1 << 20) for _ in range(1024)]
""")
    if eater == "is its child":
        python, path = program
        program = cloud.script(f"'{python}' '{path}'\n")

    finished = cloud.run_node(instance, program=program, cgroup=memory_cgroup)

    assert finished.returncode == 25, finished.stderr
    assert_hint(finished)
    row = cloud.task("a")
    assert (row["state"], row["verdict"], row["appFailures"]) == ("failed", "oom", 1)
    assert cloud.result_keys() == []
    assert cloud.tally("M001") == (0, 1)
    assert_announced(cloud, "M001")
    cloud.assert_terminated(instance)


def test_a_program_that_is_not_there(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, program=["/no/such/program"])

    assert finished.returncode == 21, finished.stderr
    assert_hint(finished)
    assert "/no/such/program" in finished.stderr
    assert (cloud.task("a") or {}).get("state") != "done"
    cloud.assert_terminated(instance)


@pytest.mark.parametrize(
    ("tags", "env", "is_ended"),
    [
        ({"Name": "nobody's"}, {}, False),
        ({}, {}, False),
        ({"Name": "nobody's"}, {"LIGHTHPC_TERMINATE": "1"}, True),
        ({"lighthpc": "tblTrans2"}, {}, True),
        ({"lighthpc": "tblTrans2"}, {"LIGHTHPC_NO_TERMINATE": "1"}, False),
        ({"lighthpc": "tblTrans2"}, {"LIGHTHPC_TERMINATE": "1", "LIGHTHPC_NO_TERMINATE": "1"}, False),
    ],
)
@pytest.mark.parametrize("in_imds", [True, False])
def test_without_a_task_only_what_is_proved_to_be_a_node_ends(cloud, tags, env, is_ended, in_imds):
    instance = cloud.launch_instance(**tags)
    cloud.imds(instance).default.tags_enabled = in_imds

    finished = cloud.run_node(instance, program=cloud.script(COPY), **env)

    assert finished.returncode == 17, finished.stderr
    assert_hint(finished)
    if is_ended:
        cloud.assert_terminated(instance)
    else:
        cloud.assert_running(instance)
        assert finished.says("keeps running"), finished.stderr


def test_a_task_done_on_a_workstation_leaves_the_workstation_on(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(Name="my workstation")

    finished = cloud.run_node(instance, "--src-id", "a", program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", b"some input\n")
    cloud.assert_running(instance)


def test_a_workstation_whose_tags_cannot_be_read_is_left_on_without_an_order(cloud):
    bare, ordered = cloud.launch_instance(), cloud.launch_instance()
    with harness.refusing_ec2() as stub:
        for instance, env in ((bare, {}), (ordered, {"LIGHTHPC_TERMINATE": "1"})):
            cloud.imds(instance).default.tags_enabled = False
            finished = cloud.run_node(
                instance, "--src-id", instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_EC2=stub.url, **env
            )
            assert finished.returncode == 16, finished.stderr  # there is no such input

    cloud.assert_running(bare)
    assert cloud.power_off_mark(ordered).exists()


def test_two_processes_of_one_instance_do_not_take_up_each_others_task(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")
    program, began, go, _ = waiting_script(cloud)
    lease = ("--lease", 9, "--heartbeat", 1, "--no-terminate")

    first = cloud.start_node(instance, *lease, program=program)
    wait_until(began.exists, 20, "the workload begins")
    same_folder = cloud.run_node(instance, *lease, program=program)
    other_folder = cloud.run_node(instance, *lease, program=program, LIGHTHPC_WORK_DIR=cloud.folder / "work-other")
    held = cloud.task("a")
    go.touch()
    finished = first.wait()

    assert (same_folder.returncode, other_folder.returncode) == (0, 0), same_folder.stderr + other_folder.stderr
    assert (held["attempt"], held["execInstanceID"]) == (1, instance)
    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"attempt 1\n")
    assert len(row["history"]) == 1


def test_a_node_without_credentials_powers_off(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    cloud.imds(instance).default.role = None

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 10, finished.stderr
    assert_hint(finished)
    assert cloud.power_off_mark(instance).exists()


def test_a_node_that_may_not_use_the_table_ends(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    with harness.refusing_dynamodb() as stub:
        finished = cloud.run_node(instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_DYNAMODB=stub.url)

    assert finished.returncode == 11, finished.stderr
    assert_hint(finished)
    cloud.assert_terminated(instance)


def test_a_bucket_of_another_region_is_named_as_that(cloud):
    instance = cloud.launch_instance(srcID="a")

    with harness.s3_of_another_region() as stub:
        finished = cloud.run_node(instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_S3=stub.url)

    assert finished.returncode == 12, finished.stderr
    assert_hint(finished)
    cloud.assert_terminated(instance)


def test_a_node_that_may_not_terminate_itself_powers_off(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    with harness.refusing_ec2() as stub:
        finished = cloud.run_node(instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_EC2=stub.url)

    assert_done(cloud, "a", b"some input\n")
    assert any("TerminateInstances" in text for text in stub.asked)
    assert cloud.power_off_mark(instance).exists()
    assert finished.returncode == 0, finished.stderr


# Leases.


def test_a_node_that_was_killed_takes_its_own_task_up_at_once(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")
    program, began, go, _ = waiting_script(cloud)
    lease = ("--lease", 60, "--heartbeat", 1)

    killed = cloud.start_node(instance, *lease, program=program)
    wait_until(began.exists, 20, "the workload begins")
    wait_until(lambda: cloud.task("a").get("strIndiProgress") == "40%", 10, "the row shows its progress")
    killed.signal(signal.SIGKILL)
    assert killed.wait().returncode == -signal.SIGKILL
    assert cloud.task("a")["state"] == "running"
    again = cloud.run_node(instance, *lease, program=program)
    go.touch()  # what is left of the first workload may end now

    assert again.returncode == 0, again.stderr
    assert again.wall_s < 15, "it did not wait for a lease that is its own"
    assert_done(cloud, "a", b"attempt 2\n", attempt=2)
    assert cloud.tally("M001") == (1, 0)
    assert_announced(cloud, "M001")
    cloud.assert_terminated(instance)


def test_a_task_whose_instance_is_gone_is_taken_over_at_once(cloud):
    cloud.put_input("a")
    first, second = cloud.launch_instance(srcID="a"), cloud.launch_instance(srcID="a")
    program, began, go, _ = waiting_script(cloud)
    lease = ("--lease", 60, "--heartbeat", 1)

    lost = cloud.start_node(first, *lease, program=program)
    wait_until(began.exists, 20, "the workload begins")
    lost.signal(signal.SIGKILL)
    lost.wait()
    cloud.clients.ec2.terminate_instances(InstanceIds=[first])
    other = cloud.run_node(second, *lease, program=program)
    go.touch()

    assert other.returncode == 0, other.stderr
    row = assert_done(cloud, "a", b"attempt 2\n", attempt=2)
    assert row["execInstanceID"] == second
    cloud.assert_terminated(second)


@pytest.mark.parametrize("service", ["dynamodb", "s3"])
def test_an_outage_at_the_beginning_costs_time_and_nothing_else(cloud, service):
    # Longer than a holder may go without a renewal. Nobody holds the task before the claim is answered, and S3 has no
    # part in a lease.
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    program = cloud.script("sleep 2\n" + COPY)

    with Proxy(cloud.clients.endpoint, random.Random(1), Events(cloud.folder / "events"), rates={}) as proxy:
        proxy.outage(service, after_s=0, length_s=3)
        finished = cloud.run_node(instance, *SHORT_LEASE, program=program, AWS_ENDPOINT_URL=proxy.url)

    assert proxy.events.outages, "the outage met the node"
    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"some input\n")
    assert [entry["verdict"] for entry in row["history"]] == ["ok"]
    cloud.assert_terminated(instance)


@pytest.mark.parametrize(("answer", "dice"), [("first", 0.25), ("second", 0.75)])
def test_every_request_may_arrive_twice(cloud, answer, dice):
    # `answer` is the one that the node hears.
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")
    program = cloud.script("sleep 2\n" + COPY)

    always = types.SimpleNamespace(random=lambda: dice)
    with Proxy(cloud.clients.endpoint, always, Events(cloud.folder / "events"), rates={"repeat": 1}) as proxy:
        finished = cloud.run_node(instance, *SHORT_LEASE, program=program, AWS_ENDPOINT_URL=proxy.url)

    assert finished.returncode == 0, finished.stderr
    # The upload by which the node tries its right to write is begun twice, and the node hears of one. The other has no
    # parts, so it costs nothing; the stack's rule for incomplete uploads removes it.
    row = assert_done(cloud, "a", b"some input\n", cloud.task("a")["attempt"], uploads=1)
    assert [entry["verdict"] for entry in row["history"] if entry["verdict"] != "lost"] == ["ok"]
    assert cloud.tally("M001") == (1, 0)
    assert 1 <= len(cloud.notifications()) <= 2, "SNS takes each message that it gets"
    cloud.assert_terminated(instance)


@shifts_clocks
@pytest.mark.parametrize("clock_s", [600, -600])
def test_a_duplicate_leaves_a_living_holder_whatever_its_clock_says(cloud, clock_s):
    cloud.put_input("a")
    first, second = cloud.launch_instance(srcID="a"), cloud.launch_instance(srcID="a")
    program, began, go, _ = waiting_script(cloud)
    lease = ("--lease", 9, "--heartbeat", 1)

    holder = cloud.start_node(first, *lease, program=program)
    wait_until(began.exists, 20, "the workload begins")
    duplicate = cloud.run_node(second, *lease, program=program, clock_s=clock_s, LIGHTHPC_LOG_FORMAT="json")
    held = cloud.task("a")
    go.touch()
    finished = holder.wait()

    line = json.loads(duplicate.stderr.splitlines()[0])
    assert abs(ahead_s(line["timestamp"]) - clock_s) < 60, "its clock is really another"
    assert duplicate.returncode == 0, duplicate.stderr
    assert duplicate.wall_s < 8, "it left at a beat, not at the lease's end"
    assert (held["state"], held["execInstanceID"], held["attempt"]) == ("running", first, 1)
    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"attempt 1\n")
    assert len(row["history"]) == 1
    cloud.assert_terminated(first, second)


@pytest.mark.parametrize(
    ("workload", "clock_s"),
    [
        ("runs on", 0),
        ("has ended", 0),
        pytest.param("runs on", 600, marks=shifts_clocks),
        pytest.param("has ended", -600, marks=shifts_clocks),
    ],
)
def test_a_frozen_node_that_wakes_up_writes_nothing(cloud, workload, clock_s):
    # `clock_s` is the second node's; nobody judges a lease by it.
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    first, second = (cloud.launch_instance(srcID="a", missionID="M001") for _ in range(2))
    program, began, go, ended = waiting_script(cloud)

    frozen = cloud.start_node(first, *SHORT_LEASE, program=program)
    wait_until(began.exists, 20, "the first workload begins")
    frozen.signal(signal.SIGSTOP)
    other = cloud.run_node(second, *SHORT_LEASE, program=program, clock_s=clock_s)
    row = assert_done(cloud, "a", b"attempt 2\n", attempt=2)
    head = cloud.object_head("rslt_a")
    if workload == "has ended":
        go.touch()
        wait_until(ended.exists, 10, "the first workload ends")
    frozen.signal(signal.SIGCONT)
    woken = frozen.wait(30)
    go.touch()

    assert other.returncode == 0, other.stderr
    assert 2.9 < other.wall_s < 20, "it took over after a lease of watching, neither sooner nor much later"
    assert abs(ahead_s(row["history"][-1]["started"]) - clock_s) < 60, "the second node's clock is really another"
    assert woken.returncode == 30, woken.stderr
    assert row["execInstanceID"] == second
    assert cloud.task("a") == row
    assert cloud.object("rslt_a") == b"attempt 2\n"
    assert cloud.object_head("rslt_a")["LastModified"] == head["LastModified"]
    assert cloud.result_keys() == ["rslt_a"]
    assert cloud.tally("M001") == (1, 0)
    assert_announced(cloud, "M001")
    cloud.assert_terminated(first, second)


def test_a_workload_that_fills_its_disk_has_that_verdict(cloud):
    """A small disk of its own, as a node's volume may be; only root may mount one."""
    work = cloud.folder / "work"
    work.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,mode=0700", "tmpfs", work], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        cloud.put_input("a")
        instance = cloud.launch_instance(srcID="a")
        program = cloud.script('dd if=/dev/zero of="$LIGHTHPC_SCRATCH/fill" bs=1M || exit 1\n')

        finished = cloud.run_node(instance, program=program, LIGHTHPC_WORK_DIR=work)

        assert finished.returncode == 18, finished.stderr
        assert_hint(finished)
        row = cloud.task("a")
        assert (row["state"], row["verdict"], row["appFailures"]) == ("pending", "disk-full", 1)
        cloud.assert_terminated(instance)
    finally:
        subprocess.run(["umount", work], check=True)

"""Missions of several tasks: results, the tally, and one notification."""

import itertools
import json
import re
import signal
import subprocess
import threading
import time

import chaos_proxy
import pytest
from attempts import COPY, assert_announced, assert_done
from harness import KEYS, hear_interrupts
from recording import NoDice


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
    assert not early, "nobody is notified at half time"
    assert re.search(r"\b2\b", assert_announced(cloud, key).replace(key, ""))
    documents = cloud.mission_documents(key)
    assert sorted(documents) == [f"manifests/{key}.html", f"manifests/{key}.json"]
    assert all(f"rslt_{src}" in documents[f"manifests/{key}.json"] for src in ("a.mol", "b.mol"))
    assert all(src in documents[f"manifests/{key}.html"] for src in ("a.mol", "b.mol"))
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
    answer = json.loads(status.stdout)
    assert "M001" in json.dumps(answer)
    counts = [value for _, value in leaves(answer) if isinstance(value, int)]
    assert 1 in counts and 3 in counts
    listed = cloud.run_command("list", "M001", "--json")
    assert listed.returncode == 0, listed.stderr
    states = {task["srcFilename"]: task["state"] for task in json.loads(listed.stdout)["tasks"]}
    assert states == {"one": "done", "two": "pending"}


def test_what_failed_is_found_waited_for_and_fetched(cloud):
    """The commands that answer a user's questions, on the emulators: the failed task's reason, log, and the results."""
    cloud.put_mission("M001", 2)
    for name in ("one", "two"):
        cloud.put_input(name)
        cloud.put_task(name, "M001")
        instance = cloud.launch_instance(srcID=name, missionID="M001")
        program = cloud.script(COPY if name == "one" else "echo the end is near\nexit 42\n")
        cloud.run_node(instance, program=program)

    def run(*arguments, code=0):
        done = cloud.run_command(*arguments, LIGHTHPC_RESULT_BUCKET=cloud.result_bucket)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    status = json.loads(run("status", "M001", "--json"))
    assert status["states"] == {"pending": 0, "running": 0, "done": 1, "failed": 1}
    assert status["failures"]["groups"][0]["reason"] == "the workload exited with code 42"
    assert "next: lighthpc explain M001 two" in run("status", "M001")
    page = run("explain", "M001", "two")
    assert "app-error: the workload exited with code 42" in page and "the end is near" in page
    assert run("logs", "M001", "two") == "the end is near\n"
    run("wait", "M001", code=20)
    folder = cloud.folder / "fetched"
    assert "1 file of 1 result: 1 fetched" in run("fetch", "M001", "--to", folder)
    assert (folder / "one").read_bytes() == cloud.object("rslt_one")
    report = cloud.folder / "report.html"
    run("report", "M001", "-o", report)
    assert "the end is near" in report.read_text()
    history = cloud.task("two")["history"][0]
    assert (history["purchase"], history["exitCode"]) == ("spot", 42)


@pytest.mark.parametrize(
    "answered, command",
    [(4, ["wait", "M001"]), (4, ["logs", "M001", "one", "--follow"]), (0, ["sweep"]), (0, ["sweep", "--watch"])],
)
def test_interrupts_end_a_command_whose_service_does_not_answer(cloud, answered, command):
    cloud.put_mission("M001", 1)
    cloud.put_task("one", "M001")
    is_stalled, is_over = threading.Event(), threading.Event()
    # The first reads are answered: then the command waits for the mission.
    requests = itertools.count(1)

    def stall(*_):
        if next(requests) > answered:
            is_stalled.set()
            is_over.wait(60)

    with chaos_proxy.Proxy(cloud.clients.endpoint, NoDice(), None, rates={}) as proxy:
        proxy.on_request = stall
        env = cloud.environment(**KEYS, AWS_ENDPOINT_URL=proxy.url)
        with subprocess.Popen([cloud.binary, *command], env=env, stderr=subprocess.PIPE, preexec_fn=hear_interrupts) as shown:
            assert is_stalled.wait(60)
            began = time.monotonic()
            shown.send_signal(signal.SIGINT)
            if command[0] == "sweep":
                # The first asks it to end after its step.
                time.sleep(0.3)
                shown.send_signal(signal.SIGINT)
            assert shown.wait(30) == 130
            is_over.set()
        assert time.monotonic() - began < 3


def leaves(value, name=""):
    """All (name, value) pairs at the ends of a JSON value."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, key)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, name)]
    return [(name, value)]

"""Leases: killed, frozen and duplicate nodes, outages, and repeated requests."""

import json
import random
import signal
import subprocess
import types

import pytest
from attempts import (
    COPY,
    SHORT_LEASE,
    ahead_s,
    assert_announced,
    assert_done,
    assert_hint,
    shifts_clocks,
    waiting_script,
)
from chaos_proxy import Events, Proxy
from harness import wait_until


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

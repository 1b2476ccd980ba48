"""Boots the image for real: first as it should go, then one boot for each thing that can go wrong.

Every one of them must end in power-off, which is the instance's end, with the task done, failed by its own fault, or handed
back for another machine. Nothing here is timed but with bounds: the processor is emulated.
"""

import base64
import hashlib
import json
import re
import tarfile

import image as images
import pytest
from cfnlint.decode import cfn_yaml
from harness import REGION
from machine import HOST, settings_of, unit_at_boot

# A boot takes 20 to 80 s on two cores that also run the emulators; one that installs or waits takes up to 160 s.
OFF_S_MAX = 240
DEADLINE = "/etc/systemd/system/lighthpc-deadline"


def saboteur(*commands):
    """A unit that does something to the node, once it is at work."""
    script = "; ".join(commands)
    return unit_at_boot(
        "saboteur.service",
        "[Unit]\nAfter=lighthpc.service\n[Service]\nType=simple\n"
        f"ExecStart=/bin/bash -c '{script}'\nStandardOutput=journal+console\n",
    )


TASKS = 'systemctl list-units --plain --no-legend "lighthpc-task-*.service"'
WAIT_FOR_WORKLOAD = f"until {TASKS} | grep -q activating; do sleep 1; done"


@pytest.mark.short
def test_a_machine_finds_its_task_does_it_and_is_off(cloud, node):
    cloud.put_mission("M1", 1)
    machine = node("in/a-count", mission="M1")

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"], row["verdict"], row["execInstanceID"]) == ("done", 1, "ok", machine.instance)
    assert cloud.object(f"rslt_{machine.src}").strip() == b"11"
    assert cloud.mission("M1")["transOK"] == 1
    assert cloud.instance_state(machine.instance) in ("shutting-down", "terminated")
    assert machine.says("Started", "lighthpc.service") or machine.says("lighthpc", "claimed task")


# What the sandbox must not keep from a program; `workload/inside` tries it.
HONEST = {
    *("jit", "tree", "shared-memory", "threads", "name-servers", "host-names", "loopback", "netlink", "interfaces"),
    *("debugger", "affinity", "numa", "memfd", "temporary", "var-tmp", "user-name", "meminfo", "random", "tty", "device"),
}


@pytest.mark.short
def test_nothing_of_the_role_is_in_the_sandbox(cloud, node, tmp_path):
    # The metadata service over IPv6: an address of the machine's own, where something listens that root reaches.
    listener = unit_at_boot(
        "imds6.service",
        "[Unit]\nBefore=lighthpc.service\n[Service]\nType=simple\n"
        "ExecStartPre=/sbin/ip -6 addr add fd00:ec2::254/128 dev lo nodad\n"
        "ExecStart=/usr/bin/python3 -m http.server --bind fd00:ec2::254 80\n"
        "ExecStartPost=/bin/bash -c 'until (: </dev/tcp/fd00:ec2::254/80); do sleep 1; done; echo root reaches it'\n",
    )
    port = cloud.clients.endpoint.rsplit(":", 1)[1]
    pid = "/opt/boot-test/node"
    show = f"systemctl show -P MainPID lighthpc.service | grep -vx 0 >{pid}"
    tell = saboteur(f"until {show}; do sleep 0.2; done", f"chmod 644 {pid}")
    # The name servers' file is where a resolver would write it.
    resolver = unit_at_boot(
        "resolver.service",
        "[Unit]\nBefore=lighthpc.service\n[Service]\nType=oneshot\nRuntimeDirectory=boot-test\nRemainAfterExit=yes\n"
        "ExecStart=/bin/sh -c 'echo nameserver 192.0.2.53 >/run/boot-test/resolv.conf'\n"
        # Their modes must not be what keeps a workload from them, or what it is given from it.
        "ExecStart=/bin/chmod 0666 /dev/hwrng /dev/vda /dev/kmsg\n",
    ) | {"/etc/resolv.conf": "->/run/boot-test/resolv.conf", "/etc/hosts": "127.0.0.1 localhost\n"}
    files = listener | tell | resolver | {"/opt/boot-test/port": port}
    machine = node("a-sandbox", files=files, LIGHTHPC_DEVICES="/dev/hwrng,/dev/nvidia*", LIGHTHPC_WORK_LIMIT="96M")

    machine.wait_off(OFF_S_MAX)

    assert machine.says("root reaches it")
    tried = dict(line.split("=", 1) for line in cloud.object(f"rslt_{machine.src}").decode().splitlines())
    user, node_pid = tried.pop("user"), int(tried.pop("node"))
    is_open = {name for name, state in tried.items() if state == "open"}
    assert user == "lighthpc-task"
    assert node_pid > 1, "the node that is tried is not the one that runs"
    assert is_open == {"other4", "own-output", "own-scratch", "own-input", "tmp"} | HONEST, machine.says("rror(")
    assert len(tried) == 27 + 27 + len(HONEST)


@pytest.mark.short
def test_a_killed_daemon_is_started_again_and_takes_its_task_up(cloud, node):
    # Not before its checkpoint is saved, which the sandbox's user owns and the node restores for it: two folders, a link,
    # and a file. A save before has fewer, where the workload is slow to make them.
    line = "saved the checkpoint .* entries=4"
    saved = f'until journalctl --no-pager -u lighthpc.service | grep -q "{line}"; do sleep 1; done'
    kill = saboteur(WAIT_FOR_WORKLOAD, saved, "systemctl kill -s KILL --kill-whom=main lighthpc.service")
    machine = node("a-slow", files=kill, LIGHTHPC_CHECKPOINT_EVERY="3")

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"]) == ("done", 2)
    assert [past["verdict"] for past in row["history"]] == ["lost", "ok"]
    assert cloud.object(f"rslt_{machine.src}") == b"attempt 1\nattempt 2\n"


def test_tasks_side_by_side_have_users_of_their_own(cloud, node):
    cloud.put_mission("M2", 2)
    for src in ("M2/a-pair", "M2/b-pair"):
        cloud.put_input(src)
        cloud.put_task(src, "M2", openIn="M2#0", openAs="pending#2026-01-01T00:00:00.000Z")
    machine = node(None, tags={"missionID": "M2"}, LIGHTHPC_SLOTS="2")

    machine.wait_off(OFF_S_MAX)

    said = [cloud.object(f"rslt_M2/{letter}-pair").decode().splitlines() for letter in "ab"]
    assert sorted(said) == [["lighthpc-task"], ["lighthpc-task-1"]]


def test_a_hung_daemon_is_ended_by_the_watchdog_and_started_again(cloud, node):
    hurry = {"/etc/systemd/system/lighthpc.service.d/test.conf": "[Service]\nWatchdogSec=15\nTimeoutAbortSec=5\n"}
    stop = saboteur(WAIT_FOR_WORKLOAD, "systemctl kill -s STOP --kill-whom=main lighthpc.service")
    machine = node("a-slow", files=hurry | stop)

    machine.wait_off(OFF_S_MAX)

    assert machine.says("lighthpc.service", "Watchdog timeout")
    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"]) == ("done", 2)


def test_a_daemon_that_crashes_at_start_is_tried_three_times(cloud, node):
    crash = "[Service]\nExecStart=\nExecStart=/bin/sh -c 'echo about to crash; kill -SEGV $$$$'\n"
    machine = node("a-count", files={"/etc/systemd/system/lighthpc.service.d/test.conf": crash})

    machine.wait_off(OFF_S_MAX)

    assert len(machine.says("about to crash")) == 3
    assert cloud.task(machine.src)["state"] == "pending"


def test_a_daemon_that_the_kernel_ends_for_want_of_memory_is_started_again(cloud, node):
    limit = "systemctl set-property --runtime lighthpc.service MemoryMax={}"
    machine = node("a-slow", files=saboteur(WAIT_FOR_WORKLOAD, limit.format("1M"), limit.format("infinity")))

    machine.wait_off(OFF_S_MAX)

    assert machine.says("Memory cgroup out of memory: Killed process", "(lighthpc)")
    assert machine.says("the node crashed (signal): it is started again")
    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"]) == ("done", 2)


def test_a_machine_without_a_task_is_off_at_once(cloud, node):
    # Nor does EC2 end it: power-off has to.
    machine = node(None, tags={"Name": "nobody's"}, AWS_ENDPOINT_URL_EC2="http://169.254.169.1:9")

    machine.wait_off(OFF_S_MAX)

    assert machine.says("the node has stopped (exit-code, ")


def test_a_machine_without_a_network_is_off(cloud, node):
    machine = node("a-count", network=False)

    machine.wait_off(OFF_S_MAX + 120)

    assert cloud.task(machine.src)["state"] == "pending"
    assert machine.says("the node has stopped (exit-code, 19)")


def test_a_workload_that_takes_all_memory_ends_alone(cloud, node):
    machine = node("a-memory")

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["verdict"], row["attempt"]) == ("failed", "oom", 1)
    killed = machine.says("Killed process")
    assert killed and not any("lighthpc)" in line or "systemd" in line for line in killed)


def test_a_workload_that_forks_without_end_ends_with_its_time(cloud, node):
    machine = node("a-fork", LIGHTHPC_TIME_LIMIT="30", LIGHTHPC_MAX_ATTEMPTS="1")

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["verdict"], row["attempt"]) == ("failed", "timeout", 1)
    assert row["beat"] >= 3, "the node kept its lease meanwhile"


def test_at_the_end_of_its_life_a_node_hands_its_task_back(cloud, node):
    machine = node("a-sleep", LIGHTHPC_MAX_LIFETIME="20")

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"], row["interruptions"]) == ("pending", 1, 1)


def test_the_deadline_needs_no_daemon(cloud, node):
    # The node lives longer than it may, and does not know: its lifetime is not the one of the deadline.
    files = {
        f"{DEADLINE}.timer.d/test.conf": "[Timer]\nOnBootSec=\nOnBootSec=30s\nOnUnitInactiveSec=10s\n",
        f"{DEADLINE}.service.d/test.conf": "[Service]\nEnvironmentFile=\nEnvironment=LIGHTHPC_MAX_LIFETIME=40 LIGHTHPC_MAX_DRAIN=5\n",
        "/etc/systemd/system/lighthpc.service.d/test.conf": "[Service]\nWatchdogSec=0\nTimeoutStopSec=5\n",
    }
    stop = saboteur(WAIT_FOR_WORKLOAD, "systemctl kill -s STOP --kill-whom=main lighthpc.service")
    machine = node("a-sleep", files=files | stop)

    machine.wait_off(OFF_S_MAX)

    assert machine.says("this machine has been on for")
    # systemd wakes a process that it stops: within its lease the node still hands the task back, after that it is the sweep's.
    assert cloud.task(machine.src)["state"] in ("pending", "running")


def test_a_machine_whose_node_never_starts_is_off(cloud, node):
    files = {
        "/etc/systemd/system/lighthpc.service": "this is no unit file\n",
        f"{DEADLINE}.timer.d/test.conf": "[Timer]\nOnBootSec=\nOnBootSec=30s\nOnUnitInactiveSec=5s\n",
    }
    machine = node("a-count", files=files, LIGHTHPC_MAX_BOOT="40")

    machine.wait_off(OFF_S_MAX)

    assert machine.says("no node is running")
    assert cloud.task(machine.src)["state"] == "pending"


def test_a_unit_that_does_not_stop_does_not_keep_the_machine_on(cloud, node):
    stuck = (
        "[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sleep infinity\n"
        "TimeoutStopSec=infinity\nStandardOutput=null\n"
    )
    hurry = {"/etc/systemd/system/poweroff.target.d/test.conf": "[Unit]\nJobTimeoutSec=20s\n"}
    machine = node("a-count", files=unit_at_boot("stuck.service", stuck) | hurry)

    machine.wait_off(OFF_S_MAX)

    assert machine.says("poweroff.target", "timed out")
    assert cloud.task(machine.src)["state"] == "done"


def test_a_machine_that_cannot_boot_is_off(cloud, node):
    table = "/dev/disk/by-label/none /data ext4 x-systemd.device-timeout=5s 0 2\n"
    machine = node("a-count", files={"/etc/fstab": table})

    machine.wait_off(OFF_S_MAX)

    assert machine.says("this machine cannot boot")
    assert cloud.task(machine.src)["state"] == "pending"


def test_the_doctor_finds_a_node_well_and_a_stopped_service_ends_the_machine(cloud, node):
    look = "lighthpc doctor --json >/dev/console"
    machine = node("a-sleep", files=saboteur(WAIT_FOR_WORKLOAD, look, "systemctl stop lighthpc.service"))

    machine.wait_off(OFF_S_MAX)

    (line,) = [line for line in machine.console().splitlines() if '{"checks":' in line]
    report = json.loads(line[line.index("{") :])
    checks = {check["name"]: check["status"] for check in report["checks"]}
    assert {name: checks[name] for name in ("tags", "unit", "unit files", "sandbox", "disk")} == {
        "tags": "ok",
        "unit": "ok",
        "unit files": "ok",
        "sandbox": "ok",
        "disk": "warning",
    }, report
    assert report["failures"] == 0, report
    row = cloud.task(machine.src)
    assert (row["state"], row["history"][-1]["verdict"]) == ("pending", "cancelled")


def test_a_bus_that_dies_under_a_workload_makes_no_half_result(cloud, node):
    # systemd-run loses the unit that it waits for, and ends with 0.
    machine = node("a-halves", files=saboteur(WAIT_FOR_WORKLOAD, "sleep 2", "systemctl kill -s KILL dbus.service"))

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"], row["verdict"]) == ("done", 1, "ok")
    assert cloud.object(f"rslt_{machine.src}") == b"half\nwhole\n"


def test_a_power_off_by_anybody_hands_the_task_back(cloud, node):
    machine = node("a-sleep", files=saboteur(WAIT_FOR_WORKLOAD, "systemctl poweroff"))

    machine.wait_off(OFF_S_MAX)

    row = cloud.task(machine.src)
    assert (row["state"], row["attempt"], row["interruptions"]) == ("pending", 1, 1)
    assert row["history"][-1]["verdict"] == "cancelled"


# User data, as the stack's launch template has it, read by cloud-init.


def user_data(cloud, workload="", bundle=None):
    """The template's user data, with a test's names in place of the stack's."""
    template = cfn_yaml.load(str(images.ROOT / "cloudformation/stack.yaml"))
    data = template["Resources"]["LaunchTemplate"]["Properties"]["LaunchTemplateData"]["UserData"]
    text, parts = data["Fn::Base64"]["Fn::Sub"]
    key, digest = bundle or ("", "")
    values = {
        "AWS::Region": REGION,
        "Tasks": cloud.tasks.name,
        "Missions": cloud.missions.name,
        "Source": cloud.source_bucket,
        "Result": cloud.result_bucket,
        "Topic": cloud.topic_arn,
        "Slots": "1",
        "MaxLifetimeSeconds": "86400",
        "Base64": base64.b64encode(workload.encode()).decode(),
        "CodeBucket": cloud.source_bucket,
        "BundleKey": key,
        "BundleSha256": digest,
    }

    def fill(text):
        return re.sub(r"\$\{([A-Za-z0-9:]+)\}", lambda found: values[found[1]], text)

    def choose(part, wanted):
        chosen = part["Fn::If"][1 if wanted else 2]
        if isinstance(chosen, dict):
            chosen = chosen["Fn::Sub"]
        return fill(chosen if isinstance(chosen, str) else chosen[0])

    values["WorkloadLine"] = choose(parts["WorkloadLine"], workload)
    values["WorkloadFile"] = choose(parts["WorkloadFile"], workload)
    values["Installation"] = choose(parts["Installation"], bundle)
    # The emulators' address is the one thing that no stack would say.
    endpoints = "".join(f"    {k}={v}\n" for k, v in settings_of(cloud).items() if k.startswith("AWS_ENDPOINT"))
    return fill(text).replace("    AWS_REGION", f"{endpoints}    AWS_REGION", 1)


def test_user_data_is_in_place_before_the_node_of_a_baked_image_starts(cloud, node):
    machine = node("a-b", user_data=user_data(cloud, workload='tr a-z A-Z <"$LIGHTHPC_INPUT" >"$LIGHTHPC_OUTPUT"'))

    machine.wait_off(OFF_S_MAX)

    assert cloud.task(machine.src)["state"] == "done"
    assert cloud.object(f"rslt_{machine.src}") == b"SOME INPUT\n"


def test_a_machine_that_is_not_baked_installs_the_bundle_and_does_its_task(cloud, node, binary, tmp_path):
    bundle = tmp_path / "bundle.tar.gz"
    with tarfile.open(bundle, "w:gz", compresslevel=1) as archive:
        archive.add(images.make_bundle(tmp_path / "bundle", binary), "lighthpc")
    content = bundle.read_bytes()
    cloud.put_input("bundle", content)
    # What `aws s3 cp` does, for a system that has no AWS CLI; Amazon Linux has.
    url = cloud.clients.endpoint.replace("127.0.0.1", HOST)
    cli = (
        "#!/usr/bin/python3\nimport sys, urllib.request\nsource, target = sys.argv[-2:]\n"
        f'urllib.request.urlretrieve(source.replace("s3:/", "{url}"), target)\n'
    )
    data = user_data(cloud, "/opt/boot-test/try", ("bundle", hashlib.sha256(content).hexdigest()))
    machine = node("a-count", user_data=data, files={"/usr/local/bin/aws": cli}, disk=images.bare(tmp_path / "bare.img"))

    machine.wait_off(OFF_S_MAX)

    assert cloud.task(machine.src)["state"] == "done", machine.tail()
    assert machine.says("ok", "sandbox", "a workload cannot reach the role"), "the doctor tried the sandbox from inside"

"""The workload's environment: variables, output, and progress."""

import json
import os
import time

from attempts import COPY, assert_done
from harness import KEYS


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

"""What a node takes from its workload's machine while the workload runs: processor time and wake-ups.

`scripts/bench --idle SECONDS` runs this: one node with one task, whose workload reports its progress ten times a second.
The workload's own processes are not counted.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import bench_node
import harness

SECONDS_MIN, SECONDS_MAX = 10, 3600
START_S_MAX = 30
REPORTS = 10  # a second
WORKLOAD = """: >"$LIGHTHPC_OUTPUT"
for step in $(seq {steps}); do
    echo "$((step % 100))" >"$LIGHTHPC_PROGRESS"
    sleep {pause}
done
"""


def counts(pid):
    """The CPU seconds of a process without its children, and how often its threads were scheduled after a wait."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    wakes = 0
    for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        lines = dict(line.split(":\t") for line in status.read_text().splitlines() if ":\t" in line)
        wakes += int(lines["voluntary_ctxt_switches"])
    return cpu_s, wakes


def watch(cloud, binary, seconds):
    """Runs the node, and counts while its workload runs."""
    steps = int((seconds + 2 * START_S_MAX) * REPORTS)
    workload = cloud.script(WORKLOAD.format(steps=steps, pause=1 / REPORTS))
    cloud.put_input("in/idle.fa", bench_node.INPUT)
    cloud.put_mission("idle", 10)
    cloud.put_task("in/idle.fa", mission="idle")
    instance_id = cloud.launch_instance(srcID="in/idle.fa", missionID="idle")
    log = (cloud.folder / "log").open("w")
    with subprocess.Popen([binary, "run", "--", *workload], env=cloud.environment(instance_id), stderr=log) as node:
        try:
            wait_for_workload(node)
            started, before = time.monotonic(), counts(node.pid)
            time.sleep(seconds)
            after, took = counts(node.pid), time.monotonic() - started
        finally:
            node.terminate()
    return {
        "seconds": took,
        "cpu_percent": 100 * (after[0] - before[0]) / took,
        "wakes_per_s": (after[1] - before[1]) / took,
        "clock_tick_ms": 1e3 / os.sysconf("SC_CLK_TCK"),
    }


def wait_for_workload(node):
    """Waits until the node has a child, and two seconds more."""
    deadline = time.monotonic() + START_S_MAX
    while not any(file.read_text() for file in pathlib.Path(f"/proc/{node.pid}/task").glob("*/children")):
        if time.monotonic() > deadline or node.poll() is not None:
            sys.exit("bench: the workload did not start")
        time.sleep(0.1)
    time.sleep(2)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--idle", type=int, metavar="SECONDS", default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not SECONDS_MIN <= given.idle <= SECONDS_MAX:
        parser.error(f"--idle takes {SECONDS_MIN} to {SECONDS_MAX} seconds")
    return given


def main():
    given = arguments()
    binary = bench_node.program()
    with tempfile.TemporaryDirectory(prefix="lighthpc-bench-") as folder:
        with harness.ministack() as ministack, harness.moto() as moto:
            clients = harness.Clients(ministack.url, moto.url)
            clients.warm_up()
            cloud = harness.Cloud(clients, binary, pathlib.Path(folder))
            try:
                result = watch(cloud, binary, given.idle)
            finally:
                cloud.close()
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(
        "a node whose workload reports its progress {0} times a second, for {seconds:.0f} s:\n"
        "{cpu_percent:.3f} % of a core (precise to {1:.3f} %), {wakes_per_s:.1f} wake-ups a second".format(
            REPORTS, 100 * result["clock_tick_ms"] / 1e3 / result["seconds"], **result
        )
    )


if __name__ == "__main__":
    main()

"""What a node costs as a process, beside the article's steps in Python: CPU, wall time, peak memory.

`scripts/bench` runs this. Each run is a process of its own, with a task, an instance, and a metadata service of its
own; the kinds take turns, so that a busy machine is busy for all of them. No time is asserted: the exit code only says
whether every task came to its end.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import pathlib
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import harness

PEER = pathlib.Path(__file__).with_name("bench_peer.py")
RUN_S_MAX = 120
TASKS_MAX = 1_000  # each keeps an instance in moto and a metadata service here
INPUT = b">seq\nacgtacgt\n"
# The standard input of what runs in the background is /dev/null, so "go" comes by another descriptor.
START = 'exec 3<&0; { read -r _ <&3; exec "$@" 3<&- >stdout 2>stderr; } & echo $!'
FAILURE_CHARS_MAX = 1_000
PR_SET_CHILD_SUBREAPER = 36
MEASURES = {"cpu_ms": "CPU ms", "wall_ms": "wall ms", "rss_mib": "peak MiB"}


@dataclasses.dataclass
class Kind:
    """A way to do a task."""

    name: str
    label: str
    command: list
    env: dict
    is_peer: bool = False


@dataclasses.dataclass
class Run:
    """One process that ended: what it and the children it waited for cost, and what went wrong."""

    kind: str
    round: int
    cpu_ms: float
    wall_ms: float
    rss_mib: float  # of the largest single process
    failures: list


def program():
    """The program that is measured."""
    binary = pathlib.Path(os.environ.get("LIGHTHPC_BIN") or harness.ROOT / "target/release/lighthpc").absolute()
    if not os.access(binary, os.X_OK):
        sys.exit(f"bench: no program at {binary}: run cargo build --locked --release, or set LIGHTHPC_BIN")
    return binary


def adopt_orphans():
    """Makes us the parent of what our children leave behind (Linux: PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("bench: prctl(PR_SET_CHILD_SUBREAPER) failed; this needs Linux")


def measure(kind, number, command, env, folder):
    """Runs a command to its end.

    Peak memory survives exec, and a child that Python starts begins with Python's. So a shell of a MiB or two forks
    what becomes the command, and leaves; as the subreaper we inherit it, and wait for it ourselves. It holds until
    then: the shell must not be the one that waits for it, and its own start is not on the clock.
    """
    folder.mkdir(parents=True)
    start = ["/bin/sh", "-c", START, "sh", *map(str, command)]
    with subprocess.Popen(start, env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        pid = int(shell.stdout.readline())
        shell.wait()
        started = time.perf_counter()
        shell.stdin.write(b"go\n")
        shell.stdin.flush()
        has_ended = ended_within(pid, RUN_S_MAX)
        if not has_ended:
            os.kill(pid, signal.SIGKILL)  # a child that nobody has waited for: its id is still its own
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.perf_counter() - started
    failures = [] if has_ended else [f"not ended within {RUN_S_MAX} s"]
    code = os.waitstatus_to_exitcode(status)
    if has_ended and code != 0:
        words = (folder / "stderr").read_text(errors="replace").strip()
        failures.append(f"exit code {code}: {words[-FAILURE_CHARS_MAX:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(kind, number, cpu_s * 1e3, wall_s * 1e3, usage.ru_maxrss / 1024, failures)


def ended_within(pid, timeout_s):
    """Waits until a child has ended, without reaping it."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def kinds(cloud, binary, with_aws_cli):
    """What is compared. The first is the one that the ratios are about."""
    workload = cloud.script(': >"$LIGHTHPC_OUTPUT"\n')
    # Compiled modules are kept, as on any machine that runs a script twice.
    cache = os.environ.get("PYTHONPYCACHEPREFIX") or str(harness.ROOT / "target" / "pycache")
    python = {"PYTHONDONTWRITEBYTECODE": None, "PYTHONPYCACHEPREFIX": cache}
    simulated = [binary, "run", "--steps", "1", "--step-seconds", "0..0"]
    peer = [sys.executable, PEER]
    chosen = [
        Kind("script", "lighthpc, an empty sh script", [binary, "run", "--", *workload], {}),
        Kind("simulated", "lighthpc, simulated, no child", simulated, {}),
        Kind("python", "the article in Python", peer, python, is_peer=True),
    ]
    if with_aws_cli:
        chosen.append(Kind("aws-cli", "the same with `aws s3 cp`", [*peer, "--aws-cli"], python, is_peer=True))
    return chosen


def run_task(cloud, kind, number):
    """Makes a task, has it done, and looks whether it was."""
    name = f"{kind.name}-{number}"
    src, mission = f"in/{name}.fa", f"bench-{kind.name}"
    cloud.put_input(src, INPUT)
    # A row as its own scheduler wrote it: the article's has neither a state nor a mission, which its code names.
    cloud.put_task(src, **({"mission": None, "state": None} if kind.is_peer else {"mission": mission}))
    instance_id = cloud.launch_instance(srcID=src, missionID=mission)
    env = cloud.environment(instance_id, BENCH_MISSION=mission, **kind.env)
    run = measure(kind.name, number, kind.command, env, cloud.folder / name)

    row = cloud.task(src)
    is_done = row.get("strIndiProgress") == "100%" and (kind.is_peer or row["state"] == "done")
    if not is_done:
        run.failures.append(f"the row is not done: {row}")
    if cloud.object(f"rslt_{src}") is None:
        run.failures.append("there is no result")
    if cloud.instance_state(instance_id) not in ("shutting-down", "terminated"):
        run.failures.append("the instance is not ended")
    return run


def put_missions(cloud, chosen, tasks):
    """One mission for each kind, larger than what is run: no run is the last, and none publishes."""
    for kind in chosen:
        if kind.is_peer:
            row = {"timePush": f"bench-{kind.name}", "transNumber": str(tasks + 10), "transOK": "0"}
            cloud.missions.put_item(Item=row | {"rsltList": ["rsltList"], "notifyEmail": "No"})
        else:
            cloud.put_mission(f"bench-{kind.name}", tasks + 10)


def bench(binary, tasks, with_aws_cli, folder):
    """Runs everything; returns (kinds, runs, the cost of a process that does nothing)."""
    with harness.ministack() as ministack, harness.moto() as moto:
        clients = harness.Clients(ministack.url, moto.url)
        clients.warm_up()
        cloud = harness.Cloud(clients, binary, folder)
        try:
            chosen = kinds(cloud, binary, with_aws_cli)
            put_missions(cloud, chosen, tasks)
            # Round 0 warms the emulators, the page cache, and Python's compiled modules; it is checked, not counted.
            warm = [run_task(cloud, kind, 0) for kind in chosen]
            runs = []
            for number in range(1, tasks + 1):
                say(f"round {number} of {tasks}")
                turn = number % len(chosen)
                runs += [run_task(cloud, kind, number) for kind in chosen[turn:] + chosen[:turn]]
            env = cloud.environment()
            nothing = [measure("nothing", n, ["/bin/true"], env, folder / f"true-{n}") for n in range(5)]
        finally:
            cloud.close()
    failed = [run for run in warm + runs if run.failures]
    return chosen, runs, nothing, failed


def median(runs, measure_name):
    """The median of one measure; None if nothing ran well."""
    values = [getattr(run, measure_name) for run in runs if not run.failures]
    return statistics.median(values) if values else None


def statistics_of(runs, kinds):
    """The median of each measure, and its spread (the largest value ÷ the smallest, less 1), of each kind."""
    of = {kind: [run for run in runs if run.kind == kind] for kind in kinds}
    medians = {kind: {m: median(some, m) for m in MEASURES} for kind, some in of.items()}
    spread = {}
    for kind, some in of.items():
        values = {m: [getattr(run, m) for run in some] for m in MEASURES}
        spread[kind] = {m: max(found) / min(found) - 1 for m, found in values.items()}
    return medians, spread


def versions(commands):
    """The first line that each command prints."""
    asked = [subprocess.run(command, capture_output=True, text=True, check=True) for command in commands]
    return [answer.stdout.strip().split("\n")[0] for answer in asked]


def summary(chosen, runs, nothing, failed, tasks):
    """Everything measured, as one JSON value."""
    by_kind = {kind.name: [run for run in runs if run.kind == kind.name] for kind in chosen}
    medians = {name: {measure: median(some, measure) for measure in MEASURES} for name, some in by_kind.items()}
    ours = [kind.name for kind in chosen if not kind.is_peer]
    peers = [kind.name for kind in chosen if kind.is_peer]
    return {
        "tasks": tasks,
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "nothing": {measure: median(nothing, measure) for measure in MEASURES},
        "median": medians,
        "ratio": {
            peer: {name: {m: ratio(medians[peer][m], medians[name][m]) for m in MEASURES} for name in ours}
            for peer in peers
        },
        "runs": [dataclasses.asdict(run) for run in runs],
        "failed": [dataclasses.asdict(run) for run in failed],
    }


def ratio(peer, ours):
    """How many times more the peer takes; None if one of them did not run."""
    return peer / ours if peer is not None and ours else None


def table(chosen, result):
    """The summary for people."""
    rows = [["median of {tasks} runs".format(**result), *MEASURES.values(), "CPU min..max", "wall min..max"]]
    for kind in chosen:
        runs = [run for run in result["runs"] if run["kind"] == kind.name and not run["failures"]]
        spread = [
            f"{min(run[m] for run in runs):.1f}..{max(run[m] for run in runs):.1f}" if runs else "-"
            for m in ("cpu_ms", "wall_ms")
        ]
        rows.append([kind.label, *cells(result["median"][kind.name]), *spread])
    rows.append(["a process that does nothing", *cells(result["nothing"]), "", ""])
    labels = {kind.name: kind.label for kind in chosen}
    for peer, ours in result["ratio"].items():
        for name, ratios in ours.items():
            label = f"{labels[peer]} ÷ {labels[name]}"
            rows.append([label, *(f"{r:.1f} ×" if r is not None else "-" for r in ratios.values()), "", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for label, *numbers in rows:
        padded = [text.rjust(width) for text, width in zip(numbers, widths[1:])]
        lines.append("  ".join([label.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def cells(measures):
    """The measures as texts, in the table's order."""
    return [f"{measures[m]:.1f}" if measures[m] is not None else "-" for m in MEASURES]


def say(text):
    """Says what is being done."""
    print(text, file=sys.stderr, flush=True)


def positive(text):
    """Reads a number of tasks."""
    number = int(text)
    if not 1 <= number <= TASKS_MAX:
        raise argparse.ArgumentTypeError(f"a number from 1 to {TASKS_MAX} is needed")
    return number


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--tasks", type=positive, default=10, metavar="N")
    parser.add_argument("--aws-cli", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR")
    return parser.parse_args()


def main():
    """Runs, prints, and says by the exit code whether every task was done."""
    asked = arguments()
    binary = program()
    if asked.aws_cli and not shutil.which("aws"):
        sys.exit("bench: --aws-cli needs the program aws (AWS CLI) on the PATH")
    adopt_orphans()
    if asked.keep and asked.keep.exists():
        sys.exit(f"bench: --keep {asked.keep}: it is there already; name a new folder")
    with tempfile.TemporaryDirectory(prefix="lighthpc-bench-") as temporary:
        folder = asked.keep.absolute() if asked.keep else pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chosen, runs, nothing, failed = bench(str(binary), asked.tasks, asked.aws_cli, folder)
        result = summary(chosen, runs, nothing, failed, asked.tasks)
    print(json.dumps(result, indent=2) if asked.json else table(chosen, result))
    for run in failed:
        say(f"FAILED: {run.kind} {run.round}: {'; '.join(run.failures)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

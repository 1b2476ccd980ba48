"""What a mission of many short tasks costs on one machine, beside other programs that run many commands.

`scripts/bench --local TASKS` runs this. Each task copies a small file with `cat`. The kinds take turns. CPU time and
wall time are those of the whole run: start, tasks, end. xargs and GNU parallel keep no record of the tasks; HyperQueue
keeps it in memory. lighthpc keeps each step on the disk, so that a run goes on after `kill -9`.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
import tempfile

import bench_node

ROOT = pathlib.Path(__file__).parents[2]
HYPERQUEUE = pathlib.Path(__file__).with_name("bench_hyperqueue.py")
PEERS = ROOT / "target/bench"  # made by scripts/bench
TASKS_MAX = 5_000  # a run must end within bench_node.RUN_S_MAX
ROUNDS = 3
SLOTS = 2
NAMES = {
    "lighthpc": "lighthpc run --local",
    "hyperqueue": "HyperQueue, from Python",
    "parallel": "GNU parallel",
    "xargs": "xargs",
}


COPY = 'cat "$1" > "$2/out/${1##*/}"'  # also in bench_hyperqueue.py
# $0 is the folder of the run, $1 that of the inputs, $2 the number of slots, and $3 the program.
LINES = {
    "lighthpc": """exec "$3" run --local="$0/run" --slots "$2" --mission bench "$1"/* -- \\
        sh -c 'cat "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT"'""",
    "parallel": """ls "$1" | parallel --will-cite -j "$2" cat "$1/{}" '>' "$0/out/{}\"""",
    "xargs": f"""find "$1" -type f -print0 | xargs -0 -P "$2" -I FILE sh -c '{COPY}' sh FILE "$0\"""",
}


def command_of(kind, binary, folder, inputs):
    """The command of a kind, which copies each file of `inputs`."""
    if kind == "hyperqueue":
        return [PEERS / "bin/python", HYPERQUEUE, inputs, folder, str(SLOTS)]
    return ["/bin/sh", "-c", LINES[kind], folder, inputs, str(SLOTS), binary]


def kinds():
    """What can be measured here."""
    missing = []
    if shutil.which("parallel") is None:
        missing.append("parallel")
        bench_node.say("GNU parallel is not installed (on Debian: apt-get install parallel)")
    return [kind for kind in NAMES if kind not in missing]


def bench(binary, tasks, chosen, folder):
    """Runs the kinds in turns; returns the runs."""
    inputs = folder / "inputs"
    inputs.mkdir()
    for number in range(tasks):
        (inputs / f"f{number:06}").write_text(f"{number}\n")
    runs = []
    # Round 0 is not counted.
    for number in range(ROUNDS + 1):
        bench_node.say(f"round {number} of {ROUNDS}")
        for kind in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            run = run_once(kind, number, binary, tasks, folder / f"{kind}-{number}", inputs)
            runs += [run] if number or run.failures else []
    return runs


def run_once(kind, number, binary, tasks, folder, inputs):
    """Runs all tasks, and counts the copies."""
    out = folder / "place"
    (out / "out").mkdir(parents=True)
    run = bench_node.measure(kind, number, command_of(kind, binary, out, inputs), None, folder / "run")
    found = out / ("run/results" if kind == "lighthpc" else "out")
    copies = {file.name[-7:]: file.read_text() for file in found.glob("*f[0-9]*")}
    if copies != {f"f{number:06}": f"{number}\n" for number in range(tasks)}:
        run.failures.append(f"the {len(copies)} copies are not those of {tasks} tasks")
    # The folder stays for now: ext4 makes new files slowly while many were removed in the last minutes.
    return run


def summary(runs, tasks, chosen):
    """Everything measured, as one JSON value."""
    median, spread = bench_node.statistics_of(runs, chosen)
    return {
        "tasks": tasks,
        "slots": SLOTS,
        "versions": versions(chosen),
        "median": median,
        "spread": spread,
        "ratio": {
            kind: {m: bench_node.ratio(median["lighthpc"][m], median[kind][m]) for m in bench_node.MEASURES}
            for kind in chosen
        },
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def versions(chosen):
    """The versions of the peers."""
    show = "import importlib.metadata as m; print('HyperQueue', m.version('hyperqueue'))"
    commands = {
        "hyperqueue": [PEERS / "bin/python", "-c", show],
        "parallel": ["parallel", "--version"],
        "xargs": ["xargs", "--version"],
    }
    return bench_node.versions(commands[kind] for kind in chosen[1:])


def table(result):
    """The summary for people."""
    tasks = result["tasks"]
    lines = [
        f"{tasks} tasks, {SLOTS} at a time",
        f"{'median of ' + str(ROUNDS) + ' runs':26}{'wall time s':>12}{'CPU ms a task':>16}{'spread %':>10}"
        f"{'wall time':>12}{'CPU':>9}",
    ]
    for kind, median in result["median"].items():
        ratio, spread = result["ratio"][kind], 100 * result["spread"][kind]["cpu_ms"]
        lines.append(
            f"{NAMES[kind]:26}{median['wall_ms'] / 1e3:12.2f}{median['cpu_ms'] / tasks:16.2f}{spread:10.0f}"
            f"{ratio['wall_ms']:10.2f} ×{ratio['cpu_ms']:7.2f} ×"
        )
    lines.append("The last two: lighthpc ÷ this kind. " + ", ".join(result["versions"]))
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--local", type=int, metavar="TASKS", default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not 1 <= given.local <= TASKS_MAX:
        parser.error(f"--local takes 1 to {TASKS_MAX} tasks")
    return given


def main():
    given = arguments()
    bench_node.adopt_orphans()
    chosen = kinds()
    with tempfile.TemporaryDirectory(prefix="lighthpc-bench-") as folder:
        runs = bench(bench_node.program(), given.local, chosen, pathlib.Path(folder))
    failed = [f"{run.kind}, round {run.round}: {words}" for run in runs for words in run.failures]
    if failed:
        sys.exit("\n".join(failed))
    result = summary(runs, given.local, chosen)
    print(json.dumps(result, indent=2) if given.json else table(result))


if __name__ == "__main__":
    main()

"""How much memory and time `lighthpc sweep` and `lighthpc status` take for a mission of many tasks that wait.

`scripts/bench --sweep TASKS` runs this. The rows are made by `lighthpc submit` on the tests' emulator of DynamoDB, which
is the bottleneck; the peak memory is the program's own. A sweep reads open tasks in pages, so memory must not grow with
their number: the same is measured with a tenth of the tasks. No figure is asserted.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

import bench_node
import harness

TASKS_MAX = 500_000


def bench(binary, tasks, folder):
    """Makes missions of a tenth, and of all the tasks, and sweeps after each; returns the runs."""
    runs = {}
    with harness.ministack() as ministack, harness.moto() as moto:
        clients = harness.Clients(ministack.url, moto.url)
        clients.warm_up()
        cloud = harness.Cloud(clients, binary, folder)
        try:
            env = cloud.environment(**harness.KEYS, AWS_EC2_METADATA_DISABLED="true", AWS_DEFAULT_REGION=harness.REGION)
            made = 0
            for number, count in enumerate((max(tasks // 10, 1), tasks)):
                bench_node.say(f"{count} tasks that wait")
                keys = folder / f"{number}.keys"
                keys.write_text("".join(f"m{number}/{n:06}\n" for n in range(count - made)))
                line = 'exec "$0" submit --mission "$1" --no-launch - <"$2"'
                command = ["/bin/sh", "-c", line, binary, f"m{number}", keys]
                made_rows = bench_node.measure("submit", number, command, env, folder / f"submit-{number}")
                swept = bench_node.measure("sweep", number, [binary, "sweep", "--json"], env, folder / f"sweep-{number}")
                swept.failures += made_rows.failures
                shown = [binary, "status", f"m{number}"]
                status = bench_node.measure("status", number, shown, env, folder / f"status-{number}")
                runs[count] = [swept, status]
                made = count
        finally:
            cloud.close()
    return runs


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=int, metavar="TASKS", required=True)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not 10 <= asked.sweep <= TASKS_MAX:
        parser.error(f"--sweep: a number from 10 to {TASKS_MAX} is needed")
    return asked


def main():
    """Runs, prints, and says by the exit code whether every sweep ended well."""
    asked = arguments()
    binary = pathlib.Path(os.environ.get("LIGHTHPC_BIN") or harness.ROOT / "target/release/lighthpc").absolute()
    if not os.access(binary, os.X_OK):
        sys.exit(f"bench: no program at {binary}: run cargo build --locked --release, or set LIGHTHPC_BIN")
    bench_node.adopt_orphans()
    bench_node.RUN_S_MAX = 900  # half a million rows
    with tempfile.TemporaryDirectory(prefix="lighthpc-bench-") as temporary:
        runs = bench(str(binary), asked.sweep, pathlib.Path(temporary))
    if asked.json:
        print(json.dumps({count: [vars(run) for run in of_count] for count, of_count in runs.items()}, indent=2))
    else:
        print(f"{'tasks that wait':>16}{'command':>10}{'CPU ms':>10}{'wall ms':>10}{'peak MiB':>10}")
        for count, of_count in runs.items():
            for run in of_count:
                print(f"{count:16}{run.kind:>10}{run.cpu_ms:10.0f}{run.wall_ms:10.0f}{run.rss_mib:10.1f}")
    failed = [(count, run) for count, of_count in runs.items() for run in of_count if run.failures]
    for count, run in failed:
        bench_node.say(f"FAILED: {run.kind}, {count} tasks: {'; '.join(run.failures)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

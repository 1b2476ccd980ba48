"""How fast `lighthpc submit` makes a mission's rows, beside conditional puts from boto3's threads in the same run.

`scripts/bench --submit ROWS` runs this. Both write to one emulator, which is the bottleneck: the wall times say what a
mission of so many tasks takes here, not on DynamoDB. The two take turns. No time is asserted; the exit code says
whether all rows are there.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile

import bench_node
import boto3
import botocore.config
import harness

ROWS_MAX = 50_000  # the peer must end within bench_node.RUN_S_MAX
ROUNDS = 3
THREADS = 64  # as many as `submit` has rows under way


def peer(table, rows, prefix):
    """Makes the rows as a script would: one put each, on condition that there is none."""
    config = botocore.config.Config(max_pool_connections=THREADS)
    dynamodb = boto3.client("dynamodb", config=config)

    def put(number):
        key = f"{prefix}/{number:06}"
        row = {"srcFilename": key, "bucketname": "b", "missionID": prefix, "state": "pending"}
        row |= {"openIn": f"{prefix}#{number % 16}", "openAs": "pending#2026-01-01T00:00:00.000Z"}
        item = {name: {"S": value} for name, value in row.items()}
        dynamodb.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(srcFilename)")

    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(put, range(rows)):
            pass


def bench(binary, rows, folder):
    """Runs both in turns; returns the runs."""
    runs = []
    with harness.ministack() as ministack, harness.moto() as moto:
        clients = harness.Clients(ministack.url, moto.url)
        clients.warm_up()
        cloud = harness.Cloud(clients, binary, folder)
        try:
            env = cloud.environment(**harness.KEYS, AWS_EC2_METADATA_DISABLED="true", AWS_DEFAULT_REGION=harness.REGION)
            # Round 0 warms the emulator; it is checked, not counted.
            for number in range(ROUNDS + 1):
                bench_node.say(f"round {number} of {ROUNDS}")
                for name in ("submit", "python") if number % 2 else ("python", "submit"):
                    run = run_once(cloud, binary, name, number, rows if number else min(rows, 500), env)
                    runs += [run] if number or run.failures else []
        finally:
            cloud.close()
    return runs


def run_once(cloud, binary, name, number, rows, env):
    """Makes one mission's rows, and counts them."""
    prefix = f"{name}-{number}"
    if name == "submit":
        keys = cloud.folder / f"{prefix}.keys"
        keys.write_text("".join(f"{prefix}/{n:06}\n" for n in range(rows)))
        line = 'exec "$0" submit --mission "$1" --no-launch - <"$2"'
        command = ["/bin/sh", "-c", line, binary, prefix, keys]
    else:
        command = [sys.executable, __file__, "--peer", cloud.tasks.name, str(rows), prefix]
    run = bench_node.measure(name, number, command, env, cloud.folder / prefix)
    pages = cloud.tasks.meta.client.get_paginator("scan").paginate(
        TableName=cloud.tasks.name,
        Select="COUNT",
        FilterExpression="missionID = :m",
        ExpressionAttributeValues={":m": prefix},
    )
    there = sum(page["Count"] for page in pages)
    if there != rows:
        run.failures.append(f"{there} rows of {rows} are there")
    return run


def summary(runs, rows):
    """Everything measured, as one JSON value."""
    of = {name: [run for run in runs if run.kind == name] for name in ("submit", "python")}
    median = {name: {m: bench_node.median(some, m) for m in bench_node.MEASURES} for name, some in of.items()}
    per_second = {
        name: statistics.median(rows / run.wall_ms * 1e3 for run in some) if some else None for name, some in of.items()
    }
    ratio = {m: bench_node.ratio(median["python"][m], median["submit"][m]) for m in bench_node.MEASURES}
    return {
        "rows": rows,
        "median": median,
        "rowsPerSecond": per_second,
        "ratio": ratio,
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def table(result):
    """The summary for people."""
    lines = [f"{'median of ' + str(ROUNDS) + ' runs':32}{'rows/s':>10}{'CPU ms':>10}{'wall ms':>10}{'peak MiB':>10}"]
    for name, label in (("submit", "lighthpc submit"), ("python", f"boto3, {THREADS} threads")):
        numbers = [result["rowsPerSecond"][name], *result["median"][name].values()]
        lines.append(f"{label:32}" + "".join(f"{n:10.0f}" if n is not None else f"{'-':>10}" for n in numbers))
    ratios = "".join(f"{r:8.1f} ×" if r is not None else f"{'-':>10}" for r in result["ratio"].values())
    lines.append(f"{'boto3 ÷ lighthpc submit':32}{'':10}{ratios}")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--submit", type=int, metavar="ROWS", default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", nargs=3, metavar=("TABLE", "ROWS", "PREFIX"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.peer and not 1 <= asked.submit <= ROWS_MAX:
        parser.error(f"--submit: a number from 1 to {ROWS_MAX} is needed")
    return asked


def main():
    """Runs, prints, and says by the exit code whether every row was made."""
    asked = arguments()
    if asked.peer:
        name, rows, prefix = asked.peer
        peer(name, int(rows), prefix)
        return 0
    binary = bench_node.program()
    bench_node.adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="lighthpc-bench-") as temporary:
        runs = bench(str(binary), asked.submit, pathlib.Path(temporary))
    good = [run for run in runs if not run.failures]
    result = summary(good, asked.submit)
    print(json.dumps(result, indent=2) if asked.json else table(result))
    for run in runs:
        if run.failures:
            bench_node.say(f"FAILED: {run.kind} {run.round}: {'; '.join(run.failures)}")
    return 0 if len(good) == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())

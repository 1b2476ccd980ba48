"""What it costs to download and to upload one object, beside s5cmd, boto3, and the AWS CLI.

`scripts/bench --transfer MIB` runs this, over a service in this process that is as fast as the loopback device
(bench_s3.py). CPU time and peak memory are the client's. The wall time has the service's share in it, the same for all.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import bench_node
import bench_s3

ROOT = pathlib.Path(__file__).parents[2]
PEERS = ROOT / "target/bench"  # made by scripts/bench
MIB = 1 << 20
MIB_MAX = 64 * 1024
ROUNDS = 5
NAMES = {"lighthpc": "lighthpc", "s5cmd": "s5cmd", "boto3": "boto3", "aws-cli": "AWS CLI"}
BOTO3 = """
import boto3, sys
what, bucket, key, file = sys.argv[1:]
client = boto3.client("s3")
client.download_file(bucket, key, file) if what == "get" else client.upload_file(file, bucket, key)
"""


def command_of(kind, what, file):
    """The command of a kind that copies between an object and a file."""
    pair = ["s3://bucket/object", file] if what == "get" else [file, "s3://bucket/object"]
    return {
        "lighthpc": [os.environ["LIGHTHPC_TRANSFER"], what, "bucket", "object", file],
        "s5cmd": [s5cmd(), "cp", *pair],
        "boto3": [sys.executable, "-c", BOTO3, what, "bucket", "object", file],
        "aws-cli": ["aws", "s3", "cp", "--quiet", *pair],
    }[kind]


def s5cmd():
    """The program itself, without the Python around it."""
    return next(PEERS.glob("lib/*/site-packages/s5cmd/bin/s5cmd"))


def environment(url, certificate):
    """The variables of all clients, and no others that concern AWS."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env |= {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    env |= {"AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
    if certificate:
        env |= {"SSL_CERT_FILE": str(certificate), "AWS_CA_BUNDLE": str(certificate)}
    return env


def kinds():
    """What can be measured here."""
    if shutil.which("aws"):
        return list(NAMES)
    bench_node.say("the AWS CLI is not installed")
    return [kind for kind in NAMES if kind != "aws-cli"]


def make_certificate(folder):
    """A certificate for 127.0.0.1, with its key, in one file; and that of its authority."""
    authority, own = folder / "authority.pem", folder / "own.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    with_keys = {file: [*make, "-keyout", file.with_suffix(".key"), "-out", file] for file in (authority, own)}
    commands = [
        [*with_keys[authority], "-subj", "/CN=authority"],
        [*with_keys[own], "-subj", "/CN=127.0.0.1", "-CA", authority, "-CAkey", authority.with_suffix(".key")]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(own.read_text() + own.with_suffix(".key").read_text())
    return authority, both


def bench(server, certificate, chosen, folder):
    """Runs the kinds in turns; returns the runs."""
    env = environment(server.url, certificate)
    source = folder / "source"
    with source.open("wb") as file:
        file.writelines(server.content())
    runs = []
    # Round 0 is not counted.
    for number in range(ROUNDS + 1):
        bench_node.say(f"round {number} of {ROUNDS}, {server.url.split(':')[0]}")
        turn = number % len(chosen)
        for kind in chosen[turn:] + chosen[:turn]:
            for what in ("get", "put"):
                run = run_once(server, kind, what, number, env, source, folder)
                runs += [run] if number or run.failures else []
    return runs


def run_once(server, kind, what, number, env, source, folder):
    """Copies once, and looks at the copy."""
    place = folder / f"{kind}-{what}-{number}"
    file = source if what == "put" else folder / "copy"
    server.take_counts()
    run = bench_node.measure(f"{kind}-{what}", number, command_of(kind, what, file), env, place)
    uploaded, _ = server.take_counts()
    if what == "put" and not server.size <= uploaded <= server.size * 1.01:
        run.failures.append(f"{uploaded} bytes were uploaded, not {server.size}")
    if what == "get" and not run.failures:
        compared = subprocess.run(["cmp", source, file], capture_output=True, text=True)
        run.failures += [compared.stdout or compared.stderr] if compared.returncode else []
        file.unlink()
    shutil.rmtree(place)
    return run


def summary(runs, given, chosen):
    """Everything measured, as one JSON value."""
    kept = [f"{kind}-{what}" for what in ("get", "put") for kind in chosen]
    median, spread = bench_node.statistics_of(runs, kept)
    return {
        "mib": given.transfer,
        "tls": given.tls,
        "versions": versions(chosen),
        "median": median,
        "spread": spread,
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def versions(chosen):
    """The versions of the peers."""
    commands = {
        "s5cmd": [s5cmd(), "version"],
        "boto3": [sys.executable, "-c", "import boto3; print('boto3', boto3.__version__)"],
        "aws-cli": ["aws", "--version"],
    }
    return bench_node.versions(commands[kind] for kind in chosen[1:])


def table(result):
    """The summary for people."""
    gb = result["mib"] * MIB / 1e9
    tls = "with TLS" if result["tls"] else "without TLS"
    lines = [
        f"an object of {result['mib']} MiB, {tls}; medians of {ROUNDS} runs",
        f"{'':22}{'wall time s':>12}{'CPU s per GB':>14}{'spread %':>10}{'peak MiB':>10}{'wall time':>12}{'CPU':>9}",
    ]
    for kind, median in result["median"].items():
        name, what = kind.rsplit("-", 1)
        ours = result["median"][f"lighthpc-{what}"]
        times, cpu = (bench_node.ratio(ours[measure], median[measure]) for measure in ("wall_ms", "cpu_ms"))
        lines.append(
            f"{'download' if what == 'get' else 'upload':10}{NAMES[name]:12}{median['wall_ms'] / 1e3:12.2f}"
            f"{median['cpu_ms'] / 1e3 / gb:14.2f}{100 * result['spread'][kind]['cpu_ms']:10.0f}"
            f"{median['rss_mib']:10.0f}{times:10.2f} ×{cpu:7.2f} ×"
        )
    lines.append("The last two: lighthpc ÷ this kind. " + ", ".join(result["versions"]))
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--transfer", type=int, metavar="MIB", default=0)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not 1 <= given.transfer <= MIB_MAX:
        parser.error(f"--transfer takes 1 to {MIB_MAX} MiB")
    return given


def main():
    given = arguments()
    bench_node.adopt_orphans()
    chosen = kinds()
    # In memory, so that no disk is measured.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lighthpc-bench-", dir=memory) as name:
        folder = pathlib.Path(name)
        certificate, both = make_certificate(folder) if given.tls else (None, None)
        server = bench_s3.Server(given.transfer * MIB, both)
        runs = bench(server, certificate, chosen, folder)
        server.close()
    failed = [f"{run.kind}, round {run.round}: {words}" for run in runs for words in run.failures]
    if failed:
        sys.exit("\n".join(failed))
    result = summary(runs, given, chosen)
    print(json.dumps(result, indent=2) if given.json else table(result))


if __name__ == "__main__":
    main()

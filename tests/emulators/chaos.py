"""A mission on emulators while everything goes wrong; `scripts/chaos --help` says what it does.

The driver plays the sweep's part: it launches a node for each task that nobody works at, and ends the machines of
nodes that it killed. Nodes that end by themselves must end their machines by themselves. What happens to requests is in
`chaos_proxy.py`, what the tasks do in `chaos_workload.py`, and what must be true in the end in `chaos_judge.py`.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import sys
import time

import chaos_judge
import chaos_workload
import harness
from chaos_proxy import Events, Proxy

MISSION = "chaos"
LEASE_S = 6
FAULTS_PER_TASK_MAX = 3
CLOCK_S_MAX = 600  # how far a node's wall clock is off
LARGE_BYTES = 10 << 20  # above the product's 8 MiB: a multipart upload
ARGUMENTS = ["--lease", LEASE_S, "--heartbeat", 1, "--grace", 1, "--checkpoint-every", 1, "--max-idle", 15]


@dataclasses.dataclass
class Outage:
    """A service fails every request for a while, from near a launch on, so that it meets a node in its first second."""

    service: str
    length_s: float
    share: float  # of the tasks that are done before
    after_s: float  # from the launch


# No attempt may be lost to any of these. DynamoDB's is bounded by the lease: a holder may go without a renewal for five
# sixths of it, 5 s, and may at the worst have renewed a period of 1.1 s before the outage, notice its end with a try of
# a sixth (1 s) that must time out first, and pause for a tenth (0.6 s): 4.7 s. S3's must be shorter than a lease.
OUTAGES = [
    Outage("dynamodb", 2, 0.15, 0),
    Outage("s3", 4, 0.3, 0),
    Outage("dynamodb", 2, 0.5, 0.5),
    Outage("s3", 4, 0.65, 0.1),
]
OUTAGE_PAUSE_S = 5  # between one's end and the next: every holder renews meanwhile


@dataclasses.dataclass
class Run:
    """One node process on one instance, and what is planned for it."""

    src: str
    instance: str
    node: harness.Node
    fault: str
    began: float
    at_s: float  # since the launch
    whole: bool  # what is done to the node is done to its workload, too
    clock_s: int  # how far its wall clock is ahead
    began_clock: float = dataclasses.field(default_factory=time.time)
    stage: int = 0
    next_s: float = 0
    killed: bool = False
    frozen: bool = False
    frozen_since: float | None = None
    exit_code: int | None = None

    def processes(self):
        """The ids of this node's session: itself, its workload, and whatever that left."""
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    fields = pathlib.Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.node.process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def send(self, number, whole=True):
        """Signals the node, or all of its session."""
        self.node.signal(number)
        for pid in self.processes() if whole else ():
            if pid != self.node.process.pid:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass


class Chaos:
    """The mission and its driver."""

    def __init__(self, options, cloud, proxy, events, rng):
        self.options, self.cloud, self.proxy, self.events, self.rng = options, cloud, proxy, events, rng
        self.runs, self.live, self.orphans = [], [], []
        self.launches = collections.Counter()
        self.duplicates = []  # (when, task)
        self.inputs, self.seconds, self.plans, self.order = {}, {}, {}, []  # by task
        self.rows, self.seen = {}, {}  # by task: the row, and what of it is logged
        self.outages, self.outage_next = list(OUTAGES), 0
        self.publisher_deaths = {}  # instance -> "before", "after", or "by chance"
        self.failures = []
        kinds = ["kill-before", "kill-after", "lose"] + (["none"] if options.short else [])
        self.publisher_fault = kinds[options.seed % len(kinds)]
        self.rows_log = open(options.keep / "rows.jsonl", "w", encoding="utf-8")
        self.program = [sys.executable, chaos_workload.__file__]

    def prepare(self):
        """Inputs, rows, mission, and the faults to come."""
        rng = self.rng
        for number in range(self.options.tasks):
            src = f"in/task {number:04d}+ü.txt" if number % 10 == 3 else f"in/task-{number:04d}.txt"
            is_long = number % 8 == 5
            seconds = round(rng.uniform(7, 11) if is_long else rng.uniform(0.3, 1.5), 2)
            spec = {
                "seconds": seconds,
                "steps": rng.randint(3, 12),
                "bytes": LARGE_BYTES if number % 40 == 7 else rng.randint(65, 50_000),
                "deaf": rng.random() < 0.1,
                "number": number,
            }
            content = json.dumps(spec).encode() + b"\n" + rng.randbytes(rng.randint(10, 20_000))
            self.inputs[src], self.seconds[src] = content, seconds
            self.cloud.put_input(src, content)
            self.cloud.put_task(src, MISSION)
            self.plans[src] = [self._plan(rng, is_long) for _ in range(FAULTS_PER_TASK_MAX)]
        self.cloud.put_mission(MISSION, self.options.tasks, tallyShards=4)
        if self.publisher_fault == "lose":
            self.proxy.on_publish = ("lose", lambda: True)
        elif self.publisher_fault != "none":
            when = self.publisher_fault.removeprefix("kill-")
            self.proxy.on_publish = (when, lambda: self._kill_publisher(when))
        self.order = list(self.inputs)
        rng.shuffle(self.order)

    @staticmethod
    def _plan(rng, is_long):
        if is_long and rng.random() < 0.7:
            return rng.choice(["notice-120", "notice-30", "notice-5"])
        if rng.random() < 0.45:
            return "none"
        return rng.choices(["kill", "stop", "term", "term-twice", "duplicate"], [35, 15, 12, 6, 14])[0]

    def _publisher(self):
        """The instance that is telling people now, if one is."""
        row = self.cloud.mission(MISSION) or {}
        return row.get("notifyBy") if row.get("notifyEmail") == "Sending" else None

    def _kill_publisher(self, when):
        # On a thread of the proxy's: whether the publisher was there to be killed.
        publisher = self._publisher()
        for run in list(self.live):
            if run.instance == publisher:
                self.events.add("publisher killed", when=when, instance=publisher)
                self.publisher_deaths[publisher] = when
                run.killed = True
                run.send(signal.SIGKILL)
                return run.node.has_ended(5)
        return False

    def launch(self, src, fault=None):
        """Launches an instance and its node, as the scheduler and the sweep do."""
        number = self.launches[src]
        self.launches[src] += 1
        if fault is None:
            plan = self.plans[src]
            fault = plan[number] if number < len(plan) else "none"
        instance = self.cloud.launch_instance(srcID=src, missionID=MISSION)
        duration = self.seconds[src]
        at_s = self.rng.uniform(0.5, 3) if fault.startswith("notice") else self.rng.uniform(0.02, duration + 0.9)
        # A notice names a time of day, which a node compares with its own clock: EC2's machines keep theirs.
        clock_s = 0 if fault.startswith("notice") else self.rng.randint(-CLOCK_S_MAX, CLOCK_S_MAX)
        node = self.cloud.start_node(
            instance,
            *ARGUMENTS,
            program=self.program,
            clock_s=clock_s,
            AWS_ENDPOINT_URL=self.proxy.url,
            LIGHTHPC_LOG_FORMAT="json",
        )
        run = Run(src, instance, node, fault, time.monotonic(), at_s, self.rng.random() < 0.5, clock_s)
        self.runs.append(run)
        self.live.append(run)
        if fault != "none":
            self.events.add("planned", fault=fault, src=src, instance=instance)
        self.events.add("launch", src=src, instance=instance, folder=node.folder.name, clock_s=clock_s)
        if fault == "duplicate":
            self.duplicates.append((run.began + self.rng.uniform(0, 1), src))
        self._begin_outage(run.began)

    def _begin_outage(self, now):
        if not self.outages or now < self.outage_next or self._done() < self.outages[0].share * self.options.tasks:
            return
        outage = self.outages.pop(0)
        self.proxy.outage(outage.service, outage.after_s, outage.length_s)
        self.outage_next = now + outage.after_s + outage.length_s + OUTAGE_PAUSE_S
        self.events.add(f"outage of {outage.service}", length_s=outage.length_s, after_s=outage.after_s)

    def _done(self):
        return sum(row.get("state") == "done" for row in self.rows.values())

    def _terminate(self, instance, why):
        self.events.add(why, instance=instance)
        self.cloud.clients.ec2.terminate_instances(InstanceIds=[instance])

    def _do_fault(self, run, now):
        age = now - run.began
        if run.stage == 0 and age >= run.at_s and run.fault not in ("none", "duplicate"):
            run.stage = 1
            self.events.add(f"fault {run.fault}", src=run.src, instance=run.instance)
            if run.fault == "kill":
                run.killed = True
                run.send(signal.SIGKILL, run.whole)
            elif run.fault == "stop":
                run.send(signal.SIGSTOP, run.whole)
                run.frozen, run.frozen_since = True, now
                run.next_s = age + LEASE_S * self.rng.uniform(1.3, 2)
            elif run.fault.startswith("term"):
                run.send(signal.SIGTERM, False)
                run.next_s = age + 0.3
            else:
                limit = int(run.fault.removeprefix("notice-"))
                self.cloud.imds(run.instance).default.interrupt(in_s=limit)
                run.next_s = age + limit
        elif run.stage == 1 and age >= run.next_s:
            run.stage = 2
            if run.fault == "stop":
                run.frozen = False
                run.send(signal.SIGCONT)
            elif run.fault == "term-twice":
                run.send(signal.SIGTERM, False)
            elif run.fault.startswith("notice"):
                # EC2 keeps its word.
                self.events.add("taken back at the deadline", src=run.src, instance=run.instance)
                run.killed = True
                run.send(signal.SIGKILL)

    def _reap(self, run):
        if not run.node.has_ended():
            return False
        run.exit_code = run.node.wait(1).returncode
        self.cloud.stop_imds(run.instance)
        what = {"src": run.src, "instance": run.instance, "folder": run.node.folder.name}
        self.events.add("ended", code=run.exit_code, killed=run.killed, **what)
        if run.killed:
            if run.instance not in self.publisher_deaths and run.instance == self._publisher():
                self.publisher_deaths[run.instance] = "by chance"
                self.events.add("publisher killed", when="by chance", instance=run.instance)
            if run.fault.startswith("notice") or run.whole:
                # The machine is gone, and its workload with it.
                run.send(signal.SIGKILL)
                self._terminate(run.instance, "machine vanished")
            else:
                self.orphans.append(run)
        return True

    def look(self):
        """Reads all rows, notes what changed, and judges the changes."""
        rows = {row["srcFilename"]: row for row in harness.scan(self.cloud.tasks)}
        for src, row in rows.items():
            now = [row.get(name) for name in ("state", "attempt", "execInstanceID", "verdict", "resultETag")]
            before = self.seen.get(src)
            if now == before:
                continue
            self.seen[src] = now
            self.rows_log.write(json.dumps([self.events.now_s(), src, *now]) + "\n")
            if before and (now[1] or 0) < (before[1] or 0):
                self.failures.append(f"{src}: the attempt went down from {before} to {now}")
            if before and before[0] in ("done", "failed"):
                self.failures.append(f"{src}: it had ended, and changed from {before} to {now}")
        self.rows = rows

    def _launch_some(self, now):
        free = self.options.nodes - len(self.live)
        serving = {run.src for run in self.live if not (run.frozen and now - run.frozen_since > 0.5)}
        due = [src for when, src in self.duplicates if when <= now]
        self.duplicates = [entry for entry in self.duplicates if entry[0] > now]
        for src in due[: max(free, 0)]:
            self.events.add("fault duplicate", src=src)
            self.launch(src, "none")
            free -= 1
        states = {src: row.get("state", "pending") for src, row in self.rows.items()}
        wanted = [src for src in self.order if states[src] == "running" and src not in serving]
        wanted += [src for src in self.order if states[src] == "pending" and src not in serving]
        for src in wanted[: max(free, 0)]:
            self.launch(src)

    def _is_over(self):
        if any(row.get("state") not in ("done", "failed") for row in self.rows.values()) or self.live:
            return False
        if (self.cloud.mission(MISSION) or {}).get("notifyEmail") == "Yes":
            return True
        # The sweep's part for a mission whose publisher died: its machine is ended, and somebody comes by.
        for run in self.orphans:
            self._terminate(run.instance, "machine ended by the sweep")
        self.orphans.clear()
        if self.events.counts["sweep for the publisher"] < 5:
            self.events.add("sweep for the publisher")
            self.launch(self.rng.choice(self.order), "none")
            return False
        return True

    def drive(self):
        """Runs the mission to its end, or to the time limit."""
        end = time.monotonic() + self.options.limit_s
        look_at, said_at = 0, time.monotonic()
        while time.monotonic() < end:
            now = time.monotonic()
            for run in list(self.live):
                if self._reap(run):
                    self.live.remove(run)
                else:
                    self._do_fault(run, now)
            if now >= look_at:
                self.look()
                look_at = time.monotonic() + 0.25
                self._launch_some(time.monotonic())
                if self._is_over():
                    return
                if now - said_at > 15:
                    said_at = now
                    said = f"{self._done()} of {self.options.tasks} done, {len(self.runs)} launches"
                    print(said, file=sys.stderr, flush=True)
            time.sleep(0.02)
        self.failures.append(f"not over within {self.options.limit_s} s")

    def end(self):
        """Ends every process and machine that is still the driver's to end."""
        for run in self.runs:
            if run.exit_code is None:
                run.killed = True
            run.send(signal.SIGCONT)
            run.send(signal.SIGKILL)
        for run in self.live:
            run.node.has_ended(10)
            self._reap(run)
        for run in self.orphans:
            self._terminate(run.instance, "machine ended by the driver")
        self.live.clear()
        self.orphans.clear()


def _table(figures):
    for name, value in figures.items():
        if name == "failures":
            continue
        if isinstance(value, dict):
            print(name.replace("_", " "))
            for key, number in value.items():
                print(f"  {key:<38} {number}")
        else:
            print(f"{name.replace('_', ' '):<40} {value}")


def _options():
    parser = argparse.ArgumentParser(prog="scripts/chaos")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=pathlib.Path)
    options = parser.parse_args()
    options.tasks = options.tasks or (24 if options.short else 200)
    options.nodes = options.nodes or (4 if options.short else 8)
    # Of 3 and 10 minutes, the emulators' start and the last look take up to one.
    options.limit_s = 120 if options.short else 540
    options.seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    if options.keep is None:
        options.keep = harness.ROOT / "target/chaos" / f"{options.seed}-{time.strftime('%H%M%S')}"
    options.keep = options.keep.absolute()
    options.keep.mkdir(parents=True)
    return options


def main():
    """Runs one mission and judges it."""
    options = _options()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {options.seed}; logs in {options.keep}", file=sys.stderr, flush=True)
    harness.LOGS = options.keep
    binary = str(pathlib.Path(os.environ["LIGHTHPC_BIN"]).absolute())
    events = Events(options.keep / "events.jsonl")
    with contextlib.ExitStack() as stack:
        ministack, moto = (stack.enter_context(server) for server in (harness.ministack(), harness.moto()))
        clients = harness.Clients(ministack.url, moto.url)
        clients.warm_up()
        cloud = harness.Cloud(clients, binary, options.keep)
        stack.callback(cloud.close)
        proxy = stack.enter_context(Proxy(ministack.url, random.Random(options.seed + 1), events))
        chaos = Chaos(options, cloud, proxy, events, random.Random(options.seed))
        try:
            chaos.prepare()
            chaos.drive()
        finally:
            chaos.end()
        figures = chaos_judge.judge(chaos, MISSION)
        (options.keep / "rows.json").write_text(json.dumps([chaos.rows, cloud.mission(MISSION)], indent=1))
    figures = {"wall_s": round(time.monotonic() - began, 1)} | figures
    text = json.dumps(figures, indent=2)
    (options.keep / "figures.json").write_text(text)
    if options.json:
        print(text)
    else:
        _table(figures)
    for failure in figures["failures"]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

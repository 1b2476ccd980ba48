"""A mission on emulators while everything goes wrong; `scripts/chaos --help` says what it does.

The driver plays the sweep's part: it launches a node for each task that nobody works at, and ends the machines of
nodes that it killed. Nodes that end by themselves must end their machines by themselves.
"""

import argparse
import collections
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import harness

MISSION = "chaos"
LEASE_S = 4
OUTAGE_S = 3
FAULTS_PER_TASK_MAX = 3
REPEAT_BYTES_MAX = 1 << 20
LARGE_BYTES = 10 << 20  # above the product's 8 MiB: a multipart upload
# Per request through the proxy; together 2.4 %.
PROXY_RATES = {"drop": 0.004, "lose": 0.005, "refuse": 0.006, "repeat": 0.005, "delay": 0.004}

WORKLOAD = '''
import hashlib, json, os, signal, sys, time
env = os.environ
with open(env["LIGHTHPC_INPUT"], "rb") as file:
    content = file.read()
spec = json.loads(content.split(b"\\n", 1)[0])
signal.signal(signal.SIGTERM, signal.SIG_IGN if spec["deaf"] else lambda *_: sys.exit(143))
state = os.path.join(env["LIGHTHPC_CHECKPOINT_DIR"], "state.json")
step, digest = 0, ""
if env.get("LIGHTHPC_RESUMED") == "1" and os.path.exists(state):
    with open(state) as file:
        step, digest = json.load(file)
    print("resumed at", step, flush=True)
while step < spec["steps"]:
    time.sleep(spec["seconds"] / spec["steps"])
    digest = hashlib.sha256(digest.encode() + content + str(step).encode()).hexdigest()
    step += 1
    with open(state + ".new", "w") as file:
        json.dump([step, digest], file)
    os.replace(state + ".new", state)
    with open(env["LIGHTHPC_PROGRESS"], "a") as file:
        file.write("%d step %d\\n" % (100 * step // spec["steps"], step))
    print("step", step, digest, flush=True)
with open(env["LIGHTHPC_OUTPUT"], "wb") as file:
    file.write((digest + "\\n").encode() * (spec["bytes"] // 65))
'''


def expected(content):
    """The workload's result, worked out here."""
    spec = json.loads(content.split(b"\n", 1)[0])
    digest = ""
    for step in range(spec["steps"]):
        digest = hashlib.sha256(digest.encode() + content + str(step).encode()).hexdigest()
    return (digest + "\n").encode() * (spec["bytes"] // 65)


class Events:
    """What happened and when, in a file of JSON lines; counts by kind."""

    def __init__(self, path):
        self._mutex, self._file = threading.Lock(), open(path, "w", encoding="utf-8")
        self._begin, self.counts, self.publishes = time.monotonic(), collections.Counter(), []

    def add(self, kind, **more):
        """Notes one event."""
        with self._mutex:
            self.counts[kind] += 1
            if more.get("action") == "Publish":
                self.publishes.append(kind)
            self._file.write(json.dumps({"t": round(time.monotonic() - self._begin, 3), "kind": kind} | more) + "\n")
            self._file.flush()


class Proxy:
    """Stands before the emulator, and now and then does what networks and busy services do."""

    def __init__(self, upstream, rng, events):
        self.upstream, self.rng, self.events = urllib.parse.urlsplit(upstream).netloc, rng, events
        self.requests = 0
        self.faults_on = True
        self.outage = {}  # service -> monotonic end
        self.on_publish = {}  # "before" and "after" -> called once; "lose" -> the answer is lost
        self._mutex = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _request_class(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        """Stops listening."""
        self._http.shutdown()
        self._http.server_close()

    def decide(self, service):
        """What befalls this request: a kind and a number in [0, 1)."""
        with self._mutex:
            self.requests += 1
            one, two = self.rng.random(), self.rng.random()
        if self.outage.get(service, 0) > time.monotonic():
            return ("outage-drop" if two < 0.5 else "outage-refuse"), two
        for kind, rate in PROXY_RATES.items():
            if self.faults_on and one < rate:
                return kind, two
            one -= rate
        return None, two

    def take_publish(self, when):
        """Calls what is to happen at the first Publish, if anything is."""
        with self._mutex:
            call = self.on_publish.pop(when, None)
        return call and (call() or True)


def _request_class(proxy):
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = 120

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except (OSError, http.client.HTTPException):
                self.close_connection = True

        def _any(self):
            scope = self.headers.get("Authorization", "").split("Credential=")[-1].split(",")[0].split("/")
            service = scope[3] if len(scope) > 3 else "other"
            action = self.headers.get("X-Amz-Target", "").split(".")[-1] or self.command
            length = int(self.headers.get("Content-Length") or 0)
            body = None
            if length <= REPEAT_BYTES_MAX and "chunked" not in self.headers.get("Transfer-Encoding", ""):
                body = self.rfile.read(length)
            if service == "sns" and body and b"Action=Publish" in body:
                action = "Publish"
            kind, dice = proxy.decide(service)
            if kind == "repeat" and body is None:
                kind = None
            if action == "Publish":
                proxy.take_publish("before")
                if proxy.take_publish("lose"):
                    kind = "lose"
            if kind:
                proxy.events.add(f"proxy {kind}", service=service, action=action, path=self.path[:200])
            if kind in ("drop", "outage-drop"):
                return self._hang_up(dice)
            if kind in ("refuse", "outage-refuse"):
                return self._refuse(service, kind, length if body is None else 0)
            if kind == "delay":
                time.sleep(0.2 + 1.3 * dice)
            if kind == "repeat":
                with self._forward(body, length) as first:
                    kept = (first.status, first.headers, first.read())
                with self._forward(body, length) as second:
                    again = (second.status, second.headers, second.read())
                return self._send_whole(*(kept if dice < 0.5 else again))
            with self._forward(body, length) as answer:
                if action == "Publish":
                    # Applied, and not yet told.
                    proxy.take_publish("after")
                if kind == "lose":
                    answer.read()
                    return self._hang_up(dice)
                self._relay(answer)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

        def _forward(self, body, length):
            up = http.client.HTTPConnection(proxy.upstream, timeout=60)
            up.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    up.putheader(name, value)
            up.putheader("Connection", "close")
            up.endheaders()
            if body is not None:
                up.send(body)
            elif "chunked" in self.headers.get("Transfer-Encoding", ""):
                while True:
                    line = self.rfile.readline()
                    size = int(line.split(b";")[0], 16)
                    up.send(line + self.rfile.read(size) + self.rfile.readline())
                    if size == 0:
                        break
            else:
                while length > 0:
                    piece = self.rfile.read(min(length, 1 << 16))
                    if not piece:
                        raise ConnectionError("the client went away")
                    up.send(piece)
                    length -= len(piece)
            return up.getresponse()

        def _head(self, status, headers, length):
            # Not send_response: it would add its own Server and Date.
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            if length is not None:
                self.send_header("Content-Length", str(length))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def _relay(self, answer):
            length = answer.getheader("Content-Length")
            if self.command == "HEAD" or answer.status in (204, 304):
                return self._head(answer.status, answer.headers, length or 0)
            self._head(answer.status, answer.headers, length)
            while piece := answer.read(1 << 16):
                self.wfile.write(piece if length is not None else b"%x\r\n%s\r\n" % (len(piece), piece))
            if length is None:
                self.wfile.write(b"0\r\n\r\n")

        def _send_whole(self, status, headers, payload):
            length = headers["Content-Length"] if self.command == "HEAD" else len(payload)
            self._head(status, headers, length or 0)
            self.wfile.write(payload)

        def _refuse(self, service, kind, unread):
            while unread > 0 and (piece := self.rfile.read(min(unread, 1 << 16))):
                unread -= len(piece)
            if service == "dynamodb" and kind == "refuse":
                status, mime = 400, "application/x-amz-json-1.0"
                text = '{"__type":"com.amazonaws.dynamodb.v20120810#ThrottlingException","message":"Slow down"}'
            elif service == "dynamodb":
                status, mime = 500, "application/x-amz-json-1.0"
                text = '{"__type":"com.amazonaws.dynamodb.v20120810#InternalServerError","message":"Internal"}'
            elif service == "s3":
                status, mime = 503, "application/xml"
                text = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            else:
                status, mime = 400, "text/xml"
                text = (
                    '<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>'
                    "<Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>"
                )
            payload = b"" if self.command == "HEAD" else text.encode()
            self._send_whole(status, {"Content-Type": mime, "Content-Length": str(len(text))}, payload)

        def _hang_up(self, dice):
            self.close_connection = True
            if dice < 0.25 or dice > 0.75:
                # A reset rather than an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *_):
            pass

    return Request


@dataclasses.dataclass
class Run:
    """One node process on one instance, and what is planned for it."""

    src: str
    instance: str
    node: harness.Node
    fault: str
    began: float
    at_s: float  # since the launch
    whole: bool  # freezes the workload, too
    stage: int = 0
    next_s: float = 0
    killed: bool = False
    frozen: bool = False
    frozen_since: float = 0
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
        if self.exit_code is None:
            try:
                self.node.signal(number)
            except ProcessLookupError:
                pass
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
        self.runs, self.live, self.duplicates = [], [], []
        self.launches = collections.Counter()
        self.publisher_deaths, self.failures = [], []
        self.seen, self.done_etag = {}, {}
        self.orphans, self.stage, self.rows = [], 0, {}
        self.inputs = {}
        self.publisher_fault = rng.choice(["none", "kill-before", "kill-after", "lose"])
        self.rows_log = open(options.keep / "rows.jsonl", "w", encoding="utf-8")
        workload = options.keep / "workload.py"
        workload.write_text(WORKLOAD, encoding="utf-8")
        self.program = [sys.executable, workload]

    def prepare(self):
        """Inputs, rows, mission, and the faults to come."""
        rng, self.plans, self.seconds = self.rng, {}, {}
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
            self.proxy.on_publish["lose"] = lambda: None
        elif self.publisher_fault != "none":
            self.proxy.on_publish[self.publisher_fault.removeprefix("kill-")] = self._kill_publisher
        self.order = list(self.inputs)
        rng.shuffle(self.order)

    @staticmethod
    def _plan(rng, is_long):
        if is_long and rng.random() < 0.7:
            return rng.choice(["notice-120", "notice-30", "notice-5"])
        if rng.random() < 0.45:
            return "none"
        return rng.choices(["kill", "stop", "term", "term-twice", "duplicate"], [35, 15, 12, 6, 14])[0]

    def _kill_publisher(self):
        row = self.cloud.mission(MISSION) or {}
        for run in list(self.live):
            if run.instance == row.get("notifyBy"):
                self.events.add("publisher killed", when=self.publisher_fault, instance=run.instance)
                self.publisher_deaths.append(run.instance)
                run.killed = True
                run.send(signal.SIGKILL)
                time.sleep(0.2)

    def launch(self, src, fault=None):
        """Launches an instance and its node, as the scheduler and the sweep do."""
        number = self.launches[src]
        self.launches[src] += 1
        if fault is None:
            plan = self.plans[src]
            fault = plan[number] if number < len(plan) else "none"
        instance = self.cloud.launch_instance(srcID=src, missionID=MISSION)
        # A killed client breaks its pipe: nothing to print a traceback about.
        self.cloud.imds(instance)._http.handle_error = lambda *_: None
        duration = self.seconds[src]
        at_s = self.rng.uniform(0.5, 3) if fault.startswith("notice") else self.rng.uniform(0.02, duration + 0.9)
        arguments = ["--lease", LEASE_S, "--heartbeat", 1, "--grace", 2, "--checkpoint-every", 1, "--max-idle", 15]
        node = self.cloud.start_node(
            instance, *arguments, program=self.program, AWS_ENDPOINT_URL=self.proxy.url, LIGHTHPC_LOG_FORMAT="json"
        )
        run = Run(src, instance, node, fault, time.monotonic(), at_s, self.rng.random() < 0.5)
        self.runs.append(run)
        self.live.append(run)
        if fault != "none":
            self.events.add("planned", fault=fault, src=src, instance=instance)
        self.events.add("launch", src=src, instance=instance, folder=node.folder.name)
        if fault == "duplicate":
            self.duplicates.append((run.began + self.rng.uniform(0, 1), src))

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
        if not run.node._ended(0):
            return False
        run.exit_code = run.node.wait(1).returncode
        self.cloud._imds.pop(run.instance).stop()
        what = {"src": run.src, "instance": run.instance, "folder": run.node.folder.name}
        self.events.add("ended", code=run.exit_code, killed=run.killed, **what)
        if run.killed:
            if (self.cloud.mission(MISSION) or {}).get("notifyEmail") == "Sending":
                if self.cloud.mission(MISSION).get("notifyBy") == run.instance and (
                    run.instance not in self.publisher_deaths
                ):
                    self.publisher_deaths.append(run.instance)
                    self.events.add("publisher killed", when="by chance", instance=run.instance)
            if run.fault.startswith("notice") or run.whole:
                # The machine is gone, and its workload with it.
                run.send(signal.SIGKILL)
                self._terminate(run.instance, "machine vanished")
            else:
                self.orphans.append(run)
        return True

    def _look(self):
        rows = {row["srcFilename"]: row for row in harness._scan(self.cloud.tasks)}
        for src, row in rows.items():
            now = [row.get(name) for name in ("state", "attempt", "execInstanceID", "verdict", "resultETag")]
            before = self.seen.get(src)
            if now == before:
                continue
            self.seen[src] = now
            self.rows_log.write(json.dumps([round(time.monotonic() - self.events._begin, 3), src, *now]) + "\n")
            if before and (now[1] or 0) < (before[1] or 0):
                self.failures.append(f"{src}: the attempt went down from {before} to {now}")
            if before and before[0] in ("done", "failed"):
                self.failures.append(f"{src}: it had ended, and changed from {before} to {now}")
        self.rows = rows

    def _outages(self, done):
        for stage, (service, share) in enumerate((("dynamodb", 0.25), ("s3", 0.55))):
            if self.stage == stage and done >= share * self.options.tasks:
                self.stage += 1
                self.events.add(f"outage of {service}, {OUTAGE_S} s")
                self.proxy.outage[service] = time.monotonic() + OUTAGE_S

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
                self._look()
                look_at = time.monotonic() + 0.25
                done = sum(row.get("state") == "done" for row in self.rows.values())
                self._outages(done)
                self._launch_some(time.monotonic())
                if self._is_over():
                    return
                if now - said_at > 15:
                    said_at = now
                    said = f"{done} of {self.options.tasks} done, {len(self.runs)} launches"
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
            self._reap(run)
        for run in self.orphans:
            self._terminate(run.instance, "machine ended by the driver")
        self.live.clear()
        self.orphans.clear()

    def judge(self):
        """Compares what is there with what must be there; returns the figures."""
        cloud, fail = self.cloud, self.failures.append
        self._look()
        checked = attempts = takeovers = 0
        for src, content in self.inputs.items():
            row = self.rows[src]
            stored = (row.get("resultETag"), row.get("resultBytes"))
            attempts += row.get("attempt", 0)
            told = [entry for entry in row.get("history", []) if entry.get("verdict") != "lost"]
            if row.get("attempt", 0) <= 10:
                takeovers += row.get("attempt", 0) - len(told)
            got = cloud.object(f"rslt_{src}")
            if row.get("state") != "done":
                fail(f"{src}: {row.get('state')}, verdict {row.get('verdict')}")
            elif got is None:
                fail(f"{src}: done, but its result is lost")
            elif got != expected(content):
                fail(f"{src}: its result is wrong: {len(got)} bytes, {got[:70]!r}")
            elif stored != (cloud.object_head(f"rslt_{src}")["ETag"], len(got)):
                fail(f"{src}: the row has ETag and bytes {stored}")
            elif row.get("strIndiProgress") != "100%" or row.get("rsltFilename") is None:
                fail(f"{src}: done, but the row says {row.get('strIndiProgress')}, {row.get('rsltFilename')}")
            else:
                checked += 1
        keys = cloud.keys()
        extra = [k for k in keys if k.startswith("rslt_") and k.removeprefix("rslt_") not in self.inputs]
        if extra:
            fail(f"results of no task: {extra[:5]}")
        tasks = self.options.tasks
        tally = cloud.tally(MISSION)
        if tally != (tasks, 0):
            fail(f"the tally is {tally}, not {(tasks, 0)}")
        mission = cloud.mission(MISSION)
        counters = {name: mission.get(name) for name in ("transNumber", "transOK", "transFailed", "notifyEmail")}
        if mission.get("notifyEmail") != "Yes" or mission.get("transOK") != tasks or mission.get("transFailed", 0) != 0:
            fail(f"the mission's row says {counters}")
        results = [entry for entry in mission.get("rsltList", []) if entry != "rsltList"]
        if len(results) != tasks or len(set(results)) != tasks:
            fail(f"rsltList has {len(results)} entries, {len(set(results))} of them different")
        told = len(cloud.notifications())
        doubled = [k for k in self.events.publishes if k in ("proxy lose", "proxy repeat", "proxy delay")]
        allowed = 1 + len(self.publisher_deaths) + len(doubled)
        if not 1 <= told <= allowed:
            fail(f"{told} notifications; the faults explain 1 to {allowed}")
        uploads = cloud.uploads_in_progress()
        # Not a failure: what a dead attempt saved and no row names is the bucket's lifecycle rule's to remove.
        checkpoints = [key for key in keys if key.startswith("checkpoints/")]
        self.events.add("checkpoints left", keys=checkpoints)
        if uploads:
            fail(f"{len(uploads)} multipart uploads are left: {[upload['Key'] for upload in uploads][:5]}")
        left, driver = self._instances()
        for run in left:
            how = f"ended by itself ({run.exit_code}, {run.node.folder.name})"
            fail(f"{run.instance} for {run.src} {how}, and its instance is left running")
        faults = {k: n for k, n in sorted(self.events.counts.items()) if k.startswith(("fault", "proxy", "outage"))}
        return {
            "seed": self.options.seed,
            "tasks": tasks,
            "launches": len(self.runs),
            "attempts": attempts,
            "takeovers": takeovers,
            "faults": faults,
            "proxy_requests": self.proxy.requests,
            "publisher_fault_planned": self.publisher_fault,
            "results_checked_byte_by_byte": checked,
            "tally": {"transOK": tally[0], "transFailed": tally[1]},
            "mission": counters,
            "notifications": told,
            "publisher_deaths": len(self.publisher_deaths),
            "publish_faults_in_proxy": self.events.publishes,
            "instances_left_by_nodes": len(left),
            "instances_ended_by_driver": driver,
            "uploads_left": len(uploads),
            "checkpoint_objects_left": len(checkpoints),
            "exit_codes": dict(sorted(collections.Counter(str(run.exit_code) for run in self.runs).items())),
            "resumed_attempts": sum(b"resumed at" in cloud.object(k) for k in keys if k.startswith("logs/")),
            "verdicts": dict(
                collections.Counter(e.get("verdict") for row in self.rows.values() for e in row.get("history", []))
            ),
            "failures": self.failures,
        }

    def _instances(self):
        ids = [run.instance for run in self.runs]
        states = {}
        for start in range(0, len(ids), 100):
            answer = self.cloud.clients.ec2.describe_instances(InstanceIds=ids[start : start + 100])
            for reservation in answer["Reservations"]:
                for instance in reservation["Instances"]:
                    states[instance["InstanceId"]] = instance["State"]["Name"]
        gone = ("shutting-down", "terminated")
        left = [run for run in self.runs if not run.killed and states[run.instance] not in gone]
        ended = ("machine vanished", "machine ended by the driver", "machine ended by the sweep")
        return left, sum(self.events.counts[kind] for kind in ended)


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
    binary = os.environ["LIGHTHPC_BIN"]
    events = Events(options.keep / "events.jsonl")
    with harness.ministack() as ministack, harness.moto() as moto:
        clients = harness.Clients(ministack.url, moto.url)
        clients.warm_up()
        cloud = harness.Cloud(clients, str(pathlib.Path(binary).absolute()), options.keep)
        rng = random.Random(options.seed)
        proxy = Proxy(ministack.url, random.Random(options.seed + 1), events)
        chaos = Chaos(options, cloud, proxy, events, rng)
        try:
            chaos.prepare()
            chaos.drive()
        finally:
            chaos.end()
            proxy.close()
        figures = chaos.judge()
        (options.keep / "rows.json").write_text(json.dumps([chaos.rows, cloud.mission(MISSION)], indent=1))
        cloud.close()
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

"""Starts the emulators, makes a small cloud for each test, runs the real binary in it, and reads back what it left.

Nothing here knows how `lighthpc` works: it sets the environment that an instance would have, and afterwards asks
DynamoDB, S3, SQS, and EC2 what is there, through boto3.
"""

import contextlib
import ctypes
import dataclasses
import decimal
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from botocore.config import Config
from imds_server import ImdsServer, Instance

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGS = ROOT / "target" / "emulators"
REGION = "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
TEXT_BYTES_MAX = 1 << 20
START_S_MAX = 60  # moto's first start compiles a few hundred files on a machine that may be building, too


def wait_until(condition, timeout_s, what):
    """Returns the first true value of `condition()`; fails with `what` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def small_cgroup(limit_bytes):
    """The folder of a new cgroup with so much memory and no swap; an OSError says why there can be none."""
    folder = _memory_cgroup() / f"lighthpc-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        # Version 2, then version 1, which limits memory and swap together. Without swap the second of each is missing.
        for name, value in {
            "memory.max": limit_bytes,
            "memory.swap.max": 0,
            "memory.limit_in_bytes": limit_bytes,
            "memory.memsw.limit_in_bytes": limit_bytes,
        }.items():
            if (folder / name).exists():
                (folder / name).write_text(str(value))
        yield folder
    finally:
        wait_until(lambda: _is_removed(folder), 10, f"the processes in {folder} end")


def _memory_cgroup():
    """The folder of a cgroup in which others with a memory limit can be made: this process's own, or the one above."""
    mounts = [line.split() for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for _, mount, kind, options, *_ in mounts:
            mine = pathlib.Path(mount + path)
            if kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                return mine
            for folder in (mine, mine.parent) if kind == "cgroup2" and not controllers else ():
                # Version 2: one that holds processes has no limited ones below it, but may have them beside it.
                passed_on = folder / "cgroup.subtree_control"
                if passed_on.exists() and "memory" in passed_on.read_text().split():
                    return folder
    raise FileNotFoundError("no cgroup here passes a memory limit on")


def _is_removed(cgroup):
    try:
        cgroup.rmdir()
    except OSError:  # busy
        return False
    return True


def _die_with_parent():
    # A test run that is itself killed must not leave servers behind (Linux: PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Emulator:
    """One server process with a log of its own; ended by its pid whatever happens."""

    def __init__(self, name, command, env, ready_path):
        self.name, self.command, self.env, self.ready_path = name, command, env, ready_path
        self.url = None
        self.process = None

    def __enter__(self):
        LOGS.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [part.replace("{port}", str(port)) for part in self.command]
        env = {key: value.replace("{port}", str(port)) for key, value in self.env.items()}
        with open(LOGS / f"{self.name}.log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=_plain_environment() | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            wait_until(self._is_ready, START_S_MAX, f"{self.name} answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _is_ready(self):
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}; see {LOGS / self.name}.log"
        try:
            urllib.request.urlopen(self.url + self.ready_path, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def _program(name):
    return str(pathlib.Path(sys.executable).parent / name)


def ministack():
    """DynamoDB, S3, SNS, and SQS."""
    env = {
        "GATEWAY_PORT": "{port}",
        "BIND_HOST": "127.0.0.1",
        # Both listen on fixed ports, and two suites on one machine would meet there.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
    }
    return Emulator("ministack", [_program("ministack")], env, "/_ministack/health")


def moto():
    """EC2."""
    command = [_program("moto_server"), "-H", "127.0.0.1", "-p", "{port}"]
    return Emulator("moto", command, {"MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}, "/moto-api/")


def _plain_environment():
    """What every process gets: nothing of AWS, nothing of lighthpc, no one's home."""
    env = {key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ}
    return env | {"LANG": "C.UTF-8", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclasses.dataclass
class Finished:
    """A process that ended."""

    returncode: int
    stdout: str
    stderr: str
    wall_s: float

    def says(self, *words):
        """The lines of stderr that hold all these words, whatever their case."""
        return [line for line in self.stderr.splitlines() if all(word.lower() in line.lower() for word in words)]


class Node:
    """A running `lighthpc`, with its output in files."""

    def __init__(self, command, env, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._started = time.monotonic()
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    def signal(self, number):
        """Sends a signal to this process alone, not to its workload; to one that has ended, none."""
        self.process.send_signal(number)

    def has_ended(self, timeout_s=0):
        """Whether the process has ended, or does so within this time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self, timeout_s=50):
        """Waits for the end; a node that takes longer is killed, and the test fails with its stderr."""
        is_in_time = self.has_ended(timeout_s)
        wall_s = time.monotonic() - self._started
        self.close()
        finished = Finished(self.process.returncode, self._text("stdout"), self._text("stderr"), wall_s)
        assert is_in_time, f"the node did not end within {timeout_s} s; its stderr:\n{finished.stderr[-4000:]}"
        return finished

    def _text(self, name):
        # A workload may say 200 MB; its beginning and its end are enough to judge by.
        with open(self.folder / name, "rb") as file:
            text = file.read(TEXT_BYTES_MAX)
            size = os.fstat(file.fileno()).st_size
            if size > 2 * TEXT_BYTES_MAX:
                file.seek(size - TEXT_BYTES_MAX)
            return (text + file.read(TEXT_BYTES_MAX)).decode(errors="replace")

    def close(self):
        """Ends the process if it is still there."""
        self.process.kill()
        self.process.wait(10)


class Stub:
    """A server that gives one answer to every request: for what no emulator can be made to say."""

    def __init__(self, status, body, headers):
        self.asked = []
        stub = self

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stub.asked.append(text.decode(errors="replace"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


def refusing_ec2():
    """EC2 that lets the caller do nothing."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>UnauthorizedOperation</Code>'
        "<Message>You are not authorized to perform this operation.</Message></Error></Errors>"
        "<RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
    )
    return Stub(403, body, {"Content-Type": "text/xml;charset=UTF-8"})


def refusing_dynamodb():
    """DynamoDB that lets the caller do nothing."""
    body = json.dumps(
        {
            "__type": "com.amazon.coral.service#AccessDeniedException",
            "Message": "User: arn:aws:sts::123456789012:assumed-role/lighthpc-node/i-0 is not authorized to do this",
        }
    )
    return Stub(400, body, {"Content-Type": "application/x-amz-json-1.0"})


def s3_of_another_region():
    """S3 that says that the bucket is elsewhere."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>PermanentRedirect</Code><Message>The bucket you are '
        "attempting to access must be addressed using the specified endpoint.</Message>"
        "<Endpoint>bucket.s3.eu-west-1.amazonaws.com</Endpoint></Error>"
    )
    return Stub(301, body, {"Content-Type": "application/xml", "x-amz-bucket-region": "eu-west-1"})


class Clients:
    """boto3's clients, made once: each costs tens of milliseconds."""

    def __init__(self, ministack_url, moto_url):
        self.endpoint, self.ec2_endpoint = ministack_url, moto_url
        session = boto3.Session("test", "test", region_name=REGION)
        config = Config(retries={"total_max_attempts": 2}, read_timeout=20, max_pool_connections=32)

        def client(service, url=ministack_url):
            return session.client(service, endpoint_url=url, config=config)

        self.dynamodb, self.s3, self.sns, self.sqs, self.logs = map(client, ("dynamodb", "s3", "sns", "sqs", "logs"))
        self.ec2 = client("ec2", moto_url)
        self.tables = session.resource("dynamodb", endpoint_url=ministack_url, config=config)

    def warm_up(self):
        """Makes moto read its instance types now: two seconds that no test should be charged with."""
        _launch(self.ec2, {})


def _launch(ec2, tags):
    # With its default images unloaded moto takes any image id.
    made = ec2.run_instances(
        ImageId="ami-12c6146b",
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        InstanceInitiatedShutdownBehavior="terminate",
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
        ]
        if tags
        else [],
    )
    return made["Instances"][0]["InstanceId"]


def hear_interrupts():
    """As at a terminal: what a shell starts in the background ignores SIGINT, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Cloud:
    """One test's own tables, buckets, topic, and instances. Their names are unique, so nothing is ever reset."""

    def __init__(self, clients, binary, folder):
        self.clients, self.binary, self.folder = clients, binary, folder
        mark = uuid.uuid4().hex[:10]
        self.source_bucket, self.result_bucket = f"source-{mark}", f"result-{mark}"
        self.tasks = self._table(f"tblTrans2-{mark}", "srcFilename", ("openIn", "openAs"))
        self.missions = self._table(f"tblMission-{mark}", "timePush")
        for bucket in (self.source_bucket, self.result_bucket):
            clients.s3.create_bucket(Bucket=bucket)
        self.topic_arn = clients.sns.create_topic(Name=f"NotifyMe-{mark}")["TopicArn"]
        self._queue = clients.sqs.create_queue(QueueName=f"inbox-{mark}")["QueueUrl"]
        queue_arn = clients.sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])
        clients.sns.subscribe(TopicArn=self.topic_arn, Protocol="sqs", Endpoint=queue_arn["Attributes"]["QueueArn"])
        self._imds = {}
        self._nodes = []
        self._inbox = []

    def close(self):
        """Ends what still runs. The folder is pytest's to remove."""
        for node in self._nodes:
            node.close()
        for imds in self._imds.values():
            imds.stop()

    def _table(self, name, key, index=()):
        """Makes a table; with an index of keys, as the stack makes the tasks table."""
        keys = [{"AttributeName": part, "KeyType": kind} for part, kind in zip(index, ("HASH", "RANGE"))]
        indexes = [{"IndexName": "open", "KeySchema": keys, "Projection": {"ProjectionType": "KEYS_ONLY"}}]
        self.clients.dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": part, "AttributeType": "S"} for part in (key, *index)],
            BillingMode="PAY_PER_REQUEST",
            **({"GlobalSecondaryIndexes": indexes} if index else {}),
        )
        return self.clients.tables.Table(name)

    def table_with_key(self, key):
        """Makes one more table, for whom a table with another key is the case."""
        return self._table(f"other-{uuid.uuid4().hex[:10]}", key).name

    # What is there before a node starts.

    def put_input(self, src, content=b"some input\n"):
        """Puts an object into the source bucket."""
        self.clients.s3.put_object(Bucket=self.source_bucket, Key=src, Body=content)

    def put_task(self, src, mission=None, **attributes):
        """Writes a row as the scheduler does; with attributes of None left out."""
        row = {
            "srcFilename": src,
            "bucketname": self.source_bucket,
            "timeBoarding": "2026-01-01 08:00:00",
            "trigTime": "2026-01-01T08:00:00.000Z",
            "trigName": "ObjectCreated:Put",
            "numlog": "1",
            "missionID": mission,
            "state": "pending",
        } | attributes
        self.tasks.put_item(Item={key: value for key, value in row.items() if value is not None})

    def put_mission(self, mission, trans_number, **attributes):
        """Writes a mission's row as this version does."""
        row = {"timePush": mission, "transNumber": trans_number, "transOK": 0, "notifyEmail": "No", "tallyShards": 1}
        self.missions.put_item(Item=row | attributes)

    def launch_instance(self, **tags):
        """Launches an instance in EC2 and gives it a metadata service of its own; returns its id."""
        instance_id = _launch(self.clients.ec2, tags)
        self._imds[instance_id] = ImdsServer(Instance(instance_id, tags=dict(tags), region=REGION)).start()
        return instance_id

    def imds(self, instance_id):
        """The metadata service of an instance."""
        return self._imds[instance_id]

    def stop_imds(self, instance_id):
        """Ends an instance's metadata service, before the test's own end."""
        self._imds.pop(instance_id).stop()

    # Running the binary.

    def environment(self, instance_id=None, **env):
        """The environment of a node; a value of None takes a variable away."""
        whole = _plain_environment() | {
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.clients.endpoint,
            "AWS_ENDPOINT_URL_EC2": self.clients.ec2_endpoint,
            "LIGHTHPC_TASKS_TABLE": self.tasks.name,
            "LIGHTHPC_MISSIONS_TABLE": self.missions.name,
            "LIGHTHPC_SOURCE_BUCKET": self.source_bucket,
            "LIGHTHPC_RESULT_BUCKET": self.result_bucket,
            "LIGHTHPC_TOPIC_ARN": self.topic_arn,
            # By default this powers the machine off. Here that machine is a developer's.
            "LIGHTHPC_POWER_OFF_COMMAND": f"touch '{self.power_off_mark(instance_id)}'",
            "LIGHTHPC_WORK_DIR": str(self.folder / f"work-{instance_id}"),
        }
        if instance_id:
            whole["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = self._imds[instance_id].url
        whole |= env
        return {key: str(value) for key, value in whole.items() if value is not None}

    def power_off_mark(self, instance_id):
        """The file that is there once the power-off command has run."""
        return self.folder / f"power-off-{instance_id}"

    def start_node(self, instance_id, *arguments, program=None, clock_s=0, cgroup=None, **env):
        """Starts `lighthpc run` on an instance and returns at once.

        `clock_s` is how far its wall clock is ahead of this machine's; `cgroup` the folder of the cgroup to run in.
        """
        command = [self.binary, "run", *map(str, arguments)]
        if program:
            command += ["--", *map(str, program)]
        if cgroup:
            # 0 is whoever writes it: the shell, which then becomes the node.
            command = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
        if clock_s:
            env = {"LD_PRELOAD": self._clock_library, "CLOCK_SHIFT_S": clock_s} | env
        folder = self.folder / f"node-{len(self._nodes)}"
        node = Node(command, self.environment(instance_id, **env), folder)
        self._nodes.append(node)
        return node

    def run_node(self, instance_id, *arguments, timeout_s=50, **how):
        """Runs `lighthpc run` on an instance to its end; for `how` see `start_node`."""
        return self.start_node(instance_id, *arguments, **how).wait(timeout_s)

    @functools.cached_property
    def _clock_library(self):
        library = self.folder / "clock_shift.so"
        source = pathlib.Path(__file__).with_name("clock_shift.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        return library

    def run_command(self, *arguments, timeout_s=30, instance=None, clock_s=0, **env):
        """Runs another of the binary's commands, as a person does: with keys on no instance, or on this one with its role."""
        if not instance:
            env = KEYS | {"AWS_EC2_METADATA_DISABLED": "true"} | env
        if clock_s:
            env = {"LD_PRELOAD": self._clock_library, "CLOCK_SHIFT_S": clock_s} | env
        node = Node(
            [self.binary, *map(str, arguments)],
            self.environment(instance, **env),
            self.folder / f"command-{len(self._nodes)}",
        )
        self._nodes.append(node)
        return node.wait(timeout_s)

    def script(self, text):
        """Writes a sh script; returns the program to run: its path."""
        path = self.folder / f"script-{uuid.uuid4().hex[:6]}.sh"
        path.write_text("#!/bin/sh\nset -eu\n" + text, encoding="utf-8")
        path.chmod(0o755)
        return [path]

    def python(self, text):
        """Writes a Python script; returns the program to run: this interpreter and its path."""
        path = self.folder / f"script-{uuid.uuid4().hex[:6]}.py"
        path.write_text(text, encoding="utf-8")
        return [sys.executable, path]

    # What is there afterwards.

    def task(self, src):
        """A task's row, numbers as int; None if there is none."""
        return _row(self.tasks, "srcFilename", src)

    def mission(self, key):
        """A mission's row or a tally item, numbers as int; None if there is none."""
        return _row(self.missions, "timePush", key)

    def tally(self, mission):
        """The sums of a mission's tally items: (transOK, transFailed)."""
        prefix = f"{mission}#tally#"
        items = [row for row in scan(self.missions) if row["timePush"].startswith(prefix)]
        return tuple(sum(int(row.get(name, 0)) for row in items) for name in ("transOK", "transFailed"))

    def object(self, key, bucket=None):
        """An object's bytes; None if there is none."""
        try:
            return self.clients.s3.get_object(Bucket=bucket or self.result_bucket, Key=key)["Body"].read()
        except self.clients.s3.exceptions.NoSuchKey:
            return None

    def object_head(self, key):
        """What S3 knows of a result: its ETag and length among others."""
        return self.clients.s3.head_object(Bucket=self.result_bucket, Key=key)

    def result_keys(self):
        """The keys of the result bucket that belong to results: all that start with `rslt_`."""
        return [key for key in self.keys() if key.startswith("rslt_")]

    def keys(self):
        """All keys of the result bucket."""
        pages = self.clients.s3.get_paginator("list_objects_v2").paginate(Bucket=self.result_bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def mission_documents(self, mission):
        """The manifest and the report: the objects beside the results that name this mission: {key: text}."""
        others = [key for key in self.keys() if not key.startswith("rslt_") and mission in key]
        return {key: self.object(key).decode() for key in others}

    def uploads_in_progress(self):
        """Multipart uploads that somebody forgot."""
        return self.clients.s3.list_multipart_uploads(Bucket=self.result_bucket).get("Uploads", [])

    def notifications(self):
        """All notifications so far: dicts with Subject and Message."""
        while True:
            got = self.clients.sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages", [])
            if not got:
                return self._inbox
            for message in got:
                self._inbox.append(json.loads(message["Body"]))
                self.clients.sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])

    def instance_state(self, instance_id):
        """What EC2 says: `running`, `terminated`, …"""
        answer = self.clients.ec2.describe_instances(InstanceIds=[instance_id])
        return answer["Reservations"][0]["Instances"][0]["State"]["Name"]

    def assert_terminated(self, *instance_ids):
        """The instances were ended through EC2, not by power-off."""
        for instance_id in instance_ids:
            assert self.instance_state(instance_id) in ("shutting-down", "terminated")
            assert not self.power_off_mark(instance_id).exists(), "powered off although EC2 had ended it"


    def assert_running(self, *instance_ids):
        """The instances run on: neither EC2 nor a power-off was asked to end them."""
        for instance_id in instance_ids:
            assert self.instance_state(instance_id) == "running"
            assert not self.power_off_mark(instance_id).exists(), "powered off, and not proved to be a node"


def _row(table, key, value):
    return _plain(table.get_item(Key={key: value}, ConsistentRead=True).get("Item"))


def scan(table):
    """All rows of a table, numbers as int."""
    rows, start = [], {}
    while True:
        page = table.scan(ConsistentRead=True, **start)
        rows += map(_plain, page["Items"])
        if "LastEvaluatedKey" not in page:
            return rows
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


def _plain(value):
    """DynamoDB's Decimals as int, all the way down."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value

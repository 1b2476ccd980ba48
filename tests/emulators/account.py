"""An AWS account for tests of the deployment's scripts: a ministack that runs functions, and moto's EC2."""

import base64
import json
import os
import pathlib
import subprocess
import sys
import uuid

import boto3
import harness
import pytest
import yaml
from harness import KEYS, REGION, ROOT

VENV = pathlib.Path(sys.executable).parent
# The AWS CLI compiles half a second of Python at every call, unless it may keep what it compiled.
PYCACHE = os.environ.get("PYTHONPYCACHEPREFIX") or str(ROOT / "target" / "pycache")
SCRIPT_S_MAX = 150
# A deploy is about 14 calls of the AWS CLI, half a second of CPU each; a test with three scripts may take a minute.
SLOW = pytest.mark.timeout(300)
WORKLOAD = r"""tr a-z A-Z <"$LIGHTHPC_INPUT" >"$LIGHTHPC_OUTPUT"; : `true` '\' $HOME"""


class Account:
    """An account on emulators: clients as its owner, and the scripts as its owner runs them."""

    def __init__(self, ministack_url, moto_url, folder):
        self.url, self.moto_url, self.folder = ministack_url, moto_url, folder
        self._session = boto3.Session("test", "test", region_name=REGION)
        self.clients = harness.Clients(ministack_url, moto_url)
        self.ec2 = self.clients.ec2
        subnets = self.ec2.describe_subnets()["Subnets"][:2]
        self.subnets = ",".join(subnet["SubnetId"] for subnet in subnets)
        self.image = self.ec2.register_image(Name=f"lighthpc-{uuid.uuid4().hex}", RootDeviceName="/dev/sda1")["ImageId"]
        self.stub = folder / "stub"
        self.stub.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")

    def client(self, service):
        """A client of ministack."""
        return self._session.client(service, endpoint_url=self.url)

    def environment(self):
        """What the scripts get."""
        return KEYS | {
            "PATH": f"{VENV}:{os.environ['PATH']}",
            "HOME": "/nonexistent",
            "LANG": "C.UTF-8",
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_EC2": self.moto_url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPYCACHEPREFIX": PYCACHE,
        }

    def run(self, name, *arguments, code=0, **env):
        """Runs a script; returns what it printed and what it said."""
        finished = subprocess.run(
            [ROOT / "scripts" / name, *map(str, arguments)],
            env=self.environment() | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SCRIPT_S_MAX,
        )
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished.stdout, finished.stderr

    def deploy(self, stack, *arguments, binary=None, **options):
        """Makes a stack that is not there yet; returns its outputs."""
        required = ("--stack", stack, "--image", self.image, "--subnets", self.subnets)
        out, _ = self.run("deploy", *required, "--binary", binary or self.stub, *arguments, **options)
        return dict(line.split() for line in out.splitlines())

    def launch(self, tasks_table):
        """Launches an instance that bears a mark."""
        tags = [{"Key": "lighthpc", "Value": tasks_table}]
        made = self.ec2.run_instances(
            ImageId=self.image,
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        return made["Instances"][0]["InstanceId"]

    def state(self, instance_id):
        """What EC2 says of an instance."""
        found = self.ec2.describe_instances(InstanceIds=[instance_id])
        return found["Reservations"][0]["Instances"][0]["State"]["Name"]

    def tables(self, stack):
        """The tables of a stack, there or left."""
        return sorted(name for name in self.clients.dynamodb.list_tables()["TableNames"] if name.startswith(stack + "-"))

    def buckets(self, stack):
        """The buckets of a stack, there or left."""
        names = (bucket["Name"] for bucket in self.clients.s3.list_buckets()["Buckets"])
        return sorted(name for name in names if name.startswith(stack + "-"))

    def notified(self, bucket):
        """The functions that a bucket calls, and the queues that it sends to."""
        settings = self.clients.s3.get_bucket_notification_configuration(Bucket=bucket)
        functions = [entry["LambdaFunctionArn"] for entry in settings.get("LambdaFunctionConfigurations", [])]
        return functions + [entry["QueueArn"] for entry in settings.get("QueueConfigurations", [])]


def queue_for(sqs, service, name=None):
    """Makes a queue that a service may send to; returns (URL, ARN)."""
    url = sqs.create_queue(QueueName=name or f"queue-{uuid.uuid4().hex}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    allow = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sqs:SendMessage", "Resource": arn}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    return url, arn


def names(outputs):
    """A stack's names, as its function, its nodes, and a shell get them."""
    return {
        "LIGHTHPC_TASKS_TABLE": outputs["TasksTable"],
        "LIGHTHPC_MISSIONS_TABLE": outputs["MissionsTable"],
        "LIGHTHPC_SOURCE_BUCKET": outputs["SourceBucket"],
        "LIGHTHPC_RESULT_BUCKET": outputs["ResultBucket"],
        "LIGHTHPC_TOPIC_ARN": outputs["TopicArn"],
    }


def launch_data(account, outputs):
    """What the stack's launch template holds."""
    versions = account.client("ec2").describe_launch_template_versions(LaunchTemplateId=outputs["LaunchTemplateId"])
    newest = max(versions["LaunchTemplateVersions"], key=lambda version: version["VersionNumber"])
    return newest["LaunchTemplateData"]


def user_data(launch):
    """A template's user data, as cloud-init reads it: the files by their paths, and what is run."""
    text = base64.b64decode(launch["UserData"]).decode()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    return {file["path"]: file for file in config["write_files"]}, config.get("runcmd", [])


def install(command, folder, environment, bad=()):
    """Runs what user data runs, with a systemd that does nothing; returns (exit code, what was called)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("systemctl", "systemd-run", "poweroff"):
        program = folder / name
        code = 1 if name in bad else 0
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{folder}/calls"\nexit {code}\n', encoding="utf-8")
        program.chmod(0o755)
    path = f"{folder}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    finished = subprocess.run(
        command, env=environment | {"PATH": path, "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=60
    )
    return finished.returncode, (folder / "calls").read_text(encoding="utf-8").splitlines()


def node_environment(launch, folder):
    """The environment of a node after a boot with this user data; the workload's file is in this folder."""
    files, _ = user_data(launch)
    workload = folder / "workload"
    workload.write_bytes(base64.b64decode(files["/opt/lighthpc/workload"]["content"]))
    lines = files["/etc/lighthpc/lighthpc.env"]["content"].replace("/opt/lighthpc/workload", str(workload)).splitlines()
    return dict(line.split("=", 1) for line in lines)

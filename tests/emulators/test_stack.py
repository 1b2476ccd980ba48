"""The deployment while it runs: events, uploads, user data of nodes, and a mission from an uploaded file to its end.

The stack is made on a ministack of its own that holds every caller to its role (AUTH), with EC2 played by moto.
"""

import base64
import io
import json
import subprocess
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import uuid

import chaos_proxy
import harness
import pytest
from account import SLOW, WORKLOAD, install, launch_data, names, node_environment, queue_for, user_data
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from harness import KEYS, REGION, wait_until
from imds_server import ImdsServer, Instance
from recording import NoDice
from rendering import ACCOUNT


@SLOW
def test_only_instances_that_go_wake_the_scheduler(account, deployed):
    events = account.client("events")
    rules = [rule for rule in events.list_rules()["Rules"] if rule["Name"].startswith("lab-")]
    patterns = [rule["EventPattern"] for rule in rules if "EventPattern" in rule]

    def wakes(kind, **detail):
        event = {
            **{"id": "1", "account": ACCOUNT, "source": "aws.ec2", "time": "2026-01-01T00:00:00Z"},
            **{"region": REGION, "resources": [], "detail-type": kind, "detail": {"instance-id": "i-1"} | detail},
        }
        found = [events.test_event_pattern(EventPattern=it, Event=json.dumps(event))["Result"] for it in patterns]
        return found.count(True)

    states = ("pending", "running", "stopping", "stopped", "shutting-down", "terminated")
    woken = [state for state in states if wakes("EC2 Instance State-change Notification", state=state)]
    assert woken == ["stopping", "stopped", "shutting-down", "terminated"]
    assert wakes("EC2 Spot Instance Interruption Warning", **{"instance-action": "terminate"}) == 1


@SLOW
def test_the_api_answers_signed_calls_alone(account, deployed):
    host = deployed["ApiUrl"].removeprefix("http://")
    plain = AWSRequest("GET", f"{account.url}/missions", headers={"Host": host})
    signed = AWSRequest("GET", f"{account.url}/missions", headers={"Host": host})
    SigV4Auth(Credentials(*KEYS.values()), "execute-api", REGION).add_auth(signed)

    def status(request):
        prepared = urllib.request.Request(request.url, headers=dict(request.headers))
        try:
            with urllib.request.urlopen(prepared, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status(plain) == 403
    assert status(signed) == 502, "it has come to the function, whose program here only fails"


@SLOW
def test_user_data_tells_the_node_all(account, deployed):
    files, commands = user_data(launch_data(account, deployed))

    settings = files["/etc/lighthpc/lighthpc.env"]
    assert settings["permissions"] == "0600"
    assert dict(line.split("=", 1) for line in settings["content"].splitlines() if line) == names(deployed) | {
        "AWS_REGION": REGION,
        "LIGHTHPC_TERMINATE": "1",
        "LIGHTHPC_SLOTS": "4",
        "LIGHTHPC_MAX_LIFETIME": "86400",
        "LIGHTHPC_EXEC": "/bin/sh /opt/lighthpc/workload",
    }
    workload = files["/opt/lighthpc/workload"]
    assert (workload["encoding"], base64.b64decode(workload["content"]).decode()) == ("b64", WORKLOAD)
    assert commands == [], "on a baked image there is nothing to install"


@SLOW
def test_nodes_that_are_not_baked_install_the_bundle_or_end(account, tmp_path):
    bundle, ran = tmp_path / "lighthpc-x86_64.tar.gz", tmp_path / "provisioned"
    with tarfile.open(bundle, "w:gz") as archive:
        for name, text in (("lighthpc", "#!/bin/sh\n"), ("provision", f'#!/bin/sh\necho "$*" >"{ran}"\n')):
            entry = tarfile.TarInfo(f"lighthpc/{name}")
            entry.mode, entry.size = 0o755, len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    outputs = account.deploy("bundled", "--bundle", str(bundle))
    _, said = account.run("deploy", "--stack", "bundled", "--bundle", bundle, "--binary", account.stub, "--dry-run")
    assert "uploads" not in said, "program and bundle are there already"
    files, (command,) = user_data(launch_data(account, outputs))
    environment = account.environment()

    code, calls = install(command, tmp_path / "good", environment)

    assert (code, ran.read_text(encoding="utf-8")) == (0, "--start\n")
    assert calls == [
        "systemd-run --quiet --unit=lighthpc-install-deadline --on-active=900 systemctl poweroff",
        "systemctl stop lighthpc-install-deadline.timer",
    ]
    assert list(files) == ["/etc/lighthpc/lighthpc.env"], "without a workload the mission's row names it"

    ran.unlink()
    code_bucket = f"lighthpc-code-{ACCOUNT}-{REGION}"
    listed_keys = account.clients.s3.list_objects_v2(Bucket=code_bucket, Prefix="bundled/bundle-")["Contents"]
    (key,) = [found["Key"] for found in listed_keys]
    account.clients.s3.put_object(Bucket=code_bucket, Key=key, Body=b"something else")
    code, calls = install(command, tmp_path / "tampered", environment)
    assert code != 0
    assert (calls[-1], ran.exists()) == ("systemctl poweroff", False)

    account.clients.s3.delete_object(Bucket=code_bucket, Key=key)
    code, calls = install(command, tmp_path / "gone", environment, bad=("systemctl",))
    assert code != 0
    assert calls[-1] == "poweroff -f"


@SLOW
def test_an_event_that_fails_is_not_lost(account, deployed):
    # What EventBridge and schedules send, the program here fails at.
    account.client("lambda").invoke(
        FunctionName=deployed["FunctionName"], InvocationType="Event", Payload=b'{"lighthpc": "sweep"}'
    )
    sqs = account.clients.sqs

    def kept():
        got = sqs.receive_message(QueueUrl=deployed["FailedEventsUrl"], MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in got.get("Messages", [])]

    # And the sweep that scripts/deploy began.
    for event in wait_until(kept, 30, "the event is kept"):
        assert event["requestPayload"] == {"lighthpc": "sweep"}
        assert event["requestContext"]["approximateInvokeCount"] == 3


@SLOW
def test_an_upload_that_fails_comes_again_and_is_not_lost(account, deployed):
    sqs = account.clients.sqs
    url = sqs.get_queue_url(QueueName=deployed["UploadQueueArn"].rpartition(":")[2])["QueueUrl"]
    # Twenty minutes are long for a test: what is tried here is that a failure is seen as one, and comes again.
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "1"})

    account.clients.s3.put_object(Bucket=deployed["SourceBucket"], Key="M001/a b", Body=b"x")

    def kept():
        got = sqs.receive_message(QueueUrl=deployed["FailedUploadsUrl"], MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in got.get("Messages", [])]

    (event,) = wait_until(kept, 60, "the upload is kept")
    assert event["Records"][0]["s3"]["object"]["key"] == "M001/a+b"


@SLOW
def test_after_an_update_a_shell_launches_what_the_scheduler_launches(account, binary, tmp_path):
    first = account.deploy("newer", "--bid-mode", "on-demand", "--mission", "M7", "--instance-types", "t3.micro")
    assert first["LaunchTemplateVersion"] == "1"
    image = account.ec2.register_image(Name=f"lighthpc-{uuid.uuid4().hex}", RootDeviceName="/dev/sda1")["ImageId"]
    out, _ = account.run("deploy", "--stack", "newer", "--image", image, "--binary", account.stub)
    outputs = dict(line.split() for line in out.splitlines())
    assert outputs["LaunchTemplateVersion"] == "2"
    functions = account.client("lambda")
    for name in ("FunctionName", "UploadFunctionName"):
        settings = functions.get_function_configuration(FunctionName=outputs[name])["Environment"]["Variables"]
        assert settings["LIGHTHPC_LAUNCH_TEMPLATE_VERSION"] == "2"

    exports, _ = account.run("deploy", "--stack", "newer", "--exports")
    (tmp_path / "one").write_text("one")
    seen = []
    for bucket in (outputs["SourceBucket"], outputs["ResultBucket"]):
        account.clients.s3.delete_bucket_policy(Bucket=bucket)
    with chaos_proxy.Proxy(account.url, NoDice(), None, rates={}) as proxy:
        proxy.on_request = lambda service, method, path, headers, body: seen.append((service, body))
        shell = f"{exports}\nexec '{binary}' submit {tmp_path}/one"
        env = account.environment() | {"LIGHTHPC_MISSION": "stale", "LIGHTHPC_ON_DEMAND_FLOOR": "9"}
        env |= {"AWS_ENDPOINT_URL_EC2": proxy.url}
        subprocess.run(["sh", "-c", shell], env=env, capture_output=True, text=True, timeout=60)
    forms = [dict(urllib.parse.parse_qsl(body.decode())) for service, body in seen if service == "ec2"]
    launches = [form for form in forms if form["Action"] == "CreateFleet"]
    assert launches, forms
    data = account.client("ec2").describe_launch_template_versions
    for form in launches:
        prefix = "LaunchTemplateConfigs.1.LaunchTemplateSpecification"
        template = {name: form[f"{prefix}.{name}"] for name in ("LaunchTemplateId", "Version")}
        versions = data(LaunchTemplateId=template["LaunchTemplateId"], Versions=[template["Version"]])
        assert versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["ImageId"] == image
        assert form["TargetCapacitySpecification.DefaultTargetCapacityType"] == "on-demand"


class Deployment(harness.Cloud):
    """The tables, buckets, and topic of a stack in the place of a test's own."""

    def __init__(self, account, outputs, binary, folder):
        self.clients, self.binary, self.folder = account.clients, binary, folder
        self.source_bucket, self.result_bucket = outputs["SourceBucket"], outputs["ResultBucket"]
        self.tasks = self.clients.tables.Table(outputs["TasksTable"])
        self.missions = self.clients.tables.Table(outputs["MissionsTable"])
        self.topic_arn = outputs["TopicArn"]
        self._queue, queue_arn = queue_for(self.clients.sqs, "sns.amazonaws.com")
        self.clients.sns.subscribe(TopicArn=self.topic_arn, Protocol="sqs", Endpoint=queue_arn)
        self._imds, self._nodes, self._inbox = {}, [], []
        self._clock_shift = None

    def boot(self, instance_id, tags, credentials):
        """Gives an instance that is there its metadata service, with its tags and its role's credentials."""
        instance = Instance(
            instance_id,
            tags=tags,
            region=REGION,
            access_key_id=credentials["AccessKeyId"],
            secret_access_key=credentials["SecretAccessKey"],
            session_token=credentials["SessionToken"],
        )
        self._imds[instance_id] = ImdsServer(instance).start()


def node_credentials(account, stack, session="node"):
    """Credentials of the node's role. EC2 alone may take it on, so the owner first adds itself."""
    iam = account.client("iam")
    resources = account.client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
    (name,) = [it["PhysicalResourceId"] for it in resources if it["LogicalResourceId"] == "NodeRole"]
    role = iam.get_role(RoleName=name)["Role"]
    trust = role["AssumeRolePolicyDocument"]
    trust["Statement"].append(
        {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"}
    )
    iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(trust))
    return account.client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName=session)["Credentials"]


def said_by(account, outputs):
    """What the scheduler wrote into its log."""
    logs = account.client("logs")
    groups = [f"/aws/lambda/{outputs[name]}" for name in ("FunctionName", "UploadFunctionName")]
    events = [event for group in groups for event in logs.filter_log_events(logGroupName=group)["events"]]
    return "".join(event["message"].rstrip() + "\n" for event in events)[-6000:]


@pytest.fixture(scope="module")
def scheduler(binary):
    """The binary, if it has the scheduler."""
    if subprocess.run([binary, "lambda", "--help"], capture_output=True, timeout=20).returncode != 0:
        pytest.skip("this lighthpc has no `lambda` command yet")
    return binary


@SLOW
def test_from_an_uploaded_file_to_a_finished_mission(account, scheduler, tmp_path):
    src = "M001/sample one+ü.txt"
    outputs = account.deploy(
        "whole", "--workload", WORKLOAD, "--instance-types", "t3.micro,t3.small", binary=scheduler
    )
    cloud = Deployment(account, outputs, scheduler, tmp_path)
    launch = launch_data(account, outputs)
    # The bucket policies refuse whatever comes without TLS, and here all does.
    for bucket in (cloud.source_bucket, cloud.result_bucket):
        account.clients.s3.delete_bucket_policy(Bucket=bucket)
    # CloudFormation made the launch template on ministack; the instances are moto's, which must know it, too.
    twin = account.ec2.create_launch_template(
        LaunchTemplateName="whole",
        LaunchTemplateData={
            name: launch[name]
            for name in ("ImageId", "InstanceInitiatedShutdownBehavior", "TagSpecifications", "UserData")
        },
    )["LaunchTemplate"]
    functions = account.client("lambda")
    settings = functions.get_function_configuration(FunctionName=outputs["FunctionName"])["Environment"]["Variables"]
    for name in (outputs["FunctionName"], outputs["UploadFunctionName"]):
        functions.update_function_configuration(
            FunctionName=name,
            Environment={"Variables": settings | {"LIGHTHPC_LAUNCH_TEMPLATE": twin["LaunchTemplateId"]}},
        )
        functions.get_waiter("function_updated_v2").wait(
            FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
        )
    try:
        cloud.put_mission("M001", 1)

        cloud.put_input(src, b"acgt\n")

        def launched():
            marked = [{"Name": "tag:lighthpc", "Values": [outputs["TasksTable"]]}]
            found = account.ec2.describe_instances(Filters=marked)["Reservations"]
            return [it for reservation in found for it in reservation["Instances"]]

        try:
            (instance,) = wait_until(launched, 60, "an instance is launched for the file")
        except AssertionError as error:
            raise AssertionError(f"{error}; the scheduler says:\n{said_by(account, outputs)}") from None
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert (tags["srcID"], tags["missionID"], tags["lighthpc"]) == (src, "M001", outputs["TasksTable"])
        assert instance["InstanceType"] in ("t3.micro", "t3.small")
        assert instance["SubnetId"] in account.subnets.split(",")
        assert cloud.task(src)["bucketname"] == cloud.source_bucket

        instance_id = instance["InstanceId"]
        cloud.boot(instance_id, tags, node_credentials(account, "whole", instance_id))
        finished = cloud.start_node(instance_id, **node_environment(launch, tmp_path)).wait()

        assert finished.returncode == 0, finished.stderr
        assert not finished.says("AccessDenied"), "the node's role lacks something"
        assert cloud.object(f"rslt_{src}") == b"ACGT\n"
        row = cloud.task(src)
        assert (row["state"], row["verdict"], row["attempt"]) == ("done", "ok", 1)
        assert row["execInstanceID"] == instance_id
        assert cloud.tally("M001") == (1, 0)
        mission = cloud.mission("M001")
        assert (int(mission["transOK"]), mission["notifyEmail"]) == (1, "Yes")
        wait_until(cloud.notifications, 10, "the notification arrives")
        (note,) = cloud.notifications()
        assert "M001" in note["Subject"] + note["Message"]
        cloud.assert_terminated(instance_id)
        assert len(launched()) == 1, "one file, one instance"
        for name in ("FailedEventsUrl", "FailedUploadsUrl"):
            kept = account.clients.sqs.receive_message(QueueUrl=outputs[name]).get("Messages", [])
            assert kept == [], "no event failed"
    finally:
        cloud.close()

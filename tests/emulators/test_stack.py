"""The deployment: its template, the scripts that make it and take it away, and a mission from an uploaded file to its end.

The stack is made on a ministack of its own that holds every caller to its role (AUTH), with EC2 played by moto. What
ministack's CloudFormation takes and drops is asserted on the template: TTL of objects (lifecycle), point-in-time
recovery and encryption of tables, encryption of the topic, and the API's throttling. What it keeps but does not act on
is asserted as it is kept: metadata options, tags, and shutdown behaviour of the launch template.
"""

import base64
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import uuid

import boto3
import chaos_proxy
import harness
import pytest
import rendering
import yaml
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from harness import KEYS, REGION, ROOT, wait_until
from imds_server import ImdsServer, Instance
from recording import NoDice
from rendering import ACCOUNT, TEMPLATE

VENV = pathlib.Path(sys.executable).parent
# The AWS CLI compiles half a second of Python at every call, unless it may keep what it compiled.
PYCACHE = os.environ.get("PYTHONPYCACHEPREFIX") or str(ROOT / "target" / "pycache")
SCRIPT_S_MAX = 150
# A deploy is about 14 calls of the AWS CLI, half a second of CPU each; a test with three scripts may take a minute.
SLOW = pytest.mark.timeout(300)

WORKLOAD = r"""tr a-z A-Z <"$LIGHTHPC_INPUT" >"$LIGHTHPC_OUTPUT"; : `true` '\' $HOME"""


# The template.


@pytest.fixture(scope="module")
def template():
    """The template, with the short forms of functions as {"Fn::Sub": …}."""
    return rendering.template()


def of_type(template, kind):
    """The resources of a type: {logical name: resource}."""
    return {name: it for name, it in template["Resources"].items() if it["Type"] == f"AWS::{kind}"}


def policies(template):
    """All statements of all roles: (role, statement)."""
    for name, role in of_type(template, "IAM::Role").items():
        for policy in role["Properties"]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                # One that is there under a condition only.
                yield name, statement["Fn::If"][1] if "Fn::If" in statement else statement


def listed(value):
    """A value that may be one or a list, as a list."""
    return value if isinstance(value, list) else [value]


def statement(template, role, sid):
    """A role's statement by its name."""
    found = [it for name, it in policies(template) if name == role and it["Sid"] == sid]
    assert len(found) == 1, (role, sid)
    return found[0]


TASKS_TABLE = {"Fn::If": ["MakeTasksTable", {"Ref": "TasksTable"}, {"Ref": "ExistingTasksTable"}]}


def test_the_linter_has_nothing_to_say():
    finished = subprocess.run(
        [VENV / "cfn-lint", "--include-checks", "I", "--", TEMPLATE], capture_output=True, text=True, timeout=50
    )
    assert (finished.returncode, finished.stdout + finished.stderr) == (0, "")


def test_the_template_fits_into_a_request():
    # More than this must go by way of a bucket. Source: CloudFormation quotas, "Template body size in a request".
    assert TEMPLATE.stat().st_size <= 51_200


def test_every_parameter_is_described(template):
    assert all(it["Description"] for it in template["Parameters"].values())


def test_data_stay_when_the_stack_goes(template):
    data = {name: it for kind in ("DynamoDB::Table", "S3::Bucket") for name, it in of_type(template, kind).items()}

    assert sorted(data) == ["MissionsTable", "ResultBucket", "SourceBucket", "TasksTable"]
    for it in (data | of_type(template, "S3::BucketPolicy")).values():
        assert (it["DeletionPolicy"], it["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_tables_are_encrypted_and_can_be_put_back(template):
    for it in of_type(template, "DynamoDB::Table").values():
        assert it["Properties"]["BillingMode"] == "PAY_PER_REQUEST"
        assert it["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert it["Properties"]["SSESpecification"] == {"SSEEnabled": True}


def test_buckets_are_private_and_do_not_grow_for_ever(template):
    buckets = of_type(template, "S3::Bucket")
    policies_of = {it["Properties"]["Bucket"]["Ref"]: it for it in of_type(template, "S3::BucketPolicy").values()}

    def rules(bucket):
        return {rule["Id"]: rule for rule in buckets[bucket]["Properties"]["LifecycleConfiguration"]["Rules"]}

    assert sorted(policies_of) == sorted(buckets)
    for name, it in buckets.items():
        assert set(it["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
        assert len(it["Properties"]["PublicAccessBlockConfiguration"]) == 4
        (encryption,) = it["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        (deny,) = policies_of[name]["Properties"]["PolicyDocument"]["Statement"]
        assert (deny["Effect"], deny["Principal"], deny["Action"]) == ("Deny", "*", "s3:*")
        assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert rules(name)["unfinished-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
        assert {rule["Status"] for rule in rules(name).values()} == {"Enabled"}
    assert buckets["ResultBucket"]["Properties"]["VersioningConfiguration"] == {"Status": "Enabled"}
    result = rules("ResultBucket")
    assert (result["checkpoints"]["Prefix"], result["checkpoints"]["ExpirationInDays"]) == ("checkpoints/", 30)
    assert (result["logs"]["Prefix"], result["logs"]["ExpirationInDays"]) == ("logs/", 90)
    assert result["replaced-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert "Prefix" not in result["replaced-versions"]


def test_the_topic_is_encrypted_and_mail_is_asked_for_only_with_an_address(template):
    (topic,) = of_type(template, "SNS::Topic").values()
    (mail,) = of_type(template, "SNS::Subscription").values()

    assert topic["Properties"]["KmsMasterKeyId"] == "alias/aws/sns"
    assert (mail["Condition"], mail["Properties"]["Protocol"]) == ("HasEmail", "email")


def test_nodes_are_marked_locked_down_and_end_with_power_off(template):
    (it,) = of_type(template, "EC2::LaunchTemplate").values()
    launch = it["Properties"]["LaunchTemplateData"]

    assert launch["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    }
    assert launch["InstanceInitiatedShutdownBehavior"] == "terminate"
    (volume,) = launch["BlockDeviceMappings"]
    assert (volume["Ebs"]["VolumeType"], volume["Ebs"]["Encrypted"]) == ("gp3", True)
    assert volume["Ebs"]["DeleteOnTermination"] is True
    tags = {spec["ResourceType"]: spec["Tags"] for spec in launch["TagSpecifications"]}
    assert sorted(tags) == ["instance", "volume"]
    for tag in tags.values():
        assert tag == [{"Key": "lighthpc", "Value": TASKS_TABLE}]
    # How they are bought is said at each launch.
    assert "InstanceMarketOptions" not in launch and "InstanceType" not in launch


def test_every_route_wants_a_signature(template):
    routes = of_type(template, "ApiGatewayV2::Route").values()
    (stage,) = of_type(template, "ApiGatewayV2::Stage").values()
    (integration,) = of_type(template, "ApiGatewayV2::Integration").values()

    assert {it["Properties"]["AuthorizationType"] for it in routes} == {"AWS_IAM"}
    assert sorted(it["Properties"]["RouteKey"] for it in routes) == [
        "GET /missions",
        "GET /missions/{mission}",
        "POST /missions",
        "POST /missions/{mission}/cancel",
        "PUT /missions/{mission}/workload",
    ]
    assert (stage["Properties"]["StageName"], stage["Properties"]["AutoDeploy"]) == ("$default", True)
    limits = stage["Properties"]["DefaultRouteSettings"]
    assert limits["ThrottlingBurstLimit"] > 0 and limits["ThrottlingRateLimit"] > 0
    assert integration["Properties"]["PayloadFormatVersion"] == "2.0"


def test_an_event_is_tried_three_times_and_kept(template):
    (retries,) = of_type(template, "Lambda::EventInvokeConfig").values()
    queue = of_type(template, "SQS::Queue")["FailedEvents"]

    assert retries["Properties"]["MaximumRetryAttempts"] == 2
    assert retries["Properties"]["DestinationConfig"]["OnFailure"]["Destination"] == {
        "Fn::GetAtt": ["FailedEvents", "Arn"]
    }
    assert queue["Properties"]["MessageRetentionPeriod"] == 14 * 86_400


def test_uploads_wait_in_a_queue_that_a_few_functions_empty(template):
    queues = of_type(template, "SQS::Queue")
    queue, dead = queues["UploadQueue"]["Properties"], queues["FailedUploads"]["Properties"]
    (source,) = [it["Properties"] for it in of_type(template, "Lambda::EventSourceMapping").values()]
    functions = {name: it["Properties"] for name, it in of_type(template, "Lambda::Function").items()}
    bucket = of_type(template, "S3::Bucket")["SourceBucket"]

    # AWS's advice: six times the function's timeout, and five tries at least.
    assert queue["VisibilityTimeout"] >= 6 * functions["UploadFunction"]["Timeout"]
    assert functions["UploadFunction"]["Timeout"] < functions["Function"]["Timeout"]
    assert queue["RedrivePolicy"]["maxReceiveCount"] >= 5
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["FailedUploads", "Arn"]}
    # A dead letter's age counts from its first day in the queue.
    assert dead["MessageRetentionPeriod"] > queue["MessageRetentionPeriod"]
    assert source["ScalingConfig"] == {"MaximumConcurrency": 2}
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert source["FunctionName"] == {"Ref": "UploadFunction"}
    assert bucket["Properties"]["NotificationConfiguration"] == {
        "QueueConfigurations": [{"Event": "s3:ObjectCreated:*", "Queue": {"Fn::GetAtt": ["UploadQueue", "Arn"]}}]
    }
    # One program, one role, one environment.
    for name in ("Runtime", "Handler", "Architectures", "Role", "Code", "Environment"):
        assert functions["UploadFunction"][name] == functions["Function"][name]
    for it in (queue, dead):
        assert it["SqsManagedSseEnabled"] is True
    # A bucket is told of the queue once the queue may be sent to.
    assert bucket["DependsOn"] == "UploadQueuePolicy"


@pytest.mark.parametrize("existing", [{}, {"ExistingSourceBucket": "theirs"}])
def test_only_the_source_bucket_of_this_account_may_send_to_the_queue(template, existing):
    bucket = existing.get("ExistingSourceBucket") or f"lab-source-{ACCOUNT}-{REGION}"
    (policy,) = of_type(template, "SQS::QueuePolicy").values()
    (allow,) = rendering.resolved(template, policy["Properties"]["PolicyDocument"]["Statement"], existing)

    assert (allow["Effect"], allow["Principal"]) == ("Allow", {"Service": "s3.amazonaws.com"})
    assert allow["Action"] == "sqs:SendMessage"
    assert allow["Condition"] == {
        "StringEquals": {"aws:SourceAccount": ACCOUNT},
        "ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{bucket}"},
    }


def test_nodes_have_a_security_group_of_their_own_without_a_way_in(template):
    (group,) = of_type(template, "EC2::SecurityGroup").values()

    assert group["Condition"] == "MakeSecurityGroup"
    assert group["Properties"]["VpcId"] == {"Ref": "VpcId"}
    assert "SecurityGroupIngress" not in group["Properties"]
    assert "EC2::SecurityGroupIngress" not in {it["Type"].removeprefix("AWS::") for it in template["Resources"].values()}


def test_nobody_but_ours_may_call_the_function(template):
    permissions = of_type(template, "Lambda::Permission").values()

    for it in permissions:
        assert it["Properties"]["Action"] == "lambda:InvokeFunction"
        assert "SourceArn" in it["Properties"]
    (bucket,) = [it for it in permissions if it["Properties"]["Principal"] == "s3.amazonaws.com"]
    assert bucket["Properties"]["SourceAccount"] == {"Ref": "AWS::AccountId"}


def test_no_role_may_change_what_it_cannot_name(template):
    for role, it in policies(template):
        assert not [action for action in listed(it["Action"]) if "*" in action], (role, it["Sid"])
        if listed(it["Resource"]) == ["*"]:
            # EC2 cannot restrict these: they only look.
            assert all(action.startswith("ec2:Describe") for action in it["Action"]), (role, it["Sid"])
            # These show the user data of other instances, and their passwords.
            assert not {"ec2:DescribeInstanceAttribute", "ec2:GetPasswordData"} & set(it["Action"])


# In full, so that a new right is a decision. docs/TABLES.md says what each of the node's is for.
RIGHTS = {
    "NodeRole": {
        *("dynamodb:BatchGetItem", "dynamodb:ConditionCheckItem", "dynamodb:GetItem", "dynamodb:Query", "dynamodb:Scan"),
        "dynamodb:UpdateItem",
        *("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"),
        *("ec2:DescribeInstances", "ec2:DescribeTags", "ec2:TerminateInstances"),
        "sns:Publish",
    },
    "FunctionRole": {
        *("dynamodb:BatchGetItem", "dynamodb:ConditionCheckItem", "dynamodb:GetItem", "dynamodb:Query", "dynamodb:Scan"),
        "dynamodb:UpdateItem",
        "dynamodb:PutItem",
        *("s3:AbortMultipartUpload", "s3:GetObject", "s3:ListBucket", "s3:PutObject"),
        *("ec2:CreateFleet", "ec2:CreateTags", "ec2:RunInstances", "ec2:TerminateInstances"),
        *("ec2:DescribeInstances", "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeSpotPriceHistory"),
        *("ec2:DescribeInstanceTypeOfferings", "ec2:DescribeSubnets"),
        *("iam:CreateServiceLinkedRole", "iam:PassRole"),
        # Only if the volumes' key is the account's own.
        *("kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext"),
        *("kms:ReEncryptFrom", "kms:ReEncryptTo"),
        *("logs:CreateLogStream", "logs:PutLogEvents"),
        *("sns:Publish", "sqs:SendMessage"),
        *("sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"),
    },
}


@pytest.mark.parametrize("role", RIGHTS)
def test_a_role_has_these_rights_and_no_other(template, role):
    allowed = [it for name, it in policies(template) if name == role and it["Effect"] == "Allow"]
    has = {action for it in allowed for action in listed(it["Action"])}

    assert has == RIGHTS[role]


OWN, OTHER = "i-0123456789abcdef0", "i-0fedcba9876543210"


@pytest.mark.parametrize(
    ("role", "session", "instance", "tag", "is_allowed"),
    [
        ("NodeRole", OWN, OWN, "lab-tasks", True),
        ("NodeRole", OWN, OTHER, "lab-tasks", False),
        ("NodeRole", OWN, OTHER, None, False),
        ("NodeRole", OWN, OWN, None, False),
        ("NodeRole", OWN, OWN, "other-tasks", False),
        # A name that only ends like the instance's, or holds a wildcard, is not its name.
        ("NodeRole", "x" + OWN, OWN, "lab-tasks", False),
        ("NodeRole", "*", OWN, "lab-tasks", False),
        ("FunctionRole", "lab-scheduler", OWN, "lab-tasks", True),
        ("FunctionRole", "lab-scheduler", OTHER, "lab-tasks", True),
        ("FunctionRole", "lab-scheduler", OTHER, "other-tasks", False),
        ("FunctionRole", "lab-scheduler", OTHER, None, False),
    ],
)
def test_a_node_ends_only_itself_and_the_scheduler_only_nodes(role, session, instance, tag, is_allowed):
    context = {"aws:userid": f"AROAEXAMPLE:{session}", "ec2:InstanceID": instance}
    if tag:
        context["ec2:ResourceTag/lighthpc"] = tag
    arn = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/{instance}"

    assert rendering.Role(role).may("ec2:TerminateInstances", arn, **context) is is_allowed
    assert not rendering.Role(role).may("ec2:StopInstances", arn, **context)


@pytest.mark.parametrize("role", ["NodeRole", "FunctionRole"])
def test_one_statement_of_a_role_ends_instances(template, role):
    ours = [it for name, it in policies(template) if name == role]

    assert [it["Sid"] for it in ours if "ec2:TerminateInstances" in listed(it["Action"])] == ["EndOurs"]
    condition = statement(template, role, "EndOurs")["Condition"]
    assert condition["StringEquals"] == {"ec2:ResourceTag/lighthpc": TASKS_TABLE}


def test_the_scheduler_launches_only_what_bears_the_mark(template):
    launch, tag, give = (
        statement(template, "FunctionRole", sid) for sid in ("LaunchOurs", "TagAtLaunch", "GiveTheNodeItsRole")
    )
    (image,) = [
        arn["Fn::Sub"]
        for arn in statement(template, "FunctionRole", "LaunchFrom")["Resource"]
        if ":image/" in arn["Fn::Sub"]
    ]

    assert launch["Resource"]["Fn::Sub"].endswith(":instance/*")
    assert launch["Condition"]["StringEquals"] == {"aws:RequestTag/lighthpc": TASKS_TABLE}
    assert tag["Condition"]["StringEquals"]["aws:RequestTag/lighthpc"] == TASKS_TABLE
    assert tag["Condition"]["StringEquals"]["ec2:CreateAction"] == ["CreateFleet", "RunInstances"]
    assert give["Resource"] == {"Fn::GetAtt": ["NodeRole", "Arn"]}
    assert give["Condition"] == {
        "StringEquals": {"iam:PassedToService": ["ec2.amazonaws.com", {"Fn::Sub": "ec2.${AWS::URLSuffix}"}]}
    }
    assert image.endswith(":image/${ImageId}")
    for role, it in policies(template):
        actions = set(listed(it["Action"]))
        assert role == "FunctionRole" or not actions & {"ec2:CreateFleet", "ec2:RunInstances", "iam:PassRole"}


def test_a_node_deletes_no_object_but_checkpoints(template):
    deleting = [it for _, it in policies(template) if "s3:DeleteObject" in listed(it["Action"])]

    assert [it["Sid"] for it in deleting] == ["OldCheckpoints"]
    assert deleting[0]["Resource"]["Fn::Sub"][0].endswith("/checkpoints/*")
    assert not [it for _, it in policies(template) if "s3:DeleteObjectVersion" in listed(it["Action"])]


# The scripts.


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


@pytest.fixture(scope="module")
def account(clients, tmp_path_factory):
    """A ministack that holds callers to their roles and runs functions, beside the moto that all tests use."""
    folder = tmp_path_factory.mktemp("account")
    ministack = harness.ministack()
    ministack.name = "ministack-stack"
    ministack.env |= {
        "AUTH": "true",
        # It hands these two to the functions.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}",
        "AWS_ENDPOINT_URL_EC2": clients.ec2_endpoint,
        # It unpacks functions there, and leaves them.
        "TMPDIR": str(folder),
        "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "0.1",
    }
    with ministack:
        yield Account(ministack.url, clients.ec2_endpoint, folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def deployed(account):
    """A stack with a program that fails at every event; returns its outputs."""
    return account.deploy("lab", "--workload", WORKLOAD, "--instance-types", "t3.micro,t3.small", "--slots", 4)


@SLOW
def test_deploy_makes_the_tables_the_buckets_and_the_trigger(account, deployed):
    tasks = account.clients.dynamodb.describe_table(TableName=deployed["TasksTable"])["Table"]
    missions = account.clients.dynamodb.describe_table(TableName=deployed["MissionsTable"])["Table"]

    assert tasks["KeySchema"] == [{"AttributeName": "srcFilename", "KeyType": "HASH"}]
    (index,) = tasks["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "open"
    assert index["KeySchema"] == [
        {"AttributeName": "openIn", "KeyType": "HASH"},
        {"AttributeName": "openAs", "KeyType": "RANGE"},
    ]
    assert index["Projection"]["ProjectionType"] == "KEYS_ONLY"
    assert missions["KeySchema"] == [{"AttributeName": "timePush", "KeyType": "HASH"}]
    assert "GlobalSecondaryIndexes" not in missions
    for table in (tasks, missions):
        assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert deployed["SourceBucket"] == f"lab-source-{ACCOUNT}-{REGION}"
    assert account.notified(deployed["SourceBucket"]) == [deployed["UploadQueueArn"]]
    assert account.clients.s3.get_bucket_versioning(Bucket=deployed["ResultBucket"])["Status"] == "Enabled"
    for name in ("SourceBucket", "ResultBucket"):
        blocked = account.clients.s3.get_public_access_block(Bucket=deployed[name])["PublicAccessBlockConfiguration"]
        assert set(blocked.values()) == {True}


@SLOW
def test_deploy_makes_the_scheduler_and_what_wakes_it(account, deployed):
    function = account.client("lambda").get_function(FunctionName=deployed["FunctionName"])["Configuration"]
    events = account.client("events")

    assert (function["Runtime"], function["Handler"]) == ("provided.al2023", "bootstrap")
    assert (function["Timeout"], function["MemorySize"]) == (900, 256)
    assert function["Environment"]["Variables"] == names(deployed) | {
        "LIGHTHPC_LAUNCH_TEMPLATE": deployed["LaunchTemplateId"],
        "LIGHTHPC_LAUNCH_TEMPLATE_VERSION": "1",
        "LIGHTHPC_INSTANCE_TYPES": "t3.micro,t3.small",
        "LIGHTHPC_SUBNETS": account.subnets,
        "LIGHTHPC_BID_MODE": "spot",
        "LIGHTHPC_MAX_UNIT_PRICE": "",
        "LIGHTHPC_MAX_WAIT": "",
        "LIGHTHPC_ON_DEMAND_FLOOR": "",
        "LIGHTHPC_MISSION": "",
        "LIGHTHPC_MAX_NODES": "1000",
        "LIGHTHPC_MAX_NODES_PER_HOUR": "4000",
        "LIGHTHPC_ALLOWED_INSTANCE_TYPES": "*",
    }
    uploads = account.client("lambda").get_function(FunctionName=deployed["UploadFunctionName"])["Configuration"]
    for name in ("CodeSha256", "Environment", "Handler", "Role", "Runtime"):
        assert uploads[name] == function[name]
    (source,) = account.client("lambda").list_event_source_mappings(FunctionName=uploads["FunctionName"])[
        "EventSourceMappings"
    ]
    assert source["EventSourceArn"] == deployed["UploadQueueArn"]
    rules = [rule for rule in events.list_rules()["Rules"] if rule["Name"].startswith("lab-")]
    targets = [events.list_targets_by_rule(Rule=rule["Name"])["Targets"] for rule in rules]
    assert [[target["Arn"] for target in some] for some in targets] == [[deployed["FunctionArn"]]] * 3
    assert [rule["ScheduleExpression"] for rule in rules if "ScheduleExpression" in rule] == ["rate(5 minutes)"]
    patterns = [json.loads(rule["EventPattern"]) for rule in rules if "EventPattern" in rule]
    assert sorted(pattern["detail-type"][0] for pattern in patterns) == [
        "EC2 Instance State-change Notification",
        "EC2 Spot Instance Interruption Warning",
    ]
    (api,) = [it for it in account.client("apigatewayv2").get_apis()["Items"] if it["Name"] == "lab"]
    assert api["ProtocolType"] == "HTTP"
    groups = account.client("logs").describe_log_groups(logGroupNamePrefix="/aws/lambda/lab-")["logGroups"]
    assert [group["retentionInDays"] for group in groups] == [30, 30]


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


@SLOW
def test_deploy_asks_the_image_for_its_root_device(account, deployed):
    launch = launch_data(account, deployed)

    assert launch["ImageId"] == account.image
    assert [volume["DeviceName"] for volume in launch["BlockDeviceMappings"]] == ["/dev/sda1"]
    assert {tag["Value"] for spec in launch["TagSpecifications"] for tag in spec["Tags"]} == {deployed["TasksTable"]}


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


@SLOW
def test_a_shell_gets_the_stacks_names(account, deployed):
    out, _ = account.run("deploy", "--stack", "lab", "--exports")

    shell = ["sh", "-c", f"{out}\nenv"]
    shown = subprocess.run(shell, env={}, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    variables = dict(line.split("=", 1) for line in shown if line.startswith(("LIGHTHPC_", "AWS_")))
    assert variables == names(deployed) | {
        "AWS_REGION": REGION,
        "LIGHTHPC_LAUNCH_TEMPLATE": deployed["LaunchTemplateId"],
        "LIGHTHPC_LAUNCH_TEMPLATE_VERSION": "$Latest",
        "LIGHTHPC_INSTANCE_TYPES": "t3.micro,t3.small",
        "LIGHTHPC_SUBNETS": account.subnets,
        "LIGHTHPC_BID_MODE": "spot",
        "LIGHTHPC_MAX_NODES": "1000",
        "LIGHTHPC_MAX_NODES_PER_HOUR": "4000",
    }


@SLOW
def test_user_data_tells_the_node_all(account, deployed):
    files, commands = user_data(launch_data(account, deployed))

    settings = files["/etc/lighthpc/lighthpc.env"]
    assert settings["permissions"] == "0600"
    assert dict(line.split("=", 1) for line in settings["content"].splitlines()) == names(deployed) | {
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
def test_deploy_again_changes_what_is_named_and_nothing_else(account, deployed):
    function = account.client("lambda")

    def settings():
        return function.get_function_configuration(FunctionName=deployed["FunctionName"])["Environment"]["Variables"]

    before = settings()
    _, said = account.run("deploy", "--stack", "lab", "--binary", account.stub)
    assert "nothing has changed" in said
    assert settings() == before

    printed, _ = account.run("deploy", "--stack", "lab", "--binary", account.stub, "--mission", "M7", "--dry-run")
    assert "would run: aws cloudformation update-stack" in printed
    assert settings() == before

    # As a teardown that was broken off leaves them.
    for name in ("FunctionName", "UploadFunctionName"):
        function.put_function_concurrency(FunctionName=deployed[name], ReservedConcurrentExecutions=0)
    source = deployed["SourceBucket"]
    account.clients.s3.put_bucket_notification_configuration(Bucket=source, NotificationConfiguration={})
    account.run("deploy", "--stack", "lab", "--binary", account.stub, "--mission", "M7")
    assert settings() == before | {"LIGHTHPC_MISSION": "M7"}
    for name in ("FunctionName", "UploadFunctionName"):
        left = function.get_function_concurrency(FunctionName=deployed[name])
        assert "ReservedConcurrentExecutions" not in left
    assert account.notified(source) == [deployed["UploadQueueArn"]]
    account.run("deploy", "--stack", "lab", "--binary", account.stub, "--mission", "")
    assert settings() == before


@SLOW
def test_teardown_keeps_the_data_and_the_next_deploy_takes_it_over(account):
    outputs = account.deploy("kept")
    source, result = outputs["SourceBucket"], outputs["ResultBucket"]
    account.clients.tables.Table("kept-tasks").put_item(Item={"srcFilename": "a"})
    account.clients.s3.put_object(Bucket=result, Key="rslt_a ü", Body=b"1")
    account.clients.s3.put_object(Bucket=result, Key="rslt_a ü", Body=b"2")
    account.clients.s3.delete_object(Bucket=result, Key="rslt_a ü")
    ours, others = account.launch("kept-tasks"), account.launch("other-tasks")
    account.clients.sqs.send_message(QueueUrl=outputs["FailedUploadsUrl"], MessageBody="{}")

    _, said = account.run("teardown", "--stack", "kept", "--yes", code=1)

    # The message of this test, and S3's own one, for the stub fails at it.
    assert "2 upload(s) are not in the tables yet" in said
    assert account.state(ours) == "running"
    assert account.notified(source) == [outputs["UploadQueueArn"]]

    printed, said = account.run("teardown", "--stack", "kept", "--yes", "--forget-uploads")

    assert f"2 upload(s) go with their queues, and are in no table; their objects stay in {source}" in said
    assert account.tables("kept") == ["kept-missions", "kept-tasks"]
    assert account.buckets("kept") == sorted([source, result])
    assert {line.strip() for line in printed.splitlines()} >= {"table kept-tasks", f"bucket {result}"}
    assert account.state(ours) == "terminated"
    assert account.state(others) == "running"
    assert account.notified(source) == []
    functions = account.client("lambda").list_functions()["Functions"]
    assert "kept-scheduler" not in [it["FunctionName"] for it in functions]

    again = account.deploy("kept")

    assert (again["SourceBucket"], again["TasksTable"]) == (source, "kept-tasks")
    assert account.clients.tables.Table("kept-tasks").get_item(Key={"srcFilename": "a"})["Item"]
    assert account.notified(source) == [again["UploadQueueArn"]]

    printed, _ = account.run("teardown", "--stack", "kept", "--yes", "--delete-data")

    assert printed == "nothing is left that bills\n"
    assert account.tables("kept") + account.buckets("kept") == []
    printed, _ = account.run("teardown", "--stack", "kept", "--yes", "--delete-data")
    assert printed == "nothing is left that bills\n"


@SLOW
def test_tables_and_buckets_of_others_are_used_and_never_deleted(account):
    dynamodb, s3 = account.clients.dynamodb, account.clients.s3
    for name, key in (("tblTrans2", "srcFilename"), ("tblMission", "timePush")):
        dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            BillingMode="PROVISIONED",
            ProvisionedThroughput={"ReadCapacityUnits": 2, "WriteCapacityUnits": 3},
        )
    for name in ("their-inputs", "their-results"):
        s3.create_bucket(Bucket=name)
    _, queue_arn = queue_for(account.clients.sqs, "s3.amazonaws.com")
    theirs = [{"QueueArn": queue_arn, "Events": ["s3:ObjectRemoved:*"]}]
    s3.put_bucket_notification_configuration(
        Bucket="their-inputs", NotificationConfiguration={"QueueConfigurations": theirs}
    )

    def their_queues():
        settings = s3.get_bucket_notification_configuration(Bucket="their-inputs")
        return [entry["QueueArn"] for entry in settings["QueueConfigurations"]]

    adopting = (
        *("--tasks-table", "tblTrans2", "--missions-table", "tblMission"),
        *("--source-bucket", "their-inputs", "--result-bucket", "their-results"),
    )
    outputs = account.deploy("adopt", *adopting)

    assert (outputs["TasksTable"], outputs["ResultBucket"]) == ("tblTrans2", "their-results")
    (index,) = dynamodb.describe_table(TableName="tblTrans2")["Table"]["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "open"
    assert index["ProvisionedThroughput"]["WriteCapacityUnits"] == 3
    assert their_queues() == [queue_arn, outputs["UploadQueueArn"]]
    # As an earlier version left it: one call takes the function away and adds the queue, and theirs stays.
    theirs = {"QueueArn": queue_arn, "Events": ["s3:ObjectRemoved:*"]}
    function = {"LambdaFunctionArn": outputs["FunctionArn"], "Events": ["s3:ObjectCreated:*"]}
    s3.put_bucket_notification_configuration(
        Bucket="their-inputs",
        NotificationConfiguration={"QueueConfigurations": [theirs], "LambdaFunctionConfigurations": [function]},
    )
    account.run("deploy", "--stack", "adopt", "--binary", account.stub)
    assert account.notified("their-inputs") == [queue_arn, outputs["UploadQueueArn"]]
    # As an update leaves it that has replaced the queue: what they have set for it stays.
    _, earlier = queue_for(account.clients.sqs, "s3.amazonaws.com", outputs["UploadQueueArn"].rpartition(":")[2] + "1")
    replaced = {"QueueArn": earlier, "Events": ["s3:ObjectCreated:Put"]}
    s3.put_bucket_notification_configuration(
        Bucket="their-inputs", NotificationConfiguration={"QueueConfigurations": [theirs, replaced]}
    )
    account.run("deploy", "--stack", "adopt", "--binary", account.stub)
    settings = s3.get_bucket_notification_configuration(Bucket="their-inputs")["QueueConfigurations"]
    assert [(it["QueueArn"], it["Events"]) for it in settings] == [
        (queue_arn, ["s3:ObjectRemoved:*"]),
        (outputs["UploadQueueArn"], ["s3:ObjectCreated:Put"]),
    ]
    assert account.tables("adopt") + account.buckets("adopt") == []

    printed, _ = account.run("teardown", "--stack", "adopt", "--yes", "--delete-data")

    assert "never deleted here: tblTrans2" in printed
    assert {"tblTrans2", "tblMission"} <= set(dynamodb.list_tables()["TableNames"])
    assert account.notified("their-inputs") == [queue_arn]


@SLOW
def test_a_stack_that_is_not_ours_is_neither_changed_nor_deleted(account):
    stacks = account.client("cloudformation")
    body = json.dumps({"Description": "the shop", "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}}})
    stacks.create_stack(StackName="shop", TemplateBody=body)
    stacks.get_waiter("stack_create_complete").wait(StackName="shop", WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    before = stacks.describe_stack_resources(StackName="shop")["StackResources"]
    bystander = account.launch("shop-tasks")
    required = ("--image", account.image, "--subnets", account.subnets, "--binary", account.stub)

    for name, arguments in (("deploy", required), ("teardown", ("--yes",)), ("teardown", ("--yes", "--delete-data"))):
        _, said = account.run(name, "--stack", "shop", *arguments, code=1)
        assert "is not lighthpc's" in said

    assert stacks.describe_stacks(StackName="shop")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"
    after = stacks.describe_stack_resources(StackName="shop")["StackResources"]
    assert [it["PhysicalResourceId"] for it in after] == [it["PhysicalResourceId"] for it in before]
    assert account.state(bystander) == "running"


@SLOW
def test_what_bears_no_mark_of_ours_is_never_deleted_whatever_its_name_is(account):
    dynamodb, s3 = account.clients.dynamodb, account.clients.s3
    dynamodb.create_table(
        TableName="odd-tasks",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    bucket = f"odd-source-{ACCOUNT}-{REGION}"
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "owner", "Value": "somebody"}]})
    s3.put_object(Bucket=bucket, Key="theirs", Body=b"x")
    # A code bucket of somebody's own, with a folder that is called like the stack.
    s3.create_bucket(Bucket="their-programs")
    digest = "0123456789abcdef" * 2
    ours = [f"odd/{digest}.zip", f"odd/bundle-{digest}.tar.gz"]
    theirs = ["odd/thesis.pdf", f"odd/{digest}.zip.bak", f"odd/x/{digest}.zip", f"oddity/{digest}.zip"]
    for key in ours + theirs:
        s3.put_object(Bucket="their-programs", Key=key, Body=b"x")

    printed, _ = account.run("teardown", "--stack", "odd", "--yes", "--delete-data", "--code-bucket", "their-programs")

    assert account.tables("odd") == ["odd-tasks"]
    assert s3.get_object(Bucket=bucket, Key="theirs")["Body"].read() == b"x"
    left = [it["Key"] for it in s3.list_objects_v2(Bucket="their-programs")["Contents"]]
    assert sorted(left) == sorted(theirs)
    assert {f"not made by lighthpc, never deleted here: {name}" for name in ("odd-tasks", bucket)} <= {
        line.strip() for line in printed.splitlines()
    }
    # Nor is it taken over by a stack of that name.
    required = ("--image", account.image, "--subnets", account.subnets, "--binary", account.stub)
    _, said = account.run("deploy", "--stack", "odd", *required, code=1)
    assert "without the tag lighthpc" in said


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("teardown", ["--stack", "lab", "--yes", "--tasks-table", "*"], "--tasks-table"),
        ("teardown", ["--stack", "lab", "--yes", "--tasks-table", "tbl?"], "--tasks-table"),
        ("deploy", [], "--stack is missing"),
        ("deploy", ["--stack", "Lab"], "lower-case"),
        ("deploy", ["--stack", "x" * 29], "at most 28"),
        ("deploy", ["--stack", "lab", "--frobnicate", "1"], "--frobnicate"),
        ("deploy", ["--stack", "lab", "--image"], "--image"),
        ("teardown", [], "--stack is missing"),
        ("teardown", ["--stack", "lab"], "--yes"),
        ("teardown", ["--stack", "lab", "--yes", "now"], "now"),
    ],
)
def test_a_wrong_command_line_is_answered_before_anything_is_done(account, name, arguments, words):
    _, said = account.run(name, *arguments, code=2)

    assert words in said


@SLOW
def test_what_is_missing_is_named_with_its_mend(account):
    required = ("--image", account.image, "--subnets", account.subnets, "--binary", account.stub)

    _, said = account.run("deploy", "--stack", "none", "--binary", "/nonexistent/lighthpc", code=1)
    assert "--binary" in said
    _, said = account.run("deploy", "--stack", "none", "--binary", account.stub, code=2)
    assert "--image or --bundle is missing" in said
    _, said = account.run("deploy", "--stack", "none", *required, "--image", "ami-00000000000000000", code=1)
    assert "--image" in said
    _, said = account.run("deploy", "--stack", "none", *required, "--tasks-table", "nowhere", code=1)
    assert "no table nowhere" in said
    _, said = account.run("deploy", "--stack", "none", *required, code=1, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "credentials" in said


@pytest.fixture
def lying_aws(account, tmp_path):
    """A path on which `aws` gives these answers, by the beginning of the command, and is the CLI for the rest."""

    def path(**answers):
        folder = tmp_path / "lying"
        folder.mkdir(exist_ok=True)
        cases = "".join(
            f"\"{command.replace('__', ' ').replace('_', '-')}\"*) {'exit 255' if answer is None else f'echo {answer!r}; exit'} ;;\n"
            for command, answer in answers.items()
        )
        program = folder / "aws"
        program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\nexec "{VENV}/aws" "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        return f"{folder}:{account.environment()['PATH']}"

    return path


@SLOW
def test_what_ec2_would_refuse_whole_is_refused_before_anything_is_done(account):
    subnets = account.ec2.describe_subnets()["Subnets"]
    vpc, zone = subnets[0]["VpcId"], subnets[0]["AvailabilityZone"]
    twin = account.ec2.create_subnet(VpcId=vpc, CidrBlock="172.31.128.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
    other_vpc = account.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    other_zone = subnets[1]["AvailabilityZone"]
    stranger = account.ec2.create_subnet(VpcId=other_vpc, CidrBlock="10.9.1.0/24", AvailabilityZone=other_zone)
    first = subnets[0]["SubnetId"]
    required = ("--stack", "refused", "--image", account.image, "--binary", account.stub)

    for more, words in [
        (("--subnets", f"{first},{twin}"), f"all in {zone}"),
        (("--subnets", f"{first},{first}"), "named twice"),
        (("--subnets", f"{first},{stranger['Subnet']['SubnetId']}"), "several VPCs"),
        (("--subnets", first, "--instance-types", "t3.micro,t3.small,t3.micro"), "named twice"),
        (("--subnets", first, "--instance-types", "t3.micro,p5.48xlarge", "--allowed-instance-types", "t3.*"), "p5.48xlarge"),
        (("--subnets", first, "--allowed-instance-types", "t3.*"), "c7i.large"),
    ]:
        _, said = account.run("deploy", *required, *more, code=2)
        assert words in said
    _, said = account.run("deploy", *required, "--subnets", f"{first},subnet-00000000", code=1)
    assert "subnet-00000000" in said and "--subnets" in said
    assert account.tables("refused") + account.buckets("refused") == []


CUSTOMER_KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-1111-2222-3333-444444444444"


@SLOW
def test_a_key_that_would_end_each_instance_is_named_before_the_first(account, lying_aws):
    required = ("--stack", "keyed", "--image", account.image, "--subnets", account.subnets, "--binary", account.stub)

    def deploy(*more, code=0, **answers):
        path = lying_aws(**{"ec2__get_ebs_default_kms_key_id": "alias/aws/ebs"} | answers)
        out, said = account.run("deploy", *required, "--dry-run", *more, code=code, PATH=path)
        return out + said

    customers = {"kms__describe_key": f"CUSTOMER {CUSTOMER_KEY}"}
    by_default = customers | {"ec2__get_ebs_default_kms_key_id": CUSTOMER_KEY}
    of_image = customers | {
        f"ec2__describe_images --image-ids {account.image} --output": "snap-1",
        "ec2__describe_snapshots": CUSTOMER_KEY,
    }

    assert "UseVolumeKey" not in deploy()
    said = deploy(code=1, **by_default)
    assert f"--volume-key {CUSTOMER_KEY}" in said and "end at its launch" in said
    assert f'"ParameterValue": "{CUSTOMER_KEY}"' in deploy("--volume-key", CUSTOMER_KEY, **by_default)
    assert '"ParameterValue": "alias/aws/ebs"' in deploy("--volume-key", "alias/aws/ebs", **by_default)
    said = deploy(code=1, **of_image)
    assert f"encrypted with {CUSTOMER_KEY}" in said
    deploy("--volume-key", CUSTOMER_KEY, **of_image)
    deploy("--volume-key", "alias/aws/ebs", code=1, **of_image)
    # AWS's own key, and what may not be seen.
    assert "end at its launch" not in deploy(**by_default | {"kms__describe_key": f"AWS {CUSTOMER_KEY}"})
    assert "not checked" in deploy(ec2__get_ebs_default_kms_key_id=None)


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


@SLOW
def test_the_stack_of_an_earlier_version_is_updated_to_the_queue(account):
    # The same template, but for the way of uploads: as it was.
    text = TEMPLATE.read_text(encoding="utf-8")
    old, count = re.subn(
        r"QueueConfigurations:\n( +)- Event: (.*)\n +Queue: .*",
        r"LambdaConfigurations:\n\1- Event: \2\n\1  Function: !GetAtt Function.Arn",
        text,
    )
    assert count == 1
    old = old.replace("DependsOn: UploadQueuePolicy", "DependsOn: SourceBucketMayInvoke")
    old = old.replace("    Condition: AdoptsSourceBucket\n", "").replace(
        "s3:::${ExistingSourceBucket}\n\n  SweepRule", f"s3:::older-source-{ACCOUNT}-{REGION}\n\n  SweepRule"
    )
    stacks = account.client("cloudformation")
    code_bucket = f"lighthpc-code-{ACCOUNT}-{REGION}"
    account.deploy("seed")
    (key, *_) = [it["Key"] for it in account.clients.s3.list_objects_v2(Bucket=code_bucket, Prefix="seed/")["Contents"]]
    parameters = {"ImageId": account.image, "Subnets": account.subnets, "CodeBucket": code_bucket, "CodeKey": key}
    stacks.create_stack(
        StackName="older",
        TemplateBody=old,
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
    )
    stacks.get_waiter("stack_create_complete").wait(StackName="older", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    bucket = f"older-source-{ACCOUNT}-{REGION}"
    assert account.notified(bucket)[0].endswith(":older-scheduler")

    out, _ = account.run("deploy", "--stack", "older", "--binary", account.stub)

    outputs = dict(line.split() for line in out.splitlines())
    assert account.notified(bucket) == [outputs["UploadQueueArn"]]
    (group,) = launch_data(account, outputs)["SecurityGroupIds"]
    made = account.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    assert (made["VpcId"], made["IpPermissions"]) == (account.ec2.describe_subnets()["Subnets"][0]["VpcId"], [])


@SLOW
def test_what_is_left_is_named_in_any_partition(account, lying_aws):
    zone = account.ec2.describe_subnets()["Subnets"][0]["AvailabilityZone"]
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "lighthpc", "Value": "gone-tasks"}]}]
    volume = account.ec2.create_volume(AvailabilityZone=zone, Size=1, TagSpecifications=tags)["VolumeId"]
    identity = f"{ACCOUNT}\tarn:aws-us-gov:sts::{ACCOUNT}:assumed-role/a/b"
    path = lying_aws(sts__get_caller_identity=identity)

    printed, _ = account.run("teardown", "--stack", "gone", "--yes", code=1, PATH=path)
    assert f"volume {volume}" in printed
    account.ec2.delete_volume(VolumeId=volume)
    printed, _ = account.run("teardown", "--stack", "gone", "--yes", PATH=path)
    assert printed == "nothing is left that bills\n"


# All of it together.


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

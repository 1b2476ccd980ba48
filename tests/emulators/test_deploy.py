"""`scripts/deploy`: what it makes, changes, refuses, and takes over.

What ministack's CloudFormation takes and drops is asserted on the template (`test_template.py`): TTL of objects
(lifecycle), point-in-time recovery and encryption of tables, encryption of the topic, and the API's throttling. What it
keeps but does not act on is asserted as it is kept: metadata options, tags, shutdown behaviour of the launch template.
"""

import json
import re
import subprocess

import pytest
from account import SLOW, launch_data, names
from harness import REGION
from imds_server import Instance
from rendering import ACCOUNT, TEMPLATE


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
        "LIGHTHPC_METRICS": "",
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
def test_deploy_asks_the_image_for_its_root_device(account, deployed):
    launch = launch_data(account, deployed)

    assert launch["ImageId"] == account.image
    assert [volume["DeviceName"] for volume in launch["BlockDeviceMappings"]] == ["/dev/sda1"]
    assert {tag["Value"] for spec in launch["TagSpecifications"] for tag in spec["Tags"]} == {deployed["TasksTable"]}


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
def test_what_is_missing_is_named_with_its_fix(account):
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
    assert f"--volume-key {CUSTOMER_KEY}" in said and "terminate each instance at its launch" in said
    assert f'"ParameterValue": "{CUSTOMER_KEY}"' in deploy("--volume-key", CUSTOMER_KEY, **by_default)
    assert '"ParameterValue": "alias/aws/ebs"' in deploy("--volume-key", "alias/aws/ebs", **by_default)
    said = deploy(code=1, **of_image)
    assert f"encrypted with {CUSTOMER_KEY}" in said
    deploy("--volume-key", CUSTOMER_KEY, **of_image)
    deploy("--volume-key", "alias/aws/ebs", code=1, **of_image)
    # AWS's own key, and what may not be seen.
    assert "terminate each instance at its launch" not in deploy(**by_default | {"kms__describe_key": f"AWS {CUSTOMER_KEY}"})
    assert "not checked" in deploy(ec2__get_ebs_default_kms_key_id=None)


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
    account.clients.s3.put_object(Bucket=code_bucket, Key="older.yaml", Body=old.encode())
    stacks.create_stack(
        StackName="older",
        TemplateURL=f"https://s3.{REGION}.amazonaws.com/{code_bucket}/older.yaml",
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

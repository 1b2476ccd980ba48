"""The stack's template, as it is written and as CloudFormation renders it: rights, encryption, names, limits."""

import re
import subprocess

import pytest
import rendering
from account import VENV
from harness import REGION, ROOT
from rendering import ACCOUNT, TEMPLATE


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


def test_the_template_fits_into_an_object():
    # Source: CloudFormation quotas, "Template body size in an Amazon S3 object".
    assert TEMPLATE.stat().st_size <= 1_000_000


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
    topics, mails = of_type(template, "SNS::Topic"), of_type(template, "SNS::Subscription")

    assert topics["Topic"]["Properties"]["KmsMasterKeyId"] == "alias/aws/sns"
    assert {it["Properties"]["Protocol"] for it in mails.values()} == {"email"}
    assert {name: it["Condition"] for name, it in mails.items()} == {
        "EmailSubscription": "HasEmail",
        "AlarmEmail": "HasAlarmEmail",
    }


def test_alarms_are_made_if_wanted_and_watch_what_is_written(template):
    alarms = of_type(template, "CloudWatch::Alarm")
    written = set(re.findall(r'\("(\w+)", figures\.', (ROOT / "src/lambda/metrics.rs").read_text()))
    written |= {"ApproximateNumberOfMessagesVisible"}

    assert len(alarms) == 7
    for name, alarm in alarms.items():
        it = alarm["Properties"]
        assert alarm["Condition"] == "HasAlarms", name
        assert it["MetricName"] in written, name
        assert it["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        # What is not reported is no failure, but for the sweeps themselves.
        assert it["TreatMissingData"] == ("breaching" if name == "NoSweepAlarm" else "notBreaching"), name
    # CloudWatch may not use AWS's key for SNS. Source: CloudWatch user guide, "Amazon SNS topic encryption".
    assert "KmsMasterKeyId" not in of_type(template, "SNS::Topic")["AlarmTopic"]["Properties"]
    for alarms, metrics in (("no", ""), ("yes", "yes")):
        environment = template["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
        assert rendering.resolved(template, environment["LIGHTHPC_METRICS"], {"Alarms": alarms}) == metrics


def test_nodes_send_their_log_only_if_it_is_wanted(template):
    data = template["Resources"]["LaunchTemplate"]["Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"]

    assert "LOG_GROUP" not in rendering.resolved(template, data)
    assert "LIGHTHPC_LOG_GROUP=/lighthpc/lab\n" in rendering.resolved(template, data, {"NodeLogs": "yes"})
    (group,) = [it for name, it in of_type(template, "Logs::LogGroup").items() if name == "NodeLog"]
    assert (group["Condition"], group["Properties"]["RetentionInDays"]) == ("HasNodeLogs", 30)
    assert rendering.resolved(template, group["Properties"]["LogGroupName"]) == "/lighthpc/lab"


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
    # A bucket notifies the queue once the queue may be sent to.
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
        *("ec2:DescribeInstances", "ec2:DescribeSpotPriceHistory", "ec2:DescribeTags", "ec2:TerminateInstances"),
        "sns:Publish",
        # Only with NodeLogs.
        *("logs:CreateLogStream", "logs:PutLogEvents"),
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

"""`scripts/teardown`: what it deletes, what it keeps, and what is never ours."""

import json

from account import SLOW, queue_for
from harness import REGION
from rendering import ACCOUNT


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

    assert f"deletes 2 upload(s) with their queues; they have no row in the tables; their objects stay in {source}" in said
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

    assert printed == "nothing is left that costs money\n"
    assert account.tables("kept") + account.buckets("kept") == []
    printed, _ = account.run("teardown", "--stack", "kept", "--yes", "--delete-data")
    assert printed == "nothing is left that costs money\n"


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
    assert printed == "nothing is left that costs money\n"

"""What the other tests stand on: the metadata server, and the emulators where their behaviour matters to a case."""

import subprocess
import sys
import urllib.error
import urllib.request

import botocore.exceptions
import harness
import imds_server
import pytest
from imds_server import ImdsServer, Instance

TTL = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}


def ask(url, method="GET", headers=None):
    """(status, text) of one request."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers or {}, method=method), timeout=5
        ) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def token(imds):
    """A header with a good token."""
    status, text = ask(imds.url + "/latest/api/token", "PUT", TTL)
    assert status == 200
    return {"X-aws-ec2-metadata-token": text}


@pytest.fixture
def imds():
    with ImdsServer(Instance("i-1", tags={"srcID": "a b/文件.txt", "Name": "", "two words": "hidden"})) as server:
        yield server


def test_reads_need_a_token_and_a_token_needs_a_ttl(imds):
    url = imds.url + "/latest/meta-data/instance-id"

    assert ask(url) == (401, "")
    assert ask(url, headers={"X-aws-ec2-metadata-token": "guessed"}) == (401, "")
    assert ask(imds.url + "/latest/api/token", "PUT") == (400, "")
    assert ask(imds.url + "/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "99999"}) == (400, "")
    assert ask(imds.url + "/latest/api/token") == (405, "")
    assert ask(url, headers=token(imds)) == (200, "i-1")
    assert imds.refused == 2
    assert imds.count("instance-id") == 3


def test_what_an_instance_knows_of_itself(imds):
    headers = token(imds)

    def meta(path):
        return ask(f"{imds.url}/latest/meta-data/{path}", headers=headers)

    assert meta("placement/region") == (200, "us-east-1")
    assert meta("placement/availability-zone") == (200, "us-east-1a")
    assert meta("instance-type") == (200, "t3.micro")
    assert meta("tags/instance") == (200, "srcID\nName")
    assert meta("tags/instance/srcID") == (200, "a b/文件.txt")
    assert meta("tags/instance/Name") == (200, "")
    assert meta("tags/instance/missionID")[0] == 404
    assert meta("iam/security-credentials/") == (200, "lighthpc-node")
    assert '"SecretAccessKey"' in meta("iam/security-credentials/lighthpc-node")[1]
    assert meta("iam/security-credentials/other")[0] == 404
    assert meta("iam/security-credentials-extended/")[0] == 404
    assert '"accountId"' in ask(f"{imds.url}/latest/dynamic/instance-identity/document", headers=headers)[1]


def test_what_changes_while_it_runs(imds):
    headers = token(imds)
    spot, rebalance, tags = (
        f"{imds.url}/latest/meta-data/{path}"
        for path in ("spot/instance-action", "events/recommendations/rebalance", "tags/instance/srcID")
    )

    assert (ask(spot, headers=headers)[0], ask(rebalance, headers=headers)[0]) == (404, 404)
    imds.default.interrupt()
    imds.default.recommend_rebalance()
    imds.default.tags_enabled = False
    assert '"action": "terminate"' in ask(spot, headers=headers)[1]
    assert '"noticeTime"' in ask(rebalance, headers=headers)[1]
    assert ask(tags, headers=headers)[0] == 404

    imds.fail_next(2, 429)
    assert [ask(spot, headers=headers)[0] for _ in range(3)] == [429, 429, 200]


def test_the_server_stands_alone():
    command = [sys.executable, imds_server.__file__, "--instance-id", "i-9", "--tag", "srcID=x=y", "--fail", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert ask(url + "/latest/api/token", "PUT", TTL)[0] == 503
            headers = {"X-aws-ec2-metadata-token": ask(url + "/latest/api/token", "PUT", TTL)[1]}
            assert ask(url + "/latest/meta-data/tags/instance/srcID", headers=headers) == (200, "x=y")
        finally:
            process.terminate()


def test_many_instances_are_distinguished_by_source_address():
    with ImdsServer() as imds:
        imds.add("127.0.0.1", Instance("i-of-127.0.0.1"))
        headers = token(imds)
        assert ask(imds.url + "/latest/meta-data/instance-id", headers=headers) == (200, "i-of-127.0.0.1")
        imds.by_address.clear()
        assert ask(imds.url + "/latest/meta-data/instance-id", headers=headers)[0] == 404


@pytest.fixture
def bare(clients, tmp_path):
    """A cloud without the program."""
    cloud = harness.Cloud(clients, "/nonexistent", tmp_path)
    yield cloud
    cloud.close()


def test_emulators_keep_odd_keys_apart(bare):
    keys = [
        "a b+c.txt",
        "x/../y.txt",
        "y.txt",
        "ünïcödé/文件.dat",
        "100%/a%2Fb",
        "100%/a/b",
        "/lead",
        "lead",
        "k" * 1024,
    ]

    for number, key in enumerate(keys):
        bare.put_input(key, str(number).encode())
        bare.put_task(key)

    assert [bare.object(key, bare.source_bucket) for key in keys] == [str(n).encode() for n in range(len(keys))]
    assert all(bare.task(key)["state"] == "pending" for key in keys)


def test_emulators_deliver_and_launch_and_terminate(bare):
    bare.clients.sns.publish(TopicArn=bare.topic_arn, Subject="one", Message="text")
    notes = harness.wait_until(bare.notifications, 5, "the notification arrives")
    assert [(note["Subject"], note["Message"]) for note in notes] == [("one", "text")]

    instance = bare.launch_instance(srcID="ünïcödé/文件 100%.dat")
    assert bare.instance_state(instance) == "running"
    tags = bare.clients.ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [instance]}])["Tags"]
    assert [(tag["Key"], tag["Value"]) for tag in tags] == [("srcID", "ünïcödé/文件 100%.dat")]
    bare.clients.ec2.terminate_instances(InstanceIds=[instance])
    bare.assert_terminated(instance)


def test_emulators_refuse_conditions_and_wrong_keys(bare):
    bare.put_task("t", attempt=1)
    stale = {
        "Key": {"srcFilename": "t"},
        "UpdateExpression": "SET attempt = attempt + :one",
        "ConditionExpression": "attempt = :seen",
        "ExpressionAttributeValues": {":one": 1, ":seen": 1},
    }
    bare.tasks.update_item(**stale)
    with pytest.raises(botocore.exceptions.ClientError, match="ConditionalCheckFailed"):
        bare.tasks.update_item(**stale)

    other = bare.clients.tables.Table(bare.table_with_key("id"))
    with pytest.raises(botocore.exceptions.ClientError, match="ValidationException"):
        other.get_item(Key={"srcFilename": "t"})

    bare.clients.s3.put_object(Bucket=bare.result_bucket, Key="rslt_t", Body=b"1", IfNoneMatch="*")
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        bare.clients.s3.put_object(Bucket=bare.result_bucket, Key="rslt_t", Body=b"2", IfNoneMatch="*")
    assert bare.result_keys() == ["rslt_t"] and bare.uploads_in_progress() == []


def test_stubs_say_what_no_emulator_says(bare):
    with harness.refusing_ec2() as stub:
        ec2 = harness.Clients(stub.url, stub.url).ec2
        with pytest.raises(botocore.exceptions.ClientError, match="UnauthorizedOperation"):
            ec2.terminate_instances(InstanceIds=["i-1"])
        assert "TerminateInstances" in stub.asked[0]
    with harness.refusing_dynamodb() as stub:
        dynamodb = harness.Clients(stub.url, stub.url).dynamodb
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            dynamodb.get_item(TableName="tblTrans2", Key={"srcFilename": {"S": "t"}})

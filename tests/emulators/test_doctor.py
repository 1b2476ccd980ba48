"""The doctor: what it sees on and off an instance, what it says of each thing that is wrong, and that it changes nothing."""

import json
import uuid

import harness
import pytest

UNFIT = 27


GOOD_TEMPLATE = {
    "ImageId": "ami-12c6146b",
    "InstanceInitiatedShutdownBehavior": "terminate",
    "IamInstanceProfile": {"Name": "node"},
    "MetadataOptions": {
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    },
}


def make_template(cloud, **changed):
    """Makes a launch template like the stack's; returns its name."""
    name = f"nodes-{uuid.uuid4().hex[:8]}"
    cloud.clients.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=GOOD_TEMPLATE | changed)
    return name


def examine(cloud, instance=None, code=0, **env):
    """Runs the doctor, off EC2 with a launch template unless one is named; returns {name: (status, said, fix)}."""
    if not instance and "LIGHTHPC_LAUNCH_TEMPLATE" not in env:
        env["LIGHTHPC_LAUNCH_TEMPLATE"] = make_template(cloud)
    done = cloud.run_command("doctor", "--json", instance=instance, **env)
    assert done.returncode == code, done.stdout + done.stderr
    report = json.loads(done.stdout)
    checks = {check["name"]: (check["status"], check["said"], check["fix"]) for check in report["checks"]}
    assert report["failures"] == sum(status == "failure" for status, *_ in checks.values())
    return checks


def nothing_changed(cloud):
    """Whether the tables, the buckets, and the topic are as empty as they were made."""
    return not (
        harness.scan(cloud.tasks)
        or harness.scan(cloud.missions)
        or cloud.keys()
        or cloud.uploads_in_progress()
        or cloud.notifications()
    )


def test_off_ec2_all_is_well_and_nothing_is_changed(cloud):
    checks = examine(cloud)

    names = ["disk", "identity", "credentials", "clock", "tasks table", "index", "missions table"]
    assert list(checks) == [*names, "source bucket", "result bucket", "topic", "template", "launch"]
    assert {status for status, *_ in checks.values()} == {"ok"}
    assert "not an EC2 instance" in checks["identity"][1]
    assert nothing_changed(cloud)


def test_without_a_launch_template_a_schedulers_machine_is_unfit_and_a_node_is_not(cloud):
    node = cloud.launch_instance(srcID="in/a", lighthpc=cloud.tasks.name)
    other = cloud.launch_instance(Name="a workstation")

    status, said, fix = examine(cloud, code=UNFIT, LIGHTHPC_LAUNCH_TEMPLATE="")["template"]

    assert (status, "no launch template" in said, "LIGHTHPC_LAUNCH_TEMPLATE" in fix) == ("failure", True, True)
    assert "template" not in examine(cloud, node)
    assert examine(cloud, other)["template"][0] == "warning"


def test_on_an_instance_its_tags_and_its_end_are_looked_at(cloud):
    instance = cloud.launch_instance(srcID="in/a", lighthpc=cloud.tasks.name)

    checks = examine(cloud, instance)

    assert checks["identity"][:2] == ("ok", f"instance {instance} in {harness.REGION}")
    assert checks["tags"][:2] == ("ok", "srcID=in/a, from the metadata service")
    assert checks["shutdown"][0] == "ok"
    assert checks["own end"][0] == "ok"
    assert "ASIAIMDSEXAMPLE00001" in checks["credentials"][1]
    assert "secret" not in checks["credentials"][1]
    assert cloud.instance_state(instance) == "running"
    assert nothing_changed(cloud)


def test_an_instance_that_a_shutdown_would_only_stop_is_a_failure(cloud):
    instance = cloud.launch_instance(srcID="in/a")
    cloud.clients.ec2.modify_instance_attribute(
        InstanceId=instance, Attribute="instanceInitiatedShutdownBehavior", Value="stop"
    )

    status, said, fix = examine(cloud, instance, code=UNFIT)["shutdown"]

    assert (status, "stop" in said, "terminate" in fix) == ("failure", True, True)


def test_tags_that_only_ec2_shows_and_no_tags_at_all_are_warned_of(cloud):
    tagged, bare = cloud.launch_instance(missionID="M1"), cloud.launch_instance(Name="bare")
    for instance in (tagged, bare):
        cloud.imds(instance).default.tags_enabled = False

    assert examine(cloud, tagged)["tags"][0] == "warning"
    status, said, _ = examine(cloud, bare)["tags"]
    assert (status, "no task" in said) == ("warning", True)


@pytest.mark.parametrize(
    ("name", "words", "env"),
    [
        ("tasks table", "no-such", {"LIGHTHPC_TASKS_TABLE": "no-such"}),
        ("missions table", "no-such", {"LIGHTHPC_MISSIONS_TABLE": "no-such"}),
        ("source bucket", "no-such-bucket", {"LIGHTHPC_SOURCE_BUCKET": "no-such-bucket"}),
        ("result bucket", "no-such-bucket", {"LIGHTHPC_RESULT_BUCKET": "no-such-bucket"}),
        ("topic", "Nobody", {"LIGHTHPC_TOPIC_ARN": f"arn:aws:sns:{harness.REGION}:000000000000:Nobody"}),
        ("template", "lt-00000000000000000", {"LIGHTHPC_LAUNCH_TEMPLATE": "lt-00000000000000000"}),
    ],
)
def test_what_is_not_there_is_a_failure_with_its_fix(cloud, name, words, env):
    checks = examine(cloud, code=UNFIT, **env)

    failed = {name: check for name, check in checks.items() if check[0] == "failure"}
    assert name in failed
    assert words in failed[name][1] and failed[name][2]
    assert set(failed) <= {name, "index", "clock"}


def test_a_launch_template_is_looked_at_for_what_nodes_depend_on(cloud):
    def look(code=0, **changed):
        return examine(cloud, code=code, LIGHTHPC_LAUNCH_TEMPLATE=make_template(cloud, **changed))["template"]

    assert look()[0] == "ok"
    status, said, _ = look(MetadataOptions={"HttpTokens": "optional", "HttpPutResponseHopLimit": 2})
    assert (status, [word in said for word in ("HttpTokens", "HopLimit", "MetadataTags")]) == ("warning", [True] * 3)
    status, said, _ = look(code=UNFIT, InstanceInitiatedShutdownBehavior="stop")
    assert (status, "terminate" in said) == ("failure", True)


def test_a_table_with_another_key_is_distinguished_from_one_that_is_not_there(cloud):
    other = cloud.table_with_key("name")

    status, _, fix = examine(cloud, code=UNFIT, LIGHTHPC_TASKS_TABLE=other)["tasks table"]

    assert (status, "srcFilename" in fix) == ("failure", True)


def test_a_missing_right_is_named(cloud):
    with harness.refusing_dynamodb() as refusing:
        checks = examine(cloud, code=UNFIT, AWS_ENDPOINT_URL_DYNAMODB=refusing.url)

    status, said, fix = checks["tasks table"]
    assert (status, "not authorized" in said, "allow GetItem" in fix) == ("failure", True, True)


def test_what_only_a_person_may_see_is_not_checked_on_a_node(cloud):
    instance = cloud.launch_instance(srcID="in/a", lighthpc=cloud.tasks.name)
    denied = {"Content-Type": "text/xml"}
    body = "<ErrorResponse><Error><Type>Sender</Type><Code>AuthorizationError</Code><Message>no</Message></Error></ErrorResponse>"
    with harness.refusing_ec2() as ec2, harness.Stub(403, body, denied) as sns:
        checks = examine(cloud, instance, AWS_ENDPOINT_URL_EC2=ec2.url, AWS_ENDPOINT_URL_SNS=sns.url)

    for name, right in [("shutdown", "ec2:DescribeInstanceAttribute"), ("topic", "sns:GetTopicAttributes")]:
        assert checks[name][0] == "skipped"
        assert checks[name][1].startswith(f"not checked: needs {right}")
    assert checks["tasks table"][0] == "ok"


def test_without_credentials_that_alone_is_said(cloud):
    checks = examine(cloud, code=UNFIT, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)

    assert list(checks) == ["disk", "identity", "credentials"]
    assert checks["credentials"][0] == "failure"


def test_a_wrong_clock_is_a_failure_before_aws_refuses_it(cloud):
    ahead = examine(cloud, code=UNFIT, clock_s=400)["clock"]
    slightly = examine(cloud, clock_s=-90)["clock"]

    assert ahead[0] == "failure"
    assert slightly[0] == "warning"


def test_an_image_that_was_not_provisioned_is_a_failure(cloud):
    done = cloud.run_command("doctor", "--bake")

    assert done.returncode == UNFIT
    assert "FAILURE  unit" in done.stdout and "fix: run scripts/provision" in done.stdout

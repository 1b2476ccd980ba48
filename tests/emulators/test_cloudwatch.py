"""What nodes and functions send to CloudWatch: log lines, the end of each attempt, and metrics."""

import json
import socket

import pytest

WORDY = """i=0; while [ $i -lt 2000 ]; do echo "line $i"; i=$((i+1)); done
cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"
"""


@pytest.fixture
def group(cloud):
    """A log group of this test."""
    name = f"/lighthpc/{cloud.tasks.name}"
    cloud.clients.logs.create_log_group(logGroupName=name)
    return name


def events(cloud, group, instance):
    """The texts in the stream of an instance."""
    pages = cloud.clients.logs.get_log_events(logGroupName=group, logStreamName=instance, startFromHead=True)
    return [event["message"] for event in pages["events"]]


def attempts(texts):
    """The events of ended attempts."""
    return [json.loads(text) for text in texts if text.startswith("{")]


def test_a_node_sends_its_log_and_the_end_of_each_attempt(cloud, group):
    cloud.put_input("M/a b")
    cloud.put_mission("M", 1)
    cloud.put_task("M/a b", "M")
    instance = cloud.launch_instance(srcID="M/a b", missionID="M")

    node = cloud.run_node(instance, program=cloud.script(WORDY), LIGHTHPC_LOG_GROUP=group, LIGHTHPC_LOG_OUTPUT_BYTES=100)

    assert node.returncode == 0, node.stderr
    texts = events(cloud, group, instance)
    (event,) = attempts(texts)
    assert (event["task"], event["mission"], event["verdict"], event["attempt"]) == ("M/a b", "M", "ok", 1)
    assert event["result"] == cloud.task("M/a b")["rsltFilename"]
    log = "".join(f"line {n}\n" for n in range(2000))
    assert event["output"] == log[-100:] and event["outputDroppedBytes"] == len(log) - 100
    metrics = event["_aws"]["CloudWatchMetrics"][0]
    assert metrics["Namespace"] == "lighthpc" and event["Deployment"] == cloud.tasks.name
    assert all(isinstance(event[metric["Name"]], int) for metric in metrics["Metrics"])
    assert (event["AttemptsDone"], event["AttemptsFailed"]) == (1, 0)
    # The lines are those of the journal.
    lines = [text for text in texts if not text.startswith("{")]
    assert len(lines) > 5 and all(line in node.stderr for line in lines)
    # What 10,000 tasks cost: docs/operating.md has this number.
    assert sum(len(text) + 26 for text in texts) < 6_000


def test_a_failed_attempt_is_sent_with_its_reason(cloud, group):
    cloud.put_input("a")
    cloud.put_task("a")
    instance = cloud.launch_instance(srcID="a")

    node = cloud.run_node(instance, program=cloud.script("echo no such sample >&2; exit 3\n"), LIGHTHPC_LOG_GROUP=group)

    assert node.returncode == 20
    (event,) = attempts(events(cloud, group, instance))
    assert (event["verdict"], event["exitCode"], event["error"]) == ("app-error", 3, "the workload exited with code 3")
    assert event["output"] == "no such sample\n" and event["result"] is None
    assert (event["AttemptsDone"], event["AttemptsFailed"]) == (0, 1)


@pytest.mark.parametrize("service", ["without the group", "unreachable"])
def test_a_log_that_cannot_be_sent_costs_no_task(cloud, service):
    cloud.put_input("a")
    cloud.put_task("a")
    instance = cloud.launch_instance(srcID="a")
    env = {"LIGHTHPC_LOG_GROUP": "/no/such/group"}
    with socket.socket() as bound:
        # Nobody listens at this port, and nobody else gets it.
        bound.bind(("127.0.0.1", 0))
        if service == "unreachable":
            env["AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"] = f"http://127.0.0.1:{bound.getsockname()[1]}"
        # Longer than the first try to send.
        node = cloud.run_node(instance, program=cloud.script("sleep 14; cp $LIGHTHPC_INPUT $LIGHTHPC_OUTPUT\n"), **env)

    assert node.returncode == 0, node.stderr
    assert cloud.task("a")["state"] == "done"
    assert node.stderr.count("the log was not sent to CloudWatch Logs") == 1, node.stderr
    cloud.assert_terminated(instance)

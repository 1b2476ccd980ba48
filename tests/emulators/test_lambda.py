"""The real binary as a Lambda function: each kind of event through the runtime's interface, and what is there afterwards.

The runtime interface is played here (two calls: the next event, the answer to it), so a case sees what Lambda would see.
Source of its form: AWS Lambda developer guide, "Lambda runtime API".
"""

import contextlib
import json
import queue
import shutil
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness import KEYS, Node, scan, wait_until
from test_scheduler import COPY, account, instances, start  # noqa: F401: a fixture


class Runtime:
    """Hands events out one by one, and takes the answers."""

    def __init__(self):
        self.events, self.answers = queue.Queue(), queue.Queue()
        runtime = self

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                event = runtime.events.get()
                body = json.dumps(event).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", "00000000-0000-0000-0000-000000000001")
                self.send_header("Lambda-Runtime-Deadline-Ms", "9999999999999")
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:0:function:f")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                runtime.answers.put((self.path.rsplit("/", 1)[-1], json.loads(body or b"null")))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self._http.daemon_threads = True
        self.address = f"127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        """Stops answering."""
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def invoke(account):  # noqa: F811
    """Invokes the function: returns its answer; `error=True` expects an error, which makes Lambda invoke again."""
    runtime = Runtime()
    program = account.folder / "bootstrap"
    shutil.copy(account.binary, program)
    env = account.environment(
        **KEYS, AWS_EC2_METADATA_DISABLED="true", AWS_LAMBDA_RUNTIME_API=runtime.address, **account.settings
    )
    env |= {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256"}
    env |= {"AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_LOG_GROUP_NAME": "g", "AWS_LAMBDA_LOG_STREAM_NAME": "s"}
    env |= {"LIGHTHPC_METRICS": "yes", "LIGHTHPC_MAX_NODES": "50", "LIGHTHPC_ALLOWED_INSTANCE_TYPES": "t3.*,c7i.large"}
    node = Node([str(program)], env, account.folder / "function")

    def call(event, error=False, timeout_s=40):
        runtime.events.put(event)
        kind, answer = runtime.answers.get(timeout=timeout_s)
        assert kind == ("error" if error else "response"), answer
        return answer

    with contextlib.closing(runtime):
        yield call
        node.close()


def record(account, key, **more):  # noqa: F811
    """A record of an S3 notification, its key encoded as S3 encodes it."""
    return {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "eventTime": "2026-01-01T00:00:00.000Z",
        "s3": {
            "bucket": {"name": more.get("bucket", account.source_bucket)},
            "object": {"key": urllib.parse.quote_plus(key), "size": more.get("size", 3)},
        },
    }


def test_a_sweep_writes_its_figures_as_metrics(invoke, account):  # noqa: F811
    account.put_mission("M001", 2)
    account.put_input("M001/a")
    assert invoke({"Records": [record(account, "M001/a")]}) == {"tasks": 1}
    invoke({"lighthpc": "sweep"})

    (line,) = (account.folder / "function" / "stdout").read_text().splitlines()
    figures = json.loads(line)
    assert figures["Deployment"] == account.tasks.name
    assert (figures["OpenMissions"], figures["FailedTasks"], figures["LeakedInstances"]) == (1, 0, 0)
    names = {metric["Name"] for metric in figures["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert names == {name for name, value in figures.items() if isinstance(value, int)}


ODD_KEYS = ["a b+c.txt", "100%/a%2Fb", "ünï/文件.dat", "trail/", "q?x=1&y#z", "k" * 1024]


def test_an_upload_is_a_task_and_its_node_finishes_the_mission(invoke, account):  # noqa: F811
    account.put_mission("M001", 1)
    account.put_input("M001/a b+ü.txt", b"abc")
    event = {"Records": [record(account, "M001/a b+ü.txt")]}

    assert invoke(event) == {"tasks": 1}
    assert invoke(event) == {"tasks": 1}, "it comes twice"

    ((id, tags),) = instances(account).items()
    assert tags == {
        "Name": "lighthpc M001/a b+ü.txt",
        "lighthpc": account.tasks.name,
        "lighthpc-epoch": "1",  # there is a limit of nodes
        "missionID": "M001",
        "srcID": "M001/a b+ü.txt",
    }
    row = account.task("M001/a b+ü.txt")
    assert (row["state"], row["numlog"], row["launchInstanceID"]) == ("pending", "1+1", id)
    assert start(account, id, tags, program=account.script(COPY)).wait().returncode == 0
    assert account.object("rslt_M001/a b+ü.txt") == b"abc"
    assert account.tally("M001") == (1, 0)
    assert len(wait_until(account.notifications, 10, "the notification arrives")) == 1
    assert instances(account) == {}


def test_odd_keys_and_bad_neighbours(invoke, account):  # noqa: F811
    good = [record(account, key) for key in ODD_KEYS]
    bad = [
        record(account, "a", bucket="elsewhere"),
        record(account, "rslt_a", bucket=account.result_bucket),
        record(account, "folder/", size=0),
        {"eventSource": "aws:s3", "eventName": "ObjectRemoved:Delete"},
        {"eventSource": "aws:s3", "eventName": "ObjectRestore:Post"},
        {"eventSource": "aws:other"},
    ]

    assert invoke({"Records": [it for pair in zip(bad, good) for it in pair]}) == {"tasks": len(good)}

    assert sorted(row["srcFilename"] for row in scan(account.tasks)) == sorted(ODD_KEYS)
    launched = instances(account)
    assert len(launched) == len(good)
    assert all(len(tags["srcID"]) <= 256 for tags in launched.values())


def test_other_ways_that_events_come(invoke, account):  # noqa: F811
    bridged = {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "time": "2026-01-01T00:00:00Z",
        "detail": {
            "bucket": {"name": account.source_bucket},
            "object": {"key": "as+it%20is", "size": 3},
            "reason": "PutObject",
        },
    }
    test = {"Service": "Amazon S3", "Event": "s3:TestEvent"}
    message = {"eventSource": "aws:sqs"}
    batch = {
        "Records": [
            message | {"messageId": "1", "body": json.dumps({"Records": [record(account, "by queue")]})},
            message | {"messageId": "2", "body": "poison"},
            message | {"messageId": "3", "body": json.dumps(test)},
            message | {"messageId": "4", "body": json.dumps(bridged)},
            message | {"messageId": "5", "body": json.dumps({"Records": [{"eventSource": "aws:s3"}]})},
            message | {"messageId": "6", "body": json.dumps({"Records": [{"eventName": "ObjectCreated:Put"}]})},
        ]
    }

    assert invoke(batch) == {"batchItemFailures": [{"itemIdentifier": "2"}, {"itemIdentifier": "6"}]}
    assert invoke(bridged) == {"tasks": 1}
    assert "ignored" in invoke(test)
    assert "ignored" in invoke({"what": "is this"})

    assert sorted(row["srcFilename"] for row in scan(account.tasks)) == ["as+it%20is", "by queue"]
    assert len(instances(account)) == 2


def test_a_schedule_sweeps_and_an_instances_end_heals_its_task(invoke, account):  # noqa: F811
    account.put_input("a")
    assert invoke({"Records": [record(account, "a")]}) == {"tasks": 1}
    ((id, _),) = instances(account).items()
    account.clients.ec2.terminate_instances(InstanceIds=[id])
    state = {
        "source": "aws.ec2",
        "detail-type": "EC2 Instance State-change Notification",
        "detail": {"instance-id": id, "state": "terminated"},
    }
    warning = {"source": "aws.ec2", "detail-type": "EC2 Spot Instance Interruption Warning", "detail": {"instance-id": id}}

    assert "ignored" in invoke(warning)
    assert invoke(state) == {"findings": 1}
    ((second, tags),) = instances(account).items()
    assert second != id and tags["srcID"] == "a"
    account.clients.ec2.terminate_instances(InstanceIds=[second])
    assert invoke({"source": "aws.events", "detail-type": "Scheduled Event"}) == {"findings": 1}
    assert len(instances(account)) == 1 and account.task("a")["launchesLost"] == 2


def request(method, path, body=None, authorizer=True, mission=None):
    """A request as an HTTP API hands it on, payload 2.0: path and parameters are decoded already."""
    context = {"http": {"method": method, "path": path}, "stage": "$default"}
    if authorizer:
        context["authorizer"] = {"iam": {"userArn": "arn:aws:iam::0:user/a"}}
    event = {"version": "2.0", "rawPath": path, "requestContext": context, "isBase64Encoded": False}
    if mission:
        event["pathParameters"] = {"mission": mission}
    return event | ({"body": body if isinstance(body, str) else json.dumps(body)} if body is not None else {})


def test_missions_by_http(invoke, account):  # noqa: F811
    def ask(*arguments, **more):
        answer = invoke(request(*arguments, **more))
        assert answer["headers"]["content-type"] == "application/json"
        return answer["statusCode"], json.loads(answer["body"])

    new = {"mission": "M 1", "transNumber": "2", "bidMode": "lowerPrice", "maxUnitprice": "0.08", "maxWaitTime": "600"}
    status, made = ask("POST", "/missions", new)
    assert (status, made["mission"], made["transNumber"], made["notifyEmail"]) == (201, "M 1", 2, "No")
    row = account.mission("M 1")
    assert (row["bidMode"], row["maxUnitprice"], row["maxWaitTime"]) == ("spot", "0.08", "600")
    assert ask("POST", "/missions", new)[0] == 409
    assert ask("GET", "/missions/M 1")[1]["transNumber"] == 2
    assert ask("GET", "/missions/M 1", mission="M 1")[1]["transNumber"] == 2
    assert [it["mission"] for it in ask("GET", "/missions")[1]["missions"]] == ["M 1"]
    assert ask("GET", "/missions/none")[0] == 404
    assert ask("DELETE", "/missions/M 1")[0] == 405
    assert ask("GET", "/elsewhere")[0] == 404
    for body, says in [
        ("no json", "body"),
        ({"mission": "M2", "transNumber": 0}, "transNumber"),
        ({"mission": "M2", "transNumber": 1, "maxUnitprice": "a lot"}, "a lot"),
        ({"mission": "M2", "transNumber": 1, "surprise": 1}, "surprise"),
        ({"mission": "M2", "transNumber": 1, "bidMode": "mix"}, "onDemandFloor"),
        ({"mission": "M2", "transNumber": 1, "bidInstanceType": "t3.micro,p5.48xlarge"}, "p5.48xlarge"),
    ]:
        status, answer = ask("POST", "/missions", body)
        assert status == 400 and says in answer["error"], answer
    assert account.mission("M2") is None

    assert invoke({"Records": [record(account, "M 1/a")]}) == {"tasks": 1}
    status, answer = ask("POST", "/missions/M 1/cancel")
    assert (status, answer["ended"], len(answer["instancesEnded"])) == (200, 1, 1)
    assert ask("GET", "/missions/M 1")[1]["transFailed"] == 1
    assert ask("POST", "/missions/none/cancel")[0] == 404
    for arguments in [
        *(("GET", "/missions"), ("POST", "/missions", new), ("POST", "/missions/M 1/cancel")),
        ("PUT", "/missions/M 1/workload", {"exec": "id"}),
    ]:
        assert ask(*arguments, authorizer=False)[0] == 403
    assert "exec" not in account.mission("M 1")


def test_what_nodes_run_is_set_by_a_route_of_its_own(invoke, account):  # noqa: F811
    def ask(*arguments, **more):
        answer = invoke(request(*arguments, **more))
        return answer["statusCode"], json.loads(answer["body"])

    for name, value in [("exec", "id"), ("nodes", 1), ("slots", 1)]:
        status, answer = ask("POST", "/missions", {"mission": "M1", "transNumber": 1, name: value})
        assert status == 400 and "PUT /missions/ID/workload" in answer["error"], answer
    assert account.mission("M1") is None
    assert ask("PUT", "/missions/M1/workload", {"exec": "id"})[0] == 404
    assert account.mission("M1") is None, "it makes no mission"

    assert ask("POST", "/missions", {"mission": "M1", "transNumber": 1})[0] == 201
    for body, says in [({"nodes": 51}, "from 1 to 50"), ({"slots": 0}, "slots 0"), ({"bidMode": "spot"}, "bidMode")]:
        status, answer = ask("PUT", "/missions/M1/workload", body)
        assert status == 400 and says in answer["error"], answer
    before = account.mission("M1")
    assert ask("PUT", "/missions/M1/workload", {"exec": "wc -l", "nodes": 3, "slots": "2"})[0] == 200
    assert account.mission("M1") == before | {"exec": "wc -l", "nodes": 3, "slots": 2}
    # It is the whole of it, and may be said twice.
    for _ in range(2):
        assert ask("PUT", "/missions/M1/workload", {"exec": "wc -c"})[0] == 200
        assert account.mission("M1") == before | {"exec": "wc -c"}
    assert ask("POST", "/missions/M1/workload", {"exec": "id"})[0] == 405


def test_a_path_is_decoded_once_and_not_here(invoke, account):  # noqa: F811
    # As earlier versions let missions be called.
    for id in ("50%25", "a%41", "aA", "50%", "%2e%2e", "a+b"):
        account.put_mission(id, 1)
    for id in ("50%25", "a%41", "aA", "50%", "%2e%2e", "a+b"):
        for event in (request("GET", f"/missions/{id}"), request("GET", "/missions/any", mission=id)):
            answer = invoke(event)
            assert (answer["statusCode"], json.loads(answer["body"])["mission"]) == (200, id)


def test_an_event_without_a_row_is_not_given_up(invoke, account):  # noqa: F811
    good, bad = record(account, "a"), {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}

    # Lambda invokes again, and at last keeps the event in the queue of failures; the neighbour has its row.
    answer = invoke({"Records": [bad, good]}, error=True)
    assert "has no bucket or no key" in answer["errorMessage"]
    assert account.task("a")["state"] == "pending"

    account.tasks.delete()
    answer = invoke({"Records": [good]}, error=True)
    assert account.tasks.name in answer["errorMessage"]

"""Turns a request to AWS into what IAM is asked for it: actions, resources, and context keys.

Source: Service Authorization Reference, "Actions, resources, and condition keys" for DynamoDB, S3, SNS, EC2, and
CloudWatch Logs.
"""

import collections
import json
import re
import urllib.parse
import xml.etree.ElementTree

import chaos_proxy
from harness import REGION
from rendering import ACCOUNT

# One question to IAM. `context` is a tuple of pairs; a value may be a tuple of values.
Asked = collections.namedtuple("Asked", "action resource context")

OF_TRANSACTION = {"Update": "UpdateItem", "Put": "PutItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem"}
# What an expression has beside the names of attributes.
WORDS = set("SET ADD REMOVE DELETE AND OR NOT IN BETWEEN if_not_exists list_append".split())
WORDS |= set("attribute_exists attribute_not_exists attribute_type begins_with contains size".split())
EXPRESSIONS = "UpdateExpression ConditionExpression ProjectionExpression KeyConditionExpression FilterExpression".split()


class Recorder:
    """Stands before both emulators, and keeps what each request asks of IAM, and which operations there were."""

    def __init__(self, clients):
        self.asked, self.operations = set(), set()
        self._proxies = [
            chaos_proxy.Proxy(url, NoDice(), None, rates={}) for url in (clients.endpoint, clients.ec2_endpoint)
        ]
        for proxy in self._proxies:
            proxy.on_request = self._note
        self.environment = {
            "AWS_ENDPOINT_URL": self._proxies[0].url,
            "AWS_ENDPOINT_URL_EC2": self._proxies[1].url,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for proxy in self._proxies:
            proxy.__exit__()

    def _note(self, service, method, path, headers, body):
        operation, asked = of_request(service, method, path, headers, body)
        self.operations.add(operation)
        self.asked.update(asked)


class NoDice:
    """No chance at all."""

    def random(self):
        return 1.0


def of_request(service, method, path, headers, body):
    """The operation, and what IAM is asked for it."""
    match service:
        case "dynamodb":
            operation = headers["X-Amz-Target"].split(".")[-1]
            return operation, of_dynamodb(operation, json.loads(body))
        case "logs":
            operation, named = headers["X-Amz-Target"].split(".")[-1], json.loads(body)
            stream = f"log-group:{named['logGroupName']}:log-stream:{named['logStreamName']}"
            return operation, [Asked(f"logs:{operation}", f"arn:aws:logs:{REGION}:{ACCOUNT}:{stream}", ())]
        case "s3":
            return of_s3(method, path, body)
        case "sns" | "ec2":
            form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
            return form["Action"], (of_sns if service == "sns" else of_ec2)(form["Action"], form)
    raise AssertionError(f"a call of a service that no role is for: {service} {method} {path}")


def table_arn(name):
    return f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name}"


def of_dynamodb(operation, request):
    """A table's name, its index, the attributes that are named anywhere, and the partition keys."""
    if operation == "TransactWriteItems":
        for item in request["TransactItems"]:
            ((kind, one),) = item.items()
            yield from of_dynamodb(OF_TRANSACTION[kind], one)
        return
    if operation == "BatchGetItem":
        for name, keys in request["RequestItems"].items():
            yield Asked("dynamodb:BatchGetItem", table_arn(name), context_of(keys, keys["Keys"]))
        return
    index = f"/index/{request['IndexName']}" if "IndexName" in request else ""
    keys = [request["Key"]] if "Key" in request else []
    yield Asked(f"dynamodb:{operation}", table_arn(request["TableName"]) + index, context_of(request, keys))


def context_of(request, keys):
    names = request.get("ExpressionAttributeNames", {})
    attributes = set(names.values()) | set(request.get("Item", {}))
    for key in keys:
        attributes |= set(key)
    for text in EXPRESSIONS:
        # Bare names; placeholders are among the names above.
        attributes |= set(re.findall(r"(?<![#:\w.])[A-Za-z_]\w*", request.get(text, ""))) - WORDS
    leading = {next(iter(value.values())) for key in keys for value in key.values()}
    context = {"dynamodb:Attributes": tuple(sorted(attributes))}
    if leading:
        context["dynamodb:LeadingKeys"] = tuple(sorted(leading))
    return tuple(context.items())


def of_s3(method, path, body):
    path, _, query = path.partition("?")
    query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    bucket, _, key = urllib.parse.unquote(path).removeprefix("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    match method, bool(key):
        case "HEAD", False:
            return "HeadBucket", [Asked("s3:ListBucket", arn, ())]
        case "GET", False if query.get("list-type") == "2":
            return "ListObjectsV2", [Asked("s3:ListBucket", arn, ())]
        case "POST", False if "delete" in query:
            named = xml.etree.ElementTree.fromstring(body).iter()
            keys = [it.text for it in named if it.tag.endswith("Key")]
            return "DeleteObjects", [Asked("s3:DeleteObject", f"{arn}/{key}", ()) for key in keys]
    operation, action = {
        ("HEAD", ""): ("HeadObject", "GetObject"),
        ("GET", ""): ("GetObject", "GetObject"),
        ("PUT", ""): ("PutObject", "PutObject"),
        ("PUT", "partNumber"): ("UploadPart", "PutObject"),
        ("POST", "uploads"): ("CreateMultipartUpload", "PutObject"),
        ("POST", "uploadId"): ("CompleteMultipartUpload", "PutObject"),
        ("DELETE", "uploadId"): ("AbortMultipartUpload", "AbortMultipartUpload"),
    }[method, next((name for name in ("partNumber", "uploads", "uploadId") if name in query), "")]
    assert key, (method, path, query)
    return operation, [Asked(f"s3:{action}", f"{arn}/{key}", ())]


def of_sns(action, form):
    return [Asked(f"sns:{action}", form["TopicArn"], ())]


def ec2_arn(kind, name="*", account=ACCOUNT):
    return f"arn:aws:ec2:{REGION}:{account}:{kind}/{name}"


def listed(form, prefix):
    """The values of a list in a form: `Prefix.1`, `Prefix.2`, …"""
    found = [(int(name.removeprefix(prefix + ".")), value) for name, value in form.items() if re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)]
    return [value for _, value in sorted(found)]


def of_ec2(action, form):
    if action.startswith("Describe"):
        return [Asked(f"ec2:{action}", "*", ())]
    if action == "TerminateInstances":
        ids = listed(form, "InstanceId")
        return [Asked("ec2:TerminateInstances", ec2_arn("instance", id), (("ec2:InstanceID", id),)) for id in ids]
    assert action == "CreateFleet", f"a call that no role is for: ec2 {action}"
    return list(of_fleet(form))


# What a launch by an instant fleet touches beside the template, the image, and the subnets.
TOUCHED = "fleet network-interface security-group spot-instances-request volume".split()


def of_fleet(form):
    """EC2 asks for each thing that a launch touches, once as the fleet and once as its launches.

    The image and the role stand in the template, so they are added where that is known: see `launches`.
    """
    template = next(form[name] for name in form if name.endswith("LaunchTemplateSpecification.LaunchTemplateId"))
    overrides = sorted({name.rsplit(".", 1)[0] for name in form if re.search(r"Overrides\.\d+\.", name)})
    types = {form.get(f"{one}.InstanceType") for one in overrides} - {None}
    subnets = {form.get(f"{one}.SubnetId") for one in overrides} - {None}
    tags = {}
    for name, kind in form.items():
        if re.fullmatch(r"TagSpecification\.\d+\.ResourceType", name):
            prefix = name.removesuffix("ResourceType") + "Tag."
            keys = {at: form[at] for at in form if at.startswith(prefix) and at.endswith(".Key")}
            tags[kind] = {f"aws:RequestTag/{key}": form[at.removesuffix("Key") + "Value"] for at, key in keys.items()}
    for action in ("ec2:CreateFleet", "ec2:RunInstances"):
        yield Asked(action, ec2_arn("launch-template", template), ())
        for subnet in subnets:
            yield Asked(action, ec2_arn("subnet", subnet), ())
        for kind in TOUCHED:
            yield Asked(action, ec2_arn(kind), tuple(tags.get(kind, {}).items()))
    yield Asked("ec2:CreateFleet", ec2_arn("instance"), tuple(tags["instance"].items()))
    for type_ in types:
        context = tags["instance"] | {"ec2:InstanceType": type_}
        yield Asked("ec2:RunInstances", ec2_arn("instance"), tuple(context.items()))
    for kind, some in tags.items():
        context = some | {"ec2:CreateAction": "CreateFleet" if kind == "fleet" else "RunInstances"}
        yield Asked("ec2:CreateTags", ec2_arn(kind), tuple(context.items()))

"""Renders the stack's template offline, and asks what its roles may do.

The evaluator is ministack's. It knows no policy variables, so they are put in here; `test_rights.py` tries each operator
that the template uses on small cases whose answer is known.
"""

import functools
import json
import pathlib
import re

from cfnlint.decode import cfn_yaml
from harness import REGION, ROOT
from ministack.core import iam_evaluator

TEMPLATE = ROOT / "cloudformation" / "stack.yaml"
ACCOUNT = "000000000000"
STACK = "lab"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-1111-2222-3333-444444444444"

# What a stack must be given.
REQUIRED = {
    "ImageId": "ami-0123456789abcdef0",
    "Subnets": ["subnet-1", "subnet-2"],
    "VpcId": "vpc-1",
    "CodeBucket": "code",
    "CodeKey": "lab/program.zip",
}
# The names of what the stack makes, where AWS gives them: `Ref` is the first, an ARN the second.
MADE = {
    "TasksTable": (f"{STACK}-tasks", f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{STACK}-tasks"),
    "MissionsTable": (f"{STACK}-missions", f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{STACK}-missions"),
    "ResultBucket": (f"{STACK}-result-{ACCOUNT}-{REGION}", f"arn:aws:s3:::{STACK}-result-{ACCOUNT}-{REGION}"),
    "SourceBucket": (f"{STACK}-source-{ACCOUNT}-{REGION}", f"arn:aws:s3:::{STACK}-source-{ACCOUNT}-{REGION}"),
    "Topic": (f"arn:aws:sns:{REGION}:{ACCOUNT}:{STACK}-topic",) * 2,
    "NodeRole": ("node-role", f"arn:aws:iam::{ACCOUNT}:role/node-role"),
    "LaunchTemplate": ("lt-0123456789abcdef0", None),
    "UploadQueue": ("https://queue", f"arn:aws:sqs:{REGION}:{ACCOUNT}:{STACK}-UploadQueue-1"),
    "FailedEvents": ("https://failed", f"arn:aws:sqs:{REGION}:{ACCOUNT}:{STACK}-failed"),
    "NodeLog": (f"/lighthpc/{STACK}", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/lighthpc/{STACK}:*"),
    "FunctionLog": ("log", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/{STACK}-scheduler:*"),
    "UploadLog": ("log", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/{STACK}-uploads:*"),
}
PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::StackName": STACK,
}
NO_VALUE = object()


@functools.cache
def template():
    """The template, with the short forms of functions as {"Fn::Sub": …}."""
    return cfn_yaml.load(str(TEMPLATE))


def resolved(template, value, parameters=(), made=MADE):
    """A value of the template as CloudFormation makes it, in a stack with these parameters beside the required ones."""
    given = {name: it.get("Default") for name, it in template["Parameters"].items()} | REQUIRED | dict(parameters)

    def named(name):
        if name in PSEUDO:
            return PSEUDO[name]
        if name in given:
            return given[name]
        if "." in name:
            return attribute(*name.split(".", 1))
        # What is asked of no test has its own name.
        return made[name][0] if name in made else name

    def attribute(name, which):
        return made[name][1] if name in made and which == "Arn" else f"{name}.{which}"

    def holds(condition):
        match next(iter(condition.items())):
            case ("Condition", name):
                return holds(template["Conditions"][name])
            case ("Fn::Equals", [one, other]):
                return value_of(one) == value_of(other)
            case ("Fn::Not", [one]):
                return not holds(one)
            case ("Fn::And", all_):
                return all(map(holds, all_))
        raise AssertionError(f"a condition that is not known here: {condition}")

    def substituted(text):
        text, names = text if isinstance(text, list) else (text, {})
        names = {name: value_of(it) for name, it in names.items()}

        def one(found):
            return str(names[found[1]] if found[1] in names else named(found[1]))

        return re.sub(r"\$\{([^!}]+)\}", one, text).replace("${!", "${")

    def value_of(value):
        if isinstance(value, list):
            return [it for it in map(value_of, value) if it is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            match next(iter(value.items())):
                case ("Ref", "AWS::NoValue"):
                    return NO_VALUE
                case ("Ref", name):
                    return named(name)
                case ("Fn::GetAtt", path):
                    return attribute(*(path if isinstance(path, list) else path.split(".", 1)))
                case ("Fn::If", [condition, yes, no]):
                    return value_of(yes if holds({"Condition": condition}) else no)
                case ("Fn::Sub", text):
                    return substituted(text)
                case ("Fn::Split", [by, text]):
                    return value_of(text).split(by)
                case ("Fn::Join", [by, parts]):
                    return by.join(value_of(parts))
        values = {key: value_of(it) for key, it in value.items()}
        return {key: it for key, it in values.items() if it is not NO_VALUE}

    return value_of(value)


class Role:
    """One of the stack's roles, in a stack with these parameters."""

    def __init__(self, name, parameters=(), made=MADE, more=()):
        policies = template()["Resources"][name]["Properties"]["Policies"]
        rendered = [resolved(template(), policy["PolicyDocument"], parameters, made) for policy in policies]
        self.statements = [statement for document in rendered for statement in document["Statement"]] + list(more)

    def may(self, action, resource, **context):
        """Whether it may do something; context keys are as AWS writes them."""
        keys = {name.lower(): value for name, value in context.items()}
        text = json.dumps({"Version": "2012-10-17", "Statement": self.statements})
        text = re.sub(r"\$\{([^}]+)\}", lambda found: str(keys.get(found[1].lower(), "no such key")), text)
        return decision(text, action, resource, keys) == "Allow"

    def actions(self):
        """All actions that some statement allows."""
        allowed = (it["Action"] for it in self.statements if it["Effect"] == "Allow")
        return {action for some in allowed for action in (some if isinstance(some, list) else [some])}


def decision(policy, action, resource, keys):
    """`Allow`, `Deny`, or `ImplicitDeny`, by a policy in JSON; context keys are in lower case."""
    request = iam_evaluator.EvalContext(
        principal_arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/role/session",
        principal_type="AssumedRole",
        principal_account=ACCOUNT,
        action=action,
        resource_arn=resource,
        region=REGION,
        source_ip="127.0.0.1",
        secure_transport=True,
        service_context=keys,
        principal_keys={"aws:userid": keys["aws:userid"]} if "aws:userid" in keys else {},
    )
    return iam_evaluator.evaluate(request, [iam_evaluator.parse_policy_document(policy)]).decision

"""What nodes, functions, and people ask of AWS, against what their roles allow; and what the roles must refuse.

The programs run against emulators that refuse nothing. Each request is turned into what IAM would be asked for it, with what
EC2 checks for each thing that a launch touches, and every question is put to the role in the template, rendered offline.
"""

import contextlib
import json
import pathlib
import re
import shutil
import signal

import harness
import pytest
import rendering
from harness import KEYS, REGION, Node, wait_until
from imds_server import ImdsServer, Instance
from recording import Asked, Recorder, ec2_arn, table_arn
from rendering import ACCOUNT, KEY, MADE, Role
from test_doctor import GOOD_TEMPLATE
from test_lambda import Runtime, record, request
from test_scheduler import COPY, instances

IMAGE = "ami-12c6146b"
ME, OTHER = "i-0123456789abcdef0", "i-0fedcba9876543210"
LARGE = 'head -c 20000000 /dev/zero >"$LIGHTHPC_OUTPUT"\n'
FOLDER = 'mkdir "$LIGHTHPC_OUTPUT"; cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT/a"\n'
SLOW = pytest.mark.timeout(300)


class Scene:
    """One deployment on the emulators, and who does what in it: a recorder for each of three roles."""

    def __init__(self, cloud, recorders):
        self.cloud, self.recorders = cloud, recorders
        made = cloud.clients.ec2.create_launch_template(
            LaunchTemplateName=f"rights-{cloud.tasks.name}",
            LaunchTemplateData=GOOD_TEMPLATE | {"ImageId": IMAGE},
        )
        self.template = made["LaunchTemplate"]["LaunchTemplateId"]
        self.settings = {
            "LIGHTHPC_LAUNCH_TEMPLATE": self.template,
            "LIGHTHPC_INSTANCE_TYPES": "t3.micro,t3.small",
            "LIGHTHPC_SUBNETS": cloud.clients.ec2.describe_subnets()["Subnets"][0]["SubnetId"],
            "LIGHTHPC_LEASE": 3,
        }

    def node(self, script, instance=None, tags=None, code=0, in_imds=True, **env):
        """Starts a node; waits for its end unless `code` is None."""
        tags = tags if tags is not None else {}
        if instance:
            self.cloud._imds[instance] = ImdsServer(Instance(instance, tags=tags, region=REGION)).start()
        else:
            instance = self.cloud.launch_instance(**tags, lighthpc=self.cloud.tasks.name)
        self.cloud.imds(instance).default.tags_enabled = in_imds
        env = {"LIGHTHPC_LEASE": 3, "LIGHTHPC_HEARTBEAT": 1} | self.recorders["node"].environment | env
        node = self.cloud.start_node(instance, program=self.cloud.script(script) if script else None, **env)
        if code is not None:
            finished = node.wait(60)
            assert finished.returncode == code, finished.stderr
        return node

    def launched(self, mission):
        """The instances that were launched for a mission and run: pairs of id and tags."""
        return [(id, tags) for id, tags in instances(self.cloud).items() if tags.get("missionID") == mission]

    def person(self, *arguments, code=0, **env):
        """Runs a command as a person does."""
        env = self.settings | self.recorders["person"].environment | env
        finished = self.cloud.run_command(*arguments, timeout_s=60, **env)
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished

    @contextlib.contextmanager
    def function(self):
        """The function: call it with an event."""
        runtime, cloud = Runtime(), self.cloud
        program = cloud.folder / "bootstrap"
        shutil.copy(cloud.binary, program)
        aws = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_LAMBDA_RUNTIME_API": runtime.address}
        aws |= {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256"}
        aws |= {"AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_LOG_GROUP_NAME": "g", "AWS_LAMBDA_LOG_STREAM_NAME": "s"}
        env = cloud.environment(**KEYS, **self.settings, **self.recorders["function"].environment, **aws)
        node = Node([str(program)], env, cloud.folder / "function")

        def call(event):
            runtime.events.put(event)
            kind, answer = runtime.answers.get(timeout=60)
            assert kind == "response", answer
            return answer

        with contextlib.closing(runtime):
            yield call
            node.close()


def let_nodes_work(scene):
    """A node's life in all its turns that ask something of AWS."""
    cloud, clients = scene.cloud, scene.cloud.clients
    for n, (script, code) in enumerate([(COPY, 0), (LARGE, 0), (FOLDER, 0), ("exit 3\n", 20)]):
        cloud.put_input(f"n{n}/a")
        cloud.put_task(f"n{n}/a", f"n{n}")
        cloud.put_mission(f"n{n}", 1)
        scene.node(script, tags={"srcID": f"n{n}/a", "missionID": f"n{n}"}, code=code)
    # One that sends its log.
    clients.logs.create_log_group(logGroupName="/lighthpc/lab")
    cloud.put_input("logged/a")
    cloud.put_task("logged/a")
    scene.node(COPY, tags={"srcID": "logged/a"}, LIGHTHPC_LOG_GROUP="/lighthpc/lab")
    # One without an input, whose tags EC2 alone shows.
    cloud.put_task("none/a")
    scene.node(COPY, tags={"srcID": "none/a"}, code=16, in_imds=False)
    # One that is interrupted and keeps a checkpoint; another takes it up, and removes it in the end.
    cloud.put_input("kept/a")
    cloud.put_task("kept/a")
    began = cloud.folder / "began"
    script = f"""if [ -e "$LIGHTHPC_CHECKPOINT_DIR/c" ]; then cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"; exit; fi
trap 'echo 1 >"$LIGHTHPC_CHECKPOINT_DIR/c"; exit 75' TERM
touch '{began}'
while :; do sleep 0.1; done
"""
    node = scene.node(script, tags={"srcID": "kept/a"}, code=None)
    wait_until(began.exists, 30, "the workload begins")
    node.process.send_signal(signal.SIGTERM)
    node.wait(60)
    assert cloud.task("kept/a")["checkpoint"], "a checkpoint is kept"
    scene.node(script, tags={"srcID": "kept/a"})
    # One that takes over from an instance that is gone.
    gone = cloud.launch_instance(srcID="taken/a")
    clients.ec2.terminate_instances(InstanceIds=[gone])
    cloud.put_input("taken/a")
    cloud.put_task("taken/a", state="running", attempt=1, beat=1, execInstanceID=gone)
    scene.node(COPY, tags={"srcID": "taken/a"})
    # A node is looked at.
    looked = cloud.launch_instance(srcID="n0/a", lighthpc=cloud.tasks.name)
    env = scene.recorders["node"].environment
    cloud.run_command("doctor", instance=looked, timeout_s=60, **env)


def let_people_work(scene):
    """What a person does, with nodes in between."""
    cloud = scene.cloud
    files = cloud.folder / "in"
    files.mkdir()
    for name in ("one", "two"):
        (files / name).write_text(name)
    scene.person("doctor")
    scene.person("submit", "--mission", "p1", "--dry-run", files / "one")
    scene.person("submit", "--mission", "p1", files / "one", files / "two")
    scene.node("exit 3\n", *scene.launched("p1")[0], code=20)
    scene.person("redrive", "p1")
    scene.person("status", "p1")
    scene.person("status")
    scene.person("list", "p1", "--failed")
    scene.person("wait", "p1", "--timeout", "0.1s", code=32)
    began = cloud.folder / "began too"
    node = scene.node(f"touch '{began}'\nsleep 60\n", *scene.launched("p1")[0], code=None)
    wait_until(began.exists, 30, "the workload begins")
    scene.person("cancel", "p1")
    node.wait(60)
    assert cloud.task("p1/one")["verdict"] == cloud.task("p1/two")["verdict"] == "cancelled"
    # Nodes that serve a mission.
    for n in range(3):
        cloud.put_input(f"p2/{n}")
    scene.person(
        *("submit", "--mission", "p2", "--nodes", 1, "--exec", "cp $LIGHTHPC_INPUT $LIGHTHPC_OUTPUT"),
        f"s3://{cloud.source_bucket}/p2/",
    )
    ((id, tags),) = scene.launched("p2")
    scene.node(None, id, tags)
    scene.person("sweep")


def let_functions_work(scene):
    """Each kind of event."""
    cloud, clients = scene.cloud, scene.cloud.clients
    long = "f1/" + "k" * 1000
    with scene.function() as invoke:
        http = [("POST", "/missions", {"mission": "f1", "transNumber": 3, "bidMode": "on-demand"}), ("GET", "/missions")]
        http += [("PUT", "/missions/f1/workload", {"slots": 1}), ("GET", "/missions/f1")]
        for arguments in http:
            assert invoke(request(*arguments))["statusCode"] in (200, 201)
        for key in ("f1/a", "f1/b", long):
            cloud.put_input(key)
        invoke({"Records": [record(cloud, "f1/a")]})
        message = {"eventSource": "aws:sqs", "messageId": "1"}
        body = {"Records": [record(cloud, "f1/b"), record(cloud, long)]}
        invoke({"Records": [message | {"body": json.dumps(body)}]})
        launched = {tags["srcID"]: (id, tags) for id, tags in instances(cloud).items()}
        (short,) = [src for src in launched if src.startswith("~key:")]
        scene.node(COPY, *launched[short])
        # One vanishes in its work, which has a log by then.
        id, tags = launched["f1/a"]
        began = cloud.folder / "began as well"
        node = scene.node(f"echo x; touch '{began}'\nsleep 60\n", id, tags, code=None)
        wait_until(began.exists, 30, "the workload begins")
        node.close()
        clients.ec2.terminate_instances(InstanceIds=[id])
        detail = {"instance-id": id, "state": "terminated"}
        kind = "EC2 Instance State-change Notification"
        assert invoke({"source": "aws.ec2", "detail-type": kind, "detail": detail})["findings"] > 0
        # A mission is over, and its last node died before it said so. And an instance leaks.
        cloud.put_mission("f2", 1)
        cloud.missions.put_item(Item={"timePush": "f2#tally#0", "transOK": 1, "tallySeq": 1})
        leak = cloud.launch_instance(lighthpc=cloud.tasks.name)
        invoke({"lighthpc": "sweep"})
        assert cloud.mission("f2")["notifyEmail"] == "Yes"
        cloud.assert_terminated(leak)
        assert invoke(request("POST", "/missions/f1/cancel"))["statusCode"] in (200, 202)


@pytest.fixture(scope="module")
def scene(clients, binary, tmp_path_factory):
    """The scene, after all has happened in it."""
    cloud = harness.Cloud(clients, binary, tmp_path_factory.mktemp("rights"))
    with contextlib.ExitStack() as stack:
        stack.callback(cloud.close)
        recorders = {who: stack.enter_context(Recorder(clients)) for who in ("node", "function", "person")}
        scene = Scene(cloud, recorders)
        let_nodes_work(scene)
        let_people_work(scene)
        let_functions_work(scene)
    return scene


# The two kinds of stacks: one makes its tables and buckets, the other takes those that are there.
NAMES_OF = {
    "own": ("TasksTable", "MissionsTable", "SourceBucket", "ResultBucket"),
    "existing": ("ExistingTasksTable", "ExistingMissionsTable", "ExistingSourceBucket", "ExistingResultBucket"),
}


class Deployment:
    """A stack in which the scene could have happened: its roles, and the scene's questions in its names."""

    def __init__(self, scene, kind, **parameters):
        cloud = scene.cloud
        names = (cloud.tasks.name, cloud.missions.name, cloud.source_bucket, cloud.result_bucket)
        self.made = MADE | {"LaunchTemplate": (scene.template, None), "Topic": (cloud.topic_arn,) * 2}
        self.parameters = {"ImageId": IMAGE} | parameters
        if kind == "existing":
            self.parameters |= dict(zip(NAMES_OF[kind], names))
            self.names = {}
        else:
            self.names = {name: MADE[made][0] for name, made in zip(names, NAMES_OF[kind])}
        self.tasks = self.names.get(cloud.tasks.name, cloud.tasks.name)
        self.scene = scene

    def role(self, name, more=()):
        return Role(name, self.parameters, self.made, more)

    def named(self, text):
        """A text in the names of this stack."""
        for name, own in self.names.items():
            text = text.replace(name, own)
        return text

    def asked(self, who):
        """What somebody asked in the scene."""
        for action, resource, context in self.scene.recorders[who].asked:
            context = {
                key: [self.named(it) for it in value] if isinstance(value, tuple) else self.named(value)
                for key, value in context
            }
            if action == "ec2:TerminateInstances":
                context["ec2:ResourceTag/lighthpc"] = self.tasks
                context["aws:userid"] = f"AROAEXAMPLE:{context['ec2:InstanceID']}"
            yield Asked(action, self.named(resource), context)


def launched_by(deployment):
    """What a launch asks besides, for what stands in the template: image, role, and tags of volumes."""
    for action in ("ec2:CreateFleet", "ec2:RunInstances"):
        yield Asked(action, ec2_arn("image", IMAGE, account=""), {})
        yield Asked(action, ec2_arn("snapshot", "snap-1", account=""), {})
    yield Asked("iam:PassRole", MADE["NodeRole"][1], {"iam:PassedToService": "ec2.amazonaws.com"})
    tag = {"aws:RequestTag/lighthpc": deployment.tasks}
    yield Asked("ec2:CreateTags", ec2_arn("volume"), tag | {"ec2:CreateAction": "RunInstances"})
    for service in ("spot", "ec2fleet"):
        arn = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/{service}.amazonaws.com/AWSServiceRole"
        yield Asked("iam:CreateServiceLinkedRole", arn, {"iam:AWSServiceName": f"{service}.amazonaws.com"})


def done_by_lambda():
    """What Lambda does in the functions' name."""
    for name in ("scheduler", "uploads"):
        stream = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/lab-{name}:log-stream:x"
        yield Asked("logs:CreateLogStream", stream, {})
        yield Asked("logs:PutLogEvents", stream, {})
    for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes"):
        yield Asked(f"sqs:{action}", MADE["UploadQueue"][1], {})
    yield Asked("sqs:SendMessage", MADE["FailedEvents"][1], {})


VIA_EC2 = {"kms:ViaService": f"ec2.{REGION}.amazonaws.com"}


def uses_of_the_key():
    """What EC2 does with a volume's key in the launcher's name."""
    for action in ("Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo"):
        yield Asked(f"kms:{action}", KEY, VIA_EC2)
    yield Asked("kms:CreateGrant", KEY, VIA_EC2 | {"kms:GrantIsForAWSResource": "true"})


def of_a_person(deployment):
    """What docs/TABLES.md gives a person beside the functions' rights."""
    source, result = (
        deployment.named(f"arn:aws:s3:::{name}")
        for name in (deployment.scene.cloud.source_bucket, deployment.scene.cloud.result_bucket)
    )
    allow = [
        (["s3:ListBucket"], [source]),
        (["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"], [f"{source}/*"]),
        # The doctor's trial.
        (["s3:PutObject", "s3:AbortMultipartUpload"], [f"{result}/logs/*"]),
        (["s3:GetObject"], [f"{result}/*"]),
        (["sns:GetTopicAttributes"], [deployment.made["Topic"][1]]),
    ]
    return [{"Effect": "Allow", "Action": actions, "Resource": resources} for actions, resources in allow]


def refused(role, asked):
    """Those of some questions that a role answers with no."""
    return sorted({(it.action, it.resource, str(it.context)) for it in asked if not role.may(it.action, it.resource, **it.context)})


@SLOW
@pytest.mark.parametrize("kind", NAMES_OF)
def test_a_nodes_role_allows_all_that_nodes_do(scene, kind):
    deployment = Deployment(scene, kind)
    asked = [it for it in deployment.asked("node") if it not in list(of_the_doctor(deployment))]

    assert len(asked) > 30
    assert {it.action for it in asked if not deployment.role("NodeRole").may(it.action, it.resource, **it.context)} == {
        *("logs:CreateLogStream", "logs:PutLogEvents")
    }
    assert refused(Deployment(scene, kind, NodeLogs="yes").role("NodeRole"), asked) == []


def of_the_doctor(deployment):
    """What the doctor asks on a node, and says that it is not allowed to."""
    yield Asked("ec2:DescribeInstanceAttribute", "*", {})
    yield Asked("sns:GetTopicAttributes", deployment.made["Topic"][1], {})


@SLOW
@pytest.mark.parametrize("kind", NAMES_OF)
@pytest.mark.parametrize("types", ["*", "t3.*", "c7i.large,t3.micro,t3.small"])
@pytest.mark.parametrize("key", ["", "alias/aws/ebs", KEY])
def test_the_functions_role_allows_all_that_functions_do(scene, kind, types, key):
    deployment = Deployment(scene, kind, AllowedInstanceTypes=types, VolumeKey=key)
    role = deployment.role("FunctionRole")
    asked = [*deployment.asked("function"), *launched_by(deployment), *done_by_lambda()]

    assert len(asked) > 30
    assert refused(role, asked) == []
    allowed = [it for it in uses_of_the_key() if role.may(it.action, it.resource, **it.context)]
    assert len(allowed) == (6 if key == KEY else 0)


@SLOW
@pytest.mark.parametrize("kind", NAMES_OF)
def test_a_person_needs_no_more_than_the_documentation_says(scene, kind):
    deployment = Deployment(scene, kind)
    role = deployment.role("FunctionRole", of_a_person(deployment))

    assert refused(role, [*deployment.asked("person"), *launched_by(deployment)]) == []


@SLOW
def test_the_scene_has_every_call_that_the_program_can_make(scene):
    calls = set()
    for file in pathlib.Path(harness.ROOT / "crates" / "core" / "src" / "backend").rglob("*.rs"):
        calls |= set(re.findall(r"client\s*\.\s*([a-z_0-9]+)\(\)", file.read_text()))
    made = set().union(*(recorder.operations for recorder in scene.recorders.values()))
    made = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in made}

    calls.discard("clone")
    assert len(calls) > 20
    # Tables are made by the stack, and by the program for its cloud in the process alone. DeleteObject needs the right that
    # DeleteObjects needs, and is for keys that XML cannot hold, which no emulator takes.
    assert calls - made == {"create_table", "delete_object"}


@SLOW
def test_no_right_is_there_that_nobody_uses(scene):
    deployment = Deployment(scene, "own", VolumeKey=KEY, NodeLogs="yes")
    of_nodes = {it.action for it in deployment.asked("node")}
    of_functions = {it.action for it in deployment.asked("function")}
    of_functions |= {it.action for it in (*launched_by(deployment), *done_by_lambda(), *uses_of_the_key())}
    of_people = {it.action for it in deployment.asked("person")}

    assert deployment.role("NodeRole").actions() - of_nodes == set()
    # A manifest of many parts that fails; prices; and zones and versions, which launches look at.
    rare = {"s3:AbortMultipartUpload", "ec2:DescribeSpotPriceHistory", "ec2:DescribeLaunchTemplateVersions"}
    rare |= {"ec2:DescribeSubnets", "ec2:DescribeInstanceTypeOfferings"}
    assert deployment.role("FunctionRole").actions() - of_functions - rare == set()
    assert rare - of_functions <= of_people | {"ec2:DescribeSubnets", "ec2:DescribeInstanceTypeOfferings"}


# What must be refused.


def settings():
    """The settings of a mission, as docs/TABLES.md lists them."""
    text = (harness.ROOT / "docs" / "TABLES.md").read_text(encoding="utf-8")
    return re.findall(r"`(\w+)`", text.split("<!-- settings -->")[1])


def update(table="lab-missions", key="M1", **context):
    return ("dynamodb:UpdateItem", table_arn(table), {"dynamodb:LeadingKeys": [key]} | context)


def named(*names):
    return {"dynamodb:Attributes": ["timePush", *names]}


TASKS, MISSIONS = table_arn("lab-tasks"), table_arn("lab-missions")
SOURCE, RESULT = MADE["SourceBucket"][1], MADE["ResultBucket"][1]
OURS = {"ec2:ResourceTag/lighthpc": "lab-tasks"}
MINE = {"aws:userid": f"AROAEXAMPLE:{ME}"}

OF_A_NODE = [
    # Another's instance; a stranger's; and anything else that can be done to one, its own included.
    ("ec2:TerminateInstances", ec2_arn("instance", OTHER), OURS | MINE | {"ec2:InstanceID": OTHER}),
    ("ec2:TerminateInstances", ec2_arn("instance", OTHER), MINE | {"ec2:InstanceID": OTHER}),
    ("ec2:TerminateInstances", ec2_arn("instance", ME), MINE | {"ec2:InstanceID": ME}),
    ("ec2:TerminateInstances", ec2_arn("instance", ME), OURS | {"ec2:InstanceID": ME}),
    *((f"ec2:{action}", ec2_arn("instance", ME), OURS | MINE | {"ec2:InstanceID": ME}) for action in (
        "StopInstances", "ModifyInstanceAttribute", "CreateTags", "RunInstances", "AssociateIamInstanceProfile",
    )),
    ("ec2:DescribeInstanceAttribute", "*", MINE),
    ("ec2:DescribeInstanceAttribute", ec2_arn("instance", OTHER), MINE),
    ("ec2:GetConsoleOutput", ec2_arn("instance", OTHER), MINE),
    ("ec2:GetPasswordData", ec2_arn("instance", OTHER), MINE),
    ("ec2:CreateFleet", ec2_arn("fleet"), {}),
    # Other tables, and other things that can be done to these.
    *((f"dynamodb:{action}", table_arn(name), {}) for action in ("GetItem", "UpdateItem", "Scan", "BatchGetItem")
      for name in ("other-tasks", "lab-tasks2", "lab-missions-old")),
    *((f"dynamodb:{action}", arn, {}) for arn in (TASKS, MISSIONS) for action in (
        "PutItem", "DeleteItem", "BatchWriteItem", "DeleteTable", "UpdateTable", "ExportTableToPointInTime", "PartiQLUpdate",
    )),
    ("dynamodb:BatchGetItem", TASKS, {}),
    ("dynamodb:Scan", MISSIONS, {}),
    ("dynamodb:Query", f"{TASKS}/index/other", {}),
    # Settings of a mission, alone, among others, and in the midst of what a node does.
    *(update(**named(name)) for name in settings()),
    *(update(**named("transOK", name, "notifyEmail")) for name in settings()),
    # Items that are no missions.
    *(update(key=key, **named("moved")) for key in ("~sweep", "~nodes", "~key:0", "~")),
    # Other buckets, and other places in ours.
    *((f"s3:{action}", f"arn:aws:s3:::{bucket}/rslt_a", {}) for action in ("GetObject", "PutObject", "DeleteObject")
      for bucket in ("other", "code", f"lab-source-{ACCOUNT}-{REGION}-x")),
    *((f"s3:{action}", f"{SOURCE}/M1/a", {}) for action in ("PutObject", "DeleteObject", "AbortMultipartUpload")),
    *(("s3:DeleteObject", f"{RESULT}/{key}", {}) for key in ("rslt_a", "logs/a.1.log", "manifests/M.json", "checkpoint")),
    *(("s3:DeleteObjectVersion", f"{RESULT}/{key}", {}) for key in ("rslt_a", "checkpoints/a")),
    *(("s3:PutObject", f"{RESULT}/{key}", {}) for key in ("index.html", "other/rslt_a", "RSLT_a")),
    *((f"s3:{action}", RESULT, {}) for action in ("DeleteBucket", "PutBucketPolicy", "PutLifecycleConfiguration")),
    *((f"s3:{action}", SOURCE, {}) for action in ("PutBucketNotification", "PutBucketPolicy")),
    ("s3:GetObject", "arn:aws:s3:::code/lab/program.zip", {}),
    ("s3:GetObject", "arn:aws:s3:::code/other/bundle-1.tar.gz", {}),
    ("s3:PutObject", "arn:aws:s3:::code/lab/bundle-1.tar.gz", {}),
    # Anything else.
    ("sns:Publish", f"arn:aws:sns:{REGION}:{ACCOUNT}:other", {}),
    ("sns:GetTopicAttributes", MADE["Topic"][1], {}),
    ("sns:Subscribe", MADE["Topic"][1], {}),
    *((f"sqs:{action}", MADE["UploadQueue"][1], {}) for action in ("SendMessage", "ReceiveMessage", "PurgeQueue")),
    ("iam:PassRole", MADE["NodeRole"][1], {"iam:PassedToService": "ec2.amazonaws.com"}),
    ("lambda:InvokeFunction", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:lab-scheduler", {}),
    ("execute-api:Invoke", f"arn:aws:execute-api:{REGION}:{ACCOUNT}:api/$default/POST/missions", {}),
    ("kms:Decrypt", KEY, VIA_EC2),
]

TAGGED = {"aws:RequestTag/lighthpc": "lab-tasks"}
OF_A_FUNCTION = [
    # Launches of a type that is not allowed, without our tag, with another's, from another template or image.
    ("ec2:RunInstances", ec2_arn("instance"), TAGGED | {"ec2:InstanceType": "p5.48xlarge"}),
    ("ec2:RunInstances", ec2_arn("instance"), TAGGED | {"ec2:InstanceType": "t3a.micro"}),
    ("ec2:RunInstances", ec2_arn("instance"), TAGGED),
    ("ec2:RunInstances", ec2_arn("instance"), {"ec2:InstanceType": "t3.micro"}),
    ("ec2:RunInstances", ec2_arn("instance"), {"aws:RequestTag/lighthpc": "x", "ec2:InstanceType": "t3.micro"}),
    ("ec2:CreateFleet", ec2_arn("instance"), TAGGED | {"ec2:InstanceType": "p5.48xlarge"}),
    ("ec2:CreateFleet", ec2_arn("instance"), {}),
    *((action, ec2_arn("launch-template", "lt-0fedcba9876543210"), {}) for action in ("ec2:CreateFleet", "ec2:RunInstances")),
    *((action, ec2_arn("image", "ami-0fedcba9876543210", account=""), {}) for action in ("ec2:CreateFleet", "ec2:RunInstances")),
    # Tags of what is there already.
    ("ec2:CreateTags", ec2_arn("instance", OTHER), TAGGED),
    ("ec2:CreateTags", ec2_arn("instance", OTHER), TAGGED | {"ec2:CreateAction": "CreateVolume"}),
    ("ec2:CreateTags", ec2_arn("instance"), {"ec2:CreateAction": "RunInstances", "aws:RequestTag/lighthpc": "x"}),
    ("ec2:CreateTags", ec2_arn("subnet"), TAGGED | {"ec2:CreateAction": "RunInstances"}),
    ("ec2:TerminateInstances", ec2_arn("instance", OTHER), {"ec2:InstanceID": OTHER}),
    ("ec2:TerminateInstances", ec2_arn("instance", OTHER), {"ec2:ResourceTag/lighthpc": "x"}),
    ("ec2:DescribeInstanceAttribute", "*", {}),
    ("ec2:ModifyInstanceAttribute", ec2_arn("instance", OTHER), OURS),
    ("ec2:CreateLaunchTemplateVersion", ec2_arn("launch-template", MADE["LaunchTemplate"][0]), {}),
    # Roles.
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", {"iam:PassedToService": "ec2.amazonaws.com"}),
    ("iam:PassRole", MADE["NodeRole"][1], {"iam:PassedToService": "lambda.amazonaws.com"}),
    ("iam:CreateServiceLinkedRole", f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/rds.amazonaws.com/x",
     {"iam:AWSServiceName": "rds.amazonaws.com"}),
    # Keys: others, not by way of EC2, and for anybody.
    ("kms:Decrypt", KEY.replace("0000-1111", "9999-1111"), VIA_EC2),
    ("kms:Decrypt", KEY, {}),
    ("kms:Decrypt", KEY, {"kms:ViaService": f"s3.{REGION}.amazonaws.com"}),
    ("kms:CreateGrant", KEY, VIA_EC2),
    ("kms:CreateGrant", KEY, VIA_EC2 | {"kms:GrantIsForAWSResource": "false"}),
    ("kms:CreateGrant", KEY, {"kms:GrantIsForAWSResource": "true"}),
    ("kms:ScheduleKeyDeletion", KEY, VIA_EC2),
    # Objects: it writes manifests, and reads manifests and logs.
    *(("s3:PutObject", f"{RESULT}/{key}", {}) for key in ("rslt_a", "logs/a.1.log", "checkpoints/a", "x", "manifest")),
    *(("s3:GetObject", f"{RESULT}/{key}", {}) for key in ("rslt_a", "checkpoints/a", "x")),
    *((f"s3:{action}", f"{SOURCE}/M1/a", {}) for action in ("GetObject", "PutObject", "DeleteObject")),
    *(("s3:DeleteObject", f"{RESULT}/{key}", {}) for key in ("rslt_a", "manifests/M.json", "checkpoints/a")),
    *((f"s3:{action}", SOURCE, {}) for action in ("PutBucketNotification", "PutBucketPolicy", "DeleteBucket")),
    ("s3:PutObject", "arn:aws:s3:::code/lab/program.zip", {}),
    # Tables, queues, topics, logs, functions.
    *((f"dynamodb:{action}", table_arn("other-tasks"), {}) for action in ("GetItem", "PutItem", "Scan")),
    *((f"dynamodb:{action}", arn, {}) for arn in (TASKS, MISSIONS) for action in ("DeleteItem", "DeleteTable", "UpdateTable")),
    *((f"sqs:{action}", f"arn:aws:sqs:{REGION}:{ACCOUNT}:other", {}) for action in ("ReceiveMessage", "SendMessage")),
    *((f"sqs:{action}", MADE["UploadQueue"][1], {}) for action in ("SendMessage", "PurgeQueue", "SetQueueAttributes")),
    *((f"sqs:{action}", MADE["FailedEvents"][1], {}) for action in ("ReceiveMessage", "DeleteMessage")),
    ("sns:Publish", f"arn:aws:sns:{REGION}:{ACCOUNT}:other", {}),
    ("logs:PutLogEvents", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/other:log-stream:x", {}),
    ("logs:DeleteLogGroup", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/lab-uploads:x", {}),
    ("lambda:UpdateFunctionCode", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:lab-scheduler", {}),
]
OF_NOBODY = [
    (f"iam:{action}", arn, {})
    for action in ("CreateUser", "CreateAccessKey", "AttachRolePolicy", "PutRolePolicy", "UpdateAssumeRolePolicy", "GetRole")
    for arn in (MADE["NodeRole"][1], f"arn:aws:iam::{ACCOUNT}:user/a")
] + [(action, "*", {}) for action in ("iam:*", "sts:AssumeRole", "ec2:*", "s3:ListAllMyBuckets", "cloudformation:UpdateStack")]


@pytest.mark.parametrize("bundle", ["", "lab/bundle-0.tar.gz"])
def test_a_nodes_role_refuses_the_rest(bundle):
    role = Role("NodeRole", {"BundleKey": bundle, "VolumeKey": KEY})

    assert [it[:2] for it in OF_A_NODE + OF_NOBODY if role.may(it[0], it[1], **it[2])] == []
    # It is refused for what stands there, not because nothing is allowed.
    assert role.may(*update(**named("transOK"))[:2], **update(**named("transOK"))[2])
    assert role.may("ec2:TerminateInstances", ec2_arn("instance", ME), **OURS, **MINE, **{"ec2:InstanceID": ME})
    assert role.may("s3:GetObject", "arn:aws:s3:::code/lab/bundle-older.tar.gz")
    # As a task's own attributes, these are nobody's settings.
    assert role.may("dynamodb:UpdateItem", TASKS, **named("exec"))


def test_the_functions_role_refuses_the_rest():
    role = Role("FunctionRole", {"AllowedInstanceTypes": "t3.*,c7i.large", "VolumeKey": KEY})

    assert [it[:2] for it in OF_A_FUNCTION + OF_NOBODY if role.may(it[0], it[1], **it[2])] == []
    for name in ("t3.micro", "c7i.large"):
        assert role.may("ec2:RunInstances", ec2_arn("instance"), **TAGGED, **{"ec2:InstanceType": name})
    assert role.may("ec2:CreateFleet", ec2_arn("instance"), **TAGGED)


def test_no_setting_is_named_like_an_attribute_of_a_task():
    # A transaction has updates of both tables: whichever way IAM sees its attributes, a commit must name no setting.
    text = (harness.ROOT / "docs" / "TABLES.md").read_text(encoding="utf-8")
    table = text.split("## Tasks:")[1].split("## ")[0]
    of_tasks = {name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert len(of_tasks) > 20
    assert of_tasks & set(settings()) == set()


# The evaluator itself: each operator that the template uses, where the answer is known from the documentation.
# Source: IAM user guide, "Policy evaluation logic", "Condition operators", "Multivalued context keys".
KNOWN = [
    # (operator, policy's value, context's value, whether the condition holds)
    ("StringEquals", "a", "a", True),
    ("StringEquals", "a", "A", False),
    ("StringEquals", ["a", "b"], "b", True),
    ("StringEquals", "a*", "ab", False),
    ("StringEquals", "a", None, False),
    ("StringLike", "a*", "ab", True),
    ("StringLike", "a?", "ab", True),
    ("StringLike", "a?", "abc", False),
    ("StringLike", "*:i-1", "X:i-1", True),
    ("StringLike", "*:i-1", "X:i-12", False),
    ("StringLike", "a.b", "aXb", False),
    ("StringLike", "a*", None, False),
    ("StringLikeIfExists", "a*", None, True),
    ("StringLikeIfExists", "a*", "b", False),
    ("StringLikeIfExists", ["b*", "a*"], "ab", True),
    ("Bool", "true", "true", True),
    ("Bool", "true", "false", False),
    ("Bool", "true", None, False),
    ("ForAnyValue:StringEquals", ["a", "b"], ["x", "b"], True),
    ("ForAnyValue:StringEquals", ["a", "b"], ["x", "y"], False),
    ("ForAnyValue:StringEquals", ["a", "b"], [], False),
    ("ForAnyValue:StringEquals", ["a", "b"], None, False),
    ("ForAnyValue:StringEquals", ["exec"], ["Exec", "execs"], False),
    ("ForAnyValue:StringLike", ["~*"], ["~sweep"], True),
    ("ForAnyValue:StringLike", ["~*"], ["M1", "~sweep"], True),
    ("ForAnyValue:StringLike", ["~*"], ["M~"], False),
    ("ForAnyValue:StringLike", ["~*"], None, False),
]


@pytest.mark.parametrize(("operator", "value", "actual", "holds"), KNOWN)
@pytest.mark.parametrize("effect", ["Allow", "Deny"])
def test_the_evaluator_answers_as_the_documentation_says(operator, value, actual, holds, effect):
    conditional = {"Effect": effect, "Action": "x:Y", "Resource": "*", "Condition": {operator: {"x:Key": value}}}
    statements = [conditional] + ([{"Effect": "Allow", "Action": "*", "Resource": "*"}] if effect == "Deny" else [])
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    keys = {} if actual is None else {"x:key": actual}

    expected = holds if effect == "Allow" else not holds
    assert (rendering.decision(policy, "x:Y", "arn:aws:x:::y", keys) == "Allow") is expected


def test_the_evaluator_knows_each_operator_of_the_template():
    operators = set()
    for name in ("NodeRole", "FunctionRole"):
        for statement in Role(name, {"VolumeKey": KEY}).statements:
            operators |= set(statement.get("Condition", {}))

    assert operators <= {operator for operator, *_ in KNOWN}


@pytest.mark.parametrize(
    ("statements", "action", "resource", "answer"),
    [
        ([("Allow", "a:B", "*")], "a:B", "x", "Allow"),
        ([("Allow", "a:B", "*")], "a:b", "x", "Allow"),
        ([("Allow", "a:B", "*")], "a:C", "x", "ImplicitDeny"),
        ([("Allow", "a:B", "x/*")], "a:B", "x/y/z", "Allow"),
        ([("Allow", "a:B", "x/*")], "a:B", "X/y", "ImplicitDeny"),
        ([("Allow", "a:B", "x")], "a:B", "xy", "ImplicitDeny"),
        ([("Allow", "a:*", "*"), ("Deny", "a:B", "x")], "a:B", "x", "Deny"),
        ([("Deny", "a:B", "x"), ("Allow", "a:*", "*")], "a:B", "y", "Allow"),
        ([], "a:B", "x", "ImplicitDeny"),
    ],
)
def test_the_evaluator_weighs_statements_as_the_documentation_says(statements, action, resource, answer):
    policy = [{"Effect": effect, "Action": action, "Resource": on} for effect, action, on in statements]

    assert rendering.decision(json.dumps({"Statement": policy}), action, resource, {}) == answer

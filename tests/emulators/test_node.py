"""The real binary as a process, from its instance's tag to its own end, against DynamoDB, S3, SNS, EC2, and IMDS.

Every case ends by reading rows and objects back with boto3. Whatever a case does to a node, its instance must end.
"""

import os
import re

import pytest
from attempts import COPY, assert_announced, assert_done


def test_a_task_goes_from_its_tag_to_a_committed_result(cloud):
    cloud.put_input("in/sample.txt", b"acgt\n")
    cloud.put_task("in/sample.txt", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="in/sample.txt", missionID="M001")
    program = cloud.python("""
import os
with open(os.environ["LIGHTHPC_INPUT"]) as file:
    text = file.read()
with open(os.environ["LIGHTHPC_OUTPUT"], "w") as file:
    file.write(text.upper())
""")

    finished = cloud.run_node(instance, program=program)

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "in/sample.txt", b"ACGT\n")
    assert row["execInstanceID"] == instance
    assert (row["bucketname"], row["numlog"]) == (cloud.source_bucket, "1"), "the scheduler's attributes are kept"
    assert int(cloud.mission("M001#tally#0")["transOK"]) == 1
    assert int(cloud.mission("M001")["transOK"]) == 1
    assert_announced(cloud, "M001")
    cloud.assert_terminated(instance)
    assert cloud.imds(instance).refused == 0, "it never asks without a token"


def test_the_workload_may_be_a_shell_command_line(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, LIGHTHPC_EXEC='tr a-z A-Z <"$LIGHTHPC_INPUT" >"$LIGHTHPC_OUTPUT"')

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"SOME INPUT\n")
    assert row["bucketname"] == cloud.source_bucket, "a node launched by hand makes the row"
    cloud.assert_terminated(instance)


def test_without_a_program_the_articles_workload_is_simulated(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, "--steps", 2, "--step-seconds", "0..0")

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", cloud.object("rslt_a"))
    cloud.assert_terminated(instance)


def test_tags_come_from_ec2_where_imds_does_not_offer_them(cloud):
    cloud.put_input("a b/文件.txt")
    cloud.put_mission("M001", 2)
    instance = cloud.launch_instance(srcID="a b/文件.txt", missionID="M001")
    cloud.imds(instance).default.tags_enabled = False

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a b/文件.txt", b"some input\n")
    assert cloud.tally("M001") == (1, 0)
    cloud.assert_terminated(instance)


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_illness_of_imds_is_survived(cloud, status):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    cloud.imds(instance).fail_next(2, status)

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", b"some input\n")
    cloud.assert_terminated(instance)


def test_a_task_that_is_done_is_left_alone(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001", state="done", attempt=3, strIndiProgress="100%", rsltFilename="s3://elsewhere/rslt_a")
    cloud.put_mission("M001", 5)
    before = cloud.task("a")
    instance = cloud.launch_instance(srcID="a", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script(f"touch '{cloud.folder}/script-ran'\n" + COPY))

    assert finished.returncode == 0, finished.stderr
    assert cloud.task("a") == before
    assert cloud.keys() == []
    assert cloud.tally("M001") == (0, 0)
    assert not (cloud.folder / "script-ran").exists()
    cloud.assert_terminated(instance)


def test_nothing_is_a_valid_input_and_a_valid_result(cloud):
    cloud.put_input("empty", b"")
    instance = cloud.launch_instance(srcID="empty")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "empty", b"")
    cloud.assert_terminated(instance)


def test_forty_mebibytes_come_down_and_go_up_unchanged(cloud):
    content = os.urandom(40 << 20)
    cloud.put_input("large", content)
    instance = cloud.launch_instance(srcID="large")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "large", content)
    assert re.search(r"-\d+\W?$", row["resultETag"]), "it was a multipart upload"
    cloud.assert_terminated(instance)


def test_a_directory_goes_up_file_by_file(cloud):
    cloud.put_input("in/a")
    instance = cloud.launch_instance(srcID="in/a")
    program = cloud.script("""
mkdir -p "$LIGHTHPC_OUTPUT/deep/er"
echo one >"$LIGHTHPC_OUTPUT/one.txt"
echo two >"$LIGHTHPC_OUTPUT/deep/er/two + 2.txt"
: >"$LIGHTHPC_OUTPUT/deep/empty"
""")

    finished = cloud.run_node(instance, program=program)

    assert finished.returncode == 0, finished.stderr
    assert cloud.object("rslt_in/a/one.txt") == b"one\n"
    assert cloud.object("rslt_in/a/deep/er/two + 2.txt") == b"two\n"
    assert cloud.object("rslt_in/a/deep/empty") == b""
    row = cloud.task("in/a")
    assert (row["state"], row["verdict"]) == ("done", "ok")
    assert row["rsltFilename"].startswith(f"s3://{cloud.result_bucket}/rslt_in/a")
    cloud.assert_terminated(instance)


ODD_KEYS = [
    "a b+c.txt",
    "x/../y.txt",
    "../../../up",
    "ünïcödé/文件.dat",
    "100%/a%2Fb",
    "/lead",
    "trail/",
    "two//slashes",
    "q?x=1&y#z",
    "-rf",
    "k" * 1019,  # its result key has 1,024 bytes, all that S3 allows
    "ü" * 509 + "k",  # the same, of two-byte characters
]


@pytest.mark.parametrize("src", ODD_KEYS, ids=lambda src: src if len(src) < 30 else f"{len(src)}-characters")
def test_any_s3_key_is_a_legal_source(cloud, src):
    cloud.put_input(src, src.encode())
    if len(src) <= 256:
        instance, arguments = cloud.launch_instance(srcID=src), []
    else:  # no tag can hold it
        instance, arguments = cloud.launch_instance(lighthpc=cloud.tasks.name), [f"--src-id={src}"]
    program = cloud.script(
        'printf %s "$LIGHTHPC_SRC_ID" >"$LIGHTHPC_SCRATCH/id"\n'
        'cat "$LIGHTHPC_INPUT" "$LIGHTHPC_SCRATCH/id" >"$LIGHTHPC_OUTPUT"\n'
    )

    finished = cloud.run_node(instance, *arguments, program=program)

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, src, src.encode() * 2)
    assert cloud.result_keys() == [f"rslt_{src}"]
    ours = ("work-", "node-", "script-")
    assert [path.name for path in cloud.folder.iterdir() if not path.name.startswith(ours)] == []
    cloud.assert_terminated(instance)

"""What goes wrong on a node: exit code, row, hint, and always the instance's end."""

import contextlib
import re

import harness
import pytest
from attempts import COPY, assert_announced, assert_done, assert_hint, waiting_script
from harness import wait_until


def test_a_failing_workload_is_final_and_counted(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script('echo "no such atom" >&2\nexit 3\n'))

    assert finished.returncode == 20, finished.stderr
    assert_hint(finished)
    row = cloud.task("a")
    assert (row["state"], row["verdict"], row["exitCode"]) == ("failed", "app-error", 3)
    assert "rsltFilename" not in row
    assert cloud.result_keys() == []
    assert cloud.tally("M001") == (0, 1)
    text = assert_announced(cloud, "M001")
    assert re.search(r"1\s+failed|failed\D{0,12}1\b", text, re.IGNORECASE), text
    cloud.assert_terminated(instance)


def no_source_bucket(cloud):
    return {"LIGHTHPC_SOURCE_BUCKET": "no-such-bucket-anywhere"}


def no_result_bucket(cloud):
    return {"LIGHTHPC_RESULT_BUCKET": "no-such-bucket-anywhere"}


def no_tasks_table(cloud):
    return {"LIGHTHPC_TASKS_TABLE": "no-such-table"}


def another_tables_key(cloud):
    return {"LIGHTHPC_TASKS_TABLE": cloud.table_with_key("id")}


@pytest.mark.parametrize(
    ("setting", "code"),
    [(no_tasks_table, 13), (no_source_bucket, 14), (no_result_bucket, 14), (another_tables_key, 15)],
)
def test_a_wrong_setting_has_an_exit_code_and_a_hint(cloud, setting, code):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, program=cloud.script(COPY), **setting(cloud))

    assert finished.returncode == code, finished.stderr
    assert_hint(finished)
    assert "panicked" not in finished.stderr
    assert cloud.keys() == []
    assert (cloud.task("a") or {}).get("state") != "done"
    cloud.assert_terminated(instance)


def test_a_missing_input_fails_the_task(cloud):
    cloud.put_task("never put", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="never put", missionID="M001")

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 16, finished.stderr
    assert_hint(finished)
    assert cloud.task("never put")["state"] == "failed"
    assert cloud.tally("M001") == (0, 1)
    cloud.assert_terminated(instance)


def test_no_result_is_not_an_empty_result(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, program=cloud.script("exit 0\n"))

    assert finished.returncode == 22, finished.stderr
    assert_hint(finished)
    row = cloud.task("a")
    assert (row["state"], row["verdict"]) == ("failed", "no-result")
    assert cloud.result_keys() == []
    cloud.assert_terminated(instance)


@pytest.fixture
def memory_cgroup():
    """A cgroup with room for a node, and not for a workload that wants more."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(harness.small_cgroup(256 << 20))
        except OSError as error:
            pytest.skip(f"no cgroup with a memory limit can be made here: {error}")
        yield folder


@pytest.mark.parametrize("eater", ["is the program", "is its child"])
def test_a_workload_that_the_kernel_ends_for_want_of_memory_is_named_as_that(memory_cgroup, cloud, eater):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")
    # The score makes sure that the kernel chooses the eater, and neither the node nor the shell between them.
    program = cloud.python("""
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
eaten = [b"x" * (1 << 20) for _ in range(1024)]
""")
    if eater == "is its child":
        python, path = program
        program = cloud.script(f"'{python}' '{path}'\n")

    finished = cloud.run_node(instance, program=program, cgroup=memory_cgroup)

    assert finished.returncode == 25, finished.stderr
    assert_hint(finished)
    row = cloud.task("a")
    assert (row["state"], row["verdict"], row["appFailures"]) == ("failed", "oom", 1)
    assert cloud.result_keys() == []
    assert cloud.tally("M001") == (0, 1)
    assert_announced(cloud, "M001")
    cloud.assert_terminated(instance)


def test_a_program_that_is_not_there(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    finished = cloud.run_node(instance, program=["/no/such/program"])

    assert finished.returncode == 21, finished.stderr
    assert_hint(finished)
    assert "/no/such/program" in finished.stderr
    assert (cloud.task("a") or {}).get("state") != "done"
    cloud.assert_terminated(instance)


@pytest.mark.parametrize(
    ("tags", "env", "is_ended"),
    [
        ({"Name": "nobody's"}, {}, False),
        ({}, {}, False),
        ({"Name": "nobody's"}, {"LIGHTHPC_TERMINATE": "1"}, True),
        ({"lighthpc": "tblTrans2"}, {}, True),
        ({"lighthpc": "tblTrans2"}, {"LIGHTHPC_NO_TERMINATE": "1"}, False),
        ({"lighthpc": "tblTrans2"}, {"LIGHTHPC_TERMINATE": "1", "LIGHTHPC_NO_TERMINATE": "1"}, False),
    ],
)
@pytest.mark.parametrize("in_imds", [True, False])
def test_without_a_task_only_what_is_proved_to_be_a_node_ends(cloud, tags, env, is_ended, in_imds):
    instance = cloud.launch_instance(**tags)
    cloud.imds(instance).default.tags_enabled = in_imds

    finished = cloud.run_node(instance, program=cloud.script(COPY), **env)

    assert finished.returncode == 17, finished.stderr
    assert_hint(finished)
    if is_ended:
        cloud.assert_terminated(instance)
    else:
        cloud.assert_running(instance)
        assert finished.says("keeps running"), finished.stderr


def test_a_task_done_on_a_workstation_leaves_the_workstation_on(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(Name="my workstation")

    finished = cloud.run_node(instance, "--src-id", "a", program=cloud.script(COPY))

    assert finished.returncode == 0, finished.stderr
    assert_done(cloud, "a", b"some input\n")
    cloud.assert_running(instance)


def test_a_workstation_whose_tags_cannot_be_read_is_left_on_without_an_order(cloud):
    bare, ordered = cloud.launch_instance(), cloud.launch_instance()
    with harness.refusing_ec2() as stub:
        for instance, env in ((bare, {}), (ordered, {"LIGHTHPC_TERMINATE": "1"})):
            cloud.imds(instance).default.tags_enabled = False
            finished = cloud.run_node(
                instance, "--src-id", instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_EC2=stub.url, **env
            )
            assert finished.returncode == 16, finished.stderr  # there is no such input

    cloud.assert_running(bare)
    assert cloud.power_off_mark(ordered).exists()


def test_two_processes_of_one_instance_do_not_take_up_each_others_task(cloud):
    cloud.put_input("a")
    cloud.put_task("a", "M001")
    cloud.put_mission("M001", 1)
    instance = cloud.launch_instance(srcID="a", missionID="M001")
    program, began, go, _ = waiting_script(cloud)
    lease = ("--lease", 9, "--heartbeat", 1, "--no-terminate")

    first = cloud.start_node(instance, *lease, program=program)
    wait_until(began.exists, 20, "the workload begins")
    same_folder = cloud.run_node(instance, *lease, program=program)
    other_folder = cloud.run_node(instance, *lease, program=program, LIGHTHPC_WORK_DIR=cloud.folder / "work-other")
    held = cloud.task("a")
    go.touch()
    finished = first.wait()

    assert (same_folder.returncode, other_folder.returncode) == (0, 0), same_folder.stderr + other_folder.stderr
    assert (held["attempt"], held["execInstanceID"]) == (1, instance)
    assert finished.returncode == 0, finished.stderr
    row = assert_done(cloud, "a", b"attempt 1\n")
    assert len(row["history"]) == 1


def test_a_node_without_credentials_powers_off(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")
    cloud.imds(instance).default.role = None

    finished = cloud.run_node(instance, program=cloud.script(COPY))

    assert finished.returncode == 10, finished.stderr
    assert_hint(finished)
    assert cloud.power_off_mark(instance).exists()


def test_a_node_that_may_not_use_the_table_ends(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    with harness.refusing_dynamodb() as stub:
        finished = cloud.run_node(instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_DYNAMODB=stub.url)

    assert finished.returncode == 11, finished.stderr
    assert_hint(finished)
    cloud.assert_terminated(instance)


def test_a_bucket_of_another_region_is_named_as_that(cloud):
    instance = cloud.launch_instance(srcID="a")

    with harness.s3_of_another_region() as stub:
        finished = cloud.run_node(instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_S3=stub.url)

    assert finished.returncode == 12, finished.stderr
    assert_hint(finished)
    cloud.assert_terminated(instance)


def test_a_node_that_may_not_terminate_itself_powers_off(cloud):
    cloud.put_input("a")
    instance = cloud.launch_instance(srcID="a")

    with harness.refusing_ec2() as stub:
        finished = cloud.run_node(instance, program=cloud.script(COPY), AWS_ENDPOINT_URL_EC2=stub.url)

    assert_done(cloud, "a", b"some input\n")
    assert any("TerminateInstances" in text for text in stub.asked)
    assert cloud.power_off_mark(instance).exists()
    assert finished.returncode == 0, finished.stderr

"""Nodes that crash, and nodes whose results are large: real processes on one machine, started again as systemd does."""

import signal
import time

from harness import wait_until

STARTS_MAX = 8


def put_open_task(cloud, src, mission):
    """A row in the index of open tasks, as `submit` makes it."""
    cloud.put_input(src)
    cloud.put_task(src, mission, openIn=f"{mission}#0", openAs="pending#2026-01-01T08:00:00Z")


def test_a_task_that_kills_its_node_fails_at_its_third_lone_crash_and_its_neighbours_are_done(cloud):
    neighbours = ["one", "two", "three"]
    cloud.put_mission("M001", 4, slots=4)
    for src in [*neighbours, "culprit"]:
        put_open_task(cloud, src, "M001")
    instance = cloud.launch_instance(missionID="M001")
    runs = cloud.folder / "runs"
    # The node is the program's parent. A neighbour's first attempt is bounded: it may outlive its node for a moment.
    program = cloud.script(f"""
echo "begin $LIGHTHPC_SRC_ID" >>'{runs}'
if [ "$LIGHTHPC_SRC_ID" = culprit ]; then
    n=0
    until [ "$(grep -c begin '{runs}')" -ge 4 ] || [ "$n" -ge 300 ]; do n=$((n + 1)); sleep 0.1; done
    kill -9 "$PPID"
    sleep 30
fi
[ "$LIGHTHPC_ATTEMPT" != 1 ] || sleep 30
sleep 0.3
cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"
echo "end $LIGHTHPC_SRC_ID" >>'{runs}'
""")

    codes = []
    while len(codes) < STARTS_MAX and (not codes or codes[-1] == -signal.SIGKILL):
        codes.append(cloud.run_node(instance, program=program, timeout_s=90).returncode)

    assert codes == [-signal.SIGKILL] * 4 + [0]
    row = cloud.task("culprit")
    assert (row["state"], row["verdict"], row["crashes"]) == ("failed", "app-error", 3)
    assert (row["interruptions"], row["appFailures"], row["attempt"]) == (0, 0, 4)
    assert "3 of 3" in row["error"]
    for src in neighbours:
        row = cloud.task(src)
        assert (row["state"], row["attempt"]) == ("done", 2)
        assert not {"suspect", "crashes", "error"} & {key for key in row if row[key] not in (0, "0")}
        assert (row.get("interruptions", 0), row.get("appFailures", 0)) == (0, 0)
        assert cloud.object(f"rslt_{src}") == b"some input\n"
    assert cloud.tally("M001") == (3, 1)
    assert len(cloud.notifications()) == 1
    cloud.assert_terminated(instance)

    # After the first crash nobody ran beside another; what was killed has no end.
    at = None
    for run in runs.read_text().splitlines()[4:]:
        word, src = run.split()
        assert at in ((None, "culprit") if word == "begin" else (src,)), runs.read_text()
        at = src if word == "begin" else None


def test_the_memory_of_results_that_go_up_does_not_grow_with_the_slots(cloud):
    slots, files, mib = 6, 8, 7
    cloud.put_mission("M001", slots, slots=slots)
    for n in range(slots):
        put_open_task(cloud, f"task-{n}", "M001")
    instance = cloud.launch_instance(missionID="M001")
    began = cloud.folder / "began"
    # All begin to upload at the same moment.
    program = cloud.script(f"""
mkdir "$LIGHTHPC_OUTPUT"
for n in $(seq {files}); do head -c {mib}M /dev/urandom >"$LIGHTHPC_OUTPUT/$n"; done
echo x >>'{began}'
n=0
until [ "$(wc -l <'{began}')" -ge {slots} ] || [ "$n" -ge 300 ]; do n=$((n + 1)); sleep 0.1; done
""")
    node = cloud.start_node(instance, program=program)
    wait_until(began.exists, 60, "a workload has made its files")
    before = after = _anonymous_mib(node)
    while not node.has_ended():
        after = max(after, _anonymous_mib(node))
        time.sleep(0.02)
    assert node.wait(90).returncode == 0
    assert cloud.tally("M001") == (slots, 0)
    # 1 MiB for each connection, and what the connections and the allocator keep. All files at once are 336 MiB.
    assert after - before < 100, f"{before} MiB, then {after} MiB"


def _anonymous_mib(node):
    """The memory of a process that no file is behind."""
    try:
        status = open(f"/proc/{node.process.pid}/status").read()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) // 1024 if lines else 0

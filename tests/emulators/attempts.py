"""What tests of a node have in common: programs to run, and what rows and objects must say afterwards."""

import datetime
import re
import shutil
import time

import pytest
from harness import wait_until

COPY = 'cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"\n'
SHORT_LEASE = ("--lease", 3, "--heartbeat", 1)
shifts_clocks = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler (cc) for the library that shifts a node's clock"
)


def waiting_script(cloud):
    """A program whose first attempt waits for a file, and whose later ones do not.

    Returns (program, the file that says that attempt 1 has begun, the file that lets it go on, and one that says
    that its work is done).
    """
    began, go, ended = (cloud.folder / f"script-{name}" for name in ("began", "go", "ended"))
    # The wait is bounded: a workload whose node was killed must not outlive the test for long.
    program = cloud.script(f"""
echo "40 waiting" >>"$LIGHTHPC_PROGRESS"
if [ "$LIGHTHPC_ATTEMPT" = 1 ]; then
    touch '{began}'
    n=0
    until [ -e '{go}' ] || [ "$n" -ge 500 ]; do n=$((n + 1)); sleep 0.1; done
fi
echo "attempt $LIGHTHPC_ATTEMPT" >"$LIGHTHPC_OUTPUT"
[ "$LIGHTHPC_ATTEMPT" != 1 ] || touch '{ended}'
""")
    return program, began, go, ended


def assert_done(cloud, src, content, attempt=1, uploads=0):
    """The row is done, and says of the result what S3 says of it; returns the row.

    `uploads` are begun and neither completed nor aborted.
    """
    row = cloud.task(src)
    key = f"rslt_{src}"
    head = cloud.object_head(key)
    assert cloud.object(key) == content
    assert row["state"] == "done"
    assert row["verdict"] == "ok"
    assert row["strIndiProgress"] == "100%"
    assert row["attempt"] == attempt
    assert row["rsltFilename"] == f"s3://{cloud.result_bucket}/{key}"
    assert row["resultBytes"] == len(content)
    assert row["resultETag"].strip('"') == head["ETag"].strip('"')
    assert re.fullmatch(r"\d+", row["timeCost"])
    assert len(cloud.uploads_in_progress()) == uploads
    return row


def assert_announced(cloud, mission, *words):
    """The notification was sent exactly once, in the article's sense; returns its text."""
    wait_until(cloud.notifications, 10, "the notification arrives")
    notes = cloud.notifications()
    assert len(notes) == 1
    text = f"{notes[0].get('Subject') or ''}\n{notes[0]['Message']}"
    for word in ("HPC mission", mission, *words):
        assert word in text
    assert re.search(" (accomplished|finished|cancelled) at ", text)
    assert cloud.mission(mission)["notifyEmail"] == "Yes"
    return text


def ahead_s(text):
    """How far a time, RFC 3339, is ahead of this machine's clock."""
    return datetime.datetime.fromisoformat(text).timestamp() - time.time()


def assert_hint(finished):
    """The user sees the cause and the next command."""
    assert [line for line in finished.stderr.splitlines() if "hint:" in line], finished.stderr

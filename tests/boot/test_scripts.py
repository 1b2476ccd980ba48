"""The two scripts that need no working node: whatever the settings say, they end a machine that should end, and no other."""

import configparser
import os
import pathlib
import subprocess

import pytest
from image import ROOT

pytestmark = pytest.mark.short
POWER_OFF = "--no-block poweroff\n"
UPTIME_S = float(pathlib.Path("/proc/uptime").read_text(encoding="ascii").split()[0])


def fake(folder, name, lines):
    """Makes a program that goes before the system's own."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    program.chmod(0o755)


def run(script, folder, state="active", **env):
    """Runs a script with a systemctl that knows one unit's state; returns (exit code, what it said, what it asked for)."""
    calls = folder / "calls"
    fake(folder, "systemctl", f'echo "$*" >>"{calls}"\necho {state}')
    calls.write_text("", encoding="utf-8")
    script, *words = script.split()
    path = ROOT / "systemd/libexec" / script
    done = subprocess.run(
        [path, *words], env={"PATH": f"{folder}:{os.environ['PATH']}"} | env, capture_output=True, text=True, timeout=20
    )
    return done.returncode, done.stdout + done.stderr, calls.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("state", "env", "code"),
    [
        ("active", {}, 0),
        ("activating", {}, 0),
        ("deactivating", {}, 0),
        ("failed", {"LIGHTHPC_MAX_BOOT": "1"}, 1),
        ("inactive", {"LIGHTHPC_MAX_BOOT": "1"}, 1),
        ("inactive", {"LIGHTHPC_MAX_BOOT": "1.5"}, 1),
        ("inactive", {"LIGHTHPC_MAX_BOOT": "99999999"}, 0),
        # systemd does not answer: whoever asked may be at fault.
        ("''", {"LIGHTHPC_MAX_BOOT": "1"}, 0),
        # A life that is over, whatever the node does; 10 minutes are the node's own.
        ("active", {"LIGHTHPC_MAX_LIFETIME": "99999999"}, 0),
        ("active", {"LIGHTHPC_MAX_LIFETIME": ""}, 0),
        ("active", {"LIGHTHPC_MAX_LIFETIME": "90000.75"}, 0),
        ("active", {"LIGHTHPC_MAX_LIFETIME": "1e5"}, 0),
        ("active", {"LIGHTHPC_MAX_LIFETIME": "086400"}, 0),
        # Left on only by a word that the node takes for yes.
        ("failed", {"LIGHTHPC_MAX_BOOT": "1", "LIGHTHPC_NO_TERMINATE": "1"}, 0),
        ("failed", {"LIGHTHPC_MAX_BOOT": "1", "LIGHTHPC_NO_TERMINATE": "yes"}, 0),
        ("failed", {"LIGHTHPC_MAX_BOOT": "1", "LIGHTHPC_NO_TERMINATE": "false"}, 1),
        ("failed", {"LIGHTHPC_MAX_BOOT": "1", "LIGHTHPC_NO_TERMINATE": "disabled"}, 1),
    ],
)
def test_a_look_ends_only_what_has_no_reason_to_be_on(tmp_path, state, env, code):
    # This machine's own uptime must not decide: a life longer than that, unless the case names one.
    defaults = {"LIGHTHPC_MAX_LIFETIME": str(int(UPTIME_S) + 10_000), "LIGHTHPC_MAX_BOOT": str(int(UPTIME_S) + 10_000)}
    if "LIGHTHPC_MAX_LIFETIME" in env and UPTIME_S > 80_000:
        pytest.skip("this machine has been on for almost a day, which is the default life")

    assert run("deadline", tmp_path, state, **defaults | env)[0] == code


def test_a_look_ends_a_machine_that_has_lived_too_long(tmp_path):
    code, said, asked = run("deadline", tmp_path, "active", LIGHTHPC_MAX_LIFETIME="1", LIGHTHPC_MAX_DRAIN="1")

    assert (code, asked) == (1, "")
    assert "its maximum lifetime is 1 s" in said


@pytest.mark.parametrize(
    ("result", "status", "env", "is_ended"),
    [
        ("success", "0", {}, True),
        ("exit-code", "20", {}, True),
        ("exit-code", "203", {}, True),
        # Not ready in time, whatever became of it.
        ("timeout", "TERM", {}, False),
        ("timeout", "KILL", {}, False),
        ("timeout", "0", {}, False),
        ("protocol", "0", {}, True),
        ("resources", "", {}, True),
        # Signals that end the node before it can catch one are a clean end to systemd, before READY a broken protocol.
        ("success", "TERM", {}, True),
        ("success", "INT", {}, True),
        ("success", "HUP", {}, True),
        ("protocol", "TERM", {}, True),
        ("signal", "KILL", {}, False),
        ("core-dump", "SEGV", {}, False),
        ("watchdog", "ABRT", {}, False),
        ("oom-kill", "KILL", {}, False),
        ("exit-code", "101", {}, False),
        ("success", "0", {"LIGHTHPC_NO_TERMINATE": "true"}, False),
        ("success", "0", {"LIGHTHPC_NO_TERMINATE": "0"}, True),
        ("exit-code", "2", {"LIGHTHPC_NO_TERMINATE": "disabled"}, True),
    ],
)
def test_only_a_crash_and_a_wish_leave_the_machine_on(tmp_path, result, status, env, is_ended):
    code, _, asked = run("ended", tmp_path, SERVICE_RESULT=result, EXIT_STATUS=status, **env)

    assert (code, POWER_OFF in asked) == (0, is_ended)


@pytest.mark.parametrize(
    ("jobs", "is_ended"),
    [
        ("7 lighthpc.service stop running", True),
        ("' 1234 lighthpc.service  stop  running'", True),
        ("7 lighthpc.service start running", False),
        ("7 lighthpc.service restart running", False),
        ("No jobs running.", False),
        ("Failed to connect to bus", False),
    ],
)
def test_a_stop_that_takes_too_long_is_no_crash(tmp_path, jobs, is_ended):
    code, _, asked = run("ended", tmp_path, jobs, SERVICE_RESULT="timeout", EXIT_STATUS="KILL")

    assert (code, POWER_OFF in asked) == (0, is_ended)


@pytest.mark.parametrize(
    ("result", "env", "is_ended"),
    [
        ("success", {}, False),
        ("exit-code", {}, True),
        ("timeout", {}, True),
        ("signal", {}, True),
        ("exit-code", {"LIGHTHPC_NO_TERMINATE": "1"}, False),
    ],
)
def test_a_limit_that_cannot_be_set_ends_the_machine(tmp_path, result, env, is_ended):
    code, _, asked = run("ended room", tmp_path, SERVICE_RESULT=result, EXIT_STATUS="1", **env)

    assert (code, POWER_OFF in asked) == (0, is_ended)


@pytest.mark.parametrize("is_mounted", [True, False])
@pytest.mark.parametrize(("bytes_there", "is_said"), [(1 << 20, False), (1 << 19, True), (None, False)])
def test_a_limit_that_is_not_the_files_is_said(tmp_path, is_mounted, bytes_there, is_said):
    """The file of an earlier limit may be in use: it is kept, and the log says so."""
    folder = tmp_path / "work"
    image = tmp_path / "work.img"
    if bytes_there:
        image.write_bytes(b"\0" * bytes_there)
    fake(tmp_path, "mountpoint", "exit 0" if is_mounted else "exit 1")
    fake(tmp_path, "mount", "exit 0")
    fake(tmp_path, "mke2fs", "exit 0")

    code, said, _ = run("room", tmp_path, LIGHTHPC_WORK_LIMIT="1M", LIGHTHPC_WORK_DIR=str(folder))

    assert (code, "has no effect" in said) == (0, is_said), said
    if bytes_there:
        assert image.stat().st_size == bytes_there


def test_the_node_starts_after_its_room_and_waits_for_it_as_long_as_that_takes():
    """A start within a start had the shorter limit of the two."""
    unit, room = (configparser.ConfigParser(strict=False, interpolation=None) for _ in range(2))
    for parser, name in (unit, "lighthpc"), (room, "lighthpc-room"):
        parser.optionxform = str
        text = (ROOT / f"systemd/{name}.service").read_text(encoding="utf-8")
        # systemd's lists may be given in several lines; here the last would win.
        lines = [line for line in text.splitlines() if not line.startswith(("Environment", "Exec", "SystemCall"))]
        parser.read_string("\n".join(lines))
    assert room["Service"]["TimeoutStartSec"] == "5min"
    assert unit["Unit"]["Requires"] == "lighthpc-room.service"
    assert "lighthpc-room.service" in unit["Unit"]["After"].split()
    # Both read the env file that cloud-init writes.
    assert "network-online.target" in room["Unit"]["After"].split()
    assert "systemctl start" not in (ROOT / "systemd/lighthpc.service").read_text(encoding="utf-8")

"""The two scripts that need no working node: whatever the settings say, they end a machine that should end, and no other."""

import os
import pathlib
import subprocess

import pytest
from image import ROOT

pytestmark = pytest.mark.short
UPTIME_S = float(pathlib.Path("/proc/uptime").read_text(encoding="ascii").split()[0])


def run(script, folder, state="active", **env):
    """Runs a script with a systemctl that knows one unit's state; returns (exit code, what it said, what it asked for)."""
    program, calls = folder / "systemctl", folder / "calls"
    program.write_text(f'#!/bin/sh\necho "$*" >>"{calls}"\necho {state}\n', encoding="utf-8")
    program.chmod(0o755)
    calls.write_text("", encoding="utf-8")
    path = ROOT / "systemd/libexec" / script
    done = subprocess.run(
        [path], env={"PATH": f"{folder}:{os.environ['PATH']}"} | env, capture_output=True, text=True, timeout=20
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
    assert "its life was to be 1 s" in said


@pytest.mark.parametrize(
    ("result", "status", "env", "is_ended"),
    [
        ("success", "0", {}, True),
        ("exit-code", "20", {}, True),
        ("exit-code", "203", {}, True),
        ("timeout", "TERM", {}, True),
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

    assert (code, asked) == (0, "--no-block poweroff\n" if is_ended else "")

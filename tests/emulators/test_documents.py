"""Each command line of the README, the documents, and the help, run as it is written there, by a shell.

Before each, there is a mission M001 with a task that failed (sample7.txt) and one that is done, a local mission, and files
and objects of the names in the documents. The lines are run one by one, in a state of their own.
"""

import pathlib
import re
import shutil
import signal
import subprocess

import pytest
from harness import KEYS, ROOT, hear_interrupts
from test_doctor import GOOD_TEMPLATE
from test_scheduler import COPY, account  # noqa: F401: a fixture

PAGES = ["README.md", "examples/README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
COMMANDS = "run status list explain logs wait report fetch submit sweep redrive cancel doctor".split()
# How the documents name the program.
PROGRAMS = r"(?:lighthpc|dist/lighthpc-x86_64|target/release/lighthpc|cargo run --locked --release --)"
NOT_RUN = {
    "lighthpc run": "a node: test_node.py runs it on an instance",
    "lighthpc run -- /opt/app/program": "a node: test_node.py runs it on an instance",
}
# Other ends than 0, and which lines go on until they are interrupted.
FAILED, INTERRUPTED = 20, 130
CODES = {"lighthpc doctor --bake": 27} | dict.fromkeys(
    ("lighthpc wait M001", "lighthpc wait M001 --timeout 8h --on-end 'echo \"$LIGHTHPC_FAILED failed\"'"), FAILED
)
ENDLESS = ("--wait", "sweep --watch", "logs M001 sample7.txt --follow")


def lines_of_pages():
    """The lines of code blocks, and complete command lines in the text."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for line in re.findall(rf"^ {{4,}}({PROGRAMS} .+)$", text, re.MULTILINE):
            yield page, line
        for line in re.findall(r"`(lighthpc \w+ [^`]+)`", text):
            yield page, line.replace("\n", " ")


def lines_of_help(binary):
    """The examples of each command's help."""
    for command in ("", *COMMANDS):
        shown = subprocess.run([binary, *command.split(), "--help"], capture_output=True, text=True, timeout=10).stdout
        for line in re.findall(r"^  (lighthpc .+?)(?:\s{3,}.*)?$", shown.split("Usage:")[0], re.MULTILINE):
            yield f"help {command}", line


def runnable(lines):
    """The lines without comments, each once; without those that are a form and no command."""
    found = {}
    for page, line in lines:
        line = re.sub(r"\s+#.*", "", line).strip()
        line = line.replace("MISSION", "M001").replace("TASK", "sample7.txt").replace("=DIR", "=lighthpc-local")
        # A form names what may be left out, or stands for more words.
        if not re.search(r"\[|\.\.\.|…|\bKEY\b", line):
            found.setdefault(line, page)
    return found


def do(cloud, name, script, code):
    """Runs a node for a task of M001."""
    instance = cloud.launch_instance(srcID=f"M001/{name}", missionID="M001", lighthpc=cloud.tasks.name)
    node = cloud.run_node(instance, program=cloud.script(script))
    assert node.returncode == code, node.stderr


@pytest.fixture
def place(account, tmp_path):  # noqa: F811
    """The folder with all that the lines name, and the missions."""
    cloud = account
    cloud.settings["LIGHTHPC_LAUNCH_TEMPLATE"] = f"good-{cloud.tasks.name}"
    cloud.clients.ec2.create_launch_template(
        LaunchTemplateName=f"good-{cloud.tasks.name}", LaunchTemplateData=GOOD_TEMPLATE
    )
    cloud.put_mission("M001", 2)
    for name in ("sample7.txt", "sample8.txt"):
        cloud.put_input(f"M001/{name}", name.encode())
        cloud.put_task(f"M001/{name}", "M001")
    do(cloud, "sample7.txt", "echo no such reference >&2; exit 3\n", 20)
    do(cloud, "sample8.txt", COPY, 0)
    (tmp_path / "input").mkdir()
    for name in ("one.fasta", "two.fasta", "README.md", "CHANGELOG.md", "input/sample7.txt", "input/b.txt"):
        (tmp_path / name).write_text(name)
    for name in ("t.csv", "sweep.csv"):
        (tmp_path / name).write_text("alpha\n0.5\n")
    copy = 'cat ${LIGHTHPC_INPUT:+"$LIGHTHPC_INPUT"} </dev/null >"$LIGHTHPC_OUTPUT"'
    for name in ("my-program", "work.sh", "model", "mail"):
        (tmp_path / name).write_text(f'#!/bin/sh\n[ -z "$LIGHTHPC_OUTPUT" ] || {copy}\n')
        (tmp_path / name).chmod(0o755)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for program in ("lighthpc", "dist/lighthpc-x86_64", "target/release/lighthpc"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).symlink_to(cloud.binary)
    return tmp_path


def shell_of(cloud, place, line):
    """The line for a shell, in the names of this cloud, and its environment."""
    line = line.replace("cargo run --locked --release --", "lighthpc")
    line = re.sub(r"s3://my-(inputs|bucket)/", f"s3://{cloud.source_bucket}/", line)
    env = cloud.environment(**KEYS, AWS_EC2_METADATA_DISABLED="true", AWS_REGION="us-east-1", **cloud.settings)
    env |= {"PATH": f"{place}:{env['PATH']}", "LIGHTHPC_STEP_SECONDS": "0", "LIGHTHPC_STEPS": "1"}
    return line, env


def run(line, env, place, interrupt):
    """Runs a line to its end; one that goes on for ever is interrupted as by Ctrl-C once it has begun."""
    with subprocess.Popen(
        ["/bin/sh", "-c", line], env=env, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=hear_interrupts,
    ) as shell:  # fmt: skip
        try:
            said, _ = shell.communicate(timeout=4 if interrupt else 40)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", f"-{signal.SIGINT.value}", "-s", str(shell.pid), "lighthpc"], check=False)
            said, _ = shell.communicate(timeout=20)
    return shell.returncode, said


@pytest.mark.timeout(300)
def test_the_command_lines_of_the_documents_do_what_they_say(account, place, binary):  # noqa: F811
    lines = runnable([*lines_of_pages(), *lines_of_help(binary)])
    assert len(lines) > 45 and {line.split()[1] for line in lines if line.startswith("lighthpc ")} >= set(COMMANDS)

    wrong = []
    # What only reads comes first, and what ends the mission last.
    kinds = ("submit", "sweep", "redrive", "cancel")
    order = sorted(lines, key=lambda line: next((n for n, kind in enumerate(kinds, 1) if f" {kind}" in line), 0))
    for number, line in enumerate(order):
        if line in NOT_RUN:
            continue
        here = place / f"run-{number}"
        shutil.copytree(place, here, symlinks=True, ignore=shutil.ignore_patterns("run-*"))
        text, env = shell_of(account, here, line)
        if " submit " in line:
            # An object is a task of one mission only: each line has its own objects and its own mission.
            text = re.sub("--mission (M001|first)", f"--mission N{number}", text)
            text = re.sub("/(run-7|reads)/", f"/N{number}-objects/", text)
            for name in ("a", "b"):
                account.put_input(f"N{number}-objects/{name}")
            (here / "keys.txt").write_text(f"N{number}-objects/a\n")
        if "--local" in line and "*" not in line and "--csv" not in line:
            made, said = run("lighthpc run --local input/*.txt -- ./work.sh", env, here, False)
            assert made == 0, said
        interrupt = any(word in line for word in ENDLESS) or line.endswith("--watch")
        code, said = run(text, env, here, interrupt)
        if " redrive " in line and account.task("M001/sample7.txt")["state"] == "pending":
            do(account, "sample7.txt", "exit 3\n", 20)
        expected = {0, INTERRUPTED} if interrupt else {CODES.get(line, 0)}
        if "status" in line or line.startswith("lighthpc wait"):
            # As `wait`, whose mission has a failed task.
            expected.add(FAILED if interrupt or " && " in line else CODES.get(line, 0))
        if code not in expected:
            wrong.append(f"{lines[line]}: {line}\nexit code {code}, not {sorted(expected)}\n{said}")
    assert not wrong, "\n\n".join(wrong)


def test_a_form_is_no_command():
    lines = {"lighthpc redrive M001 [--verdict oom]": "a", "lighthpc explain M001 TASK   # one": "b", "lighthpc run … -- X": "c"}
    assert runnable((page, line) for line, page in lines.items()) == {"lighthpc explain M001 sample7.txt": "b"}
    assert pathlib.Path(ROOT / "docs").is_dir()

"""A copy of the source that a script may change, build, and simulate. Neither the source nor its build is changed."""

import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
COPY = TARGET / "changed" / "source"
BUILD = TARGET / "changed" / "build"


def copy_source() -> None:
    """Copies the files that git knows. What has not changed keeps its time, so that cargo builds little."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    names = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        source, copy = ROOT / name, COPY / name
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    for copy in COPY.rglob("*"):
        if copy.is_file() and str(copy.relative_to(COPY)) not in names:
            copy.unlink()


def cargo(*arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess:
    """Runs cargo in the copy. After `seconds`, it and what it started are ended, and TimeoutExpired is raised."""
    command = ["cargo", *arguments]
    env = {**os.environ, "CARGO_TARGET_DIR": str(BUILD)}
    with subprocess.Popen(
        command, cwd=COPY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def build_simulator() -> pathlib.Path | None:
    """Builds the copy's simulator. None if the source does not compile."""
    built = cargo("build", "--locked", "--release", "-p", "simulator", "--quiet")
    return BUILD / "release" / "simulator" if built.returncode == 0 else None


def failing_seeds(simulator: pathlib.Path, seeds: str) -> list[tuple[str, str]]:
    """Runs seeds, and returns those that break a promise, with the name of the checker."""
    output = subprocess.run([simulator, "--seeds", seeds, "--brief"], capture_output=True, text=True).stdout
    return re.findall(r"^seed (\d+): ([a-z-]+)", output, re.MULTILINE)

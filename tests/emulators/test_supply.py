"""What we build from: every package by its hash, every build by the lock file."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
NAMES = sorted(path.stem for path in REQUIREMENTS.glob("*.in"))
# What people and machines run, and what tells people what to run.
COMMANDS = [
    *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
    ROOT / ".ci/run",
    *(ROOT / "packer").rglob("*.*"),
    *(ROOT / "systemd").rglob("*.*"),
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
]


def lines():
    """Every line of them, with the lines that it goes on in."""
    for path in COMMANDS:
        if path.is_file():
            text = path.read_text(encoding="utf-8").replace("\\\n", " ")
            yield from ((path.relative_to(ROOT), line) for line in text.splitlines())


def pinned(text):
    """The requirements of a file: name, and the rest."""
    text = re.sub(r"(?m)^\s*#.*\n", "", text.replace("\\\n", " "))
    return dict(re.match(r"([a-z0-9._-]+)(?:\[[a-z0-9,-]+\])?(.*)", line).groups() for line in text.splitlines() if line)


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_hashes_and_the_version_that_was_asked_for(name):
    wanted = pinned((REQUIREMENTS / f"{name}.in").read_text(encoding="utf-8"))
    locked = pinned((REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8"))

    assert wanted
    assert all(re.match(r"==\S+", rest) and re.search(r"--hash=sha256:[0-9a-f]{64}", rest) for rest in locked.values())
    assert {package: rest.strip() for package, rest in wanted.items()} == {
        package: rest.split()[0] for package, rest in locked.items() if package in wanted
    }


def test_every_environment_that_a_script_makes_is_locked():
    made = {match[1] for _, line in lines() for match in re.finditer(r"scripts/venv ([a-z]+) ", line)}

    assert made - {"NAME"} == set(NAMES) == {path.stem for path in REQUIREMENTS.glob("*.txt")}


def test_pip_installs_by_hashes_alone_and_in_one_place():
    found = [(path, line) for path, line in lines() if re.search(r"\bpip3? +install|\bpip3? +download|\bpipx\b", line)]

    assert [str(path) for path, _ in found] == ["scripts/venv"]
    assert "--require-hashes" in found[0][1] and "--only-binary=:all:" in found[0][1]


def test_every_cargo_command_takes_the_lock_file_as_it_is():
    # Those that resolve dependencies; `cargo fmt` and `--version` do not.
    resolving = re.compile(r"\bcargo(?:-zigbuild)? +(?:\+\S+ +)?(?:-\S+ +)*(build|run|test|nextest run|clippy|install|about|deny|zigbuild"
                           r"|bench|doc|check)\b")  # fmt: skip
    prose = re.compile(r"by cargo (test|nextest)|cargo deny:|by cargo deny|cargo deny checks|`cargo deny check`|cargo deny --version|step \"")
    commands = [(path, line) for path, line in lines() if resolving.search(line) and not prose.search(line)]

    assert len(commands) >= 8
    assert [(str(path), line) for path, line in commands if "--locked" not in line] == []


def test_nothing_is_fetched_into_a_shell():
    fetches = re.compile(r"\b(curl|wget)\b.*\|\s*(sudo +)?(ba|da|z)?sh\b|\b(ba|da|z)?sh +<\(\s*(curl|wget)\b")

    assert [(str(path), line) for path, line in lines() if fetches.search(line)] == []

"""Fixtures of these tests and of the boots: one ministack and one moto for the whole run, one small cloud for each test."""

import os
import pathlib

import harness
import pytest


@pytest.fixture(scope="session")
def clients():
    """Both emulators, started and answering, behind boto3's clients."""
    with harness.ministack() as ministack, harness.moto() as moto:
        clients = harness.Clients(ministack.url, moto.url)
        clients.warm_up()
        yield clients


@pytest.fixture(scope="session")
def binary():
    """The program under test: $LIGHTHPC_BIN, or the release build."""
    path = pathlib.Path(os.environ.get("LIGHTHPC_BIN") or harness.ROOT / "target/release/lighthpc").absolute()
    if not os.access(path, os.X_OK):
        pytest.exit(f"no program at {path}: run cargo build --locked --release, or set LIGHTHPC_BIN", returncode=2)
    return str(path)


@pytest.fixture
def cloud(clients, binary, tmp_path):
    """Tables, buckets, a topic with an inbox, and instances, all this test's own."""
    cloud = harness.Cloud(clients, binary, tmp_path)
    yield cloud
    cloud.close()

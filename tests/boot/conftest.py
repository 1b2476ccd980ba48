"""Fixtures: the image, the emulators, and for each test a small cloud and machines booted from the image."""

import os
import pathlib

import harness
import image as images
import machine as machines
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
        pytest.exit(f"no program at {path}: run cargo build --release, or set LIGHTHPC_BIN", returncode=2)
    return str(path)


@pytest.fixture(scope="session")
def image(binary):
    """The image of a node."""
    return images.build(binary)


@pytest.fixture
def cloud(clients, binary, tmp_path):
    """Tables, buckets, a topic with an inbox, and instances, all this test's own."""
    cloud = harness.Cloud(clients, binary, tmp_path)
    yield cloud
    cloud.close()


@pytest.fixture
def node(cloud, image, tmp_path):
    """Boots machines; their consoles are kept in target/boot/consoles."""
    booted = []

    def boot(src, files=None, tags=None, mission=None, network=True, user_data=None, disk=None, **settings):
        """Puts the input and the row, launches the instance, and boots it.

        Its settings are in its env file from the start, or come by user data, which cloud-init reads.
        """
        if src:
            cloud.put_input(src)
            cloud.put_task(src, mission)
        tags = {"srcID": src} if tags is None else tags
        instance = cloud.launch_instance(**tags)
        env = settings_of(cloud) | settings
        lines = "".join(f"{name}={value}\n" for name, value in env.items() if value is not None)
        imds = cloud.imds(instance)
        imds.default.user_data = user_data
        files = ({} if user_data else {"/etc/lighthpc/lighthpc.env": lines}) | (files or {})
        one = machines.Machine(image, tmp_path / instance, imds, files, network, user_data is not None, disk)
        one.instance, one.src = instance, src
        booted.append(one)
        return one

    yield boot
    consoles = images.CACHE / "consoles"
    consoles.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(booted):
        one.close()
        name = os.environ.get("PYTEST_CURRENT_TEST", "test").split("::")[-1].split(" ")[0]
        (consoles / f"{name}.{number}").write_text(one.console(), encoding="utf-8")


def settings_of(cloud):
    """The env file of a node of this cloud. A desk's emulators are at an address of their own there."""

    def seen_from_inside(url):
        return url.replace("127.0.0.1", machines.HOST)

    return {
        "AWS_REGION": harness.REGION,
        "AWS_ENDPOINT_URL": seen_from_inside(cloud.clients.endpoint),
        "AWS_ENDPOINT_URL_EC2": seen_from_inside(cloud.clients.ec2_endpoint),
        "LIGHTHPC_TASKS_TABLE": cloud.tasks.name,
        "LIGHTHPC_MISSIONS_TABLE": cloud.missions.name,
        "LIGHTHPC_SOURCE_BUCKET": cloud.source_bucket,
        "LIGHTHPC_RESULT_BUCKET": cloud.result_bucket,
        "LIGHTHPC_EXEC": "/opt/boot-test/try",
        # An emulated processor is slow; a lease is not what is tried here.
        "LIGHTHPC_LEASE": "60",
        "LIGHTHPC_HEARTBEAT": "5",
    }

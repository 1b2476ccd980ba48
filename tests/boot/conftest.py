"""Fixtures: the image, the emulators, and for each test a small cloud and machines booted from the image."""

import os

import image as images
import pytest
from fixtures import binary, clients, cloud
from machine import Machine, settings_of

__all__ = ["binary", "clients", "cloud"]


@pytest.fixture(scope="session")
def image(binary):
    """The image of a node."""
    return images.build(binary)


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
        one = Machine(image, tmp_path / instance, imds, files, network, user_data is not None, disk)
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

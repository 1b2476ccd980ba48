"""One booted machine: QEMU with a disk, a network card, and the metadata service at its real address.

The card's network is 169.254.169.0/24, as QEMU's user network makes it: 169.254.169.254:80 is an IMDS server of the test, and
169.254.169.1 is this machine's loopback, where the emulators listen. Nothing else is there. The processor is emulated (TCG), so
no test depends on how fast it is.
"""

import pathlib
import subprocess

from harness import REGION

MEMORY_MIB = 768
HOST = "169.254.169.1"
BOOT = (
    "root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.show_status=0 "
    "systemd.journald.forward_to_console=1 systemd.journald.max_level_console=info"
)


class Machine:
    """A machine that is on from its making until its power goes off."""

    def __init__(self, image, folder, imds, files, network=True, cloud_init=False, disk=None):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.disk = image.copy(folder / "disk.img", files, disk)
        port = imds.url.rsplit(":", 1)[1]
        forward = f"guestfwd=tcp:169.254.169.254:80-cmd:socat - TCP:127.0.0.1:{port}"
        card = f"user,id=net,net=169.254.169.0/24,host={HOST},dhcpstart=169.254.169.15,{forward}"
        if not network:
            card = "socket,id=net,listen=127.0.0.1:0"  # a cable that ends in the air
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", str(MEMORY_MIB), "-nographic", "-no-reboot"]
        command += ["-kernel", image.kernel, "-initrd", image.initrd]
        command += ["-append", BOOT + ("" if cloud_init else " cloud-init=disabled")]
        command += ["-drive", f"file={self.disk},if=virtio,format=raw", "-netdev", card]
        command += ["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        # The firmware says whose machine this is; cloud-init believes it if both names are the same.
        name = "ec200000-0000-4000-8000-000000000001"
        command += ["-smbios", f"type=1,manufacturer=Amazon EC2,uuid={name},serial={name}"]
        self.console_path = folder / "console"
        with open(self.console_path, "wb") as console:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )

    def console(self):
        """What the machine has said so far, the kernel and the journal together."""
        return self.console_path.read_text(encoding="utf-8", errors="replace")

    def says(self, *words):
        """The lines of the console that hold all these words."""
        return [line for line in self.console().splitlines() if all(word in line for word in words)]

    def wait_off(self, timeout_s):
        """Waits for power-off. A machine that stays on fails the test."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"still on after {timeout_s} s; its last words:\n{self.tail()}") from None
        assert self.process.returncode == 0, self.tail()
        assert self.says("reboot: Power down"), f"off, but not by power-off; its last words:\n{self.tail()}"

    def tail(self):
        """The end of the console."""
        return self.console()[-6000:]

    def close(self):
        """Pulls the plug, if it is still in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        pathlib.Path(self.disk).unlink(missing_ok=True)


def unit_at_boot(name, text):
    """The files of a unit that is started at boot: for what a test does to a machine from inside."""
    path = f"/etc/systemd/system/{name}"
    return {path: text, f"/etc/systemd/system/multi-user.target.wants/{name}": f"->{path}"}


def settings_of(cloud):
    """The env file of a node of this cloud. This machine's emulators are at an address of their own there."""

    def seen_from_inside(url):
        return url.replace("127.0.0.1", HOST)

    return {
        "AWS_REGION": REGION,
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

"""Makes the image of a node: a minimal Debian, provisioned by scripts/provision, as a disk that QEMU boots.

The base system is made once, by mmdebstrap, and kept; the image is made again whenever something that goes into it has
changed. Each test boots a copy of it with a few files of its own, written by debugfs, so that nothing has to be mounted.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / "target" / "boot"
SUITE = "bookworm"  # systemd 252, as on Amazon Linux 2023
PACKAGES = (
    "ca-certificates cloud-init dbus ifupdown initramfs-tools iproute2 isc-dhcp-client kmod linux-image-cloud-amd64 "
    "nftables python3-minimal systemd systemd-sysv udev"
).split()
DISK_MIB = 1500

# The network of an instance: DHCP, and "online" means something.
NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=ipv6\nIPv6AcceptRA=no\n"


def run(*command, **options):
    """Runs a command; its output is shown if it fails."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, **options)
    if done.returncode != 0:
        words = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{words}")
    return done.stdout


def base():
    """The archive of the base system; made if it is not there."""
    mark = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()[:12]
    archive = CACHE / f"base-{mark}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = archive.with_suffix(".new.tar")
        run("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, fresh)
        fresh.rename(archive)
    return archive


class Image:
    """A provisioned disk with its kernel and its first RAM disk."""

    def __init__(self, folder):
        self.folder = folder
        self.disk, self.kernel, self.initrd = folder / "disk.img", folder / "vmlinuz", folder / "initrd"

    def copy(self, path, files, disk=None):
        """A copy of the disk, or another, with `files` ({path: text}) in it; a text that begins with -> is a link."""
        run("cp", "--sparse=always", disk or self.disk, path)
        with tempfile.TemporaryDirectory() as folder:
            commands = []
            for number, (name, text) in enumerate(files.items()):
                parents = list(pathlib.PurePosixPath(name).parents)[-2::-1]
                commands += [f"mkdir {parent}" for parent in parents]
                if text.startswith("->"):
                    commands += [f"rm {name}", f"symlink {name} {text[2:]}"]
                    continue
                source = pathlib.Path(folder) / str(number)
                source.write_text(text, encoding="utf-8")
                source.chmod(0o755 if text.startswith("#!") else 0o644)
                commands += [f"rm {name}", f"write {source} {name}"]
            script = pathlib.Path(folder) / "commands"
            script.write_text("".join(f"{command}\n" for command in commands), encoding="utf-8")
            run("debugfs", "-w", "-f", script, path)
        return path


def bare(path):
    """A disk of the base system, which is no node yet."""
    with _system(path.parent / "bare-root") as root:
        run("mke2fs", "-q", "-t", "ext4", "-d", root, "-L", "root", path, f"{DISK_MIB}M")
    return path


@contextlib.contextmanager
def _system(root):
    """The base system in a folder, with a network as an instance has it."""
    try:
        root.mkdir()
        run("tar", "-C", root, "-xf", base())
        (root / "etc/systemd/network/10-all.network").write_text(NETWORK, encoding="utf-8")
        (root / "etc/fstab").write_text("", encoding="utf-8")
        run("systemctl", f"--root={root}", "enable", "systemd-networkd.service")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _inputs():
    paths = [ROOT / "scripts/provision", pathlib.Path(__file__), *sorted((ROOT / "systemd").rglob("*"))]
    paths += sorted((pathlib.Path(__file__).parent / "workload").rglob("*"))
    return [path for path in paths if path.is_file()]


def build(binary):
    """The image with this program in it, from the cache if nothing has changed."""
    digest = hashlib.sha256()
    for path in [pathlib.Path(binary), base(), *_inputs()]:
        digest.update(f"{path.name} {path.stat().st_mode}\n".encode())
        if path.suffix == ".tar":
            digest.update(str(path.stat().st_size).encode())
        else:
            digest.update(path.read_bytes())
    image = Image(CACHE / f"image-{digest.hexdigest()[:12]}")
    if image.disk.exists():
        return image
    for old in CACHE.glob("image-*"):
        shutil.rmtree(old)
    image.folder.mkdir()
    with _system(image.folder / "root") as root:
        (image.folder / "provision.log").write_bytes(provision(root, binary))
        shutil.copy(next(root.glob("boot/vmlinuz-*")), image.kernel)
        shutil.copy(next(root.glob("boot/initrd.img-*")), image.initrd)
        run("mke2fs", "-q", "-t", "ext4", "-d", root, "-L", "root", image.folder / "disk.new", f"{DISK_MIB}M")
        (image.folder / "disk.new").rename(image.disk)
    return image


def provision(root, binary):
    """Runs scripts/provision in the chroot, from a bundle as a user has it. Returns what it said."""
    bundle = make_bundle(root / "tmp/bundle", binary)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    with mounted(root):
        command = ["chroot", root, "/tmp/bundle/provision", "--image"]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    shutil.rmtree(bundle)
    words = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"scripts/provision ended with {done.returncode}:\n{words.decode(errors='replace')}")
    return words


def make_bundle(folder, binary):
    """What scripts/build-release packs, with the boot tests' own workload in it."""
    shutil.copytree(ROOT / "systemd", folder / "systemd")
    shutil.copy(ROOT / "scripts/provision", folder)
    shutil.copy(binary, folder / "lighthpc")
    shutil.copytree(pathlib.Path(__file__).parent / "workload", folder / "workload")
    return folder


@contextlib.contextmanager
def mounted(root):
    """What a chroot needs of the kernel: /proc, /sys, and /dev/null."""
    for name, kind in {"proc": "proc", "sys": "sysfs"}.items():
        run("mount", "-t", kind, kind, root / name)
    null = root / "dev/null"
    if not null.is_char_device():
        null.unlink(missing_ok=True)
        os.mknod(null, 0o666 | 0o020000, os.makedev(1, 3))
    try:
        yield
    finally:
        for name in ("sys", "proc"):
            run("umount", root / name)

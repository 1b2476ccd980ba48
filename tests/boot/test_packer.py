"""The Packer template: it parses whole, and an old Packer that is in Debian finds the rest of it valid.

Packer's plugin for AWS is to be had from GitHub only; Debian's Packer 1.6 has one built in. It knows neither `required_plugins` nor
what stands between the template's marks, so those are left out here.
"""

import os
import re
import shutil
import subprocess

import hcl2
import pytest
from image import ROOT

pytestmark = pytest.mark.short

PACKER = ROOT / "packer"
TEMPLATE = PACKER / "lighthpc.pkr.hcl"


def parsed(path):
    return hcl2.loads(path.read_text(encoding="utf-8"))


def test_every_variable_has_a_description_and_all_but_the_bundle_a_default():
    variables = {}
    for block in parsed(PACKER / "variables.pkr.hcl")["variable"]:
        variables |= {name.strip('"'): fields for name, fields in block.items()}

    assert len(variables) > 10
    assert all(fields.get("description") for fields in variables.values())
    assert [name for name, fields in variables.items() if "default" not in fields] == ["bundle"]
    used = set(re.findall(r"\bvar\.([a-z_0-9]+)", TEMPLATE.read_text(encoding="utf-8")))
    assert used == set(variables)


def test_the_image_is_encrypted_and_takes_reads_with_a_token_only():
    text = TEMPLATE.read_text(encoding="utf-8")

    for line in ("encrypt_boot = true", 'imds_support = "v2.0"', 'shutdown_behavior = "terminate"'):
        assert line in text
    assert re.search(r'http_tokens\s+= "required"', text)
    assert re.search(r'version = "= \d+\.\d+\.\d+"', (PACKER / "versions.pkr.hcl").read_text(encoding="utf-8"))
    assert parsed(TEMPLATE)["source"]


def test_packer_finds_it_valid(tmp_path):
    marks = re.compile(r"# newer than 1\.6.*?# :newer than 1\.6\n", re.DOTALL)
    known = marks.sub("", TEMPLATE.read_text(encoding="utf-8"))
    assert "imds_support" not in known
    (tmp_path / "lighthpc.pkr.hcl").write_text(known, encoding="utf-8")
    shutil.copy(PACKER / "variables.pkr.hcl", tmp_path)
    bundle = tmp_path / "lighthpc-arm64.tar.gz"
    for path in (bundle, tmp_path / "lighthpc-arm64.tar.gz.sha256"):
        path.write_text("", encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CHECKPOINT_DISABLE": "1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    variables = {
        "bundle": bundle,
        "architecture": "arm64",
        "workload": PACKER / "workload",
        "settings": '{LIGHTHPC_RESULT_BUCKET="b"}',
        "ec2_endpoint": "http://127.0.0.1:9",
    }

    def packer(*arguments):
        command = ["packer", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    flags = [word for name, value in variables.items() for word in ("-var", f"{name}={value}")]
    code, said = packer("validate", *flags, tmp_path)
    assert code == 0, said
    code, said = packer("validate", *flags, "-var", "architecture=sparc", tmp_path)
    assert (code, "x86_64 or arm64" in said) == (1, True)
    assert packer("fmt", "-check", PACKER) == (0, "")

"""Fixtures of the tests of the deployment: an account, and a stack in it."""

import shutil

import harness
import pytest
from account import VENV, WORKLOAD, Account


@pytest.fixture(scope="session")
def account(clients, tmp_path_factory):
    """A ministack that holds callers to their roles and runs functions, beside the moto that all tests use."""
    folder = tmp_path_factory.mktemp("account")
    ministack = harness.ministack()
    ministack.name = "ministack-stack"
    ministack.env |= {
        "AUTH": "true",
        # It hands these two to the functions.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}",
        "AWS_ENDPOINT_URL_EC2": clients.ec2_endpoint,
        # It unpacks functions there, and leaves them.
        "TMPDIR": str(folder),
        "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "0.1",
    }
    with ministack:
        yield Account(ministack.url, clients.ec2_endpoint, folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def deployed(account):
    """A stack with a program that fails at every event; returns its outputs."""
    return account.deploy("lab", "--workload", WORKLOAD, "--instance-types", "t3.micro,t3.small", "--slots", 4)


@pytest.fixture
def lying_aws(account, tmp_path):
    """A path on which `aws` gives these answers, by the beginning of the command, and is the CLI for the rest."""

    def path(**answers):
        folder = tmp_path / "lying"
        folder.mkdir(exist_ok=True)
        cases = "".join(
            f"\"{command.replace('__', ' ').replace('_', '-')}\"*) {'exit 255' if answer is None else f'echo {answer!r}; exit'} ;;\n"
            for command, answer in answers.items()
        )
        program = folder / "aws"
        program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\nexec "{VENV}/aws" "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        return f"{folder}:{account.environment()['PATH']}"

    return path

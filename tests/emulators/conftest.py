"""The fixtures of this folder's tests."""

from fixtures import binary, clients, cloud
from account_fixtures import account, deployed, lying_aws

__all__ = ["account", "binary", "clients", "cloud", "deployed", "lying_aws"]

"""The fixtures of this folder's tests."""

from fixtures import binary, clients, cloud

__all__ = ["binary", "clients", "cloud"]

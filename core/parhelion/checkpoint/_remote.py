"""Checkpoints that fsspec reaches."""

from ._local import LocalStore

__all__ = ["RemoteStore"]


class RemoteStore(LocalStore):
    """Soon."""

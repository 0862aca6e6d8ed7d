"""An fsspec file system on this machine's disk that goes away: from one of its operations on, nothing answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

PROTOCOL = "drop"


class DroppingFileSystem(LocalFileSystem):
    """Addresses drop:///folder/file.

    Attributes:
        asked: called before every operation, with its name; it raises to be out of reach.
    """

    protocol = PROTOCOL
    asked: Callable[[str], None] = staticmethod(lambda operation: None)

    def info(self, path: Any, **more: Any) -> Any:
        self.asked("info")
        return super().info(path, **more)

    def cat_file(self, path: str, *span: Any, **more: Any) -> Any:
        self.asked("cat")
        return super().cat_file(path, *span, **more)

    def get_file(self, path1: str, path2: str, **more: Any) -> Any:
        self.asked("get")
        return super().get_file(path1, path2, **more)

    def pipe_file(self, path: str, value: bytes, **more: Any) -> None:
        """A connection that is lost on the way leaves a part of the file."""
        try:
            self.asked("pipe")
        except OSError:
            super().pipe_file(path, value[: len(value) // 2])
            raise
        super().pipe_file(path, value, **more)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        self.asked("mv")
        super().mv(path1, path2, **more)

    def rm(self, path: Any, **more: Any) -> None:
        self.asked("rm")
        super().rm(path, **more)


fsspec.register_implementation(PROTOCOL, DroppingFileSystem, clobber=True)

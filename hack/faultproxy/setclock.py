"""A program whose time of day is set while it runs, forth and back: what a person or NTP does to a machine's clock.

The library that the program is started with changes its CLOCK_REALTIME only; that needs no rights, and nobody else
notices. What it runs on besides, CLOCK_MONOTONIC and CLOCK_BOOTTIME, nobody can set on a real machine either.
"""

import mmap
import struct
from pathlib import Path
from typing import Self

from hack.compiler import compile_c

SOURCE = Path(__file__).with_suffix(".c")


class SetClock:
    """The clock of whatever is started with `environment`, or is forked from that."""

    def __init__(self, directory: Path) -> None:
        """Builds the library in this folder.

        Raises:
            UnavailableError: there is no C compiler, or it refused.
        """
        library, self._path = directory / "setclock.so", directory / "setclock"
        flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
        compile_c("a clock that can be set", *flags, str(SOURCE), "-o", str(library))
        self._path.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "SETCLOCK_FILE": str(self._path)}

    def __enter__(self) -> Self:
        """Nothing is set yet."""
        with self._path.open("r+b") as file:
            self._seconds = mmap.mmap(file.fileno(), 8)
        return self

    def __exit__(self, *_: object) -> None:
        """Back to the real time."""
        self.set(0)
        self._seconds.close()

    def set(self, seconds: int) -> None:
        """From now on it is that much later than it really is; below 0 earlier."""
        self._seconds[:8] = struct.pack("=q", seconds)

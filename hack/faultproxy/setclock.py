"""A program whose time of day is changed while it runs, as a person or NTP sets a machine's clock.

It is started with a library that shifts only its own CLOCK_REALTIME: nobody can set the other clocks of a machine.
"""

import mmap
import struct
from pathlib import Path
from typing import Self

from hack.compiler import compile_c

SOURCE = Path(__file__).with_suffix(".c")


class SetClock:
    """The clock of the programs that are started with `environment`, and of their children."""

    def __init__(self, directory: Path) -> None:
        library, self._path = directory / "setclock.so", directory / "setclock"
        flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
        compile_c("a clock that can be set", *flags, str(SOURCE), "-o", str(library))
        self._path.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "SETCLOCK_FILE": str(self._path)}

    def __enter__(self) -> Self:
        with self._path.open("r+b") as file:
            self._seconds = mmap.mmap(file.fileno(), 8)
        return self

    def __exit__(self, *_: object) -> None:
        self.set(0)
        self._seconds.close()

    def set(self, seconds: int) -> None:
        """Set the clock of all programs to this many seconds after the real time."""
        self._seconds[:8] = struct.pack("=q", seconds)

"""Which Debian packages the image is made of, why, and what of them is left out; no I/O here.

The list is closed under what the programs link: `hack.images.check` reads every ELF file of the finished tree and
names a library that is not there. Dependencies that only maintainer scripts need (debconf, perl) are left out, as
no script is run.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

SUITE = "trixie"
"""Debian 13: the Python of the base that deploy/Dockerfile names."""
DISTRO = "debian-13"
PYTHON = "3.13"
ARCHITECTURES = ("amd64", "arm64")

PACKAGES = {
    "base-files": "what this system is (os-release), the folders, the texts of the licences",
    "libc6": "the C library",
    "libc-bin": "ld.so.conf, so that libraries of the driver are found where a runtime puts them",
    "gcc-14-base": "the copyright of libgcc",
    "libgcc-s1": "pydantic-core and threads that are cancelled",
    "libbz2-1.0": "bz2",
    "libexpat1": "xml",
    "libffi8": "ctypes: NVML is called with it",
    "liblzma5": "lzma",
    "libssl3t64": "ssl, hashlib",
    "libstdc++6": "frozenlist",
    "libuuid1": "uuid",
    "libzstd1": "libcrypto links it",
    "zlib1g": "zlib",
    "netbase": "names of ports and protocols",
    "tzdata": "time zones of windows",
    "libpython3.13-minimal": "the standard library",
    "libpython3.13-stdlib": "the standard library",
    "python3.13-minimal": "the interpreter",
}
"""Name and why it is there."""

DYNLOAD = "usr/lib/python3*/lib-dynload"
DROPPED = (
    # Nothing here reads a manual or speaks another language than the messages' own; copyright files stay.
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/share/lintian/*",
    "usr/share/base-files/*",
    "usr/share/binfmts/*",
    "usr/share/applications/*",
    "usr/share/pixmaps/*",
    "usr/share/doc/*/[!c]*",
    "usr/share/doc/*/changelog*",
    "usr/share/python3/*",
    "usr/share/bug/*",
    "etc/update-motd.d/*",
    "etc/profile.d/*",
    "etc/default/*",
    "etc/skel/*",
    # Character sets other than UTF-8 and the programs of libc-bin; glibc has C.UTF-8 built in.
    "usr/lib/*/gconv/*",
    "usr/lib/locale/*",
    "usr/bin/[!p]*",
    "usr/bin/p[!y]*",
    "usr/bin/py[!t]*",
    "usr/sbin/*",
    # Time zones under names that nobody should use any more.
    "usr/share/zoneinfo/right/*",
    "usr/share/zoneinfo/posix/*",
    # Of Python: its tests, its tools for the desktop, and modules whose library is not here.
    f"{DYNLOAD}/_test*",
    f"{DYNLOAD}/_xxtest*",
    f"{DYNLOAD}/xx*",
    f"{DYNLOAD}/_ctypes_test*",
    f"{DYNLOAD}/_curses*",
    f"{DYNLOAD}/_dbm*",
    f"{DYNLOAD}/_gdbm*",
    f"{DYNLOAD}/_sqlite3*",
    f"{DYNLOAD}/readline*",
    f"{DYNLOAD}/_codecs_*",
    "usr/lib/python3*/curses/*",
    "usr/lib/python3*/dbm/*",
    "usr/lib/python3*/sqlite3/*",
    "usr/lib/python3*/pydoc_data/*",
    "usr/lib/python3*/turtle*",
    "usr/lib/python3*/_pyrepl/*",
    "usr/lib/python3*/idlelib/*",
    "usr/lib/python3*/__phello__/*",
)
"""Patterns of paths that are not taken."""


@dataclass(frozen=True, order=True)
class Package:
    """One line of the lock: one file of one version for one architecture."""

    architecture: str
    name: str
    version: str
    archive: str
    """`debian` or `debian-security`: the first part of the path on a mirror."""
    path: str
    sha256: str

    def line(self) -> str:
        """As it is written in the lock."""
        return " ".join(
            (self.architecture, self.name, self.version, self.archive, self.path, f"sha256:{self.sha256}")
        )


LINE = re.compile(
    r"(?P<architecture>\S+) (?P<name>\S+) (?P<version>\S+) (?P<archive>debian|debian-security)"
    r" (?P<path>pool/\S+\.deb) sha256:(?P<sha256>[0-9a-f]{64})"
)
AS_OF = re.compile(r"^# as of (?P<stamp>\d{8}T\d{6}Z)$", re.MULTILINE)


class LockError(ValueError):
    """The lock of Debian packages is not what the code needs; the text says what and how to regenerate it."""


def parse_lock(text: str) -> list[Package]:
    """The packages of a lock.

    Raises:
        LockError: a line is no package, or a package of PACKAGES is missing for an architecture.
    """
    found = []
    for number, row in enumerate(text.splitlines(), start=1):
        if not row or row.startswith("#"):
            continue
        if not (match := LINE.fullmatch(row)):
            raise LockError(
                f"line {number} is not a package: {row!r}; each is: architecture name version debian pool/....deb"
                " sha256:...; regenerate it with: python -m hack.images.debian"
            )
        found.append(Package(**match.groupdict()))
    for architecture in ARCHITECTURES:
        have = {package.name for package in found if package.architecture == architecture}
        if have != set(PACKAGES):
            wrong = ", ".join(sorted(have ^ set(PACKAGES)))
            raise LockError(
                f"{architecture}: {wrong} differ from hack/images/packages.py; regenerate the lock with: python -m"
                " hack.images.debian"
            )
    return sorted(found)


def as_of(text: str) -> str:
    """When the lock was written, as snapshot.debian.org names its folders: `20261120T220000Z`.

    Raises:
        LockError: it does not say.
    """
    if not (match := AS_OF.search(text)):
        raise LockError(
            "the lock lacks a line such as `# as of 20261120T220000Z`; regenerate it: python -m hack.images.debian"
        )
    return match["stamp"]


def render_lock(packages: Iterable[Package], stamp: str) -> str:
    """The text of a lock."""
    head = (
        f"# Debian packages of the image that `make images BASE=local` builds; {SUITE}, from its signed index.\n"
        "# Written by: python -m hack.images.debian\n"
        f"# as of {stamp}\n"
    )
    return head + "".join(f"{package.line()}\n" for package in sorted(packages))


def is_dropped(path: str) -> bool:
    """Whether this path of a package (without a slash at its head) is left out."""
    return any(fnmatchcase(path, pattern) for pattern in DROPPED)

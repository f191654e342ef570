"""The Debian packages of the image: which ones, their download, and how they are unpacked, without root, apt and dpkg.

Dependencies of maintainer scripts (debconf, perl) are left out: no script is run. `hack.images.local` names a library
that is missing. `python -m hack.images.debian` writes deploy/debian.lock from Debian's signed index, with apt.
"""

import hashlib
import http.client
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from hack.cache import UnavailableError, cache_root, writable
from hack.generate import ROOT

SUITE = "trixie"
"""Debian 13, with Python 3.13."""
DISTRO = "debian-13"
PYTHON = "3.13"
ARCHITECTURES = ("amd64", "arm64")

PACKAGES = {
    "base-files": "os-release, the folders, the texts of the licenses",
    "libc6": "the C library",
    "libc-bin": "ld.so.conf, so that libraries of the driver are found where a runtime puts them",
    "gcc-14-base": "the copyright of libgcc",
    "libgcc-s1": "pydantic-core and threads that are canceled",
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
"""What the image needs each package for, by the name of the package."""

DYNLOAD = "usr/lib/python3*/lib-dynload"
DROPPED = (
    # Manuals, translations and the like, which nothing in the image reads; copyright files stay.
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
    # Time zones under obsolete names.
    "usr/share/zoneinfo/right/*",
    "usr/share/zoneinfo/posix/*",
    # Python's tests, its tools for the desktop, and modules whose library is not in the image.
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


@dataclass(frozen=True, order=True)
class Package:
    """One line of the lock: a file of one package, version and architecture."""

    architecture: str
    name: str
    version: str
    archive: str
    """The first part of the path on a mirror: `debian` or `debian-security`."""
    path: str
    sha256: str

    def line(self) -> str:
        return " ".join((self.architecture, self.name, self.version, self.archive, self.path, f"sha256:{self.sha256}"))


LINE = re.compile(
    r"(?P<architecture>\S+) (?P<name>\S+) (?P<version>\S+) (?P<archive>debian|debian-security)"
    r" (?P<path>pool/\S+\.deb) sha256:(?P<sha256>[0-9a-f]{64})"
)
AS_OF = re.compile(r"^# as of (?P<stamp>\d{8}T\d{6}Z)$", re.MULTILINE)


class LockError(ValueError):
    """The lock of Debian packages does not match the code; the message says why and how to regenerate the lock."""


def parse_lock(text: str) -> list[Package]:
    packages = []
    for number, row in enumerate(text.splitlines(), start=1):
        if not row or row.startswith("#"):
            continue
        if not (match := LINE.fullmatch(row)):
            raise LockError(
                f"line {number} is not a package: {row!r}; each is: architecture name version debian pool/....deb"
                " sha256:...; regenerate it with: python -m hack.images.debian"
            )
        packages.append(Package(**match.groupdict()))
    for architecture in ARCHITECTURES:
        have = {package.name for package in packages if package.architecture == architecture}
        if have != set(PACKAGES):
            wrong = ", ".join(sorted(have ^ set(PACKAGES)))
            raise LockError(
                f"{architecture}: the lock and PACKAGES of hack/images/debian.py differ in {wrong}; regenerate the"
                " lock with: python -m hack.images.debian"
            )
    return sorted(packages)


def as_of(text: str) -> str:
    """Return when the lock was written, in the format of folder names on snapshot.debian.org: `20261120T220000Z`."""
    if not (match := AS_OF.search(text)):
        raise LockError(
            "the lock lacks a line such as `# as of 20261120T220000Z`; regenerate it with: python -m hack.images.debian"
        )
    return match["stamp"]


def render_lock(packages: Iterable[Package], stamp: str) -> str:
    head = (
        f"# Debian packages of the image that `make images` builds; {SUITE}, from its signed index.\n"
        "# Written by: python -m hack.images.debian\n"
        f"# as of {stamp}\n"
    )
    return head + "".join(f"{package.line()}\n" for package in sorted(packages))


def is_dropped(path: str) -> bool:
    """Whether this path of a package, without a leading slash, is left out of the image."""
    return any(fnmatchcase(path, pattern) for pattern in DROPPED)


LOCK = ROOT / "deploy" / "debian.lock"
MIRROR = "http://deb.debian.org"
"""The mirror, unless $DEBIAN_MIRROR names one. Hashes are checked, so HTTP is enough."""
SNAPSHOT = "http://snapshot.debian.org/archive"
"""The server that keeps all old versions, unless $DEBIAN_SNAPSHOT is set."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT = 30.0
"""Seconds after which a request to a mirror times out."""
MERGED = ("bin", "sbin", "lib", "lib64")
"""Folders at the root that are links into usr, which a script of base-files would create."""
FOLDERS = ("dev", "etc", "home", "opt", "proc", "root", "run", "sys", "tmp", "var/tmp", "var/lib/dpkg/status.d")
USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
"""The users of the image. The uid 65532 has no entry on purpose: OpenShift picks any uid, so none may be needed."""


class FetchError(UnavailableError):
    """A package cannot be downloaded. The message says which one, from where, and what to do."""


def fetch(packages: Sequence[Package], stamp: str) -> list[Path]:
    """Return the packages' .deb files in the cache, downloading those that are missing."""
    folder = cache_root() / "debs"
    with writable(folder), ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda package: _fetch(package, stamp, folder), packages))


def _fetch(package: Package, stamp: str, folder: Path) -> Path:
    """Return a package's file, downloaded from the mirror or else from the snapshot server, each tried twice."""
    target = folder / f"{package.sha256[:16]}-{Path(package.path).name}"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == package.sha256:
        return target
    mirror = os.environ.get("DEBIAN_MIRROR") or MIRROR
    snapshot = os.environ.get("DEBIAN_SNAPSHOT") or SNAPSHOT
    tried = []
    # Each server is tried twice, because an answer may be cut short.
    for base in (f"{mirror}/{package.archive}", f"{snapshot}/{package.archive}/{stamp}") * 2:
        try:
            with urllib.request.urlopen(f"{base}/{package.path}", timeout=TIMEOUT) as answer:
                data: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            tried.append(f"{base}: {error}")
            continue
        if hashlib.sha256(data).hexdigest() != package.sha256:
            tried.append(f"{base}: its content does not match the sha256 of the lock")
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            (Path(scratch) / target.name).write_bytes(data)
            return (Path(scratch) / target.name).replace(target)
    raise FetchError(
        f"{package.name} {package.version} ({package.architecture}) cannot be downloaded ({'; '.join(tried[-2:])}): "
        "check the network; if Debian has dropped that version, name a mirror that has it (DEBIAN_MIRROR=URL) or "
        "lock today's versions: python -m hack.images.debian"
    )


def locked(architecture: str) -> tuple[list[Package], str]:
    """Return the packages in deploy/debian.lock for one architecture, and the time at which the lock was written."""
    text = LOCK.read_text()
    return [package for package in parse_lock(text) if package.architecture == architecture], as_of(text)


# --- a package's files ------------------------------------------------------------------------------------


def members(data: bytes) -> dict[str, bytes]:
    """Return the content of each file in an ar archive, by name; a .deb is such an archive (man 5 deb)."""
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("this is not an ar archive: a .deb begins with !<arch>")
    files, at = {}, 8
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        files[name] = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return files


def open_part(deb: bytes, part: str) -> tarfile.TarFile:
    """Open the tar `control` or `data` inside a package, compressed with xz or not at all; the caller must close it."""
    parts = members(deb)
    for name, opened in ((f"{part}.tar.xz", lzma.decompress), (f"{part}.tar", bytes)):
        if name in parts:
            return tarfile.open(fileobj=io.BytesIO(opened(parts[name])))
    raise ValueError(f"the .deb has no {part}.tar.xz; it has {', '.join(sorted(parts))}")


def control(deb: bytes) -> str:
    """Return the content of the package's control file, with its name, version and dependencies."""
    with open_part(deb, "control") as tar:
        file = tar.extractfile("./control")
        assert file is not None
        return file.read().decode()


def unpack(debs: Sequence[Path], tree: Path) -> None:
    """Unpack the packages into `tree`, with what maintainer scripts and dpkg would have added."""
    for folder in FOLDERS:
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for name in MERGED:
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    for deb in debs:
        data = deb.read_bytes()
        text = control(data)
        name_field = re.search(r"^Package: (\S+)$", text, re.MULTILINE)
        assert name_field is not None
        (tree / "var/lib/dpkg/status.d" / name_field[1]).write_text(text)
        with open_part(data, "data") as tar:
            for member in tar:
                _lay(tar, member, tree)
    for path, content in USERS.items():
        (tree / path).write_text(content)
    (tree / "usr/bin/python3").symlink_to("python3.13")


def _lay(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: Path) -> None:
    """Write one member of a package's data into `tree` with plain modes; a hard link becomes a copy."""
    path = member.name.removeprefix("./").rstrip("/")
    if not path or is_dropped(path):
        return
    target = tree / path
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        if not target.is_symlink():
            target.symlink_to(member.linkname)
    elif member.islnk():
        shutil.copyfile(tree / member.linkname.removeprefix("./"), target)
    elif file := tar.extractfile(member):
        target.write_bytes(file.read())
        target.chmod(0o755 if member.mode & 0o111 else 0o644)


# --- writing the lock -------------------------------------------------------------------------------------


def relock() -> str:
    """Return the content of a lock for all ARCHITECTURES with the versions that are in Debian's index now."""
    if not shutil.which("apt-get") or not KEYRING.is_file():
        raise FetchError(
            "apt and Debian's keys are needed; on Debian or Ubuntu: apt-get install apt debian-archive-keyring"
        )
    mirror = os.environ.get("DEBIAN_MIRROR") or MIRROR
    with tempfile.TemporaryDirectory() as scratch:
        configuration = _apt_configuration(Path(scratch), mirror)
        environ = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
        done = subprocess.run(
            ["apt-get", "update", "-o", "APT::Update::Error-Mode=any"],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise FetchError(
                f"apt cannot read the index at {mirror}:\n{done.stderr}\nName another mirror: DEBIAN_MIRROR=URL"
            )
        packages = [package for name in ARCHITECTURES for package in _resolved(name, environ, mirror)]
    return render_lock(packages, f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def _apt_configuration(folder: Path, mirror: str) -> Path:
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    signed = f"deb [signed-by={KEYRING}] {mirror}"
    sources = f"{signed}/debian {SUITE} main\n{signed}/debian-security {SUITE}-security main\n"
    (folder / "sources.list").write_text(sources)
    file = folder / "apt.conf"
    architectures = "".join(f'"{name}";' for name in ARCHITECTURES)
    file.write_text(
        f'Dir::State::Lists "{folder}/lists"; Dir::State::status "{folder}/status"; Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null"; Acquire::Languages "none";\n'
        f'APT::Architecture "{ARCHITECTURES[0]}"; APT::Architectures {{{architectures}}};\n'
    )
    return file


def _resolved(architecture: str, environ: dict[str, str], mirror: str) -> Iterator[Package]:
    command = ["apt-get", "-o", f"APT::Architecture={architecture}", "download", "--print-uris", *PACKAGES]
    listed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    for url, _, _, digest in re.findall(r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", listed, re.MULTILINE):
        archive, path = url.removeprefix(f"{mirror}/").split("/", 1)
        name, version, _ = unquote(Path(path).name).removesuffix(".deb").split("_")
        yield Package(architecture, name, version, archive, path, digest)


def main() -> int:
    """Regenerate deploy/debian.lock and return the exit status: 0, or 1 after a FetchError or a LockError."""
    try:
        text = relock()
        parse_lock(text)
    except (FetchError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    LOCK.write_text(text)
    print(f"{LOCK.relative_to(ROOT)}: {len(parse_lock(text))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())

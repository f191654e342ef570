"""Fetch the locked Debian packages and lay them out as a tree: no root, no apt and no dpkg is needed for that.

`python -m hack.images.debian` regenerates deploy/debian.lock from Debian's signed index (that needs apt).
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from hack.cache import UnavailableError, writable
from hack.cluster.paths import cache_root
from hack.generate import ROOT
from hack.images.packages import (
    ARCHITECTURES,
    PACKAGES,
    SUITE,
    Package,
    as_of,
    is_dropped,
    parse_lock,
    render_lock,
)

LOCK = ROOT / "deploy" / "debian.lock"
MIRROR = "http://deb.debian.org"
"""Overridden by $DEBIAN_MIRROR; below it lie debian/ and debian-security/. Hashes are checked, so http is enough."""
SNAPSHOT = "http://snapshot.debian.org/archive"
"""Keeps every version for ever; $DEBIAN_SNAPSHOT names another."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT = 30.0
"""Seconds until a mirror counts as silent."""
MERGED = ("bin", "sbin", "lib", "lib64")
"""Links into usr, which a script of base-files would make."""
FOLDERS = (
    "dev",
    "etc",
    "home",
    "opt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var/tmp",
    "var/lib/dpkg/status.d",
)
USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
"""uid 65532 has no entry on purpose: on OpenShift it is any number, so nothing may need one."""


class FetchError(UnavailableError):
    """A package cannot be had. The text says which, from where, and what to do."""


def fetch(packages: Sequence[Package], stamp: str) -> list[Path]:
    """The packages' files, from the cache or a mirror, checked against their hashes.

    Raises:
        FetchError: a file is neither on the mirror nor in the archive of old versions, or not the locked one.
        UnavailableError: the cache cannot be written.
    """
    folder = cache_root() / "debs"
    with writable(folder), ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda package: _fetch(package, stamp, folder), packages))


def _fetch(package: Package, stamp: str, folder: Path) -> Path:
    target = folder / f"{package.sha256[:16]}-{Path(package.path).name}"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == package.sha256:
        return target
    mirror = os.environ.get("DEBIAN_MIRROR") or MIRROR
    snapshot = os.environ.get("DEBIAN_SNAPSHOT") or SNAPSHOT
    tried = []
    # Twice, for a mirror's answer may be cut short.
    for base in (f"{mirror}/{package.archive}", f"{snapshot}/{package.archive}/{stamp}") * 2:
        try:
            with urllib.request.urlopen(f"{base}/{package.path}", timeout=TIMEOUT) as answer:
                data: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            tried.append(f"{base}: {error}")
            continue
        if hashlib.sha256(data).hexdigest() != package.sha256:
            tried.append(f"{base}: other content than the lock's sha256")
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            (Path(scratch) / target.name).write_bytes(data)
            return (Path(scratch) / target.name).replace(target)
    raise FetchError(
        f"{package.name} {package.version} ({package.architecture}) cannot be downloaded ({'; '.join(tried[-2:])}): "
        "check the network; where Debian has dropped that version, name a mirror that has it (DEBIAN_MIRROR=URL) or "
        "lock today's versions: python -m hack.images.debian"
    )


def locked(architecture: str) -> tuple[list[Package], str]:
    """The packages of deploy/debian.lock for one architecture, and as of when."""
    text = LOCK.read_text()
    return [package for package in parse_lock(text) if package.architecture == architecture], as_of(text)


# --- a package's files ------------------------------------------------------------------------------------


def members(data: bytes) -> dict[str, bytes]:
    """The files of an ar archive, which a .deb is (man 5 deb).

    Raises:
        ValueError: it is none.
    """
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("no ar archive: a .deb begins with !<arch>")
    found, at = {}, 8
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        found[name] = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return found


def open_part(deb: bytes, part: str) -> tarfile.TarFile:
    """The tar `control` or `data` of a package."""
    parts = members(deb)
    for name, opened in ((f"{part}.tar.xz", lzma.decompress), (f"{part}.tar", bytes)):
        if name in parts:
            return tarfile.open(fileobj=io.BytesIO(opened(parts[name])))
    raise ValueError(f"a .deb without {part}.tar.xz; it has {', '.join(sorted(parts))}")


def control(deb: bytes) -> str:
    """The package's control file: name, version, dependencies, maintainer."""
    with open_part(deb, "control") as tar:
        file = tar.extractfile("./control")
        assert file is not None
        return file.read().decode()


def unpack(debs: Sequence[Path], tree: Path) -> None:
    """Lay the packages out in `tree`, without what is dropped, with what their scripts would have made."""
    for folder in FOLDERS:
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for name in MERGED:
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    for deb in debs:
        data = deb.read_bytes()
        text = control(data)
        called = re.search(r"^Package: (\S+)$", text, re.MULTILINE)
        assert called is not None
        (tree / "var/lib/dpkg/status.d" / called[1]).write_text(text)
        with open_part(data, "data") as tar:
            for member in tar:
                _lay(tar, member, tree)
    for path, content in USERS.items():
        (tree / path).write_text(content)
    (tree / "usr/bin/python3").symlink_to("python3.13")


def _lay(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: Path) -> None:
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
    """The lock as Debian's index is now. Reads the index with apt, in folders of its own.

    Raises:
        FetchError: apt or Debian's keys are missing, or the index cannot be read.
    """
    if not shutil.which("apt-get") or not KEYRING.is_file():
        raise FetchError(
            "apt and Debian's keys are needed, on Debian or Ubuntu: apt-get install apt debian-archive-keyring"
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
                f"apt cannot read the index at {mirror}:\n{done.stderr}\nName another: DEBIAN_MIRROR="
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
    """Every package at the newest version, which is the one that apt would install."""
    command = ["apt-get", "-o", f"APT::Architecture={architecture}", "download", "--print-uris", *PACKAGES]
    listed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    for url, _, _, digest in re.findall(
        r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", listed, re.MULTILINE
    ):
        archive, path = url.removeprefix(f"{mirror}/").split("/", 1)
        name, version, _ = unquote(Path(path).name).removesuffix(".deb").split("_")
        yield Package(architecture, name, version, archive, path, digest)


def main() -> int:
    """Write deploy/debian.lock."""
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

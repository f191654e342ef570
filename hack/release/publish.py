"""Publishing a prepared release in a registry: image, chart, signatures and bills of materials.

crane pushes, cosign signs and helm packs, with the logins of `log_in`. Nothing is built, and no existing tag is moved.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import toolchain
from hack.release.chart import CHART
from hack.release.prepare import Prepared

MISSING = re.compile(r"MANIFEST_UNKNOWN|NAME_UNKNOWN")
"""What crane prints if a registry answers that it has no such image."""
NEVER_MOVED = "a released tag is never moved: raise the version in pyproject.toml and prepare again"
IMAGE_LINE = re.compile(r'^\s*(?:- )?image: "?([^"\s]+)"?$', re.MULTILINE)


class PublishError(Exception):
    """A step failed, or would change what is published. The effects of earlier steps stay."""


@dataclass(frozen=True)
class Published:
    image: str
    """The digest of the image's index, sha256:..."""
    chart: str
    """The digest of the chart, sha256:..."""


@dataclass(frozen=True)
class Publisher:
    """Pushes and signs a release, with one key and one way to talk to the registry."""

    key: str = ""
    """The file with cosign's private key, whose password is $COSIGN_PASSWORD. If empty, cosign signs without a key: it
    needs a token of a hosted workflow, and writes to Sigstore's public log. A signature with a key is not logged."""
    plain_http: bool = False
    """Whether the registry is spoken to without TLS, as on loopback."""

    def publish(self, prepared: Prepared, out: Path) -> Published:
        """Push and sign everything. What the registry has must be equal; earlier steps stay after an error."""
        tags = [f"{prepared.image}:{tag}" for tag in (prepared.version, f"v{prepared.version}")]
        for tag in tags:
            if (there := self.find_digest(tag)) not in ("", prepared.digest):
                raise PublishError(f"{tag} is published already as {there}: {NEVER_MOVED}")
        archive = out / "files" / f"{CHART.name}-{prepared.version}.tgz"
        charts = f"{prepared.registry}/charts"
        chart = self.find_chart(archive, f"{charts}/{CHART.name}:{prepared.version}")
        for tag in tags:
            self._crane("push", str(out / "image"), tag)
        self.check_rendered(archive, prepared)
        image = f"{prepared.image}@{prepared.digest}"
        self._sign(image)
        for architecture, digest in read_platforms(out / "image", prepared.digest):
            bill = out / "files" / f"{CHART.name}-{prepared.version}-{architecture}.spdx.json"
            reference = f"{prepared.image}@{digest}"
            predicate = ("--type", "spdxjson", "--predicate", str(bill))
            attested = _run("cosign", "attest", *self._signer(), *predicate, reference)
            _output(attested, f"cosign attest {reference}")
        chart = chart or self.push_chart(archive, charts)
        self._sign(f"{charts}/{CHART.name}@{chart}")
        return Published(prepared.digest, chart)

    def find_digest(self, name: str) -> str:
        """Return the digest of an image, empty if the registry answers that it has none."""
        done = _run("crane", *self._insecure(), "digest", name)
        if done.returncode and MISSING.search(done.stderr):
            return ""
        return _output(done, f"crane digest {name}").strip()

    def check_rendered(self, archive: Path, prepared: Prepared) -> None:
        """Check that the packed chart names this image, also without the digest, as who mirrors it by tag."""
        for options in ((), ("--set", "image.digest=")):
            rendered = _output(_run("helm", "template", "release", str(archive), *options), "helm template")
            named = sorted(set(IMAGE_LINE.findall(rendered)))
            if not named:
                raise PublishError(f"the chart {archive.name} names no image")
            for name in named:
                if (there := self.find_digest(name)) != prepared.digest:
                    what = f"is {there}, and not {prepared.digest}" if there else "is not in the registry"
                    raise PublishError(f"the chart names {name}, which {what}")

    def find_chart(self, archive: Path, tag: str) -> str:
        """Return the chart's digest, or none. The archive's hash is compared: the digest covers the push's time."""
        if not (there := self.find_digest(tag)):
            return ""
        done = _run("crane", *self._insecure(), "manifest", tag)
        manifest = json.loads(_output(done, f"crane manifest {tag}"))
        own = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
        if own not in [layer["digest"] for layer in manifest.get("layers", ())]:
            raise PublishError(f"{tag} is published already as {there}, another chart: {NEVER_MOVED}")
        return there

    def push_chart(self, archive: Path, charts: str) -> str:
        """Push the packed chart below `charts`, such as registry.example/team/charts, and return its digest."""
        plain = ("--plain-http",) if self.plain_http else ()
        done = _run("helm", "push", str(archive), f"oci://{charts}", *plain)
        text = _output(done, f"helm push {archive.name}") + done.stderr
        digest = re.search(r"^Digest: (sha256:[0-9a-f]{64})$", text, re.MULTILINE)
        if digest is None:
            raise PublishError(f"helm push said no digest: {text.strip()}")
        return digest[1]

    def _sign(self, reference: str) -> None:
        _output(_run("cosign", "sign", *self._signer(), reference), f"cosign sign {reference}")

    def _signer(self) -> Iterator[str]:
        yield "--yes"
        if self.key:
            yield from ("--key", self.key, "--use-signing-config=false", "--tlog-upload=false")
        if self.plain_http:
            yield "--allow-http-registry"

    def _insecure(self) -> tuple[str, ...]:
        return ("--insecure",) if self.plain_http else ()

    def _crane(self, *arguments: str) -> None:
        _output(_run("crane", *self._insecure(), *arguments), f"crane {arguments[0]} {arguments[-1]}")


def log_in(environ: Mapping[str, str]) -> None:
    """Log in with crane and helm as $REGISTRY_USER; no command line shows the password."""
    names = ("REGISTRY", "REGISTRY_USER", "REGISTRY_PASSWORD")
    if lacking := [name for name in names if not environ.get(name)]:
        raise PublishError(f"set {' and '.join(lacking)} to log in to a registry")
    registry, user, password = (environ[name] for name in names)
    host = registry.partition("/")[0]
    for name, verb in (("crane", ("auth", "login")), ("helm", ("registry", "login"))):
        done = subprocess.run(
            [str(program(name)), *verb, host, "--username", user, "--password-stdin"],
            input=password,
            capture_output=True,
            text=True,
            check=False,
        )
        _output(done, f"{name} {' '.join(verb)} {host}")


def read_platforms(layout: Path, digest: str) -> list[tuple[str, str]]:
    """Return (architecture, digest of its manifest) for each image in the index `digest` of an OCI layout."""
    index = json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())
    return [(each["platform"]["architecture"], each["digest"]) for each in index["manifests"]]


def program(name: str) -> Path:
    """Return the path of crane, cosign or helm, which is built first if it is not in the cache."""
    return toolchain.program("helm") if name == "helm" else toolchain.ensure("releasetools") / name


def _run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    print(f"+ {name} {' '.join(arguments)}", file=sys.stderr, flush=True)
    return subprocess.run([str(program(name)), *arguments], capture_output=True, text=True, check=False)


def _output(done: "subprocess.CompletedProcess[str]", what: str) -> str:
    if done.returncode:
        raise PublishError(f"{what} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout

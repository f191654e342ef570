"""A SIMULATED OCI registry on loopback: as much of the distribution specification as helm uses to push and pull."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.web import WebServer


class FakeRegistry(WebServer):
    """What was pushed, by digest; manifests by tag as well."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        """By `NAME:TAG` and `NAME@DIGEST`."""

    @property
    def address(self) -> str:
        """Host and port, as in the name of an image."""
        return f"127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[FakeRegistry]:
    """A registry that is empty, and closed at the end."""
    registry = FakeRegistry()
    with registry.running():
        yield registry


def digest_of(content: bytes) -> str:
    """As registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRegistry
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        """The version, a blob, a manifest, tags."""
        path = urlsplit(self.path).path
        if path == "/v2/":
            return self._answer(200)
        if found := re.fullmatch(r"/v2/(.+)/tags/list", path):
            tags = [key.partition(":")[2] for key in self.server.manifests if key.startswith(f"{found[1]}:")]
            return self._answer(200, json.dumps({"name": found[1], "tags": tags}).encode())
        if found := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            return self._send(self.server.blobs.get(found[2]), "application/octet-stream")
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            joint = "@" if found[2].startswith("sha256:") else ":"
            content = self.server.manifests.get(found[1] + joint + found[2])
            return self._send(content, "application/vnd.oci.image.manifest.v1+json")
        return self._answer(404)

    do_HEAD = do_GET

    def _send(self, content: bytes | None, kind: str) -> None:
        if content is None:
            return self._answer(404)
        return self._answer(200, content, Content_Type=kind, Docker_Content_Digest=digest_of(content))

    def do_POST(self) -> None:
        """An upload begins."""
        self._body()
        self._answer(202, Location=f"{urlsplit(self.path).path.rstrip('/')}/1")

    def do_PUT(self) -> None:
        """The content of an upload, or a manifest."""
        content, url = self._body(), urlsplit(self.path)
        digest = digest_of(content)
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", url.path):
            self.server.manifests[f"{found[1]}@{digest}"] = content
            if found[2] != digest:
                self.server.manifests[f"{found[1]}:{found[2]}"] = content
            return self._answer(201, Location=url.path, Docker_Content_Digest=digest)
        if parse_qs(url.query)["digest"] != [digest]:
            return self._answer(400)
        self.server.blobs[digest] = content
        return self._answer(201, Location=url.path, Docker_Content_Digest=digest)

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""

"""A registry of images on the loopback interface of one node, from which a real containerd pulls, so that its errors
are real ones.

with Registry(node) as registry: reference = registry.push(image, architecture="arm64")

`python -m hack.realnode.registry FOLDER` is the server. It implements the part of OCI's distribution specification
that pulling needs.
"""

import hashlib
import http.server
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, Self

from hack.cluster.process import Component, wait_until
from hack.launch import PYTHONPATH
from hack.realnode.images import OneLayerImage, configuration, pack_layer
from hack.realnode.node import KubeletNode

ADDRESS = ("127.0.0.1", 5000)
HOST = "localhost:5000"
"""The registry's name in references to images."""
SECONDS = 60.0
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
READY = "serving\n"


class Registry:
    """The registry of one node, which listens as long as the context is open."""

    def __init__(self, node: KubeletNode) -> None:
        """Prepare an empty registry on `node`; nothing runs yet."""
        self._node = node
        self._folder = node.folder / "registry"
        self._server: Component | None = None

    def __enter__(self) -> Self:
        """Start the server, on a node that is running, and return when it answers. Raises ComponentError if it ends,
        and TimeoutError if it does not answer within SECONDS."""
        self._folder.mkdir(exist_ok=True)
        settings = self._node.files.registries / HOST / "hosts.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(f'server = "http://{HOST}"\n')  # without it containerd insists on TLS
        command = [sys.executable, "-m", "hack.realnode.registry", str(self._folder)]
        self._server = self._node.machine.spawn("registry", command, {"PYTHONPATH": PYTHONPATH})
        log = self._node.folder / "registry.log"
        wait_until(
            lambda: READY in log.read_text(),
            SECONDS,
            f"the registry of {self._node.name}",
            self._server.check,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and delete its images."""
        assert self._server is not None
        self._server.stop()
        shutil.rmtree(self._folder)

    def push(self, image: OneLayerImage, *, architecture: str) -> str:
        """Add an image for this architecture only, whatever its programs are built for, and return its reference in
        this registry. An image of the same name is replaced. Call it only inside the `with` block."""
        layer = pack_layer(image)
        config = json.dumps(configuration(image, layer, architecture)).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._store(CONFIG, config),
            "layers": [self._store(LAYER, layer)],
        }
        platform = {"os": "linux", "architecture": architecture}
        described = self._store(MANIFEST, json.dumps(manifest).encode()) | {"platform": platform}
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]}).encode()
        self._store(INDEX, index)
        (self._folder / image.name).write_bytes(index)
        return f"{HOST}/{image.name}"

    def _store(self, kind: str, content: bytes) -> dict[str, object]:
        """Store a blob under its digest, and return its descriptor for a manifest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        (self._folder / digest).write_bytes(content)
        return {"mediaType": kind, "digest": digest, "size": len(content)}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers the paths `/v2/`, `/v2/NAME/manifests/TAG-OR-DIGEST` and `/v2/NAME/blobs/DIGEST`; NAME contains no
    slash."""

    def __init__(self, folder: Path, *arguments: Any) -> None:
        """Answer one request from the files in `folder`; `arguments` are those of BaseHTTPRequestHandler."""
        self._folder = folder
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        """Answer with the headers alone; http.server calls this name."""
        self._answer(with_content=False)

    def do_GET(self) -> None:
        """Answer with headers and content; http.server calls this name."""
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        """Send the manifest or blob that the request's path names, or an empty JSON object for `/v2/`. Answers 404 if
        there is no such file, or the path has another form. The body is sent only with `with_content`."""
        _, version, *rest = self.path.split("/")
        if version != "v2" or len(rest) not in (1, 3):
            self.send_error(404)
            return
        content, kind = b"{}", "application/json"
        if len(rest) == 3:
            name, what, reference = rest
            file = self._folder / (reference if reference.startswith("sha256:") else f"{name}:{reference}")
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            kind = json.loads(content)["mediaType"] if what == "manifests" else "application/octet-stream"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)


def main() -> None:
    """Serve the folder that the command line names until the process is ended."""
    with http.server.ThreadingHTTPServer(ADDRESS, partial(_Handler, Path(sys.argv[1]))) as server:
        print(READY, end="", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

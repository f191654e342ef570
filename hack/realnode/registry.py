"""A registry of images on this machine: crane's, from which a real containerd pulls and to which a release is pushed.

with Registry(address) as registry: registry.admit(node)
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from hack.cluster import toolchain
from hack.cluster.process import Component, free_ports, responds, start, wait_until
from hack.images.layers import CONFIG, MANIFEST, blob_name, descriptor, dump
from hack.realnode.images import OneLayerImage, configuration, pack_layer
from hack.realnode.node import KubeletNode
from hack.release.index import ArchivedImage, write_layout

HOST = "localhost:5000"
"""A name under which nodes can know a registry, wherever it listens."""
LAYER = "application/vnd.oci.image.layer.v1.tar"
SECONDS = 60.0


class Registry:
    """A registry without TLS and passwords, which answers as long as the context is open."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.host = f"{address}:{free_ports(1)[0]}"
        self._crane = toolchain.ensure("releasetools") / "crane"
        self._folder = Path(tempfile.mkdtemp(prefix="registry-"))
        self._server: Component | None = None

    def __enter__(self) -> Self:
        command = [str(self._crane), "registry", "serve", "--address", self.host]
        self._server = start("registry", [*command, "--disk", str(self._folder)], self._folder / "log")
        wait_until(lambda: responds(f"http://{self.host}/v2/"), SECONDS, "the registry", self._server.check)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.stop()
        shutil.rmtree(self._folder)

    def admit(self, node: KubeletNode, name: str = "") -> None:
        """Let the node's containerd pull from this registry without TLS."""
        settings = node.files.registries / (name or self.host) / "hosts.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(f'server = "http://{self.host}"\n')  # without it containerd insists on TLS

    def push(self, image: OneLayerImage, *, architecture: str) -> None:
        """Push an image as an index with one manifest for this architecture, whatever its programs are for."""
        layer = pack_layer(image)
        config = dump(configuration(image, layer, architecture))
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": [descriptor(LAYER, layer)],
        }
        manifest = dump(content)
        described = descriptor(MANIFEST, manifest) | {"platform": {"os": "linux", "architecture": architecture}}
        blobs = {blob_name(data): data for data in (layer, config, manifest)}
        with tempfile.TemporaryDirectory() as scratch:
            write_layout([ArchivedImage(described, {}, blobs)], Path(scratch))
            command = [str(self._crane), "push", scratch, f"{self.host}/{image.name}"]
            subprocess.run(command, check=True, capture_output=True)

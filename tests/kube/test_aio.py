"""`kube/aio.py`: what uses aiohttp keeps no authorities of this machine, and whoever asks for them still gets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.tls import Identity

TELL = """
import os, ssl, {module}
from aiohttp import connector

trusts = connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED, ssl.create_default_context()
print(*(trust.cert_store_stats()["x509_ca"] for trust in trusts), os.environ["SSL_CERT_FILE"], end="")
assert "SSL_CERT_DIR" not in os.environ
"""


@pytest.mark.parametrize(
    "module",
    [
        "gpusharing.controller.leading",
        "gpusharing.controller.main",
        "kubectl_gpusharing.shell.running",
        "kubectl_gpusharing.usage.prometheus",
    ],
)
def test_what_aiohttp_would_trust_by_itself_is_not_read_and_the_rest_stays(module: str, tmp_path: Path) -> None:
    authorities = str(Identity(tmp_path).pki.ca)
    environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(module=module)], env=environment | {"SSL_CERT_FILE": authorities},
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (f"0 0 1 {authorities}", "", 0)

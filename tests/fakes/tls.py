"""TLS for test servers on loopback: whose certificate they show, and what name they were called by."""

import ssl
from datetime import datetime
from pathlib import Path

from hack.cluster.certs import Pki, create_pki


class Identity:
    """A certificate for 127.0.0.1, `localhost` and `kubernetes`, of an authority of its own."""

    def __init__(self, directory: Path, *, made: datetime | None = None) -> None:
        """`made`: since when it is valid; now, unless told."""
        self.pki: Pki = create_pki(directory, made)
        self.called: list[str | None] = []
        """The name of each connection (SNI); None: by its address."""

    @property
    def authority(self) -> str:
        return self.pki.ca.read_text()

    def context(self) -> ssl.SSLContext:
        context = self.pki.server_context()
        context.sni_callback = lambda _, name, __: self.called.append(name)
        return context

"""A log-in without credentials, for servers on loopback."""

from dataclasses import dataclass

from gpusharing.kube.login import Access


@dataclass
class AnonymousLogin:
    """No credentials: a server that asks for none."""

    server: str

    async def access(self) -> Access:
        return Access(self.server)

    async def token(self) -> str | None:
        return None

    async def renew(self) -> None:
        """Nothing to renew."""

"""The SIMULATED agents as the API server knows real ones: the chart's service account, a token bound to the node."""

import asyncio
import ssl
from pathlib import Path

from gpusharing.kube.errors import NotFound, Unavailable
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import Access
from hack.cluster.api import Api, ApiError
from hack.cluster.kubeconfig import node_bound_token, open_api


class NodeLogin:
    """Login of the agent on one node; the kubelet's part is played by `api`, which may request tokens."""

    def __init__(self, api: Api, tls: ssl.SSLContext, account: str, node: str) -> None:
        """`account` is `namespace/name` of a service account."""
        self._api, self._tls, self._node = api, tls, node
        self._namespace, _, self._name = account.partition("/")
        self._token = ""

    async def access(self) -> Access:
        """The server of `api`."""
        return Access(self._api.url, self._tls)

    async def token(self) -> str | None:
        """Requested once. Raises NotFound while the Node or the service account is not there."""
        if not self._token:
            try:
                token = await asyncio.to_thread(
                    node_bound_token, self._api, self._namespace, self._name, self._node
                )
            except ApiError as error:
                raise (NotFound if error.status == 404 else Unavailable)(str(error)) from error
            except OSError as error:
                raise Unavailable(f"no token for {self._name}: {error}") from error
            self._token = f"Bearer {token}"
        return self._token

    async def renew(self) -> None:
        """The Node may be another one of the same name."""
        self._token = ""


class AgentClients:
    """One client per node; use `async with` so that they are closed."""

    def __init__(self, kubeconfig: Path, account: str) -> None:
        """`kubeconfig` of somebody who may request tokens."""
        self._api = open_api(kubeconfig)
        self._tls = ssl.create_default_context(cadata=self._api.ca_pem)
        self._account = account
        self._clients: dict[str, HttpClient] = {}

    def __call__(self, node: str) -> HttpClient:
        """The client of the agent on that node."""
        if node not in self._clients:
            login = NodeLogin(self._api, self._tls, self._account, node)
            self._clients[node] = HttpClient(login, name="gpusharing-agent")
        return self._clients[node]

    async def __aenter__(self) -> "AgentClients":
        """Nothing is opened before the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()
        self._api.close()

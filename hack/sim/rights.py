"""Clients of SIMULATED agents with the identity of real ones: the chart's service account, with a token bound to the
node."""

import asyncio
import ssl
from pathlib import Path

from gpusharing.kube.errors import NotFound, Unavailable
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import Access
from hack.cluster.api import Api, ApiError
from hack.cluster.kubeconfig import node_bound_token, open_api


class NodeLogin:
    """The login of the agent on one node. It requests tokens through `api`, as a kubelet does."""

    def __init__(self, api: Api, tls: ssl.SSLContext, account: str, node: str) -> None:
        """Prepare the login; no token is requested yet. `account` is `namespace/name` of a service account."""
        self._api, self._tls, self._node = api, tls, node
        self._namespace, _, self._name = account.partition("/")
        self._token = ""

    async def access(self) -> Access:
        """Return the address and the TLS settings of `api`'s server."""
        return Access(self._api.url, self._tls)

    async def token(self) -> str | None:
        """Return the value of the Authorization header, never None. The token is requested by the first call and
        cached. Raises NotFound if the Node or the service account does not exist, and Unavailable after other
        refusals and if the server does not answer."""
        if not self._token:
            try:
                token = await asyncio.to_thread(node_bound_token, self._api, self._namespace, self._name, self._node)
            except ApiError as error:
                raise (NotFound if error.status == 404 else Unavailable)(str(error)) from error
            except OSError as error:
                raise Unavailable(f"no token for {self._name}: {error}") from error
            self._token = f"Bearer {token}"
        return self._token

    async def renew(self) -> None:
        """Drop the cached token, so that the next call of `token` requests a new one: the Node may have been replaced
        by another of the same name."""
        self._token = ""


class AgentClients:
    """One client for the agent of each node. Use `async with`, which closes the clients."""

    def __init__(self, kubeconfig: Path, account: str) -> None:
        """Open the API with `kubeconfig`, whose user must be allowed to request tokens for `account`
        (`namespace/name`). Raises KubeconfigError if the file does not exist or its user logs in by means that
        `open_api` does not support, and the untranslated errors of a file with other flaws, such as KeyError."""
        self._api = open_api(kubeconfig)
        self._tls = ssl.create_default_context(cadata=self._api.ca_pem)
        self._account = account
        self._clients: dict[str, HttpClient] = {}

    def __call__(self, node: str) -> HttpClient:
        """Return the client of the agent on this node. It is created by the first call for the node, and kept until the
        end of the `async with` block; no request is made."""
        if node not in self._clients:
            login = NodeLogin(self._api, self._tls, self._account, node)
            self._clients[node] = HttpClient(login, name="gpusharing-agent")
        return self._clients[node]

    async def __aenter__(self) -> "AgentClients":
        """Return self. A node's client is created by the first call for that node."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all clients that were created, and then the API."""
        for client in self._clients.values():
            await client.close()
        self._api.close()

"""Clients of SIMULATED agents with the chart's service account, and a token bound to the node."""

import asyncio
import ssl
from pathlib import Path

from gpusharing.kube.errors import NotFound, Unavailable
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import Access
from hack.cluster.api import Api, ApiError
from hack.cluster.kubeconfig import node_bound_token, open_api


class NodeLogin:
    def __init__(self, api: Api, tls: ssl.SSLContext, account: str, node: str) -> None:
        self._api, self._tls, self._node = api, tls, node
        self._namespace, _, self._name = account.partition("/")
        self._token = ""

    async def access(self) -> Access:
        return Access(self._api.url, self._tls)

    async def token(self) -> str | None:
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
        """Drop the cached token: the Node may have been replaced by another of the same name."""
        self._token = ""


class AgentClients:
    def __init__(self, kubeconfig: Path, account: str) -> None:
        self._api = open_api(kubeconfig)
        self._tls = ssl.create_default_context(cadata=self._api.ca_pem)
        self._account = account
        self._clients: dict[str, HttpClient] = {}

    def __call__(self, node: str) -> HttpClient:
        if node not in self._clients:
            login = NodeLogin(self._api, self._tls, self._account, node)
            self._clients[node] = HttpClient(login, name="gpusharing-agent")
        return self._clients[node]

    async def __aenter__(self) -> "AgentClients":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.close()
        self._api.close()

"""One cluster: where it is by the kubeconfig, and reading it. Errors of the server become a `Trouble`.

The official client reads most of a kubeconfig (`kube/login.py`). Which context is meant is found here, by kubectl's
rule, which that client does not follow for several files: the first that names a current context decides.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from gpusharing.cli.shell.troubles import INSTALL, Denied, Trouble, error_text, nearest, sentence
from gpusharing.kube.client import JSON, KubeClient, Resource
from gpusharing.kube.clock import wall_time
from gpusharing.kube.errors import Forbidden, KubeError, NotFound, first_of
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.login import Login, OfficialLogin, ServiceAccountLogin
from gpusharing.kube.paging import pages_of
from gpusharing.kube.raw import entries, text


def find_context(files: Sequence[Path], name: str) -> tuple[str, str]:
    """Return the name of a context and its namespace of pods: of the context that is named, or of the current one if
    `name` is empty. Raises Trouble when it does not exist."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    current, known = "", dict[str, str]()
    for file in files:
        try:
            config = yaml.load(file.read_bytes(), loader)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise Trouble(f"kubeconfig {file} cannot be read: {error_text(error)}") from error
        current = current or text(config, "current-context")
        for one in entries(config, "contexts"):
            known.setdefault(text(one, "name"), text(one, "context", "namespace"))
    wanted = name or current
    where = ", ".join(map(str, files))
    listed = ", ".join(sorted(known)[:5]) or "none"
    if not wanted:
        raise Trouble(f"no current context in kubeconfig {where}. Name one: --context; there are {listed}")
    if wanted not in known:
        like = nearest(wanted, known)
        more = f"did you mean: {', '.join(like)}" if like else f"there are: {listed}"
        raise Trouble(f"no context {wanted} in kubeconfig {where}; {more}")
    return wanted, known[wanted] or "default"


NAME = "kubectl-gpusharing"
"""The field manager of what a person writes with the plugin, and its User-Agent."""
LIMITS = Limits(connect=5.0, total=30.0)


@dataclass(frozen=True, slots=True)
class Session:
    """A cluster to ask."""

    client: KubeClient
    """The cluster's API server."""
    where: str
    """For messages: the context's name, or what replaces it."""
    namespace: str = "default"
    """The namespace of pods that are named without one."""
    now: Callable[[], datetime] = wall_time
    """The clock."""
    login: Login | None = None
    """For what goes through the API server to a Service; None: nothing does."""

    @property
    def name(self) -> str:
        """The name of the context, for JSON and YAML."""
        return self.where.removeprefix("context ")

    async def each_page(
        self, resource: Resource, namespace: str | None = None, fields: str = ""
    ) -> AsyncIterator[Sequence[JSON]]:
        """Yield the objects of a kind, page by page. Raises Trouble for every error of the server, also if the kind is
        not installed; it is a Denied if the user lacks permission."""
        try:
            async for page in pages_of(self.client, resource, namespace=namespace, field_selector=fields):
                yield page.items
        except NotFound as error:
            raise Trouble(
                f"{self.where} has no {resource.full_name} in version {resource.version}: the operator is not installed"
                f" there, or this plugin does not know its version. To install: {INSTALL}"
            ) from error
        except Forbidden as error:
            raise Denied(sentence(error, self.where)) from error
        except KubeError as error:
            raise Trouble(sentence(error, self.where)) from error

    async def all(self, resource: Resource, namespace: str | None = None, fields: str = "") -> list[JSON]:
        """Every object of a kind, by name. Raises as `each_page` does."""
        found = [raw async for page in self.each_page(resource, namespace, fields) for raw in page]
        return sorted(
            found, key=lambda raw: (text(raw, "metadata", "namespace"), text(raw, "metadata", "name"))
        )

    async def lists(self, *resources: Resource) -> list[list[JSON]]:
        """Every object of several kinds, asked for side by side. Raises Trouble."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.all(resource)) for resource in resources]
        except BaseExceptionGroup as trouble:
            raise first_of(trouble) from None
        return [task.result() for task in tasks]

    async def one(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        """One object. Raises Trouble when none has this name, with the nearest names if they may be listed."""
        try:
            return await self.client.get(resource, name, namespace=namespace)
        except NotFound as error:
            try:
                names = [raw["metadata"]["name"] for raw in await self.all(resource, namespace)]
            except Denied:
                none = f"there is no {name} in {resource.plural} of {self.where}"
                raise Trouble(f"{none}; you may not list those that exist") from error
            raise Trouble(no_such(resource, name, names, self.where)) from error
        except KubeError as error:
            raise Trouble(sentence(error, self.where)) from error


def no_such(resource: Resource, name: str, names: list[str], where: str) -> str:
    """Say that no object of the kind has this name, and which names are similar."""
    kind = resource.plural
    if not names:
        return f"there is no {name} in {kind} of {where}, nor any other"
    found = nearest(name, names)
    listed = ", ".join(found or sorted(names)[:5])
    return f"there is no {name} in {kind} of {where}; {'did you mean' if found else 'there are'}: {listed}"


@asynccontextmanager
async def connected(
    kubeconfig: str, context: str, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[Session]:
    """A session for one context; empty texts mean the same as in kubectl. Raises Trouble."""
    login, where, namespace = find_login(kubeconfig, context, environment)
    client = HttpClient(login, name=NAME, limits=LIMITS)
    try:
        await login.access()
    except KubeError as error:
        raise Trouble(error_text(error)) from error
    async with client:
        yield Session(client, where, namespace, login=login)


def find_login(kubeconfig: str, context: str, environment: Mapping[str, str]) -> tuple[Login, str, str]:
    """How to log in, what to call it, and the namespace of pods: by --kubeconfig, KUBECONFIG, ~/.kube/config, or as a
    pod. Raises Trouble."""
    home = Path(environment.get("HOME") or Path.home()) / ".kube" / "config"
    named = kubeconfig or environment.get("KUBECONFIG", "")
    files = [Path(one) for one in named.split(os.pathsep) if one] if named else [home]
    there = [one for one in files if one.is_file()]
    if there:
        name, namespace = find_context(there, context)
        login = OfficialLogin(Path(os.pathsep.join(map(str, there))), name, environment)
        return login, f"context {name}", namespace
    if not named and environment.get("KUBERNETES_SERVICE_HOST"):
        return ServiceAccountLogin(environment), "this pod's cluster", "default"
    missing = ", ".join(map(str, files))
    raise Trouble(
        f"no cluster: there is no kubeconfig at {missing}. Name one: --kubeconfig FILE, or set KUBECONFIG"
    )

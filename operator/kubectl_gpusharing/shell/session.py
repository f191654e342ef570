"""One cluster: how does the kubeconfig say to reach it, and what may be read there?

The official client reads most of a kubeconfig (`kube/login.py`). The context is found here, because that client does
not follow kubectl's rule for several files: the first file that names a current context decides. Errors of the server
become a `Trouble`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Unpack

import yaml

from gpusharing.api.nearest import nearest
from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, Filters, KubeClient, Resource
from gpusharing.kube.clock import wall_time
from gpusharing.kube.errors import KubeError, NotFound, one_error
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.lists import pages_of
from gpusharing.kube.login import Login, OfficialLogin, ServiceAccountLogin, kubeconfig_stamps
from gpusharing.kube.raw import entries, part, text, texts
from gpusharing.planning.vocabulary.lengths import some
from kubectl_gpusharing.shell.troubles import INSTALL, Denied, Trouble, error_text, explained

T = TypeVar("T")
MOST_LISTED = 20


async def side_by_side(*reads: Coroutine[Any, Any, T]) -> list[T]:
    """Run these concurrently and return their results in order; the first error cancels the others, and is raised."""
    with one_error():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    return [task.result() for task in tasks]


def read_contexts(files: Sequence[Path]) -> tuple[str, dict[str, str]]:
    """Return the current context, or "", and the namespace that each context sets, or "". Raises Trouble."""
    return _contexts(tuple(files), kubeconfig_stamps(os.pathsep.join(map(str, files))))


@lru_cache(maxsize=1)
def _contexts(files: tuple[Path, ...], _stamps: tuple[object, ...]) -> tuple[str, dict[str, str]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    current, known = "", dict[str, str]()
    for file in files:
        try:
            config = yaml.load(file.read_bytes(), loader)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise Trouble(f"kubeconfig {file} cannot be read: {error_text(error)}") from error
        current = current or text(config, "current-context")
        for entry in entries(config, "contexts"):
            if name := text(entry, "name"):
                known.setdefault(name, text(entry, "context", "namespace"))
    return current, known


def find_context(files: Sequence[Path], name: str) -> tuple[str, str]:
    """Return the name and the namespace of a context, or of the current one if `name` is empty. Raises Trouble."""
    current, known = read_contexts(files)
    wanted = name or current
    where = ", ".join(map(str, files))
    listed = some(sorted(known), MOST_LISTED) or "none"
    if not wanted:
        raise Trouble(f"kubeconfig {where} has no current context. Choose one of these with --context: {listed}")
    if wanted not in known:
        like = nearest(wanted, known)
        meant = f"did you mean: {', '.join(like)}; " if like else ""
        raise Trouble(f"there is no context {wanted} in kubeconfig {where}; {meant}there are: {listed}")
    return wanted, known[wanted] or "default"


def find_contexts(kubeconfig: str, named: Sequence[str]) -> tuple[str, ...]:
    """Return the contexts in `named`, or all of the kubeconfig if it is empty. Raises Trouble if there are none."""
    files = find_kubeconfigs(kubeconfig)
    contexts = [find_context(files, name)[0] for name in named] or sorted(read_contexts(files)[1])
    if not contexts:
        raise Trouble(f"kubeconfig {', '.join(map(str, files))} has no contexts")
    return tuple(dict.fromkeys(contexts))


NAME = "kubectl-gpusharing"
"""The field manager of all writes of the plugin, and its User-Agent."""
LIMITS = Limits(connect=5.0, total=30.0)


@dataclass(frozen=True, slots=True)
class Session:
    """A cluster that can be read and patched."""

    client: KubeClient
    where: str
    """The cluster in messages: `context NAME`, or `this pod's cluster`."""
    namespace: str = "default"
    now: Callable[[], datetime] = wall_time
    login: Login | None = None
    """The credentials for calls through the API server to a Service; None if there are no such calls."""

    @property
    def name(self) -> str:
        return self.where.removeprefix("context ")

    async def each_page(self, resource: Resource, **where: Unpack[Filters]) -> AsyncIterator[Sequence[JSON]]:
        """Yield the objects of a kind, page by page. Raises Trouble."""
        with explained(self.where):
            try:
                async for page in pages_of(self.client, resource, **where):
                    yield page.items
            except NotFound as error:
                raise Trouble(
                    f"{self.where} has no {resource.full_name} in version {resource.version}: the operator is not"
                    f" installed there, or this plugin does not know its version. To install: {INSTALL}"
                ) from error

    async def all(self, resource: Resource, **where: Unpack[Filters]) -> list[JSON]:
        """Return every object of a kind, sorted by namespace and name. Raises Trouble."""
        objects = [raw async for page in self.each_page(resource, **where) for raw in page]
        return sorted(objects, key=lambda raw: [text(raw, "metadata", key) for key in ("namespace", "name")])

    async def lists(self, *resources: Resource) -> list[list[JSON]]:
        return await side_by_side(*map(self.all, resources))

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        """Return one object. Raises Trouble, with similar names if there is no such object."""
        if (found := await self.find(resource, name, namespace)) is not None:
            return found
        where = f"namespace {namespace} of {self.where}" if namespace else self.where
        try:
            names = [raw["metadata"]["name"] for raw in await self.all(resource, namespace=namespace)]
        except Denied as error:
            none = f"there is no {resource.plural}/{name} in {where}"
            raise Trouble(f"{none}; you are not allowed to list the existing ones") from error
        hint = "; choose another namespace with -n NAME" if namespace else ""
        with suppress(Trouble):
            named = await self.all(resource, field_selector=f"metadata.name={name}") if namespace else []
            if elsewhere := [text(raw, "metadata", "namespace") for raw in named]:
                hint = f"; there is one in {some(elsewhere)}: choose with -n {elsewhere[0]}"
        raise Trouble(no_such(resource, name, names, where) + hint)

    async def find(self, resource: Resource, name: str, namespace: str | None = None) -> JSON | None:
        """Return one object, or None if there is no such object. Raises Trouble."""
        with explained(self.where), suppress(NotFound):
            return await self.client.get(resource, name, namespace=namespace)
        return None

    async def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace; empty if it cannot be read."""
        try:
            return texts(part(await self.client.get(kinds.NAMESPACES, namespace), "metadata", "labels"))
        except KubeError:
            return {}


SPELLINGS: Mapping[Resource, str] = {
    kinds.NODES: "node nodes no gpunode gpunodes gpun",
    kinds.PODS: "pod pods po",
    kinds.POLICIES: "gpusharingpolicy gpusharingpolicies gsp",
    kinds.DEPLOYMENTS: "deployment deployments deploy",
    kinds.REPLICA_SETS: "replicaset replicasets rs",
    kinds.DAEMON_SETS: "daemonset daemonsets ds",
    Resource("apps", "v1", "statefulsets", namespaced=True): "statefulset statefulsets sts",
    Resource("batch", "v1", "jobs", namespaced=True): "job jobs",
}
"""The kinds that a user may name, and how kubectl spells each."""


def find_kind(word: str) -> Resource | None:
    """Return the kind that is spelled like this, also with its API group."""
    spelling = word.partition(".")[0].lower()
    return next((one for one, spellings in SPELLINGS.items() if spelling in spellings.split()), None)


def read_names(words: Sequence[str], taken: str) -> tuple[str, ...]:
    """Return each name once, without its kind where `taken` is NODE, POLICY or POLICY|NODE. Raises Trouble.

    As for kubectl, a kind may come before all names (pod NAME NAME) or before each (pod/NAME).
    """
    kind, *names = words
    if names and "/" not in kind and find_kind(kind) is not None:
        words = [f"{kind}/{one}" for one in names]
    kinds_of = {"NODE": [kinds.NODES], "POLICY": [kinds.POLICIES], "POLICY|NODE": [kinds.POLICIES, kinds.NODES]}
    if taken in kinds_of:
        for word in words:
            kind, slash, name = word.rpartition("/")
            if slash and (not name or find_kind(kind) not in kinds_of[taken]):
                valid = " or ".join("gsp/pool-a" if one is kinds.POLICIES else "node/gpu-07" for one in kinds_of[taken])
                raise Trouble(f"{word} is no {taken}: write its name, with or without its kind, such as {valid}")
        words = [word.rpartition("/")[2] for word in words]
    return tuple(dict.fromkeys(words))


def find_subject(word: str, namespace: str) -> tuple[Resource, str, str]:
    """Return the kind, name and namespace of the object that NODE or KIND/NAME stands for. Raises Trouble."""
    kind, slash, rest = word.partition("/")
    if not slash:
        return kinds.NODES, word, namespace
    resource = find_kind(kind)
    first, _, name = (word if resource is None else rest).rpartition("/")
    if "/" in first or not name or (first and resource is not None and not resource.namespaced):
        raise Trouble(f"{word} names nothing that can be explained: write NODE, KIND/NAME or NAMESPACE/NAME")
    return resource or kinds.PODS, name, first or namespace


def object_name(resource: Resource, name: str) -> str:
    """Return the name of an object as -o name prints it, such as gpunode.gpusharing.dev/gpu-07."""
    plural = resource.plural
    kind = f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
    return f"{resource.full_name.replace(plural, kind)}/{name}"


def no_such(resource: Resource, name: str, names: list[str], where: str) -> str:
    kind = resource.plural
    if not names:
        return f"there is no {kind}/{name} in {where}, which has no {kind}"
    similar = nearest(name, names)
    listed = ", ".join(similar or sorted(names)[:5])
    return f"there is no {kind}/{name} in {where}; {'did you mean' if similar else 'there are'}: {listed}"


@asynccontextmanager
async def connected(kubeconfig: str, context: str) -> AsyncIterator[Session]:
    """Log in to one context, or as a service account in a pod without kubeconfig. Raises Trouble."""
    login: Login
    try:
        files = find_kubeconfigs(kubeconfig)
    except Trouble:
        named = kubeconfig or os.environ.get("KUBECONFIG")
        if named or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise
        login, where, namespace = ServiceAccountLogin(os.environ), "this pod's cluster", "default"
    else:
        name, namespace = find_context(files, context)
        login = OfficialLogin(Path(os.pathsep.join(map(str, files))), name, os.environ)
        where = f"context {name}"
    client = HttpClient(login, name=NAME, limits=LIMITS)
    try:
        await login.access()
    except KubeError as error:
        raise Trouble(error_text(error)) from error
    async with client:
        yield Session(client, where, namespace, login=login)


def find_kubeconfigs(kubeconfig: str) -> list[Path]:
    """Return the kubeconfig files that exist, chosen as kubectl does. Raises Trouble if none exists."""
    home = Path(os.environ.get("HOME") or Path.home()) / ".kube" / "config"
    named = kubeconfig or os.environ.get("KUBECONFIG", "")
    files = [Path(part) for part in named.split(os.pathsep) if part] if named else [home]
    if present := [file for file in files if file.is_file()]:
        return present
    missing = ", ".join(map(str, files))
    raise Trouble(f"there is no kubeconfig at {missing}. Pass --kubeconfig FILE, or set KUBECONFIG")

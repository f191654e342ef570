"""One cluster: how the kubeconfig says to reach it, and how to read it. Errors of the server become a `Trouble`.

The official client reads most of a kubeconfig (`kube/login.py`). The context is found here, because that client does
not follow kubectl's rule for several files: the first file that names a current context decides.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Unpack

import yaml

from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, Filters, KubeClient, Resource
from gpusharing.kube.clock import wall_time
from gpusharing.kube.errors import KubeError, NotFound, one_error
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.login import Login, OfficialLogin, ServiceAccountLogin, kubeconfig_stamps
from gpusharing.kube.paging import pages_of
from gpusharing.kube.raw import entries, part, text, texts
from gpusharing.planning.vocabulary.lengths import some
from kubectl_gpusharing.shell.troubles import INSTALL, Denied, Trouble, error_text, explained, nearest

MOST_LISTED = 20
"""How many contexts are listed for a name that does not exist."""


def read_contexts(files: Sequence[Path]) -> tuple[str, dict[str, str]]:
    """Return the name of the current context, which may be empty, and the namespace that each context sets (empty if
    none), by the context's name. If several files name a current context or define the same context, the first file
    decides. A file without contexts adds nothing, and neither does a context without a name. Raises Trouble if a file
    cannot be read or is not YAML."""
    return _contexts(tuple(files), kubeconfig_stamps(os.pathsep.join(map(str, files))))


@lru_cache(maxsize=1)
def _contexts(files: tuple[Path, ...], _stamps: tuple[object, ...]) -> tuple[str, dict[str, str]]:
    """Return what `read_contexts` does, or raise its Trouble. The last answer is cached for as long as the files have
    the same stamps, because a command that asks 100 clusters looks up each of their contexts."""
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
    """Return the name of a context and the namespace that it sets (`default` if none). It is the context `name`, or
    the current one if `name` is empty. Raises Trouble if a file cannot be read, if the context does not exist, or
    if `name` is empty and there is no current context."""
    current, known = read_contexts(files)
    wanted = name or current
    where = ", ".join(map(str, files))
    listed = some(sorted(known), MOST_LISTED) or "none"
    if not wanted:
        raise Trouble(
            f"kubeconfig {where} has no current context. Choose one of these with --context: {listed}"
        )
    if wanted not in known:
        like = nearest(wanted, known)
        meant = f"did you mean: {', '.join(like)}; " if like else ""
        raise Trouble(f"there is no context {wanted} in kubeconfig {where}; {meant}there are: {listed}")
    return wanted, known[wanted] or "default"


def find_contexts(kubeconfig: str, named: Sequence[str]) -> tuple[str, ...]:
    """Return the contexts in `named`, each once and in that order, or all contexts of the kubeconfig, sorted by name,
    if `named` is empty. Contacts no cluster. Raises Trouble if there is no kubeconfig, if it cannot be read, if it
    lacks one of the contexts in `named`, or if it has no contexts at all."""
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
    """The cluster's API server."""
    where: str
    """The name of the cluster in messages: `context` followed by the context's name, or `this pod's cluster`."""
    namespace: str = "default"
    """The namespace of a pod that the user names without one."""
    now: Callable[[], datetime] = wall_time
    """The clock."""
    login: Login | None = None
    """The credentials for calls through the API server to a Service, or None if there are no such calls."""

    @property
    def name(self) -> str:
        """The name of the context in JSON and YAML, or `this pod's cluster` if a service account is used."""
        return self.where.removeprefix("context ")

    async def each_page(self, resource: Resource, **where: Unpack[Filters]) -> AsyncIterator[Sequence[JSON]]:
        """Yield the objects of a kind, page by page, as the server orders them. `where` narrows the list, by a
        namespace or selectors. Raises Trouble for every error of the server, including when the kind is not installed,
        and its subclass Denied if the user lacks permission."""
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
        """Return every object of a kind that `where` selects, as in `each_page`, sorted by namespace and name. Raises
        Trouble for every error of the server, and Denied if the user lacks the permission."""
        objects = [raw async for page in self.each_page(resource, **where) for raw in page]
        return sorted(objects, key=lambda raw: [text(raw, "metadata", key) for key in ("namespace", "name")])

    async def lists(self, *resources: Resource, policies: str = "") -> list[list[JSON]]:
        """Return a list of all objects for each of these kinds, in this order, read concurrently and each sorted as by
        `all`. `policies` is a label selector for the policies among them. If reading fails, the first error is raised:
        a Trouble, or a Denied if the user lacks a permission."""
        labels = {kinds.POLICIES: policies}
        reads = [self.all(resource, label_selector=labels.get(resource, "")) for resource in resources]
        with one_error():
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(read) for read in reads]
        return [task.result() for task in tasks]

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        """Return one object. `namespace` is None for a kind without namespaces. Raises Denied if the user may not read
        it, and Trouble for every other error of the server. If no object has this name, Trouble is raised; the others
        in the namespace are listed first, so that the message can suggest similar names; if the user may not list them,
        the message says so."""
        with explained(self.where), suppress(NotFound):
            return await self.client.get(resource, name, namespace=namespace)
        try:
            names = [raw["metadata"]["name"] for raw in await self.all(resource, namespace=namespace)]
        except Denied as error:
            none = f"there is no {resource.plural}/{name} in {self.where}"
            raise Trouble(f"{none}; you are not allowed to list the existing ones") from error
        raise Trouble(no_such(resource, name, names, self.where))

    async def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace; empty if it cannot be read. Raises no KubeError."""
        try:
            return texts(part(await self.client.get(kinds.NAMESPACES, namespace), "metadata", "labels"))
        except KubeError:
            return {}


SPELLINGS: Mapping[Resource, str] = {
    kinds.NODES: "node nodes no gpunode gpunodes gpun",
    kinds.PODS: "pod pods po",
    kinds.POLICIES: "gpusharingpolicy gpusharingpolicies gsp",
    kinds.DEPLOYMENTS: "deployment deployments deploy",
    Resource("apps", "v1", "statefulsets", namespaced=True): "statefulset statefulsets sts",
    Resource("batch", "v1", "jobs", namespaced=True): "job jobs",
}
"""The kinds that a user may name, and how kubectl spells each. A group may follow, as in `deployment.apps`."""


def find_subject(word: str, namespace: str) -> tuple[Resource, str, str]:
    """Return the kind, name and namespace of the object that a word names: `gpu-07` a node, `KIND/NAME` an object of a
    kind in SPELLINGS, `NAMESPACE/NAME` a pod, and `KIND/NAMESPACE/NAME` an object in a namespace. A GPUNode counts as
    its node. The case of the kind does not matter, and an API group after it is ignored. If what precedes the slash is
    no such kind, it is the namespace of a pod. The namespace is `namespace` if none is named. Raises Trouble for any
    other word with a slash."""
    kind, slash, rest = word.partition("/")
    if not slash:
        return kinds.NODES, word, namespace
    spelling = kind.partition(".")[0].lower()
    resource = next((one for one, spellings in SPELLINGS.items() if spelling in spellings.split()), None)
    first, _, name = (word if resource is None else rest).rpartition("/")
    if "/" in first or not name or (first and resource is not None and not resource.namespaced):
        raise Trouble(f"{word} names nothing that can be explained: write NODE, KIND/NAME or NAMESPACE/NAME")
    return resource or kinds.PODS, name, first or namespace


def object_name(resource: Resource, name: str) -> str:
    """Return the name of an object as kubectl prints it with -o name, such as gpunode.gpusharing.dev/gpu-07."""
    plural = resource.plural
    kind = f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
    return f"{resource.full_name.replace(plural, kind)}/{name}"


def no_such(resource: Resource, name: str, names: list[str], where: str) -> str:
    """Return a sentence that says that no object of the kind has this name. It names at most three similar ones of the
    existing `names`, or the first five in alphabetical order if none is similar, or says that there are none at all."""
    kind = resource.plural
    if not names:
        return f"there is no {kind}/{name} in {where}, which has no {kind} at all"
    similar = nearest(name, names)
    listed = ", ".join(similar or sorted(names)[:5])
    return f"there is no {kind}/{name} in {where}; {'did you mean' if similar else 'there are'}: {listed}"


@asynccontextmanager
async def connected(kubeconfig: str, context: str) -> AsyncIterator[Session]:
    """Log in to one context, yield a Session for it, and close the connection afterwards. An empty `kubeconfig` means
    the default files, and an empty `context` the current one, as in kubectl. If neither the flag nor KUBECONFIG names a
    kubeconfig and the default file does not exist, a pod uses its service account and ignores `context`. Raises Trouble
    if that is impossible too, if there is no such context, if the kubeconfig cannot be read, or if the login fails."""
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
    """Return the kubeconfig files that exist: among those named by --kubeconfig or, without that flag, by KUBECONFIG
    (separated as in PATH), else ~/.kube/config. Raises Trouble if none exists."""
    home = Path(os.environ.get("HOME") or Path.home()) / ".kube" / "config"
    named = kubeconfig or os.environ.get("KUBECONFIG", "")
    files = [Path(part) for part in named.split(os.pathsep) if part] if named else [home]
    if present := [file for file in files if file.is_file()]:
        return present
    missing = ", ".join(map(str, files))
    raise Trouble(f"there is no kubeconfig at {missing}. Pass --kubeconfig FILE, or set KUBECONFIG")

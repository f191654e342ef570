"""The verbs of the Kubernetes API that we use, in our words. Objects are raw JSON: hot paths never build typed models.

Two clients reach a server. `HttpClient` of `kube/http.py`, over aiohttp, is a whole `KubeClient`, for the operator and
the plugin. `RestClient` of `agent/rest.py`, over the standard library, has what the agent needs (`NodeAPI`): on
every GPU node aiohttp would cost memory (docs/adr/0014). They share how a request is written and an answer understood
(`kube/wire.py`, `kube/answers.py`) and how they log in (`kube/login.py`). In tests and the demo, the SIMULATED
`FakeClient` of `hack/sim/fakecluster.py` takes their place. One suite says what we rely on, `tests/kube/contract.py`:
`FakeClient` and `HttpClient` keep all of it, `RestClient` the part for its verbs.

A `PassingClient` of `kube/passing.py` stands in front of any `KubeClient`; the operator's loop calls through the one of
`kube/fanout.py`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, Unpack

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object as its URL names it."""

    group: str
    """API group; empty for the core group."""
    version: str
    """Version of the group, for example v1."""
    plural: str
    """Name in URLs, in lower case."""
    namespaced: bool = False
    """Whether its objects are in namespaces."""
    bookmarks: bool = True
    """A quiet watch gets a bookmark each minute. Not for Events, for which the API server keeps no watch cache
    (kubernetes pkg/kubeapiserver/default_storage_factory_builder.go, DefaultWatchCacheSizes, v1.36.3)."""

    @property
    def api_version(self) -> str:
        """`v1`, or `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """URL path of the collection, one object, or a subresource of it."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


NODES = Resource("", "v1", "nodes")
PODS = Resource("", "v1", "pods", namespaced=True)
CONFIG_MAPS = Resource("", "v1", "configmaps", namespaced=True)
EVENTS = Resource("events.k8s.io", "v1", "events", namespaced=True, bookmarks=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
NAMESPACES = Resource("", "v1", "namespaces")
PDBS = Resource("policy", "v1", "poddisruptionbudgets", namespaced=True)
DAEMON_SETS = Resource("apps", "v1", "daemonsets", namespaced=True)
RESOURCE_CLAIMS = Resource("resource.k8s.io", "v1", "resourceclaims", namespaced=True)
POLICIES = Resource("gpusharing.dev", "v1alpha1", "gpusharingpolicies")
GPUNODES = Resource("gpusharing.dev", "v1alpha1", "gpunodes")
CUSTOM_RESOURCE_DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
CLUSTER_POLICIES = Resource("nvidia.com", "v1", "clusterpolicies")
GPU_CLUSTERS = Resource("nvidia.com", "v1alpha1", "gpuclusters")
MEDIK8S_MAINTENANCES = Resource("nodemaintenance.medik8s.io", "v1beta1", "nodemaintenances")
NVIDIA_MAINTENANCES = Resource("maintenance.nvidia.com", "v1alpha1", "nodemaintenances", namespaced=True)
VERSION = Resource("", "", "version")
"""The name under which calls of `/version` are counted; not a kind."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `resource_version` is the list's, the place to watch from."""

    items: list[JSON]
    """The objects, as the server sent them."""
    resource_version: str
    """The version of the whole list, the same on each page; a watch goes on from there. After a token for the rest of
    an expired list, it is that of the rest."""
    more: str = ""
    """The token for the next page; empty on the last one."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch. BOOKMARK carries only metadata.resourceVersion."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    """What happened. After DELETED, `object` is as it was last."""
    object: JSON
    """The object as it is since the event; of a BOOKMARK, only its resourceVersion."""


class Filters(TypedDict, total=False):
    """Which objects of a kind are meant. A key that is left out restricts nothing."""

    namespace: str | None
    """The namespace they are in; None: any."""
    label_selector: str
    """What their labels match, as `kubectl --selector` writes it; empty: any labels."""
    field_selector: str
    """What their fields match, as `kubectl --field-selector` writes it; empty: any fields."""


class Listing(Filters, total=False):
    """Which objects to list, and in what pages."""

    limit: int
    """The most objects of a page, 500 unless given; 0: all in one page."""
    after: str
    """The token of the page after which to go on; empty: from the beginning."""


class Followable(Protocol):
    """What a reflector needs from a client. Raises a KubeError and nothing else, as KubeClient does."""

    def pages(self, resource: Resource, **listing: Unpack[Listing]) -> AsyncIterator[Page]:
        """List page by page, all pages of one consistent resourceVersion."""
        ...

    def watch(
        self, resource: Resource, resource_version: str, **filters: Unpack[Filters]
    ) -> AsyncIterator[WatchEvent]:
        """Follow changes with bookmarks; ends quietly when the server closes, raises Expired on 410."""
        ...

    async def served(self, resource: Resource) -> bool:
        """Whether the server's discovery lists this kind. A 404 of a collection alone does not say that it is gone."""
        ...


class NodeAPI(Followable, Protocol):
    """What the agent needs from a client. Raises a KubeError and nothing else, as KubeClient does."""

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """JSON merge patch; returns the object as it is now. With metadata.resourceVersion in the body it is
        conditional (Conflict)."""
        ...


class KubeClient(NodeAPI, Protocol):
    """For anything that the server or the network does, every method raises a KubeError of `kube/errors.py` and
    nothing else."""

    async def version(self) -> str:
        """The API server's version as it reports it, such as `v1.36.3` or `v1.33.1-eks-1-33-5`."""
        ...

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> JSON:
        """Read one object, from etcd (no resourceVersion=0)."""
        ...

    async def create(self, resource: Resource, body: JSON, *, namespace: str | None = None) -> JSON:
        """Create one object; AlreadyExists when it exists."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str,
        grace: int | None = None,
    ) -> None:
        """Delete this very object (precondition uid). `grace` is in seconds; None: its own grace period."""
        ...

    async def log(self, namespace: str, name: str, lines: int) -> str:
        """The last lines of a pod's log; Unavailable if its kubelet cannot be asked."""
        ...

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Eviction subresource with a UID precondition and the pod's own grace period (docs/design/drain.md#rule-1).

        NotFound and Conflict mean that the pod is gone or replaced.
        """
        ...

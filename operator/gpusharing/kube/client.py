"""The Kubernetes API as we use it: an `ApiRequest`, and a `KubeClient` that sends it.

Objects are raw JSON: hot paths never build typed models. Two clients reach a server: `HttpClient` of `kube/http.py`,
over aiohttp, for the operator and the plugin, and `RestClient` of `agent/rest.py`, over the standard library, because
aiohttp would cost memory on every GPU node (docs/adr/0014-no-official-client-in-the-pod.md). In tests and the demo, the
SIMULATED `FakeClient` of `hack/sim/fakecluster.py` takes their place. One suite says what we rely on:
`tests/kube/contract.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack

from gpusharing.kube.errors import NotFound, Unavailable
from gpusharing.kube.raw import entries, part, text

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, as URLs of the API name it."""

    group: str
    version: str
    plural: str
    namespaced: bool = False
    bookmarks: bool = True
    """Whether a quiet watch gets a bookmark each minute. Not for Events, for which the API server keeps no watch cache
    (kubernetes pkg/kubeapiserver/default_storage_factory_builder.go, DefaultWatchCacheSizes, v1.36.3)."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """Return the kind as kubectl names it: `nodes`, or `gpunodes.gpusharing.dev`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of a collection (of all namespaces without one), an object or its subresource."""
        if not self.version:
            return f"/{self.plural}"
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


NODES = Resource("", "v1", "nodes")
PODS = Resource("", "v1", "pods", namespaced=True)
CONFIG_MAPS = Resource("", "v1", "configmaps", namespaced=True)
EVENTS = Resource("events.k8s.io", "v1", "events", namespaced=True, bookmarks=False)
CORE_EVENTS = Resource("", "v1", "events", namespaced=True, bookmarks=False)
"""The same Events with their older fields; the role `view` of Kubernetes lets tenants read them under this name only."""
LEASES = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
NAMESPACES = Resource("", "v1", "namespaces")
PDBS = Resource("policy", "v1", "poddisruptionbudgets", namespaced=True)
DEPLOYMENTS = Resource("apps", "v1", "deployments", namespaced=True)
DAEMON_SETS = Resource("apps", "v1", "daemonsets", namespaced=True)
REPLICA_SETS = Resource("apps", "v1", "replicasets", namespaced=True)
RESOURCE_SLICES = Resource("resource.k8s.io", "v1", "resourceslices")
DEVICE_CLASSES = Resource("resource.k8s.io", "v1", "deviceclasses")
RESOURCE_CLAIMS = Resource("resource.k8s.io", "v1", "resourceclaims", namespaced=True)
DEVICE_TAINT_RULES = Resource("resource.k8s.io", "v1beta2", "devicetaintrules")
POLICIES = Resource("gpusharing.dev", "v1alpha1", "gpusharingpolicies")
GPUNODES = Resource("gpusharing.dev", "v1alpha1", "gpunodes")
CLUSTER_POLICIES = Resource("nvidia.com", "v1", "clusterpolicies")
GPU_CLUSTERS = Resource("nvidia.com", "v1alpha1", "gpuclusters")
MEDIK8S_MAINTENANCES = Resource("nodemaintenance.medik8s.io", "v1beta1", "nodemaintenances")
NVIDIA_MAINTENANCES = Resource("maintenance.nvidia.com", "v1alpha1", "nodemaintenances", namespaced=True)
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews")
VERSION = Resource("", "", "version")
"""The page `/version` of the API server; not a kind."""
EVICTION, LOG, METRICS = "eviction", "log", "proxy/metrics"
"""Subresources of pods. The last one is the page with the metrics that a pod serves, through the API server."""
TEXTS = (LOG, METRICS)
"""Subresources whose answers are plain text."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, and the token for the next page."""

    items: list[Any]
    """The raw objects, or what was kept of each."""
    resource_version: str
    """The version of the list, the same on every page, from which a watch can start. If a list expired and was
    continued, the version is that of its remainder."""
    more: str = ""
    """The token for the next page; empty on the last one."""


class Kept(list[Any]):
    """What the `keep` of a request has returned for each object of a list, in place of the objects."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change that a watch reports, or a bookmark."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: JSON
    """The object after the event, or before its deletion; for a BOOKMARK, only a resourceVersion."""


class Filters(TypedDict, total=False):
    """Restricts a call to some objects of a kind, with selectors as kubectl takes them."""

    namespace: str | None
    label_selector: str
    field_selector: str


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request to the API server, in terms of RBAC: an eviction is `create` of `pods/eviction`."""

    verb: str
    """The verb of RBAC: get, list, watch, create, patch or delete."""
    resource: Resource
    """The kind of the object. One without a plural asks discovery for all kinds of that group and version."""
    subresource: str | None = None
    """A subresource such as status or eviction, or None for the object itself."""
    namespace: str | None = None
    """The namespace of the object or collection; None for all, and for kinds that are in none."""
    name: str = ""
    """Name of the object; empty for a collection, and for one to be created, whose name is in the body."""
    query: Mapping[str, str] = field(default_factory=dict)
    body: JSON | None = None
    """The object to create, a merge patch, or the options of a deletion."""
    before_send: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    """Called each time that a write is about to leave, after every wait for a slot or a connection. If it raises,
    nothing is sent, and the exception reaches the caller unchanged."""
    wish: object = field(default=None, compare=False, repr=False)
    """What people ask of the object, such as the generation of its policy. After an edit no write waits for `Sender`."""
    keep: Callable[[JSON], Any] = field(default=lambda raw: raw, compare=False, repr=False)
    """Returns what is kept of an object of a list. A client that reads a list piece by piece calls it for each object as
    soon as that has been read, so that the list is never held as a whole, and returns them as Kept."""

    @property
    def path(self) -> str:
        name = self.name if self.resource.plural else ""  # discovery reads one page for all kinds of a version
        return self.resource.path(self.namespace, name, self.subresource)

    @property
    def kind(self) -> str:
        """Return kind and subresource, such as `gpunodes/status`; for discovery, the group and version."""
        plural = self.resource.plural or self.resource.api_version
        return f"{plural}/{self.subresource}" if self.subresource else plural

    @property
    def what(self) -> str:
        """Return the request in words, for example `patch gpunodes/status in gpusharing.dev`."""
        return f"{self.verb} {self.kind}" + (f" in {self.resource.group}" if self.resource.group else "")

    @property
    def full_name(self) -> str:
        """Return the object's name, or the selectors of a list or watch, after its namespace if there is one."""
        name = self.name or text(self.body, "metadata", "name") or self.selectors
        return f"{self.namespace}/{name}" if self.namespace else name

    @property
    def selectors(self) -> str:
        return " ".join(self.query[key] for key in ("labelSelector", "fieldSelector") if key in self.query)


class KubeClient(ABC):
    """A client of the API server: a subclass writes `call` and `stream`. Methods raise KubeErrors and nothing else."""

    @abstractmethod
    async def call(self, request: ApiRequest) -> JSON:
        """Send one request, again only after a 401, and return the answer, a text that is not JSON as `{"log": text}`."""

    @abstractmethod
    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Send the request of a watch, and yield its events; see `watch`."""

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> JSON:
        """Return one object, read from etcd and not from the server's cache (no resourceVersion=0)."""
        return await self.call(ApiRequest("get", resource, namespace=namespace, name=name))

    async def list_page(
        self,
        resource: Resource,
        *,
        limit: int = 500,
        after: str = "",
        keep: Callable[[JSON], Any] = lambda raw: raw,
        **filters: Unpack[Filters],
    ) -> Page:
        """Read one page of a list, of `limit` objects (0 for all) after the token `after`, which may have Expired.

        `keep`, which must not raise, returns what the page has in place of each object.
        """
        query = _selectors(filters)
        if limit:
            query["limit"] = str(limit)
        if after:
            query["continue"] = after
        request = ApiRequest("list", resource, namespace=filters.get("namespace"), query=query, keep=keep)
        answer = await self.call(request)
        version, more = text(answer, "metadata", "resourceVersion"), text(answer, "metadata", "continue")
        items = answer.get("items") or []
        if "items" not in answer or not isinstance(items, list):
            raise Unavailable(f"cannot {request.what}, because the response is not a list")
        return Page(items if isinstance(items, Kept) else [keep(raw) for raw in items], version, more)

    def watch(
        self, resource: Resource, resource_version: str, **filters: Unpack[Filters]
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield changes and bookmarks until the server closes the watch; Expired on 410, Unavailable if it breaks."""
        query = {"resourceVersion": resource_version, **_selectors(filters)}
        return self.stream(ApiRequest("watch", resource, namespace=filters.get("namespace"), query=query))

    async def served(self, resource: Resource) -> bool:
        """Whether discovery lists this kind. A request for its collection may be answered with 404 all the same."""
        group = Resource(resource.group, resource.version, "")
        try:
            answer = await self.call(ApiRequest("get", group, name=resource.plural))
        except NotFound:
            return False
        return any(part(kind, "name") == resource.plural for kind in entries(answer, "resources"))

    async def version(self) -> str:
        """Return the server's version, such as `v1.33.1-eks-1-33-5`; all may read it (system:public-info-viewer)."""
        return text(await self.call(ApiRequest("get", VERSION)), "gitVersion")

    async def create(self, resource: Resource, body: JSON, *, namespace: str | None = None) -> JSON:
        where = namespace or text(body, "metadata", "namespace")
        return await self.call(ApiRequest("create", resource, namespace=where, body=body))

    async def patch(
        self, resource: Resource, name: str, body: JSON, *, namespace: str | None = None, subresource: str | None = None
    ) -> JSON:
        """Send a JSON merge patch, conditional if it has a resourceVersion, and return the object as it is now."""
        request = ApiRequest("patch", resource, subresource, namespace=namespace, name=name, body=body)
        return await self.call(request)

    async def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, uid: str, grace: int | None = None
    ) -> None:
        """Request the deletion of the object with this `uid`; `grace` is in seconds, None means the object's own.

        Raises NotFound if the object does not exist, and Conflict if its name belongs to another UID.
        """
        options: JSON = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        await self.call(ApiRequest("delete", resource, namespace=namespace, name=name, body=options))

    async def log(self, namespace: str, name: str, lines: int) -> str:
        """Return the end of a pod's log; Invalid if it has several containers, Unavailable without its kubelet."""
        query = {"tailLines": str(lines)}
        answer = await self.call(ApiRequest("get", PODS, LOG, namespace=namespace, name=name, query=query))
        return text(answer, LOG)

    async def scrape(self, namespace: str, name: str, port: int) -> str:
        """Return the page `/metrics` at this port of a pod, over plain HTTP; needs the right `get pods/proxy`."""
        place = f"{name}:{port}"
        answer = await self.call(ApiRequest("get", PODS, METRICS, namespace=namespace, name=place))
        return text(answer, METRICS)

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Request the eviction of a pod with this UID and its own grace period (docs/design/drain.md#rule-1).

        Raises NotFound or Conflict if the pod is gone or replaced, EvictionBlocked if a budget refuses for now, and
        EvictionFailed if the server will never evict the pod as it is.
        """
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        await self.call(ApiRequest("create", PODS, EVICTION, namespace=namespace, name=name, body=eviction))


class PassingClient(KubeClient):
    """Passes every request on to another client, unchanged; a subclass overrides `call` or `stream`."""

    def __init__(self, client: KubeClient) -> None:
        self.client = client

    async def call(self, request: ApiRequest) -> JSON:
        return await self.client.call(request)

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        return self.client.stream(request)


def _selectors(filters: Filters) -> dict[str, str]:
    selectors = {"labelSelector": filters.get("label_selector"), "fieldSelector": filters.get("field_selector")}
    return {key: value for key, value in selectors.items() if value}

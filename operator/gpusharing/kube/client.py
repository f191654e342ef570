"""The Kubernetes API as we use it: an `ApiRequest`, and a `KubeClient` that sends it with `call` or `stream`.

Objects are raw JSON: hot paths never build typed models. The verbs (get, patch, evict ...) are written once, as methods
of `KubeClient` over these two calls; a client writes only the calls.

Two clients reach a server: `HttpClient` of `kube/http.py`, over aiohttp, for the operator and the plugin, and
`RestClient` of `agent/rest.py`, over the standard library, because aiohttp would cost memory on every GPU node
(docs/adr/0014). They share how a request is written and an answer understood (`kube/wire.py`, `kube/answers.py`) and
how they log in (`kube/login.py`). In tests and the demo, the SIMULATED `FakeClient` of `hack/sim/fakecluster.py` takes
their place. One suite says what we rely on: `tests/kube/contract.py`.

A `PassingClient` stands in front of any `KubeClient`; the operator's loop calls through the one of `kube/fanout.py`.
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
    """API group; empty for the core group."""
    version: str
    """Version of the group, for example v1."""
    plural: str
    """Name in URLs, in lower case."""
    namespaced: bool = False
    """Whether its objects are in namespaces."""
    bookmarks: bool = True
    """Whether a quiet watch gets a bookmark each minute. Not for Events, for which the API server keeps no watch cache
    (kubernetes pkg/kubeapiserver/default_storage_factory_builder.go, DefaultWatchCacheSizes, v1.36.3)."""

    @property
    def api_version(self) -> str:
        """Return `v1` for the core group, else `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """Return the kind as kubectl names it: `nodes`, or `gpunodes.gpusharing.dev`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the URL path of a collection, of one object, or of the object's subresource. The namespace is ignored
        for a kind that is not namespaced; without one, the path of a namespaced kind stands for all namespaces. A name
        or subresource that is None or empty is left out. For a page without a version, such as `/version`, all
        arguments are ignored."""
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

    items: list[JSON]
    """The objects, as the server sent them."""
    resource_version: str
    """The version of the list, the same on every page, from which a watch can start. If the list expired and was
    continued with a token for its remainder, this is the version of the remainder."""
    more: str = ""
    """The token for the next page; empty on the last one."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch. BOOKMARK carries only metadata.resourceVersion."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    """What happened to the object."""
    object: JSON
    """The object after the event, or as it was last if it was deleted; for a BOOKMARK, only a resourceVersion."""


class Filters(TypedDict, total=False):
    """Restricts a call to some objects of a kind. A key that is left out does not restrict anything."""

    namespace: str | None
    """The namespace that the objects are in, or None for any."""
    label_selector: str
    """A selector for their labels, as `kubectl --selector` takes it; an empty one matches all."""
    field_selector: str
    """A selector for their fields, as `kubectl --field-selector` takes it; an empty one matches all."""


def _agree() -> None:
    pass


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
    """The namespace of the object or collection, or None for all namespaces and for kinds that are in none."""
    name: str = ""
    """The object's name, or the plural that discovery is asked about. Empty for a collection, and for an object to be
    created, whose name is in the body."""
    query: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the URL."""
    body: JSON | None = None
    """The object to create, a merge patch, or the options of a deletion."""
    before_send: Callable[[], None] = field(default=_agree, compare=False, repr=False)
    """Called each time that a write is about to leave, after every wait for a slot or a connection. If it raises,
    nothing is sent, and the exception reaches the caller unchanged. Reads do not call it."""

    @property
    def path(self) -> str:
        """Return the URL path, without the query. Discovery reads one page for all kinds of a version, so the path of
        a discovery request does not contain its name."""
        name = self.name if self.resource.plural else ""
        return self.resource.path(self.namespace, name, self.subresource)

    @property
    def kind(self) -> str:
        """Return the kind and subresource, for example `gpunodes/status`; `gpusharing.dev/v1alpha1` for discovery of
        the kinds of that version."""
        plural = self.resource.plural or self.resource.api_version
        return f"{plural}/{self.subresource}" if self.subresource else plural

    @property
    def what(self) -> str:
        """Return the request in words, for example `patch gpunodes/status in gpusharing.dev`."""
        return f"{self.verb} {self.kind}" + (f" in {self.resource.group}" if self.resource.group else "")

    @property
    def full_name(self) -> str:
        """Return `namespace/name` of the object, or only its name if the request has no namespace. The name of an
        object to be created is taken from the body. For a list or watch, its selectors take the place of the name;
        without selectors that part is empty."""
        name = self.name or text(self.body, "metadata", "name") or self.selectors
        return f"{self.namespace}/{name}" if self.namespace else name

    @property
    def selectors(self) -> str:
        """Return the label selector and the field selector of a list or watch, separated by a space; empty if it has
        neither."""
        return " ".join(self.query[key] for key in ("labelSelector", "fieldSelector") if key in self.query)


class KubeClient(ABC):
    """A client of the API server: `call` and `stream` send any request; the other methods send the requests that we
    need.

    However the server or the network fails, a method raises a KubeError of `kube/errors.py` and nothing else. A client
    that stands in front of another one may raise further errors, which its docstring names.
    """

    @abstractmethod
    async def call(self, request: ApiRequest) -> JSON:
        """Send one request, and return the object that the server answers with. A client may send a request once more
        after the server has refused its credentials, but repeats it for no other reason. A write calls the request's
        `before_send` each time immediately before it is sent.

        A text that is not JSON, such as the log of a pod, is returned under the name of its subresource: `{"log":
        text}`.
        """

    @abstractmethod
    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Send the request of a watch, and yield its events; see `watch`."""

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> JSON:
        """Return one object, read from etcd and not from the server's cache (no resourceVersion=0). Raises NotFound if
        it does not exist."""
        return await self.call(ApiRequest("get", resource, namespace=namespace, name=name))

    async def list_page(
        self, resource: Resource, *, limit: int = 500, after: str = "", **filters: Unpack[Filters]
    ) -> Page:
        """Read one page of a list; `kube/paging.py` reads whole lists. All pages of a list show the cluster at the same
        moment, unless an expired list is continued with `Expired.rest`.

        `filters` restrict the list to a namespace and to selectors; empty ones are not sent. `limit` is the most
        objects in the page, or 0 for all. `after` is the token of the previous page, or an empty string for the first
        page. Raises Expired if the server no longer keeps the state that the token refers to.
        """
        query = _selectors(filters)
        if limit:
            query["limit"] = str(limit)
        if after:
            query["continue"] = after
        request = ApiRequest("list", resource, namespace=filters.get("namespace"), query=query)
        answer = await self.call(request)
        version, more = text(answer, "metadata", "resourceVersion"), text(answer, "metadata", "continue")
        items = answer.get("items") or []
        if not isinstance(items, list):
            raise Unavailable(f"cannot {request.what}, because the response is not a list")
        return Page(items, version, more)

    def watch(
        self, resource: Resource, resource_version: str, **filters: Unpack[Filters]
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield the changes since `resource_version` to the objects that `filters` select, and bookmarks. Ends without
        an error when the server closes the watch. Raises Expired on 410, and Unavailable when the stream breaks or is
        silent for too long."""
        query = {"resourceVersion": resource_version, **_selectors(filters)}
        return self.stream(ApiRequest("watch", resource, namespace=filters.get("namespace"), query=query))

    async def served(self, resource: Resource) -> bool:
        """Whether the server's discovery lists this kind; False if it answers NotFound, because it does not know the
        group and version at all. Other errors are raised. A kind may be served although a request for its collection
        was answered with 404."""
        group = Resource(resource.group, resource.version, "")
        try:
            answer = await self.call(ApiRequest("get", group, name=resource.plural))
        except NotFound:
            return False
        return any(part(kind, "name") == resource.plural for kind in entries(answer, "resources"))

    async def version(self) -> str:
        """Return the API server's version as it reports it, such as `v1.36.3` or `v1.33.1-eks-1-33-5`; empty if its
        answer has none.

        Every authenticated user may read it (ClusterRole system:public-info-viewer).
        """
        return text(await self.call(ApiRequest("get", VERSION)), "gitVersion")

    async def create(self, resource: Resource, body: JSON, *, namespace: str | None = None) -> JSON:
        """Create one object and return it as the server stored it. Raises AlreadyExists if it exists. If `namespace` is
        None or empty, the namespace in the body is used, if it has one."""
        where = namespace or text(body, "metadata", "namespace")
        return await self.call(ApiRequest("create", resource, namespace=where, body=body))

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """Send a JSON merge patch of the object, or of its `subresource` such as `status`, and return the object as it
        is now. Raises NotFound if it does not exist. If the body contains metadata.resourceVersion, the patch is
        conditional and raises Conflict if the object has changed since that version."""
        request = ApiRequest("patch", resource, subresource, namespace=namespace, name=name, body=body)
        return await self.call(request)

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str,
        grace: int | None = None,
    ) -> None:
        """Request the deletion of the object with this `uid`; it may stay until its grace period and its finalizers
        have ended. Raises NotFound if it does not exist, and Conflict if the name belongs to an object with another
        UID. `grace` is in seconds; None uses the object's own grace period, and 0 deletes the object without one."""
        options: JSON = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        await self.call(ApiRequest("delete", resource, namespace=namespace, name=name, body=options))

    async def log(self, namespace: str, name: str, lines: int) -> str:
        """Return the last `lines` lines of a pod's log. No container is named, so the API server refuses a pod with
        several as Invalid. Raises Unavailable if its kubelet cannot be reached."""
        query = {"tailLines": str(lines)}
        answer = await self.call(ApiRequest("get", PODS, LOG, namespace=namespace, name=name, query=query))
        return text(answer, LOG)

    async def scrape(self, namespace: str, name: str, port: int) -> str:
        """Return the page `/metrics` that a pod serves on this port, as text; the API server fetches it over plain
        HTTP. The call needs the right `get pods/proxy`. Raises Unavailable if the API server cannot reach the pod."""
        place = f"{name}:{port}"
        answer = await self.call(ApiRequest("get", PODS, METRICS, namespace=namespace, name=place))
        return text(answer, METRICS)

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Request the eviction of a pod with a UID precondition and its own grace period (docs/design/drain.md#rule-1).
        The pod ends later. The answer is a Status without information (docs/design/drain.md#e1), so nothing is
        returned.

        Raises NotFound or Conflict if the pod is gone or replaced, EvictionBlocked if a PodDisruptionBudget refuses for
        now, EvictionFailed if the server will never evict the pod as it is (a 500, or a 429 with a Status, that names
        no time to wait), and other KubeErrors.
        """
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        await self.call(ApiRequest("create", PODS, EVICTION, namespace=namespace, name=name, body=eviction))


class PassingClient(KubeClient):
    """Passes every request on to another client, unchanged. A subclass overrides `call` or `stream`, and writes only
    its own part."""

    def __init__(self, client: KubeClient) -> None:
        """Pass requests on to `client`."""
        self.client = client

    async def call(self, request: ApiRequest) -> JSON:
        """Pass the request on, and return the answer."""
        return await self.client.call(request)

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Pass the request of a watch on, and return its events."""
        return self.client.stream(request)


def _selectors(filters: Filters) -> dict[str, str]:
    """Return the label selector and the field selector in `filters` as URL parameters, without empty ones. The
    namespace, which is part of the path, is not included."""
    selectors = {
        "labelSelector": filters.get("label_selector"),
        "fieldSelector": filters.get("field_selector"),
    }
    return {key: value for key, value in selectors.items() if value}

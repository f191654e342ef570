"""What a new cluster needs before the operator is installed: our CRDs, and stand-ins for those of the GPU Operator."""

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import yaml

from hack.cluster.api import Api, ApiError, Object
from hack.cluster.process import wait_until

MANIFESTS = Path(__file__).resolve().parent / "manifests"
CRDS = Path(__file__).resolve().parent.parent.parent / "crds"
GPU_OPERATOR_NAMESPACE = "gpu-operator"
OPERATOR_NAMESPACE = "gpusharing"
ESTABLISHED_SECONDS = 120.0
RETRY_SECONDS = 0.1
NOT_SERVED_YET = (404, 429)
"""The HTTP statuses with which the path of a new CRD answers at first; 429 means "storage is (re)initializing"."""


def install_all(api: Api) -> None:
    """Install the namespaces, the GPU Operator's stand-ins with a ClusterPolicy, and our CRDs. Raises TimeoutError if a
    CRD is not served within ESTABLISHED_SECONDS, and ApiError if the API server refuses an object."""
    install_gpu_operator(api)
    # The simulated agents may run before our chart is installed, which adopts this namespace if it exists.
    apply_documents(api, documents(MANIFESTS / "agent-namespace.yaml"))
    install_crds(api, CRDS)


def install_gpu_operator(api: Api, *, cluster_policy: bool = True) -> None:
    """Install the namespaces, the CRDs ClusterPolicy and GPUCluster and, unless `cluster_policy` is False, a
    ClusterPolicy whose status says ready. Raises TimeoutError if a CRD is not served within ESTABLISHED_SECONDS, and
    ApiError if the API server refuses an object.

    SIMULATED: no software of the GPU Operator runs; simulators play the node software.
    """
    apply_documents(api, documents(MANIFESTS / "namespaces.yaml"))
    install_crds(api, MANIFESTS / "gpu-operator-crds.yaml")
    if cluster_policy:
        apply_documents(api, documents(MANIFESTS / "cluster-policy.yaml"))


def install_crds(api: Api, source: Path) -> list[str]:
    """Create or update the CRDs in a file or folder, wait until they are served, and return their names. Other objects
    there are ignored. Raises TimeoutError if one is not served within ESTABLISHED_SECONDS, ApiError if the API server
    refuses one, FileNotFoundError if `source` does not exist, and YAMLError for a file that is not YAML."""
    crds = [document for document in documents(source) if document["kind"] == "CustomResourceDefinition"]
    apply_documents(api, crds)
    installed = [str(crd["metadata"]["name"]) for crd in crds]
    for name in installed:
        wait_until(partial(_established, api, name), ESTABLISHED_SECONDS, f"CRD {name} to be served")
    return installed


def documents(source: Path) -> list[Object]:
    """Return all YAML documents of a file, or of a folder's .yaml files sorted by name. Empty documents are left out.
    Raises FileNotFoundError if there is no such file or folder, and YAMLError for a file that is not YAML."""
    files = sorted(source.glob("*.yaml")) if source.is_dir() else [source]
    loaded = (document for file in files for document in yaml.safe_load_all(file.read_text()))
    return [document for document in loaded if document]


def apply_documents(api: Api, manifests: Iterable[Object]) -> None:
    """Create or change each object by server-side apply, in the order given. If the object has a `status`, that is
    written to the status subresource.

    The kind of an object may not be served yet, because its CRD is new. Therefore a LookupError of `object_path` and
    answers 404 and 429 are retried for ESTABLISHED_SECONDS for each object, and then raised; so is a 404 for a missing
    namespace. Other ApiErrors are raised at once.
    """
    for manifest in manifests:
        deadline = time.monotonic() + ESTABLISHED_SECONDS
        while True:
            try:
                _apply(api, manifest)
                break
            except (LookupError, ApiError) as error:
                if isinstance(error, ApiError) and error.status not in NOT_SERVED_YET:
                    raise
                if time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)


def _apply(api: Api, manifest: Object) -> None:
    """Create or change an object by server-side apply, and merge its `status`, if it has one, into the status
    subresource. Raises LookupError if the server does not serve the object's kind, and ApiError if it refuses a
    request."""
    path = object_path(api, manifest)
    api.apply(path, {key: value for key, value in manifest.items() if key != "status"})
    if "status" in manifest:
        api.merge_patch(f"{path}/status", {"status": manifest["status"]})


def object_path(api: Api, manifest: Object) -> str:
    """Return the URL path of an object; a namespaced object that names no namespace is in `default`. The resource name
    of its kind comes from discovery. Raises LookupError if the server does not serve this kind, and ApiError if
    discovery fails, with status 404 if the server does not serve the API group."""
    version, kind = str(manifest["apiVersion"]), str(manifest["kind"])
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    served = api.get(root)["resources"] or ()  # null while the only CRD of the group is being set up
    matches = [row for row in served if row["kind"] == kind and "/" not in row["name"]]
    if not matches:
        raise LookupError(f"the API server does not serve {kind} in {version}")
    metadata = manifest["metadata"]
    space = f"/namespaces/{metadata.get('namespace', 'default')}" if matches[0]["namespaced"] else ""
    return f"{root}{space}/{matches[0]['name']}/{metadata['name']}"


def _established(api: Api, name: str) -> bool:
    """Whether a CRD has the condition Established and the path of its resource answers, which happens a moment later.
    Raises ApiError if the CRD does not exist, or the path answers with a status not in NOT_SERVED_YET."""
    crd = api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    # A CRD that was created a moment ago has `conditions: null`.
    conditions = crd.get("status", {}).get("conditions") or []
    if not any(row["type"] == "Established" and row["status"] == "True" for row in conditions):
        return False
    spec = crd["spec"]
    try:
        # The condition becomes True a moment before the new path answers.
        api.get(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}", limit="1")
    except ApiError as error:
        if error.status not in NOT_SERVED_YET:
            raise
        return False
    return True

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
ESTABLISHED_SECONDS = 120.0
RETRY_SECONDS = 0.1
NOT_SERVED_YET = (404, 429)
"""The HTTP statuses with which the path of a new CRD answers at first; 429 means "storage is (re)initializing"."""


def install_all(api: Api) -> None:
    """Install the namespaces, the GPU Operator's stand-ins with a ClusterPolicy, and our CRDs."""
    install_gpu_operator(api)
    # The simulated agents may run before our chart is installed, which adopts this namespace if it exists.
    apply_documents(api, documents(MANIFESTS / "agent-namespace.yaml"))
    install_crds(api, CRDS)


def install_gpu_operator(api: Api, *, cluster_policy: bool = True) -> None:
    """Install the namespaces, the GPU Operator's CRDs and, by default, a ClusterPolicy that is ready."""
    apply_documents(api, documents(MANIFESTS / "namespaces.yaml"))
    install_crds(api, MANIFESTS / "gpu-operator-crds.yaml")
    if cluster_policy:
        apply_documents(api, documents(MANIFESTS / "cluster-policy.yaml"))


def install_crds(api: Api, source: Path) -> list[str]:
    """Create or update the CRDs in a file or folder, wait until they are served, and return their names."""
    crds = [document for document in documents(source) if document["kind"] == "CustomResourceDefinition"]
    apply_documents(api, crds)
    installed = [str(crd["metadata"]["name"]) for crd in crds]
    for name in installed:
        wait_until(partial(_established, api, name), ESTABLISHED_SECONDS, f"CRD {name} to be served")
    return installed


def documents(source: Path) -> list[Object]:
    """Return all YAML documents of a file, or of a folder's .yaml files sorted by name."""
    files = sorted(source.glob("*.yaml")) if source.is_dir() else [source]
    loaded = (document for file in files for document in yaml.safe_load_all(file.read_text()))
    return [document for document in loaded if document]


def apply_documents(api: Api, manifests: Iterable[Object]) -> None:
    """Apply the objects in order. A kind may not be served yet, so 404 and 429 are retried for ESTABLISHED_SECONDS."""
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
    path = object_path(api, manifest)
    api.apply(path, {key: value for key, value in manifest.items() if key != "status"})
    if "status" in manifest:
        api.merge_patch(f"{path}/status", {"status": manifest["status"]})


def object_path(api: Api, manifest: Object) -> str:
    """Return the URL path of an object; a namespaced object that names no namespace is in `default`."""
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
    """Whether a CRD is Established and its path answers, which happens a moment later."""
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

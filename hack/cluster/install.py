"""What a fresh cluster needs before the operator: our CRDs, and stand-ins for the GPU Operator's."""

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
"""Answers of a kind whose CRD is new; 429 says "storage is (re)initializing"."""


def install_all(api: Api) -> None:
    """Namespaces, GPU-operator stand-ins, ClusterPolicy, and our CRDs as far as they are generated."""
    install_gpu_operator(api)
    # Our chart creates this one, and adopts it where it is there: the simulated agents may come before the chart.
    apply_documents(api, documents(MANIFESTS / "agent-namespace.yaml"))
    install_crds(api, CRDS)


def install_gpu_operator(api: Api, *, cluster_policy: bool = True) -> None:
    """The CRDs ClusterPolicy and GPUCluster, the namespaces, and (unless told) a ready ClusterPolicy.

    SIMULATED: no software of the GPU Operator runs; the node software is played by the simulators.
    """
    apply_documents(api, documents(MANIFESTS / "namespaces.yaml"))
    install_crds(api, MANIFESTS / "gpu-operator-crds.yaml")
    if cluster_policy:
        apply_documents(api, documents(MANIFESTS / "cluster-policy.yaml"))


def install_crds(api: Api, source: Path) -> list[str]:
    """Apply the CRDs in a file or folder, wait until they are served, and return their names."""
    crds = [document for document in documents(source) if document["kind"] == "CustomResourceDefinition"]
    apply_documents(api, crds)
    installed = [str(crd["metadata"]["name"]) for crd in crds]
    for name in installed:
        wait_until(partial(_established, api, name), ESTABLISHED_SECONDS, f"CRD {name} to be served")
    return installed


def documents(source: Path) -> list[Object]:
    """All YAML documents of a file, or of the .yaml files of a folder in the order of their names."""
    files = sorted(source.glob("*.yaml")) if source.is_dir() else [source]
    loaded = (document for file in files for document in yaml.safe_load_all(file.read_text()))
    return [document for document in loaded if document]


def apply_documents(api: Api, manifests: Iterable[Object]) -> None:
    """Server-side apply each object; a `status` goes to the status subresource, where there is one.

    A kind whose CRD was created a moment ago is tried again: it is not discovered yet, or answers 404 or 429.
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
    path = object_path(api, manifest)
    api.apply(path, {key: value for key, value in manifest.items() if key != "status"})
    if "status" in manifest:
        api.merge_patch(f"{path}/status", {"status": manifest["status"]})


def object_path(api: Api, manifest: Object) -> str:
    """The URL path of an object, found through discovery.

    Raises:
        LookupError: the server does not serve this kind.
    """
    version, kind = str(manifest["apiVersion"]), str(manifest["kind"])
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    served = api.get(root)["resources"] or ()  # null while the group's only CRD is being set up
    found = [one for one in served if one["kind"] == kind and "/" not in one["name"]]
    if not found:
        raise LookupError(f"the API server does not serve {kind} in {version}")
    metadata = manifest["metadata"]
    space = f"/namespaces/{metadata.get('namespace', 'default')}" if found[0]["namespaced"] else ""
    return f"{root}{space}/{found[0]['name']}/{metadata['name']}"


def _established(api: Api, name: str) -> bool:
    crd = api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    # A CRD that was created a moment ago says `conditions: null`.
    conditions = crd.get("status", {}).get("conditions") or []
    if not any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
        return False
    spec = crd["spec"]
    try:
        # Established comes a moment before the new path answers.
        api.get(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}", limit="1")
    except ApiError as error:
        if error.status not in NOT_SERVED_YET:
            raise
        return False
    return True

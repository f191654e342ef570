"""`python -m hack.olm REPOSITORY [DIGEST] --source URL` writes a bundle for OLM, and the file of what OLM cannot create.

OLM carries no DaemonSet, Namespace or admission policy (operator-registry, pkg/lib/bundle/supported_resources.go). The
file also has all rights of our pods, so the operator never has rights that no admission policy narrows.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hack.cache import UnavailableError
from hack.cluster import toolchain
from hack.launch import CHART, NAMESPACE, ROOT
from hack.manifests import RenderError, install_manifest, parser
from hack.release.chart import ICON, links
from hack.release.package import UNKNOWN_SOURCE, version

TARGET = ROOT / "build" / "olm"
OPENSHIFT = CHART / "platforms" / "openshift.yaml"
"""The chart's values for OpenShift, the platform that comes with OLM."""
BUNDLED = frozenset({"CustomResourceDefinition", "ClusterRole"})
"""The kinds of the bundle's objects beside the ClusterServiceVersion. A ClusterRole of our pods is not among them."""
DEPRECATED = "validator is deprecated"
"""In a warning that operator-verify prints about itself, whatever the bundle has."""
LABEL = "operators.operatorframework.io.bundle"
METADATA: Mapping[str, str] = {
    f"{LABEL}.mediatype.v1": "registry+v1",
    f"{LABEL}.manifests.v1": "manifests/",
    f"{LABEL}.metadata.v1": "metadata/",
    f"{LABEL}.package.v1": CHART.name,
    f"{LABEL}.channels.v1": "alpha",
    f"{LABEL}.channel.default.v1": "alpha",
}
"""The annotations of a bundle, which are also the labels of its image."""
DESCRIPTION = """\
{about}

**Apply a file beside this bundle.** OLM cannot create everything that the operator needs. The file holds the rest, and
is generated from the same chart: {kinds}. Apply it before you subscribe, and its new version before you approve an
upgrade (`installPlanApproval: Manual`):

    kubectl apply --server-side -f {beside}

Without the file the operator's service account is missing, and no pod starts. Subscribe in the namespace
`{namespace}`, which the file creates, with an OperatorGroup without target namespaces.

The bundle is for OpenShift 4.17 and newer, with NVIDIA's operator in the namespace `nvidia-gpu-operator`. Before you
uninstall, wait until no node is in the middle of a change (`kubectl get gpunodes`).
"""
EXAMPLE_GPUNODE = {
    "apiVersion": "gpusharing.dev/v1alpha1",
    "kind": "GPUNode",
    "metadata": {"name": "gpu-1"},
    "spec": {"request": {"id": "1", "quiet": False}},
}
"""The operator creates the GPUNodes. OLM's validator expects an example of each kind; consoles hide this one."""

SPEC: Mapping[str, object] = {
    "displayName": "GPU sharing operator",
    "maturity": "alpha",
    "provider": {"name": "The authors of gpu-sharing-operator"},
    "installModes": [
        {"type": mode, "supported": mode == "AllNamespaces"}
        for mode in ("OwnNamespace", "SingleNamespace", "MultiNamespace", "AllNamespaces")
    ],
}
"""The fields of a ClusterServiceVersion's spec that are the same in each version."""
ANNOTATIONS: Mapping[str, str] = {
    "capabilities": "Basic Install",  # an upgrade also needs the new file
    "categories": "AI/Machine Learning",
    "operatorframework.io/suggested-namespace": NAMESPACE,
    "operators.operatorframework.io/internal-objects": '["gpunodes.gpusharing.dev"]',
}
Object = dict[str, Any]


class BundleError(Exception):
    """OLM's validator refuses the bundle; the message is what it printed."""


def main(arguments: list[str] | None = None) -> int:
    replaced = "its folder `bundle` is replaced, and the file beside it of the same version"
    command = parser("hack.olm", __doc__, TARGET, f"default: build/olm; {replaced}")
    command.add_argument("--source", default=UNKNOWN_SOURCE, help="address of the repository, for the links")
    options = command.parse_args(arguments)
    try:
        beside = build(options.repository, options.digest, options.source, options.target)
    except (RenderError, BundleError, UnavailableError) as error:
        print(error, file=sys.stderr)
        return 1
    print(options.target / "bundle", beside, sep="\n")
    return 0


def build(repository: str, digest: str, source: str, target: Path) -> Path:
    """Write the bundle, and a file of the objects that OLM does not install, with the chart's values for OpenShift."""
    documents = yaml.safe_load_all(install_manifest(repository, digest, "-f", str(OPENSHIFT)))
    deployment, bundled, others = divide(document for document in documents if document)
    shutil.rmtree(target / "bundle", ignore_errors=True)
    beside = target / f"{CHART.name}-{version()}-olm-beside.yaml"
    url = f"{source}/releases/download/v{version()}/{beside.name}"
    csv = cluster_service_version(deployment, bundled, others, source, url)
    files = {f"manifests/{one['metadata']['name']}.{one['kind'].lower()}.yaml": one for one in (csv, *bundled)}
    files["metadata/annotations.yaml"] = {"annotations": dict(METADATA)}
    for name, content in files.items():
        path = target / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    copies = [f"COPY {folder} /{folder}/" for folder in ("manifests", "metadata")]
    lines = ["FROM scratch", *(f"LABEL {key}={value}" for key, value in METADATA.items()), *copies]
    (target / "bundle" / "bundle.Dockerfile").write_text("\n".join(lines) + "\n")
    beside.write_text(yaml.safe_dump_all(others, sort_keys=False))
    validate(target / "bundle")
    return beside


def divide(objects: Iterable[Object]) -> tuple[Object, list[Object], list[Object]]:
    """Return the operator's Deployment, the other objects of the bundle, and all that are left."""
    everything = list(objects)
    roles = [one["roleRef"] for one in everything if "roleRef" in one]
    granted = {role["name"] for role in roles if role["kind"] == "ClusterRole"}
    (deployment,) = (one for one in everything if one["kind"] == "Deployment")
    bundled = [
        one
        for one in everything
        if one["kind"] in BUNDLED and not (one["kind"] == "ClusterRole" and one["metadata"]["name"] in granted)
    ]
    return deployment, bundled, [one for one in everything if one is not deployment and one not in bundled]


def cluster_service_version(
    deployment: Object, bundled: Iterable[Object], others: Iterable[Object], source: str, beside: str
) -> Object:
    """Return the ClusterServiceVersion, which names the kinds in `others` and the URL of their file."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    notes = {key.partition("/")[2]: yaml.safe_load(text) for key, text in chart["annotations"].items()}
    described = {one["name"]: one for one in notes["crds"]}
    crds = [one["metadata"]["name"] for one in bundled if one["kind"] == "CustomResourceDefinition"]
    about, image = chart["description"], deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    kinds = ", ".join(sorted({one["kind"] for one in others}))
    icon = base64.b64encode((ROOT / ICON).read_bytes()).decode()
    named = {"name": deployment["metadata"]["name"], "label": deployment["metadata"]["labels"]}
    spec = {
        **SPEC,
        "description": DESCRIPTION.format(about=about, kinds=kinds, beside=beside, namespace=NAMESPACE),
        "version": version(),
        "minKubeVersion": re.sub(r"^>=|-0$", "", chart["kubeVersion"]),
        "keywords": chart["keywords"],
        "links": links(source),
        "icon": [{"base64data": icon, "mediatype": "image/svg+xml"}],
        "customresourcedefinitions": {"owned": [described[name] for name in crds]},
        "install": {"strategy": "deployment", "spec": {"deployments": [{**named, "spec": deployment["spec"]}]}},
        "relatedImages": [{"name": "operator", "image": image}],
    }
    annotations = {
        **ANNOTATIONS,
        "alm-examples": json.dumps([*notes["crdsExamples"], EXAMPLE_GPUNODE]),
        "containerImage": image,
        "description": about,
        "repository": source,
    }
    name = {"name": f"{CHART.name}.v{version()}", "namespace": NAMESPACE}
    kind = {"apiVersion": "operators.coreos.com/v1alpha1", "kind": "ClusterServiceVersion"}
    return {**kind, "metadata": {**name, "annotations": annotations}, "spec": spec}


def validate(bundle: Path) -> None:
    """Check a bundle with OLM's own validator, and with its rules for OperatorHub."""
    command = [str(toolchain.program("olmtools")), "manifests", "--operatorhub_validate", "--object_validate"]
    done = subprocess.run([*command, str(bundle)], capture_output=True, text=True, check=False)
    # Its exit status says nothing: it is 0 after errors, too.
    problems = [line for line in (done.stdout + done.stderr).splitlines() if line and DEPRECATED not in line]
    if problems or done.returncode:
        remedy = "Correct hack/olm.py or the chart, and write the bundle again."
        raise BundleError("\n".join([f"operator-verify refuses {bundle}:", *problems, remedy]))


if __name__ == "__main__":
    sys.exit(main())

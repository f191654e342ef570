"""A real API server that knows our CRDs."""

import pytest
import yaml
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.generate import ROOT


@pytest.fixture(scope="module")
def server(control_plane: ControlPlane) -> Api:
    """The admin's view of an API server with the CRDs as committed."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        manifest = yaml.safe_load(path.read_text())
        name = manifest["metadata"]["name"]
        control_plane.api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", manifest)
        control_plane.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=120s")
    return control_plane.api

"""What older minors of Kubernetes lack, for the tests that `make test-kubernetes` plays on one."""

import pytest
from hack.cluster.toolchain import control_plane_minor

DEVICE_CLASSES = 34
"""The first minor that serves resource.k8s.io/v1."""
EXTENDED_NAMES = 36
"""The first minor, of those that were tried, whose DeviceClasses keep extendedResourceName without being asked to."""
MUTATING_IF_ASKED = 34
"""The first minor with MutatingAdmissionPolicy in v1beta1, which a feature gate and a runtime-config switch on."""
MUTATING = 36
"""The first minor that serves MutatingAdmissionPolicy in v1, without being asked to."""
DEVICE_TAINT_RULES = 36
"""The first minor with the feature gate DRADeviceTaintRules and DeviceTaintRule in v1beta2."""


def lacks(since: int) -> bool:
    """Whether the control plane of the tests is older than Kubernetes 1.`since`."""
    return control_plane_minor() < since


def need(since: int, what: str) -> None:
    """Skip the test if the control plane is older than Kubernetes 1.`since`, which is the first to serve `what`."""
    if lacks(since):
        pytest.skip(f"Kubernetes before 1.{since} has no {what}")

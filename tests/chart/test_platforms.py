"""The values files of platforms/: what each changes, rendered. None was tried on its platform."""

from pathlib import Path
from typing import Any

import pytest
from tests.chart.charts import CHART, PLATFORMS, Helm, Manifest, find


def rendered(helm: Helm, platform: str) -> list[Manifest]:
    return helm.template("-f", str(CHART / "platforms" / f"{platform}.yaml"))


def agent(objects: list[Manifest]) -> dict[str, Any]:
    template: dict[str, Any] = find(objects, "DaemonSet", "gpusharing-agent")["spec"]["template"]
    return template


@pytest.mark.parametrize("path", PLATFORMS, ids=lambda path: path.stem)
def test_helm_lint_finds_nothing_and_the_file_says_what_differs(helm: Helm, path: Path) -> None:
    helm.must("lint", "--strict", str(CHART), "-f", str(path), "--set", "image.repository=x")
    assert path.read_text().startswith("# ")


def test_on_openshift_the_agent_may_use_its_scc_and_the_operator_needs_none(helm: Helm) -> None:
    objects = rendered(helm, "openshift")
    scc = find(objects, "SecurityContextConstraints", "gpusharing-agent")
    pod = agent(objects)["spec"]
    assert scc["allowHostPID"] is pod["hostPID"] is True
    assert scc["allowPrivilegedContainer"] is pod["containers"][0]["securityContext"]["privileged"] is True
    used = {key for volume in pod["volumes"] for key in volume if key != "name"}
    assert used <= set(scc["volumes"])
    assert pod["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    role, binding = (find(objects, kind, "gpusharing-agent-scc") for kind in ("Role", "RoleBinding"))
    assert role["rules"][0]["resourceNames"] == [scc["metadata"]["name"]]
    assert role["rules"][0]["verbs"] == ["use"]
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
    operator = find(objects, "Deployment", "gpusharing-operator")["spec"]["template"]["spec"]
    assert operator["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, (
        "the user is of the namespace's range"
    )


def test_without_openshift_there_is_no_scc(helm: Helm) -> None:
    for platform in {path.stem for path in PLATFORMS} - {"openshift"}:
        assert "SecurityContextConstraints" not in {one["kind"] for one in rendered(helm, platform)}


def test_on_gke_quotas_let_the_critical_pods_in(helm: Helm) -> None:
    quotas = [one for one in rendered(helm, "gke") if one["kind"] == "ResourceQuota"]
    assert {one["metadata"]["namespace"] for one in quotas} == {"gpusharing", "gpusharing-agent"}


def test_with_nri_the_annotation_names_the_agents_container(helm: Helm) -> None:
    template = agent(rendered(helm, "nri"))
    (container,) = template["spec"]["containers"]
    key = f"nvidia.cdi.k8s.io/container.{container['name']}"
    assert template["metadata"]["annotations"][key] == "management.nvidia.com/gpu=all"
    assert "runtimeClassName" not in template["spec"]


@pytest.mark.parametrize(
    ("platform", "root"), [("driver-container", "/run/nvidia/driver/"), ("host-driver", "/usr/lib/")]
)
def test_without_a_runtime_class_one_file_of_the_driver_is_mounted(helm: Helm, platform: str, root: str) -> None:
    pod = agent(rendered(helm, platform))["spec"]
    assert "runtimeClassName" not in pod
    (volume,) = [one for one in pod["volumes"] if one["name"] == "driver"]
    assert volume["hostPath"]["path"].startswith(root)
    assert volume["hostPath"]["type"] == "File", "a folder would bring another libc"
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "driver"]
    assert mount["mountPath"].endswith("/libnvidia-ml.so.1")
    assert mount["readOnly"] is True


def test_without_the_gpu_operators_label_other_labels_find_the_nodes(helm: Helm) -> None:
    pod = agent(rendered(helm, "no-labels"))["spec"]
    assert "nodeSelector" not in pod
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert len(required["nodeSelectorTerms"]) == 3


def test_with_the_device_plugin_chart_alone_the_label_of_the_gpu_operator_is_not_asked_for(helm: Helm) -> None:
    objects = rendered(helm, "device-plugin-chart")
    assert agent(objects)["spec"]["nodeSelector"] == {"feature.node.kubernetes.io/pci-10de.present": "true"}
    operator = find(objects, "Deployment", "gpusharing-operator")["spec"]["template"]["spec"]
    environ = {one["name"]: one.get("value") for one in operator["containers"][0]["env"]}
    assert environ["GPUSHARING_GPU_OPERATOR_NAMESPACE"] == "nvidia-device-plugin"


def test_on_aks_the_usual_taint_is_tolerated_besides_nvidias(helm: Helm) -> None:
    assert [one["key"] for one in agent(rendered(helm, "aks"))["spec"]["tolerations"]] == [
        "gpusharing.dev/unproven",
        "nvidia.com/gpu",
        "sku",
    ]

"""The SIMULATED kubelet around NVIDIA's real programs (hack/nvidia/kubelet.py) gives each device to one pod."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hack.nvidia import kubelet

HALF = "nvidia.com/mig-3g.40gb"


class Api:
    def __init__(self) -> None:
        self.patches: dict[str, dict[str, Any]] = {}

    def merge_patch(self, path: str, patch: dict[str, Any]) -> None:
        self.patches[path] = patch


def pod(name: str, count: int) -> dict[str, Any]:
    container = {"name": "main", "resources": {"limits": {HALF: str(count)}}}
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}"},
        "spec": {"containers": [container]},
        "status": {"phase": "Running"},
    }


def test_a_pod_for_which_too_few_devices_are_free_is_refused_and_holds_none(tmp_path: Path) -> None:
    instances = [{"id": number, "compute": [{"id": 0, "uuid": f"MIG-{number}"}]} for number in range(2)]
    shown = {"gpus": [{"index": 0, "uuid": "GPU-0", "instances": instances}]}
    simulator = SimpleNamespace(show=lambda: shown, add_process=lambda *_, **__: None)
    sandbox: Any = SimpleNamespace(simulator=simulator, folder=tmp_path, proc=None)
    api: Any = Api()
    manager = kubelet.DeviceManager(api, "gpu-1", sandbox)
    (tmp_path / "kubelet.log").write_text(json.dumps({"resource": HALF, "healthy": ["MIG-0", "MIG-1"]}) + "\n")
    served = pod("served", 1)  # by a DRA driver
    served["status"]["extendedResourceClaimStatus"] = {"requestMappings": [{"resourceName": HALF}]}
    manager.look([pod("first", 1), pod("large", 2), pod("second", 1), pod("third", 1), served])
    held = {row["name"]: row["ids"] for row in json.loads((tmp_path / "podresources.json").read_text())}
    assert {name: ids for name, ids in held.items() if ids} == {"first": ["MIG-0"], "second": ["MIG-1"]}
    refused = {path.split("/")[-2]: patch["status"] for path, patch in api.patches.items() if "/pods/" in path}
    assert {name: status["reason"] for name, status in refused.items()} == {
        "large": "UnexpectedAdmissionError",
        "third": "UnexpectedAdmissionError",
    }
    assert f"unavailable for {HALF}. Requested: 2, Available: 1" in refused["large"]["message"]

"""What a change of the installation takes from nodes: NVIDIA's own programs against `find_effects`.
Each play begins with one ClusterPolicy and some nodes, makes one change, and compares what each node lost with what was predicted from the state before, with a report of the node's GPUs and without one. SIMULATED: the GPUs, the kubelets, and of the GPU Operator which DaemonSets a field of ClusterPolicy concerns (its controllers/object_controls.go), and the label all-disabled on nodes without one (nodelabeling_controller.go). Not played, because only the GPU Operator's controllers do it: a version of an operand, `driver.enabled` and `toolkit.enabled`, the deploy labels that it writes or removes, the workload label and GPUCluster. Neither is the file that mig-manager generates where `migManager.config.name` is empty: these nodes mount our ConfigMap then."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.nodes import wait_nodes_ready
from hack.cluster.process import text_of, wait_until
from hack.nvidia import operands
from hack.nvidia.node import RealNode
from tests.build import make_gpu, make_gpunode
from tests.nvidia.conftest import build_control_plane
from tests.nvidia.programs import entry_for, set_layouts
from tests.seen import Seen, make_map

from gpusharing.api.names import LABEL_GPU_PRODUCT, LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.kube.convert import cluster_policy_view, node_view
from gpusharing.planning.gpus.geometry import Layout, normalize
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, PLUGIN_SWITCH
from gpusharing.planning.snapshot.views import GPUNodeView
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    MIG_MANAGER,
    MIG_POINTER,
    PLUGIN,
    PLUGIN_POINTER,
    RESTART_PLUGIN,
    START_MIG_MANAGER,
    UNPLUG,
)
from gpusharing.planning.stack.installationviews import Installation, Place
from gpusharing.planning.vocabulary.commands import Change, Effect, Loss
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.migfile import MIG_KEY
from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY, PluginConfig, Sharing, render
from gpusharing.planning.wanted.verify import EXCLUSIVE

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

MODEL = "h100-80gb"
SECONDS, HOLD_SECONDS = 150.0, 4.0
NAMESPACE = f"/api/v1/namespaces/{install.GPU_OPERATOR_NAMESPACE}"
CLUSTER_POLICIES, NODES = "/apis/nvidia.com/v1/clusterpolicies", "/api/v1/nodes"
CLUSTER_POLICY = f"{CLUSTER_POLICIES}/cluster-policy"
WITH_PLUGIN = (operands.PLUGIN, operands.GFD, operands.MPS)
CONCERNED = {"devicePlugin": WITH_PLUGIN, "mig": WITH_PLUGIN, "migManager": (operands.MIG_MANAGER,)}
"""The DaemonSets that the GPU Operator makes anew, by the block of ClusterPolicy."""
RESTARTED = {START_MIG_MANAGER.restarts: (operands.MIG_MANAGER,), RESTART_PLUGIN.restarts: WITH_PLUGIN}

SEVENTHS: Layout = (("1g.10gb", 7),)
HALVES: Layout = (("3g.40gb", 2),)
THREE: Layout = (("1g.10gb", 3),)
GPU, SEVENTH, HALF = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
PLACE = Place()
PLUGIN_MAP, MIG_MAP, THEIR_PLUGIN_MAP, THEIR_MIG_MAP = PLACE.plugin_config_map, PLACE.mig_config_map, "plugins", "parts"


def sliced(replicas: int) -> str:
    return render(PluginConfig("none", Sharing(((GPU, replicas),))))


ENTRIES = {
    NEUTRAL_KEY: NEUTRAL,
    "mixed": render(PluginConfig("mixed")),
    "single": render(PluginConfig("single")),
    "sliced": sliced(4),
    "renamed": render(PluginConfig("none", Sharing(((GPU, 4),), rename=True))),
    "mixed-sliced": render(PluginConfig("mixed", Sharing(((SEVENTH, 3),)))),
    "mps": render(PluginConfig("none", Sharing(((GPU, 4),), strategy="mps"))),
}
PARTS = {
    "all-disabled": entry_for(None),
    "all-1g.10gb": entry_for(SEVENTHS),
    "all-3g.40gb": entry_for(HALVES),
    "first": [{"devices": [0], "mig-enabled": True, "mig-devices": dict(SEVENTHS)}],
    "first-halves": [{"devices": [0], "mig-enabled": True, "mig-devices": dict(HALVES)}],
}
MAPS = {
    PLUGIN_MAP: {**ENTRIES, "ours": sliced(4), "refused": sliced(1)},
    MIG_MAP: {MIG_KEY: migfile.render(PARTS)},
    THEIR_PLUGIN_MAP: {
        **ENTRIES,
        "sliced": sliced(8),
        "theirs": sliced(2),
        "theirs-mixed": ENTRIES["mixed"],
        "theirs-whole": NEUTRAL,
    },
    THEIR_MIG_MAP: {MIG_KEY: migfile.render({**PARTS, "theirs": entry_for(HALVES)})},
}


@dataclass(frozen=True)
class Row:
    """One node of a play: how it begins, and what NVIDIA's programs make of it."""

    serves: Mapping[str, int]
    then: Mapping[str, int]
    layout: Layout | None = None
    later: tuple[Layout | None, ...] | None = None
    """The layouts after the change, if they are others."""
    config: str | None = None
    """The value of nvidia.com/device-plugin.config."""
    mig: str | None = "all-disabled"
    """The value of nvidia.com/mig.config."""
    first: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def layouts(self) -> tuple[Layout | None, ...]:
        return (self.layout,) * 2


LABELS_ONLY = Change()


@dataclass(frozen=True)
class Play:
    rows: Mapping[str, Row]
    change: Change = LABELS_ONLY
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ClusterPolicy, by path below `spec`, that differ from our defaults."""
    manager: bool = False


@pytest.fixture(scope="module")
def cluster(nvidia_programs: None) -> Iterator[ControlPlane]:
    build_control_plane()
    with ControlPlane() as plane:
        install.install_gpu_operator(plane.api, cluster_policy=False)
        for name, data in MAPS.items():
            plane.api.create(f"{NAMESPACE}/configmaps", {"metadata": {"name": name}, "data": data})
        yield plane


class Stage:
    def __init__(self, plane: ControlPlane, play: Play, folder: Path) -> None:
        self.plane, self.api, self.play, self.folder = plane, plane.api, play, folder
        self.nodes: dict[str, RealNode] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        fields = {PLUGIN_POINTER: PLUGIN_MAP, MIG_POINTER: MIG_MAP, **self.play.policy}
        self.api.create(
            CLUSTER_POLICIES,
            {
                "apiVersion": "nvidia.com/v1",
                "kind": "ClusterPolicy",
                "metadata": {"name": "cluster-policy"},
                "spec": _nested(fields),
            },
        )
        operands.install(self.api)
        if not self.play.manager:
            self._uninstall(operands.MIG_MANAGER)
        with ExitStack() as stack:
            stack.callback(self._clear)
            for name, row in self.play.rows.items():
                self._add(name, row, stack)
            wait_nodes_ready(self.api, list(self.nodes))
            for node in self.nodes.values():
                stack.callback(node.stop)
                node.start()
            yield

    def _add(self, name: str, row: Row, stack: ExitStack) -> None:
        (self.folder / name).mkdir()
        node = RealNode(self.plane.kubeconfig, name, [MODEL] * 2, self.folder / name)
        set_layouts(node.sandbox, *row.layouts)
        manifest = node.manifest()
        own = {
            **manifest["metadata"]["labels"],
            LABEL_MIG_CONFIG: row.mig,
            LABEL_PLUGIN_CONFIG: row.config,
            **row.first,
        }
        manifest["metadata"]["labels"] = {key: value for key, value in own.items() if value is not None}
        self.api.create(NODES, manifest)
        stack.callback(self.api.delete, f"{NODES}/{name}")
        self.nodes[name] = node

    def _uninstall(self, *names: str) -> None:
        self._kubectl("delete", "daemonset", "--ignore-not-found", *names)

    def _clear(self) -> None:
        self._uninstall(*operands.SELECTORS)
        self._kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        self.api.delete(CLUSTER_POLICY)

    def _kubectl(self, *arguments: str) -> None:
        self.plane.kubectl("-n", install.GPU_OPERATOR_NAMESPACE, *arguments)

    # --- what there is -----------------------------------------------------------------------------------

    def labels(self, node: str) -> dict[str, str]:
        return dict(self.api.get(f"{NODES}/{node}")["metadata"]["labels"])

    def served(self, node: str) -> dict[str, int]:
        counts = self.api.get(f"{NODES}/{node}")["status"]["allocatable"]
        return {name: int(count) for name, count in counts.items() if name.startswith("nvidia.com/") and count != "0"}

    def layouts(self, node: str) -> tuple[Layout | None, ...]:
        return tuple(_layout(gpu) for gpu in self.nodes[node].simulator.show()["gpus"])

    def instances(self, node: str) -> set[tuple[str, str]]:
        """The UUIDs of the whole GPUs and MIG devices of the node; a device that is created anew has another."""
        gpus = self.nodes[node].simulator.show()["gpus"]
        whole = {(gpu["uuid"], "") for gpu in gpus if not gpu["mig"]["current"]}
        return whole | {(gpu["uuid"], ci["uuid"]) for gpu in gpus for one in gpu["instances"] for ci in one["compute"]}

    def pods(self, *apps: str) -> list[Object]:
        found = self.api.list(f"{NAMESPACE}/pods")
        return [pod for pod in found if _app(pod) in apps and pod["spec"].get("nodeName") in self.nodes]

    def daemons(self, node: str) -> set[str]:
        """The UIDs of the pods of the node's MPS daemon, with which its clients end."""
        return {pod["metadata"]["uid"] for pod in self.pods(operands.MPS) if pod["spec"]["nodeName"] == node}

    def due(self, app: str) -> list[str]:
        return [name for name in self.nodes if self.labels(name).items() >= operands.SELECTORS[app].items()]

    def runs(self, node: str) -> int:
        """How many runs of mig-manager the node has seen; 0 while one is under way."""
        begins, ends = "Updating to MIG config", "Waiting for change"
        log = text_of(self.nodes[node].programs.mig_manager.log)
        logs = (self.folder / node / "box").glob("nvidia-mig-manager-*.log")
        return sum(text_of(one).count(begins) for one in logs) if log.rfind(ends) > log.rfind(begins) >= 0 else 0

    def report(self, node: str) -> GPUNodeView:
        modes = [gpu["compute_mode"] for gpu in self.nodes[node].simulator.show()["gpus"]]
        gpus = [
            make_gpu(index, layout=layout, compute_mode=EXCLUSIVE if modes[index] else "Default")
            for index, layout in enumerate(self.layouts(node))
        ]
        return make_gpunode(node, gpus=gpus)

    def view(self, *, reports: bool) -> Installation:
        return Seen(
            place=PLACE,
            nodes=tuple(node_view(self.api.get(f"{NODES}/{name}")) for name in self.nodes),
            cluster_policies=(cluster_policy_view(self.api.get(CLUSTER_POLICY)),),
            config_maps={name: make_map(data, ours=name in (PLUGIN_MAP, MIG_MAP)) for name, data in MAPS.items()},
            gpunodes={name: self.report(name) for name in self.nodes} if reports else {},
        ).installation

    # --- what is done ------------------------------------------------------------------------------------

    def change(self) -> None:
        """Make the change, and wait until all programs that it concerns have begun anew."""
        change, rows, runs = self.play.change, self.play.rows, {name: self.runs(name) for name in self.nodes}
        apps = {app for path, _ in change.fields for app in CONCERNED[path.partition(".")[0]]}
        apps.update(RESTARTED.get(change.restarts, ()))
        old = self.pods(*apps)
        if change.fields:
            self.api.merge_patch(CLUSTER_POLICY, {"spec": _nested(dict(change.fields))})
            wait_until(lambda: all(map(self._mounted, self.nodes)), SECONDS, "the mounts")
        if off := (PLUGIN_SWITCH, False) in change.fields:
            self._uninstall(operands.PLUGIN, operands.MPS)
        elif not self.play.manager and operands.MIG_MANAGER in apps:
            operands.install(self.api)
        for pod in old:
            self._kubectl("delete", "pod", pod["metadata"]["name"], "--ignore-not-found", "--wait=false")
        for name, row in rows.items():
            # SIMULATED: as the GPU Operator does at its next look (docs/design/nvidia.md#d1).
            unlabeled = {LABEL_MIG_CONFIG: "all-disabled"} if operands.MIG_MANAGER in apps and row.mig is None else {}
            if labels := {**unlabeled, **row.labels}:
                self.api.merge_patch(f"{NODES}/{name}", {"metadata": {"labels": labels}})
        gone = {pod["metadata"]["uid"] for pod in old}

        def begun() -> bool:
            pods = self.pods(*apps)
            running = Counter(_app(pod) for pod in pods if pod.get("status", {}).get("phase") == "Running")
            due = {app: 0 if off and app != operands.GFD else len(self.due(app)) for app in apps}
            return running == Counter(due) and not gone & {pod["metadata"]["uid"] for pod in pods}

        wait_until(begun, SECONDS, "the pods to be made anew")
        starters = {LABEL_MIG_CONFIG, MIG_MANAGER}
        told = [
            name
            for name in self.due(operands.MIG_MANAGER)
            if operands.MIG_MANAGER in apps or starters & {*rows[name].labels}
        ]
        wait_until(lambda: all(self.runs(name) > runs[name] for name in told), SECONDS, "mig-manager")

    def _mounted(self, name: str) -> bool:
        policy = cluster_policy_view(self.api.get(CLUSTER_POLICY))
        wanted = {"plugin": policy.plugin_config_name or PLUGIN_MAP, "mig": policy.mig_config_name or MIG_MAP}
        folder = self.folder / name
        return all({key: text_of(folder / mount / key) for key in MAPS[of]} == MAPS[of] for mount, of in wanted.items())

    def wait_for(self, *, after: bool) -> None:
        rows = self.play.rows
        wanted: dict[str, Any] = {name: (row.serves, row.layouts) for name, row in rows.items()}
        if after:
            wanted = {name: (row.then, row.later or row.layouts) for name, row in rows.items()}
        busy = [name for name in self.due(operands.MIG_MANAGER) if self.play.manager and rows[name].mig and not after]

        def now() -> dict[str, Any]:
            return {name: (self.served(name), self.layouts(name)) for name in self.nodes}

        def reached() -> bool:
            described = all(LABEL_GPU_PRODUCT in self.labels(name) for name in rows)
            if now() != wanted or not described or not all(map(self.runs, busy)):
                return False
            time.sleep(HOLD_SECONDS)
            return now() == wanted

        try:
            wait_until(reached, SECONDS, "the nodes")
        except TimeoutError:
            assert now() == wanted


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in fields.items():
        *blocks, last = path.split(".")
        inner = nested
        for block in blocks:
            inner = inner.setdefault(block, {})
        inner[last] = value
    return nested


def _app(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get("app", ""))


def _layout(gpu: Mapping[str, Any]) -> Layout | None:
    return normalize(Counter(one["profile"] for one in gpu["instances"])) if gpu["mig"]["current"] else None


WHOLE, SLICED = Row({GPU: 2}, {GPU: 2}), Row({GPU: 8}, {GPU: 8}, config="sliced")
MIXED = Row({SEVENTH: 14}, {SEVENTH: 14}, SEVENTHS, config="mixed", mig="all-1g.10gb")
SINGLE = Row({GPU: 14}, {GPU: 14}, SEVENTHS, config="single", mig="all-1g.10gb")
HIDDEN = Row({GPU: 2}, {GPU: 2}, SEVENTHS, mig="all-1g.10gb")
MPS = Row({GPU: 8}, {GPU: 8}, config="mps")
MIXED_SLICED = replace(MIXED, serves={SEVENTH: 42}, then={SEVENTH: 42}, config="mixed-sliced")
BY_HAND = replace(MIXED, mig="all-disabled")


def _wiped(row: Row) -> Row:
    return replace(row, then={GPU: 2}, later=(None, None))


PLAYS = {
    "mig-manager starts": Play(
        {
            "whole": WHOLE,
            "by-label": MIXED,
            "by-hand": _wiped(BY_HAND),
            "cloud-init": _wiped(replace(MIXED, mig=None)),
            "single-by-hand": _wiped(replace(SINGLE, mig="all-disabled")),
            "no-name": _wiped(Row({SEVENTH: 6}, {}, THREE, config="mixed")),
            "unknown-name": replace(MIXED, mig="gone"),
            "one-gpu-named": replace(MIXED, mig="first"),
            "mps": MPS,
            "kept-off": replace(BY_HAND, first={MIG_MANAGER: "false"}),
        },
        START_MIG_MANAGER,
    ),
    "mig-manager is switched on": Play(
        {"whole": WHOLE, "by-hand": _wiped(BY_HAND), "hidden": replace(_wiped(HIDDEN), mig="all-disabled")},
        Change(fields=((MIG_MANAGER_SWITCH, True),)),
        {MIG_MANAGER_SWITCH: False},
    ),
    "mig-manager gets our ConfigMap": Play(
        {
            "ours": MIXED,
            "theirs": Row({HALF: 4}, {HALF: 4}, HALVES, config="mixed", mig="theirs"),
            "by-hand": _wiped(BY_HAND),
        },
        Change(fields=((MIG_POINTER, MIG_MAP),)),
        {MIG_POINTER: THEIR_MIG_MAP},
    ),
    "mig.config changes": Play(
        {
            "other-layout": replace(
                MIXED, then={HALF: 4}, later=(HALVES,) * 2, labels={LABEL_MIG_CONFIG: "all-3g.40gb"}
            ),
            "divided": replace(
                WHOLE, then={SEVENTH: 14}, later=(SEVENTHS,) * 2, config="mixed",
                labels={LABEL_MIG_CONFIG: "all-1g.10gb"},
            ),
            "one-gpu": replace(
                MIXED, then={HALF: 2, SEVENTH: 7}, later=(HALVES, SEVENTHS), labels={LABEL_MIG_CONFIG: "first-halves"}
            ),
            "first-gpu": replace(
                WHOLE, then={SEVENTH: 7, GPU: 1}, later=(SEVENTHS, None), config="mixed",
                labels={LABEL_MIG_CONFIG: "first"},
            ),
            "named-at-last": replace(MIXED, mig=None, labels={LABEL_MIG_CONFIG: "all-1g.10gb"}),
            "unknown": replace(MIXED, labels={LABEL_MIG_CONFIG: "gone"}),
        },
        manager=True,
    ),
    "strategy mixed goes": Play(
        {
            "whole": WHOLE,
            "sliced": SLICED,
            "no-entry": replace(MIXED, then={GPU: 2}, config=None),
            "silent": replace(MIXED, then={GPU: 2}, config=NEUTRAL_KEY),
            "mixed": MIXED,
            "single": replace(MIXED, then={GPU: 14}, config="single"),
            "mixed-sliced": MIXED_SLICED,
        },
        FREE_STRATEGY,
        {"mig.strategy": "mixed"},
    ),
    "strategy single goes": Play(
        {"no-entry": replace(SINGLE, then={GPU: 2}, config=None), "single": SINGLE,
         "mixed": replace(SINGLE, then={SEVENTH: 14}, config="mixed")},
        FREE_STRATEGY,
        {"mig.strategy": "single"},
    ),
    "default entry goes": Play(
        {
            "no-label": replace(SLICED, then={GPU: 2}, config=None),
            "sliced": SLICED,
            "mixed": MIXED,
            "gone": replace(SLICED, then={GPU: 2}, config="gone"),
        },
        Change(fields=(("devicePlugin.config.default", None),)),
        {"devicePlugin.config.default": "sliced"},
    ),
    "plugin gets our ConfigMap": Play(
        {
            "whole": WHOLE,
            "fewer": replace(SLICED, serves={GPU: 16}),
            "same": MIXED,
            "lacking": Row({GPU: 4}, {GPU: 2}, config="theirs"),
            "lacking-whole": replace(WHOLE, config="theirs-whole"),
            "lacking-mixed": replace(MIXED, then={GPU: 2}, config="theirs-mixed"),
        },
        Change(fields=((PLUGIN_POINTER, PLUGIN_MAP),)),
        {PLUGIN_POINTER: THEIR_PLUGIN_MAP},
    ),
    "plugin gets another ConfigMap": Play(
        {
            "whole": WHOLE,
            "more": replace(SLICED, then={GPU: 16}),
            "lacking": replace(SLICED, then={GPU: 2}, config="ours"),
            "lacking-default": replace(WHOLE, config="gone"),
        },
        Change(fields=((PLUGIN_POINTER, THEIR_PLUGIN_MAP),)),
    ),
    "plugin gets no ConfigMap": Play(
        {"whole": WHOLE, "sliced": replace(SLICED, then={GPU: 2}), "mixed": replace(MIXED, then={GPU: 2}),
         "hidden": HIDDEN},
        Change(fields=((PLUGIN_POINTER, ""),)),
    ),
    "device-plugin.config changes": Play(
        {
            "fewer": replace(SLICED, then={GPU: 2}, labels={LABEL_PLUGIN_CONFIG: NEUTRAL_KEY}),
            "more": replace(WHOLE, then={GPU: 8}, labels={LABEL_PLUGIN_CONFIG: "sliced"}),
            "other-name": replace(MIXED, then={GPU: 14}, labels={LABEL_PLUGIN_CONFIG: "single"}),
            "hidden": replace(MIXED, then={GPU: 8}, labels={LABEL_PLUGIN_CONFIG: "sliced"}),
            "gone": replace(MIXED, then={GPU: 2}, labels={LABEL_PLUGIN_CONFIG: "gone"}),
            "renamed": Row({f"{GPU}.shared": 8}, {GPU: 2}, config="renamed", labels={LABEL_PLUGIN_CONFIG: NEUTRAL_KEY}),
            "mps": replace(MPS, then={GPU: 2}, labels={LABEL_PLUGIN_CONFIG: NEUTRAL_KEY}),
            "refused": replace(WHOLE, then={}, labels={LABEL_PLUGIN_CONFIG: "refused"}),
            "gone-sliced": replace(SLICED, then={GPU: 2}, labels={LABEL_PLUGIN_CONFIG: "gone"}),
            "gone-whole": replace(WHOLE, labels={LABEL_PLUGIN_CONFIG: "gone"}),
        },
    ),
    "deploy labels change": Play(
        {
            "manager-on": replace(_wiped(BY_HAND), first={MIG_MANAGER: "false"}, labels={MIG_MANAGER: "true"}),
            "manager-off": replace(MIXED, mig=None, labels={MIG_MANAGER: "false"}),
            "plugin-on": replace(WHOLE, serves={}, first={PLUGIN: "false"}, labels={PLUGIN: "true"}),
            "plugin-off": replace(WHOLE, then={}, labels={PLUGIN: "false"}),
            "mps-off": replace(MPS, then={}, labels={PLUGIN: "false"}),
        },
        manager=True,
    ),
    "plugin restarts": Play(
        {"whole": WHOLE, "sliced": SLICED, "single": SINGLE, "mps": MPS, "by-hand": BY_HAND},
        RESTART_PLUGIN,
    ),
    "plugin is switched off": Play(
        {"whole": replace(WHOLE, then={}), "sliced": replace(SLICED, then={}), "mixed": replace(MIXED, then={})},
        UNPLUG,
    ),
}  # fmt: skip


THOROUGH = {
    "default entry goes": "plugin gets no ConfigMap",
    "mig-manager is switched on": "mig-manager starts",
    "plugin gets another ConfigMap": "plugin gets our ConfigMap",
    "strategy single goes": "strategy mixed goes",
}
"""The plays that `.ci/run` leaves out, and the one that it plays of the same kind."""


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(play, id=name, marks=[pytest.mark.thorough] if name in THOROUGH else [])
        for name, play in PLAYS.items()
    ],
)
def test_what_nvidias_programs_take_from_a_node_was_predicted_and_nothing_else(
    play: Play, cluster: ControlPlane
) -> None:
    with tempfile.TemporaryDirectory(prefix="gpusharing-") as folder:
        stage = Stage(cluster, play, Path(folder))
        with stage.running():
            stage.wait_for(after=False)
            predicted = {reports: predict(play, stage.view(reports=reports)) for reports in (True, False)}
            instances = {name: stage.instances(name) for name in play.rows}
            daemons = {name: stage.daemons(name) for name in play.rows}
            stage.change()
            stage.wait_for(after=True)
            gone = {name: instances[name] - stage.instances(name) for name in play.rows}
            ended = {name: bool(daemons[name] - stage.daemons(name)) for name in play.rows}
    wrong = {
        (name, reports): found
        for reports, effects in predicted.items()
        for name, row in play.rows.items()
        if (found := [*compare(row, gone[name], effects[name], ended=ended[name])])
    }
    assert wrong == {}


def predict(play: Play, view: Installation) -> dict[str, list[Effect]]:
    effects = {
        name: view.effects(replace(play.change, labels=tuple(row.labels.items()), nodes=(name,)))
        if row.labels
        else view.effects(play.change)
        for name, row in play.rows.items()
    }
    return {name: [effect for effect in found if effect.node == name] for name, found in effects.items()}


def compare(row: Row, gone: set[tuple[str, str]], effects: list[Effect], *, ended: bool) -> Iterator[str]:
    """Yield how the effects that were predicted for a node differ from what it has lost."""
    by_loss = {effect.loss: effect for effect in effects if effect.why}
    gpus, devices = by_loss.get(Loss.GPUS), by_loss.get(Loss.DEVICES)
    lost = ", ".join(f"{n} {name}" for name, n in sorted(row.serves.items()) if row.then.get(name, 0) < n)
    if gone and gpus is None:
        yield f"not predicted: {sorted(gone)}"
    if lost and gpus is None and devices is None:
        yield f"not predicted: {lost}"
    if ended and Loss.CLIENTS not in by_loss and devices is None:
        yield "not predicted: the end of its MPS clients"
    if Loss.CLIENTS in by_loss and not ended:
        yield f"did not happen: {by_loss[Loss.CLIENTS]}"
    if gpus is not None and gpus.known and not gone:
        yield f"did not happen: {gpus}"
    if devices is not None and devices.known and not lost:
        yield f"did not happen: {devices}"
    if devices is not None and devices.known and not devices.missing and devices.why != lost:
        yield f"{lost} instead of {devices}"

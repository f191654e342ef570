"""What one PATCH of the operator may do to a Node: the rules of docs/design/transition.md, for every rung that sees the body.
The guard of rung 1 asks them at every write to the FakeCluster, rung 2 of every write in the API server's audit log. They know the rules by themselves and ask nothing of the planner."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from gpusharing.api import names
from gpusharing.kube.client import JSON

Step = Literal["fence", "PNR", "update", "release", "marks"]

CONFIGURED_LABEL = "repair.example.com/hands-off"
"""The one that tests name where the chart has operator.neighborLabels; no other operator may write it."""

OUR_LABELS = {
    CONFIGURED_LABEL,
    names.LABEL_MODE,
    names.LABEL_POLICY,
    names.LABEL_MIG_CONFIG,
    names.LABEL_MIG_STATE,
    names.LABEL_PLUGIN_CONFIG,
    names.LABEL_SKIP,
    *names.NEIGHBOR_LABELS,
}
OUR_ANNOTATIONS = {
    *names.NEIGHBOR_ANNOTATIONS,
    names.ANNOTATION_FENCE,
    names.ANNOTATION_DEFERRED,
    names.ANNOTATION_VERIFIED,
    names.ANNOTATION_UPGRADE_CORDONED,
    names.ANNOTATION_RETRY,
    names.ANNOTATION_ABORT,
}
MARKS = {names.LABEL_MODE, names.LABEL_POLICY}
"""Labels of an unconditional write: nobody else owns them."""
ACTUATING = {names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE, names.LABEL_PLUGIN_CONFIG}

MCO = "machineconfiguration.openshift.io/"
FOREIGN_PREFIXES = (
    "weave.works/kured-reboot-in-progress",
    "skyhook.nvidia.com/cordon_",
    "nodewright.nvidia.com/cordon_",
    "nodewright.nvidia.com/runtimeRequiredCordon",
)
FOREIGN_STATES = {
    names.LABEL_UPGRADE_STATE: ("", "upgrade-done", "upgrade-required", "node-maintenance-required"),
    "sriovnetwork.openshift.io/state": ("Idle",),
    "dgxc.nvidia.com/nvsentinel-state": ("",),
}
"""Marks that are there always, and the values with which nobody works on the node."""
FOREIGN_TAINTS = {
    "remediation.medik8s.io/self-node-remediation",
    "node.kubernetes.io/out-of-service",
    "medik8s.io/drain",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "ToBeDeletedByClusterAutoscaler",
}
FOREIGN_CONDITIONS = {"MaintenanceInProgress", "DrainInProgress"}


def step_of(before: JSON, body: JSON) -> Step:
    written = body["metadata"].get("annotations", {})
    if names.ANNOTATION_FENCE not in written:
        return "marks"
    if written[names.ANNOTATION_FENCE] is None:
        return "release"
    was, now = fence_of(before), _record(written[names.ANNOTATION_FENCE])
    if was is None:
        return "fence"
    return "PNR" if begins_run(was, now) else "update"


def is_reset(body: JSON) -> bool:
    """The node is given up by a policy with deletionPolicy Reset: nothing of ours is to stay."""
    metadata = body["metadata"]
    proof = metadata.get("annotations", {}).get(names.ANNOTATION_VERIFIED, "kept")
    return proof is None and names.LABEL_POLICY in metadata.get("labels", {})


def begins_run(was: JSON | None, now: JSON) -> bool:
    """A run of the actuators begins: to another aim, or one that was recorded as owed to the same."""
    owed = was is not None and was.get("owed") and not now.get("owed")
    return now["stage"] == "actuating" and (aim_of(was) != aim_of(now) or bool(owed))


def wrong_in_write(before: JSON, body: JSON) -> Iterator[str]:
    """What is wrong in a write to a Node that looked like `before`."""
    metadata, spec = body.get("metadata", {}), body.get("spec", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    if not body.keys() <= {"metadata", "spec"}:
        yield f"wrote {', '.join(body)}"
    if not metadata.keys() <= {"uid", "resourceVersion", "labels", "annotations"}:
        yield f"wrote metadata {', '.join(metadata)}"
    if not labels.keys() <= OUR_LABELS:
        yield f"labels {labels}"
    if not annotations.keys() <= OUR_ANNOTATIONS:
        yield f"annotations {', '.join(annotations)}"
    if not spec.keys() <= {"unschedulable", "taints"}:
        yield f"spec {spec}"
    if "uid" not in metadata:
        yield "a write without the node's uid"
    if "resourceVersion" not in metadata:
        marks = labels.keys() <= MARKS and annotations.keys() <= {names.ANNOTATION_VERIFIED}
        if spec or not marks:
            yield f"unconditional {body}"
    yield from _wrong_request(metadata, spec)
    yield from _wrong_state(before, labels)
    yield from _wrong_taints(before, body)
    yield from _wrong_step(before, body)


def requested_in(body: JSON) -> Mapping[str, str | None]:
    """What of a person's requests on the GPUNode a write brings to the Node, by key."""
    metadata = body.get("metadata", {})
    written = {**metadata.get("labels", {}), **metadata.get("annotations", {})}
    return {key: written[key] for key in names.REQUESTS if key in written}


def _wrong_request(metadata: JSON, spec: JSON) -> Iterator[str]:
    """A request of a person is moved by itself: no step of a change is decided before it is known."""
    requested = requested_in({"metadata": metadata})
    written = {*metadata.get("labels", {}), *metadata.get("annotations", {})}
    if requested and (spec or written - requested.keys()):
        yield f"moved a request together with {sorted(written - requested.keys())} {spec}"


def _wrong_state(before: JSON, labels: Mapping[str, str | None]) -> Iterator[str]:
    """mig.config.state goes with another configuration, only with it, and never while the node reboots (PNR)."""
    was = labels_of(before)
    other = labels.get(names.LABEL_MIG_CONFIG) not in (None, was.get(names.LABEL_MIG_CONFIG))
    if names.LABEL_MIG_STATE in labels:
        if labels[names.LABEL_MIG_STATE] is not None:
            yield "wrote mig.config.state"
        if not other:
            yield "mig.config.state went without another mig.config"
        if was.get(names.LABEL_MIG_STATE) == "rebooting":
            yield "touched while rebooting"
    elif other and was.get(names.LABEL_MIG_STATE, "rebooting") != "rebooting":
        yield "another mig.config left the old mig.config.state behind"


def _wrong_taints(before: JSON, body: JSON) -> Iterator[str]:
    """The start-up taint goes with the proof and with nothing else, and no other taint is touched."""
    was, spec = taints_of(before), body.get("spec", {})
    record = body["metadata"].get("annotations", {}).get(names.ANNOTATION_VERIFIED)
    if "taints" not in spec:
        if is_gated(before) and record:
            yield "proven, and the start-up taint stays"
        return
    versions = before["metadata"].get("resourceVersion"), body["metadata"].get("resourceVersion")
    if None not in versions and versions[0] != versions[1]:
        return  # the server refuses it
    if (spec["taints"] or []) != [row for row in was if not _is_gate(row)]:
        yield f"taints {was} became {spec['taints']}"
    if not is_gated(before):
        yield "wrote taints of a node without the start-up taint"
    if not record:
        yield "took the start-up taint without a proof"
    elif not _agrees(_record(record), before, body):
        yield f"took the start-up taint with the proof {record}, which the labels contradict"
    if "resourceVersion" not in body["metadata"]:
        yield "took the start-up taint in an unconditional write"
    if step_of(before, body) not in ("release", "marks") or (step_of(before, body) == "marks" and fence_of(before)):
        yield f"took the start-up taint in the {step_of(before, body)} write"


def _agrees(proof: JSON, before: JSON, body: JSON) -> bool:
    """The proof names what the labels name, and mig-manager has done it: admission asks for as much."""
    was = labels_of(before)
    owner = {**was, **body["metadata"].get("labels", {})}.get(names.LABEL_POLICY)
    plugin, mig = was.get(names.LABEL_PLUGIN_CONFIG), was.get(names.LABEL_MIG_CONFIG)
    done = was.get(names.LABEL_MIG_STATE) == "success" and proof["migConfig"] == mig
    return (
        proof["policy"] == owner
        and plugin in (None, proof["pluginConfig"])
        and (not proof["migConfig"] or mig is None or done)
    )


def taints_of(node: JSON) -> list[JSON]:
    return list(node.get("spec", {}).get("taints") or ())


def is_gated(node: JSON) -> bool:
    return any(_is_gate(taint) for taint in taints_of(node))


def _is_gate(taint: JSON) -> bool:
    return (taint["key"], taint["effect"]) == ("gpusharing.dev/unproven", "NoSchedule")


def _wrong_step(before: JSON, body: JSON) -> Iterator[str]:
    """Each step is one PATCH: stage and labels at the PNR, cordon and fence, fence and uncordon."""
    metadata, spec = body.get("metadata", {}), body.get("spec", {})
    labels = metadata.get("labels", {})
    step = step_of(before, body)
    if record := metadata.get("annotations", {}).get(names.ANNOTATION_FENCE):
        known = {*(fence_of(before) or {}).get("added", ())}
        there = {*labels_of(before), *annotations_of(before)}
        if unset := {*_record(record).get("added", ())} - known - ({*labels, *metadata["annotations"]} - there):
            yield f"recorded {', '.join(sorted(unset))}, which it did not set"
    if step == "PNR":
        fence = _record(metadata["annotations"][names.ANNOTATION_FENCE])
        after = {**labels_of(before), **labels}
        if fence["targetMigConfig"] and after.get(names.LABEL_MIG_CONFIG) != fence["targetMigConfig"]:
            yield "the PNR left mig.config for another write"
        if (after.get(names.LABEL_PLUGIN_CONFIG) or "") != (fence["targetPluginConfig"] or ""):
            yield "the PNR left device-plugin.config for another write"
    elif is_reset(body):
        if fence_of(before) is not None or set(labels.values()) != {None}:
            yield f"forgotten in the middle of a change, or with labels left: {labels}"
        if "resourceVersion" not in metadata:
            yield "forgot a node in an unconditional write"
    elif (changed := ACTUATING & labels.keys()) and not _puts_back(before, labels):
        yield f"{', '.join(sorted(changed))} changed in a write that is no PNR"
    if "unschedulable" not in spec:
        return
    if spec["unschedulable"] is True:
        if step not in ("fence", "update"):
            yield f"cordoned in the {step} write"
    elif spec["unschedulable"] is None:
        if step != "release":
            yield f"uncordoned in the {step} write"
        yield from _wrong_uncordon(before)
    else:
        yield f"spec {spec}"


def _puts_back(before: JSON, labels: JSON) -> bool:
    """Past the PNR, the label of the device plugin is written again as the fence has it, after others changed it."""
    fence = fence_of(before) or {}
    due = {names.LABEL_PLUGIN_CONFIG: fence.get("targetPluginConfig") or None}
    return (
        fence.get("stage") == "actuating" and due.items() <= labels.items() and not ACTUATING & labels.keys() - {*due}
    )


def _wrong_uncordon(before: JSON) -> Iterator[str]:
    fence = fence_of(before)
    if fence is None or fence["priorUnschedulable"]:
        yield "lifted a cordon that is not ours"
    if annotations_of(before).get(names.ANNOTATION_HOLD_CORDON) == "true":
        yield "lifted a cordon that was to be held"
    if foreign := foreign_marks(before):
        yield f"lifted the cordon under {', '.join(foreign)}"


def foreign_marks(node: JSON) -> list[str]:
    """What other controllers have written on a Node that they maintain (docs/design/drain.md#c5), by key."""
    labels, annotations = labels_of(node), annotations_of(node)
    found = [key for key in annotations if key.startswith(FOREIGN_PREFIXES)]
    found += [key for key, idle in FOREIGN_STATES.items() if {**labels, **annotations}.get(key, idle[0]) not in idle]
    applied = annotations.get(f"{MCO}lastAppliedDrain")
    found += [f"{MCO}desiredDrain"] if annotations.get(f"{MCO}desiredDrain") != applied else []
    taints = [row["key"] for row in node.get("spec", {}).get("taints") or ()]
    found += [key for key in taints if key in FOREIGN_TAINTS]
    rows = (node.get("status") or {}).get("conditions") or ()
    return found + [row["type"] for row in rows if row["type"] in FOREIGN_CONDITIONS and row["status"] == "True"]


def wrong_in_change(before: JSON, after: JSON) -> Iterator[str]:
    """What is wrong about a Node after a change of it, whoever made it."""
    was, now = fence_of(before), fence_of(after)
    if now is None:
        if was is not None and names.LABEL_MODE not in labels_of(after) and was["fromMode"]:
            yield "released without its routing label"
        return
    if now["disruption"] == "PluginRestart":
        return
    if names.LABEL_MODE in labels_of(after):
        yield "fenced with a routing label"
    if was is None and is_cordoned(after) == bool((fence_of(after) or {}).get("tainted")):
        yield "fenced and not cordoned in one write, or cordoned beside a DeviceTaintRule"


def labels_of(node: JSON) -> Mapping[str, str]:
    return node["metadata"].get("labels") or {}


def annotations_of(node: JSON) -> Mapping[str, str]:
    return node["metadata"].get("annotations") or {}


def is_cordoned(node: JSON) -> bool:
    return node.get("spec", {}).get("unschedulable") is True


def fence_of(node: JSON) -> JSON | None:
    text = annotations_of(node).get(names.ANNOTATION_FENCE)
    return _record(text) if text else None


def aim_of(fence: JSON | None) -> tuple[Any, ...]:
    return () if fence is None else (fence["stage"], fence["targetMigConfig"], fence["targetPluginConfig"])


def _record(text: str) -> JSON:
    record: JSON = json.loads(text)
    return record

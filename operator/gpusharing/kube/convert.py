"""Raw Nodes, GPUNodes, policies and NVIDIA's ClusterPolicy as the planner sees them; pods: `convert_pods.py`.

No function raises because of an object's contents: a missing or malformed field becomes the value that makes the
planner careful (not ready, no observation, a problem).

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return, docs/design/glossary.md#proof.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import tzinfo
from functools import lru_cache
from sys import intern

from pydantic import TypeAdapter, ValidationError

from gpusharing.api import names
from gpusharing.api.gpunode import GPU, Model, Observed
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import Problem, validate_policy
from gpusharing.kube.client import JSON
from gpusharing.kube.fence import parse_record, read_fence
from gpusharing.kube.foreign import find_marker
from gpusharing.kube.quantity import count, gpu_counts
from gpusharing.kube.raw import (
    entries,
    has_condition,
    interned,
    is_true,
    part,
    section,
    strings,
    text,
    texts,
    variable,
    whole,
)
from gpusharing.kube.taints import GPU_TOLERATION, rows_text, start_gate, tolerates
from gpusharing.kube.zones import find_zones
from gpusharing.planning.gpus.cards import Card, Profile, find_card, find_doubt
from gpusharing.planning.gpus.geometry import is_profile, normalize
from gpusharing.planning.gpus.health import vitals_of
from gpusharing.planning.snapshot.draviews import key_of
from gpusharing.planning.snapshot.records import Deferred, Fence, Verified
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, ObservedView, PolicyView
from gpusharing.planning.stack.otherplugins import RESOURCES, find_other_plugin
from gpusharing.planning.stack.requirements import READ
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted.target import under_deletion

_REPORT = TypeAdapter(Observed)


def node_view(raw: JSON, maintenance_keys: frozenset[str] = frozenset()) -> NodeView:
    """Convert a raw Node to the planner's view. Heartbeats, images, addresses and resourceVersion are left out, and so
    are allocatable resources other than GPUs (`gpu_counts`). A fence that cannot be read becomes None, with the reason
    in `fence_error`. A record of the last abort or of the last proof that cannot be read becomes None too, but the
    reason is dropped. `hold_cordon` is True only for the value `true`. `maintenance_keys` are further keys of labels,
    annotations and taints that mark a Node as maintained by somebody else (`find_marker`)."""
    metadata = section(raw, "metadata")
    annotations = texts(metadata.get("annotations"))
    fence, fence_error = read_fence(annotations)
    # If the record of an abort is damaged, only its back-off is lost. If the record of a proof is damaged, a node that
    # is as its policy wants it is adopted again. Neither disturbs a workload.
    deferred_text, verified_text = map(
        annotations.get, (names.ANNOTATION_DEFERRED, names.ANNOTATION_VERIFIED)
    )
    verified = None if verified_text is None else parse_record(Verified, verified_text)[0]
    foreign = find_marker(raw, maintenance_keys)
    return NodeView(
        name=intern(text(metadata, "name")),
        uid=text(metadata, "uid"),
        labels=interned(metadata.get("labels")),
        resources=gpu_counts(part(raw, "status", "allocatable")),
        ready=has_condition(raw, "Ready"),
        unschedulable=part(raw, "spec", "unschedulable") is True,
        deleting=metadata.get("deletionTimestamp") is not None,
        barred=_is_barred(raw),
        fence=fence,
        fence_error=fence_error,
        deferred=None if deferred_text is None else parse_record(Deferred, deferred_text)[0],
        verified=verified,
        neighbour_marks=frozenset(annotations.keys() & set(names.NEIGHBOUR_ANNOTATIONS)),
        hold_cordon=annotations.get(names.ANNOTATION_HOLD_CORDON) == "true",
        retry=annotations.get(names.ANNOTATION_RETRY, ""),
        gate=start_gate(raw),
        abort=annotations.get(names.ANNOTATION_ABORT, ""),
        foreign=foreign.who,
        foreign_waits=foreign.waits,
        foreign_queued=foreign.queued,
        other_plugin=other_plugin(raw),
        label_owners=label_owners(annotations),
        label_rewriters=label_rewriters(raw, fence, verified),
    )


def unknown_node(raw: JSON, why: str) -> NodeView:
    """Return the view of a Node that cannot be converted. Like one whose fence cannot be read, it is left as it is: it
    may be in the middle of a change."""
    metadata = section(raw, "metadata")
    return NodeView(
        name=intern(text(metadata, "name")),
        uid=text(metadata, "uid"),
        labels=interned(metadata.get("labels")),
        resources={},
        ready=False,
        unschedulable=part(raw, "spec", "unschedulable") is True,
        deleting=metadata.get("deletionTimestamp") is not None,
        fence_error=why,
    )


def other_plugin(raw: JSON) -> str:
    """Return the name of the device plugin that serves a Node without following our labels, or an empty string if none
    is known. It is recognized by the Node's labels, its annotations, and the names of its allocatable resources that
    begin with one of RESOURCES (`find_other_plugin`); those with the quantity 0, or one that cannot be read, do not
    count."""
    metadata, allocatable = section(raw, "metadata"), section(raw, "status", "allocatable")
    resources = [name for name, number in allocatable.items() if name.startswith(RESOURCES) and count(number)]
    return find_other_plugin(texts(metadata.get("labels")), texts(metadata.get("annotations")), resources)


def _is_barred(raw: JSON) -> bool:
    """Whether a raw Node has a NoSchedule or NoExecute taint, tolerated or not, whoever wrote it; our own start-up
    taint counts too. Taints whose key starts with node.kubernetes.io/ are ignored: they follow the node's conditions
    and its cordon, which are read separately."""
    return any(
        text(taint, "effect") in ("NoSchedule", "NoExecute")
        and not text(taint, "key").startswith("node.kubernetes.io/")
        for taint in entries(raw, "spec", "taints")
    )


def gpunode_view(raw: JSON, known: ObservedView | None = None) -> GPUNodeView:
    """Convert a raw GPUNode. Its `status.transition`, which is written for people, is left out. `quiet` is True only
    for the value true, and `requests` has the annotations in `names.REQUESTS` with any value.

    `known` is the agent's report as converted earlier, to be used in place of the report in `raw`. If it is None, the
    report in `raw` is converted; if `raw` has none, `observed` is None.
    """
    request, annotations = section(raw, "spec", "request"), texts(part(raw, "metadata", "annotations"))
    observed = part(raw, "status", "observed")
    if known is None and observed is not None:
        known = observed_view(observed)
    return GPUNodeView(
        name=intern(text(raw, "metadata", "name")),
        uid=text(raw, "metadata", "uid"),
        request_id=text(request, "id"),
        quiet=request.get("quiet") is True,
        observed=known,
        requests={key: annotations[key] for key in names.REQUESTS if key in annotations},
    )


def unknown_gpunode(raw: JSON, why: str) -> GPUNodeView:
    """Return the view of a GPUNode that cannot be converted: its report proves nothing."""
    request = section(raw, "spec", "request")
    return GPUNodeView(
        name=intern(text(raw, "metadata", "name")),
        uid=text(raw, "metadata", "uid"),
        request_id=text(request, "id"),
        quiet=request.get("quiet") is True,
        observed=ObservedView("", False, why, (), allocated=None, pods=None),
    )


def observed_view(raw: object) -> ObservedView:
    """Convert the agent's raw report. Resources whose count is 0 are left out of `allocated`. A report that cannot be
    read proves nothing: it becomes a view that has the first error of the validation but no request id and no GPUs.
    `allocated` is sorted by name, and stays None if the agent reports none. A GPU's profiles come from the model in the
    report with the same product name (`_model`). `devices_key` stands for the UUIDs of all MIG instances, and of the
    GPUs on which MIG is not enabled."""
    try:
        observed = _REPORT.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        why = f"the agent's report cannot be read: {where}: {first['msg']}"
        return ObservedView("", False, why, (), allocated=None, pods=None)
    models = {model.product: _model(model.product, model) for model in observed.models}
    return ObservedView(
        request_id=observed.request_id,
        quiet=observed.quiet,
        error=observed.error,
        gpus=tuple(
            _gpu_view(gpu, models.get(gpu.product) or _model(gpu.product, None)) for gpu in observed.gpus
        ),
        allocated=None
        if observed.allocated is None
        else {key: value for key, value in sorted(observed.allocated.items()) if value},
        pods=observed.pods,
        simulated=observed.simulated,
        driver_version=observed.driver_version,
        devices_key=key_of(
            one.uuid
            for gpu in observed.gpus
            for one in (gpu.instances if gpu.mig_mode == "Enabled" else (gpu,))
        ),
    )


def policy_view(raw: JSON) -> PolicyView:
    """Convert a raw GPUSharingPolicy. If its spec is invalid, the view's spec is None, `problems` says what is wrong
    and `zones` is empty. Force-release counts only with the value `true`. A policy that is being deleted with
    deletionPolicy Reset is `resetting` in place of `deleting`, and its spec, if valid, gets mode Full, unless it has
    force-release or lacks our finalizer."""
    checked = validate_policy(raw)
    zones = {} if isinstance(checked, tuple) else find_zones(checked)
    return _policy(raw, checked, zones)


def unknown_policy(raw: JSON, why: str) -> PolicyView:
    """Return the view of a policy that cannot be converted: its spec counts as invalid."""
    return _policy(raw, (Problem("spec", why),), {})


def _policy(
    raw: JSON, checked: GPUSharingPolicySpec | tuple[Problem, ...], zones: Mapping[str, tzinfo]
) -> PolicyView:
    metadata = section(raw, "metadata")
    annotations = texts(metadata.get("annotations"))
    view = PolicyView(
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        generation=whole(metadata, "generation"),
        created=text(metadata, "creationTimestamp"),
        deleting=metadata.get("deletionTimestamp") is not None,
        finalizer=names.FINALIZER in strings(metadata.get("finalizers")),
        force_release=annotations.get(names.ANNOTATION_FORCE_RELEASE) == "true",
        spec=None if isinstance(checked, tuple) else checked,
        problems=checked if isinstance(checked, tuple) else (),
        approved=annotations.get(names.ANNOTATION_APPROVE, ""),
        resumed=annotations.get(names.ANNOTATION_RESUME, ""),
        zones=zones,
    )
    return under_deletion(view, resets=text(raw, "spec", "deletionPolicy") == "Reset")


def cluster_policy_view(raw: JSON) -> ClusterPolicyView:
    """Convert NVIDIA's raw ClusterPolicy. Missing or malformed fields become empty values; only for missing or empty
    tolerations, the GPU Operator's default ones count. `switches` has the fields in READ that are a boolean or a
    string, by their path. `ignored` is True for the state `ignored`, `configured` has the names in the annotation
    ANNOTATION_CONFIGURED, and `with_reboot` is read from the environment of mig-manager. The MPS daemon, which no
    ClusterPolicy describes, is left out; see `with_mps_daemon`."""
    spec = section(raw, "spec")
    tolerations = entries(spec, "daemonsets", "tolerations") or [GPU_TOLERATION]
    annotations = texts(part(raw, "metadata", "annotations"))
    return ClusterPolicyView(
        plugin_config_name=text(spec, "devicePlugin", "config", "name"),
        mig_strategy=text(spec, "mig", "strategy"),
        mig_config_name=text(spec, "migManager", "config", "name"),
        switches={
            path: value for path in READ if isinstance(value := part(spec, *path.split(".")), bool | str)
        },
        plugin_default=text(spec, "devicePlugin", "config", "default"),
        plugin_version=text(spec, "devicePlugin", "version"),
        mig_manager_version=text(spec, "migManager", "version"),
        name=text(raw, "metadata", "name"),
        uid=text(raw, "metadata", "uid"),
        ignored=text(raw, "status", "state") == "ignored",
        namespace=text(raw, "status", "namespace"),
        plugin_config_setter=setter(raw, "spec", "devicePlugin", "config", "name"),
        mig_config_setter=setter(raw, "spec", "migManager", "config", "name"),
        configured=frozenset(filter(None, annotations.get(names.ANNOTATION_CONFIGURED, "").split(","))),
        tolerates_gate=tolerates(tolerations),
        tolerations=rows_text(tolerations),
        with_reboot=is_true(variable(section(spec, "migManager"), "WITH_REBOOT")),
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """What all GPUs of one card model have in common."""

    profiles: tuple[Profile, ...]
    """The MIG profiles of the model."""
    doubt: Finding | None
    """How the report differs from the table, or None if it does not."""
    reset_in_guest: bool
    """Whether a MIG change needs a reset inside a guest."""


def _model(product: str, reported: Model | None) -> _Model:
    """Return what all GPUs of the card model `product` have in common. `reported` is the model in the agent's report,
    or None if the report has none. Its profiles are those of `_profiles`. `doubt` says how the reported ones differ
    from our table (`find_doubt`); it is None if they do not, and for a model that the report does not name or names as
    unable to use MIG. `reset_in_guest` is True only if the report names the mode change Reset and the virtualization
    PassThrough."""
    card = find_card(product)
    doubt = find_doubt(product, _listed(reported)) if reported and reported.mig_capable else None
    kind = (reported.mig_mode_change, reported.virtualization) if reported else ()
    return _Model(_profiles(reported, card), doubt, kind == ("Reset", "PassThrough"))


def _gpu_view(gpu: GPU, model: _Model) -> GpuView:
    """Convert one GPU of an agent's report, and add what is known about its card model. `layout` is None unless MIG is
    enabled, `mig_pending` says that the pending mode differs from the present one, and `mig_capable` is False only for
    the mode NotSupported."""
    return GpuView(
        index=gpu.index,
        product=gpu.product,
        mig_capable=gpu.mig_mode != "NotSupported",
        mig_enabled=gpu.mig_mode == "Enabled",
        mig_pending=gpu.mig_mode_pending != gpu.mig_mode,
        compute_mode=gpu.compute_mode,
        # Empty if MIG is enabled but no instance exists.
        layout=normalize(Counter(instance.profile for instance in gpu.instances))
        if gpu.mig_mode == "Enabled"
        else None,
        profiles=model.profiles,
        doubt=model.doubt,
        processes=tuple(process.name for process in gpu.processes),
        vitals=vitals_of(gpu),
        instances_withheld=gpu.instances_withheld,
        reset_in_guest=model.reset_in_guest,
    )


def _listed(model: Model) -> tuple[Profile, ...]:
    """Return the MIG profiles that the driver lists for a model, in its order, each with its distinct placements.
    Profiles whose name cannot be read are left out: names are written to the mig-parted file of all nodes, which would
    be rejected as a whole."""
    return tuple(
        Profile(p.name, tuple(dict.fromkeys(p.starts)), p.size, p.max_count, p.slices, p.memory_gb, p.id)
        for p in model.profiles
        if is_profile(p.name)
    )


def _profiles(model: Model | None, card: Card | None) -> tuple[Profile, ...]:
    """Return the MIG profiles of a card model. They come from the driver's report `model`, or from the table entry
    `card` if the report lists none or is known to be wrong for this card. Empty if neither has any.

    Profiles in the report whose names cannot be read are left out, even if none remains. Where the driver reports no
    placements for a profile, the table's placements and size for that profile are used, if it has any.
    """
    known = {profile.name: profile for profile in card.profiles} if card else {}
    if card and (not model or not model.profiles or card.nvml_counts_wrong):
        return card.profiles
    if not model:
        return ()
    listed = _listed(model)
    return _shared(
        tuple(
            replace(profile, starts=same.starts, size=same.size)
            if not profile.starts and (same := known.get(profile.name))
            else profile
            for profile in listed
        )
    )


@lru_cache(maxsize=256)
def _shared(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Return the first cached tuple that equals `profiles`, so that all GPUs with the same profiles share one object.
    This saves memory, and the planner compares by identity."""
    return profiles


LABEL_KEEPERS: Mapping[str, tuple[str, str]] = {
    "nfd.node.kubernetes.io/feature-labels": ("Node Feature Discovery", "the NodeFeatureRule that sets it"),
    "cluster.x-k8s.io/labels-from-machine": ("Cluster API", "the labels of the node's Machine"),
    "node.gke.io/last-applied-node-labels": ("GKE", "the labels of the node pool"),
    "node.machine.sapcloud.io/last-applied-anno-labels-taints": ("Gardener", "the labels of the worker pool"),
}
"""The controllers that list labels in an annotation and restore their values: by annotation, the name of the controller
and where it takes the labels from.

An instance of Node Feature Discovery puts its name and a dot before the key (pkg/nfd-master/nfd-master.go). The others:
cluster-api internal/controllers/machine/machine_controller_noderef.go, cloud-provider-gcp at 008f015
cmd/gcp-controller-manager/node_annotator.go, gardener/machine-controller-manager (SyncMachineLabels)."""
_LISTED = {
    label: re.compile(rf"(?<![\w./-]){re.escape(label)}(?![\w./-])")
    for label in (names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG)
}
"""Patterns of our two labels as whole keys: lists have them between commas, before an equals sign, or in quotes."""


def label_owners(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return a message for each of our two labels (nvidia.com/mig.config and nvidia.com/device-plugin.config) that
    another controller lists as its own, by label. Such lists are the annotations whose key ends with one of
    LABEL_KEEPERS. The message names the controller and its annotation, and says where to remove the label. If several
    controllers list a label, the message is about the last annotation. Labels that no controller lists are left out."""
    return {
        label: f"{who} manages it (annotation {key}) and restores its own value; remove it from {source}"
        for key, listed in annotations.items()
        for label, pattern in _LISTED.items()
        if label in listed  # checked first, because the pattern takes as long as the rest of a Node's view
        for ending, (who, source) in LABEL_KEEPERS.items()
        if key.endswith(ending)
        if pattern.search(listed)
    }


def label_rewriters(raw: JSON, fence: Fence | None, verified: Verified | None) -> dict[str, str]:
    """Return, by label, which field manager replaced the value that we last wrote to our two labels. Labels that still
    have this value are left out, and so are labels that we never wrote, labels whose manager is one of ours (its name
    starts with `gpusharing`), and labels for which managedFields show no manager, for example because the label was
    removed.

    The value that we wrote last is read from `fence` if its change has passed the point of no return, else from
    `verified`, the record of the last proof. The proof of a node that was adopted without a change of its policy names
    values that we may never have written, so it does not count. That is so even if it keeps the time of a change of an
    earlier policy; its revision is then empty.
    """
    written = "", ""
    if verified is not None and (verified.rolled_back or _led(verified)):
        written = verified.mig_config, verified.plugin_config
    if fence is not None and fence.stage == "actuating":
        written = fence.target_mig_config, fence.target_plugin_config
    return {
        label: manager
        for label, value in zip(_LISTED, written, strict=True)
        if value not in ("", text(raw, "metadata", "labels", label))
        if (manager := setter(raw, "metadata", "labels", label))
        if not manager.startswith("gpusharing")
    }


def _led(proof: Verified) -> bool:
    """Whether a change of the proof's policy, or one that this policy took over, led to what was proven."""
    return proof.version.revision != "" and proof.changed_at is not None


def setter(raw: JSON, *path: str) -> str:
    """Return the name of the field manager that last wrote the field at `path`, according to the times in
    managedFields, or an empty string if managedFields show none. An entry without a time counts as the oldest; of equal
    times the first entry counts."""
    fields = [f"f:{name}" for name in path]
    managers = entries(raw, "metadata", "managedFields")
    writers = [entry for entry in managers if part(entry, "fieldsV1", *fields) is not None]
    return text(max(writers, key=lambda entry: text(entry, "time"), default={}), "manager")

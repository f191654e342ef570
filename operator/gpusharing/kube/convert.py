"""Convert raw Nodes, GPUNodes and policies to the values that the planner reads.

No function raises because of an object's contents: a missing or malformed field becomes the value that makes the
planner careful (not ready, no observation, a problem). Pods are converted by `kube/pods.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, tzinfo
from functools import cache, lru_cache
from importlib import resources
from sys import intern
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter, ValidationError

from gpusharing.api import names
from gpusharing.api.gpunode import MAX_HOLDERS, ModelStatus, Observed, Request
from gpusharing.api.names import RESOURCE_GPU, TAINT_UNPROVEN
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.records import from_wire
from gpusharing.api.validation import Problem, validate_policy
from gpusharing.kube.client import JSON
from gpusharing.kube.fence import parse_record, read_fence
from gpusharing.kube.labelwriters import label_owners, label_rewriters, setter
from gpusharing.kube.maintenance import find_marker
from gpusharing.kube.raw import (
    count,
    entries,
    gpu_counts,
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
from gpusharing.planning.gpus.cards import Profile, find_card, find_doubt
from gpusharing.planning.gpus.health import vitals_of
from gpusharing.planning.gpus.texts import (
    read_compute_modes,
    read_holders,
    read_indexes,
    read_layout,
    read_profiles,
    read_programs,
)
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, DaemonSetState
from gpusharing.planning.snapshot.podviews import Holder, Taint, Toleration
from gpusharing.planning.snapshot.records import Deferred, Verified
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, ObservedView, PolicyView
from gpusharing.planning.stack.plugins import RESOURCES, find_other_plugin
from gpusharing.planning.stack.requirements import READ
from gpusharing.planning.wanted.target import under_deletion

EFFECT = "NoSchedule"
GPU_TOLERATION = {"key": RESOURCE_GPU, "operator": "Exists", "effect": EFFECT}
"""The toleration of NVIDIA's DaemonSets, unless ClusterPolicy has a list of its own (docs/design/nvidia.md#d9)."""


def lasting_taints(node: JSON) -> tuple[Taint, ...]:
    """Return the taints of a Node that exclude pods until somebody removes them."""
    rows = entries(node, "spec", "taints")
    found = (Taint(*(intern(text(row, key)) for key in ("key", "value", "effect"))) for row in rows)
    return tuple(taint for taint in found if taint.lasting)


def tolerations_of(rows: Sequence[JSON]) -> tuple[Toleration, ...]:
    keys, found = ("key", "operator", "value", "effect"), []
    for row in rows:
        key, operator, value, effect = (intern(text(row, name)) for name in keys)
        found.append(Toleration(key, operator or "Equal", value, effect))
    return tuple(found)


def start_gate(node: JSON) -> str | None:
    """Return a Node's taints besides the start-up taint, as JSON; None without it (docs/design/transition.md#gate)."""
    taints = entries(node, "spec", "taints")
    others = [row for row in taints if (row.get("key"), row.get("effect")) != (TAINT_UNPROVEN, EFFECT)]
    return None if len(others) == len(taints) else rows_text(others)


def tolerates(tolerations: Sequence[JSON], key: str = TAINT_UNPROVEN, value: str | None = None) -> bool:
    """Whether pods with these tolerations may start on a node with the taint `key`:NoSchedule, of any value if None."""
    return any(
        one.covers(Taint(key, one.value if value is None else value, EFFECT)) for one in tolerations_of(tolerations)
    )


def daemon_set_state(raw: JSON) -> DaemonSetState:
    tolerations = entries(raw, "spec", "template", "spec", "tolerations")
    return DaemonSetState(
        name=text(raw, "metadata", "name"),
        release=text(raw, "metadata", "labels", "app.kubernetes.io/instance"),
        tolerates_gate=tolerates(tolerations),
        tolerations=rows_text(tolerations),
    )


def rows_text(rows: Sequence[JSON]) -> str:
    return json.dumps(list(rows), separators=(",", ":"), ensure_ascii=False)


_REPORT = TypeAdapter(Observed)


def node_view(raw: JSON, maintenance_keys: frozenset[str] = frozenset()) -> NodeView:
    """Convert a raw Node; `maintenance_keys` are further marks of somebody else's maintenance."""
    metadata = section(raw, "metadata")
    annotations = texts(metadata.get("annotations"))
    fence, fence_error = read_fence(annotations)
    # If the record of an abort is damaged, only its back-off is lost. If the record of a proof is damaged, a node that
    # is as its policy wants it is adopted again. Neither disturbs a workload.
    deferred_text, verified_text = map(annotations.get, (names.ANNOTATION_DEFERRED, names.ANNOTATION_VERIFIED))
    deferred = None if deferred_text is None else parse_record(Deferred, deferred_text)[0]
    verified = None if verified_text is None else parse_record(Verified, verified_text)[0]
    foreign = find_marker(raw, maintenance_keys)
    resources, capacity = (gpu_counts(part(raw, "status", key)) for key in ("allocatable", "capacity"))
    unhealthy = {name: more for name, count in capacity.items() if (more := count - resources.get(name, 0)) > 0}
    return NodeView(
        name=intern(text(metadata, "name")),
        uid=text(metadata, "uid"),
        labels=interned(metadata.get("labels")),
        resources=resources,
        ready=has_condition(raw, "Ready"),
        unschedulable=part(raw, "spec", "unschedulable") is True,
        deleting=metadata.get("deletionTimestamp") is not None,
        taints=lasting_taints(raw),
        fence=fence,
        fence_error=fence_error,
        deferred=deferred,
        verified=verified,
        neighbor_marks=frozenset(annotations.keys() & set(names.NEIGHBOR_ANNOTATIONS)),
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
        unhealthy=unhealthy,
        boot_id=text(raw, "status", "nodeInfo", "bootID"),
    )


def unknown_node(raw: JSON, why: str) -> NodeView:
    """Return the view of a Node that cannot be converted. It is left as it is: it may be in the middle of a change."""
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
    """Return the device plugin, if any is known, that serves a Node without following our labels."""
    metadata, allocatable = section(raw, "metadata"), section(raw, "status", "allocatable")
    resources = [name for name, number in allocatable.items() if name.startswith(RESOURCES) and count(number)]
    return find_other_plugin(texts(metadata.get("labels")), texts(metadata.get("annotations")), resources)


def gpunode_view(raw: JSON, known: ObservedView | None = None) -> GPUNodeView:
    """Convert a raw GPUNode. `known` is the agent's report as converted earlier, if it has not changed."""
    request = from_wire(Request, section(raw, "spec", "request"))
    annotations = texts(part(raw, "metadata", "annotations"))
    observed = part(raw, "status", "observed")
    if known is None and observed is not None:
        known = observed_view(observed)
    return GPUNodeView(
        name=intern(text(raw, "metadata", "name")),
        uid=text(raw, "metadata", "uid"),
        request_id=request.id,
        quiet=request.quiet,
        holders=request.holders,
        quiet_gpus=request.quiet_gpus,
        observed=known,
        requests={key: annotations[key] for key in names.REQUESTS if key in annotations},
    )


def unknown_gpunode(raw: JSON, why: str) -> GPUNodeView:
    named = {key: text(raw, "metadata", key) for key in ("name", "uid")}
    return gpunode_view({"metadata": named, "spec": raw.get("spec")}, _unreadable(why))


def _unreadable(why: str) -> ObservedView:
    return ObservedView("", False, why, (), allocated=None, pods=None)


def observed_view(raw: object) -> ObservedView:
    """Convert the agent's raw report. One that cannot be read proves nothing: its view has only an error."""
    try:
        observed = _REPORT.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        what = "has another form" if first["type"] == "string_pattern_mismatch" else first["msg"]
        again = "an agent of the operator's version writes it anew, so compare the images of both"
        return _unreadable(f"the agent's report cannot be read: {where}: {what}; {again}")
    capable = {index for index, gpu in enumerate(observed.gpus) if gpu.mig != "NotSupported"}
    models: dict[int, JSON] = {}
    for model in observed.models:
        indexes = read_indexes(model.gpus)
        models |= dict.fromkeys(indexes, _of_model(model, mig_capable=not capable.isdisjoint(indexes)))
    programs, modes = read_programs(observed.programs), read_compute_modes(observed.compute_modes)
    holders = None if observed.holders is None else tuple(Holder(*one) for one in read_holders(observed.holders))
    holders = holders if holders is None or len(holders) <= MAX_HOLDERS else None
    allocated = observed.allocated
    if allocated is not None:
        allocated = {key: value for key, value in sorted(allocated.items()) if value}
    gpus: list[GpuView] = []
    devices: list[str] = []
    for index, gpu in enumerate(observed.gpus):
        layout, key = read_layout(gpu)
        gpus.append(
            GpuView(
                index=index,
                mig_capable=gpu.mig != "NotSupported",
                mig_enabled=layout is not None,
                mig_pending=gpu.mig_pending,
                compute_mode=modes.get(index, "Default"),
                layout=layout,
                partial=gpu.partial_instances,
                processes=tuple(name for name, indexes in programs if index in indexes),
                vitals=vitals_of(gpu),
                instances_withheld=gpu.instances_withheld,
                **models.get(index, _NO_MODEL),
            )
        )
        devices.append(gpu.uuid if layout is None else key)
    return ObservedView(
        request_id=observed.request_id,
        quiet=observed.quiet,
        error=observed.error,
        gpus=tuple(gpus),
        allocated=allocated,
        pods=observed.pods,
        simulated=observed.simulated,
        driver_version=observed.driver_version,
        devices=tuple(devices),
        holders=holders,
    )


_NO_MODEL: JSON = {"product": "", "profiles": (), "doubt": None, "reset_in_guest": False}


def _of_model(model: ModelStatus, *, mig_capable: bool) -> JSON:
    """Return the fields of a GpuView that all GPUs of one card model share.

    Our table counts where the driver lists no profiles or placements, or wrong ones. A name that mig-parted cannot read
    is left out: it would make the file invalid for all nodes.
    """
    card, listed = find_card(model.product), read_profiles(model.profiles)
    if card and (not model.profiles or card.nvml_counts_wrong):
        profiles = card.profiles
    else:
        known = {profile.name: profile for profile in card.profiles} if card else {}
        profiles = _shared(
            tuple(
                replace(profile, starts=same.starts, size=same.size)
                if not profile.starts and (same := known.get(profile.name))
                else profile
                for profile in listed
            )
        )
    return {
        "product": model.product,
        "profiles": profiles,
        "doubt": find_doubt(model.product, listed) if mig_capable else None,
        "reset_in_guest": model.reset_in_guest,
    }


@lru_cache(maxsize=256)
def _shared(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Return one object for all equal `profiles`. This saves memory, and the planner compares by identity."""
    return profiles


def policy_view(raw: JSON) -> PolicyView:
    """Convert a raw GPUSharingPolicy; in place of an invalid spec, the view has `problems`."""
    return _policy(raw, validate_policy(raw))


def unknown_policy(raw: JSON, why: str) -> PolicyView:
    return _policy(raw, (Problem("spec", why),))


def _policy(raw: JSON, checked: GPUSharingPolicySpec | tuple[Problem, ...]) -> PolicyView:
    metadata = section(raw, "metadata")
    annotations = texts(metadata.get("annotations"))
    spec, problems = (None, checked) if isinstance(checked, tuple) else (checked, ())
    view = PolicyView(
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        generation=whole(metadata, "generation"),
        created=text(metadata, "creationTimestamp"),
        deleting=metadata.get("deletionTimestamp") is not None,
        finalizer=names.FINALIZER in strings(metadata.get("finalizers")),
        force_release=annotations.get(names.ANNOTATION_FORCE_RELEASE) == "true",
        spec=spec,
        problems=problems,
        approved=annotations.get(names.ANNOTATION_APPROVE, ""),
        resumed=annotations.get(names.ANNOTATION_RESUME, ""),
        zones={} if spec is None else find_zones(spec),
    )
    return under_deletion(view, resets=text(raw, "spec", "deletionPolicy") == "Reset")


def find_zones(spec: GPUSharingPolicySpec) -> dict[str, tzinfo]:
    """Return UTC and the time zones that a policy names, from the package `tzdata`, as the planner reads no files."""
    named = {window.time_zone for window in (*spec.rollout.windows, *spec.rollout.blackouts)}
    zones = {name: find_zone(name) for name in sorted({"UTC", *named})}
    return {name: zone for name, zone in zones.items() if zone is not None}


@cache
def find_zone(name: str) -> tzinfo | None:
    if name == "UTC":
        return UTC
    if name not in _names():
        return None
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


@cache
def _names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())


def cluster_policy_view(raw: JSON) -> ClusterPolicyView:
    """Convert NVIDIA's raw ClusterPolicy. It does not describe the MPS daemon, which `with_mps_daemon` adds."""
    spec = section(raw, "spec")
    tolerations = entries(spec, "daemonsets", "tolerations") or [GPU_TOLERATION]
    configured = text(raw, "metadata", "annotations", names.ANNOTATION_CONFIGURED)
    return ClusterPolicyView(
        plugin_config_name=text(spec, "devicePlugin", "config", "name"),
        mig_strategy=text(spec, "mig", "strategy"),
        mig_config_name=text(spec, "migManager", "config", "name"),
        switches={path: value for path in READ if isinstance(value := part(spec, *path.split(".")), bool | str)},
        plugin_default=text(spec, "devicePlugin", "config", "default"),
        plugin_version=text(spec, "devicePlugin", "version"),
        mig_manager_version=text(spec, "migManager", "version"),
        name=text(raw, "metadata", "name"),
        uid=text(raw, "metadata", "uid"),
        ignored=text(raw, "status", "state") == "ignored",
        namespace=text(raw, "status", "namespace"),
        plugin_config_setter=setter(raw, "spec", "devicePlugin", "config", "name"),
        mig_config_setter=setter(raw, "spec", "migManager", "config", "name"),
        configured=frozenset(filter(None, configured.split(","))),
        tolerates_gate=tolerates(tolerations),
        tolerations=rows_text(tolerations),
        with_reboot=is_true(variable(section(spec, "migManager"), "WITH_REBOOT")),
        stops_host_clients=is_true(variable(section(spec, "migManager"), "WITH_SHUTDOWN_HOST_GPU_CLIENTS")),
    )

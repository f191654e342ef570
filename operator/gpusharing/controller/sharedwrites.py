"""Shared writes, which the executor makes before the actions of the nodes.

No node is fenced before configuration, finalizers and claims are written.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    EVENTS,
    JSON,
    POLICIES,
    KubeClient,
)
from gpusharing.kube.daemonsets import daemon_set_view, signal
from gpusharing.kube.dra import class_spec, device_class, rule_for
from gpusharing.kube.errors import CallFailed, Conflict, Invalid, NotFound, Unavailable
from gpusharing.kube.lists import check_identity
from gpusharing.kube.raw import strings
from gpusharing.kube.sources import Sources
from gpusharing.kube.stackreader import render_repairs
from gpusharing.planning.snapshot import memory
from gpusharing.planning.snapshot.actions import (
    Action,
    RepairMps,
    SetClaims,
    SetFinalizer,
    SetPointers,
    WriteClasses,
    WriteConfig,
    WriteRules,
)
from gpusharing.planning.snapshot.memory import (
    CLAIMS,
    CLUSTER_POLICY,
    DEVICE_CLASS,
    MPS_DAEMON_SET,
    TAINT_RULE,
    policy_subject,
)
from gpusharing.planning.snapshot.nvidia import MpsRepairs, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.migfile import MIG_KEY

log = structlog.get_logger()

TRIES = 3
"""How many attempts a conditional write gets. After each 409 it is decided again whether to write."""

SUBJECTS: Mapping[type[Action], str] = {
    SetClaims: CLAIMS,
    SetPointers: CLUSTER_POLICY,
    RepairMps: MPS_DAEMON_SET,
    WriteClasses: DEVICE_CLASS,
    WriteRules: TAINT_RULE,
    WriteConfig: memory.CONFIG_MAPS,
}
"""The subject of failures of each shared write that serves all policies; all of them are in `COMMON`."""


def subject_of(action: Action) -> str:
    """Return the name under which failures of a shared write are recorded."""
    if isinstance(action, SetFinalizer):
        return policy_subject(action.policy)
    return SUBJECTS[type(action)]


@dataclass(slots=True)
class SharedWrites:
    """Carries out shared writes; every method may raise a KubeError."""

    client: KubeClient
    sources: Sources
    now: Callable[[], datetime]
    event_of: Callable[[RepairMps], JSON] = lambda action: {}
    writing: str = ""
    """The ConfigMap that is being written, or was last written, as `namespace/name`."""

    async def write_config(self, action: WriteConfig, snapshot: ClusterSnapshot) -> None:
        """Write both ConfigMaps, each also if the other cannot be written. The first error is raised at the end."""
        settings, stack, errors = snapshot.settings, snapshot.stack, list[CallFailed]()
        namespace = settings.gpu_operator_namespace
        with _kept_for_later(errors):
            if (body := plugin_patch(action, stack, self.now())) is not None:
                await self._apply(settings.plugin_config_map, body, action.plugin_configs, namespace)
        failed = self.writing if errors else ""
        with _kept_for_later(errors):
            if (body := mig_patch(action, stack, self.now())) is not None:
                await self._apply(settings.mig_config_map, body, {MIG_KEY: action.mig_file}, namespace)
        if errors:
            self.writing = failed or self.writing
            raise errors[0]

    async def _apply(self, name: str, body: JSON, data: Mapping[str, str], namespace: str) -> None:
        self.writing = f"{namespace}/{name}"
        # One that somebody else created a moment ago may have other entries, so it is not patched before it was read.
        metadata = body["metadata"] | {"name": name, "namespace": namespace}
        whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
        if not self.sources.config_maps.version(name):
            raw = await self.client.create(CONFIG_MAPS, whole, namespace=namespace)
        else:
            try:
                raw = await self.client.patch(CONFIG_MAPS, name, body, namespace=namespace)
            except NotFound:
                raw = await self.client.create(CONFIG_MAPS, whole, namespace=namespace)
        log.info("the ConfigMap was written", configmap=name, keys=sorted(body["data"]))
        self.sources.config_maps.accept(raw)

    async def set_pointers(self, action: SetPointers) -> None:
        """Let fields of a ClusterPolicy point to our ConfigMaps; Conflict if it has changed since the decision."""
        name, cache = action.policy.name, self.sources.cluster_policies
        # The cache holds only the ClusterPolicy; the view's MPS daemon was added from a DaemonSet for the decision.
        if cache.items.get(name) != replace(action.policy, mps_daemon=None):
            raise Conflict(f"ClusterPolicy {name} has changed since the operator decided to update it")
        marks = {names.ANNOTATION_CONFIGURED: ",".join(sorted({*action.policy.configured, *action.wanted}))}
        body: JSON = {"metadata": {"annotations": marks, "resourceVersion": cache.version(name)}, "spec": {}}
        for field_name, config_map in action.wanted.items():
            block, config, key = field_name.split(".")
            body["spec"][block] = {config: {key: config_map}}
        cache.accept(await self.client.patch(CLUSTER_POLICIES, name, body))
        log.info(
            "ClusterPolicy now points at the operator's ConfigMaps", clusterpolicy=name, fields=sorted(action.wanted)
        )

    async def repair_mps(self, action: RepairMps, snapshot: ClusterSnapshot) -> None:
        """Set PROCESS_TO_SIGNAL of the MPS DaemonSet, and post the Event.

        The repair is recorded as pending before, and as made after it. The next pass makes up for what an error or a
        crash has left out, so the Event may be posted twice. Raises Conflict if the DaemonSet has changed since the
        decision or since it was read here.
        """
        daemon, ours = action.daemon, snapshot.settings.plugin_config_map
        raw = await self.client.get(DAEMON_SETS, daemon.name, namespace=daemon.namespace)
        if daemon_set_view(raw).mps_daemon != daemon:
            raise Conflict(f"DaemonSet {daemon.name} has changed since the operator decided to update it")
        if action.repairs != snapshot.stack.mps_repairs:
            await self._record(action.repairs, ours, daemon.namespace)
        if daemon.signalled != daemon.program:
            body = signal(raw, daemon.program)
            try:
                stored = await self.client.patch(DAEMON_SETS, daemon.name, body, namespace=daemon.namespace)
            except Unavailable:
                raise  # the value may have been set
            except CallFailed:
                await self._record(snapshot.stack.mps_repairs, ours, daemon.namespace)
                raise
            self.sources.daemon_sets.accept(stored)
            after = daemon_set_view(stored).mps_daemon
            if after is None or after.signalled != daemon.program:
                raise Invalid(
                    f"in DaemonSet {daemon.name} the API server stored a different value of PROCESS_TO_SIGNAL from the"
                    " one that the operator had set: find the mutating webhook or admission policy that changes it"
                )
        await self.client.create(EVENTS, self.event_of(action), namespace="default")
        await self._record(replace(action.repairs, pending=False), ours, daemon.namespace)
        log.info(
            "the MPS daemons now take their configuration from node labels",
            daemonset=daemon.name,
            repairs=action.repairs.count,
        )

    async def _record(self, repairs: MpsRepairs, config_map: str, namespace: str) -> None:
        body: JSON = {"metadata": {"annotations": {names.ANNOTATION_MPS_REPAIRS: render_repairs(repairs)}}}
        self.sources.config_maps.accept(await self.client.patch(CONFIG_MAPS, config_map, body, namespace=namespace))

    async def write_classes(self, action: WriteClasses) -> None:
        """Create, correct and remove DeviceClasses of ours. The first error is raised at the end."""
        classes, errors = self.sources.device_classes, list[CallFailed]()
        for wanted in action.create:
            with _kept_for_later(errors):
                classes.accept(await self.client.create(DEVICE_CLASSES, device_class(wanted)))
                log.info("the DeviceClass was created", deviceclass=wanted.name, resource=wanted.resource)
        for wanted, current in action.correct:
            with _kept_for_later(errors):
                spec = {"config": None, **class_spec(wanted)}
                body: JSON = {"metadata": {"resourceVersion": current.version}, "spec": spec}
                classes.accept(await self.client.patch(DEVICE_CLASSES, wanted.name, body))
                log.info("the DeviceClass was corrected", deviceclass=wanted.name)
        for current in action.remove:
            with _kept_for_later(errors):
                with suppress(NotFound):
                    # The watch removes it from the cache.
                    await self.client.delete(DEVICE_CLASSES, current.name, uid=current.uid)
                log.info("the DeviceClass was removed, because nothing uses it", deviceclass=current.name)
        if errors:
            raise errors[0]

    async def write_rules(self, action: WriteRules) -> None:
        """Create and remove DeviceTaintRules of ours. The first error, such as AlreadyExists, is raised at the end."""
        rules, errors = self.sources.taint_rules, list[CallFailed]()
        for node in action.create:
            with _kept_for_later(errors):
                rules.accept(await self.client.create(DEVICE_TAINT_RULES, rule_for(node)))
                log.info("a DeviceTaintRule now keeps GPU pods off the node", node=node)
        for current in action.remove:
            with _kept_for_later(errors):
                with suppress(NotFound):
                    await self.client.delete(DEVICE_TAINT_RULES, current.name, uid=current.uid)
                rules.drop(current.name)
                log.info("the DeviceTaintRule was removed", node=current.node)
        if errors:
            raise errors[0]

    async def set_finalizer(self, action: SetFinalizer) -> None:
        """Add our finalizer to a policy, or remove it.

        Raises Conflict if the policy is gone or was replaced, as no node may be fenced for it then, or keeps changing.
        """
        policies = self.sources.policies
        version, present = policies.finalizers(action.policy)
        for _ in range(TRIES):
            wanted = [name for name in present if name != names.FINALIZER]
            wanted += [names.FINALIZER] if action.present else []
            if list(present) == wanted:
                return
            metadata = {"finalizers": wanted, "resourceVersion": version}
            metadata |= {"uid": action.uid} if action.uid else {}
            try:
                policies.accept(await self.client.patch(POLICIES, action.policy, {"metadata": metadata}))
                return
            except NotFound:
                raw = None
            except Conflict:
                raw = await self._reread(action.policy)
            # A change may be a deletionPolicy that needs the finalizer, so it is not removed then.
            if raw is None or not action.present or action.uid not in ("", raw["metadata"]["uid"]):
                if action.present:
                    raise Conflict(f"policy {action.policy} was deleted after the operator had decided to update it")
                return
            version = str(raw["metadata"]["resourceVersion"])
            present = strings(raw["metadata"].get("finalizers"))
        raise Conflict(
            f"could not update policy {action.policy}: someone else changed it during each of {TRIES} attempts"
        )

    async def _reread(self, policy: str) -> JSON | None:
        try:
            raw = await self.client.get(POLICIES, policy)
            check_identity(POLICIES, raw, "uid", "resourceVersion")
        except NotFound:
            return None
        self.sources.policies.accept(raw)
        return raw


@contextmanager
def _kept_for_later(errors: list[CallFailed]) -> Iterator[None]:
    """Append an error to `errors` instead of raising it, unless it concerns all calls."""
    try:
        yield
    except CallFailed as error:
        errors.append(error)


# --- our two ConfigMaps: only what changes, with the time at which each entry was written ----------------------


def plugin_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    present, wanted = stack.plugin_configs, action.plugin_configs
    data: dict[str, str | None] = {key: text for key, text in wanted.items() if present.get(key) != text}
    same = wanted.keys() - data.keys()
    data |= dict.fromkeys(present.keys() - wanted.keys())
    return _patch(data, wanted, same, stack, now, exists=stack.plugin_map_exists)


def mig_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    wanted, present = migfile.parse(action.mig_file), migfile.parse(stack.mig_file)
    data = {MIG_KEY: action.mig_file} if action.mig_file != stack.mig_file else {}
    # mig-manager may have refused a file that someone edited as a whole, so all of its entries count as written now.
    whole = not stack.mig_file or migfile.is_rendered(stack.mig_file)
    same = [name for name, entry in wanted.items() if whole and present.get(name) == entry]
    return _patch(data, wanted, same, stack, now)


def _patch(
    data: Mapping[str, str | None],
    wanted: Iterable[str],
    same: Collection[str],
    stack: StackView,
    now: datetime,
    *,
    exists: bool = True,
) -> JSON | None:
    """Return a patch with `data` and the times of all `wanted` entries, of which the `same` keep theirs."""
    if exists and not data and stack.marked and stack.written.keys() >= set(wanted):
        return None
    stamps = {key: stack.written.get(key, now) if key in same else now for key in sorted(wanted)}
    text = json.dumps({key: stamp.astimezone(UTC).isoformat() for key, stamp in stamps.items()})
    return {
        "metadata": {
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
            "annotations": {names.ANNOTATION_WRITTEN: text},
        },
        "data": dict(data),
    }

"""Shared writes, which the executor makes before the actions of the nodes: configuration, finalizers, claims, the
fields of ClusterPolicy that name our ConfigMaps, the repair of the MPS DaemonSet, DeviceClasses and DeviceTaintRules.
No node is fenced before the first three are written.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim.
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
from gpusharing.kube.dra import class_spec, device_class, rule_for
from gpusharing.kube.errors import (
    Conflict,
    Invalid,
    KubeError,
    NotFound,
    ServerAway,
    Unauthorized,
    Unavailable,
)
from gpusharing.kube.plainstack import daemon_set_view, signal
from gpusharing.kube.raw import strings
from gpusharing.kube.sources import MIG_KEY, Sources
from gpusharing.kube.stackreader import render_repairs
from gpusharing.kube.unreadable import check_identity
from gpusharing.planning.snapshot import callfailures
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
from gpusharing.planning.snapshot.callfailures import (
    CLAIMS,
    CLUSTER_POLICY,
    DEVICE_CLASS,
    MPS_DAEMON_SET,
    TAINT_RULE,
    policy_subject,
)
from gpusharing.planning.snapshot.stackviews import MpsDaemonView, MpsRepairs, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.wanted import migfile

log = structlog.get_logger()

TRIES = 3
"""How many attempts a conditional write gets. After each 409 it is decided again whether to write."""


_SUBJECTS = {
    SetClaims: CLAIMS,
    SetPointers: CLUSTER_POLICY,
    RepairMps: MPS_DAEMON_SET,
    WriteClasses: DEVICE_CLASS,
    WriteRules: TAINT_RULE,
}


def subject_of(action: Action) -> str:
    """Return the name under which failures of a shared write are recorded: the subject of the policy for a finalizer,
    the value in _SUBJECTS for the kinds of writes there, and callfailures.CONFIG_MAPS for every other action."""
    if isinstance(action, SetFinalizer):
        return policy_subject(action.policy)
    return _SUBJECTS.get(type(action), callfailures.CONFIG_MAPS)


@dataclass(slots=True)
class SharedWrites:
    """Carries out shared writes; every method may raise a KubeError."""

    client: KubeClient
    sources: Sources
    """The cache that holds these objects as last read, and takes the server's answers."""
    now: Callable[[], datetime]
    event_of: Callable[[RepairMps], JSON] = lambda action: {}
    """Returns the body of the Event that reports a repair of the MPS DaemonSet."""
    writing: str = ""
    """The ConfigMap that is being written, or was last written, as `namespace/name`."""

    async def write_config(self, action: WriteConfig, snapshot: ClusterSnapshot) -> None:
        """Write our two ConfigMaps, first that of the device plugin, each only if its patch (`plugin_patch`,
        `mig_patch`) is not None. If the first write fails, the second is not attempted."""
        settings, stack = snapshot.settings, snapshot.stack
        namespace = settings.gpu_operator_namespace
        if (body := plugin_patch(action, stack, self.now())) is not None:
            await self._apply(settings.plugin_config_map, body, action.plugin_configs, namespace)
        if (body := mig_patch(action, stack, self.now())) is not None:
            await self._apply(settings.mig_config_map, body, {MIG_KEY: action.mig_file}, namespace)

    async def _apply(self, name: str, body: JSON, data: Mapping[str, str], namespace: str) -> None:
        """Patch a ConfigMap with `body` if the cache knows it. If it does not, or if the server answers NotFound,
        create the ConfigMap with all of its `data` and with the labels and annotations of `body`, which must have
        `metadata`. Record its name in `writing`, log the write, and store the answer in the cache.

        A ConfigMap that somebody else created a moment ago may have other entries, so it is not patched before it has
        been read: creating it then raises AlreadyExists.
        """
        self.writing = f"{namespace}/{name}"
        metadata = body["metadata"] | {"name": name, "namespace": namespace}
        whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
        if not self.sources.config_maps.resource_version(name):
            raw = await self.client.create(CONFIG_MAPS, whole, namespace=namespace)
        else:
            try:
                raw = await self.client.patch(CONFIG_MAPS, name, body, namespace=namespace)
            except NotFound:
                raw = await self.client.create(CONFIG_MAPS, whole, namespace=namespace)
        log.info("the ConfigMap was written", configmap=name, keys=sorted(body["data"]))
        self.sources.config_maps.accept(raw)

    async def set_pointers(self, action: SetPointers) -> None:
        """Let the fields of a ClusterPolicy that `action.wanted` names point to our ConfigMaps. The same patch adds
        these fields to the annotation that lists the fields that we have set. Log the write and store the answer in the
        cache. Raises Conflict if the ClusterPolicy has changed since the decision; the next pass decides again."""
        name, cache = action.policy.name, self.sources.cluster_policies
        # The cache holds only the ClusterPolicy; the view's MPS daemon was added from a DaemonSet for the decision.
        if cache.items.get(name) != replace(action.policy, mps_daemon=None):
            raise Conflict(f"ClusterPolicy {name} has changed since the operator decided to update it")
        marks = {names.ANNOTATION_CONFIGURED: ",".join(sorted({*action.policy.configured, *action.wanted}))}
        body: JSON = {
            "metadata": {"annotations": marks, "resourceVersion": cache.resource_version(name)},
            "spec": {},
        }
        for field_name, config_map in action.wanted.items():
            block, config, key = field_name.split(".")
            body["spec"][block] = {config: {key: config_map}}
        cache.accept(await self.client.patch(CLUSTER_POLICIES, name, body))
        log.info(
            "ClusterPolicy now points at the operator's ConfigMaps",
            clusterpolicy=name,
            fields=sorted(action.wanted),
        )

    async def repair_mps(self, action: RepairMps, snapshot: ClusterSnapshot) -> None:
        """Count the repair as pending on our device-plugin ConfigMap, unless it is recorded already, set
        PROCESS_TO_SIGNAL of the MPS DaemonSet to the name of its daemon, unless it has that value, post the Event, and
        record that the repair is no longer pending. Log it, and store the answers in the cache. If the server refuses
        to set the value, the record is written as it was before, so that only what was made is counted.

        The next pass makes up for what an error or a crash has left out, so the Event may be posted twice. Raises
        Conflict if the DaemonSet has changed since the decision (nothing is written then) or since it was read here.
        Raises Invalid if the API server accepted the patch but stored another value, as a mutating webhook can cause.
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
            except (Unauthorized, ServerAway, Unavailable):
                raise  # the value may have been set
            except KubeError:
                await self._record(snapshot.stack.mps_repairs, ours, daemon.namespace)
                raise
            self._accept_signal(stored, daemon)
        await self.client.create(EVENTS, self.event_of(action), namespace="default")
        await self._record(replace(action.repairs, pending=False), ours, daemon.namespace)
        log.info(
            "the MPS daemons now take their configuration from node labels",
            daemonset=daemon.name,
            repairs=action.repairs.count,
        )

    async def _record(self, repairs: MpsRepairs, config_map: str, namespace: str) -> None:
        """Write the record of repairs of the MPS DaemonSet to our ConfigMap, and store the answer in the cache."""
        body: JSON = {"metadata": {"annotations": {names.ANNOTATION_MPS_REPAIRS: render_repairs(repairs)}}}
        self.sources.config_maps.accept(
            await self.client.patch(CONFIG_MAPS, config_map, body, namespace=namespace)
        )

    def _accept_signal(self, stored: JSON, daemon: MpsDaemonView) -> None:
        """Store the raw DaemonSet of `daemon`, as the server has answered the PATCH, in the cache. Raises Invalid if it
        has another value of PROCESS_TO_SIGNAL than the one that was sent."""
        self.sources.daemon_sets.accept(stored)
        after = daemon_set_view(stored).mps_daemon
        if after is None or after.signalled != daemon.program:
            raise Invalid(
                f"in DaemonSet {daemon.name} the API server stored a different value of PROCESS_TO_SIGNAL from the one"
                " that the operator had set: find the mutating webhook or admission policy that changes it"
            )

    async def write_classes(self, action: WriteClasses) -> None:
        """Create, correct and remove DeviceClasses of ours, in this order, log each write, and store the answers in the
        cache; a removal is left to the watch. A class that is gone already counts as removed. After an error, such as
        AlreadyExists or Conflict, the other writes are still made, and the first error is raised at the end;
        Unauthorized and ServerAway are raised at once."""
        classes, errors = self.sources.device_classes, list[KubeError]()
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
                    await self.client.delete(DEVICE_CLASSES, current.name, uid=current.uid)
                log.info("the DeviceClass was removed, because nothing uses it", deviceclass=current.name)
        if errors:
            raise errors[0]

    async def write_rules(self, action: WriteRules) -> None:
        """Create and remove DeviceTaintRules of ours, in this order, log each write, and update the cache. A rule that
        is gone already counts as removed. After an error, such as AlreadyExists if somebody else has a rule of that
        name, the other writes are still made, and the first error is raised at the end; Unauthorized and ServerAway are
        raised at once."""
        rules, errors = self.sources.taint_rules, list[KubeError]()
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
        """Add our finalizer to a policy, or remove it. Nothing is written if that is already done, or if the policy
        whose finalizer is to be removed no longer exists.

        If the policy has changed since it was read, the finalizer is still added, because that does no harm. It is not
        removed, because the change may be a deletionPolicy that needs the finalizer; no error is raised then, and the
        next pass decides again.

        Raises Conflict if the finalizer cannot be added because the policy is gone or was replaced by another one of
        its name (no node may be fenced for it then), or if others keep changing the policy.
        """
        policies = self.sources.policies
        version, present = policies.finalizers(action.policy)
        for _ in range(TRIES):
            metadata = _finalizers(present, action) | {"resourceVersion": version}
            if list(present) == metadata["finalizers"]:
                return
            try:
                policies.accept(await self.client.patch(POLICIES, action.policy, {"metadata": metadata}))
                return
            except NotFound:
                raw = None
            except Conflict:
                raw = await self._reread(action.policy)
            if raw is None or not action.present or action.uid not in ("", raw["metadata"]["uid"]):
                if action.present:
                    raise Conflict(
                        f"policy {action.policy} was deleted after the operator had decided to update it"
                    )
                return  # the policy that the finalizer protected no longer exists
            version = str(raw["metadata"]["resourceVersion"])
            present = strings(raw["metadata"].get("finalizers"))
        raise Conflict(
            f"could not update policy {action.policy}: someone else changed it during each of {TRIES} attempts"
        )

    async def _reread(self, policy: str) -> JSON | None:
        """Read a policy, store it in the cache, and return it, or None if it is gone. Raises every KubeError other
        than NotFound."""
        try:
            raw = await self.client.get(POLICIES, policy)
            check_identity(POLICIES, raw, "uid", "resourceVersion")
        except NotFound:
            return None
        self.sources.policies.accept(raw)
        return raw


@contextmanager
def _kept_for_later(errors: list[KubeError]) -> Iterator[None]:
    """Append a KubeError of the block to `errors` instead of raising it. Unauthorized and ServerAway, which concern all
    calls, are raised at once."""
    try:
        yield
    except (Unauthorized, ServerAway):
        raise
    except KubeError as error:
        errors.append(error)


def _finalizers(present: tuple[str, ...], action: SetFinalizer) -> JSON:
    """Return the metadata of a patch: the finalizers of others in `present`, ours if the action adds it, and the
    policy's UID if that is known."""
    others = [name for name in present if name != names.FINALIZER]
    wanted = [*others, names.FINALIZER] if action.present else others
    return {"finalizers": wanted, "uid": action.uid} if action.uid else {"finalizers": wanted}


# --- our two ConfigMaps: only what changes, with the time at which each entry was written ----------------------


def plugin_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    """Return the merge patch for the device-plugin ConfigMap, or None if nothing has to be written. The patch has our
    label, the times of writing, and only the entries that differ; entries that are no longer wanted are set to null. A
    patch is returned even without any entry if the ConfigMap does not exist, if one of our ConfigMaps lacks our label,
    or if the time of a wanted entry is not recorded."""
    present, wanted = stack.plugin_configs, action.plugin_configs
    data: dict[str, str | None] = {key: text for key, text in wanted.items() if present.get(key) != text}
    same = wanted.keys() - data.keys()
    data |= dict.fromkeys(present.keys() - wanted.keys())
    if not data and stack.plugin_map_exists and _is_marked(wanted, stack):
        return None
    return _body(data, wanted, same, stack.written, now)


def mig_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    """Return the merge patch for the mig-parted ConfigMap, or None if nothing has to be written. If the file differs,
    the patch has the whole file; if only our label or the time of an entry is missing, `data` is empty. Entries
    that have not changed keep their time, unless somebody has edited the file: then all of them count as written
    now."""
    wanted, present = migfile.parse(action.mig_file), migfile.parse(stack.mig_file)
    data = {MIG_KEY: action.mig_file} if action.mig_file != stack.mig_file else {}
    if not data and _is_marked(wanted, stack):
        return None
    # mig-manager may have refused a file that someone edited as a whole, so all of its entries count as written now.
    whole = not stack.mig_file or migfile.is_rendered(stack.mig_file)
    same = [name for name, entry in wanted.items() if whole and present.get(name) == entry]
    return _body(data, wanted, same, stack.written, now)


def _is_marked(wanted: Iterable[str], stack: StackView) -> bool:
    """Whether our ConfigMaps, as far as they exist, have our label, and the time of writing is recorded for each of
    the `wanted` entries."""
    return stack.marked and stack.written.keys() >= set(wanted)


def _body(
    data: Mapping[str, str | None],
    wanted: Iterable[str],
    same: Collection[str],
    written: Mapping[str, datetime],
    now: datetime,
) -> JSON:
    """Return a merge patch with `data`, our label, and an annotation that says when each of the `wanted` entries was
    written. Entries in `same` keep the time recorded in `written`, if there is one; all others get `now`."""
    stamps = {key: written.get(key, now) if key in same else now for key in sorted(wanted)}
    text = json.dumps({key: stamp.astimezone(UTC).isoformat() for key, stamp in stamps.items()})
    return {
        "metadata": {
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
            "annotations": {names.ANNOTATION_WRITTEN: text},
        },
        "data": dict(data),
    }

"""The state of NVIDIA's components and of our two ConfigMaps, as one view for the planner and for `doctor`."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog

from gpusharing.api.names import ANNOTATION_MPS_REPAIRS, ANNOTATION_WRITTEN
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.daemonsets import DaemonSetView, find_dra, plain_stack, with_mps_daemon
from gpusharing.kube.dra import RULES_UNSERVED, tell_unread
from gpusharing.kube.raw import from_json, section, text, whole
from gpusharing.kube.sources import NODE_CONFIG_SUFFIX, ConfigMapView, Sources
from gpusharing.kube.sourcesettings import NO_MAPS, AdminMaps
from gpusharing.planning.snapshot.memory import CLUSTER_POLICY, DEVICE_CLASS, MPS_DAEMON_SET, TAINT_RULE
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, DraView, MpsRepairs, Program, StackView, find_active
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.drastack import find_doubles
from gpusharing.planning.stack.mps import find_due, find_serving
from gpusharing.planning.stack.plugins import tell_twins
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.migfile import MIG_KEY
from gpusharing.planning.wanted.target import known_times

log = structlog.get_logger()

MOST_REMEMBERED = 500
"""The most entries that are remembered of each ConfigMap; the oldest are forgotten first."""
_ABSENT = ConfigMapView({}, {})


def parse_written(annotation: str) -> dict[str, datetime]:
    """Return when each entry of a ConfigMap was written, by key, as far as the annotation can be read."""
    times = {key: from_rfc3339(stamp) for key, stamp in section(from_json(annotation)).items()}
    return {key: moment for key, moment in times.items() if moment is not None}


def parse_repairs(annotation: str) -> MpsRepairs:
    """Return the recorded repairs; what cannot be read counts as 0, empty or False."""
    record = section(from_json(annotation))
    pending = record.get("pending") is True
    return MpsRepairs(whole(record, "count"), text(record, "plugin"), text(record, "state"), pending)


def render_repairs(repairs: MpsRepairs) -> str:
    return json.dumps(asdict(repairs))


def stack_view(
    cluster_policies: Iterable[ClusterPolicyView],
    sets: Collection[DaemonSetView],
    maps: Mapping[str, ConfigMapView],
    settings: PlanSettings,
    admin: AdminMaps = NO_MAPS,
    *,
    gpu_cluster: bool = False,
) -> StackView:
    active, rivals = find_active(cluster_policies)
    policy = plain_stack(sets) if active is None else with_mps_daemon(active, sets)
    dra, names = find_dra(sets), (settings.plugin_config_map, settings.mig_config_map)
    plugin, mig = ours = [maps.get(name, _ABSENT) for name in names]
    return StackView(
        cluster_policy=policy,
        gpu_cluster=gpu_cluster,
        plugin_configs=plugin.data,
        mig_file=mig.data.get(MIG_KEY, ""),
        written={},
        admin_mig_file=maps.get(admin.mig, _ABSENT).data.get(MIG_KEY, ""),
        admin_plugin_configs=maps.get(admin.plugin, _ABSENT).data,
        missing_maps=tuple(sorted({admin.plugin, admin.mig} - {"", *maps})),
        generated_mig_files={
            name.removesuffix(NODE_CONFIG_SUFFIX): config_map.data.get(MIG_KEY, "")
            for name, config_map in maps.items()
            if name.endswith(NODE_CONFIG_SUFFIX)
        },
        plugin_map_exists=bool(plugin.uid),
        serves_our_mig_file=settings.mig_config_map
        == (dra.mig_config_map if policy is None else policy.mig_config_name),
        marked=all(config_map.labelled for config_map in ours if config_map.uid),
        rival_policies=rivals,
        twins=tell_twins([one.server for one in sets if one.server], settings.gpu_operator_namespace),
        finders=tuple(sorted((one.finder for one in sets if one.finder is not None), key=lambda finder: finder.name)),
        mps_repairs=parse_repairs(plugin.annotations.get(ANNOTATION_MPS_REPAIRS, "")),
        foreign_maps=tuple(name for name, each in zip(names, ours, strict=True) if each.is_foreign),
        dra=dra,
    )


@dataclass(slots=True)
class OurConfigMaps:
    """Our two ConfigMaps, with the earlier entries that are named after their content.

    Such an entry can be restored when somebody edits or deletes it while a Node names it. A restart forgets them.
    """

    plugin: ConfigMapView = _ABSENT
    mig: ConfigMapView = _ABSENT
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    times: Mapping[str, datetime] = field(default_factory=dict)
    """When each entry was written according to the annotations, by key."""

    def read(self, plugin: ConfigMapView | None, mig: ConfigMapView | None) -> None:
        """Store the present ConfigMaps, None for one that does not exist, and remember their lasting entries."""
        plugin, mig = plugin or _ABSENT, mig or _ABSENT
        if plugin is self.plugin and mig is self.mig:
            return
        if plugin is not self.plugin:
            self.plugin = plugin
            named = {k: v for k, v in self.plugin.data.items() if pluginconfig.is_named_after(v, k)}
            self.seen_plugin_configs = _newest({**self.seen_plugin_configs, **named})
        if mig is not self.mig:
            self.mig = mig
            own = migfile.lasting_entries(self.mig.data.get(MIG_KEY, ""))
            self.seen_mig_entries = _newest({**self.seen_mig_entries, **own})
        self.times = {
            key: moment
            for config_map in (self.plugin, self.mig)
            for key, moment in parse_written(config_map.annotations.get(ANNOTATION_WRITTEN, "")).items()
        }


@dataclass(slots=True)
class StackReader:
    """Builds the StackView from the watched objects; failed writes count if they last, those of ConfigMaps at once."""

    sources: Sources
    calls: CallMemory
    silent: bool
    """Whether to log nothing, because this is part of a command-line program."""
    _config_maps: OurConfigMaps = field(default_factory=OurConfigMaps)
    _view: StackView | None = None

    def read(self, now: datetime) -> StackView:
        """Return the present state of the stack, the same object as long as nothing changes."""
        sources, settings = self.sources, self.sources.settings
        maps, ours = sources.config_maps.items, self._config_maps
        ours.read(maps.get(settings.plugin_config_map), maps.get(settings.mig_config_map))
        sets, agents = sources.daemon_sets.items.values(), sources.agents.items.values()
        policies, gpu_cluster = sources.cluster_policies.items.values(), bool(sources.gpu_clusters.items)
        view = stack_view(policies, sets, maps, settings, settings.admin_maps, gpu_cluster=gpu_cluster)
        tolerant = any(pod.tolerates_gate for pod in agents)
        view = replace(
            view,
            written=known_times(ours.times, now),
            write_error=self.calls.write_error,
            intolerant_agents="" if tolerant else next((pod.namespace for pod in agents), ""),
            pointer_error=self._lasting_error(CLUSTER_POLICY),
            repair_error=self._lasting_error(MPS_DAEMON_SET),
            seen_plugin_configs=ours.seen_plugin_configs,
            seen_mig_entries=ours.seen_mig_entries,
            dra=self._with_devices(view.dra),
        )
        if find_due(view, settings) is not None:
            daemons = {pod.node for pod in sources.operands.items.values() if pod.app == Program.MPS_DAEMON}
            ready = {pod.node for pod in agents if pod.ready}
            serving = find_serving(sources.nodes.items, sources.gpunodes.items, ready, daemons, view)
            view = replace(view, mps_nodes=serving)
        before = self._view
        if before is not None and before == view:
            return before
        if not self.silent:
            self._tell(before, view)
        self._view = view
        return view

    def _lasting_error(self, subject: str) -> str:
        """Return why the shared write to `subject`, such as CLUSTER_POLICY, failed twice in a row; else empty."""
        failure = self.calls.failures.get(subject)
        return failure.message if failure is not None and failure.lasts else ""

    def _with_devices(self, dra: DraView) -> DraView:
        sources = self.sources
        published = {name for name, one in sources.devices().items() if one.layouts}
        slices, classes = sources.resource_slices, sources.device_classes
        rule_error = self._lasting_error(TAINT_RULE) or tell_unread(
            sources.taint_rules.error, "devicetaintrules", RULES_UNSERVED
        )
        taints_work, taint_error = (False, rule_error) if rule_error else self.calls.taint_proof
        wanted = sources.settings.device_taints
        return replace(
            dra,
            unread=tell_unread(slices.error, "resourceslices") or tell_unread(classes.error, "deviceclasses"),
            doubles=find_doubles(sources.nodes.items, published),
            classes=tuple(classes.items[name] for name in sorted(classes.items)) if classes.synced.is_set() else None,
            class_error=self._lasting_error(DEVICE_CLASS),
            taints_work=wanted and taints_work,
            taint_error=taint_error if wanted else "",
            rule_error=rule_error,
        )

    def _tell(self, before: StackView | None, now: StackView) -> None:
        for name in now.missing_maps:
            if before is None or name not in before.missing_maps:
                log.warning("the admin's ConfigMap does not exist", configmap=name)
        problem = migfile.parse_admin(now.admin_mig_file)[1]
        if problem and (before is None or before.admin_mig_file != now.admin_mig_file):
            name = self.sources.settings.admin_mig_config_map
            log.warning(
                "mig-parted would reject entries in the admin's ConfigMap, so the operator does not merge them into"
                " its own",
                configmap=name,
                why=problem,
            )


def _newest(remembered: dict[str, Any]) -> dict[str, Any]:
    return dict(list(remembered.items())[-MOST_REMEMBERED:])

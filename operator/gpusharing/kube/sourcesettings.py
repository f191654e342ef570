"""The settings that say which objects are read, beside those of the planner. A standby reads them too, and imports no more."""

from dataclasses import dataclass
from typing import Annotated

from gpusharing.api.settingtypes import listed
from gpusharing.kube.maintenance import find_problem
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.vocabulary.values import value

MaintenanceKeys = Annotated[tuple[str, ...], listed(find_problem)]


@dataclass(frozen=True, slots=True)
class AdminMaps:
    """Names of the admin's ConfigMaps, beside ours, whose entries are merged into ours; empty if there is none."""

    plugin: str = ""
    mig: str = ""


NO_MAPS = AdminMaps()


@value  # a frozen dataclass cannot inherit from one that only mypy freezes
class SourceSettings(PlanSettings):
    """The planner's settings, and which objects are read."""

    admin_mig_config_map: str = ""
    """ConfigMap in the GPU Operator's namespace whose mig-parted entries are merged into ours; empty if
    there is none."""
    admin_plugin_config_map: str = ""
    """ConfigMap in the GPU Operator's namespace whose device-plugin entries are merged into ours; empty if
    there is none."""
    agent_namespace: str = "gpusharing-agent"
    """Namespace of the agent's pods; if empty, the operator's own namespace."""
    maintenance_keys: MaintenanceKeys = ()
    """Comma-separated keys. A label, annotation or taint with one of them means that someone else maintains
    the Node."""

    @property
    def admin_maps(self) -> AdminMaps:
        return AdminMaps(self.admin_plugin_config_map, self.admin_mig_config_map)

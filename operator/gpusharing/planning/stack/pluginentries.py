"""What is wrong with the ConfigMap that ClusterPolicy points the device plugin at: absent, or with entries that the
plugin refuses or reads otherwise than they look."""

from collections.abc import Collection, Mapping, Sequence

from gpusharing.planning.stack.symptoms import Symptoms, Topic, error, warning
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.pluginfile import find_flaws

MOST = 3
"""Fields that a message names."""


@value
class PluginEntries:
    """The ConfigMap of the device plugin's configurations."""

    config_map: str
    """Its name."""
    namespace: str
    """The namespace of the device plugin, in which it has to be."""
    texts: Mapping[str, str] | None
    """The configurations by key; None: there is no such ConfigMap there."""
    elsewhere: Sequence[str] = ()
    """Other namespaces with a ConfigMap of that name, if it is absent."""

    @property
    def absence(self) -> str:
        """The message that the ConfigMap is absent; empty if it exists."""
        if self.texts is not None:
            return ""
        found = f"; one of that name is in {some(self.elsewhere)}" if self.elsewhere else ""
        return (
            f"ConfigMap {self.config_map} does not exist in namespace {self.namespace}{found}; device plugins cannot"
            " start"
        )

    def describe(self, key: str, *, refused: bool) -> str:
        """Return what the device plugin refuses in an entry (`refused`), or what it ignores (not `refused`), by field;
        empty if there is no such field. Only the first few fields are named."""
        flaws = [one.text for one in find_flaws((self.texts or {})[key]) if one.refused == refused]
        return f"ConfigMap {self.config_map}, entry {key}, {'; '.join(flaws[:MOST])}" if flaws else ""


def find_entry_symptoms(entries: PluginEntries, used: Collection[str], install: str) -> Symptoms:
    """Report an absent ConfigMap and every entry that the device plugin refuses or reads only in part. An absent
    ConfigMap and a refused entry in use are errors, all else are warnings.

    `used`: the entries that Nodes or ClusterPolicy's default name. `install`: the command that installs the operator;
    empty once it is installed.
    """
    if entries.absence:
        command = install or f"kubectl get configmaps -A --field-selector metadata.name={entries.config_map}"
        yield error(Topic.CONFIG_MAPS, "PluginConfigMapMissing", entries.absence, command)
    edit = f"kubectl -n {entries.namespace} edit configmap {entries.config_map}"
    for key in sorted(entries.texts or ()):
        if refused := entries.describe(key, refused=True):
            yield (error if key in used else warning)(Topic.CONFIG_MAPS, "PluginConfigRefused", refused, edit)
        elif ignored := entries.describe(key, refused=False):
            yield warning(Topic.CONFIG_MAPS, "PluginConfigIgnored", ignored, edit)

"""What is wrong with the ConfigMap that ClusterPolicy points the device plugin at: absent, or with entries that the
plugin refuses or reads otherwise than they look."""

from collections.abc import Collection, Mapping, Sequence

from gpusharing.planning.stack.symptoms import Symptoms, Topic, error, warning
from gpusharing.planning.wanted.pluginfile import find_flaws
from gpusharing.planning.words.lengths import some
from gpusharing.planning.words.values import value

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
        """The sentence that says that the ConfigMap is absent; empty if it is there."""
        if self.texts is not None:
            return ""
        found = f"; one of that name is in {some(self.elsewhere)}" if self.elsewhere else ""
        return (
            f"ConfigMap {self.config_map} does not exist in namespace {self.namespace}{found}; device plugins cannot"
            " start"
        )

    def describe(self, key: str, *, refused: bool) -> str:
        """Return what the device plugin refuses, or ignores, in an entry, by field; empty if it does not."""
        flaws = [one.text for one in find_flaws((self.texts or {})[key]) if one.refused == refused]
        return f"ConfigMap {self.config_map}, entry {key}, {'; '.join(flaws[:MOST])}" if flaws else ""


def find_entry_symptoms(entries: PluginEntries, used: Collection[str], install: str) -> Symptoms:
    """Return an error for an absent ConfigMap or a refused entry in use, else a warning. `used`: entries that Nodes or
    ClusterPolicy's default name. `install`: the command that comes before all others, empty after the installation."""
    if entries.absence:
        command = install or f"kubectl get configmaps -A --field-selector metadata.name={entries.config_map}"
        yield error(Topic.CONFIG_MAPS, "PluginConfigMapMissing", entries.absence, command)
    edit = f"kubectl -n {entries.namespace} edit configmap {entries.config_map}"
    for key in sorted(entries.texts or ()):
        if refused := entries.describe(key, refused=True):
            yield (error if key in used else warning)(Topic.CONFIG_MAPS, "PluginConfigRefused", refused, edit)
        elif ignored := entries.describe(key, refused=False):
            yield warning(Topic.CONFIG_MAPS, "PluginConfigIgnored", ignored, edit)

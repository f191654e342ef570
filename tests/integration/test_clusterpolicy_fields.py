"""What we read of ClusterPolicy under the CRD of each version of the GPU Operator (SIMULATED, with pruning)."""

import json
from typing import Any

import pytest
from hack.cluster import install
from hack.cluster.api import MERGE_PATCH, Api, Object
from hack.cluster.clusterpolicy import FIELDS, CRDVersion, Field, versions
from hack.cluster.controlplane import ControlPlane

from gpusharing.kube.convert import cluster_policy_view
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.effects import UPSTREAM_MIG_CONFIG
from gpusharing.planning.stack.installationviews import kubectl_patch
from gpusharing.planning.stack.pointers import mig_pointer, plugin_pointer
from gpusharing.planning.stack.requirements import READ as READ_BY_THE_TABLE
from gpusharing.planning.stack.requirements import SANDBOX_DEFAULT

VERSIONS = versions()
PAGE = FIELDS.parents[3] / "docs" / "design" / "nvidia.md"

# Field: what stands there, the part of our view that tells of it, what that then says, and what it says without.
READ: dict[str, tuple[Any, str, Any, Any]] = {
    "spec.devicePlugin.config.name": ("ours", "plugin_config_name", "ours", ""),
    "spec.devicePlugin.config.default": ("theirs", "plugin_default", "theirs", ""),
    "spec.devicePlugin.version": ("v0.19.3", "plugin_version", "v0.19.3", ""),
    "spec.mig.strategy": ("mixed", "mig_strategy", "mixed", ""),
    **{f"spec.{path}": (True, f"switches {path}", True, None) for path in READ_BY_THE_TABLE if path != SANDBOX_DEFAULT},
    f"spec.{SANDBOX_DEFAULT}": ("vm-vgpu", f"switches {SANDBOX_DEFAULT}", "vm-vgpu", "container"),
    "spec.migManager.version": ("v0.13.1", "mig_manager_version", "v0.13.1", ""),
    "spec.migManager.env": ([{"name": "WITH_REBOOT", "value": "true"}], "with_reboot", True, False),
    "spec.migManager.config.name": ("ours", "mig_config_name", "ours", ""),
    "spec.daemonsets.tolerations": (
        [{"key": "gpusharing.dev/unproven", "operator": "Exists", "effect": "NoSchedule"}],
        "tolerates_gate",
        True,
        False,
    ),
    "status.state": ("ignored", "ignored", True, False),
    "status.namespace": ("nvidia", "namespace", "nvidia", ""),
}
NOT_READ = {"spec.migManager.config.default": "all-disabled", "spec.cdi.nriPluginEnabled": True}
"""Of these people hear in our documents only."""


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> Api:
    """An API server that serves the stand-in of every version, each in a group of its own."""
    admin = control_plane.api
    install.apply_documents(admin, [version.crd for version in VERSIONS])
    for version in VERSIONS:
        probe = manifest(version, {})
        install.apply_documents(admin, [probe])  # tried again until the kind is served
        admin.delete(install.object_path(admin, probe))
    return admin


def manifest(version: CRDVersion, fields: dict[str, Any]) -> Object:
    """A ClusterPolicy with these fields, and with the blocks that every one must have."""
    found: Object = {
        "apiVersion": f"{version.group}/v1",
        "kind": "ClusterPolicy",
        "metadata": {"name": "gpus"},
        "spec": {block: {} for block in version.required},
    }
    for path, value in fields.items():
        *blocks, last = path.split(".")
        where = found
        for block in blocks:
            where = where.setdefault(block, {})
        where[last] = value
    return found


def stored(api: Api, version: CRDVersion, fields: dict[str, Any], **query: str) -> Object:
    """What the server makes of it; a status goes to its own path, as the GPU Operator's does."""
    path = f"/apis/{version.group}/v1/clusterpolicies"
    body = manifest(version, fields)
    status = body.pop("status", None)
    api.request("POST", path, body, **query)
    try:
        if status is not None:
            api.merge_patch(f"{path}/gpus/status", {"status": status})
        found: Object = api.get(f"{path}/gpus")
        return found
    finally:
        api.delete(f"{path}/gpus")


def told_of(view: ClusterPolicyView, part: str) -> Any:
    """A field of the view, or after `switches ` what it holds of a switch."""
    kind, _, path = part.partition(" ")
    return view.switches.get(path) if path else getattr(view, kind)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_each_field_that_we_read_is_read_when_it_is_there_and_when_it_is_not(api: Api, version: CRDVersion) -> None:
    whole = {path: row[0] for path, row in READ.items()}
    for path, (_, part, there, absent) in READ.items():
        alone = cluster_policy_view(stored(api, version, {path: whole[path]}, fieldValidation="Strict"))
        assert told_of(alone, part) == there, path
        without = {other: value for other, value in whole.items() if other != path}
        others = cluster_policy_view(stored(api, version, without, fieldValidation="Strict"))
        # A default of the CRD counts where its block is there: here nothing but the block's one field is taken away.
        assert told_of(others, part) == absent, path


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_what_the_crd_makes_of_an_empty_block_is_no_value_of_somebody_else(api: Api, version: CRDVersion) -> None:
    found = stored(api, version, {"spec.migManager.config.default": "all-disabled"})
    pointer = mig_pointer(cluster_policy_view(found), PlanSettings(mig_config_map="ours"))
    path = ("spec", "migManager", "config", "name")
    assert pointer.now == (next(one.default for one in version.fields if tuple(one.path) == path) or "")
    assert pointer.now in ("", UPSTREAM_MIG_CONFIG)
    assert pointer.is_free


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_what_a_version_does_not_know_is_pruned_without_a_word(api: Api, version: CRDVersion) -> None:
    found = stored(api, version, {**NOT_READ, "spec.devicePlugin.config.made-up": "x"})
    assert "made-up" not in found["spec"]["devicePlugin"].get("config", {})
    known = any(one.present for one in version.fields if one.path[-1] == "nriPluginEnabled")
    assert found["spec"].get("cdi", {}).get("nriPluginEnabled", False) is known


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_the_commands_for_the_pointers_fit_the_schema_and_do_what_they_say(api: Api, version: CRDVersion) -> None:
    path = f"/apis/{version.group}/v1/clusterpolicies"
    api.create(path, manifest(version, {"spec.devicePlugin.config.default": "theirs"}))
    try:
        view = cluster_policy_view(api.get(f"{path}/gpus"))
        settings = PlanSettings(plugin_config_map="our-plugin", mig_config_map="our-mig")
        for pointer in (plugin_pointer(view, settings, ()), mig_pointer(view, settings)):
            command = kubectl_patch("gpus", pointer.change.fields, effects=())
            assert command is not None
            body = json.loads(command.options["-p"])
            api.request("PATCH", f"{path}/gpus", body, MERGE_PATCH, fieldValidation="Strict")
        now: ClusterPolicyView = cluster_policy_view(api.get(f"{path}/gpus"))
        assert (now.plugin_config_name, now.mig_config_name, now.plugin_default) == ("our-plugin", "our-mig", "")
    finally:
        api.delete(f"{path}/gpus")


def cell(one: Field) -> str:
    if not one.present:
        return "–"
    return "yes" if one.default is None else f"`{json.dumps(one.default).strip(chr(34))}`"


def test_the_page_holds_the_same_table_and_every_field_is_tried() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(("| `spec.", "| `status."))]
    told = {
        cells[0].strip("`"): cells[1:] for cells in ([c.strip() for c in row.strip("|").split("|")] for row in rows)
    }
    wanted = {
        ".".join(one.path): [cell(version.fields[number]) for version in VERSIONS]
        for number, one in enumerate(VERSIONS[0].fields)
    }
    assert told == wanted
    assert wanted.keys() == READ.keys() | NOT_READ.keys()

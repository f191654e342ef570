"""What other people write never ends the process: every reader of it gives an answer, whatever the text is."""

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.build import NOW as now
from tests.build import (
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
)
from tests.kube.damage import ODD, ODD_YAML, damaged, yaml_of
from tests.kube.objects import node, observed, observed_gpu, pod

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.times import from_rfc3339
from gpusharing.kube import convert, fence, pods
from gpusharing.kube.actuatorlogs import failure_in
from gpusharing.kube.client import PODS, ApiRequest
from gpusharing.kube.errors import KubeError
from gpusharing.kube.maintenance import medik8s_maintenance, nvidia_maintenance
from gpusharing.kube.raw import count
from gpusharing.kube.sources import ConfigMapView
from gpusharing.kube.sourcesettings import NO_MAPS
from gpusharing.kube.stackreader import OurConfigMaps, parse_written
from gpusharing.kube.wire import error_of, error_of_event
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.records import Deferred, Fence, Verified
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import migfile, pluginconfig
from kubectl_gpusharing.setup.handmade import Handmade, find_handmade, propose
from kubectl_gpusharing.setup.importing import AdminConfigMaps, as_yaml, find_import, find_remarks, with_pointers

TWO = (make_gpu(0), make_gpu(1))
META = ("apiVersion", "kind", "metadata")
"""What the API server guarantees of every object."""

MIG_FILE = {
    "version": "v1",
    "mig-configs": {
        "halves": [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}],
        "off": [{"device-filter": ["0x233010DE"], "devices": [0, 1], "mig-enabled": False}],
    },
}
PLUGIN_FILE = {
    "version": "v1",
    "flags": {"migStrategy": "mixed"},
    "sharing": {
        "timeSlicing": {"renameByDefault": True, "resources": [{"name": "nvidia.com/gpu", "replicas": 4}]},
        "mps": {"resources": [{"name": "gpu", "replicas": 4}]},
    },
}
PDB = {
    "metadata": {"namespace": "team-a", "name": "llm"},
    "spec": {
        "selector": {
            "matchLabels": {"app": "llm"},
            "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
        }
    },
    "status": {"disruptionsAllowed": 1, "expectedPods": 2, "desiredHealthy": 1, "currentHealthy": 2},
}
CLAIM = {
    "metadata": {"namespace": "team-a", "name": "c"},
    "status": {"allocation": {"devices": {"results": [{"driver": "gpu.nvidia.com", "adminAccess": False}]}}},
}
CLAIMING_POD = {
    "spec": {"resourceClaims": [{"name": "a", "resourceClaimName": "b"}, {"name": "c"}]},
    "status": {
        "resourceClaimStatuses": [{"name": "c", "resourceClaimName": "d"}],
        "extendedResourceClaimStatus": {"resourceClaimName": "e"},
    },
}
OBSERVED = observed(
    observed_gpu(mig="1x3g.40gb@0123456789abcdef"),
    profiles=["3g.40gb id=9 max=2 placements={0,4}:4", "7g.80gb id=0 max=1 placements={0}:8"],
    programs="0 python",
)
POLICY = {
    "metadata": {"name": "pool-b", "uid": "1", "generation": 1, "creationTimestamp": "2026-11-20T00:00:00Z"},
    "spec": {
        "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}},
        "mode": "MIG",
        "mig": {"strategy": "mixed", "layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}]},
        "drain": {"timeout": "15m"},
        "rollout": {"maxUnavailable": "50%", "timeouts": {"actuation": "30m"}},
    },
}
CLUSTER_POLICY = {
    "metadata": {"name": "cluster-policy"},
    "spec": {
        "devicePlugin": {"version": "v0.19.3", "config": {"name": "x", "default": "y"}},
        "mig": {"strategy": "single"},
        "migManager": {
            "enabled": True,
            "version": "v0.13.1",
            "config": {"name": "z"},
            "env": [{"name": "WITH_REBOOT", "value": "true"}],
        },
    },
}
MAINTENANCE = {
    "metadata": {"name": "nm", "namespace": "m"},
    "spec": {"nodeName": "gpu-07", "requestorID": "who"},
    "status": {"phase": "Failed", "conditions": [{"type": "RequestorFailed", "status": "True"}]},
}
STATUS = {
    "kind": "Status", "message": "no", "code": 429, "reason": "TooManyRequests",
    "details": {"retryAfterSeconds": 5, "causes": [{"reason": "DisruptionBudget", "message": "The disruption budget"}]},
}  # fmt: skip


@given(damaged(node(), META))
def test_a_damaged_node_is_read(raw: Any) -> None:
    assert convert.node_view(raw).name == "gpu-07"


@given(damaged(pod(), META))
def test_a_damaged_pod_is_read(raw: Any) -> None:
    assert pods.pod_view(raw, {}).name == "llm-0"


@given(damaged(CLAIMING_POD))
def test_damaged_claims_of_a_pod_are_read(raw: Any) -> None:
    assert isinstance(pods.resource_claim_names(raw), tuple)


@given(damaged(CLAIM, META), damaged(PDB, META))
def test_damaged_claims_and_budgets_are_read(claim: Any, budget: Any) -> None:
    assert isinstance(pods.claimed_devices(claim), tuple | None)
    assert pods.pdb_view(budget).name == "llm"


def test_what_is_damaged_below_can_be_read_before() -> None:
    """Or every damage would be met by the same complaint."""
    assert convert.observed_view(OBSERVED).error == ""
    assert convert.policy_view(POLICY).problems == ()
    assert fence.parse_record(Fence, json.dumps(RECORD))[1] == ""


@given(damaged(OBSERVED))
def test_a_damaged_report_of_an_agent_is_an_error_of_that_node(raw: Any) -> None:
    view = convert.observed_view(raw)
    assert view.gpus or view.error or not raw.get("gpus")


@given(damaged({"spec": {"request": {"id": "a", "quiet": True}}, "status": {"observed": OBSERVED}}))
def test_a_damaged_gpunode_is_read(raw: Any) -> None:
    assert convert.gpunode_view({"metadata": {"name": "gpu-07"}, **raw}).name == "gpu-07"


@given(damaged(POLICY, META))
def test_a_damaged_policy_has_a_spec_or_problems(raw: Any) -> None:
    view = convert.policy_view(raw)
    assert (view.spec is None) == bool(view.problems)


@given(damaged(CLUSTER_POLICY, META), damaged(MAINTENANCE, META))
def test_damaged_objects_of_other_operators_are_read(cluster_policy: Any, maintenance: Any) -> None:
    assert all(isinstance(one, bool | str) for one in convert.cluster_policy_view(cluster_policy).switches.values())
    assert "NodeMaintenance" in medik8s_maintenance(maintenance).who
    assert "NodeMaintenance" in nvidia_maintenance(maintenance).who


@given(st.sampled_from([400, 401, 403, 404, 409, 410, 422, 429, 500, 503, 504, 418]), damaged(STATUS), st.text())
def test_a_damaged_refusal_is_an_error_of_ours(code: int, status: Any, retry_after: str) -> None:
    for request in (ApiRequest("create", PODS, "eviction"), ApiRequest("list", PODS)):
        assert isinstance(error_of(request, code, status, retry_after), KubeError)
        assert isinstance(error_of_event(request, status if isinstance(status, dict) else {}), KubeError)


RECORD = json.loads(fence.record_text(make_fence()))


@given(damaged(RECORD))
def test_a_damaged_record_is_no_record(record: Any) -> None:
    text = json.dumps(record)
    for kind in (Fence, Deferred, Verified):
        found, why = fence.parse_record(kind, text)
        assert (found is None) == bool(why)
    claims, why = fence.parse_claims(json.dumps({"v": 1, "claims": {"gpu-07": record}}))
    assert bool(claims) != bool(why)


@pytest.mark.parametrize("odd", [*ODD, *ODD_YAML], ids=lambda odd: str(odd)[:30].encode("unicode_escape").decode())
def test_an_odd_value_is_no_record_no_stamp_and_no_quantity(odd: Any) -> None:
    text = odd if isinstance(odd, str) else json.dumps(odd)
    assert fence.parse_record(Fence, text)[0] is None
    assert fence.parse_claims(text)[0] == {}
    for stamps in (text, json.dumps({"a": odd})):
        assert all(moment <= now or moment > now for moment in parse_written(stamps).values())
    assert from_rfc3339(odd) is None or from_rfc3339(odd) != now
    assert count(odd) is None or isinstance(count(odd), int)
    assert isinstance(failure_in(text), str)


@given(st.text())
def test_any_log_of_mig_manager_is_read(text: str) -> None:
    assert len(failure_in(f'level=error msg="{text}"')) <= 400


@settings(max_examples=300)
@given(yaml_of(MIG_FILE))
def test_a_damaged_mig_file_has_entries_that_mean_something_or_nothing(text: str) -> None:
    for entries in (migfile.parse(text), migfile.parse_admin(text)[0]):
        for entry in entries.values():
            meaning = migfile.resolve(entry, TWO)
            assert isinstance(meaning, str | tuple)
        assert migfile.parse(migfile.render(entries)).keys() == entries.keys()


@settings(max_examples=300)
@given(yaml_of(PLUGIN_FILE))
def test_a_damaged_plugin_configuration_is_one_or_none(text: str) -> None:
    config = pluginconfig.parse(text)
    assert config is None or pluginconfig.parse(pluginconfig.render(config)) is not None


@settings(max_examples=200)
@given(yaml_of(MIG_FILE), yaml_of(PLUGIN_FILE), st.sampled_from(ODD))
def test_our_own_configmaps_after_an_edit_are_read(mig: str, plugin: str, stamp: Any) -> None:
    written = {names.ANNOTATION_WRITTEN: json.dumps({"a": stamp})}
    ours = OurConfigMaps()
    ours.read(ConfigMapView({"a": plugin}, written, "1", True), ConfigMapView({"config.yaml": mig}, written, "2"))
    assert ours.times.keys() <= {"a"}


@settings(max_examples=200)
@given(
    st.sampled_from(["admin_mig_file", "admin_plugin_configs", "mig_file", "plugin_configs", "generated_mig_files"]),
    yaml_of(MIG_FILE),
    yaml_of(PLUGIN_FILE),
    st.sampled_from(["halves", "off", "all-balanced"]),
    st.booleans(),
)
def test_a_plan_is_made_whatever_the_files_hold(kind: str, mig: str, plugin: str, config: str, ours: bool) -> None:
    fields: dict[str, Any] = {
        "admin_mig_file": mig,
        "admin_plugin_configs": {"their-config": plugin},
        "mig_file": mig,
        "plugin_configs": {"their-config": plugin},
        "generated_mig_files": {"gpu-07": mig},
    }
    policy = make_policy(mig={"config": config})
    stack: StackView = make_stack(policy, **{kind: fields[kind]}, serves_our_mig_file=ours)
    labels = {"nvidia.com/device-plugin.config": "their-config", "nvidia.com/gpu.replicas": "4"}
    nodes = [make_node(labels=labels), make_node("gpu-08", labels={"nvidia.com/mig.config": "halves"})]
    reports = [make_gpunode(view.name, gpus=TWO) for view in nodes]
    plan = plan_rollout(make_snapshot(nodes, [policy], gpunodes=reports, stack=stack), now)
    assert plan.verdicts.keys() == {"gpu-07", "gpu-08"}
    assert Phase.FAILED not in {verdict.phase for verdict in plan.verdicts.values()}


@settings(max_examples=200)
@given(damaged(OBSERVED), st.sampled_from([{"config": "all-3g.40gb"}, {"config": "all-balanced"}, {}]))
def test_whatever_an_agent_reports_all_nodes_have_a_plan_and_a_file_that_mig_parted_takes(
    raw: Any, mig: dict[str, Any]
) -> None:
    """One bad entry would make mig-parted refuse the file on every node."""
    policy = make_policy(mig=mig) if mig else make_policy()
    liar = replace(make_gpunode("gpu-06"), observed=convert.observed_view(raw))
    nodes, reports = [make_node("gpu-06"), make_node("gpu-07")], [liar, make_gpunode("gpu-07")]
    plan = plan_rollout(make_snapshot(nodes, [policy], gpunodes=reports, stack=make_stack(policy)), now)
    assert Reason.NODE_NOT_JUDGED not in {verdict.reason for verdict in plan.verdicts.values()}
    files = [action.mig_file for action in plan.shared if isinstance(action, WriteConfig)]
    assert [migfile.parse_admin(text)[1] for text in files] == [""] * len(files)


@settings(max_examples=200)
@given(yaml_of(MIG_FILE), yaml_of(PLUGIN_FILE), st.sampled_from(["halves", "all-balanced", ""]), st.booleans())
def test_what_somebody_configured_by_hand_is_read_whatever_the_files_hold(
    mig: str, plugin: str, config: str, divided: bool
) -> None:
    """`kubectl gpusharing import`: a policy that can be written down, or the reason why there is none."""
    stack = make_stack(cluster_policy=make_cluster_policy("theirs", mig_config_name="theirs-too"))
    labels = {"nvidia.com/device-plugin.config": "their-config", "nvidia.com/mig.config": config}
    view = make_node(labels={key: value for key, value in labels.items() if value})
    gpus = [make_gpu(number, layout=(("3g.40gb", 2),) if divided else None) for number in (0, 1)]
    snapshot = make_snapshot([view], gpunodes=[make_gpunode(gpus=gpus)], stack=stack)
    entries = PluginEntries("theirs", "gpu-operator", {"their-config": plugin})
    maps = AdminConfigMaps(entries, "theirs-too", mig)
    found = find_import(snapshot, maps, NO_MAPS, now)
    assert {name for one in found.proposed for name in one.nodes} | found.left_out.keys() == {"gpu-07"}
    observed = make_gpunode(gpus=gpus).observed
    assert observed is not None
    one = find_handmade(view, observed, with_pointers(snapshot, maps), entries)
    proposed, _ = propose([one] if isinstance(one, Handmade) else [], snapshot.nodes)
    text = as_yaml(replace(found, proposed=proposed), list(find_remarks(found)))
    assert [one for one in yaml.safe_load_all(text) if one] == [one.manifest for one in proposed]

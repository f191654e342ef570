"""The rules for one PATCH of a Node find what breaks them: a guard that never barks guards nothing."""

import json
from typing import Any

import pytest
from tests.nodewrites import step_of, wrong_in_change, wrong_in_write

from gpusharing.kube.client import JSON

MIG, STATE, PLUGIN = "nvidia.com/mig.config", "nvidia.com/mig.config.state", "nvidia.com/device-plugin.config"
MODE, FENCE, HOLD = "gpusharing.dev/mode", "gpusharing.dev/fence", "gpusharing.dev/hold-cordon"
SKIP = "gpusharing.dev/skip"
FENCED: JSON = {
    "stage": "fenced",
    "targetMigConfig": "",
    "targetPluginConfig": "",
    "priorUnschedulable": False,
    "fromMode": "full",
    "disruption": "Reset",
    "added": [],
}
ACTUATING = {**FENCED, "stage": "actuating", "targetMigConfig": "b", "targetPluginConfig": "k"}


def node(fence: JSON | None = None, *, cordoned: bool = False, **labels: str) -> JSON:
    written = {MIG: "a", STATE: "success"} | {key.replace("state", STATE): text for key, text in labels.items()}
    raw: JSON = {"metadata": {"labels": written, "annotations": {}}, "spec": {"unschedulable": cordoned}}
    if fence is None:
        written[MODE] = "full"
    else:
        raw["metadata"]["annotations"][FENCE] = json.dumps(fence)
    return raw


def patch(
    fence: JSON | None = None, labels: JSON | None = None, *, unschedulable: Any = ..., released: bool = False
) -> JSON:
    metadata: JSON = {"uid": "u", "resourceVersion": "7", "labels": labels or {}, "annotations": {}}
    if fence is not None or released:
        metadata["annotations"][FENCE] = None if released else json.dumps(fence)
    return {"metadata": metadata} | ({} if unschedulable is ... else {"spec": {"unschedulable": unschedulable}})


def unconditional(body: JSON) -> JSON:
    return {**body, "metadata": {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}}


HELD = node(FENCED, cordoned=True)
FENCING = patch(FENCED, {MODE: None}, unschedulable=True)
PASSING = patch(ACTUATING, {MIG: "b", STATE: None, PLUGIN: "k"})
RELEASING = patch(released=True, labels={MODE: "mig"}, unschedulable=None)
GATE = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
THEIRS = {"key": "dedicated", "effect": "NoSchedule"}
VERIFIED, POLICY = "gpusharing.dev/verified", "gpusharing.dev/policy"


def tainted(raw: JSON, *taints: JSON) -> JSON:
    return {**raw, "spec": {**raw["spec"], "taints": list(taints)}}


PROOF: JSON = {"policy": "pool-b", "migConfig": "a", "pluginConfig": "k"}


def opening(body: JSON, taints: Any, proof: JSON | None = PROOF) -> JSON:
    """The write with a list of taints, and with the record of a proof."""
    record = {VERIFIED: json.dumps(proof)} if proof else {}
    written = {key: text for key, text in body["metadata"].items() if key != "labels"}
    labels = {**body["metadata"]["labels"], POLICY: "pool-b"}
    metadata = {**written, "labels": labels, "annotations": {**body["metadata"]["annotations"], **record}}
    return {"metadata": metadata, "spec": {**body.get("spec", {}), "taints": taints}}


WAITING = tainted(node(ACTUATING, cordoned=True), THEIRS, GATE)
JOINED = tainted(node(), GATE)
RIGHT = {
    "fence": (node(), FENCING),
    "PNR": (HELD, PASSING),
    "update": (node(ACTUATING), patch({**ACTUATING, "attempt": 2}, unschedulable=True)),
    "release": (node(ACTUATING, cordoned=True), RELEASING),
    "release ": (WAITING, opening(RELEASING, [THEIRS])),
    "marks ": (JOINED, opening(patch(labels={MODE: "full"}), None)),
    "marks": (node(), unconditional(patch(labels={MODE: "full"}))),
    "marks  ": (HELD, patch(labels={SKIP: "true"})),
}


@pytest.mark.parametrize(("step", "before", "body"), [(step, *pair) for step, pair in RIGHT.items()], ids=RIGHT)
def test_a_write_of_a_change_is_known_and_right(step: str, before: JSON, body: JSON) -> None:
    assert step_of(before, body) == step.strip()
    assert list(wrong_in_write(before, body)) == []


def test_a_run_that_is_repeated_writes_its_labels_as_the_first_did() -> None:
    owed = node({**ACTUATING, "owed": "b k"}, cordoned=True)
    assert step_of(owed, PASSING) == "PNR"
    assert list(wrong_in_write(owed, PASSING)) == []


WRONG: dict[str, tuple[JSON, JSON, str]] = {
    "a request moved without resourceVersion": (node(), unconditional(patch(labels={SKIP: None})), "unconditional"),
    "a request moved with a step": (HELD, patch(ACTUATING, {**PASSING["metadata"]["labels"], SKIP: None}),
                                    "moved a request together with"),
    "a fence without resourceVersion": (node(), unconditional(FENCING), "unconditional"),
    "a PNR without resourceVersion": (HELD, unconditional(PASSING), "unconditional"),
    "a release without resourceVersion": (HELD, unconditional(RELEASING), "unconditional"),
    "a PNR that leaves the old state": (
        HELD, patch(ACTUATING, {MIG: "b", PLUGIN: "k"}), "left the old mig.config.state behind"),
    "a state that goes without a new value": (
        HELD, patch({**ACTUATING, "targetMigConfig": "a"}, {STATE: None, PLUGIN: "k"}), "without another mig.config"),
    "a state that goes with the same value": (
        HELD, patch({**ACTUATING, "targetMigConfig": "a"}, {MIG: "a", STATE: None, PLUGIN: "k"}), "without another"),
    "a state made up": (HELD, patch(ACTUATING, {MIG: "b", STATE: "success", PLUGIN: "k"}), "wrote mig.config.state"),
    "a state that goes while the node reboots": (node(FENCED, state="rebooting"), PASSING, "while rebooting"),
    "a stage without its labels": (HELD, patch(ACTUATING, {PLUGIN: "k"}), "left mig.config for another write"),
    "a stage without the plugin's label": (
        HELD, patch(ACTUATING, {MIG: "b", STATE: None}), "left device-plugin.config for another write"),
    "labels without their stage": (HELD, patch(labels={MIG: "b", STATE: None}), "a write that is no PNR"),
    "another entry in mid-change": (node(ACTUATING, cordoned=True), patch(ACTUATING, {PLUGIN: "x"}), "a write that is no PNR"),
    "labels with the fence": (node(), patch(FENCED, {PLUGIN: "k"}, unschedulable=True), "a write that is no PNR"),
    "a cordon in the PNR": (
        HELD, patch(ACTUATING, {MIG: "b", STATE: None, PLUGIN: "k"}, unschedulable=True), "cordoned in the PNR write"),
    "an uncordon before the release": (HELD, patch(FENCED, unschedulable=None), "uncordoned in the update write"),
    "an uncordon of somebody else's": (
        node({**ACTUATING, "priorUnschedulable": True}), RELEASING, "a cordon that is not ours"),
    "an uncordon of nobody's fence": (node(), RELEASING, "a cordon that is not ours"),
    "a finalizer": (node(), {"metadata": {"uid": "u", "resourceVersion": "7", "finalizers": ["x"]}}, "finalizers"),
    "a taint": (node(), {**FENCING, "spec": {"unschedulable": True, "taints": []}}, "taints"),
    "a start-up taint that goes without a proof": (
        WAITING, opening(RELEASING, [THEIRS], None), "without a proof"),
    "a start-up taint that goes with the proof of another policy": (
        WAITING, opening(RELEASING, [THEIRS], {**PROOF, "policy": "pool-c"}), "which the labels contradict"),
    "a start-up taint that goes with the proof of another layout": (
        WAITING, opening(RELEASING, [THEIRS], {**PROOF, "migConfig": "b"}), "which the labels contradict"),
    "a fence that records a label of somebody else": (
        node(), patch({**FENCED, "added": ["team"]}, {MODE: None}, unschedulable=True), "recorded team"),
    "a start-up taint that stays after a proof": (
        WAITING, {**opening(RELEASING, None), "spec": {"unschedulable": None}}, "the start-up taint stays"),
    "a start-up taint that takes another with it": (WAITING, opening(RELEASING, None), "became None"),
    "a taint that comes with the release": (WAITING, opening(RELEASING, [THEIRS, THEIRS]), "became"),
    "a start-up taint that goes without resourceVersion": (
        JOINED, unconditional(opening(patch(labels={MODE: "full"}), None)), "an unconditional write"),
    "a start-up taint that goes before the release": (
        WAITING, opening(patch({**ACTUATING, "attempt": 2}), [THEIRS]), "in the update write"),
    "a label of somebody else": (node(), patch(FENCED, {"team": "x"}, unschedulable=True), "labels"),
    "no uid": (node(), {"metadata": {"resourceVersion": "7", "labels": {MODE: "full"}}}, "without the node's uid"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "body", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_write_that_breaks_a_rule_is_found(before: JSON, body: JSON, said: str) -> None:
    assert any(said in what for what in wrong_in_write(before, body)), list(wrong_in_write(before, body))


def test_a_held_cordon_may_not_be_lifted() -> None:
    held = node(ACTUATING, cordoned=True)
    held["metadata"]["annotations"][HOLD] = "true"
    assert list(wrong_in_write(held, RELEASING)) == ["lifted a cordon that was to be held"]


CHANGES: dict[str, tuple[JSON, JSON, list[str]]] = {
    "fenced and cordoned": (node(), HELD, []),
    "fenced and not cordoned": (
        node(), node(FENCED), ["fenced and not cordoned in one write, or cordoned beside a DeviceTaintRule"]),
    "fenced with a routing label": (
        HELD, node(FENCED, cordoned=True, **{MODE: "full"}), ["fenced with a routing label"]),
    "released": (HELD, node(), []),
    "released without a routing label": (
        HELD, {"metadata": {"labels": {}}, "spec": {}}, ["released without its routing label"]),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "wrong"), CHANGES.values(), ids=CHANGES.keys())
def test_what_a_node_may_not_become_is_found(before: JSON, after: JSON, wrong: list[str]) -> None:
    assert list(wrong_in_change(before, after)) == wrong

"""Each invariant is broken by a log that breaks it, and by no other; a log of a sound change breaks none."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.faults.invariants import cost_of, find_wrong
from tests.faults.writelog import LoggedCall, State, WriteLog, would_change

JSON = dict[str, Any]
GPU = {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.count": "2"}


def node(name: str, **changes: Any) -> JSON:
    labels = {**GPU, "gpusharing.dev/pool": "b", **changes.pop("labels", {})}
    metadata = {"name": name, "uid": f"uid-{name}", "labels": labels, "annotations": changes.pop("annotations", {})}
    return {
        "metadata": metadata,
        "spec": changes.pop("spec", {}),
        "status": {"allocatable": changes.pop("offers", {"nvidia.com/gpu": "2"})},
    }


def fence(name: str, stage: str = "fenced", **more: Any) -> str:
    record = {
        "op": "op",
        "policy": "pool-b",
        "nodeUid": f"uid-{name}",
        "priorUnschedulable": False,
        "fromMode": "",
        "stage": stage,
        "disruption": "GPUPods",
        "targetMigConfig": "",
        "targetPluginConfig": "sliced",
        **more,
    }
    return json.dumps(record)


def fenced(name: str, stage: str = "fenced", /, labels: JSON | None = None, **more: Any) -> JSON:
    annotations = {"gpusharing.dev/fence": fence(name, stage, **more)}
    return node(name, spec={"unschedulable": True}, annotations=annotations, labels=labels or {})


def policy(**status: Any) -> JSON:
    return {
        "metadata": {"name": "pool-b", "uid": "uid-p", "generation": 3},
        "spec": {
            "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}},
            "mode": "TimeSlicing",
            "timeSlicing": {"replicas": 2},
        },
        "status": status,
    }


def ready(generation: int = 3) -> JSON:
    row = {"type": "Ready", "status": "True", "observedGeneration": generation}
    return {"observedGeneration": generation, "conditions": [row]}


def pod(name: str, where: str) -> JSON:
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {"nodeName": where, "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": "Running"},
    }


def lease(holder: str) -> JSON:
    return {"metadata": {"name": "gpusharing-operator", "uid": "uid-l"}, "spec": {"holderIdentity": holder}}


class Story:
    """Writes a log, one resourceVersion after the other. Process `a` bears the name host-a and leads."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.calls: list[LoggedCall] = []
        self.version = 0
        for name in ("gpu-1", "gpu-2"):
            self.somebody("nodes", name, node(name))
        self.somebody("gpusharingpolicies", "pool-b", policy())
        self.began = self.version
        self.leads("a")

    def somebody(self, kind: str, name: str, after: JSON | None) -> None:
        self.version += 1
        self.states.append(State(self.version, kind, name, after))

    def leads(self, who: str) -> None:
        self.operator("leases", "gpusharing-operator", lease(f"host-{who}"), who=who)

    def operator(self, kind: str, name: str, after: JSON | None, body: JSON | None = None, who: str = "a") -> None:
        """A write of ours that the server did; `body` as a rule what it made."""
        since = self.version
        self.somebody(kind.split("/")[0], name, after)
        method = "DELETE" if after is None else "PATCH"
        sent = body if body is not None else (after or {})
        self.calls.append(LoggedCall(who, method, kind, name, 200, sent, since, self.version))

    def node_write(self, name: str, after: JSON, **body: Any) -> None:
        metadata = {"uid": f"uid-{name}", "resourceVersion": str(self.version), **body.pop("metadata", {})}
        self.operator("nodes", name, after, {"metadata": metadata, **body})

    def take(self, name: str, **more: Any) -> None:
        metadata = {"annotations": {"gpusharing.dev/fence": fence(name, **more)}}
        self.node_write(name, fenced(name, **more), metadata=metadata, spec={"unschedulable": True})

    def pass_pnr(self, name: str) -> None:
        labels = {"nvidia.com/device-plugin.config": "sliced"}
        metadata = {"annotations": {"gpusharing.dev/fence": fence(name, "actuating")}, "labels": labels}
        self.node_write(name, fenced(name, "actuating", labels=labels), metadata=metadata)

    def release(self, name: str, **more: Any) -> None:
        labels = {"gpusharing.dev/mode": "time-slicing", "gpusharing.dev/policy": "pool-b"}
        after = node(name, labels=labels, offers={"nvidia.com/gpu": "4"}, **more)
        metadata = {"annotations": {"gpusharing.dev/fence": None}, "labels": labels}
        self.node_write(name, after, metadata=metadata, spec={"unschedulable": None})

    def evict(self, name: str, uid: str | None = None, who: str = "a") -> None:
        preconditions = {"uid": uid} if uid else {}
        body = {"deleteOptions": {"preconditions": preconditions}}
        self.calls.append(LoggedCall(who, "POST", "pods/eviction", f"default/{name}", 201, body, self.version))

    def change(self, *names: str) -> None:
        for name in names:
            self.take(name)
            self.pass_pnr(name)
            self.release(name)

    def say_ready(self, generation: int = 3) -> None:
        status = ready(generation)
        self.operator("gpusharingpolicies/status", "pool-b", policy(**status), {"status": status})

    def wrong(self, cap: int = 100) -> list[str]:
        return find_wrong(self.log(), cap=cap)

    def log(self) -> WriteLog:
        return WriteLog(tuple(self.states), tuple(self.calls), self.began)


def sound(story: Story) -> None:
    """One node after the other, with a pod that is evicted, and Ready in the end."""
    story.somebody("pods", "default/job", pod("job", "gpu-1"))
    for name in ("gpu-1", "gpu-2"):
        story.take(name)
        if name == "gpu-1":
            story.evict("job", "uid-job")
            story.somebody("pods", "default/job", None)
        story.pass_pnr(name)
        story.release(name)
    story.say_ready()


def test_a_sound_change_breaks_nothing_and_costs_the_floor() -> None:
    story = Story()
    sound(story)
    assert story.wrong() == []
    cost = cost_of(story.log())
    assert cost.transitions == {("gpu-1", "op"): 3, ("gpu-2", "op"): 3}
    assert (cost.evictions, cost.acting) == (1, {"PATCH nodes": 6, "POST pods/eviction": 1})


# --- logs that break one invariant ---------------------------------------------------------------------------


def two_at_once(story: Story) -> None:
    story.take("gpu-1")
    story.take("gpu-2")


def busy(story: Story) -> None:
    story.somebody("pods", "default/job", pod("job", "gpu-1"))
    story.take("gpu-1")
    story.pass_pnr("gpu-1")


def claiming_pod(name: str, where: str) -> JSON:
    claims = [{"name": "gpu", "resourceClaimName": f"{name}-gpu"}]
    spec = {"nodeName": where, "containers": [{"resources": {}}], "resourceClaims": claims}
    return {**pod(name, where), "spec": spec}


def claim(driver: str) -> JSON:
    device = {"request": "gpu", "driver": driver, "pool": "gpu-1", "device": "gpu-0"}
    return {
        "metadata": {"name": "job-gpu", "namespace": "default", "uid": "uid-claim"},
        "status": {"allocation": {"devices": {"results": [device]}}},
    }


def devices(name: str, *profiles: str) -> JSON:
    rows = [{"name": f"mig-{n}", "attributes": {"profile": {"string": p}}} for n, p in enumerate(profiles)]
    return {
        "metadata": {"name": f"slice-{name}", "uid": f"uid-slice-{name}"},
        "spec": {"nodeName": name, "devices": rows},
    }


def claimed(story: Story) -> None:
    story.somebody("resourceclaims", "default/job-gpu", claim("gpu.nvidia.com"))
    story.somebody("pods", "default/job", claiming_pod("job", "gpu-1"))
    story.take("gpu-1")
    story.pass_pnr("gpu-1")


def cordon_of_a_person(story: Story) -> None:
    story.somebody("nodes", "gpu-1", node("gpu-1", spec={"unschedulable": True}))
    story.node_write("gpu-1", node("gpu-1"), metadata={"labels": {}}, spec={"unschedulable": None})


def cordon_from_before(story: Story) -> None:
    story.take("gpu-1", priorUnschedulable=True)
    story.release("gpu-1")


def another_node_of_that_name(story: Story) -> None:
    story.take("gpu-1", nodeUid="uid-of-the-one-before")
    story.release("gpu-1")


def fence_changes_hands(story: Story) -> None:
    story.take("gpu-1")
    metadata = {"annotations": {"gpusharing.dev/fence": fence("gpu-1", policy="pool-c")}}
    story.node_write("gpu-1", fenced("gpu-1", policy="pool-c"), metadata=metadata)


def no_leader(story: Story) -> None:
    story.leads("b")
    story.take("gpu-1")


def eviction_of_no_leader(story: Story) -> None:
    story.leads("b")
    story.evict("job", "uid-job")


def unknown_writer(story: Story) -> None:
    body: JSON = {"status": {"transition": {}}}
    story.operator("gpunodes/status", "gpu-1", {"metadata": {"name": "gpu-1", "uid": "g"}}, body, who="c")


def foreign_label(story: Story) -> None:
    metadata = {"labels": {"nvidia.com/gpu.deploy.device-plugin": "false"}}
    story.node_write("gpu-1", node("gpu-1", labels=metadata["labels"]), metadata=metadata)


def foreign_field_unsaid(story: Story) -> None:
    """The body says nothing of it; the Node changed all the same."""
    mark = {"gpusharing.dev/policy": "pool-b"}
    story.node_write("gpu-1", node("gpu-1", labels=mark, spec={"podCIDR": "10.0.0.0/24"}), metadata={"labels": mark})


def spec_of_a_policy(story: Story) -> None:
    story.operator("gpusharingpolicies", "pool-b", policy(), {"spec": {"mode": "Full"}})


def foreign(story: Story, method: str, kind: str, name: str = "default/x", body: JSON | None = None) -> None:
    story.calls.append(LoggedCall("a", method, kind, name, 200, body or {}, story.version))


CONDITIONAL: JSON = {"metadata": {"resourceVersion": "1"}}


def evicted_twice(story: Story) -> None:
    story.evict("job", "uid-job")
    story.evict("job", "uid-job")


def evicted_from_a_node_that_takes_pods(story: Story) -> None:
    story.somebody("pods", "default/job", pod("job", "gpu-1"))
    story.evict("job", "uid-job")


def early_ready(story: Story) -> None:
    story.take("gpu-1")
    story.say_ready()


def ready_on_another_offer(story: Story) -> None:
    story.change("gpu-1", "gpu-2")
    story.somebody("nodes", "gpu-2", node("gpu-2", labels={"gpusharing.dev/policy": "pool-b"}))
    story.say_ready()


def ready_on_devices_too(story: Story) -> None:
    """The device plugin serves what is wanted, and a DRA driver serves the GPUs as well."""
    story.change("gpu-1", "gpu-2")
    story.somebody("resourceslices", "slice-gpu-2", devices("gpu-2", "3g.40gb"))
    story.say_ready()


@pytest.mark.parametrize(
    ("row", "what", "story_of"),
    [
        ("S1", "['gpu-1', 'gpu-2'] are fenced, the limit of pool-b is 1", two_at_once),
        ("S2", "past the PNR with job", busy),
        ("S2", "past the PNR with job", claimed),
        ("S3", "uncordoned without a fence of ours", cordon_of_a_person),
        ("S3", "it was so before us", cordon_from_before),
        ("S3", "another node of that name", another_node_of_that_name),
        ("S4", "the fence of pool-b became that of pool-c", fence_changes_hands),
        ("S5", "host-a there, while host-b held the Lease", no_leader),
        ("S5", "POST pods/eviction default/job by a", eviction_of_no_leader),
        ("S5", "nobody there, while host-a held the Lease", unknown_writer),
        ("S6", "changed labels ['nvidia.com/gpu.deploy.device-plugin']", foreign_label),
        ("S6", "changed spec ['podCIDR']", foreign_field_unsaid),
        ("S6", "wrote ['spec']", spec_of_a_policy),
        ("S6", "we do not write secrets", lambda story: foreign(story, "POST", "secrets")),
        ("S6", "no pod of an actuator", lambda story: foreign(story, "DELETE", "pods")),
        (
            "S6",
            "halves by a: no DeviceClass of ours",
            lambda story: foreign(story, "PATCH", "deviceclasses", "halves", CONDITIONAL),
        ),
        (
            "S6",
            "gpusharing-mig-3g.40gb by a: unconditional",
            lambda story: foreign(story, "PATCH", "deviceclasses", "gpusharing-mig-3g.40gb"),
        ),
        (
            "S6",
            "no DaemonSet that we may write",
            lambda story: foreign(story, "PATCH", "daemonsets", "gpu-operator/nvidia-dcgm", CONDITIONAL),
        ),
        ("S7", "without the pod's UID", lambda story: story.evict("job")),
        ("S7", "evicted before", evicted_twice),
        ("S7", "gpu-1 is not fenced and cordoned", evicted_from_a_node_that_takes_pods),
        ("S9", "Ready while gpu-1 is fenced", early_ready),
        ("S9", "Ready while gpu-2 offers {'nvidia.com/gpu': 2}, wanted {'nvidia.com/gpu': 4}", ready_on_another_offer),
        ("S9", "Ready while gpu-2 offers {'nvidia.com/mig-3g.40gb': 1, 'nvidia.com/gpu': 4}", ready_on_devices_too),
        ("S9", "observed generation 4 of 3", lambda story: story.say_ready(4)),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_log_that_breaks_an_invariant_is_found_out(row: str, what: str, story_of: Callable[[Story], None]) -> None:
    story = Story()
    story_of(story)
    said = [line for line in story.wrong() if line.startswith(f"{row}: ")]
    assert any(what in line for line in said), story.wrong()


def test_the_operators_cap_counts_the_nodes_of_all_policies() -> None:
    story = Story()
    story.somebody("nodes", "gpu-3", node("gpu-3", labels={"gpusharing.dev/pool": "c"}))
    story.take("gpu-1")
    assert story.wrong(cap=1) == []
    story.take("gpu-3", policy="pool-c")
    assert any("the operator's cap is 1" in line for line in story.wrong(cap=1))


# --- what must not be taken for a fault ----------------------------------------------------------------------


def test_a_write_that_was_on_its_way_when_the_lease_changed_hands_was_sent_by_the_leader() -> None:
    story = Story()
    sent = story.version
    story.leads("b")
    body = {"deleteOptions": {"preconditions": {"uid": "uid-job"}}}
    story.calls.append(LoggedCall("a", "POST", "pods/eviction", "default/job", 201, body, sent))
    assert story.wrong() == []


def test_a_write_that_changed_nothing_is_not_the_author_of_the_version_it_was_answered_with() -> None:
    story = Story()
    mark = {"gpusharing.dev/policy": "pool-b"}
    story.somebody("nodes", "gpu-1", node("gpu-1", labels={**mark, "example.com/theirs": "1"}))
    body = {"metadata": {"uid": "uid-gpu-1", "labels": mark}}
    story.calls.append(LoggedCall("a", "PATCH", "nodes", "gpu-1", 200, body, story.version, story.version))
    assert would_change(node("gpu-1"), story.calls[-1])
    assert not would_change(node("gpu-1", labels=mark), story.calls[-1])
    story.states[-1] = State(story.version, "nodes", "gpu-1", node("gpu-1", labels=mark))
    story.somebody("nodes", "gpu-1", node("gpu-1", labels={**mark, "example.com/theirs": "1"}))
    story.calls.append(LoggedCall("a", "PATCH", "nodes", "gpu-1", 200, body, story.version, story.version))
    assert story.wrong() == []


def test_a_refused_write_breaks_nothing() -> None:
    story = Story()
    story.leads("b")
    body = {"metadata": {"labels": {"example.com/theirs": "1"}}}
    story.calls.append(LoggedCall("a", "PATCH", "nodes", "gpu-1", 409, body, story.version))
    assert story.wrong() == []
    assert cost_of(story.log()).acting == {}


def test_a_pod_with_a_claim_of_another_driver_holds_no_gpu() -> None:
    story = Story()
    story.somebody("resourceclaims", "default/job-gpu", claim("nic.example.com"))
    story.somebody("pods", "default/job", claiming_pod("job", "gpu-1"))
    story.take("gpu-1")
    story.pass_pnr("gpu-1")
    assert story.wrong() == []


def test_devices_of_a_dra_driver_are_what_a_node_offers() -> None:
    story = Story()
    spec: JSON = {
        "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}},
        "mode": "MIG",
        "mig": {"strategy": "mixed", "layouts": [{"profiles": {"3g.40gb": 1}}]},
    }
    for name in ("gpu-1", "gpu-2"):
        story.somebody("nodes", name, node(name, offers={}))
        story.somebody("resourceslices", f"slice-{name}", devices(name, "3g.40gb", "3g.40gb"))
    story.somebody("gpusharingpolicies", "pool-b", {**policy(), "spec": spec})
    after = {**policy(**ready()), "spec": spec}
    story.operator("gpusharingpolicies/status", "pool-b", after, {"status": ready()})
    assert story.wrong() == []
    story.somebody("gpusharingpolicies", "pool-b", {**policy(), "spec": spec})
    story.somebody("resourceslices", "slice-gpu-1", None)
    story.operator("gpusharingpolicies/status", "pool-b", after, {"status": ready()})
    assert ["Ready while gpu-1 offers {}" in text for text in story.wrong()] == [True]


def test_a_person_may_lift_any_cordon() -> None:
    story = Story()
    story.take("gpu-1")
    story.somebody("nodes", "gpu-1", node("gpu-1", annotations={"gpusharing.dev/fence": fence("gpu-1")}))
    assert story.wrong() == []


def test_a_run_of_the_new_owner_repairs_a_failed_node_under_its_fence() -> None:
    story = Story()
    story.take("gpu-1")
    story.pass_pnr("gpu-1")
    labels = {"nvidia.com/device-plugin.config": "other"}
    more = {"policy": "pool-c", "targetPluginConfig": "other"}
    metadata = {"annotations": {"gpusharing.dev/fence": fence("gpu-1", "actuating", **more)}, "labels": labels}
    story.node_write("gpu-1", fenced("gpu-1", "actuating", labels=labels, **more), metadata=metadata)
    assert story.wrong() == []


def test_who_is_not_ready_may_say_so_while_nodes_are_away() -> None:
    story = Story()
    story.take("gpu-1")
    row = {"type": "Ready", "status": "False", "observedGeneration": 3}
    status = {"observedGeneration": 3, "conditions": [row]}
    story.operator("gpusharingpolicies/status", "pool-b", policy(**status), {"status": status})
    assert story.wrong() == []


TOO_LATE = "by a, who is host-a there, while host-b held the Lease"


def tell_status(story: Story) -> None:
    told = {"observedGeneration": 3}
    story.operator("gpusharingpolicies/status", "pool-b", policy(**told), {"status": told})


def finalizer(story: Story) -> None:
    metadata = {"metadata": {"finalizers": ["gpusharing.dev/in-flight"]}}
    story.operator("gpusharingpolicies", "pool-b", policy(), metadata)


def told(*writes: Callable[[Story], None], interrupted: bool) -> list[str]:
    story = Story()
    story.leads("b")
    for write in writes:
        write(story)
    log = replace(story.log(), interrupted=frozenset({"a"} if interrupted else ()))
    return [line for line in find_wrong(log) if line.startswith("S5: ")]


@pytest.mark.parametrize("write", [tell_status, lambda story: story.take("gpu-1")], ids=["status", "taken"])
def test_what_was_in_hand_when_its_sender_was_frozen_may_leave_when_it_wakes(write: Callable[[Story], None]) -> None:
    assert told(write, interrupted=True) == []
    assert [line.endswith(TOO_LATE) for line in told(write, interrupted=False)] == [True]


def test_it_is_one_write_and_no_more() -> None:
    assert told(lambda story: story.take("gpu-1"), tell_status, interrupted=True) == [
        f"S5: PATCH gpusharingpolicies/status pool-b {TOO_LATE}"
    ]


def test_a_write_that_could_do_harm_is_never_excused() -> None:
    assert told(finalizer, interrupted=True) == [f"S5: PATCH gpusharingpolicies pool-b {TOO_LATE}"]


def test_who_never_asked_for_the_lease_is_never_excused() -> None:
    story = Story()
    story.operator("gpusharingpolicies/status", "pool-b", policy(**ready()), {"status": ready()}, who="c")
    log = replace(story.log(), interrupted=frozenset({"c"}))
    assert any("nobody there" in line for line in find_wrong(log) if line.startswith("S5: "))

"""Which documents do `-o json` and `-o yaml` write, and which objects are in them?

A document's kind is the name of its type without Data. docs/reference/cli-schema.json is generated from these types,
and mypy compares them with the code that writes the documents. A number that is not known is None.
"""

from typing import Any, TypedDict

Strings = list[str]
Counts = dict[str, int]
Manifest = dict[str, object]
"""A GPUSharingPolicy as kubectl apply takes it."""

FailureData = TypedDict("FailureData", {"context": str, "clusterUID": str | None, "error": str})
"""Why a cluster of several gave no answer."""

# Of status and why. These have further fields: those of the records in `FLATTENED` of hack/generate_schema.py.
NodeData = TypedDict("NodeData", {"state": str})
PoolData = TypedDict("PoolData", {
    "unseenGeneration": int | None, "memoryGB": int | None, "secondsLeft": int | None, "plan": dict[str, Any] | None,
    "members": list[NodeData], "events": list[dict[str, str]] | None,
})  # fmt: skip
PoolListData = TypedDict("PoolListData", {
    "context": str, "health": str, "pools": list[PoolData], "nodesWithoutPolicy": Strings, "simulated": Strings,
})  # fmt: skip
ProofData = TypedDict("ProofData", {
    "source": str, "says": str, "should": str, "agrees": bool, "reason": str, "message": str,
})  # fmt: skip
CourseData = TypedDict("CourseData", {
    "secondsToStart": int | None, "secondsAtLeast": int | None, "secondsAtMost": int | None,
})  # fmt: skip
NodeExplanationData = TypedDict("NodeExplanationData", {
    "node": str, "state": str, "remedy": str, "proofs": list[ProofData], "unproven": str, "simulated": Strings,
    "course": CourseData, "notes": Strings,
})  # fmt: skip


class PoolExplanationData(PoolData):
    """A pool, and the explanation of its worst node; None if all nodes are done."""

    worst: NodeExplanationData | None


PodExplanationData = TypedDict("PodExplanationData", {"workload": str})

# ui:
AddressData = TypedDict("AddressData", {"context": str, "url": str})

# plan, and the verbs that patch:
ConclusionData = TypedDict("ConclusionData", {
    "outcome": str, "exitStatus": int, "message": str, "nodes": int, "blocked": Strings,
    "doubtful": Strings, "leaving": Strings, "pods": int, "podsComplete": bool,
    "secondsToStart": int | None, "secondsAtLeast": int | None, "secondsAtMost": int | None,
    "windowsAtMost": int | None, "estimate": bool, "failedOn": Strings,
})  # fmt: skip
StepData = TypedDict("StepData", {
    "name": str, "disruption": str, "gpus": list[int], "observed": str, "wanted": str, "starts": bool, "phase": str,
    "reason": str,
    "message": str, "obstacle": str, "jobs": Strings | None, "pods": Strings | None, "budgets": Strings | None,
    "gangs": Strings | None,
})  # fmt: skip
VanishingData = TypedDict("VanishingData", {
    "resource": str, "before": int, "after": int, "offeredElsewhere": bool, "asked": int, "remain": int,
    "willWait": int, "pods": Strings, "pending": int,
})  # fmt: skip
ProposalData = TypedDict("ProposalData", {
    "name": str, "asked": bool, "leaving": dict[str, str], "verdict": ConclusionData, "accepted": bool, "reason": str,
    "message": str, "hash": str,
    "disruption": str, "atOnce": int, "windows": Strings, "nodes": list[StepData], "settled": int, "adopted": Strings,
    "leftOut": list[dict[str, str]], "capacityBefore": Counts, "capacityAfter": Counts, "gpus": Counts | None,
    "vanishing": list[VanishingData], "blockers": Strings, "singleKeepsName": bool,
    "clientMemoryGiB": dict[str, float], "clientThreadsPercent": int,
})  # fmt: skip
StandingData = TypedDict("StandingData", {
    "policy": str, "wanted": str, "disruption": str, "gpus": list[int], "starts": bool, "phase": str, "reason": str,
})  # fmt: skip
MoveData = TypedDict("MoveData", {"name": str, "before": StandingData | None, "after": StandingData | None})
PlanData = TypedDict("PlanData", {
    "context": str, "verdict": ConclusionData, "policies": list[ProposalData], "moves": list[MoveData],
    "simulated": Strings,
    "dependents": Strings, "notes": Strings,
})  # fmt: skip
PatchData = TypedDict("PatchData", {"resource": str, "name": str, "patch": dict[str, Any], "done": bool})

# doctor, layouts, lint, support-bundle:
DoctorReportData = TypedDict("DoctorReportData", {
    "context": str, "installed": bool, "symptoms": list[dict[str, str]], "unknown": dict[str, str],
    "simulated": Strings, "notes": Strings,
})  # fmt: skip
CardListData = TypedDict("CardListData", {"cards": Strings})
PlacementData = TypedDict("PlacementData", {"profile": str, "start": int})
LayoutData = TypedDict("LayoutData", {"layout": str, "profiles": Counts, "placements": list[PlacementData]})
LayoutListData = TypedDict("LayoutListData", {
    "card": str, "products": Strings, "memoryGB": int, "slices": int, "fits": bool, "refusal": str,
    "layouts": list[LayoutData],
})  # fmt: skip
FindingData = TypedDict("FindingData", {"file": str, "line": int, "severity": str, "message": str})
LintReportData = TypedDict("LintReportData", {"accepted": bool, "checked": int, "findings": list[FindingData]})
SupportBundleData = TypedDict("SupportBundleData", {"file": str, "files": Strings, "gaps": Strings})

# free, cost, advise:
ClosedData = TypedDict("ClosedData", {"node": str, "state": str, "unused": dict[str, int | None]})
WaitingData = TypedDict("WaitingData", {"pod": str, "requests": Counts, "created": str, "message": str})
InventoryData = TypedDict("InventoryData", {
    "by": str, "namespace": str | None, "rows": list[dict[str, Any]], "closed": list[ClosedData],
    "waiting": list[WaitingData], "notes": Strings, "unknown": Strings, "simulated": Strings,
})  # fmt: skip
SumData = TypedDict("SumData", {"gpuHours": float, "cost": float | None, "currency": str | None})
BillRowData = TypedDict("BillRowData", {
    "name": str, "part": str, "resource": str, "basis": str, "memoryUsed": float | None, "smUsed": float | None,
    "gpuHours": float, "cost": float | None, "currency": str | None,
})  # fmt: skip
PriceData = TypedDict("PriceData", {"gpuHour": float, "currency": str, "source": str})
BilledPoolData = TypedDict("BilledPoolData", {
    "policy": str, "prices": list[PriceData], "gpuHours": float, "cost": float | None, "currency": str | None,
})  # fmt: skip
TotalData = TypedDict("TotalData", {
    "gpuHours": float, "cost": float | None, "currency": str | None, "parts": dict[str, float | None],
})  # fmt: skip
BillData = TypedDict("BillData", {
    "prometheus": str, "from": str, "until": str, "by": str, "partial": bool, "missing": Strings, "remarks": Strings,
    "simulated": Strings, "rows": list[BillRowData], "pools": list[BilledPoolData], "totals": list[TotalData],
})  # fmt: skip
SavingData = TypedDict("SavingData", {"gpus": int, "perMonth": float | None, "currency": str | None})
AdviceData = TypedDict("AdviceData", {
    "mode": str, "shares": int, "profile": str, "layout": Counts, "gpus": int | None, "why": Strings, "but": str,
    "policy": Manifest, "saving": SavingData | None,
})  # fmt: skip
WorkloadData = TypedDict("WorkloadData", {
    "namespace": str, "kind": str, "name": str, "pods": int, "now": str, "samples": int, "peakBytes": int | None,
    "highestBytes": int | None, "needBytes": int | None, "active": float | None, "activeOfDevice": bool,
    "advice": str | None, "placed": bool, "confidence": str, "doubts": Strings, "why": str,
})  # fmt: skip
SharedData = TypedDict("SharedData", {
    "mode": str, "replicas": int, "pods": int, "gpus": int, "gpusByThisLayout": int, "neededBytes": int,
    "thereBytes": int, "active": float | None,
})  # fmt: skip
PortionData = TypedDict("PortionData", {
    "profiles": Counts | None, "gpusOfEachNode": list[int] | str, "gpus": int,
})  # fmt: skip
LayoutChoiceData = TypedDict("LayoutChoiceData", {
    "goal": str, "mode": str, "layouts": list[PortionData], "pods": int, "gpus": int, "nodes": int, "idle": Counts,
    "stranded": Counts, "shared": SharedData | None, "saving": SavingData | None, "worstCoLocationBytes": int | None,
})  # fmt: skip
RecommendationData = TypedDict("RecommendationData", {
    "prometheus": str, "from": str, "until": str, "pool": str, "card": str, "nodes": int, "gpus": int, "gpusInUse": int,
    "partial": bool, "missing": Strings, "remarks": Strings, "simulated": Strings, "next": Strings,
    "workloads": list[WorkloadData], "recommendation": LayoutChoiceData | None, "policy": Manifest | None,
    "plan": PlanData | None, "notPlanned": str | None,
})  # fmt: skip

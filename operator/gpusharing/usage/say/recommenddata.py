"""A recommendation as data and as CSV. Pure."""

import csv
import io
from typing import Any

from gpusharing.usage.prometheus.windows import moment
from gpusharing.usage.reckon.needs import Confidence, History, Need
from gpusharing.usage.reckon.recommendation import Placed, Recommendation, Unplaced
from gpusharing.usage.reckon.sharing import Shared, find_shared
from gpusharing.usage.say.recommendplan import effect_data
from gpusharing.usage.say.recommendtext import UNKNOWN, RecommendReport, advice_of, now_of, placed_of, why_of

COLUMNS = (
    "from", "until", "pool", "namespace", "kind", "workload", "pods", "now", "peak_bytes", "need_bytes", "active",
    "advice", "confidence", "why", "samples", "partial",
    "simulated",
)  # fmt: skip
"""Of the CSV."""


def as_data(answer: RecommendReport) -> dict[str, Any]:
    """For programs."""
    placed = placed_of(answer.found)
    by_workload = {need.workload: need for need in answer.needs}
    return {
        "prometheus": answer.where,
        "from": moment(answer.start),
        "until": moment(answer.end),
        "pool": answer.scope.name,
        "card": answer.seen.model,
        "nodes": len(answer.seen.nodes),
        "gpus": sum(answer.seen.nodes),
        "gpusInUse": answer.seen.used,
        "partial": bool(answer.missing),
        "missing": list(answer.missing),
        "remarks": list(answer.remarks),
        "simulated": list(answer.seen.simulated),
        "next": list(answer.steps),
        "workloads": [
            _workload(history, by_workload.get(history.workload), placed.get(history.workload))
            for history in answer.seen.histories
        ],
        "recommendation": None if answer.found is None else _found(answer.found),
        "policy": answer.policy,
        **effect_data(answer.effect),
    }


def _workload(history: History, need: Need | None, one: Placed | Unplaced | None) -> dict[str, Any]:
    whose = history.workload
    return {
        "namespace": whose.namespace,
        "kind": whose.kind,
        "name": whose.name,
        "pods": history.pods,
        "now": now_of(history),
        "samples": len(history.memory),
        "peakBytes": round(need.peak) if need and need.samples else None,
        "highestBytes": round(need.highest) if need and need.samples else None,
        "needBytes": None if need is None else need.memory,
        "active": None if need is None or need.compute is None else round(need.compute, 4),
        "activeOfDevice": history.of_device,
        "advice": None if advice_of(one) == UNKNOWN else advice_of(one),
        "placed": isinstance(one, Placed),
        "confidence": str(Confidence.NONE if need is None else need.confidence),
        "doubts": [] if need is None else [str(doubt) for doubt in need.doubts],
        "why": why_of(need, one),
    }


def _shared(one: Shared) -> dict[str, Any]:
    """What shares whole GPUs for fewer of them."""
    return {
        "mode": str(one.mode),
        "replicas": one.replicas,
        "pods": one.pods,
        "gpus": one.gpus,
        "gpusByThisLayout": one.instead,
        "neededBytes": round(one.needed),
        "thereBytes": round(one.there),
        "active": None if one.busy is None else round(one.busy, 4),
    }


def _found(found: Recommendation) -> dict[str, Any]:
    shared = find_shared(found)
    return {
        "goal": str(found.goal),
        "mode": str(found.mode),
        "layouts": [
            {
                "profiles": None if portion.layout is None else dict(portion.layout),
                "gpusOfEachNode": list(portion.indexes) if len(found.template) > 1 else "all",
                "gpus": portion.gpus,
            }
            for portion in found.portions
        ],
        "pods": found.pods,
        "gpus": found.gpus,
        "nodes": found.nodes,
        "idle": dict(found.idle),
        "stranded": {"computeSlices": found.stranded.slices, "memoryUnits": found.stranded.units},
        "shared": None if shared is None else _shared(shared),
        "worstCoLocationBytes": None if found.worst is None else round(found.worst.bytes),
    }


def as_csv(answer: RecommendReport) -> str:
    """A line for each workload, with a header; what is not known is empty."""
    data = as_data(answer)
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in data["workloads"]:
        writer.writerow(
            (
                data["from"], data["until"], data["pool"], one["namespace"], one["kind"], one["name"], one["pods"],
                one["now"], _plain(one["peakBytes"]), _plain(one["needBytes"]), _plain(one["active"]),
                _plain(one["advice"]), one["confidence"], one["why"], one["samples"],
                "yes" if data["partial"] else "no", "yes" if data["simulated"] else "no",
            )
        )  # fmt: skip
    return written.getvalue()


def _plain(value: object) -> object:
    return "" if value is None else value

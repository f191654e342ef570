"""One table of good and bad policies, checked by the pydantic types and by a real API server."""

from dataclasses import dataclass, field
from typing import Any

Spec = dict[str, Any]

POOL: Spec = {"matchLabels": {"gpusharing.dev/pool": "b"}}
TWO_HALVES: Spec = {"layouts": [{"profiles": {"3g.40gb": 2}}]}


@dataclass(frozen=True)
class Row:
    """A policy and the answer that every one of them must give."""

    sentence: str
    spec: Spec
    refused: str = ""
    """The field that the refusal names; empty when the policy is accepted."""
    server: str = ""
    """The field that the API server names instead, where a rule of CEL cannot name the right one."""
    metadata: dict[str, str] = field(default_factory=lambda: {"name": "pool-b"})

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "gpusharing.dev/v1alpha1",
            "kind": "GPUSharingPolicy",
            "metadata": self.metadata,
            "spec": self.spec,
        }


def full(**more: Any) -> Spec:
    return {"nodeSelector": POOL, "mode": "Full", **more}


def windowed(**fields: str) -> Spec:
    return full(rollout={"windows": [{"schedule": "0 22 * * *", "duration": "6h", **fields}]})


def mig(**block: Any) -> Spec:
    return {"nodeSelector": POOL, "mode": "MIG", "mig": block}


def mps(**block: Any) -> Spec:
    return {"nodeSelector": POOL, "mode": "MPS", "mps": block}


def layouts(*entries: Spec, **block: Any) -> Spec:
    return mig(layouts=list(entries), **block)


def profile(name: str, count: Any = 1) -> Spec:
    return layouts({"profiles": {name: count}})


def shared(**block: Any) -> Spec:
    return {"nodeSelector": POOL, "mode": "TimeSlicing", "timeSlicing": block}


def select(**selector: Any) -> Spec:
    return {"nodeSelector": selector, "mode": "Full"}


def expression(**row: Any) -> Spec:
    return select(matchExpressions=[row])


def unavailable(value: Any) -> Spec:
    return full(rollout={"maxUnavailable": value})


def drain_timeout(value: Any) -> Spec:
    return full(drain={"timeout": value})


GOOD = (
    Row("mode Full alone", full()),
    Row("every default spelled out", full(priority=0, drain={"timeout": "15m"}, rollout={"paused": False})),
    Row("empty blocks take their defaults", full(drain={}, rollout={"timeouts": {}})),
    Row("a null block counts as absent", full(mig=None, timeSlicing=None)),
    Row("a null field takes its default", full(drain=None, rollout={"maxUnavailable": None})),
    Row("null devices mean all", layouts({"devices": None, "profiles": {"3g.40gb": 2}})),
    Row("a null label counts as absent", select(matchLabels={"pool": "b", "tier": None})),
    Row("a guard on card models", full(products=["NVIDIA-H100-80GB-HBM3", "Tesla-T4"])),
    Row("lowest priority", full(priority=-1000)),
    Row("highest priority", full(priority=1000)),
    Row("a label with an empty value", select(matchLabels={"gpusharing.dev/pool": ""})),
    Row("a label key without prefix", select(matchLabels={"pool": "b"})),
    Row("NVIDIA's label for nodes with a GPU", select(matchLabels={"nvidia.com/gpu.present": "true"})),
    Row(
        "expressions In and Exists",
        select(
            matchExpressions=[
                {"key": "pool", "operator": "In", "values": ["a", "b"]},
                {"key": "nvidia.com/gpu.family", "operator": "Exists"},
            ]
        ),
    ),
    Row("expression DoesNotExist with an empty list", expression(key="x", operator="DoesNotExist", values=[])),
    Row("a named configuration", mig(config="all-balanced")),
    Row("a named configuration of one profile", mig(config="all-1g.10gb.me", strategy="single")),
    Row("one profile on all GPUs", mig(**TWO_HALVES)),
    Row("devices left out means all", layouts({"profiles": {"3g.40gb": 2}})),
    Row("several profiles, strategy mixed", layouts({"profiles": {"3g.40gb": 1, "2g.20gb": 1, "1g.10gb": 2}})),
    Row(
        "two lists of GPUs",
        layouts(
            {"devices": [0, 1], "profiles": {"1g.10gb": 7}},
            {"devices": [2, 3], "profiles": {"3g.40gb": 2}},
        ),
    ),
    Row("some GPUs stay whole", layouts({"devices": [0], "profiles": {"1g.10gb": 7}}, {"devices": [1]})),
    Row(
        "strategy single, the same profile in two counts",
        layouts(
            {"devices": [0], "profiles": {"1g.10gb": 7}},
            {"devices": [1], "profiles": {"1g.10gb": 4}},
            strategy="single",
        ),
    ),
    Row("a profile with media extensions", profile("1g.10gb+me")),
    Row("a profile without media extensions", profile("1g.24gb-me", 4)),
    Row("a profile with graphics", profile("2g.48gb+gfx", 2)),
    Row("a profile with all media engines", profile("1g.24gb+me.all")),
    Row("a profile of three-digit memory", profile("7g.141gb")),
    Row("four shares per GPU", shared(replicas=4)),
    Row("a price, in dollars unless told otherwise", full(cost={"gpuHourlyPrice": "3.20"})),
    Row("a price in another currency", full(cost={"gpuHourlyPrice": "2", "currency": "EUR"})),
    Row(
        "two shares, renamed, strict",
        shared(replicas=2, renameByDefault=True, failRequestsGreaterThanOne=True),
    ),
    Row("a frozen pool, as a number", unavailable(0)),
    Row("a frozen pool, as a percentage", unavailable("0%")),
    Row("three nodes at once", unavailable(3)),
    Row("1 percent at once", unavailable("1%")),
    Row("100 percent at once", unavailable("100%")),
    Row("a duration of two units", drain_timeout("1h30m")),
    Row(
        "rules of every kind",
        full(
            drain={
                "rules": [
                    {
                        "namespaceSelector": {"matchLabels": {"team": "a"}},
                        "podSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
                        "behavior": "WaitCompleted",
                        "timeout": "8h",
                        "order": -1,
                    },
                    {"behavior": "Block"},
                ],
                "jobs": {"timeout": "2h", "onTimeout": "Evict"},
            }
        ),
    ),
    Row("a duration of a week", drain_timeout("168h")),
    Row(
        "jobs and a rule that are waited for without an end",
        full(drain={"jobs": {"timeout": "Never"}, "rules": [{"behavior": "WaitCompleted", "timeout": "Never"}]}),
    ),
    Row(
        "pods without owner and stranded pods may go",
        full(
            drain={
                "onTimeout": "Hold",
                "unmanagedPods": "Evict",
                "strandedPods": "Allow",
                "protectedPods": "Ignore",
                "localStorage": "Block",
            }
        ),
    ),
    Row("other time limits", full(rollout={"timeouts": {"actuation": "45m", "verification": "90s"}})),
    Row("a name of 50 characters", full(), metadata={"name": "p" * 50}),
    Row("MPS with four clients per GPU", mps(replicas=4)),
    Row("MPS under a name of its own", mps(replicas=4, renameByDefault=True)),
    Row("MIG with time-slicing of its instances", mig(**TWO_HALVES) | {"timeSlicing": {"replicas": 2}}),
    Row(
        "a named MIG configuration with time-slicing",
        mig(config="all-balanced") | {"timeSlicing": {"replicas": 3, "renameByDefault": True}},
    ),
    # when nodes may start
    Row(
        "windows and blackouts",
        full(
            rollout={
                "windows": [
                    {"schedule": "0 22 * * 1-5", "duration": "6h", "timeZone": "Europe/Berlin"},
                    {"schedule": "*/5 0-4 1,L jan-mar sun#2", "duration": "90s"},
                ],
                "blackouts": [{"schedule": "0 0 24 12 *", "duration": "72h", "timeZone": "America/Argentina/Ushuaia"}],
            }
        ),
    ),
    Row(
        "a canary, an approval, more failures and a pause that holds",
        full(
            rollout={"canary": {"nodes": 2, "soak": "1h"}, "approval": "Manual", "maxFailures": 3, "whenPaused": "Hold"}
        ),
    ),
    Row("nodes that become whole when the policy goes", full(deletionPolicy="Reset")),
)

BAD = (
    Row("a price below 0", full(cost={"gpuHourlyPrice": "-1"}), "spec.cost.gpuHourlyPrice"),
    Row(
        "a price with a sign for its currency",
        full(cost={"gpuHourlyPrice": "$3"}),
        "spec.cost.gpuHourlyPrice",
    ),
    Row(
        "a price that is a number and no text", full(cost={"gpuHourlyPrice": 3.2}), "spec.cost.gpuHourlyPrice"
    ),
    Row("a currency by its sign", full(cost={"gpuHourlyPrice": "3", "currency": "€"}), "spec.cost.currency"),
    Row("a currency and no price", full(cost={"currency": "EUR"}), "spec.cost.gpuHourlyPrice"),
    # nodeSelector
    Row("no selector", {"mode": "Full"}, "spec.nodeSelector"),
    Row("an empty selector", select(), "spec.nodeSelector"),
    Row("a selector with empty parts", select(matchLabels={}, matchExpressions=[]), "spec.nodeSelector"),
    Row("a selector on the card's label, which GFD rewrites",
         select(matchLabels={"nvidia.com/gpu.product": "NVIDIA-A30"}), "spec.nodeSelector.matchLabels"),
    Row("a selector on mig.config", select(matchLabels={"nvidia.com/mig.config": "all-1g.10gb"}),
         "spec.nodeSelector.matchLabels"),
    Row("a selector on our routing label", select(matchLabels={"pool": "b", "gpusharing.dev/mode": "mig"}),
         "spec.nodeSelector.matchLabels"),
    Row("a selector on a per-profile label", select(matchLabels={"nvidia.com/mig-1g.10gb.count": "7"}),
         "spec.nodeSelector.matchLabels"),
    Row("a selector on an operand's switch", select(matchLabels={"nvidia.com/gpu.deploy.device-plugin": "true"}),
         "spec.nodeSelector.matchLabels"),
    Row("a selector on the mark that our own fence sets",
         select(matchLabels={"pool": "b", "nvidia.com/gpu-driver-upgrade.skip": "true"}),
         "spec.nodeSelector.matchLabels"),
    Row("an expression on the mark that our own fence sets",
         expression(key="nvidia.com/gpu-driver-upgrade.skip", operator="DoesNotExist"),
         "spec.nodeSelector.matchExpressions[0].key"),
    Row("a selector on the multiprocessors of what GFD describes",
         select(matchLabels={"nvidia.com/gpu.multiprocessors": "132"}), "spec.nodeSelector.matchLabels"),
    Row("a selector on slices, which GFD writes under strategy single",
         select(matchLabels={"nvidia.com/gpu.slices.gi": "1"}), "spec.nodeSelector.matchLabels"),
    Row("an expression on engines, which GFD writes under strategy single",
         expression(key="nvidia.com/gpu.engines.copy", operator="NotIn", values=["1"]),
         "spec.nodeSelector.matchExpressions[0].key"),
    Row("an expression on a label that changes", expression(key="nvidia.com/mig.config.state", operator="Exists"),
         "spec.nodeSelector.matchExpressions[0].key"),
    Row("a label key with a space", select(matchLabels={"my pool": "b"}), "spec.nodeSelector.matchLabels"),
    Row("a label key with an upper-case prefix", select(matchLabels={"Acme/pool": "b"}),
         "spec.nodeSelector.matchLabels"),
    Row("a label value with a slash", select(matchLabels={"pool": "a/b"}), "spec.nodeSelector.matchLabels.pool"),
    Row("a label value of 64 characters", select(matchLabels={"pool": "v" * 64}),
         "spec.nodeSelector.matchLabels.pool"),
    Row("an expression key that is no label", expression(key="-pool", operator="Exists"),
         "spec.nodeSelector.matchExpressions[0].key"),
    Row("an unknown operator", expression(key="pool", operator="Gt", values=["1"]),
         "spec.nodeSelector.matchExpressions[0].operator"),
    Row("In without values", expression(key="pool", operator="In"),
         "spec.nodeSelector.matchExpressions[0].values"),
    Row("Exists with values", expression(key="pool", operator="Exists", values=["b"]),
         "spec.nodeSelector.matchExpressions[0].values"),
    # mode and its block
    Row("no mode", {"nodeSelector": POOL}, "spec.mode"),
    Row("a mode that does not exist", full(mode="Exclusive"), "spec.mode"),
    Row("mode MIG without its block", full(mode="MIG"), "spec.mig"),
    Row("mode TimeSlicing without its block", full(mode="TimeSlicing"), "spec.timeSlicing"),
    Row("a mig block with mode Full", full(mig=TWO_HALVES), "spec.mig"),
    Row("a timeSlicing block with mode Full", full(timeSlicing={"replicas": 4}), "spec.timeSlicing"),
    Row("a mig block with mode TimeSlicing", shared(replicas=4) | {"mig": TWO_HALVES}, "spec.mig"),
    Row("an mps block with mode MIG", mig(**TWO_HALVES) | {"mps": {"replicas": 4}}, "spec.mps"),
    Row("an mps block with mode TimeSlicing", shared(replicas=4) | {"mps": {"replicas": 4}}, "spec.mps"),
    Row("an mps block with mode Full", full(mps={"replicas": 4}), "spec.mps"),
    Row("mode MPS without its block", full(mode="MPS"), "spec.mps"),
    Row("mode MPS with a timeSlicing block", mps(replicas=4) | {"timeSlicing": {"replicas": 4}}, "spec.timeSlicing"),
    Row("one MPS client per GPU", mps(replicas=1), "spec.mps.replicas"),
    Row("an mps block without replicas", mps(), "spec.mps.replicas"),
    Row(
        "one share of each MIG instance",
        mig(**TWO_HALVES) | {"timeSlicing": {"replicas": 1}},
        "spec.timeSlicing.replicas",
    ),
    # mig
    Row("an empty mig block", mig(), "spec.mig"),
    Row("both a configuration and layouts", mig(config="all-balanced", **TWO_HALVES), "spec.mig"),
    Row("an unknown strategy", mig(config="all-balanced", strategy="none"), "spec.mig.strategy"),
    Row("a configuration name with a space", mig(config="all balanced"), "spec.mig.config"),
    Row("an empty configuration name", mig(config=""), "spec.mig.config"),
    Row("the configuration that switches MIG off", mig(config="all-disabled"), "spec.mig.config"),
    Row("no layouts in the list", layouts(), "spec.mig.layouts"),
    Row("layouts that leave every GPU whole", layouts({}), "spec.mig.layouts"),
    Row("layouts whose lists leave every GPU whole", layouts({"devices": [0]}, {"devices": [1], "profiles": {}}),
         "spec.mig.layouts"),
    Row("strategy single with two profiles on one GPU",
         layouts({"profiles": {"3g.40gb": 1, "1g.10gb": 4}}, strategy="single"), "spec.mig.strategy"),
    Row("strategy single with two profiles on two GPUs", layouts(
        {"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {"1g.10gb": 7}}, strategy="single",
    ), "spec.mig.strategy"),
    Row("strategy single with one GPU whole", layouts(
        {"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}, strategy="single",
    ), "spec.mig.strategy"),
    Row("a compute instance profile", profile("1c.3g.20gb"), "spec.mig.layouts[0].profiles"),
    Row("a profile without memory", profile("3g"), "spec.mig.layouts[0].profiles"),
    Row("a profile by its resource name", profile("nvidia.com/mig-3g.40gb"), "spec.mig.layouts[0].profiles"),
    Row("a profile with the label's dot for its plus", profile("1g.10gb.me"), "spec.mig.layouts[0].profiles"),
    Row("a profile in upper case", profile("3G.40GB"), "spec.mig.layouts[0].profiles"),
    Row("a bad profile in the second entry", layouts(
        {"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {"half": 2}},
    ), "spec.mig.layouts[1].profiles"),
    Row("no instance of a profile", profile("3g.40gb", 0), "spec.mig.layouts[0].profiles.3g.40gb"),
    Row("eight instances of a profile", profile("1g.10gb", 8), "spec.mig.layouts[0].profiles.1g.10gb"),
    Row("a count as text", profile("3g.40gb", "2"), "spec.mig.layouts[0].profiles.3g.40gb"),
    Row("an entry for all GPUs beside another", layouts(
        {"profiles": {"3g.40gb": 2}}, {"devices": [0], "profiles": {"1g.10gb": 7}},
    ), "spec.mig.layouts"),
    Row("two entries for all GPUs", layouts({"profiles": {"3g.40gb": 2}}, {"profiles": {"1g.10gb": 7}}),
         "spec.mig.layouts"),
    Row("devices as a word", layouts({"devices": "all", "profiles": {"3g.40gb": 2}}),
         "spec.mig.layouts[0].devices"),
    Row("devices as a number", layouts({"devices": 0, "profiles": {"3g.40gb": 2}}), "spec.mig.layouts[0].devices"),
    Row("an empty list of devices", layouts({"devices": [], "profiles": {"3g.40gb": 2}}),
         "spec.mig.layouts[0].devices"),
    Row("a GPU listed twice in one entry", layouts({"devices": [0, 0], "profiles": {"3g.40gb": 2}}),
         "spec.mig.layouts[0].devices[1]"),
    Row("a GPU listed in two entries", layouts(
        {"devices": [0, 15], "profiles": {"3g.40gb": 2}}, {"devices": [15], "profiles": {"1g.10gb": 7}},
    ), "spec.mig.layouts[1].devices[0]", server="spec.mig.layouts"),
    Row("a GPU by its uuid", layouts({"devices": ["GPU-1"], "profiles": {"3g.40gb": 2}}),
         "spec.mig.layouts[0].devices[0]"),
    Row("a GPU index below zero", layouts({"devices": [-1], "profiles": {"3g.40gb": 2}}),
         "spec.mig.layouts[0].devices[0]"),
    Row("a GPU index of 16", layouts({"devices": [16], "profiles": {"3g.40gb": 2}}),
         "spec.mig.layouts[0].devices[0]"),
    # timeSlicing
    Row("an empty timeSlicing block", shared(), "spec.timeSlicing.replicas"),
    Row("one share", shared(replicas=1), "spec.timeSlicing.replicas"),
    Row("a share count below zero", shared(replicas=-4), "spec.timeSlicing.replicas"),
    Row("too many shares", shared(replicas=1025), "spec.timeSlicing.replicas"),
    Row("a share count as text", shared(replicas="4"), "spec.timeSlicing.replicas"),
    Row("renameByDefault as text", shared(replicas=4, renameByDefault="yes"), "spec.timeSlicing.renameByDefault"),
    # drain and rollout
    Row("nonsense with a percent sign", unavailable("1000a%"), "spec.rollout.maxUnavailable"),
    Row("more than all", unavailable("101%"), "spec.rollout.maxUnavailable"),
    Row("a number as text", unavailable("3"), "spec.rollout.maxUnavailable"),
    Row("a percentage with a fraction", unavailable("2.5%"), "spec.rollout.maxUnavailable"),
    Row("a number below zero", unavailable(-1), "spec.rollout.maxUnavailable"),
    Row("a percentage below zero", unavailable("-5%"), "spec.rollout.maxUnavailable"),
    Row("true is not one node", unavailable(True), "spec.rollout.maxUnavailable"),
    Row("a duration without unit", drain_timeout("15"), "spec.drain.timeout"),
    Row("a duration as a number", drain_timeout(15), "spec.drain.timeout"),
    Row("a duration with a fraction", drain_timeout("1.5h"), "spec.drain.timeout"),
    Row("a duration below zero", drain_timeout("-5m"), "spec.drain.timeout"),
    Row("no time at all", drain_timeout("0s"), "spec.drain.timeout"),
    Row("an empty duration", drain_timeout(""), "spec.drain.timeout"),
    Row("a duration of more than a week", drain_timeout("168h1s"), "spec.drain.timeout"),
    Row("a time limit in days", full(rollout={"timeouts": {"actuation": "1d"}}), "spec.rollout.timeouts.actuation"),
    Row("a time limit of zero", full(rollout={"timeouts": {"verification": "0m"}}),
         "spec.rollout.timeouts.verification"),
    Row("a rule that does not say what to do", full(drain={"rules": [{}]}), "spec.drain.rules[0].behavior"),
    Row(
        "a rule with an unknown answer", full(drain={"rules": [{"behavior": "Skip"}]}), "spec.drain.rules[0].behavior"
    ),
    Row(
        "a time for pods that nobody waits for",
        full(drain={"rules": [{"behavior": "Evict", "timeout": "1h"}]}),
        "spec.drain.rules[0].timeout",
    ),
    Row(
        "a rule with no time at all",
        full(drain={"rules": [{"behavior": "WaitCompleted", "timeout": "0s"}]}),
        "spec.drain.rules[0].timeout",
    ),
    Row(
        "a rule on a label that cannot be",
        full(drain={"rules": [{"behavior": "Block", "podSelector": {"matchLabels": {"a b": "c"}}}]}),
        "spec.drain.rules[0].podSelector.matchLabels",
    ),
    Row(
        "a rule whose selector lacks values",
        full(
            drain={
                "rules": [
                    {"behavior": "Block", "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}
                ]
            }
        ),
        "spec.drain.rules[0].namespaceSelector.matchExpressions[0].values",
    ),
    Row("a rule of an order beyond bounds", full(drain={"rules": [{"behavior": "Block", "order": 1001}]}),
        "spec.drain.rules[0].order"),
    Row("an unknown end of a drain", full(drain={"onTimeout": "Force"}), "spec.drain.onTimeout"),
    Row("a drain without an end", drain_timeout("Never"), "spec.drain.timeout"),
    Row("never, written otherwise", full(drain={"jobs": {"timeout": "never"}}), "spec.drain.jobs.timeout"),
    Row("no time for jobs", full(drain={"jobs": {"timeout": "0s"}}), "spec.drain.jobs.timeout"),
    Row("an unknown end for jobs", full(drain={"jobs": {"onTimeout": "Hold"}}), "spec.drain.jobs.onTimeout"),
    Row("an unknown answer for marked pods", full(drain={"protectedPods": "Evict"}), "spec.drain.protectedPods"),
    Row("an unknown answer for files", full(drain={"localStorage": "Ignore"}), "spec.drain.localStorage"),
    Row("an unknown answer for unmanaged pods", full(drain={"unmanagedPods": "Delete"}), "spec.drain.unmanagedPods"),
    Row("an unknown answer for stranded pods", full(drain={"strandedPods": "Evict"}), "spec.drain.strandedPods"),
    # the rest
    Row("a null mode", {"nodeSelector": POOL, "mode": None}, "spec.mode"),
    Row("a null in a list", full(products=[None]), "spec.products[0]"),
    Row("a priority out of bounds", full(priority=1001), "spec.priority"),
    Row("a card's name with spaces", full(products=["NVIDIA H100"]), "spec.products[0]"),
    Row("an empty card's name", full(products=[""]), "spec.products[0]"),
    Row("a name that is too long for a label", full(), "metadata.name", metadata={"name": "p" * 51}),
    # when nodes may start
    Row("a deletion policy by a word", full(deletionPolicy="Delete"), "spec.deletionPolicy"),
    Row("a schedule of four fields", windowed(schedule="0 22 * *"), "spec.rollout.windows[0].schedule"),
    Row("a schedule with seconds", windowed(schedule="0 0 22 * * *"), "spec.rollout.windows[0].schedule"),
    Row("a schedule by a word", windowed(schedule="@midnight"), "spec.rollout.windows[0].schedule"),
    Row("a zone as an offset", windowed(timeZone="+01:00"), "spec.rollout.windows[0].timeZone"),
    Row("a zone by a path", windowed(timeZone="../etc/passwd"), "spec.rollout.windows[0].timeZone"),
    Row("a window without end", windowed(duration="169h"), "spec.rollout.windows[0].duration"),
    Row("a window of no length", windowed(duration="0m"), "spec.rollout.windows[0].duration"),
    Row(
        "a blackout in days",
        full(rollout={"blackouts": [{"schedule": "0 0 24 12 *", "duration": "3d"}]}),
        "spec.rollout.blackouts[0].duration",
    ),
    Row("a canary of no node", full(rollout={"canary": {"nodes": 0}}), "spec.rollout.canary.nodes"),
    Row("a canary that soaks for no time", full(rollout={"canary": {"soak": "0s"}}), "spec.rollout.canary.soak"),
    Row("no failure allowed", full(rollout={"maxFailures": 0}), "spec.rollout.maxFailures"),
    Row("an approval by a word", full(rollout={"approval": "Yes"}), "spec.rollout.approval"),
    Row("a pause by a word", full(rollout={"whenPaused": "Stop"}), "spec.rollout.whenPaused"),
)  # fmt: skip

"""A recommendation as a policy that waits for an approval. Pure; nothing is applied by it."""

from typing import Any

from gpusharing.api.names import API_VERSION
from gpusharing.cli.live.files import KIND
from gpusharing.cli.shell.simulated import sentence
from gpusharing.usage.read.poolnodes import NodeScope
from gpusharing.usage.reckon.recommendation import Recommendation
from gpusharing.usage.say.recommendtext import RecommendReport

_MODES = ("mode", "mig", "mps", "timeSlicing")


def policy_of(scope: NodeScope, found: Recommendation) -> dict[str, Any]:
    """The policy of a pool with this layout; everything else in an existing policy stays as it is."""
    kept = {
        key: value for key, value in scope.spec.items() if key not in (*_MODES, "nodeSelector", "rollout")
    }
    rollout = scope.spec.get("rollout")
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": scope.name, **scope.metadata},
        "spec": {
            "nodeSelector": dict(scope.selector),
            **found.block(),
            **kept,
            "rollout": {**(rollout if isinstance(rollout, dict) else {}), "approval": "Manual"},
        },
    }


def as_file(answer: RecommendReport) -> str:
    """With what it is based on, as comments."""
    import yaml  # as in terminal.py: it costs as much as a short command

    told = [
        "Proposed by kubectl gpusharing recommend from what was measured. Nothing changes until somebody"
        " approves the plan.",
        f"{answer.span}; {answer.packing}",
        *filter(None, (sentence(answer.seen.simulated),)),
        *(f"PARTIAL: {text}" for text in answer.missing),
        *answer.steps,
    ]
    lines = "".join(f"# {_printable(text)}\n" for text in told)
    return lines + yaml.safe_dump(answer.policy, sort_keys=False)


def _printable(text: str) -> str:
    """On one line, and nothing in it that YAML or a terminal would stumble over: others wrote parts of it."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.splitlines()))

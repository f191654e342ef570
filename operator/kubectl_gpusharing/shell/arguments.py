"""Which verbs are there, with which flags and which help?

Each verb is a dataclass whose fields are its flags, as argparse takes them. No other module of ours is imported at the
top, so that --help is fast.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from textwrap import fill
from typing import Any, ClassVar, Never, Self

PROG = "kubectl gpusharing"
NAMES, PAGE, CSV = "name", "html", "csv"
"""Formats that only some verbs have."""
OUTPUTS: tuple[str, ...] = ("table", "wide", "json", "yaml")
HELP, OPTIONS = "help", "options"
HELPERS = {HELP: "Show the flags of a verb.", OPTIONS: "Show the flags that every verb has."}
"""The words that are typed like verbs and only print help, with their own help."""
ERROR = "an error, printed on standard error"
UNKNOWN = "a part of the answer is unknown"


class Parser(argparse.ArgumentParser):
    """Suggests similar words, and exits with 1 for invalid flags; argparse's 2 means that a plan has changes."""

    def error(self, message: str) -> Never:
        self.exit(1, f"error: {message}\nSee: {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word, *_ = unknown[0].split("=")
            what = "there is no flag" if word.startswith("-") else "there is an argument too many:"
            self.error(f"{what} {word}{_meant(word, self._option_string_actions)}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [*map(str, action.choices)]
            what = f"{action.option_strings[-1]} cannot be" if action.option_strings else "there is no verb"
            listed = f"; use one of: {', '.join(choices)}"
            self.error(f"{what} {value}{_meant(str(value), choices) or listed}")


def _meant(word: str, known: Iterable[str]) -> str:
    from gpusharing.api.nearest import did_you_mean

    return "" if word.isdigit() else did_you_mean(word, known)


class Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> Never:
        from gpusharing.kube.ownversion import own_version

        print(f"{PROG} {own_version() or '(unknown version)'}")
        parser.exit(0)


def flag(*names: str, default: Any = MISSING, **options: Any) -> Any:
    """Return a field with the names and options of argparse's `add_argument`; without names it is positional."""
    if default is MISSING:
        many = options.get("action") == "append" or options.get("nargs") in (1, "*", "+")
        default = () if many else ""
    return field(default=default, metadata={"names": names, "options": options})


def switch(*names: str, help: str) -> Any:
    return flag(*names, default=False, action="store_true", help=help)


def question(name: str, help: str) -> Any:
    """Return a field for a flag and its opposite with --no-; None if neither was typed."""
    return flag(name, default=None, action=argparse.BooleanOptionalAction, help=help)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The flags that every verb has, and how the verb is carried out."""

    verb: ClassVar[str]
    module: ClassVar[str]
    """The module below `kubectl_gpusharing`, imported only when the verb was typed."""
    outputs: ClassVar[tuple[str, ...]] = OUTPUTS
    alone: ClassVar[bool] = False
    """Whether the verb is for one cluster only."""
    fleet_seconds: ClassVar[float] = 0.0
    """Seconds within which each of several clusters must answer; 0 if the verb does not show several in one table."""
    exits: ClassVar[Mapping[int, str]] = {}
    """What the exit statuses of the verb mean, where it is not success or an error."""
    examples: ClassVar[tuple[str, str]]

    kubeconfig: str = flag("--kubeconfig", metavar="FILE", help="instead of KUBECONFIG or ~/.kube/config")
    context: str = flag("--context", metavar="NAME", help="a context in the kubeconfig; default: the current context")
    contexts: str | None = flag(
        "--contexts",
        default=None,
        metavar="A,B",
        help="several contexts, shown in one table; works with status, doctor and cost",
    )
    all_contexts: bool = switch(
        "--all-contexts", help="all contexts in the kubeconfig, shown in one table; works with status, doctor and cost"
    )
    namespace: str = flag(
        "-n",
        "--namespace",
        metavar="NAME",
        help="namespace of the given pod; for free and advise, the namespace whose pods to include",
    )
    output: str = flag("-o", "--output", metavar="FORMAT", default="table")
    no_headers: bool = switch("--no-headers", help="no headings of tables")
    no_color: bool = switch("--no-color", help="no colors; NO_COLOR does the same")

    @property
    def offline(self) -> bool:
        """Whether the verb contacts no cluster and is carried out by `run_offline`."""
        return False

    def each(self) -> Sequence[Self]:
        """Return the arguments for each name that the verb is carried out for, one after the other."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusArguments(Arguments):
    """Show the state of every pool: its layout, what it is waiting for, why, since when and until when."""

    verb, module, outputs, fleet_seconds = "status", "pools.status", (*OUTPUTS, NAMES, PAGE), 60.0
    examples = "pool-a -o wide", "--watch"
    policies: tuple[str, ...] = flag(nargs="*", metavar="POLICY|NODE", help="only these policies or nodes")
    selector: str = flag(
        "-l", "--selector", metavar="LABELS", help="only policies with these labels, for example team=a"
    )
    watch: bool = switch("-w", "--watch", help="keep running and redraw on every change; Ctrl-C ends it")
    timeline: bool = switch("--timeline", help="also show the last rollout: which node was in which phase when")
    events: bool = switch("--events", help="also show the Events of the last hour about each policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class UiArguments(Arguments):
    """Serve a live page about the pools, for a browser on this machine; read only."""

    verb, module, alone = "ui", "usage.ui", True
    examples = "--open", "--port 8321"
    port: int = flag("--port", metavar="PORT", type=int, default=0, help="port of 127.0.0.1; default: any free one")
    open: bool = switch("--open", help="also open the page in your browser")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanArguments(Arguments):
    """Show what an edit would do, or what the operator is about to do; changes nothing."""

    verb, module, outputs = "plan", "changing.plan", (*OUTPUTS, NAMES)
    exits: ClassVar[Mapping[int, str]] = {
        0: "nothing to do",
        2: "something will change",
        3: "a policy cannot be carried out",
        4: "it is unknown what would happen, for example because no agent has reported",
        5: "something listed in --fail-on would happen",
    }
    examples = "pool-a", "-f policies/ --fail-on evictions,shortfall"
    policies: tuple[str, ...] = flag(nargs="*", metavar="POLICY", help="only these")
    filename: tuple[str, ...] = flag(
        "-f",
        "--filename",
        action="append",
        metavar="FILE",
        help="a file or directory of policies in YAML or JSON; - reads standard input, such as the output of"
        " kubectl kustomize. Can be repeated",
    )
    fail_on: str = flag(
        "--fail-on",
        metavar="WORDS",
        help="for CI: exit with status 5 if the plan has any of evictions,shortfall, and with 0 for other changes",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyArguments(Arguments):
    """Explain why a node is not done or a pod is waiting: which sources disagree, what blocks it, what to do."""

    verb, module, outputs = "why", "diagnosis.why", (*OUTPUTS, NAMES)
    examples = "gpu-07", "pod llm-0 -n team-a"
    subjects: tuple[str, ...] = flag(
        nargs="+",
        metavar="NODE|KIND/NAME",
        help="gpu-07, node gpu-07, pod/NAME, NAMESPACE/NAME, deploy/NAME, sts/NAME, job/NAME or gsp/NAME",
    )

    def each(self) -> Sequence[Self]:
        from kubectl_gpusharing.shell.session import find_kind

        kind, *names = self.subjects
        if names and find_kind(kind) is not None:  # as for kubectl: pod NAME, or pod NAME NAME
            return [replace(self, subjects=(f"{kind}/{one}",)) for one in dict.fromkeys(names)]
        return [replace(self, subjects=(one,)) for one in dict.fromkeys(self.subjects)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeArguments(Arguments):
    """Show who holds the GPUs and what is free now, from Nodes and Pods alone."""

    verb, module, outputs = "free", "usage.free", (*OUTPUTS, NAMES, CSV)
    exits: ClassVar[Mapping[int, str]] = {2: UNKNOWN}
    examples = "--by node", "--usage -n team-a"
    by: str = flag(
        "--by",
        choices=("resource", "node", "policy", "namespace", "pod"),
        help="what each row is about; default: resource",
    )
    selector: str = flag(
        "-l", "--selector", metavar="LABELS", help="only nodes with these labels, for example gpusharing.dev/pool=a"
    )
    usage: bool = switch(
        "--usage",
        help="show the memory and the SM time that each pod uses: from the agents if the chart has"
        " agent.secureMetrics=false, otherwise from Prometheus",
    )
    service: str = flag(
        "--service",
        metavar="NAMESPACE/NAME:PORT",
        help="the Prometheus to use for --usage if the agents cannot be queried",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringArguments(Arguments):
    """The flags of the verbs that patch an object."""

    module, outputs = "changing.steer", (*OUTPUTS, NAMES)
    exits: ClassVar[Mapping[int, str]] = {1: f"{ERROR}, or you did not confirm"}
    names: tuple[str, ...] = flag(nargs="+", metavar="NODE", help="one or more")
    dry_run: bool = switch("--dry-run", help="show the patch without sending it")
    yes: bool = switch("-y", "--yes", help="do not ask for confirmation, even if pods may be evicted")

    @property
    def name(self) -> str:
        """The object to patch; empty for all."""
        return next(iter(self.names), "")

    def each(self) -> Sequence[Self]:
        return [replace(self, names=(one,)) for one in dict.fromkeys(self.names)] or [self]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproveArguments(SteeringArguments):
    """Approve a policy's plan, so that the operator carries it out."""

    verb, examples = "approve", ("pool-a", "pool-a 4a38df3 --yes")
    names: tuple[str, ...] = flag(nargs=1, metavar="POLICY", help="its name")
    hash: str = flag(nargs="?", metavar="HASH", help="hash of the plan that you read; it must match the current plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseArguments(SteeringArguments):
    """Pause policies, so that no further node starts to change."""

    verb, examples = "pause", ("pool-a --when-paused Hold", "--all")
    names: tuple[str, ...] = flag(nargs="*", metavar="POLICY", help="or --all")
    all: bool = switch("--all", help="stop the fleet: pause every policy")
    when_paused: str = flag(
        "--when-paused",
        choices=("Finish", "Hold", "Abort"),
        help="what happens to changes in flight; default: as set in the policy",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeArguments(SteeringArguments):
    """End a pause, or continue a rollout after failures."""

    verb, examples = "resume", ("pool-a", "--all")
    names: tuple[str, ...] = flag(nargs="*", metavar="POLICY", help="or --all")
    all: bool = switch("--all", help="end the pause of every policy; rollouts that failures halted stay halted")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryArguments(SteeringArguments):
    """Try failed or deferred nodes again."""

    verb, examples = "retry", ("gpu-07", "gpu-07 gpu-08 --yes")


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortArguments(SteeringArguments):
    """Abort the changes that are in progress on nodes."""

    verb, examples = "abort", ("gpu-07", "gpu-07 --dry-run")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipArguments(SteeringArguments):
    """Keep changes from starting on nodes."""

    verb, examples = "skip", ("gpu-07", "gpu-07 --undo")
    undo: bool = switch("--undo", help="let changes start there again")


CARD = "for example h100-80gb, or the name that NVML reports"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutsArguments(Arguments):
    """Draw every MIG layout of a card as slices; contacts no cluster."""

    verb, module = "layouts", "setup.layouts"
    exits: ClassVar[Mapping[int, str]] = {1: f"{ERROR}, or no layout fits"}
    examples = "h100-80gb", "a100-80gb --fits 3g.40gb,2x1g.10gb"
    product: str = flag(nargs="?", metavar="CARD", help=f"{CARD}; without it, the cards with MIG are listed")
    fits: str = flag(
        "--fits", metavar="PROFILES", help="only layouts that contain these profiles, for example 3g.40gb,2x1g.10gb"
    )
    all: bool = switch("--all", help="also show profiles with attributes: +me, +gfx, -me")

    @property
    def offline(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class LintArguments(Arguments):
    """Check policies, ClusterPolicies, and files of mig-parted and the device plugin; contacts no cluster."""

    verb, module = "lint", "setup.lint"
    exits: ClassVar[Mapping[int, str]] = {1: f"{ERROR}, or an object is refused"}
    examples = "policies/", "- -o json"
    files: tuple[str, ...] = flag(nargs="+", metavar="FILE", help="a file, a directory, or - for standard input")

    @property
    def offline(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorArguments(Arguments):
    """Find what silently overrides the operator or makes its checks fail, and show how to fix it."""

    verb, module, fleet_seconds = "doctor", "setup.doctor", 60.0
    exits: ClassVar[Mapping[int, str]] = {1: f"{ERROR}, or what was found is one"}
    examples = "", "--all-contexts"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleArguments(Arguments):
    """Write a tar archive for troubleshooting, without secrets."""

    verb, module, alone = "support-bundle", "diagnosis.bundle", True
    examples = "", "case-1234.tar.gz"
    file: str = flag(nargs="?", metavar="FILE", help="default: gpusharing-support-TIME.tar.gz in the current directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportArguments(Arguments):
    """Propose policies for a cluster that was configured by hand; applying them changes nothing."""

    verb, module, alone = "import", "setup.importing", True
    exits: ClassVar[Mapping[int, str]] = {1: f"{ERROR}, or all nodes are left out", 2: "some nodes are left out"}
    examples = "> policies.yaml", "-o json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusArguments(Arguments):
    """How Prometheus is reached, and which series are used."""

    exits: ClassVar[Mapping[int, str]] = {2: UNKNOWN}
    prometheus: str = flag("--prometheus", metavar="URL", help="the address of Prometheus; contacts no cluster")
    token_file: str = flag("--token-file", metavar="FILE", help="a bearer token for --prometheus")
    ca_file: str = flag(
        "--ca-file", metavar="FILE", help="PEM file of the CA that signed the certificate of --prometheus"
    )
    service: str = flag(
        "--service",
        metavar="NAMESPACE/NAME:PORT",
        help="the Service to reach through the API server; default: the one that looks like a Prometheus",
    )
    match: str = flag(
        "--match", metavar="MATCHERS", help='use only the series that match in PromQL, for example cluster="east"'
    )
    until: str = flag("--until", metavar="TIME", help="end of the window, a day or a time; default: now")
    window: str = flag("--window", metavar="TIME", default="30d", help="length, such as 12h or 4w; default: 30d")

    @property
    def offline(self) -> bool:
        return bool(self.prometheus)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendArguments(PrometheusArguments):
    """Recommend a layout for a pool from the measured use of its workloads (beta): advise --from-prometheus."""

    verb, module, outputs = "recommend", "usage.recommend", (*OUTPUTS, CSV)
    examples = "-l gpusharing.dev/pool=a", "--policy pool-a --write pool-a.yaml"
    card: str = flag("--card", metavar="CARD", help=f"{CARD}; where needs are measured, only GPUs of this model")
    price: str = flag(
        "--price",
        metavar="PRICE",
        help="what a GPU costs an hour, for example 3.20 or 3.20EUR; default: as in Prometheus",
    )
    selector: str = flag(
        "-l",
        "--selector",
        metavar="LABELS",
        help="only nodes with these labels, for example gpusharing.dev/pool=a; default: all nodes in Prometheus",
    )
    policy: str = flag("--policy", metavar="POLICY", help="the nodes of this policy")
    goal: str = flag(
        "--goal",
        choices=("cost", "performance"),
        help="cost: the fewest GPUs that suffice; performance: as much headroom as the pool allows; default: cost",
    )
    verbose: bool = switch("-v", "--verbose", help="show what each answer is based on: hourly peaks, samples, reason")
    write: str = flag(
        "--write",
        metavar="FILE",
        help="write the policy to FILE; it requires approval and is never applied automatically",
    )
    window: str = flag(
        "--window", metavar="TIME", default="14d", help="length, such as 12h or 2w, at most 30d; default: 14d"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseArguments(RecommendArguments):
    """Suggest a mode and a layout, with reasons and savings.

    It is based on your answers, on the pods in a namespace (-n), or on what workloads used (--from-prometheus).
    """

    verb, module = "advise", "usage.advise"
    examples = "--card h100-80gb --need 4x20Gi --need 12x5Gi --strangers", "-n team-a"
    need: tuple[str, ...] = flag(
        "--need",
        action="append",
        metavar="NxSIZE",
        help="N workloads that need this memory at their peak, for example 4x20Gi. Can be repeated",
    )
    memory: str = flag("--memory", metavar="SIZE", help="what each workload needs at its peak, for example 15Gi")
    promise: bool | None = question("--promise", help="users were promised a certain latency or availability")
    strangers: bool | None = question("--strangers", help="people who do not trust each other share the GPUs")
    bill: bool | None = question("--bill", help="each workload is billed for its share of a GPU")
    bursts: bool | None = question("--bursts", help="the workloads use the GPU only now and then")
    gpus_per_node: int = flag(
        "--gpus-per-node",
        metavar="N",
        type=int,
        choices=range(1, 17),  # the largest index that a policy may name is 15
        default=0,
        help="default: 1, for a layout that suits nodes of any size",
    )
    gpu_operator: str = flag(
        "--gpu-operator", metavar="VERSION", help="version of NVIDIA's GPU Operator, for example v26.3.3"
    )
    name: str = flag("--name", metavar="NAME", help="name of the policy; default: pool")
    pool: str = flag(
        "--pool", metavar="POOL", help="value of the gpusharing.dev/pool label that the policy selects; default: pool"
    )
    from_prometheus: bool = switch(
        "--from-prometheus", help="measure the needs of a pool's workloads, with the flags of recommend"
    )

    @property
    def offline(self) -> bool:
        return bool(self.prometheus) or not (self.namespace or self.from_prometheus)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostArguments(PrometheusArguments):
    """Show what the GPUs cost per namespace, policy, pod or label, and how much was used; reads only Prometheus."""

    verb, module, outputs, fleet_seconds = "cost", "usage.cost", (*OUTPUTS, CSV), 300.0
    examples = "--by policy --window 7d", "--prometheus http://127.0.0.1:9090 --match 'cluster=\"east\"'"
    by: str = flag(
        "--by",
        metavar="namespace|policy|pod|LABEL",
        default="namespace",
        help="LABEL is a namespace label, for example team",
    )
    currency: str = flag(
        "--currency",
        metavar="CODE",
        default="USD",
        help="currency of OpenCost's prices, which OpenCost does not report; default: USD",
    )


VERBS: tuple[type[Arguments], ...] = (
    StatusArguments, UiArguments, PlanArguments, WhyArguments, FreeArguments, ApproveArguments, PauseArguments,
    ResumeArguments, RetryArguments, AbortArguments, SkipArguments, LayoutsArguments, LintArguments, DoctorArguments,
    BundleArguments, ImportArguments, AdviseArguments, CostArguments, RecommendArguments,
)  # fmt: skip
GROUPS: Mapping[type[Arguments], str] = {Arguments: "cluster and output", PrometheusArguments: "Prometheus"}
COMMON = frozenset(one.name for one in fields(Arguments))
WIDTH = 78


def parse(words: Sequence[str]) -> Arguments:
    """Return what was typed. Raises SystemExit after printing help or an error."""
    given: dict[str, Any] = vars(parser().parse_args(words))
    verb = given.pop("verb")
    if verb == HELP:
        return parse([*filter(None, [given.get("topic")]), "--help"])
    if verb == OPTIONS:
        options = Parser(add_help=False, usage=argparse.SUPPRESS)
        _add_flags(options, Arguments, (*OUTPUTS, NAMES, PAGE, CSV))
        print(options.format_help(), end="")
        raise SystemExit(0)
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    typed: Arguments = {kind.verb: kind for kind in VERBS}[verb](**given | lists)
    return typed


def parser() -> Parser:
    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    text = "Query and steer the GPU sharing operator from a terminal."
    top = Parser(prog=PROG, description=text, epilog=_statuses({}), **raw)
    _add_flags(top, Arguments, (*OUTPUTS, NAMES, PAGE, CSV))
    top.add_argument(
        "--version",
        action=Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the version of this plugin; contacts no cluster",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, text in HELPERS.items():
        helper = verbs.add_parser(name, help=text, description=text)
        helper.add_argument("topic", nargs="?", metavar="VERB", choices=[kind.verb for kind in VERBS])
    for kind in VERBS:
        text = " ".join((kind.__doc__ or "").split())
        examples = "\n".join(f"  {PROG} {kind.verb} {example}" for example in kind.examples)
        common = f"{PROG} {OPTIONS} shows the flags that every verb has, such as --context and --namespace."
        epilog = f"{common}\n\nexamples:\n{examples}\n\n{_statuses(kind.exits)}"
        own = verbs.add_parser(kind.verb, help=text, description=fill(text, WIDTH), epilog=epilog, **raw)
        _add_flags(own, kind, kind.outputs, hidden=True)
    return top


def _statuses(exits: Mapping[int, str]) -> str:
    known = {0: "success", 1: ERROR, **exits, 130: "ended by Ctrl-C", 141: "the reader closed the pipe"}
    return "\n".join(["exit status:", *(f"  {status:<4} {meaning}" for status, meaning in sorted(known.items()))])


def _add_flags(parser: Parser, kind: type[Arguments], outputs: Sequence[str], *, hidden: bool = False) -> None:
    groups: dict[str, argparse._ActionsContainer] = {}
    for base, title in GROUPS.items():
        group = parser.add_argument_group(title)
        groups |= {one.name: group for one in fields(base) if issubclass(kind, base) and one.name not in groups}
    for one in fields(kind):
        names, options = one.metadata["names"], dict(one.metadata["options"])
        if one.name == "output":
            options |= {"choices": outputs, "help": f"{', '.join(outputs)}; default: table"}
        elif hidden and one.name in COMMON:
            options["help"] = argparse.SUPPRESS
        # A default would replace what was typed before the verb; those of the fields apply.
        options |= {"default": argparse.SUPPRESS} | ({"dest": one.name} if names else {})
        groups.get(one.name, parser).add_argument(*(names or [one.name]), **options)

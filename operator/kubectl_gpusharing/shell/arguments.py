"""Which verbs are there, with which flags and which help?

A flag is a field of `Arguments`, as argparse takes it, and each `Verb` lists those that it has. No other module of ours
is imported at the top, so that --help is fast.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from textwrap import fill
from types import MappingProxyType
from typing import Any, Never

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


CARD = "for example h100-80gb, or the name that NVML reports"
LABELED = "with these labels, for example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was typed. A flag that the verb does not have keeps its default."""

    verb: str
    # fmt: off
    kubeconfig: str = flag("--kubeconfig", metavar="FILE", help="instead of KUBECONFIG or ~/.kube/config")
    context: str = flag("--context", metavar="NAME", help="a context in the kubeconfig; default: the current context")
    contexts: str | None = flag("--contexts", default=None, metavar="A,B",
        help="several contexts: status, doctor and cost show one table, most other verbs answer one after the other")
    all_contexts: bool = switch("--all-contexts",
        help="all contexts in the kubeconfig, shown in one table; works with status, doctor and cost")
    namespace: str = flag("-n", "--namespace", metavar="NAME",
        help="namespace of the given pod; for free and advise, the namespace whose pods to include")
    output: str = flag("-o", "--output", metavar="FORMAT", default="table")
    no_headers: bool = switch("--no-headers", help="no headings of tables")
    no_color: bool = switch("--no-color", help="no colors; NO_COLOR does the same")

    prometheus: str = flag("--prometheus", metavar="URL", help="the address of Prometheus; contacts no cluster")
    token_file: str = flag("--token-file", metavar="FILE", help="a bearer token for --prometheus")
    ca_file: str = flag("--ca-file", metavar="FILE",
        help="PEM file of the CA that signed the certificate of --prometheus")
    service: str = flag("--service", metavar="NAMESPACE/NAME:PORT",
        help="the Service to reach through the API server; default: the one that looks like a Prometheus")
    match: str = flag("--match", metavar="MATCHERS",
        help='use only the series that match in PromQL, for example cluster="east"')
    until: str = flag("--until", metavar="TIME", help="end of the window, a day or a time; default: now")
    window: str = flag("--window", metavar="TIME", default="30d", help="length, such as 12h or 4w; default: 30d")

    policies: tuple[str, ...] = flag(nargs="*", metavar="POLICY", help="only these")
    subjects: tuple[str, ...] = flag(nargs="+", metavar="NODE|KIND/NAME",
        help="gpu-07, node gpu-07, pod/NAME, NAMESPACE/NAME, deploy/NAME, sts/NAME, ds/NAME, job/NAME or gsp/NAME")
    names: tuple[str, ...] = flag(nargs="+", metavar="NODE", help="one or more")
    hash: str = flag(nargs="?", metavar="HASH", help="hash of the plan that you read; it must match the current plan")
    product: str = flag(nargs="?", metavar="CARD", help=f"{CARD}; without it, the cards with MIG are listed")
    files: tuple[str, ...] = flag(nargs="+", metavar="FILE", help="a file, a directory, or - for standard input")
    file: str = flag(nargs="?", metavar="FILE",
        help="default: gpusharing-support-TIME.tar.gz in the current directory")

    selector: str = flag("-l", "--selector", metavar="LABELS", help=f"only nodes {LABELED} gpusharing.dev/pool=a")
    watch: bool = switch("-w", "--watch", help="keep running and redraw on every change; Ctrl-C ends it")
    timeline: bool = switch("--timeline", help="also show the last rollout: which node was in which phase when")
    events: bool = switch("--events", help="also show the Events of the last hour about each policy")
    port: int = flag("--port", metavar="PORT", type=int, default=0, help="port of 127.0.0.1; default: any free one")
    open: bool = switch("--open", help="also open the page in your browser")
    filename: tuple[str, ...] = flag("-f", "--filename", action="append", metavar="FILE",
        help="a file or directory of policies in YAML or JSON; - reads standard input, such as the output of"
        " kubectl kustomize. Can be repeated")
    fail_on: str = flag("--fail-on", metavar="WORDS",
        help="for CI: exit with status 5 if the plan has any of evictions,shortfall, and with 0 for other changes")
    by: str = flag("--by", choices=("resource", "node", "policy", "namespace", "pod"),
        help="what each row is about; default: resource")
    usage: bool = switch("--usage",
        help="show the memory and the SM time that each pod uses: from the agents if the chart has"
        " agent.secureMetrics=false, otherwise from Prometheus")
    dry_run: bool = switch("--dry-run", help="show the patch without sending it")
    yes: bool = switch("-y", "--yes", help="do not ask for confirmation, even if pods may be evicted")
    all: bool = switch("--all", help="also show profiles with attributes: +me, +gfx, -me")
    when_paused: str = flag("--when-paused", choices=("Finish", "Hold", "Abort"),
        help="what happens to changes in flight; default: as set in the policy")
    drain: str = flag("--drain", choices=("gpu-pods", "all-pods"),
        help="also evict pods that the failed change was to leave alone: gpu-pods, those that hold any GPU of the node,"
        " or all-pods, every pod, where mig-manager reboots the node; default: no more than before")
    undo: bool = switch("--undo", help="let changes start there again")
    fits: str = flag("--fits", metavar="PROFILES",
        help="only layouts that contain these profiles, for example 3g.40gb,2x1g.10gb")
    currency: str = flag("--currency", metavar="CODE", default="USD",
        help="currency of OpenCost's prices, which OpenCost does not report; default: USD")

    card: str = flag("--card", metavar="CARD", help=f"{CARD}; where needs are measured, only GPUs of this model")
    price: str = flag("--price", metavar="PRICE",
        help="what a GPU costs an hour, for example 3.20 or 3.20EUR; default: as in Prometheus")
    policy: str = flag("--policy", metavar="POLICY", help="the nodes of this policy")
    goal: str = flag("--goal", choices=("cost", "performance"),
        help="cost: the fewest GPUs that suffice; performance: as much headroom as the pool allows; default: cost")
    verbose: bool = switch("-v", "--verbose", help="show what each answer is based on: hourly peaks, samples, reason")
    write: str = flag("--write", metavar="FILE",
        help="write the policy to FILE; it requires approval and is never applied automatically")
    need: tuple[str, ...] = flag("--need", action="append", metavar="NxSIZE",
        help="N workloads that need this memory at their peak, for example 4x20Gi. Can be repeated")
    memory: str = flag("--memory", metavar="SIZE", help="what each workload needs at its peak, for example 15Gi")
    promise: bool | None = question("--promise", help="users were promised a certain latency or availability")
    strangers: bool | None = question("--strangers", help="people who do not trust each other share the GPUs")
    bill: bool | None = question("--bill", help="each workload is billed for its share of a GPU")
    bursts: bool | None = question("--bursts", help="the workloads use the GPU only now and then")
    gpus_per_node: int = flag("--gpus-per-node", metavar="N", type=int, default=0,
        choices=range(1, 17),  # the largest index that a policy may name is 15
        help="default: 1, for a layout that suits nodes of any size")
    gpu_operator: str = flag("--gpu-operator", metavar="VERSION",
        help="version of NVIDIA's GPU Operator, for example v26.3.3")
    name: str = flag("--name", metavar="NAME", help="name of the policy; default: pool")
    pool: str = flag("--pool", metavar="POOL",
        help="value of the gpusharing.dev/pool label that the policy selects; default: pool")
    from_prometheus: bool = switch("--from-prometheus",
        help="measure the needs of a pool's workloads, with the flags of recommend")
    # fmt: on

    @property
    def offline(self) -> bool:
        """Whether the verb contacts no cluster and is carried out by `run_offline`."""
        stated = self.verb == "advise" and not (self.namespace or self.from_prometheus)
        return self.verb in ("layouts", "lint") or bool(self.prometheus) or stated

    def each(self) -> "Sequence[Arguments]":
        """Return the arguments for each name that the verb is carried out for, one after the other."""
        if self.subjects:
            return [replace(self, subjects=(one,)) for one in self.subjects]
        return [replace(self, names=(one,)) for one in self.names] or [self]


FIELDS = {one.name: one for one in fields(Arguments) if one.metadata}
PROMETHEUS = ("prometheus", "token_file", "ca_file", "service", "match", "until", "window")
COMMON = ("kubeconfig", "context", "contexts", "all_contexts", "namespace", "output", "no_headers", "no_color")
PATCHED = ("names", "dry_run", "yes")
STATED = ("need", "memory", "promise", "strangers", "bill", "bursts", "gpus_per_node", "gpu_operator", "name", "pool")
MEASURED = (*PROMETHEUS, "card", "price", "selector", "policy", "goal", "verbose", "write")


@dataclass(frozen=True, slots=True)
class Verb:
    """What a verb is for, which flags it has, and how it is carried out."""

    help: str
    module: str
    """The module below `kubectl_gpusharing`, imported only when the verb was typed."""
    examples: tuple[str, str]
    flags: tuple[str, ...] = ()
    """The fields of `Arguments` that only some verbs have, in the order of the help."""
    differs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of these flags that are not those of the field."""
    outputs: tuple[str, ...] = OUTPUTS
    alone: bool = False
    """Whether the verb is for one cluster only."""
    fleet: bool = False
    """Whether several clusters can be shown in one table (`FLEET` of the module)."""
    exits: Mapping[int, str] = field(default_factory=dict)
    """What the exit statuses of the verb mean, where it is not success or an error."""


def patching(help: str, examples: tuple[str, str], *flags: str, **differs: Mapping[str, Any]) -> Verb:
    exits = {1: f"{ERROR}, or you did not confirm"}
    return Verb(help, "changing.steer", examples, (*PATCHED, *flags), differs, (*OUTPUTS, NAMES), exits=exits)


OR_ALL: Mapping[str, Any] = {"nargs": "*", "metavar": "POLICY", "help": "or --all"}
MEASURED_DIFFERS: Mapping[str, Mapping[str, Any]] = {
    "selector": {"help": f"only nodes {LABELED} gpusharing.dev/pool=a; default: all nodes in Prometheus"},
    "window": {"default": "14d", "help": "length, such as 12h or 2w, at most 30d; default: 14d"},
}
VERBS: Mapping[str, Verb] = {
    "status": Verb(
        "Show the state of every pool: its layout, what it is waiting for, why, since when and until when.",
        "pools.status", ("pool-a -o wide", "--watch"), ("policies", "selector", "watch", "timeline", "events"),
        {
            "policies": {"metavar": "POLICY|NODE", "help": "only these policies or nodes"},
            "selector": {"help": f"only policies {LABELED} team=a"},
        },
        outputs=(*OUTPUTS, NAMES, PAGE), fleet=True,
    ),
    "ui": Verb(
        "Serve a live page about the pools, for a browser on this machine; read only.",
        "usage.ui", ("--open", "--port 8321"), ("port", "open"), alone=True,
    ),
    "plan": Verb(
        "Show what an edit would do, or what the operator is about to do; changes nothing.",
        "changing.plan", ("pool-a", "-f policies/ --fail-on evictions,shortfall"), ("policies", "filename", "fail_on"),
        outputs=(*OUTPUTS, NAMES),
        exits={
            0: "nothing to do",
            2: "something will change",
            3: "a policy cannot be carried out",
            4: "it is unknown what would happen, for example because no agent has reported",
            5: "something listed in --fail-on would happen",
        },
    ),
    "why": Verb(
        "Explain why a node is not done or a pod is waiting: which sources disagree, what blocks it, what to do.",
        "diagnosis.why", ("gpu-07", "pod llm-0 -n team-a"), ("subjects",), outputs=(*OUTPUTS, NAMES),
    ),
    "free": Verb(
        "Show who holds the GPUs and what is free now, from Nodes and Pods alone.",
        "usage.free", ("--by node", "--usage -n team-a"), ("by", "selector", "usage", "service"),
        {"service": {"help": "the Prometheus to use for --usage if the agents cannot be queried"}},
        outputs=(*OUTPUTS, NAMES, CSV), exits={2: UNKNOWN},
    ),
    "approve": patching(
        "Approve a policy's plan, so that the operator carries it out.", ("pool-a", "pool-a 4a38df3 --yes"), "hash",
        names={"nargs": 1, "metavar": "POLICY", "help": "its name"},
    ),
    "pause": patching(
        "Pause policies, so that no further node starts to change.",
        ("pool-a --when-paused Hold", "--all"), "all", "when_paused",
        names=OR_ALL, all={"help": "stop the fleet: pause every policy"},
    ),
    "resume": patching(
        "End a pause, or continue a rollout after failures.", ("pool-a", "--all"), "all",
        names=OR_ALL, all={"help": "end the pause of every policy; rollouts that failures halted stay halted"},
    ),
    "retry": patching(
        "Try failed or deferred nodes again.", ("gpu-07 gpu-08 --yes", "gpu-07 --drain gpu-pods"), "drain"
    ),
    "abort": patching("Abort the changes that are in progress on nodes.", ("gpu-07", "gpu-07 --dry-run")),
    "skip": patching("Keep changes from starting on nodes.", ("gpu-07", "gpu-07 --undo"), "undo"),
    "layouts": Verb(
        "Draw every MIG layout of a card as slices; contacts no cluster.", "setup.layouts",
        ("h100-80gb", "a100-80gb --fits 3g.40gb,2x1g.10gb"), ("product", "fits", "all"),
        exits={1: f"{ERROR}, or no layout fits"},
    ),
    "lint": Verb(
        "Check policies, ClusterPolicies, and files of mig-parted and the device plugin; contacts no cluster.",
        "setup.lint", ("policies/", "- -o json"), ("files",), exits={1: f"{ERROR}, or an object is refused"},
    ),
    "doctor": Verb(
        "Find what silently overrides the operator or makes its checks fail, and show how to fix it.",
        "setup.doctor", ("", "--all-contexts"), fleet=True, exits={1: f"{ERROR}, or what was found is one"},
    ),
    "support-bundle": Verb(
        "Write a tar archive for troubleshooting, without secrets.",
        "diagnosis.bundle", ("", "case-1234.tar.gz"), ("file",), alone=True,
    ),
    "import": Verb(
        "Propose policies for a cluster that was configured by hand; applying them changes nothing.",
        "setup.importing", ("> policies.yaml", "-o json"), alone=True,
        exits={1: f"{ERROR}, or all nodes are left out", 2: "some nodes are left out"},
    ),
    "advise": Verb(
        "Suggest a mode and a layout, with reasons and savings. It is based on your answers, on the pods in a namespace"
        " (-n), or on what workloads used (--from-prometheus).",
        "usage.advise", ("--card h100-80gb --need 4x20Gi --need 12x5Gi --strangers", "-n team-a"),
        (*MEASURED, *STATED, "from_prometheus"), MEASURED_DIFFERS, outputs=(*OUTPUTS, CSV), exits={2: UNKNOWN},
    ),
    "cost": Verb(
        "Show what the GPUs cost per namespace, policy, pod or label, and how much was used; reads only Prometheus.",
        "usage.cost",
        ("--by policy --window 7d", "--prometheus http://127.0.0.1:9090 --match 'cluster=\"east\"'"),
        (*PROMETHEUS, "by", "currency"),
        {
            "by": {
                "metavar": "namespace|policy|pod|LABEL", "choices": None, "default": "namespace",
                "help": "LABEL is a namespace label, for example team",
            },
        },
        outputs=(*OUTPUTS, CSV), fleet=True, exits={2: UNKNOWN},
    ),
    "recommend": Verb(
        "Recommend a layout for a pool from the measured use of its workloads (beta): advise --from-prometheus.",
        "usage.recommend", ("-l gpusharing.dev/pool=a", "--policy pool-a --write pool-a.yaml"),
        MEASURED, MEASURED_DIFFERS, outputs=(*OUTPUTS, CSV), exits={2: UNKNOWN},
    ),
}  # fmt: skip
WIDTH = 78


def parse(words: Sequence[str]) -> Arguments:
    """Return what was typed. Raises SystemExit after printing help or an error, and Trouble for a name of a wrong kind."""
    given: dict[str, Any] = vars(parser().parse_args(words))
    name = given["verb"]
    if name == HELP:
        return parse([*filter(None, [given.get("topic")]), "--help"])
    if name == OPTIONS:
        options = Parser(add_help=False, usage=argparse.SUPPRESS)
        _add_flags(options, COMMON, outputs=(*OUTPUTS, NAMES, PAGE, CSV))
        print(options.format_help(), end="")
        raise SystemExit(0)
    defaults = {flag: one["default"] for flag, one in VERBS[name].differs.items() if "default" in one}
    lists = {flag: tuple(value) for flag, value in given.items() if isinstance(value, list)}
    if objects := {flag: lists[flag] for flag in ("subjects", "names", "policies") if lists.get(flag)}:
        from kubectl_gpusharing.shell.session import read_names

        for flag, words in objects.items():
            option = FIELDS[flag].metadata["options"] | VERBS[name].differs.get(flag, {})
            lists[flag] = read_names(words, option["metavar"])
    return Arguments(**defaults | given | lists)


@cache
def parser() -> Parser:
    from gpusharing.kube.ownversion import own_version

    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    text = "Query and steer the GPU sharing operator from a terminal."
    top = Parser(prog=PROG, description=text, epilog=_statuses({}), **raw)
    _add_flags(top, COMMON, outputs=(*OUTPUTS, NAMES, PAGE, CSV))
    version = f"{PROG} {own_version() or '(unknown version)'}"
    about = "print the version of this plugin; contacts no cluster"
    top.add_argument("--version", action="version", version=version, help=about)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, text in HELPERS.items():
        helper = verbs.add_parser(name, help=text, description=text)
        helper.add_argument("topic", nargs="?", metavar="VERB", choices=[*VERBS])
    for name, verb in VERBS.items():
        examples = "\n".join(f"  {PROG} {name} {example}" for example in verb.examples)
        common = f"{PROG} {OPTIONS} shows the flags that every verb has, such as --context and --namespace."
        epilog = f"{common}\n\nexamples:\n{examples}\n\n{_statuses(verb.exits)}"
        own = verbs.add_parser(name, help=verb.help, description=fill(verb.help, WIDTH), epilog=epilog, **raw)
        _add_flags(own, (*COMMON, *verb.flags), verb.differs, verb.outputs, hidden=COMMON)
    return top


def _statuses(exits: Mapping[int, str]) -> str:
    known = {0: "success", 1: ERROR, **exits, 130: "ended by Ctrl-C", 141: "the reader closed the pipe"}
    return "\n".join(["exit status:", *(f"  {status:<4} {meaning}" for status, meaning in sorted(known.items()))])


def _add_flags(
    parser: Parser,
    flags: Iterable[str],
    differs: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    outputs: Sequence[str] = (),
    *,
    hidden: Sequence[str] = (),
) -> None:
    common, measured = parser.add_argument_group("cluster and output"), parser.add_argument_group("Prometheus")
    groups = dict.fromkeys(COMMON, common) | (dict.fromkeys(PROMETHEUS, measured) if "prometheus" in flags else {})
    for name in flags:
        names, options = FIELDS[name].metadata["names"], {**FIELDS[name].metadata["options"], **differs.get(name, {})}
        if name == "output":
            options |= {"choices": outputs, "help": f"{', '.join(outputs)}; default: table"}
        elif name in hidden:
            options["help"] = argparse.SUPPRESS
        # A default would replace what was typed before the verb; those of the fields apply.
        options |= {"default": argparse.SUPPRESS} | ({"dest": name} if names else {})
        groups.get(name, parser).add_argument(*(names or [name]), **options)

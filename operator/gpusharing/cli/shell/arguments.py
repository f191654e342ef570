"""What may be typed: the verbs, their flags, their help. Nothing else is imported here: --help comes at once."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Never

PROG = "kubectl gpusharing"
OUTPUTS: tuple[str, ...] = ("table", "wide", "json", "yaml")
PAGE, CSV = "html", "csv"
"""Of `status` only, and of `cost` and `recommend` only."""
EXITS = """\
exit status: 0 success; plan: nothing would change. 1 an error, printed on standard error, or the answer
is no: doctor found errors, a plan is refused, no layout fits, you did not confirm.
2 plan: something would change; import: nodes are left out; cost, recommend: a part is unknown.
130 ended by Ctrl-C. 141 the reader of the pipe closed it."""


class Parser(argparse.ArgumentParser):
    """Ends with 1 when it does not understand: 2 says that a plan has changes."""

    def error(self, message: str) -> Never:
        """Say what is wrong and where to read on."""
        self.exit(1, f"error: {message}\nSee: {self.prog} --help\n")


class Version(argparse.Action):
    """Prints the version and exits; it is looked up only then, because that takes as long as all of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> Never:
        """See argparse.Action."""
        print(f"{PROG} {own_version() or '(unknown version)'}")
        parser.exit(0)


def own_version() -> str:
    """Return the version of the installed plugin; empty if it is not installed but found through a path."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gpu-sharing-operator")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: how it is typed, and the module that carries it out."""

    name: str
    """As it is typed."""
    module: str
    """The module of `gpusharing` whose `run` carries the verb out; it is imported only when the verb was typed."""
    help: str
    """What it does, in a line."""
    add: Callable[[argparse.ArgumentParser], None]
    """Adds what only this verb takes."""
    offline: bool = False
    """It contacts no cluster, and is carried out by `tell`."""
    asks_with: str = ""
    """The flag that makes an offline verb contact a cluster after all, by `run`."""
    alone_with: str = ""
    """The flag that lets a verb do without a cluster, by `tell`."""
    outputs: tuple[str, ...] = OUTPUTS
    """What -o may be."""
    one_file: bool = False
    """It writes one file, for one cluster: no --contexts."""
    all_namespaces: bool = False
    """It always answers for all namespaces: -n is refused, because it would narrow nothing."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The verb and its flags. Raises SystemExit for --help (0) and for what cannot be understood (1)."""
    return parser().parse_args(arguments)


def parser() -> Parser:
    """All that may be typed."""
    every = (*OUTPUTS, PAGE, CSV)
    commons = {outputs: _common(outputs) for outputs in {every, *(verb.outputs for verb in VERBS)}}
    top = Parser(
        prog=PROG,
        description="Query and steer the GPU sharing operator from a terminal.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[commons[every]],
    )
    top.add_argument(
        "--version", action=Version, nargs=0, help="print the version of this plugin; contacts no cluster"
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb in VERBS:
        sub = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            epilog=EXITS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[commons[verb.outputs]],
        )
        sub.set_defaults(module=verb.module, offline=verb.offline)
        sub.set_defaults(asks_with=verb.asks_with, alone_with=verb.alone_with, outputs=verb.outputs)
        sub.set_defaults(one_file=verb.one_file, all_namespaces=verb.all_namespaces)
        verb.add(sub)
    return top


def _common(outputs: tuple[str, ...]) -> Parser:
    """Flags of every verb. Without defaults, which would override flags typed before the verb."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("cluster and output")
    group.add_argument("--kubeconfig", metavar="FILE", help="instead of KUBECONFIG or ~/.kube/config")
    group.add_argument(
        "--context", metavar="NAME", help="a context of the kubeconfig; default: the current one"
    )
    group.add_argument("--contexts", metavar="A,B", help="several contexts, one after the other")
    group.add_argument(
        "-n",
        "--namespace",
        metavar="NAME",
        help="namespace of the pod that you name; advise: of the pods to read",
    )
    group.add_argument("-o", "--output", choices=outputs, help="default: table")
    group.add_argument("--no-color", action="store_true", help="no colours; so does NO_COLOR")
    return common


def _status(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("policy", nargs="?", default="", metavar="POLICY", help="only this one")
    sub.add_argument(
        "-w", "--watch", action="store_true", help="keep running and redraw on every change; Ctrl-C ends it"
    )
    sub.add_argument(
        "--timeline",
        action="store_true",
        help="also show the last rollout: which node was in which phase when",
    )


def _plan(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("policy", nargs="?", default="", metavar="POLICY", help="only this one")
    sub.add_argument(
        "-f",
        "--filename",
        metavar="FILE",
        action="append",
        default=[],
        help="policies as you would apply them, in YAML or JSON; - is standard input. Can be given several times",
    )


def _why(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "subject", metavar="NODE|POD", help="a node such as gpu-07, or a pod as pod/NAME or NAMESPACE/NAME"
    )


def _steered(what: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("name", metavar=what)
        sub.add_argument("--dry-run", action="store_true", help="show the patch without sending it")
        sub.add_argument(
            "-y",
            "--yes",
            action="store_true",
            help="do not ask for confirmation, even if pods may be evicted",
        )

    return add


def _approve(sub: argparse.ArgumentParser) -> None:
    _steered("POLICY")(sub)
    sub.add_argument(
        "hash",
        nargs="?",
        default="",
        metavar="HASH",
        help="hash of the plan that you read; it must match the current plan",
    )


def _pause(sub: argparse.ArgumentParser) -> None:
    _steered("POLICY")(sub)
    sub.add_argument(
        "--when-paused",
        choices=("Finish", "Hold", "Abort"),
        default="",
        help="what happens to nodes in flight; default: as the policy says",
    )


def _skip(sub: argparse.ArgumentParser) -> None:
    _steered("NODE")(sub)
    sub.add_argument("--undo", action="store_true", help="let changes start there again")


def _nothing(sub: argparse.ArgumentParser) -> None:
    """It takes the common flags only."""


def _bundle(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "file",
        nargs="?",
        default="",
        metavar="FILE",
        help="default: gpusharing-support-TIME.tar.gz in the current folder",
    )


def _advise(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--card", default="", metavar="CARD", help="such as h100-80gb, or the name that NVML reports"
    )
    sub.add_argument(
        "--memory", default="", metavar="SIZE", help="what one workload needs at its peak, such as 15Gi"
    )
    sub.add_argument("--promise", action="store_true", help="latency or availability is promised to somebody")
    sub.add_argument("--strangers", action="store_true", help="people who do not trust each other share")
    sub.add_argument("--bill", action="store_true", help="each workload is billed for what it holds")
    sub.add_argument("--bursts", action="store_true", help="workloads compute only now and then")
    sub.add_argument(
        "--gpu-operator", default="", metavar="VERSION", help="of NVIDIA's, such as v26.3.3: most refuse MPS"
    )
    sub.add_argument("--name", default="pool", help="name of the policy")
    sub.add_argument(
        "--pool", default="pool", help="value of the label gpusharing.dev/pool that the policy selects"
    )


def _layouts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "product",
        nargs="?",
        default="",
        metavar="CARD",
        help="such as h100-80gb, or the name that NVML reports; without it, the cards with MIG are listed",
    )
    sub.add_argument(
        "--fits", default="", metavar="PROFILES", help="only layouts with these, such as 3g.40gb,2x1g.10gb"
    )
    sub.add_argument("--all", action="store_true", help="also show profiles with attributes: +me, +gfx, -me")


def _prometheus(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("where Prometheus is")
    group.add_argument("--prometheus", default="", metavar="URL", help="its address; contacts no cluster")
    group.add_argument("--token-file", default="", metavar="FILE", help="a bearer token for --prometheus")
    group.add_argument(
        "--ca-file", default="", metavar="FILE", help="the authority that signed its certificate, as PEM"
    )
    group.add_argument(
        "--service",
        default="",
        metavar="NAMESPACE/NAME:PORT",
        help="reached through the API server; default: the one Service that looks like a Prometheus",
    )
    group.add_argument(
        "--selector", default="", metavar="MATCHERS", help='only series that match, such as cluster="east"'
    )


def _window(sub: argparse.ArgumentParser, default: str, most: str) -> None:
    sub.add_argument(
        "--window",
        default=default,
        metavar="TIME",
        help=f"length, such as 12h or 4w, at most {most}; default: {default}",
    )
    sub.add_argument(
        "--until", default="", metavar="TIME", help="end of the window, a day or a time; default: now"
    )


def _cost(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--by",
        default="namespace",
        metavar="namespace|policy|LABEL",
        help="LABEL is a label of namespaces, such as team",
    )
    _window(sub, "30d", "366d")
    sub.add_argument(
        "--currency",
        default="USD",
        metavar="CODE",
        help="currency of OpenCost's prices, which name none; default: USD",
    )
    _prometheus(sub)


def _recommend(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-l",
        "--nodes",
        default="",
        metavar="LABELS",
        help="nodes with these labels, as in kubectl: gpusharing.dev/pool=a; default: all that Prometheus sees",
    )
    sub.add_argument("--policy", default="", metavar="POLICY", help="the nodes of this policy")
    sub.add_argument(
        "--card",
        default="",
        metavar="CARD",
        help="only GPUs of this model, such as h100-80gb, or the name that NVML reports",
    )
    sub.add_argument(
        "--goal",
        choices=("cost", "performance"),
        default="cost",
        help="cost: the fewest GPUs that suffice; performance: as much room as the pool has; default: cost",
    )
    sub.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show what each answer is based on: hourly peaks, samples, reason",
    )
    sub.add_argument(
        "--write",
        default="",
        metavar="FILE",
        help="write the policy, which waits for an approval; it is never applied automatically",
    )
    _window(sub, "14d", "30d")
    _prometheus(sub)


VERBS: tuple[Verb, ...] = (
    Verb(
        "status",
        "cli.pools.status",
        "What every pool runs, what waits, why, since when and until when.",
        _status,
        outputs=(*OUTPUTS, PAGE),
    ),
    Verb(
        "plan",
        "cli.changing.plan",
        "What an edit would do, or what the operator is about to do; changes nothing.",
        _plan,
    ),
    Verb(
        "why",
        "cli.diagnosis.why",
        "Why a node is not done, or why a pod waits: which sources disagree, what blocks, what to do.",
        _why,
    ),
    Verb(
        "approve",
        "cli.changing.steer",
        "Approve the plan of a policy, so that the operator carries it out.",
        _approve,
    ),
    Verb("pause", "cli.changing.steer", "Pause a policy: no further node starts.", _pause),
    Verb(
        "resume",
        "cli.changing.steer",
        "End a pause, or continue a rollout after failures.",
        _steered("POLICY"),
    ),
    Verb("retry", "cli.changing.steer", "Try a failed or deferred node again.", _steered("NODE")),
    Verb("abort", "cli.changing.steer", "Give up the change that is in flight on a node.", _steered("NODE")),
    Verb("skip", "cli.changing.steer", "Keep changes from starting on a node.", _skip),
    Verb(
        "layouts",
        "cli.setup.layouts",
        "Every MIG layout of a card, drawn as slices; contacts no cluster.",
        _layouts,
        offline=True,
    ),
    Verb(
        "doctor",
        "cli.setup.doctor",
        "What silently overrides the operator or breaks its proofs, and how to fix it.",
        _nothing,
    ),
    Verb(
        "support-bundle",
        "cli.diagnosis.bundle",
        "A tar archive for troubleshooting, without secrets.",
        _bundle,
        one_file=True,
    ),
    Verb(
        "import",
        "cli.setup.importing",
        "Policies that match a cluster configured by hand and change nothing.",
        _nothing,
        one_file=True,
    ),
    Verb(
        "advise",
        "cli.setup.advise",
        "Which mode and layout, why and at what price: from your answers, or from the pods of a namespace (-n).",
        _advise,
        offline=True,
        asks_with="namespace",
    ),
    Verb(
        "cost",
        "usage.cost",
        "What the GPUs cost by namespace, policy or label, and what nobody used; from Prometheus alone.",
        _cost,
        alone_with="prometheus",
        outputs=(*OUTPUTS, CSV),
        all_namespaces=True,
    ),
    Verb(
        "recommend",
        "usage.recommend",
        "Which layout a pool should have, given what its workloads used; from Prometheus alone.",
        _recommend,
        alone_with="prometheus",
        outputs=(*OUTPUTS, CSV),
        all_namespaces=True,
    ),
)

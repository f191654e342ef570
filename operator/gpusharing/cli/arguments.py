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
exit status: 0 done; plan: nothing would change. 1 an error, told on standard error, or the answer
is no: doctor found errors, a plan is refused, no layout fits, you did not confirm.
2 plan: something would change; import: nodes are left out; cost, recommend: a part is not known.
130 ended by Ctrl-C. 141 the reader of a pipe went away."""


class Parser(argparse.ArgumentParser):
    """Ends with 1 when it does not understand: 2 says that a plan has changes."""

    def error(self, message: str) -> Never:
        """Say what is wrong and where to read on."""
        self.exit(1, f"error: {message}\nSee: {self.prog} --help\n")


class Version(argparse.Action):
    """Tells the version and ends; it is looked up only then, because that takes as long as all of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> Never:
        """See argparse.Action."""
        from gpusharing.cli.versions import own_version

        print(f"{PROG} {own_version() or '(of a version that is not known)'}")
        parser.exit(0)


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb; it is carried out by `run` of the module of that name."""

    name: str
    help: str
    add: Callable[[argparse.ArgumentParser], None]
    """Adds what only this verb takes."""
    module: str = ""
    """Where `run` is, unless the module has the verb's name."""
    offline: bool = False
    """It asks no cluster, and is carried out by `tell`."""
    asks_with: str = ""
    """The flag with which an offline verb asks a cluster all the same, by `run`."""
    alone_with: str = ""
    """The flag with which a verb that asks a cluster does without, by `tell`."""
    outputs: tuple[str, ...] = OUTPUTS
    """What -o may be."""
    one_file: bool = False
    """It makes one file, which is of one cluster: no --contexts."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The verb and its flags. Raises SystemExit for --help (0) and for what cannot be understood (1)."""
    return parser().parse_args(arguments)


def parser() -> Parser:
    """All that may be typed."""
    every = (*OUTPUTS, PAGE, CSV)
    commons = {outputs: _common(outputs) for outputs in {every, *(verb.outputs for verb in VERBS)}}
    top = Parser(
        prog=PROG,
        description="Ask and steer the GPU sharing operator from a terminal.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[commons[every]],
    )
    top.add_argument("--version", action=Version, nargs=0, help="the version of this plugin; asks no cluster")
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
        sub.set_defaults(module=verb.module or verb.name, offline=verb.offline)
        sub.set_defaults(asks_with=verb.asks_with, alone_with=verb.alone_with, outputs=verb.outputs)
        sub.set_defaults(one_file=verb.one_file)
        verb.add(sub)
    return top


def _common(outputs: tuple[str, ...]) -> Parser:
    """Flags of every verb. Without defaults, or those of the verb would win over what stands before it."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("cluster and output")
    group.add_argument("--kubeconfig", metavar="FILE", help="instead of KUBECONFIG or ~/.kube/config")
    group.add_argument("--context", metavar="NAME", help="a context of the kubeconfig; else the current one")
    group.add_argument("--contexts", metavar="A,B", help="several contexts, one after the other")
    group.add_argument(
        "-n", "--namespace", metavar="NAME", help="where the pod that you name is; advise: whose pods"
    )
    group.add_argument("-o", "--output", choices=outputs, help="table unless told otherwise")
    group.add_argument("--no-color", action="store_true", help="no colours; so does NO_COLOR")
    return common


def _status(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("policy", nargs="?", default="", metavar="POLICY", help="only this one")
    sub.add_argument(
        "-w", "--watch", action="store_true", help="keep running and redraw on every change; Ctrl-C ends it"
    )
    sub.add_argument(
        "--timeline", action="store_true", help="with the last rollout: which node was in which phase when"
    )


def _plan(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("policy", nargs="?", default="", metavar="POLICY", help="only this one")
    sub.add_argument(
        "-f",
        "--filename",
        metavar="FILE",
        action="append",
        default=[],
        help="policies as they would be, in YAML or JSON; - is standard input. May be given several times",
    )


def _why(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("subject", metavar="NODE|POD", help="gpu-07, or for a pod pod/NAME or NAMESPACE/NAME")


def _steered(what: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("name", metavar=what)
        sub.add_argument("--dry-run", action="store_true", help="show the patch, and do not send it")
        sub.add_argument(
            "-y", "--yes", action="store_true", help="do not ask, also where pods may be evicted"
        )

    return add


def _approve(sub: argparse.ArgumentParser) -> None:
    _steered("POLICY")(sub)
    sub.add_argument(
        "hash",
        nargs="?",
        default="",
        metavar="HASH",
        help="of the plan that you read; it must be that of now",
    )


def _pause(sub: argparse.ArgumentParser) -> None:
    _steered("POLICY")(sub)
    sub.add_argument(
        "--when-paused",
        choices=("Finish", "Hold", "Abort"),
        default="",
        help="what becomes of nodes in flight; else as the policy says",
    )


def _skip(sub: argparse.ArgumentParser) -> None:
    _steered("NODE")(sub)
    sub.add_argument("--undo", action="store_true", help="begin changes there again")


def _nothing(sub: argparse.ArgumentParser) -> None:
    """It takes the common flags only."""


def _bundle(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "file", nargs="?", default="", metavar="FILE", help="instead of gpusharing-support-TIME.tar.gz here"
    )


def _advise(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--card", default="", metavar="PRODUCT", help="h100-80gb, or as NVML has it")
    sub.add_argument(
        "--memory", default="", metavar="SIZE", help="what one workload needs at its peak, such as 15Gi"
    )
    sub.add_argument("--promise", action="store_true", help="latency or availability is promised to somebody")
    sub.add_argument("--strangers", action="store_true", help="people share who do not trust each other")
    sub.add_argument("--bill", action="store_true", help="each workload is billed by what it holds")
    sub.add_argument("--bursts", action="store_true", help="workloads compute now and then only")
    sub.add_argument("--name", default="pool", help="of the policy")
    sub.add_argument("--pool", default="pool", help="value of the label gpusharing.dev/pool that it selects")


def _layouts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "product", nargs="?", default="", metavar="PRODUCT", help="h100-80gb, or as NVML has it; none: all"
    )
    sub.add_argument(
        "--fits", default="", metavar="PROFILES", help="only those with these: 3g.40gb,2x1g.10gb"
    )
    sub.add_argument("--all", action="store_true", help="profiles with attributes too: +me, +gfx, -me")


def _prometheus(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("where Prometheus is")
    group.add_argument("--prometheus", default="", metavar="URL", help="its address; asks no cluster")
    group.add_argument("--token-file", default="", metavar="FILE", help="a bearer token for --prometheus")
    group.add_argument("--ca-file", default="", metavar="FILE", help="who signs its certificate, as PEM")
    group.add_argument(
        "--service",
        default="",
        metavar="NAMESPACE/NAME:PORT",
        help="through the API server; else the one Service there that looks like a Prometheus",
    )
    group.add_argument(
        "--selector", default="", metavar="MATCHERS", help='only series with these, such as cluster="east"'
    )


def _window(sub: argparse.ArgumentParser, default: str, most: str) -> None:
    sub.add_argument(
        "--window",
        default=default,
        metavar="TIME",
        help=f"how long: 12h, 4w, at most {most}; {default} unless told",
    )
    sub.add_argument("--until", default="", metavar="TIME", help="a day or a time; now unless told otherwise")


def _cost(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--by", default="namespace", metavar="namespace|policy|LABEL", help="LABEL is one of namespaces: team"
    )
    _window(sub, "30d", "366d")
    sub.add_argument(
        "--currency", default="USD", metavar="CODE", help="of OpenCost's prices, which name none; else USD"
    )
    _prometheus(sub)


def _recommend(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-l",
        "--pool",
        default="",
        metavar="LABELS",
        help="nodes with these, as kubectl has it: gpusharing.dev/pool=a; else all that Prometheus sees",
    )
    sub.add_argument("--policy", default="", metavar="POLICY", help="the nodes of this one")
    sub.add_argument("--card", default="", metavar="PRODUCT", help="only GPUs of this model")
    sub.add_argument(
        "--goal",
        choices=("cost", "performance"),
        default="cost",
        help="as few GPUs as hold the need, or as much room as the pool has; cost unless told",
    )
    sub.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="what each answer rests on: peaks by the hour, samples, reason",
    )
    sub.add_argument(
        "--write",
        default="",
        metavar="FILE",
        help="the policy, which waits for an approval; never applied by itself",
    )
    _window(sub, "14d", "30d")
    _prometheus(sub)


VERBS: tuple[Verb, ...] = (
    Verb(
        "status",
        "What every pool runs, what waits, why, since when and until when.",
        _status,
        outputs=(*OUTPUTS, PAGE),
    ),
    Verb("plan", "What an edit would do, or what is about to be done; nothing is changed.", _plan),
    Verb("why", "Why a node is not done, or why a pod waits: who disagrees, what blocks, what to do.", _why),
    Verb("approve", "Let the plan of a policy be carried out.", _approve),
    Verb("pause", "Start no further node of a policy.", _pause),
    Verb("resume", "End a pause, or let a rollout go on after failures.", _steered("POLICY")),
    Verb("retry", "Try a failed or deferred node again.", _steered("NODE")),
    Verb("abort", "Give up the change that is in flight on a node.", _steered("NODE")),
    Verb("skip", "Begin no change on a node.", _skip),
    Verb("layouts", "Every MIG layout of a card, drawn as slices; asks no cluster.", _layouts, offline=True),
    Verb("doctor", "What silently overrides the operator or breaks its proofs, and what mends it.", _nothing),
    Verb(
        "support-bundle",
        "A tar of what helps to find a fault, without secrets.",
        _bundle,
        "bundle",
        one_file=True,
    ),
    Verb(
        "import",
        "Policies for a cluster configured by hand, which change nothing.",
        _nothing,
        "importing",
        one_file=True,
    ),
    Verb(
        "advise",
        "Which mode and layout, why, at what price: by your answers, or by the pods of a namespace (-n).",
        _advise,
        offline=True,
        asks_with="namespace",
    ),
    Verb(
        "cost",
        "What the GPUs cost whom, and what nobody used; from Prometheus alone.",
        _cost,
        alone_with="prometheus",
        outputs=(*OUTPUTS, CSV),
    ),
    Verb(
        "recommend",
        "Which layout a pool should have, by what its workloads used; from Prometheus alone.",
        _recommend,
        alone_with="prometheus",
        outputs=(*OUTPUTS, CSV),
    ),
)

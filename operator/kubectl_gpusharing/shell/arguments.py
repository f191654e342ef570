"""Which verbs are there, with which flags and which help?

No other module of ours is imported at the top, so that --help is fast.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from textwrap import dedent
from typing import Any, Never

PROG = "kubectl gpusharing"
JSONPATH, NAMES, PAGE, CSV = "jsonpath", "name", "html", "csv"
"""Formats with a rule of their own: jsonpath has a template, and the others are for some verbs only."""
OUTPUTS: tuple[str, ...] = ("table", "wide", "json", "yaml", JSONPATH)
HELP, OPTIONS = "help", "options"
HELPERS = {HELP: "Show the flags of a verb.", OPTIONS: "Show the flags that every verb has."}
"""The words that are typed like verbs and only print help, with their own help."""
COMMON = f"{PROG} {OPTIONS} shows the flags that every verb has, such as --context and --namespace.\n\n"
EXITS = """\
exit status: 0 success; plan: nothing to do. 1 an error, printed on standard error, or the answer is no:
doctor found errors, lint refuses a file, no layout fits, you did not confirm.
2 plan: something will change; import: nodes are left out; free, cost, advise, recommend: a part is unknown.
3 plan: a policy cannot be carried out. 4 plan: it is unknown what would happen, for example because no agent has
reported. 5 plan: something listed in --fail-on would happen.
130 ended by Ctrl-C. 141 the reader closed the pipe."""


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
        choices = action.choices
        word, template, _ = str(value).partition("=")
        if choices is not None and (word not in choices or bool(template) != (word == JSONPATH)):
            what = f"{action.option_strings[-1]} cannot be" if action.option_strings else "there is no verb"
            self.error(f"{what} {value}{_meant(word, choices) or f'; use one of: {_listed(choices)}'}")


def _meant(word: str, known: Iterable[str]) -> str:
    from gpusharing.api.nearest import did_you_mean

    clause = "" if word.isdigit() else did_you_mean(word, known)
    return clause.replace(f" {JSONPATH}?", f" {JSONPATH}=TEMPLATE?")


def _listed(outputs: Iterable[str]) -> str:
    return ", ".join(f"{output}=TEMPLATE" if output == JSONPATH else output for output in outputs)


class Version(argparse.Action):
    """Prints the version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> Never:
        from gpusharing.kube.ownversion import own_version

        print(f"{PROG} {own_version() or '(unknown version)'}")
        parser.exit(0)


Flag = tuple[tuple[str, ...], dict[str, Any]]
"""The arguments of argparse's `add_argument`."""
_ROW = re.compile(
    r"(-[\w-]+(?:, -[\w-]+)*|\w+)([*+?]?)(?: ([^\s={]*?)(?:{(\S+)})?(\.\.\.)?(?:=(\S+))?)?(?:\s{2,}(.+))?", re.DOTALL
)
"""Matches a row of a text that `_flags` reads."""


def _flags(rows: str) -> tuple[Flag, ...]:
    flags: list[Flag] = []
    for row in re.split(r"\n(?=\S)", dedent(rows).strip()):
        match = _ROW.fullmatch(row)
        if match is None:
            raise ValueError(f"{row} describes no flag")
        names, count, value, choices, more, default, text = match.groups()
        options: dict[str, Any] = {"help": text and " ".join(text.split())}
        if not value and not choices:
            options["action"] = "store_true"
        else:
            options |= {"metavar": value or None, "choices": choices and choices.split(",")}
            if more:
                options |= {"action": "append", "default": []}
            elif names.startswith("-") or count == "?":
                options["default"] = default or ""
            if count:
                options["nargs"] = count
        flags.append((tuple(names.split(", ")), options))
    return tuple(flags)


CARD = "for example h100-80gb, or the name that NVML reports"
PROMETHEUS = _flags("""
    --prometheus URL                the address of Prometheus; contacts no cluster
    --token-file FILE               a bearer token for --prometheus
    --ca-file FILE                  PEM file of the CA that signed the certificate of --prometheus
    --service NAMESPACE/NAME:PORT   the Service to reach through the API server; default: the one that looks like a
                                    Prometheus
    --selector MATCHERS             use only the series that match, for example cluster="east"
    """)


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: how it is typed, and the module that carries it out."""

    name: str
    module: str
    """The module below `kubectl_gpusharing`, imported only when the verb was typed."""
    help: str
    flags: tuple[Flag, ...] = ()
    offline: bool = False
    """Whether the verb contacts no cluster and is carried out by `run_offline`."""
    asks_with: tuple[str, ...] = ()
    """Flags with which an offline verb contacts a cluster after all and is carried out by `run`."""
    measures: bool = False
    """Whether the verb always has --from-prometheus."""
    outputs: tuple[str, ...] = OUTPUTS
    asks_prometheus: bool = False
    """Whether the verb has the flags of PROMETHEUS; with --prometheus, `run_offline` carries it out."""
    each: str = ""
    """The argument for each of whose values the verb is run; empty if it runs once for all values."""
    alone: bool = False
    """Whether the verb is for one cluster only."""
    fleet_seconds: float = 0.0
    """Seconds within which each of several clusters must answer; 0 if the verb does not show several in one table."""


def _steering(name: str, what: str, text: str, *more: Flag, alone: bool = False) -> Verb:
    every = any("--all" in names for names, _ in more)
    objects = f"name {what}" if alone else f"name* {what}  or --all" if every else f"name+ {what}  one or more"
    confirmation = _flags("""
        --dry-run   show the patch without sending it
        -y, --yes   do not ask for confirmation, even if pods may be evicted
        """)
    flags = (*_flags(objects), *more, *confirmation)
    return Verb(name, "changing.steer", text, flags, outputs=(*OUTPUTS, NAMES), each="" if alone else "name")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the verb and its flags. Raises SystemExit after printing help or an error."""
    typed = parser().parse_args(arguments)
    if typed.verb == HELP:
        return parse([*filter(None, [typed.topic]), "--help"])
    if typed.verb == OPTIONS:
        print(_common((*OUTPUTS, NAMES, PAGE, CSV)).format_help().partition("\n\n")[2], end="")
        raise SystemExit(0)
    return typed


def parser() -> Parser:
    commons = {outputs: _common(outputs, hidden=True) for outputs in {verb.outputs for verb in VERBS}}
    top = Parser(
        prog=PROG,
        description="Query and steer the GPU sharing operator from a terminal.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common((*OUTPUTS, NAMES, PAGE, CSV))],
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version of this plugin; contacts no cluster")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, text in HELPERS.items():
        helper = verbs.add_parser(name, help=text, description=text)
        helper.add_argument("topic", nargs="?", metavar="VERB", choices=[verb.name for verb in VERBS])
    for verb in VERBS:
        sub = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            epilog=COMMON + EXITS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[commons[verb.outputs]],
        )
        sub.set_defaults(module=verb.module, row=verb)
        for names, options in verb.flags:
            sub.add_argument(*names, **options)
        if verb.asks_prometheus:
            group = sub.add_argument_group("where Prometheus is")
            for names, options in PROMETHEUS:
                group.add_argument(*names, **options)
        if verb.measures:
            sub.set_defaults(from_prometheus=True)
    return top


def _common(outputs: tuple[str, ...], *, hidden: bool = False) -> Parser:
    common = Parser(add_help=False)
    group = common.add_argument_group("cluster and output")
    for names, options in _flags(f"""
        --kubeconfig FILE      instead of KUBECONFIG or ~/.kube/config
        --context NAME         a context in the kubeconfig; default: the current context
        --contexts A,B         several contexts, shown in one table; works with status, doctor and cost
        --all-contexts         all contexts in the kubeconfig, shown in one table; works with status, doctor and cost
        -n, --namespace NAME   namespace of the given pod; for free and advise, the namespace whose pods to include
        -o, --output FORMAT{{{",".join(outputs)}}}  {_listed(outputs)}; default: table
        --no-headers           no headings of tables
        --no-color             no colors; NO_COLOR does the same
        """):
        group.add_argument(*names, **options | {"default": argparse.SUPPRESS})
    for action in common._actions if hidden else ():
        action.help = action.help if action.dest == "output" else argparse.SUPPRESS
    return common


MEASURED = _flags(f"""
    --card CARD          {CARD}; where needs are measured, only GPUs of this model
    --price PRICE        what a GPU costs an hour, for example 3.20 or 3.20EUR; default: as in Prometheus
    -l, --nodes LABELS   only nodes with these labels, for example gpusharing.dev/pool=a; default: all nodes in
                         Prometheus
    --policy POLICY      the nodes of this policy
    --goal {{cost,performance}}  cost: the fewest GPUs that suffice; performance: as much headroom as the pool allows;
                         default: cost
    -v, --verbose        show what each answer is based on: hourly peaks, samples, reason
    --write FILE         write the policy to FILE; it requires approval and is never applied automatically
    --window TIME=14d    length, such as 12h or 4w, at most 30d; default: 14d
    --until TIME         end of the window, a day or a time; default: now
    """)
PER_NODE = ",".join(str(gpus) for gpus in range(1, 17))
"""How many GPUs a node may have; the largest index that a policy may name is 15."""
ADVISE = Verb(
    "advise",
    "usage.advise",
    "Suggest a mode and a layout, with reasons and savings: from your answers, from the pods in a namespace (-n), or"
    " from what workloads used (--from-prometheus).",
    _flags(f"""
        --need NxSIZE...         N workloads that need this memory at their peak, for example 4x20Gi. Can be repeated
        --memory SIZE            what each workload needs at its peak, for example 15Gi
        --promise                users were promised a certain latency or availability
        --strangers              people who do not trust each other share the GPUs
        --bill                   each workload is billed for its share of a GPU
        --bursts                 the workloads use the GPU only now and then
        --gpus-per-node N{{{PER_NODE}}}  default: 1, for a layout that suits nodes of any size
        --gpu-operator VERSION   version of NVIDIA's GPU Operator, for example v26.3.3
        --name NAME              name of the policy; default: pool
        --pool POOL              value of the gpusharing.dev/pool label that the policy selects; default: pool
        --from-prometheus        measure the needs of a pool's workloads; for the flags below, like recommend
        """)
    + MEASURED,
    offline=True,
    asks_with=("namespace", "from_prometheus"),
    asks_prometheus=True,
    outputs=(*OUTPUTS, CSV),
)
VERBS: tuple[Verb, ...] = (
    Verb(
        "status",
        "pools.status",
        "Show the state of every pool: its layout, what it is waiting for, why, since when and until when.",
        _flags("""
            policy* POLICY          only these
            -l, --selector LABELS   only policies with these labels, for example team=a
            -w, --watch             keep running and redraw on every change; Ctrl-C ends it
            --timeline              also show the last rollout: which node was in which phase when
            --events                also show the Events of the last hour about each policy
            """),
        outputs=(*OUTPUTS, NAMES, PAGE),
        fleet_seconds=60.0,
    ),
    Verb(
        "ui",
        "usage.ui",
        "Serve a live page about the pools, for a browser on this machine; read only.",
        _flags("""
            --port PORT=0   the port of 127.0.0.1; default: any free one
            --open          also open the page in your browser
            """),
        alone=True,
    ),
    Verb(
        "plan",
        "changing.plan",
        "Show what an edit would do, or what the operator is about to do; changes nothing.",
        _flags("""
            policy* POLICY            only these
            -f, --filename FILE...    a file or directory of policies in YAML or JSON; - reads standard input, such as
                                      the output of kubectl kustomize. Can be repeated
            --fail-on WORDS           for CI: exit with status 5 if the plan has any of evictions,shortfall, and with 0
                                      for other changes
            """),
        outputs=(*OUTPUTS, NAMES),
    ),
    Verb(
        "why",
        "diagnosis.why",
        "Explain why a node is not done or a pod is waiting: which sources disagree, what blocks it, what to do.",
        _flags("""
            subject+ NODE|KIND/NAME   gpu-07, no/gpu-07, pod/NAME, NAMESPACE/NAME, deploy/NAME, sts/NAME, job/NAME or
                                      gsp/NAME
            """),
        outputs=(*OUTPUTS, NAMES),
        each="subject",
    ),
    Verb(
        "free",
        "usage.free",
        "Show who holds the GPUs and what is free now, from Nodes and Pods alone.",
        _flags("""
            --by {resource,node,policy,namespace,pod}
                                              what each row is about; default: resource
            -l, --nodes, --selector LABELS    only nodes with these labels, for example gpusharing.dev/pool=a
            --usage                           show the memory and the SM time that each pod uses: from the agents if the
                                              chart has agent.secureMetrics=false, otherwise from Prometheus
            --service NAMESPACE/NAME:PORT     the Prometheus to use for --usage if the agents cannot be queried
            """),
        outputs=(*OUTPUTS, NAMES, CSV),
    ),
    _steering(
        "approve",
        "POLICY",
        "Approve a policy's plan, so that the operator carries it out.",
        *_flags("hash? HASH  hash of the plan that you read; it must match the current plan"),
        alone=True,
    ),
    _steering(
        "pause",
        "POLICY",
        "Pause policies, so that no further node starts to change.",
        *_flags("""
            --all                                stop the fleet: pause every policy
            --when-paused {Finish,Hold,Abort}    what happens to changes in flight; default: as set in the policy
            """),
    ),
    _steering(
        "resume",
        "POLICY",
        "End a pause, or continue a rollout after failures.",
        *_flags("--all  end the pause of every policy; rollouts that failures halted stay halted"),
    ),
    _steering("retry", "NODE", "Try failed or deferred nodes again."),
    _steering("abort", "NODE", "Abort the changes that are in progress on nodes."),
    _steering("skip", "NODE", "Keep changes from starting on nodes.", *_flags("--undo  let changes start there again")),
    Verb(
        "layouts",
        "setup.layouts",
        "Draw every MIG layout of a card as slices; contacts no cluster.",
        _flags(f"""
            product? CARD     {CARD}; without it, the cards with MIG are listed
            --fits PROFILES   only layouts that contain these profiles, for example 3g.40gb,2x1g.10gb
            --all             also show profiles with attributes: +me, +gfx, -me
            """),
        offline=True,
    ),
    Verb(
        "lint",
        "setup.lint",
        "Check policies, ClusterPolicies, and files of mig-parted and the device plugin; contacts no cluster.",
        _flags("file+ FILE  a file, a directory, or - for standard input"),
        offline=True,
    ),
    Verb(
        "doctor",
        "setup.doctor",
        "Find what silently overrides the operator or makes its checks fail, and show how to fix it.",
        fleet_seconds=60.0,
    ),
    Verb(
        "support-bundle",
        "diagnosis.bundle",
        "Write a tar archive for troubleshooting, without secrets.",
        _flags("file? FILE  default: gpusharing-support-TIME.tar.gz in the current directory"),
        alone=True,
    ),
    Verb(
        "import",
        "setup.importing",
        "Propose policies for a cluster that was configured by hand; applying them changes nothing.",
        alone=True,
    ),
    ADVISE,
    Verb(
        "cost",
        "usage.cost",
        "Show what the GPUs cost per namespace, policy, pod or label, and how much was used; reads only Prometheus.",
        _flags("""
            --by namespace|policy|pod|LABEL=namespace   LABEL is a namespace label, for example team
            --window TIME=30d                           length, such as 12h or 4w, at most 366d; default: 30d
            --until TIME                                end of the window, a day or a time; default: now
            --currency CODE=USD                         currency of OpenCost's prices, which OpenCost does not report;
                                                        default: USD
            """),
        asks_prometheus=True,
        outputs=(*OUTPUTS, CSV),
        fleet_seconds=300.0,
    ),
    replace(
        ADVISE,
        name="recommend",
        help="Recommend a layout for a pool from the measured use of its workloads: advise --from-prometheus.",
        flags=MEASURED,
        offline=False,
        asks_with=(),
        measures=True,
    ),
)

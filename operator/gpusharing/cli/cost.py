"""`cost [--by namespace|policy|LABEL] [--window 30d]`: what the GPUs cost whom; from Prometheus alone.

At an address (`--prometheus`) no cluster is asked. Else a Service is, through the API server and with the right `get
services/proxy`: the one that is named (`--service`), or the only one that looks like a Prometheus.
"""

import asyncio
import re
from argparse import Namespace

from gpusharing.api.times import from_rfc3339
from gpusharing.cli.costtext import Answer, as_csv, as_data, describe
from gpusharing.cli.metered import read_metered
from gpusharing.cli.meterqueries import MATCHER, POLICY, Wish
from gpusharing.cli.prometheus import Place, Prometheus, place_of, prometheus_at
from gpusharing.cli.promservice import find_place
from gpusharing.cli.session import Session
from gpusharing.cli.terminal import Terminal
from gpusharing.cli.troubles import CHANGES, DONE, Trouble
from gpusharing.planning.gpus.bills import make_bill

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
LEAST, MOST = 600, 366 * 86400
"""Seconds of a window: a counter needs some scrapes to grow in, and a year is a bill."""


def tell(typed: Namespace, terminal: Terminal) -> int:
    """See Offline."""
    if typed.service:
        raise Trouble("give --prometheus or --service, not both")
    place = place_of(typed.prometheus, typed.token_file, typed.ca_file)
    return asyncio.run(_tell(place, typed, terminal))


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    if typed.token_file or typed.ca_file:
        raise Trouble(
            "--token-file and --ca-file are for --prometheus URL; a Service is asked with your kubeconfig"
        )
    wish_of(typed, 0.0)  # a mistake is told before anything is asked
    return await _tell(await find_place(session, typed.service), typed, terminal)


async def _tell(place: Place, typed: Namespace, terminal: Terminal) -> int:
    wish_of(typed, 0.0)
    async with prometheus_at(place) as prometheus:
        answer = await find_answer(prometheus, typed)
    if terminal.output == "csv":
        terminal.write(as_csv(answer))
    elif terminal.structured:
        terminal.data(as_data(answer))
    else:
        terminal.show(describe(answer, terminal.paper))
    return CHANGES if answer.missing else DONE


async def find_answer(prometheus: Prometheus, typed: Namespace) -> Answer:
    """The bill. Raises Trouble."""
    wish = wish_of(typed, await prometheus.now())
    metered = await read_metered(prometheus, wish)
    bill = make_bill(metered.cells, by_policy=wish.by == POLICY)
    remarks = [*filter(None, (prometheus.place.remark,)), *metered.remarks]
    if sum(1 for total in bill.totals if total.currency) > 1:
        currencies = ", ".join(total.currency for total in bill.totals if total.currency)
        remarks.append(
            f"prices are in several currencies ({currencies}): nothing is converted, and each has its total"
        )
    return Answer(prometheus.place.where, wish, bill, tuple(metered.missing), tuple(remarks))


def wish_of(typed: Namespace, now: float) -> Wish:
    """What was typed, until `now` unless told otherwise. Raises Trouble."""
    end = now
    if typed.until:
        until = from_rfc3339(f"{typed.until}T00:00:00Z" if len(typed.until) == 10 else typed.until)
        if until is None:
            raise Trouble(
                f"--until {typed.until}: write a day or a time, such as 2026-11-01 or 2026-11-01T06:00:00Z"
            )
        end = until.timestamp()
        if now and end > now + 60:
            raise Trouble(f"--until {typed.until} is still to come")
    if not re.fullmatch(r"[A-Z]{3}", typed.currency):
        raise Trouble(f"--currency {typed.currency}: write three capital letters, such as USD")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,250}[A-Za-z0-9])?", typed.by):
        raise Trouble(f"--by {typed.by}: write namespace, policy, or a label of namespaces, such as team")
    return Wish(end - seconds_of(typed.window), end, typed.by, selector_of(typed.selector), typed.currency)


def seconds_of(window: str) -> int:
    """A length of time. Raises Trouble."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", window)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not LEAST <= seconds <= MOST:
        raise Trouble(f"--window {window}: write 10m to 366d, such as 12h, 30d or 4w")
    return seconds


def selector_of(selector: str) -> str:
    """Matchers of PromQL, as they were typed. Raises Trouble for what is none."""
    rest = selector.strip().removeprefix("{").removesuffix("}").strip()
    at = 0
    while rest and (found := MATCHER.match(rest, at)):
        at = found.end()
        if at == len(rest):
            return rest
        if rest[at] != ",":
            break
        at += 1
    if rest:
        raise Trouble(f'--selector {selector}: write matchers such as cluster="east",prometheus_replica="a"')
    return ""

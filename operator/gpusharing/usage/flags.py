"""Read the flags `--prometheus` and `--service`, which name the Prometheus to query, and `--price`.

With `--prometheus`, no cluster is contacted. Otherwise a Service is queried through the API server, which requires the
right `get services/proxy`: the Service that `--service` names, or else the only one that looks like a Prometheus.
"""

import re
from argparse import Namespace
from fractions import Fraction

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.client import Endpoint, place_of
from gpusharing.usage.prometheus.services import find_place
from gpusharing.usage.reckon.bills import Price


async def find_endpoint(session: Session | None, typed: Namespace) -> Endpoint:
    """Return how to reach the Prometheus at the address in `--prometheus` or, with a `session`, a Prometheus in its
    cluster: the Service that `--service` names or, without that flag, the only Service that looks like one. Raises
    Trouble for --service without a `session`, for --token-file or --ca-file with one, if a flag cannot be used, if a
    file cannot be read (`place_of`), if the login fails, or if not exactly one such Service is found (`find_place`)."""
    if session is None:
        if typed.service:
            raise Trouble("pass either --prometheus or --service, not both")
        return place_of(typed.prometheus, typed.token_file, typed.ca_file)
    if typed.token_file or typed.ca_file:
        raise Trouble(
            "--token-file and --ca-file only work with --prometheus URL; a Service is reached with your kubeconfig"
        )
    return await find_place(session, typed.service)


def price_of(text: str) -> Price | None:
    """Parse the value of `--price`, such as `3.20` or `3.20 EUR`, and return the price of a GPU for an hour, in USD if
    no currency is named. A price has up to six digits before the point and up to six after it, and a currency has three
    capital letters, after one space or none. None for an empty string. Raises Trouble if it cannot be parsed."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([A-Z]{3})?", text)
    if text and match is None:
        raise Trouble(f"--price {text}: pass what a GPU costs an hour, for example 3.20 or 3.20EUR")
    return Price(Fraction(match[1]), match[2] or "USD", "--price") if match else None

"""The network between this machine and its nodes: one bridge with a subnet that nobody uses, gone at the end.

What a node has of its own (interfaces, routes, iptables) lives in the node's network namespace and ends with it.
"""

import contextlib
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hack.cluster.process import pid_exists

PREFIX = "gso"
"""Our bridges are called gso<pid of their owner>."""
SUBNETS = tuple(ipaddress.IPv4Network(f"10.213.{third}.0/24") for third in range(256))


class NetworkError(Exception):
    """The bridge or an interface cannot be made. The text says what `ip` said."""


@dataclass(frozen=True)
class Bridge:
    """The bridge; this machine has the first address of its subnet."""

    name: str
    subnet: ipaddress.IPv4Network

    @property
    def address(self) -> str:
        """This machine, as the nodes see it."""
        return str(self.subnet[1])

    def node_address(self, number: int) -> str:
        """Of the node with this number, from 0."""
        return str(self.subnet[10 + number])

    def attach(self, pid: int, number: int) -> None:
        """Give the network namespace of this process an interface eth0 on the bridge, and a default route."""
        port = f"{self.name}n{number}"
        inside = ("nsenter", "--target", str(pid), "--net")
        address = f"{self.node_address(number)}/{self.subnet.prefixlen}"
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _run("ip", "link", "set", port, "master", self.name, "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run(*inside, "ip", "address", "add", address, "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        _run(*inside, "ip", "route", "add", "default", "via", self.address)


@contextlib.contextmanager
def bridge() -> Iterator[Bridge]:
    """A bridge of ours for as long as the context lasts.

    Raises:
        NetworkError: this machine refuses it, or has no free subnet.
    """
    sweep()
    made = Bridge(f"{PREFIX}{os.getpid()}", _free_subnet())
    _run("ip", "link", "add", made.name, "type", "bridge")
    try:
        _run("ip", "address", "add", f"{made.address}/{made.subnet.prefixlen}", "dev", made.name)
        _run("ip", "link", "set", made.name, "up")
        yield made
    finally:
        _run("ip", "link", "delete", made.name)


def sweep() -> None:
    """Remove bridges whose owner was killed before it could do so itself."""
    for link in json.loads(_run("ip", "-json", "link", "show", "type", "bridge") or "[]"):
        owner = str(link.get("ifname", "")).removeprefix(PREFIX)
        if link.get("ifname") == f"{PREFIX}{owner}" and owner.isdigit() and not pid_exists(int(owner)):
            _run("ip", "link", "delete", link["ifname"])


def service_route(service: str, server: str) -> list[Sequence[str]]:
    """The commands that lead the Service `kubernetes` to the API server `host:port`: no kube-proxy runs here."""
    rule = ("-d", service, "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", server)
    return [("iptables", "-t", "nat", "-A", chain, *rule) for chain in ("PREROUTING", "OUTPUT")]


def _free_subnet() -> ipaddress.IPv4Network:
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all") or "[]")
    used = [
        ipaddress.IPv4Network(route["dst"], strict=False)
        for route in routes
        if route.get("dst", "")[:1].isdigit()
    ]
    for subnet in SUBNETS:
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise NetworkError(f"no free subnet in {SUBNETS[0]} ... {SUBNETS[-1]}: free one of them")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout

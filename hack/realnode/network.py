"""The network between this machine and its nodes: one bridge with an unused subnet, which is removed at the end.

Interfaces, routes and iptables rules of a node are in the node's network namespace and end with it.
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
"""The prefix of our bridges' names, which the pid of the owner follows."""
SUBNETS = tuple(ipaddress.IPv4Network(f"10.213.{third}.0/24") for third in range(256))


class NetworkError(Exception):
    """The bridge or an interface cannot be created; the message has the output of `ip`."""


@dataclass(frozen=True)
class Bridge:
    name: str
    subnet: ipaddress.IPv4Network

    @property
    def address(self) -> str:
        return str(self.subnet[1])

    def node_address(self, number: int) -> str:
        return str(self.subnet[10 + number])

    def attach(self, pid: int, number: int) -> None:
        """Connect the network namespace of a process to the bridge, as node `number`."""
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
    """Remove bridges of killed owners, create a bridge, yield it, and remove it at the end of the context."""
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
    """Remove the bridges of owners that were killed."""
    for link in json.loads(_run("ip", "-json", "link", "show", "type", "bridge") or "[]"):
        owner = str(link.get("ifname", "")).removeprefix(PREFIX)
        if link.get("ifname") == f"{PREFIX}{owner}" and owner.isdigit() and not pid_exists(int(owner)):
            _run("ip", "link", "delete", link["ifname"])


def service_route(service: str, server: str) -> list[Sequence[str]]:
    """Return the commands that lead the Service `kubernetes` to `server`, because no kube-proxy runs."""
    rule = ("-d", service, "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", server)
    return [("iptables", "-t", "nat", "-A", chain, *rule) for chain in ("PREROUTING", "OUTPUT")]


def _free_subnet() -> ipaddress.IPv4Network:
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all") or "[]")
    used = [ipaddress.IPv4Network(route["dst"], strict=False) for route in routes if route.get("dst", "")[:1].isdigit()]
    for subnet in SUBNETS:
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise NetworkError(f"all subnets from {SUBNETS[0]} to {SUBNETS[-1]} are in use: free one of them")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout

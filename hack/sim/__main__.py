"""`python -m hack.sim --kubeconfig FILE`: play NVIDIA's node software, and the agents, on a cluster of kwok nodes."""

import argparse
import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from gpusharing.kube.errors import KubeError
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin
from hack.cluster.kubeconfig import KubeconfigError, kubeconfig_path
from hack.sim.manifests import install
from hack.sim.nodesoftware import FAULTS, NodeSoftware
from hack.sim.rights import AgentClients
from hack.sim.settings import SimSettings, Times

BANNER = (
    "SIMULATED: no GPU and no NVIDIA software here. mig-manager {mig}, {plugin} are simulated "
    "on every node with a known card, {factor:g} times as fast as we assume the real ones to be{agents}."
)
HINT = (
    "To inject a fault, run: kubectl annotate node NAME sim.gpusharing.dev/inject=FAULT; "
    f"FAULT is one of {', '.join(FAULTS)}."
)


OPTIONS = {
    "time_factor": (float, "simulated seconds per second"),
    "node_prefix": (str, "simulate only nodes whose names begin with this"),
    "agent_interval": (float, "seconds between an agent's readings"),
    "agent_hung_after": (float, "seconds after which an agent reports that a reading hangs"),
    "agent_port": (int, "serve the agents' metrics on this port, as /NODE/metrics; 0 takes a free port"),
    "meter_lag": (float, "seconds for which a new counter of a meter is 0"),
    "gpu_operator_namespace": (str, "namespace of NVIDIA's pods"),
    "plain_config": (str, "ConfigMap of NVIDIA's device-plugin chart, which then replaces the GPU Operator"),
    "plain_mig": (str, "ConfigMap of the mig-manager beside that chart"),
}
"""Settings that the command line can change, by their names in SimSettings."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hack.sim", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG")
    parser.add_argument("--agents", action="store_true", help="run the shipped agent loop for every node too")
    parser.add_argument("--dra", action="store_true", help="NVIDIA's DRA driver serves the GPUs")
    parser.add_argument(
        "--agent-account",
        default="",
        help="NAMESPACE/NAME of the service account whose rights the agents have; default: those of the kubeconfig",
    )
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    parser.add_argument("--apply", type=float, default=Times().apply, help="seconds for dividing a node's GPUs")
    for name, (kind, text) in OPTIONS.items():
        default = getattr(SimSettings(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    return parser.parse_args()


async def play(kubeconfig: Path | None, settings: SimSettings, account: str = "", *, with_parent: bool = False) -> None:
    """Simulate until canceled by a signal or, with `with_parent`, by the end of standard input."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    if with_parent:  # a parent that is killed cannot stop its children, but its pipes close

        def ended() -> None:
            loop.remove_reader(sys.stdin.fileno())
            task.cancel()

        loop.add_reader(sys.stdin.fileno(), ended)
    kubeconfig = kubeconfig or kubeconfig_path()
    served = (
        "GFD and the kubelet plugin of DRA driver 0.5.0" if settings.dra else f"device plugin and GFD {settings.plugin}"
    )
    agents = ", and so are the shipped agents" if settings.agents else ""
    say(BANNER.format(mig=settings.mig_manager, plugin=served, factor=settings.time_factor, agents=agents))
    say(HINT)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(HttpClient(OfficialLogin(kubeconfig), name="simulated-node-software"))
        agents_as = None
        if account:
            agents_as = await stack.enter_async_context(AgentClients(kubeconfig, account))
        for name in await install(client, settings):
            say(f"created DaemonSet {name}")
        await NodeSoftware(client, settings, log=say, agent_client=agents_as).run()


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    options = arguments()
    try:
        named = {name: getattr(options, name) for name in OPTIONS}
        settings = SimSettings(agents=options.agents, dra=options.dra, times=Times(apply=options.apply), **named)
        asyncio.run(play(options.kubeconfig, settings, options.agent_account, with_parent=options.with_parent))
    except asyncio.CancelledError:
        say("stopped")
    except KubeconfigError as error:
        print(f"hack.sim: {error}", file=sys.stderr)
        return 1
    except (KubeError, ExceptionGroup) as error:
        print(f"hack.sim: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

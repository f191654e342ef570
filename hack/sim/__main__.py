"""`python -m hack.sim --kubeconfig FILE`: play NVIDIA's node software, and the agents, on a cluster of kwok nodes."""

import argparse
import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from gpusharing.agent.meter import LAG
from gpusharing.kube.errors import KubeError
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin
from hack.cluster.kubeconfig import KubeconfigError, kubeconfig_path
from hack.sim.manifests import install
from hack.sim.nodesoftware import FAULTS, NodeSoftware
from hack.sim.rights import AgentClients
from hack.sim.settings import SimSettings, Times

BANNER = (
    "SIMULATED: no GPU and no NVIDIA software here. mig-manager {mig}, device plugin and GFD {plugin} are played "
    "on every node with a known card, {factor:g} times as fast as we assume the real ones to be{agents}."
)
HINT = f"Let something go wrong: kubectl annotate node NAME sim.gpusharing.dev/inject=FAULT; FAULT: {', '.join(FAULTS)}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hack.sim", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG")
    parser.add_argument("--time-factor", type=float, default=1.0, help="simulated seconds per second")
    parser.add_argument("--agents", action="store_true", help="run the shipped agent loop for every node too")
    parser.add_argument(
        "--agent-interval", type=float, default=30.0, help="seconds between an agent's readings"
    )
    parser.add_argument(
        "--agent-hung-after",
        type=float,
        default=SimSettings().agent_hung_after,
        help="seconds after which an agent reports that a reading hangs",
    )
    parser.add_argument(
        "--agent-account",
        default="",
        help="NAMESPACE/NAME of the service account whose rights the agents have; default: those of the kubeconfig",
    )
    parser.add_argument(
        "--agent-port", type=int, help="serve the agents' metrics there, as /NODE/metrics; 0: a free port"
    )
    parser.add_argument(
        "--meter-lag", type=float, default=LAG, help="seconds for which a new counter of a meter is 0"
    )
    parser.add_argument("--mig-manager", choices=("0.13.1", "0.15.0"), default="0.15.0")
    parser.add_argument("--plugin", choices=("0.19.3", "0.20.0"), default="0.20.0")
    parser.add_argument(
        "--with-parent",
        action="store_true",
        help="end when standard input ends: whoever started this is gone",
    )
    parser.add_argument(
        "--apply",
        type=float,
        default=Times().apply,
        help="seconds in which mig-manager divides a node's GPUs",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the jitter")
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> SimSettings:
    """The command line as settings."""
    return SimSettings(
        time_factor=options.time_factor,
        seed=options.seed,
        mig_manager=options.mig_manager,
        plugin=options.plugin,
        agents=options.agents,
        agent_interval=options.agent_interval,
        agent_hung_after=options.agent_hung_after,
        agent_port=options.agent_port,
        meter_lag=options.meter_lag,
        times=Times(apply=options.apply),
    )


async def play(
    kubeconfig: Path | None, settings: SimSettings, account: str = "", *, with_parent: bool = False
) -> None:
    """Until a signal, or the end of standard input. `account`: whose rights the agents have, as `namespace/name`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    if with_parent:
        end_with_input(loop, task)
    kubeconfig = kubeconfig or kubeconfig_path()
    agents = ", and so are the shipped agents" if settings.agents else ""
    say(
        BANNER.format(
            mig=settings.mig_manager, plugin=settings.plugin, factor=settings.time_factor, agents=agents
        )
    )
    say(HINT)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            HttpClient(OfficialLogin(kubeconfig), name="simulated-node-software")
        )
        agents_as = None
        if account:
            agents_as = await stack.enter_async_context(AgentClients(kubeconfig, account))
        for name in await install(
            client, settings.gpu_operator_namespace, settings.agent_namespace, agents=settings.agents
        ):
            say(f"created DaemonSet {name}")
        await NodeSoftware(client, settings, log=say, agent_client=agents_as).run()


def end_with_input(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    """Cancel the task when standard input ends: who is killed cannot end its children, yet its pipes are closed."""

    def ended() -> None:
        loop.remove_reader(sys.stdin.fileno())
        task.cancel()

    loop.add_reader(sys.stdin.fileno(), ended)


def say(line: str) -> None:
    """One line per change, at once."""
    print(line, flush=True)


def main() -> int:
    """Exit status 0 after a signal, 1 when the API server refuses or is not named."""
    options = arguments()
    try:
        settings = settings_of(options)
        asyncio.run(
            play(options.kubeconfig, settings, options.agent_account, with_parent=options.with_parent)
        )
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

"""The demo with DRIVER=nvidia: two nodes with NVIDIA's real node software go through every mode."""

import tempfile
from pathlib import Path

from gpusharing.api import names
from hack.cache import UnavailableError
from hack.demo.screen import DemoFailed, Screen
from hack.demo.stage import LOG, ROOT, empty_log
from hack.launch import LaunchError
from hack.nvidia import build
from hack.nvidia.loop import HALVES, SINGLE, WALK, NvidiaLoop, Stop, is_cordoned, running_loop
from hack.nvidia.sandbox import SandboxError, why_not

SIMULATED = (
    "SIMULATED: the GPUs (libnvidia-ml.so.1 is ours), kubelets (kwok, a registration stub for device plugins), Node "
    "Feature Discovery, and what the GPU Operator does. Real and unmodified: nvidia-mig-manager and nvidia-mig-parted, "
    "device plugin, GPU Feature Discovery, MPS control daemon and config-manager; etcd, API server, scheduler, "
    "controllers, kubectl. Operator and agents run as shipped, with the rights that the chart grants them."
)
FAULTY = "two"


def play_on_real_parts(screen: Screen) -> None:
    """Build NVIDIA's programs if they are not cached, empty LOG, start the two nodes, the operator and the agents, and
    play the whole story (`_play`)."""
    if why := why_not():
        raise LaunchError(f"SKIPPED: {why}")
    screen.banner(SIMULATED)
    screen.say(f"The operator's log: {LOG.relative_to(ROOT)}")
    with tempfile.TemporaryDirectory(prefix="gpusharing-") as folder:
        try:
            for release in build.RELEASES:
                build.ensure(release)
            with running_loop(Path(folder), "one", FAULTY, log=empty_log()) as loop:
                _play(screen, loop)
        except (UnavailableError, SandboxError) as error:
            raise LaunchError(str(error)) from error
        except TimeoutError as error:
            raise DemoFailed(str(error)) from error


def _play(screen: Screen, loop: NvidiaLoop) -> None:
    versions = ", ".join(f"{release.folder} {release.version}" for release in build.RELEASES)
    screen.heading(f"1. Two nodes with two H100 each; {versions}")
    resource = ""
    for number, stop in enumerate(WALK, start=1):
        if number > 1:
            screen.heading(f"{number}. {stop.text}")
        _change(screen, loop, stop, resource)
        resource = min(stop.served)
    _wedge(screen, loop, len(WALK) + 1)
    _broken_gpu(screen, loop, len(WALK) + 2)


def _change(screen: Screen, loop: NvidiaLoop, stop: Stop, resource: str) -> None:
    working = [loop.run_pod(node, resource) for node in loop.nodes if resource]
    if working:
        screen.say(f"On each node a pod uses one {resource}.")
    screen.command(f"kubectl apply -f -     # {stop.text}")
    loop.bring(**stop.spec)
    _show(screen, loop)
    if working:
        gone = sorted(loop.evicted()[-len(working) :])
        screen.check(f"{len(working)} pods were evicted through the Eviction API", gone == sorted(working))
    text = ", ".join(f"{count} {name}" for name, count in sorted(stop.served.items()))
    for node in loop.nodes:
        screen.check(f"{node}: the device plugin serves {text}", loop.served(node) == stop.served)
        _check_sources(screen, loop, node)


def _check_sources(screen: Screen, loop: NvidiaLoop, node: str) -> None:
    labels = loop.labels(node)
    report = f"mig-manager says {labels[names.LABEL_MIG_STATE]} for {labels[names.LABEL_MIG_CONFIG]}"
    product, count = labels[names.LABEL_GPU_PRODUCT], labels[names.LABEL_GPU_COUNT]
    fine = labels[names.LABEL_MIG_STATE] == "success" and not is_cordoned(loop, node)
    screen.check(f"{node}: {report}; GFD {product} x {count}; not cordoned", fine)


def _show(screen: Screen, loop: NvidiaLoop) -> None:
    for kind in ("gpusharingpolicies", "gpunodes"):
        screen.command(f"kubectl get {kind}")
        screen.output(loop.plane.kubectl("get", kind))


def _wedge(screen: Screen, loop: NvidiaLoop, number: int) -> None:
    """Let mig-manager hang once, and check that the operator restarts its pod exactly once."""
    screen.heading(f"{number}. mig-manager hangs: it fails once and forgets the operands that it has paused")
    before = len(loop.events("ActuatorRestarted"))
    loop.nodes["one"].simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", count=1)
    loop.bring(**HALVES)
    cures = loop.events("ActuatorRestarted")[before:]
    screen.output("\n".join(cures))
    screen.check("its pod was restarted once, and the change succeeded", len(cures) == 1)
    _check_sources(screen, loop, "one")


def _broken_gpu(screen: Screen, loop: NvidiaLoop, number: int) -> None:
    """Let a GPU fail during a change, and check that its node is Failed until it is repaired and retried."""
    screen.heading(f"{number}. A GPU fails midway")
    loop.nodes[FAULTY].simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", gpu=1)
    screen.command("kubectl apply -f -     # MIG single")
    loop.apply(**SINGLE)
    loop.wait(lambda: loop.transition(FAULTY).get("phase") == "Failed", f"the change of {FAULTY} to be abandoned")
    loop.wait(lambda: not is_cordoned(loop, "one"), "the other node")
    _show(screen, loop)
    place = loop.transition(FAULTY)
    screen.output(place["message"])
    screen.check(f"{FAULTY} is Failed, and stays cordoned", is_cordoned(loop, FAULTY))
    screen.check("the message quotes mig-parted's error", "all orderings failed" in place["message"])
    loop.nodes[FAULTY].simulator.clear_faults()
    screen.say("The GPU is repaired, and a person requests a retry.")
    words = ("annotate", "node", FAULTY, "--overwrite", f"{names.ANNOTATION_RETRY}=again")
    screen.command(" ".join(("kubectl", *words)))
    screen.output(loop.plane.kubectl(*words))
    loop.wait_ready()
    _show(screen, loop)
    _check_sources(screen, loop, FAULTY)

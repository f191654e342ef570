"""What is said of MIG modes that a virtual machine may be unable to switch (planning/wanted/verify.py)."""

from dataclasses import replace

import pytest
from tests.build import make_cluster_policy, make_gpu, make_gpunode, make_stack
from tests.configs import target_for
from tests.planning.cases import FULL, MIXED, make_case
from tests.wording import lacks

from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, PlainStackView
from gpusharing.planning.snapshot.views import ObservedView
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import (
    SETTING,
    Comparison,
    Source,
    find_disagreements,
    label_checks,
    tell_guest_reset,
)


def report(*, guest: bool, pending: bool = False) -> ObservedView:
    gpu = replace(make_gpu(), reset_in_guest=guest, mig_pending=pending)
    observed = make_gpunode(gpus=(gpu,)).observed
    assert observed is not None
    return observed


PLAIN = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
SILENT: dict[str, tuple[bool, ClusterPolicyView | None]] = {
    "no GPU needs a reset in a guest": (False, make_cluster_policy()),
    "mig-manager may reboot the node": (True, make_cluster_policy(with_reboot=True)),
    "there is no mig-manager to reboot it": (True, PLAIN),
    "there is no ClusterPolicy": (True, None),
}


@pytest.mark.parametrize(("guest", "cluster_policy"), SILENT.values(), ids=SILENT.keys())
def test_nothing_is_said_where_the_setting_would_not_help(
    guest: bool, cluster_policy: ClusterPolicyView | None
) -> None:
    assert tell_guest_reset(report(guest=guest), make_stack(FULL, cluster_policy=cluster_policy)) == ""


def test_beside_nvidias_chart_the_setting_is_that_of_mig_managers_daemonset() -> None:
    policy = replace(PLAIN, plain=PlainStackView("nvdp", "nvdp", "nvidia-mig-manager", pausable=True))
    advice = tell_guest_reset(report(guest=True), make_stack(FULL, cluster_policy=policy))
    assert not lacks(advice, 'WITH_REBOOT "true"', "DaemonSet nvidia-mig-manager")


def test_the_setting_is_named_where_it_helps() -> None:
    assert SETTING in tell_guest_reset(report(guest=True), make_stack(FULL))
    assert tell_guest_reset(None, make_stack(FULL)) == ""


@pytest.mark.parametrize("guest", [True, False])
def test_a_pending_mode_of_a_virtual_machine_is_told_with_the_setting(guest: bool) -> None:
    observed, stack = report(guest=guest, pending=True), make_stack(FULL)
    target = target_for(FULL, observed.gpus, stack)
    assert isinstance(target, Target)
    compared = Comparison(make_case(MIXED).node, observed, target, stack)
    told = find_disagreements(compared, label_checks)[Source.NVML]
    assert not lacks(told.message, "GPU 0", "MIG mode change", "reset", "reboots")
    assert (SETTING in told.message) is guest

"""Behavior of the pinned programs that differs from what the product expects (docs/design/nvidia.md): data only.

When a newer pin makes an entry untrue, the test that it names fails: take the version out of the entry then.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One behavior that differs from what was expected."""

    program: str
    versions: tuple[str, ...]
    """The pinned versions of the program in which it was observed, the newest first."""
    expected: str
    observed: str
    consequence: str
    proven_by: str
    """The name of the test in tests/nvidia that fails when the difference is gone."""


BOTH = ("v0.15.1", "v0.13.1")
"""The pinned versions of mig-parted."""
DIFFERENCES = (
    Difference(
        "nvidia-device-plugin", ("v0.19.3",),
        "each profile with a suffix is a resource of its own: nvidia.com/mig-1g.10gb.me, nvidia.com/mig-1g.24gb-me",
        "resource patterns are unanchored regular expressions: +me, +gfx, -me instances are served in the plain name",
        "planning/wanted/target.py: refused where ClusterPolicy names an older version, else reported by name",
        "test_a_mode_is_served_and_labelled_exactly_as_predicted",
    ),
    Difference(
        "config-manager", ("v0.19.3",),
        "its init container (oneshot) links the configuration that the label names before the plugin starts",
        "it uses an empty label first, and so the fallback or the default, because its watch has hardly ever answered "
        "by then; the init container ends with that, and the sidecar corrects it some milliseconds later",
        "after every start of the plugin's or GFD's pod the fallback is served for a moment (with MIG on: whole GPUs): "
        "allocatable and labels of that moment prove nothing",
        "test_the_init_container_ends_with_the_fallback_whatever_the_label_says",
    ),
    Difference(
        "config-manager", ("v0.19.3",),
        "it signals its program whenever it has changed the configuration, sooner or later",
        "it changes the configuration, then looks through all processes of the pod, and exits at one that has ended, "
        "or without finding the program; only its next start, which takes the fallback first, signals again",
        "plugin or GFD may keep the old configuration until the kubelet restarts the sidecar (10 s to 5 min)",
        "test_it_changes_the_configuration_before_it_finds_that_there_is_no_program_to_signal",
    ),
    Difference(
        "config-manager", ("v0.19.3",),
        "in the MPS daemon's pod it signals the daemon, among all processes of the host (hostPID)",
        "it panics at the first process without a command line, as a kernel thread is (k8s-device-plugin issue 1726, "
        "fixed in v0.20), and would not find the daemon by the name that it is given (PR 1827); the daemon keeps the "
        "empty configuration with which the GPU Operator's daemon starts, and waits for ever",
        "no node is drained for MPS there: MPSNotSwitchable (docs/design/nvidia.md#b5)",
        "test_beside_a_process_without_a_command_line_it_panics_as_the_mps_daemons_does_on_every_host",
    ),
    Difference(
        "gpu-feature-discovery", ("v0.19.3",),
        "nvidia.com/gpu.replicas is the number of shares of a GPU, at least 1",
        "0 when no GPU of the node is whole (strategy none or mixed, MIG on everywhere), and with MIG-INVALID",
        "a verifier must not require 1 there",
        "test_mig_on_with_strategy_none_still_offers_the_whole_gpus",
    ),
    Difference(
        "gpu-feature-discovery", ("v0.19.3",),
        "nvidia.com/gpu.count counts what nvidia.com/gpu represents",
        "with strategy mixed it counts the GPUs, including those that have MIG on",
        "it proves nothing about MIG; the per-profile counts do",
        "test_with_mixed_gfd_counts_gpus_that_have_mig_on_too",
    ),
    Difference(
        "gpu-feature-discovery", ("v0.19.3",),
        "nvidia.com/gpu.product and nvidia.com/gpu.count describe all GPUs of a node with two card models",
        "they describe one model and its GPUs; which one may change at each run (the order of a Go map), models with a "
        "whole GPU before divided ones",
        "planning/wanted/verify.py accepts the label set of any one model; whether a nodeSelector on such a product "
        "matches is chance",
        "test_gfd_counts_per_model_and_whichever_it_shows_is_accepted",
    ),
    Difference(
        "nvidia-device-plugin", ("v0.19.3",),
        "more MPS replicas than the card's limit make the device plugin exit",
        "the plugin accepts any number; mps-control-daemon exits with 'maximum allowed replicas exceeded', and the "
        "plugin, which waits for it, serves nothing",
        "the planner must refuse them; the sign on a node is absent resources, not a crashing plugin",
        "test_nvidias_mps_daemon_takes_as_many_replicas_as_we_say_and_not_one_more",
    ),
    Difference(
        "gpu-feature-discovery", ("v0.19.3",),
        "it writes no labels when an MPS configuration meets a GPU with MIG",
        "it exits: 'MPS sharing is not supported for mig devices'; its pod crash-loops and the labels vanish with it",
        "a node pointed at MPS before MIG is off loses its GPU labels: one more reason for two steps",
        "test_gfd_ends_without_labels_when_mps_meets_a_gpu_with_mig",
    ),
    Difference(
        "nvidia-mig-parted", BOTH,
        "its last line says why it failed",
        "the last line is a summary ('all orderings failed'); the cause is in the level=error lines before, by the "
        "name of NVML's code (ERROR_IN_USE), not by NVML's text",
        "a message for people also shows the first level=error line",
        "test_nvidias_mig_parted_stops_at_an_instance_in_use_after_its_neighbor_is_gone",
    ),
    Difference(
        "nvidia-mig-parted", BOTH,
        "on a Hopper that is in use, setting the mode fails",
        "setting the mode counts as done (the activation status is not read); it fails one step later with 'unable "
        "to apply MIG config with MIG mode disabled'",
        "that line means that the GPU was in use",
        "test_a_held_hopper_is_not_changed_and_the_failure_is_told",
    ),
    Difference(
        "nvidia-mig-manager", BOTH,
        "with WITH_REBOOT a GPU that is in use has the new mode after the reboot",
        "that is true on Ampere, which keeps the pending mode; Hopper and later lose it (MIG user guide), and the run "
        "after the reboot ends in 'failed': MIG mode change did not take effect after rebooting",
        "on these cards a reboot only frees the GPU, and mig-manager's pod has to be restarted too",
        "test_a_held_hopper_loses_the_mode_in_the_reboot_and_needs_a_restart_of_mig_manager",
    ),
    Difference(
        "nvidia-mig-parted", BOTH,
        "a row for all devices skips a card without MIG, whether applied or asserted",
        "apply skips it and reports success, but assert fails",
        "mig-manager would report success and never find the layout applied, so cards without MIG get no mig.* labels, "
        "and a MIG policy on them is refused (planning/wanted/target.py)",
        "test_on_a_card_without_mig_a_layout_for_all_gpus_is_applied_successfully_and_nothing_happens",
    ),
    Difference(
        "nvidia-mig-parted", ("v0.13.1",),
        "on a node with two models each card's own profile of a name is created (as from v0.15.0)",
        "the name is looked up on the first card that has it: 1g.10gb on a node with H100 80 GB and A100 40 GB ends in "
        "'Unsupported MIG Device specified 1g.10gb, expected 1g.5gb instead', and one card is left empty",
        "refused as MigManagerTooOld where ClusterPolicy names a version before v0.15; names that are the same profile "
        "on both cards, or on one card only, work",
        "test_a_profile_name_that_is_another_profile_on_the_other_card_of_a_node_is_mistaken_before_v0_15",
    ),
    Difference(
        "nvidia-mig-parted", BOTH,
        "a profile that the card does not have is refused",
        "'MIG configuration applied successfully' with status 0: MIG is on and the GPU empty; only assert fails",
        "such a profile is refused before a change, and every layout is proven after it (docs/design/nvidia.md#r14)",
        "test_on_every_layout_of_other_cards_our_verdict_is_the_hardwares",
    ),
    Difference(
        "nvidia-mig-parted", ("v0.15.1",),
        "its log holds its own lines (level=…) only",
        "go-nvlib adds lines 'WARNING: unable to detect IOMMU FD', four for each GPU and call, because a GPU that the "
        "driver nvidia holds has no vfio-dev",
        "of the log only lines of level error and fatal are read (kube/actuatorlogs.py)",
        "test_go_nvlib_warns_of_each_gpu_from_v0_15_on_and_the_reason_of_a_failure_is_found_all_the_same",
    ),
    Difference(
        "nvidia-mig-manager", ("v0.13.1",),
        "a pod that does not go within five minutes, or cannot be deleted, ends in failed, with the operands started "
        "again in the first run of a process (as from v0.15.1)",
        "no state is written: pending for ever, with the operands paused",
        "ActuatorStuck after 20 min, and a restart of mig-manager's pod (docs/design/nvidia.md#a7)",
        "test_a_device_plugin_that_does_not_go_in_five_minutes_is_given_up_as_this_version_does",
    ),
)  # fmt: skip

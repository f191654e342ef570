"""The words of reasons about NVIDIA's programs that do not run, or that others replace. `reasons.py` lists all."""

from gpusharing.planning.vocabulary.reasonkinds import Passes, Words

_PERSON = Passes.BY_A_PERSON

# fmt: off
FOREIGN_DEVICE_PLUGIN: Words = ("ForeignDevicePlugin", "Node", _PERSON,
    "HAMi's, Volcano's or a cloud's own device plugin serves the GPUs of the node. It does not follow our labels, so a "
    "change could be neither served nor proven. No change starts.",
    "Do what the message says to hand the node over to NVIDIA's plugin, or narrow the node selector.")
PLUGIN_DISABLED: Words = ("PluginDisabled", "Accepted", _PERSON,
    "ClusterPolicy devicePlugin.enabled is false: nothing would serve the GPUs after a change. No node is drained.",
    "Run the command in the message once. Where another device plugin serves the GPUs on purpose, delete the policy.")
FEATURE_DISCOVERY_DISABLED: Words = ("FeatureDiscoveryDisabled", "Accepted", _PERSON,
    "ClusterPolicy gfd.enabled is false: without those labels no change could be proven. No node is drained.",
    "Run the command in the message once.")
MIG_MANAGER_DISABLED: Words = ("MigManagerDisabled", "Accepted", _PERSON,
    "The policy wants MIG, but ClusterPolicy migManager.enabled is false: nothing would act on our label.",
    "Run the command in the message once.")
MIG_MANAGER_MISSING: Words = ("MigManagerMissing", "Accepted", _PERSON,
    "The policy wants MIG, but NVIDIA's device-plugin chart without the GPU Operator has no mig-manager.",
    "Install the NVIDIA GPU Operator in place of that chart, or use mode Full, TimeSlicing or MPS.")
FEATURE_DISCOVERY_MISSING: Words = ("FeatureDiscoveryMissing", "Accepted", _PERSON,
    "NVIDIA's device-plugin chart runs without GPU Feature Discovery, so no change could be proven.",
    "Run the command in the message once.")
DRIVER_DISABLED: Words = ("DriverDisabled", "Accepted", _PERSON,
    "The agent finds no NVIDIA driver on a node without GPUs to offer, and ClusterPolicy driver.enabled is false. That "
    "alone is normal where hosts bring the driver.",
    "Install the driver on the host, or, if no host is to bring its own, run the command in the message.")
TOOLKIT_DISABLED: Words = ("ToolkitDisabled", "Accepted", _PERSON,
    "A node without GPUs to offer has a container runtime that does not know NVIDIA's, and ClusterPolicy "
    "toolkit.enabled is false. That alone is normal where hosts bring the NVIDIA Container Toolkit.",
    "Install it on the host, or, if no host is to bring its own, run the command in the message.")

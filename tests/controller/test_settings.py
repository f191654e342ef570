"""Settings come from the environment (api/settingtypes.py); a bad one ends the start with its name and an example."""

from dataclasses import fields

import pytest
from tests.wording import lacks

from gpusharing.controller.settings import PREFIX, Settings, SettingsError, default_text, from_environment


def test_without_variables_the_defaults_hold() -> None:
    assert from_environment({}) == from_environment({"PATH": "/bin", "KUBECONFIG": "x"}) == Settings()


def test_every_setting_has_a_variable_and_takes_its_own_default() -> None:
    settings = Settings()
    values = {PREFIX + item.name.upper(): default_text(getattr(settings, item.name)) for item in fields(settings)}
    assert from_environment(values) == Settings()


def test_values_reach_the_shell_and_the_planner_with_their_types() -> None:
    found = from_environment(
        {
            "GPUSHARING_NAMESPACE": "gpus",
            "GPUSHARING_SETTLE": "0.5s",
            "GPUSHARING_MAX_IN_FLIGHT": "7",
            "GPUSHARING_PARALLEL": "3",
            "GPUSHARING_LOG_LEVEL": "debug",
            "GPUSHARING_METRICS_PORT": "0",
            "GPUSHARING_PAUSED": "Hold",
        }
    )
    assert (found.namespace, found.settle, found.max_in_flight) == ("gpus", 0.5, 7)
    assert (found.parallel, found.log_level, found.metrics_port) == (3, "debug", 0)
    assert found.paused == "Hold"


EXAMPLES = {"MAINTENANCE_KEYS": "example.com/maintenance", "NEIGHBOR_LABELS": "example.com/hands-off=true"}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("SETTEL", "5", "is not a setting; the known ones are "),
        ("PLAN", "x", "is not a setting; the known ones are "),
        ("SETTLE", "five", "is not a duration; for example GPUSHARING_SETTLE=5s"),
        ("SETTLE", "", "is not a duration; for example GPUSHARING_SETTLE=5s"),
        ("SETTLE", "5", "is not a duration; for example GPUSHARING_SETTLE=5s"),
        ("IDLE", "-1s", "is not a duration; for example GPUSHARING_IDLE=3s"),
        ("PARALLEL", "2.5", "is not a whole number; for example GPUSHARING_PARALLEL=16"),
        ("MAX_IN_FLIGHT", "-1", "is negative; for example GPUSHARING_MAX_IN_FLIGHT=100"),
        ("PARALLEL", "0", "must be above 0; for example GPUSHARING_PARALLEL=16"),
        ("MAX_IN_FLIGHT", "501", "is more than 500, the number of nodes"),
        ("RELIST", "0s", "must be above 0; for example GPUSHARING_RELIST=600s"),
        ("PROBE_PORT", "70000", "is not a port; for example GPUSHARING_PROBE_PORT=8081"),
        ("PAUSED", "hold", "is not one of false, true, Finish, Hold, Abort; for example GPUSHARING_PAUSED=false"),
        ("LOG_FORMAT", "xml", "is not one of json, console; for example GPUSHARING_LOG_FORMAT=json"),
        ("LOG_LEVEL", "loud", "is not one of debug, info, warning, error; for example GPUSHARING_LOG_LEVEL=info"),
        ("PROTECTED_NAMESPACES", "kube_system", "'kube_system' is not the name of a namespace"),
        ("PROTECTED_NAMESPACES", "a,,b", "'' is not the name of a namespace"),
        ("PROTECTED_NAMESPACES", "a" * 64, "is not the name of a namespace"),
        ("UNSAFE_DRIVERS", "R570", "'R570' is neither a driver version nor the beginning of one"),
        ("UNSAFE_DRIVERS", "570.", "'570.' is neither a driver version"),
        ("REFUSE_UNSAFE_DRIVERS", "True", "is neither true nor false; for example"),
        ("REFUSE_UNSAFE_DRIVERS", "1", "is neither true nor false; for example"),
        ("MAINTENANCE_KEYS", "example.com/a,,example.com/b", "'' is not a key of a label, annotation or taint"),
        ("MAINTENANCE_KEYS", "example.com/a=true", "'example.com/a=true' is not a key"),
        ("MAINTENANCE_KEYS", "Example.com/a", "'Example.com/a' is not a key"),
        ("MAINTENANCE_KEYS", "a/b/c", "'a/b/c' is not a key"),
        ("MAINTENANCE_KEYS", "x" * 64, "is not a key"),
        ("MAINTENANCE_KEYS", "gpusharing.dev/fence", "by the operator's own changes"),
        ("MAINTENANCE_KEYS", "karpenter.sh/do-not-disrupt", "by the operator's own changes"),
        ("MAINTENANCE_KEYS", "node.kubernetes.io/unschedulable", "by the operator's own changes"),
        ("MAINTENANCE_KEYS", "nvidia.com/mig.config.state", "by the operator's own changes"),
        ("MAINTENANCE_KEYS", "nvidia.com/gpu-driver-upgrade-state", "is already checked by its value"),
        ("MAINTENANCE_KEYS", "sriovnetwork.openshift.io/state", "is already checked by its value"),
        ("NEIGHBOR_LABELS", "example.com/hands-off", "is not a label with a value"),
        ("NEIGHBOR_LABELS", "example.com/hands-off=", "is not a label with a value"),
        ("NEIGHBOR_LABELS", "example.com/hands-off=a b", "is not a label with a value"),
        ("NEIGHBOR_LABELS", "a/b/c=true", "is not a label with a value"),
        ("NEIGHBOR_LABELS", "gpusharing.dev/policy=x", "is written by the changes of this operator"),
        (
            "NEIGHBOR_LABELS",
            "nvidia.com/gpu.present=false",
            "is written by the changes of this operator or by NVIDIA's software",
        ),
        (
            "NEIGHBOR_LABELS",
            "remediation.medik8s.io/exclude-from-remediation=true",
            "is written by the changes of this operator",
        ),
    ],
)
def test_a_bad_value_is_refused_with_the_variable_and_an_example(name: str, value: str, complaint: str) -> None:
    variable = PREFIX + name
    with pytest.raises(SettingsError) as refusal:
        from_environment({variable: value})
    said = str(refusal.value)
    after = ": " if name in EXAMPLES else ""
    assert said.startswith(variable if "not a setting" in complaint else f"{variable}={value}{after}")
    assert complaint in said
    assert name not in EXAMPLES or said.endswith(f"for example {variable}={EXAMPLES[name]}")


def test_an_unknown_setting_is_answered_with_all_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"GPUSHARING_ABORT_BACKOFF, .*GPUSHARING_WEDGE_PENDING"):
        from_environment({"GPUSHARING_NO": "x"})


def test_keys_of_somebody_elses_maintenance_are_taken_with_commas_between_and_blanks_around() -> None:
    for text, keys in {
        "": (),
        "  ": (),
        "maintenance": ("maintenance",),
        "example.com/maintenance, Vendor_x.y": ("example.com/maintenance", "Vendor_x.y"),
    }.items():
        assert from_environment({"GPUSHARING_MAINTENANCE_KEYS": text}).maintenance_keys == keys


@pytest.mark.parametrize("name", ["ADMIN_PLUGIN_CONFIG_MAP", "ADMIN_MIG_CONFIG_MAP"])
@pytest.mark.parametrize("ours", ["PLUGIN_CONFIG_MAP", "MIG_CONFIG_MAP"])
def test_a_configmap_of_ours_is_not_merged_into_itself(name: str, ours: str) -> None:
    """Each of its entries would stay for good, as it is."""
    with pytest.raises(SettingsError) as refusal:
        from_environment({f"GPUSHARING_{ours}": "mine", f"GPUSHARING_{name}": "mine"})
    assert not lacks(str(refusal.value), f"GPUSHARING_{name}=mine", "own ConfigMap")


def test_marks_for_neighbors_are_labels_with_a_value() -> None:
    given = {"GPUSHARING_NEIGHBOR_LABELS": "example.com/hands-off=true, repair=no"}
    assert from_environment(given).neighbor_labels == ("example.com/hands-off=true", "repair=no")


def test_a_mark_of_ours_that_would_keep_us_away_from_every_node_is_refused() -> None:
    both = {"MAINTENANCE_KEYS": "example.com/hands-off", "NEIGHBOR_LABELS": "example.com/hands-off=true"}
    with pytest.raises(SettingsError, match=r"both name example\.com/hands-off"):
        from_environment({f"GPUSHARING_{name}": text for name, text in both.items()})


def test_lists_are_taken_with_commas_between_and_may_be_empty() -> None:
    found = from_environment(
        {"GPUSHARING_PROTECTED_NAMESPACES": "kube-system, a-1", "GPUSHARING_UNSAFE_DRIVERS": "570,580.95.05"}
    )
    assert found.protected_namespaces == ("kube-system", "a-1")
    assert found.unsafe_drivers == ("570", "580.95.05")
    assert from_environment({"GPUSHARING_PROTECTED_NAMESPACES": ""}).protected_namespaces == ()


@pytest.mark.parametrize("word", ["on", "true"])
def test_the_guard_is_one_of_its_words(word: str) -> None:
    assert from_environment({PREFIX + "GUARD": "validating"}).guard == "validating"
    with pytest.raises(SettingsError, match="is not one of false, mutating, validating"):
        from_environment({PREFIX + "GUARD": word})


def test_a_switch_is_true_or_false() -> None:
    for text, value in {"true": True, "false": False}.items():
        assert from_environment({"GPUSHARING_REFUSE_UNSAFE_DRIVERS": text}).refuse_unsafe_drivers is value


@pytest.mark.parametrize(
    ("name", "value"), [("RENEW_DEADLINE", "15s"), ("LEASE_DURATION", "9s"), ("RETRY_PERIOD", "10s")]
)
def test_a_leader_that_could_not_renew_in_time_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"GPUSHARING_{name}={value}.* must each be larger"):
        from_environment({PREFIX + name: value})

"""Commands in messages can be pasted into a shell."""

import shlex

from gpusharing.planning.stack.installationviews import kubectl_patch


def test_the_shell_hands_the_json_of_a_patch_over_unchanged() -> None:
    config = {"devicePlugin": {"config": {"name": "gpusharing-device-plugin"}}}
    words = shlex.split(kubectl_patch("gpu-cluster-policy", config))
    assert words == [
        *("kubectl", "patch", "clusterpolicy", "gpu-cluster-policy", "--type", "merge", "-p"),
        '{"spec":{"devicePlugin":{"config":{"name":"gpusharing-device-plugin"}}}}',
    ]


def test_what_is_set_in_one_block_is_set_by_one_patch() -> None:
    name, switch = {"migManager": {"config": {"name": "ours"}}}, {"migManager": {"enabled": True}}
    assert kubectl_patch("gpus", name, {"mig": {"strategy": None}}, switch).endswith(
        """ -p '{"spec":{"migManager":{"config":{"name":"ours"},"enabled":true},"mig":{"strategy":null}}}'"""
    )

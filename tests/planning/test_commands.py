"""Commands in messages can be pasted into a shell."""

import shlex

from gpusharing.planning.stack.commands import patch_command


def test_the_shell_hands_the_json_of_a_patch_over_unchanged() -> None:
    json = '{"spec":{"devicePlugin":{"config":{"name":"gpusharing-device-plugin"}}}}'
    words = shlex.split(patch_command("gpu-cluster-policy", json))
    assert words == [
        *("kubectl", "patch", "clusterpolicy", "gpu-cluster-policy", "--type", "merge", "-p"),
        json,
    ]

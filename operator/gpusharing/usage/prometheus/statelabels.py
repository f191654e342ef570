"""How kube-state-metrics names labels of objects in its series. Pure."""

import re


def state_label(key: str) -> str:
    """The label of a series that holds the label `key` of a Node or a Namespace.

    What a label of Prometheus cannot have becomes `_`; then comes a `_` before each capital after a lower-case letter
    or a digit, and all is lower case (kubernetes/kube-state-metrics internal/store/utils.go, labelName, v2.20.0, and
    the same since v2.0.0). Keys that become the same get a suffix `_conflict1` and so on there: they are not found.
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"

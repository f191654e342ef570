"""DeviceClasses of somebody else that may not select what their extended resource promises.

The API server lets any class claim any extended resource, and the scheduler gives pods what the class selects. The
operator creates no class of its own for a resource that such a class has (`wanted/draobjects.py`).
"""

from collections.abc import Iterator, Sequence

from gpusharing.planning.snapshot.draviews import DeviceClassView
from gpusharing.planning.stack.installationviews import Symptom, Topic, warning
from gpusharing.planning.wanted.draobjects import find_doubtful


def find_class_symptoms(classes: Sequence[DeviceClassView]) -> Iterator[Symptom]:
    for name, why in find_doubtful(classes, {one.resource for one in classes}).items():
        command = f"kubectl get deviceclass {name} -o yaml"
        yield warning(Topic.CLUSTER_POLICY, "DeviceClassDoubtful", why, command)

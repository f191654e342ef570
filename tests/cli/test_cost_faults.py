"""`cost` where Prometheus answers in part, or with numbers that cannot be (kubectl_gpusharing/usage/absences.py, kubectl_gpusharing/usage/meter.py, kubectl_gpusharing/usage/queries.py)."""

import json
import re

import pytest
from tests.cli.desk import Desk, Said
from tests.cli.fakeprometheus import GPU, HELD, NOW, Answer, FakePrometheus, vector
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED


def heard_by(fake: FakePrometheus) -> list[str]:
    asked: list[str] = []
    answer = fake.answer

    def heard(path: str, query: str) -> Answer:
        asked.append(query)
        return answer(path, query)

    fake.answer = heard  # type: ignore[method-assign]  # it is the stand-in's own
    return asked


def ask(desk: Desk, fake: FakePrometheus, *more: str) -> Said:
    """`cost` of a day."""
    return desk.type("cost", "--prometheus", fake.url, "--window", "1d", *more)


@pytest.mark.parametrize("lost", ["min", "max", "count"])
def test_a_store_that_answers_only_some_of_the_questions_about_a_node_makes_the_answer_a_part(
    desk: Desk, fake: FakePrometheus, lost: str
) -> None:
    seen = {"min": str(NOW - 86400), "max": str(NOW), "count": "1441"}
    for function, value in seen.items():
        asked = f"{function}_over_time(timestamp(max by (node) (gpusharing"
        told = vector(warnings=["store x is away"]) if function == lost else vector(({"node": "gpu-1"}, value))
        fake.answers = {asked: told, **fake.answers}
    said = ask(desk, fake)
    assert said.status == CHANGES
    assert "PARTIAL: Prometheus warns: store x is away." in said.out


@pytest.mark.parametrize("value", ["1e303", "-1e303", "1.1e15", "NaN", "+Inf", "-Inf"])
@pytest.mark.parametrize(
    ("asked", "labels", "named"),
    [
        ("gpusharing_slice_seconds_total", HELD, "value {} s of a meter counter on gpu-1"),
        ("increase(gpusharing_gpu_seconds_total", GPU, "value {} s of a meter counter on gpu-1"),
        (
            "(avg by (policy, currency) (gpusharing_policy_gpu_hourly_price",
            {"policy": "pool-x", "currency": "USD"},
            "of policy pool-x is {}",
        ),
        ("(avg by (node) (node_gpu_hourly_cost", {"node": "gpu-1"}, "of node gpu-1 is {}"),
    ],
)
def test_a_number_that_cannot_be_is_left_out_and_told(
    desk: Desk, fake: FakePrometheus, asked: str, labels: dict[str, str], named: str, value: str
) -> None:
    fake.answers = {asked: vector((labels, value)), **{k: v for k, v in fake.answers.items() if k != asked}}
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (CHANGES, "")
    assert named.format(f"{float(value):g}") in " ".join(json.loads(said.out)["missing"])


IDLE = {**GPU, "resource": "nvidia.com/gpu"}
PARTS, REST, WHOLE = (
    "gpusharing_slice_seconds_total",
    "gpusharing_idle_slice_seconds_total",
    "increase(gpusharing_gpu_seconds_total",
)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (
            {PARTS: vector((HELD, "43200"), ({**HELD, "policy": "pool-y"}, "36000"))},
            ("pool-y", "10.0 GPU-hours", "metered", "0.0"),
        ),
        (
            {
                PARTS: vector((HELD, "0"), ({**HELD, "node": "gpu-2"}, "86400")),
                REST: vector(),
                WHOLE: vector((GPU, "86400"), ({**GPU, "node": "gpu-2"}, "0")),
                "group by (node) (count_over_time": vector(*(({"node": f"gpu-{one}"}, "1") for one in (1, 2))),
            },
            ("pool-x on gpu-1, gpu-2", "metered", "48.0 GPU-hours"),
        ),
        (
            {PARTS: vector((HELD, "NaN")), REST: vector((IDLE, "NaN")), WHOLE: vector((GPU, "NaN"))},
            ("nan s", "gpu-1", "not a number"),
        ),
        (
            {"(avg by (policy, currency)": vector(({"policy": "pool-x", "currency": "USD"}, "NaN"))},
            ("gpusharing_policy_gpu_hourly_price", "policy pool-x", "nan", "not a number"),
        ),
    ],
    ids=["parts without a whole", "nodes that cancel out", "no number at all", "a price that is none"],
)
def test_a_sum_that_is_broken_somewhere_is_told(
    desk: Desk, fake: FakePrometheus, answers: dict[str, Answer], told: tuple[str, ...]
) -> None:
    fake.answers = {**answers, **{text: one for text, one in fake.answers.items() if text not in answers}}
    said = ask(desk, fake, "-o", "json")
    assert said.status == CHANGES
    assert any(not lacks(one, *told) for one in json.loads(said.out)["missing"])
    assert ("Prometheus has none" in said.out) == ("pool-y" in told), "for there is one that is left out"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"a\x1b[31m": "x"}, "differ in the label a?[31m (x, y)"),
        ({"replica": 'x"\\'}, r"""--match 'replica="x\"\\"'"""),
        ({"replica": "it's"}, """--match 'replica="it'"'"'s"'"""),
    ],
    ids=["a name that would paint", "a value with quotes", "a value that ends the shell's quotes"],
)
def test_labels_are_told_so_that_they_can_be_read_and_typed(
    desk: Desk, fake: FakePrometheus, labels: dict[str, str], told: str
) -> None:
    others = dict.fromkeys(labels, "y")
    twice = vector(({**GPU, **labels}, "1"), ({**GPU, **others}, "1"))
    fake.answers = {"and on (node, policy)": twice, **fake.answers}
    said = ask(desk, fake)
    assert (said.status, said.out) == (FAILED, "")
    assert told in said.err
    assert "\x1b" not in said.err


@pytest.mark.parametrize("function", ["min", "max", "count"])
@pytest.mark.parametrize("what", ["(gpusharing_gpu_seconds_total", "(up"])
def test_a_time_that_cannot_be_is_no_time(desk: Desk, fake: FakePrometheus, function: str, what: str) -> None:
    seen = {"min": str(NOW - 86400), "max": str(NOW), "count": "1441", function: "1e303"}
    fake.answers |= {
        f"{name}_over_time(timestamp(max by (node) {what}": vector(({"node": "gpu-1"}, value))
        for name, value in seen.items()
    }
    said = ask(desk, fake)
    assert "Traceback" not in said.err
    assert said.status in (DONE, CHANGES)


@pytest.mark.parametrize(
    ("window", "whole", "parts", "told"),
    [("10m", 600, 548, False), ("10m", 600, 652, False), ("10m", 600, 530, True), ("1d", 86_400, 85_000, True)],
)
def test_ends_of_what_came_in_a_short_window_are_no_missing_series(
    desk: Desk, fake: FakePrometheus, window: str, whole: int, parts: int, *, told: bool
) -> None:
    del fake.answers["gpusharing_idle_slice_seconds_total"]
    fake.answers["gpusharing_slice_seconds_total"] = vector((HELD, str(parts)))
    fake.answers["increase(gpusharing_gpu_seconds_total"] = vector((GPU, str(whole)))
    said = ask(desk, fake, "--window", window)
    assert said.status == (CHANGES if told else DONE)
    assert ("adds up to" in said.out) == told


@pytest.mark.parametrize(("nodes", "stretches"), [(3, 1), (300, 4)], ids=["a few", "too many to name"])
def test_nodes_that_were_away_are_looked_at_by_name_or_a_day_at_a_time(
    desk: Desk, fake: FakePrometheus, nodes: int, stretches: int
) -> None:
    away = [({"node": f"gpu-{number}"}, "1") for number in range(nodes)]
    fake.answers["group by (node) (count_over_time(gpusharing_gpu_seconds_total"] = vector(*away)
    asked = heard_by(fake)
    desk.type("cost", "--prometheus", fake.url, "--window", "4d")
    looks = [query for query in asked if query.startswith("count_over_time(timestamp(")]
    assert len(looks) == stretches
    assert all(('node=~"gpu-0|gpu-1|gpu-2"' in query) == (nodes == 3) for query in looks)


@pytest.mark.parametrize("name", ['x"} or vector(1) #', "A b", "a\\nb"])
def test_a_name_that_is_no_nodes_is_not_put_into_a_query(desk: Desk, fake: FakePrometheus, name: str) -> None:
    fake.answers["group by (node) (count_over_time(gpusharing_gpu_seconds_total"] = vector(({"node": name}, "1"))
    asked = heard_by(fake)
    assert ask(desk, fake).status == DONE
    assert asked
    assert not any(name in query for query in asked)


def test_a_short_window_asks_for_no_day_of_anything(desk: Desk, fake: FakePrometheus) -> None:
    asked = heard_by(fake)
    assert desk.type("cost", "--prometheus", fake.url, "--window", "6h").err == ""
    spans = {span for query in asked for span in re.findall(r"\[(\w+)", query)}
    assert spans == {"21600s", "21600001ms", "20400s", "600s", "300s"}

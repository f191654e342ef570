"""Values of the planner: equal by content, and frozen by mypy, which costs the running program nothing."""

from dataclasses import replace
from pathlib import Path

from gpusharing import planning
from gpusharing.planning.vocabulary.values import value


@value
class Point:
    x: int
    y: int = 0


@value(eq=False)
class Named:
    name: str


@value(order=True)
class Rank:
    number: int


def test_values_are_equal_and_hashed_by_content_unless_they_say_otherwise() -> None:
    assert Point(1) == Point(1, 0)
    assert len({Point(1), replace(Point(2), x=1), Point(1, 1)}) == 2
    assert Named("a") != Named("a")
    assert len({Named("a"), Named("a")}) == 2
    assert Rank(1) < Rank(2)


def test_mypy_sees_who_assigns_a_field() -> None:
    point = Point(1)
    point.x = 2  # type: ignore[misc]  # if mypy said nothing here, it would call this comment unused, and CI would fail
    assert point == Point(2)


def test_the_planner_makes_its_values_in_one_way() -> None:
    files = sorted(Path(planning.__file__).parent.rglob("*.py"))
    assert len(files) > 60
    assert [path.name for path in files if "frozen=True" in path.read_text()] == []

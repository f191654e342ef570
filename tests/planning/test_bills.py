"""Bills add up to the cent (kubectl_gpusharing/usage/bills.py)."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubectl_gpusharing.usage.bills import HOUR, Basis, Bill, Cell, Part, Price, apportion, make_bill

DOLLARS = Price(Fraction("3.20"), "USD", "policy")
SLICE = "nvidia.com/mig-1g.20gb"


def held(tenant: str, *, policy: str = "pool-a", price: Price | None = DOLLARS, resource: str = SLICE) -> Cell:
    return Cell(policy, tenant, Part.HELD, resource, Basis.MEASURED, price)


def nobody(part: Part, *, policy: str = "pool-a", price: Price | None = DOLLARS) -> Cell:
    return Cell(policy, "", part, SLICE if part is Part.IDLE else "", Basis.NONE, price)


def told(bill: Bill) -> list[tuple[str, str, int | None]]:
    return [(cell.tenant or f"({cell.part})", row.currency, row.cents) for cell, row in bill.rows]


def test_a_pool_of_32_gpus_for_a_week_costs_its_gpu_hours_times_the_price() -> None:
    counted = {held("team-a"): 2520 * HOUR, held("team-b"): 1554 * HOUR, nobody(Part.IDLE): 1302 * HOUR}
    bill = make_bill(counted)
    assert told(bill) == [("team-a", "USD", 806_400), ("team-b", "USD", 497_280), ("(idle)", "USD", 416_640)]
    ((_, _, pool),), ((total, _),) = bill.pools, bill.totals
    assert (pool.micros, pool.cents) == (32 * 168 * HOUR, 1_720_320) == (total.micros, total.cents)


def test_four_quarters_of_a_gpu_for_an_hour_are_an_hour_of_a_gpu() -> None:
    """Also where a quarter has no whole number of cents (HAMi#3073 asks for this)."""
    price = Price(Fraction("3.33"), "USD", "policy")
    bill = make_bill({held(f"team-{name}", price=price): HOUR // 4 for name in "abcd"})
    assert [row.cents for _, row in bill.rows] == [84, 83, 83, 83]
    assert bill.totals[0][0].cents == 333


def test_nothing_is_converted_and_what_has_no_price_has_no_amount() -> None:
    euros = Price(Fraction(2), "EUR", "policy")
    bill = make_bill(
        {
            held("team-a"): HOUR,
            held("team-a", policy="pool-e", price=euros): HOUR,
            held("team-a", policy="pool-x", price=None): HOUR,
        }
    )
    assert told(bill) == [("team-a", "EUR", 200), ("team-a", "USD", 320), ("team-a", "", None)]
    assert [(total.currency, total.cents) for total, _ in bill.totals] == [
        ("EUR", 200), ("USD", 320), ("", None)
    ]  # fmt: skip
    assert [(policy, pool.cents) for policy, _, pool in bill.pools] == [
        ("pool-a", 320), ("pool-e", 200), ("pool-x", None)
    ]  # fmt: skip


def test_a_price_that_changed_is_applied_to_the_time_in_which_it_held() -> None:
    dearer = Price(Fraction(4), "USD", "OpenCost")
    bill = make_bill({held("team-a"): HOUR, held("team-a", price=dearer): HOUR})
    assert told(bill) == [("team-a", "USD", 720)]
    assert bill.pools[0][1] == (DOLLARS, dearer)


def test_by_policy_each_pool_has_its_own_idle_time() -> None:
    counted = {
        nobody(Part.IDLE): HOUR,
        nobody(Part.IDLE, policy="pool-b"): HOUR,
        nobody(Part.STRANDED, policy="pool-b"): HOUR,
    }
    rows = make_bill(counted, by_policy=True).rows
    assert [(cell.policy, cell.part) for cell, _ in rows] == [
        ("pool-a", Part.IDLE),
        ("pool-b", Part.IDLE),
        ("pool-b", Part.STRANDED),
    ]
    assert [row.cents for _, row in make_bill(counted).rows] == [640, 320]


@pytest.mark.parametrize("counted", [{held("a"): -1}, {held("a", price=Price(Fraction(-1), "USD", "policy")): HOUR}])
def test_neither_time_nor_price_is_below_0(counted: dict[Cell, int]) -> None:
    with pytest.raises(ValueError, match="neither time nor price may be negative"):
        make_bill(counted)


def test_no_time_is_no_bill() -> None:
    assert make_bill({held("team-a"): 0}) == Bill((), (), ())


PRICES = [
    None,
    *(
        Price(Fraction(amount), currency, source)
        for amount in ("0", "0.333333", "3.20", "98.32")
        for currency in ("USD", "EUR")
        for source in ("OpenCost", "policy")
    ),
]
CELLS = st.builds(
    Cell,
    policy=st.sampled_from(["pool-a", "pool-b", ""]),
    tenant=st.sampled_from(["team-a", "team-b", ""]),
    part=st.sampled_from(Part),
    resource=st.sampled_from([SLICE, "nvidia.com/gpu", ""]),
    basis=st.sampled_from(Basis),
    price=st.sampled_from(PRICES),
)


def exact(counted: dict[Cell, int], currency: str, policy: str | None = None) -> Fraction:
    return sum(
        (
            cell.price.amount * 100 * micros / HOUR
            for cell, micros in counted.items()
            if cell.price and cell.price.currency == currency and policy in (None, cell.policy)
        ),
        Fraction(0),
    )


@given(st.dictionaries(CELLS, st.integers(0, 10**13), max_size=40), st.booleans())
def test_tenants_idle_stranded_and_transition_are_the_pool_and_the_pools_the_total(
    counted: dict[Cell, int], by_policy: bool
) -> None:
    bill = make_bill(counted, by_policy=by_policy)
    for total, parts in bill.totals:
        rows = [(cell, row) for cell, row in bill.rows if row.currency == total.currency]
        pools = [(policy, pool) for policy, _, pool in bill.pools if pool.currency == total.currency]
        assert sum(row.micros for _, row in rows) == sum(pool.micros for _, pool in pools) == total.micros
        if not total.currency:
            assert {row.cents for _, row in rows} | {pool.cents for _, pool in pools} | {total.cents} == {None}
            continue
        assert sum(row.cents or 0 for _, row in rows) == sum(parts.values()) == total.cents
        for policy, pool in pools:
            assert pool.cents == round(exact(counted, total.currency, policy))
            if by_policy:
                own = [row for cell, row in rows if cell.policy == policy]
                assert sum(row.cents or 0 for row in own) == pool.cents
    assert sum(row.micros for _, row in bill.rows) == sum(counted.values())


@given(st.lists(st.fractions(0, 100), min_size=1, max_size=20))
def test_no_part_is_off_by_a_cent(parts: list[Fraction]) -> None:
    found = apportion(parts, round(sum(parts, Fraction(0))))
    assert sum(found) == round(sum(parts, Fraction(0)))
    assert all(abs(one - each) < 1 for one, each in zip(found, parts, strict=True))

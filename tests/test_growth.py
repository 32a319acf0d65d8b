"""Shares of a budget as powers of the limit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.growth import Point

POSITIVE = st.floats(1e-3, 1e3)


@given(limit=st.floats(1e-6, 1.0), factor=st.floats(1.1, 100.0), power=st.floats(0.4, 2.5), share=POSITIVE)
def test_a_power_law_is_found_and_followed(limit, factor, power, share):
    def law(at):
        return 0.5 * (at / limit) ** power

    one, other = Point(limit, law(limit)), Point(limit * factor, law(limit * factor))
    if other.share > 1e3:
        return
    found = one.power_to(other)
    assert found == pytest.approx(power)
    assert found == pytest.approx(other.power_to(one))
    assert law(one.limit_of(share, found)) == pytest.approx(share, rel=1e-6)


def test_what_tells_nothing_is_kept_in_bounds():
    nothing, all_of_it = Point(1.0, 0.0), Point(2.0, math.inf)
    assert 0.0 < nothing.height < all_of_it.height < math.inf
    assert 0.0 < nothing.power_to(all_of_it) < 10.0
    # the share falls, as noise may have it: still some step in the right direction
    assert Point(1.0, 0.5).power_to(Point(2.0, 0.4)) > 0.0
    assert nothing.limit_of(1.0, 1.0) > nothing.limit
    assert all_of_it.limit_of(1.0, 1.0) < all_of_it.limit

"""A configuration names a part for each product of a layer that is trained."""

from __future__ import annotations

import pytest

from ajour.terms.kernel import config_of


@pytest.mark.parametrize(
    ("config", "forward", "dx", "dw"),
    [("", "", "", ""), ("a", "a", "a", ""), ("a / b", "a", "b", ""), ("a b / c / d e", "a b", "c", "d e")],
)
def test_dx_goes_by_the_forward_and_dw_by_the_default_where_none_is_named(
    config: str, forward: str, dx: str, dw: str
) -> None:
    assert [config_of(config, product) for product in ("forward", "dx", "dw")] == [forward, dx, dw]

"""cuda_sm80 says what it does not take, and how it would lie over a device: plain arithmetic, without one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajour._native import HAS_CUDA, native
from ajour.ops import NM_LINEAR
from ajour.ops.nm_linear import sm80_kernel
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from ajour.terms.problem import Problem

A100 = native.DeviceLimits(108, 163 << 10, 164 << 10)
SMALL = native.DeviceLimits(48, 99 << 10, 100 << 10)  # consumer cards
TILES = ((4, 2, 64), (2, 4, 64), (2, 2, 64), (2, 2, 32))
KERNEL = NM_LINEAR.kernel("cuda_sm80")


def problem(**changed: object) -> Problem:
    values: dict[str, object] = {"pattern": NM(2, 4), "m": 512, "n": 4096, "k": 4096, "dtype": "bfloat16"}
    values |= {"device": "cuda", "capability": (8, 0)}
    return Problem("nm_linear", **(values | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"device": "cpu"}, "it runs on CUDA, this layer is on cpu"),
        ({"pattern": NM(1, 4)}, "it takes 2:4, .*; this pattern is 1:4"),
        ({"dtype": "float32"}, "it takes bfloat16 and float16, this layer is float32"),
        ({"m": 32}, "it is for 33 rows and more, these are 32 rows"),
        ({"capability": (7, 5)}, "it needs compute capability 8.0, this device has 7.5"),
    ],
    ids=str,
)
def test_it_refuses_with_a_sentence(changed: dict[str, object], expected: str) -> None:
    if changed.get("device") != "cpu" and not HAS_CUDA:
        expected = "ajour was built without CUDA"
    reason = KERNEL.why_not(problem(**changed))
    assert reason is not None
    with pytest.raises(KernelError, match=expected):
        raise KernelError(reason)


def test_it_takes_every_later_card_and_every_side() -> None:
    if not HAS_CUDA:
        pytest.skip("ajour was built without CUDA: nothing was said of what cuda_sm80 takes")
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        for n, k, m in ((1, 1, 33), (4097, 31, 100000), (128, 4096, 64)):
            assert KERNEL.why_not(problem(capability=capability, n=n, k=k, m=m)) is None


def test_every_configuration_is_understood_and_fits_every_card() -> None:
    for m in (33, 64, 65, 128, 129, 1024, 4096):
        configs = KERNEL.configs(problem(m=m))
        assert len(set(configs)) == len(configs)
        for config in configs:
            tile, stages, blocks = sm80_kernel.parse_config(config)
            for limits in (A100, SMALL):
                shape = native.Sm80Shape(m, 4096, 4096, *tile, stages, blocks, limits)
                assert 2 <= shape.stages <= stages
    assert sm80_kernel.parse_config("") == sm80_kernel.parse_config("n128 m128 s3")


@pytest.mark.parametrize("config", ["n128", "n64 m64 s3", "n128 m128 s3 c", "fast", "n128 m128 s3 "])
def test_another_configuration_is_refused(config: str) -> None:
    with pytest.raises(KernelError, match="is no configuration of cuda_sm80; expected something like 'n128 m128 s3'"):
        sm80_kernel.parse_config(config)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 700)), tile=st.sampled_from(TILES),
    stages=st.integers(2, 7), blocks=st.integers(0, 3), processors=st.integers(1, 140),
)  # fmt: skip
def test_tiles_cover_y_once_and_stripes_share_the_work(
    sizes: tuple[int, int, int], tile: tuple[int, int, int], stages: int, blocks: int, processors: int
) -> None:
    m, n, k = sizes
    shape = native.Sm80Shape(m, n, k, *tile, stages, blocks, native.DeviceLimits(processors, 163 << 10, 164 << 10))
    columns, rows = -(-n // (64 * tile[0])), -(-m // (tile[1] * tile[2]))
    places = [shape.place(i) for i in range(shape.tiles)]
    assert sorted(places) == [(column, row) for column in range(columns) for row in range(rows)]
    assert shape.stripes == (min(blocks * processors, shape.tiles * -(-k // 64)) if blocks else shape.tiles)
    assert blocks or not shape.scratch_bytes, "a tile of its own for each block is shared with nobody"
    assert shape.shared_bytes <= 163 << 10


def test_neighbours_are_multiplied_together_for_the_l2_cache() -> None:
    """A wave of 108 blocks of a large layer reads no more panels and rows than a square of tiles would, and a half."""
    shape = native.Sm80Shape(8192, 8192, 4096, 2, 2, 64, 3, 0, A100)
    for first in range(0, shape.tiles - 108, 108):
        wave = [shape.place(i) for i in range(first, first + 108)]
        assert len({column for column, _ in wave}) + len({row for _, row in wave}) <= 1.5 * 2 * 108**0.5


def test_what_can_not_be_laid_out_is_refused() -> None:
    with pytest.raises(KernelError, match="no kernel was compiled for tiles of 64 out features by 64 rows"):
        native.Sm80Shape(1, 1, 1, 1, 2, 32, 2, 0, A100)
    with pytest.raises(KernelError, match="it needs 69648 bytes of shared memory for tiles of 256 out features by 128"):
        native.Sm80Shape(100, 256, 64, 4, 2, 64, 2, 0, native.DeviceLimits(1, 48 << 10, 64 << 10))
    with pytest.raises(KernelError, match="found 0 rows, 1x1 and s2"):
        native.Sm80Shape(0, 1, 1, 2, 2, 32, 2, 0, A100)
    with pytest.raises(KernelError, match="it takes at most 268435455 steps"):
        native.Sm80Shape(2**30, 2**20, 2**20, 2, 2, 32, 2, 0, A100)

"""The reader of pickles: tensors and plain containers come back; nothing else does, and nothing runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ajour.importers.pickled_names import UnreadableError
from ajour.importers.torch_file import TorchFile
from ajour.importers.unpickling import DamagedError, unpickle
from ajour.terms.errors import FileError


def loads(data: bytes) -> Any:
    def refuse(place: Any) -> Any:
        raise DamagedError("no storage here")

    return unpickle(io.BytesIO(data), len(data), refuse)


PLAIN = [
    None, True, False, 0, -1, 255, 256, 65536, -(2**31), 2**63, -(2**200), 1.5, float("inf"), "", "a", "ö\n" * 300, b"",
    b"\x00\xff", b"x" * 300, [], [1, [2, [3]]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {"b": [1, (2,)]}},
    {1: 2, None: 3, b"k": 4}, set(), {1, 2}, frozenset({3}), bytearray(b"ab"), "x" * 70000,
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back_from_every_protocol(protocol: int) -> None:
    for value in PLAIN:
        found = loads(pickle.dumps(value, protocol))
        assert list(found) == list(value) if isinstance(value, set | frozenset) else found == value, value
    assert loads(pickle.dumps(OrderedDict(b=1, a=2), protocol)) == {"b": 1, "a": 2}
    assert loads(pickle.dumps(defaultdict(list, {"k": [1]}), protocol)) == {"k": [1]}
    shared = ["x"]
    twice = loads(pickle.dumps([shared, shared], protocol))
    assert twice[0] is twice[1]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("number", [np.int64(7), np.int32(-7), np.float64(1.5), np.uint8(255), np.bool_(True)])
def test_numbers_of_numpy_are_plain_numbers(number: Any, protocol: int) -> None:
    found = loads(pickle.dumps(number, protocol))
    assert found == number
    assert type(found) in (int, float, bool)


class Odd:
    pass


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Odd(), "test_unpickling.Odd"),
        (Path("x"), "pathlib.PosixPath"),
        (print, "print"),
        (np.zeros(3), "numpy.*_reconstruct|numpy.ndarray|_frombuffer"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (slice(1, 2), "slice"),
        (complex(1, 2), "complex"),
        (nn.Parameter, "torch.nn.parameter.Parameter"),
        (np.dtype([("a", "i8")]), "numpy.dtype"),
    ],
)
def test_anything_else_is_refused_by_its_name(value: object, name: str, protocol: int) -> None:
    with pytest.raises(UnreadableError, match=name):
        loads(pickle.dumps(value, protocol))


HOSTILE = [
    b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.",
    b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    b"cos\nsystem\n(S'ls'\ntR.",
    b"(S'ls'\nios\nsystem\n.",
    b"\x80\x02ctorch\nSize\n}X\x0c\x00\x00\x00__defaults__)sb.",  # a state set on a function of ours
    b"\x80\x02ctorch\nfloat32\n)R.",
    b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    b"\x80\x02\x82\x01.",  # the extension registry
    b"\x80\x05\x97.",  # out-of-band buffers
]


@pytest.mark.parametrize("data", HOSTILE)
def test_hostile_pickles_run_nothing(data: bytes) -> None:
    with pytest.raises((UnreadableError, DamagedError)):
        loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80\x09.", b"\x80\x02]", b"\x80\x02h\x07.", b"\x80\x02(.", b"\x80\x02u.", b"\x80\x02e.",
        b"\x80\x02R.",
        b"\x80\x02B\xff\xff\xff\x7fx.", b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7fx.", b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        b"\x80\x02X\xff\xff\xff\xffx.", b"\x80\x02}]]s.", b"\x80\x02}K\x01(K\x02u.", b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02c" + b"x" * 5000,
    ],
)  # fmt: skip
def test_damaged_pickles_are_told(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(data)


def test_a_giant_place_in_the_memo_takes_no_memory() -> None:
    assert loads(b"\x80\x02]r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.") == []


def test_keys_that_are_endless_to_hash_are_refused() -> None:
    nested = b"\x80\x02}K\x01\x85" + b"2\x86" * 60 + b"K\x00s."
    with pytest.raises(ValueError, match="a tuple is the key of a dict"):
        loads(nested)


def repacked(path: Path, name: str, change: Any) -> None:
    """The same torch file with one record changed."""
    with zipfile.ZipFile(path) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for key, data in records.items():
            new.writestr(key, change(data) if key.endswith(name) else data)


def test_every_dtype_and_view_comes_back(tmp_path: Path) -> None:
    w = torch.randn(6, 8)
    kinds = [
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16,
    ]  # fmt: skip
    saved = {str(kind): (w * 10).to(kind) for kind in kinds}
    saved |= {"t": w.t(), "row": w[2], "part": w[1:3, ::2], "scalar": torch.tensor(3.5), "none": torch.empty(0, 4)}
    saved["parameter"] = nn.Parameter(w)
    for settings in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": saved}, tmp_path / "x.pt", **settings)
        file = TorchFile(tmp_path / "x.pt")
        for name, tensor in saved.items():
            if name == "torch.uint16" and settings:
                continue
            found = file.read(file.contents["model"][name])
            assert found.dtype == tensor.dtype
            narrow = found.dtype.itemsize == 1  # torch.equal takes no float8
            assert torch.equal(*(t.detach().view(torch.uint8) if narrow else t.detach() for t in (found, tensor)))


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        ("data.pkl", lambda data: data.replace(b"K\x06K\x08\x86", b"K\x60K\x08\x86"), "reaches beyond|does not take"),
        ("data.pkl", lambda data: data.replace(b"FloatStorage", b"QuintStorage"), "torch.QuintStorage"),
        ("byteorder", lambda data: b"big", "numbers of another byte order"),
        ("data/0", lambda data: data[:-1], "missing or too short"),
    ],
)
def test_records_that_lie_are_refused(tmp_path: Path, record: str, change: Any, message: str) -> None:
    torch.save({"w": torch.randn(6, 8)}, tmp_path / "x.pt")
    repacked(tmp_path / "x.pt", record, change)
    with pytest.raises(FileError, match=message):
        TorchFile(tmp_path / "x.pt")


def test_expanded_tensors_compressed_records_and_scripts_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(2**40)}, tmp_path / "x.pt")
    with pytest.raises(FileError, match=r"a tensor of \(1099511627776,\) that repeats 1 values"):
        TorchFile(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\x02}." + b"\x00" * 10**6)
    with pytest.raises(FileError, match="a record is compressed or encrypted"):
        TorchFile(tmp_path / "y.pt")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "z.pt"))
    with pytest.raises(FileError, match="holds TorchScript code"):
        TorchFile(tmp_path / "z.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_a_conjugate_or_a_negative_are_refused_not_read_without_it(tmp_path: Path, legacy: bool) -> None:
    z = torch.complex(torch.randn(4), torch.randn(4))
    for view, flag in ((z.conj(), "conj"), (z.conj().imag, "neg")):
        torch.save({"w": view}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(FileError, match=f"with the flag '{flag}'"):
            TorchFile(tmp_path / "x.pt")
        torch.save({"w": view.resolve_conj().resolve_neg()}, tmp_path / "x.pt")
        file = TorchFile(tmp_path / "x.pt")
        assert torch.equal(file.read(file.contents["w"]), view)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


REPEATED = [
    text("a" * 100_000) + b"q\x00c_codecs\nencode\nq\x01" + text("latin1") + b"q\x02" + b"h\x01h\x00h\x02\x86R" * 500,
    b"(" + b"".join(b"M" + i.to_bytes(2, "little") for i in range(20_000)) + b"lq\x00cbuiltins\nset\nq\x01"
    + b"h\x01h\x00\x85R" * 500,
    b"(" + b"K\x01K\x02\x86" * 20_000 + b"lq\x00ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 500,
]  # fmt: skip


@pytest.mark.parametrize("data", REPEATED)
def test_one_long_value_is_not_copied_again_and_again(data: bytes) -> None:
    with pytest.raises(DamagedError, match="far more of its bytes than they are"):
        loads(b"\x80\x02" + data + b".")


def wide(levels: int) -> bytes:
    """A list of ten lists of ten lists ..., whose text has 10**levels brackets."""
    made = b"]q\x00"
    for level in range(levels):
        made += b"(" + (b"h" + bytes([level])) * 10 + b"lq" + bytes([level + 1])
    return made


@pytest.mark.parametrize(
    "data",
    [
        wide(30) + text("x") + b"\x93", b"c_codecs\nencode\n" + text("x") + wide(30) + b"\x86R",
        b"cnumpy\ndtype\n" + wide(30) + b"\x85R",
    ],
)  # fmt: skip
def test_values_that_are_endless_to_print_are_refused_unprinted(data: bytes) -> None:
    with pytest.raises((UnreadableError, DamagedError)):
        loads(b"\x80\x04" + data + b".")


def test_an_old_file_s_version_that_is_endless_to_print_is_refused(tmp_path: Path) -> None:
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    (tmp_path / "x.pt").write_bytes(magic + b"\x80\x02" + wide(30) + b"." + b"\x80\x02}.")
    with pytest.raises(FileError, match="its version is none that torch writes"):
        TorchFile(tmp_path / "x.pt")


def test_a_key_longer_than_python_prints_is_refused() -> None:
    with pytest.raises(ValueError, match="of more than 64 bits"):
        loads(b"\x80\x02}\x8b" + (3000).to_bytes(4, "little") + b"\x01" * 3000 + b"Ns.")

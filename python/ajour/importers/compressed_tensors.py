"""compressed-tensors: the bitmask files that llm-compressor wrote (sparse-24-bitmask and sparse-bitmask)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ajour.importers.tool import PART
from ajour.terms.errors import FileError

FORMATS = ("sparse-24-bitmask", "sparse-bitmask")
VALUES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_SCALES = ("_scale", "_scale_inv")
PARTS = ("compressed", "bitmask", "shape", "row_offsets")


def refuse(config: Mapping[str, Any], where: str) -> None:
    """Raises FileError for what the config says is not held as sparse weights alone: marlin-24, sparse + quantized."""
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(quantization, Mapping):
        raise FileError(f"{where}: config.json's quantization_config is no object")
    named = quantization.get("format"), quantization.get("quant_method"), quantization.get("checkpoint_format")
    if "marlin-24" in named or "gptq_marlin_24" in named:
        raise FileError(f"{where} is a marlin-24 checkpoint (4-bit and 2:4 packed together), which is not supported")
    sparsity = quantization.get("sparsity_config") or {}
    form = sparsity.get("format") if isinstance(sparsity, Mapping) else None
    if form in FORMATS and quantization.get("config_groups"):
        raise FileError(
            f"{where} is both {form} and quantized, which is not supported; expected a checkpoint that is sparse only"
        )
    if form not in (None, "dense", *FORMATS):
        raise FileError(
            f"{where} is of the sparsity format {form!r}; the ones that can be read are {', '.join(FORMATS)}"
        )


def refuse_quantized(config: Mapping[str, Any], where: str) -> None:
    """Raises FileError for a checkpoint whose numbers are codes, not weights."""
    for quantization in (config.get("quantization_config"), config.get("compression_config")):
        if not isinstance(quantization, Mapping):
            continue
        method = quantization.get("quant_method")
        if quantization.get("config_groups") or method not in (None, "compressed-tensors"):
            raise FileError(
                f"{where} is quantized ({str(method)[:40]}), which is not supported; read the model it was made of"
            )


def refuse_codes(tensors: Mapping[str, Tensor], where: str) -> None:
    """The same by what a file holds, for one that comes without its config.json."""
    for name in tensors:
        weight = next((name.removesuffix(end) for end in _SCALES if name.endswith(f"weight{end}")), None)
        packed = f"{weight}_packed" in tensors
        if weight is not None and (packed or (weight in tensors and tensors[weight].dtype not in VALUES[:4])):
            raise FileError(
                f"{where}: {weight!r} is quantized (its scale is {name!r}), which is not supported; read the model it "
                "was made of"
            )


def refuse_names(names: Mapping[str, object], where: str) -> None:
    """The same by what a file holds, for one that comes without its config.json."""
    for name in names:
        layer, _, leaf = name.rpartition(".")
        if leaf == "meta" and f"{layer}.weight_packed" in names:
            raise FileError(
                f"{where}: {layer!r} is of marlin-24 (4-bit and 2:4 packed together), which is not supported"
            )
        if leaf == "compressed" and any(f"{path}_scale" in names for path in (layer, f"{layer}.weight")):
            raise FileError(f"{where}: {layer!r} is both sparse and quantized (it has a scale), which is not supported")


def compressed_layers(names: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """layer -> part -> tensor's name, for both layouts of keys: `P.compressed` and the older `P.weight.compressed`."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if name.endswith(".compressed"):
            prefix = name.removesuffix(".compressed")
            parts = {part: f"{prefix}.{part}" for part in PARTS if f"{prefix}.{part}" in names}
            found[prefix.removesuffix(".weight")] = parts
    return found


def sizes(tensors: Mapping[str, Tensor], layer: str, parts: Mapping[str, str]) -> tuple[int, int]:
    """(n, k) of one layer; raises FileError if a part is missing or they are no sizes."""
    for part in PARTS[:3]:
        if part not in parts:
            raise FileError(f"layer {layer!r}: {part} is missing; a compressed weight has {', '.join(PARTS[:3])}")
    shape = tensors[parts["shape"]]
    sides = shape.flatten()[:3].tolist()
    if len(sides) != 2 or shape.is_floating_point() or shape.is_complex() or min(sides) < 0 or max(sides) >= 2**31:
        raise FileError(f"{parts['shape']}: expected two sizes, found {sides}")
    return int(sides[0]), int(sides[1])


def decompress(tensors: Mapping[str, Tensor], layer: str, parts: Mapping[str, str]) -> Tensor:
    """The dense weight [n, k] of one layer; raises FileError, naming the tensor, if its parts don't agree."""
    n, k = sizes(tensors, layer, parts)
    values, bits = tensors[parts["compressed"]], tensors[parts["bitmask"]]
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (n, -(-k // 8)):
        raise FileError(f"{parts['bitmask']}: expected uint8 {(n, -(-k // 8))}, found {bits.dtype} {tuple(bits.shape)}")
    if values.dtype not in VALUES:
        raise FileError(f"{parts['compressed']}: expected floating-point values, found {values.dtype}")
    dense, flat, counts, start = values.new_zeros(n, k), values.flatten(), [], 0
    for rows, some in zip(dense.split(max(1, PART // max(k, 1))), bits.split(max(1, PART // max(k, 1))), strict=True):
        live = _unpacked(some)
        if bool(live[:, k:].any()):
            raise FileError(f"{parts['bitmask']}: a bit is set beyond the {n}x{k} weight")
        live = live[:, :k]
        counts.append(live.sum(-1))
        end = start + int(counts[-1].sum())
        if end <= flat.numel():
            rows[live] = flat[start:end]
        start = end
    if flat.numel() != start or values.dim() not in (1, 2):
        raise FileError(f"{parts['compressed']}: expected {start} values, found {tuple(values.shape)}")
    _check_rows(tensors, layer, parts, values, torch.cat(counts))
    return dense


def _unpacked(bits: Tensor) -> Tensor:
    """bool [n, 8 * bytes], the lowest bit of a byte first."""
    return torch.stack([(bits >> place) & 1 for place in range(8)], dim=-1).view(torch.bool).flatten(1)


def _check_rows(
    tensors: Mapping[str, Tensor], layer: str, parts: Mapping[str, str], values: Tensor, counts: Tensor
) -> None:
    """What else a file says of the non-zeros of each row."""
    if values.dim() == 2 and (values.shape[0] != len(counts) or bool((counts != values.shape[1]).any())):
        raise FileError(f"{parts['bitmask']}: expected {values.shape[1]} bits in every row of {layer!r}")
    if "row_offsets" in parts:
        offsets = tensors[parts["row_offsets"]].flatten()
        if not torch.equal(offsets.long(), counts.cumsum(0) - counts):
            raise FileError(f"{parts['row_offsets']} does not agree with the bits that are set")

"""MODEL, as the command line means it: a Hugging Face folder or `package.module:factory`; and inputs for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ajour.terms.errors import FileError, MachineError


def load_model(spec: str, dtype: torch.dtype | None = None, device: str = "cpu") -> nn.Module:
    """The model in eval mode. Raises FileError if there is none, MachineError if transformers is needed and missing."""
    if Path(spec).is_dir():
        model = _from_folder(Path(spec))
    elif Path(spec).is_file():
        raise FileError(
            f"{spec} holds weights but no model; `ajour inspect` reads it. For the rest give the folder that also "
            "holds its config.json, or `package.module:factory`, a callable that builds the model and loads the file"
        )
    else:
        model = _from_factory(spec)
    return model.to(device=device, dtype=dtype).eval()


def _from_folder(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder} has no config.json; expected a folder as Hugging Face's save_pretrained writes it")
    if importlib.util.find_spec("transformers") is None:
        raise MachineError("a Hugging Face folder needs transformers; install it with: pip install transformers")
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = transformers.AutoModel
    for architecture in config.architectures or ():
        kind = getattr(transformers, architecture, kind)
    model: nn.Module = kind.from_pretrained(folder, local_files_only=True)
    return model


def _from_factory(spec: str) -> nn.Module:
    module_name, found, factory_name = spec.partition(":")
    if not found:
        raise FileError(f"{spec!r} is no folder, no file and no `package.module:factory`")
    sys.path.insert(0, "")  # a module of the working directory, as with python -m
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise FileError(
            f"{spec!r}: {error}; is the package installed, or the working directory the right one?"
        ) from None
    finally:
        sys.path.remove("")
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise FileError(f"{spec!r}: {module_name} has no callable {factory_name!r}")
    model = factory()
    if not isinstance(model, nn.Module):
        raise FileError(f"{spec!r}: expected the factory to return an nn.Module, found {type(model).__name__}")
    return model


def parse_shape(text: str) -> tuple[int, ...]:
    """`32x128` -> (32, 128); raises ValueError."""
    sides = tuple(int(side) for side in text.lower().split("x"))
    if not sides or any(side < 1 for side in sides):
        raise ValueError(f"{text!r} is no shape; expected positive sizes like 32x128")
    return sides


def make_example(model: nn.Module, shape: tuple[int, ...]) -> Tensor | dict[str, Any]:
    """Random inputs: token ids for a model whose config names a vocabulary, else normal floats of the model's dtype."""
    generator = torch.Generator().manual_seed(0)
    first = next(model.parameters(), torch.empty(0))
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocabulary is None:
        return torch.randn(shape, generator=generator).to(first)
    ids = torch.randint(int(vocabulary), shape, generator=generator).to(first.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs

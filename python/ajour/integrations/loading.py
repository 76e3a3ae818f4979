"""MODEL, as the command line means it: a Hugging Face folder, a file or `package.module:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from ajour.diagnosis import import_failure
from ajour.importers import read
from ajour.integrations.foreign import Foreign, one_line
from ajour.planning.plan import Plan
from ajour.terms.errors import FileError, MachineError, PlanError, UnknownModelError

# what transformers trips over, once a folder's config or weights are not what they say
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError)


def load_model(spec: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """The model in eval mode.

    Raises UnknownModelError if there is none (as in a file of weights), FileError if it is damaged, MachineError if
    transformers, a package that a factory needs, or the device is missing.
    """
    device = torch.device(device)
    check_device(device)
    if spec and Path(spec).is_dir():
        model = _from_folder(Path(spec))
    elif Path(spec).is_file():
        raise UnknownModelError(
            f"{spec} is a file, which holds weights but no model to run: `ajour inspect` takes it, with --rows also "
            "`ajour plan` and `ajour limits`. For the rest give the folder that also holds its config.json, or "
            "`package.module:factory`, a callable that builds the model and loads the file"
        )
    else:
        model = _from_factory(spec)
    return model.to(device=device, dtype=dtype).eval()


def check_device(device: torch.device) -> None:
    """Raises MachineError if torch does not see the device here."""
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise MachineError(
            "torch sees no CUDA device here; install a CUDA build of torch and check the driver with nvidia-smi, "
            "or use --device cpu"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"{device} does not exist; torch sees {torch.cuda.device_count()} CUDA devices here")


def _from_folder(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder} has no config.json; expected a folder as Hugging Face's save_pretrained writes it")
    if importlib.util.find_spec("transformers") is None:
        raise MachineError("a Hugging Face folder needs transformers; install it with: pip install transformers")
    if failure := import_failure("transformers"):
        raise MachineError(
            f"a Hugging Face folder needs transformers, and the one here is broken ({failure}); "
            "repair it with: pip install --force-reinstall transformers"
        )
    state = read(folder)  # by ajour's readers: masks applied, packed weights unpacked, what is damaged refused by name
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        config.__dict__.pop("quantization_config", None)  # transformers has no reader for what ajour has just unpacked
        kind = _architecture(folder, config)
        model, found = kind.from_pretrained(
            None, config=config, state_dict=state, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except ImportError as error:
        raise MachineError(f"{folder} needs a package that is missing: {one_line(error)}") from None
    except (*_DAMAGED, StrictDataclassError) as error:
        raise FileError(f"{folder} is no model that transformers can load: {one_line(error)}") from None
    _check_whole(folder, model, found)
    return model  # type: ignore[no-any-return]


def _architecture(folder: Path, config: Any) -> Any:
    """The class that config.json names; AutoModel where it names none."""
    import transformers

    names = config.architectures
    if not names:
        return transformers.MODEL_MAPPING[type(config)]
    kind = getattr(transformers, names[0], None)
    if not hasattr(kind, "from_pretrained"):
        raise FileError(
            f"{folder}: config.json asks for {names[0]!r}, which transformers {transformers.__version__} does not "
            "have; give `package.module:factory`, a callable that builds the model"
        )
    return kind


def _check_whole(folder: Path, model: nn.Module, found: dict[str, Any]) -> None:
    """Refuses a model some of whose weights transformers has made up."""
    other = sorted(name for name, *_ in found["mismatched_keys"])
    if other:
        raise FileError(f"{folder}: {other[0]} has another shape than config.json asks for ({len(other)} such tensors)")
    if lost := sorted(found["missing_keys"]):
        raise FileError(
            f"{folder} lacks {len(lost)} of the tensors that {type(model).__name__} has, such as {lost[0]}; "
            "save the whole model with save_pretrained"
        )


def _from_factory(spec: str) -> nn.Module:
    module_name, found, factory_name = spec.partition(":")
    if not found or not all(part.isidentifier() for part in module_name.split(".")):
        raise UnknownModelError(
            f"{spec!r} is no folder, no file and no `package.module:factory`; the working directory is {Path.cwd()}"
        )
    sys.path.insert(0, "")  # a module of the working directory, as with python -m
    try:
        with Foreign(lambda said: UnknownModelError(f"{module_name} raised {said}")):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownModelError(
                f"{spec!r}: {error}; is the package installed, and the working directory the right one?"
            ) from None
        raise MachineError(f"{spec!r} needs a package that is missing: {error}; install it") from None
    finally:
        sys.path.remove("")
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise UnknownModelError(f"{spec!r}: {module_name} has no callable {factory_name!r}")
    try:
        with Foreign(lambda said: UnknownModelError(f"{spec} raised {said}")):
            model = factory()
    except ModuleNotFoundError as error:
        raise MachineError(f"{spec!r} needs a package that is missing: {error}; install it") from None
    if not isinstance(model, nn.Module):
        raise UnknownModelError(f"{spec!r}: expected the factory to return an nn.Module, found {type(model).__name__}")
    return model


def read_plan(path: Path) -> Plan:
    """A plan that `ajour plan -o` wrote; raises FileError if the file holds none."""
    try:
        return Plan.from_json(path.read_text(encoding="utf-8", errors="replace"))
    except PlanError as error:
        raise FileError(f"{path}: {error}; make a plan with: ajour plan MODEL -o FILE") from None

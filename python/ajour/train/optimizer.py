"""MaskedOptimizer: what MaskedAdamW and MaskedSGD have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ajour.ops.masked_update.update import STATES, Update, UpdateOp
from ajour.terms.errors import KernelError, PatternError
from ajour.train.held import STORAGES, Held, local
from ajour.train.launch import Launch, Part
from ajour.train.mask import Mask
from ajour.train.masks import Masks, check_shape
from ajour.train.settings import column_table, row_table
from ajour.train.stored_state import checked, loaded_groups, paired

Key = tuple[Any, ...]


class MaskedOptimizer(Optimizer):
    """A torch optimizer that leaves masked-out weights at exactly +0.0, whatever their gradients are.

    params: as torch's optimizers take them. A mask belongs to a parameter by name, so give `model.named_parameters()`;
    `model.parameters()` is enough for masks that were made from this very model. Parameters without a mask are updated
    as torch would.
    masks: shared with whoever else was given them: after `masks[name] = ...` the next step goes on under the new mask.
    storage: "dense" keeps a moment for each weight, "compact" for each kept weight alone.
    master: 16-bit weights have a float32 original, which is what is updated; of kept entries alone if compact.
    stochastic_rounding: bfloat16 weights without a master are rounded up or down at random, so that small steps count
    on average; reproducible with `seed`.
    kernel: by name, for tests and comparisons; by default the first that takes the parameters.

    Raises PatternError by name for a mask of a parameter that isn't here or of another shape, and for a parameter under
    two masks; KernelError if no kernel takes a parameter. Masked-out weights are +0.0 as soon as the optimizer exists.
    """

    op: ClassVar[UpdateOp]
    _step_supports_amp_scaling = True  # GradScaler hands its scale over, and the step divides by it

    def __init__(
        self, params: Any, masks: Mapping[str, Mask] | None, defaults: dict[str, Any], *, storage: str, master: bool,
        stochastic_rounding: bool, seed: int, kernel: str | None,
    ) -> None:  # fmt: skip
        if storage not in STORAGES:
            raise KernelError(f"storage is one of {', '.join(STORAGES)}, found {storage!r}")
        self.masks = masks if isinstance(masks, Masks) else Masks(masks or {})
        self.storage, self.master, self.stochastic_rounding = storage, master, stochastic_rounding
        self.seed, self._kernel = seed, kernel
        self._held: dict[Tensor, Held] = {}
        self._uploaded: dict[Any, Any] = {}
        self._launches: list[Launch] = []
        self._prepared: tuple[int, list[str]] | None = None  # of what the launches were made, beside these two
        self._parameters: list[Tensor] = []
        self._states: list[dict[str, Any]] = []
        super().__init__(params, defaults)
        self._refuse_strangers()

    def _rule(self, group: Mapping[str, Any]) -> str:
        """The arithmetic of a group, one of RULES."""
        raise NotImplementedError

    def _columns(self, group: Mapping[str, Any], step: Any) -> tuple[float | Tensor, ...]:
        """What a kernel reads of a group, by column; step: this one counted, a number or float64 [parameters]."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and not self.defaults["capturable"] and bool(found_inf):
            return loss  # a capturable step leaves that to the kernel, as reading it waits for the device
        if not self._stand():
            self._prepare()
        taken = [launch.take_gradients() for launch in self._launches]
        for launch, grads in zip(self._launches, taken, strict=True):
            parts = [self._coefficients(part.group, part.advance(found_inf)) for part in launch.parts]
            coefficients = parts[0] if len(parts) == 1 else torch.cat(parts)
            stochastic = self.stochastic_rounding and launch.dtype == torch.bfloat16 and not launch.master
            launch.kernel.run(
                Update(
                    launch.rule, launch.slices, grads, coefficients, stochastic, grad_scale, found_inf, self._uploaded,
                    launch.table,
                )
            )  # fmt: skip
        for launch in self._launches:
            launch.finish()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; masks that were added to `masks` for these parameters hold from now on."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("param_names", [None] * len(group["params"]))
        known = self.masks.names_of(group["params"])
        for parameter, given, found in zip(group["params"], names, known, strict=True):
            name = given if given in self.masks else found
            if name is not None and found is not None and name != found:
                raise PatternError(f"{name!r} and {found!r} are one tied parameter under two masks; keep one of them")
            self._hold(parameter, str(name or given or f"parameter {len(self._held)}"), self.masks.get(str(name)))

    def masked_parameters(self) -> dict[str, Tensor]:
        """Name -> the parameter, for each that has a mask."""
        return {held.name: held.parameter for held in self._held.values() if held.mask is not None}

    def change_masks(self, masks: Mapping[str, Mask]) -> None:
        """Goes on under these masks, by name, all checked first; `self.masks` changes with them.

        Dropped weights become +0.0, regrown ones start there with states of zero, the others keep their states.
        """
        named = {held.name: held for held in self._held.values() if held.mask is not None}
        for name, mask in masks.items():
            if name not in named:
                raise PatternError(f"{name!r} has no mask in this optimizer; it has {', '.join(list(named)[:8])}, ...")
            check_shape(name, mask, named[name].parameter)
        for name, mask in masks.items():
            self.masks[name] = mask
            self._follow(named[name])

    def state_dict(self) -> dict[str, Any]:
        """As torch's. A state also holds the `mask` as bits, so that it can be loaded into the other storage."""
        for held in self._held.values():
            self._follow(held)
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state of either storage, or a dense one of torch's own optimizer of this kind.

        The masks of the state hold from now on. Raises FileError by name, before anything changes, for a state of
        another model or another kind of optimizer.
        """
        own = self.param_groups
        pairs = paired(own, self._held, state_dict)
        groups = loaded_groups(own, state_dict["param_groups"])
        moments = {p: STATES[self._rule(group)] for group in groups for p in group["params"]}
        found = {p: checked(self._held[p], saved, moments[p]) for p, saved in pairs.items()}
        for parameter, (mask, _) in found.items():
            held = self._held[parameter]
            if mask is not None and held.part != mask:
                self.masks[held.name] = mask
                held.take(mask)
        self.__setstate__({"state": defaultdict(dict), "param_groups": groups})
        for parameter, (_, state) in found.items():
            self.state[parameter] = self._stored(self._held[parameter], state)

    def _stored(self, held: Held, dense: Mapping[str, Tensor]) -> dict[str, Any]:
        """A state of moments in the parameter's own shape, as this optimizer keeps it."""
        w = held.local
        precise = torch.promote_types(w.dtype, torch.float32)
        step_device = w.device if self.defaults["capturable"] else "cpu"
        state: dict[str, Any] = {"step": dense["step"].to(step_device, copy=True)}
        state |= {name: held.as_stored(t.to(w.device, precise)) for name, t in dense.items() if name != "step"}
        state.pop("master", None)
        if self.master and w.dtype != precise:
            state["master"] = held.as_stored(dense.get("master", w).to(w.device, precise))
        if held.bits is not None:
            state["mask"] = held.bits
        return state

    def _hold(self, parameter: Tensor, name: str, mask: Mask | None) -> None:
        if mask is not None:
            check_shape(name, mask, parameter)
        part = local(parameter)
        if not part.is_floating_point():
            return  # an index of a sparse layer: it has no gradient
        kernel = self.op.choose(part.device.type, part.dtype, self._kernel)
        seed = (self.seed * 0x85EBCA6B + len(self._held) * 0xC2B2AE35) & 0xFFFFFFFF
        self._held[parameter] = Held(name, parameter, mask, kernel, compact=self.storage == "compact", seed=seed)

    def _refuse_strangers(self) -> None:
        here = {held.name for held in self._held.values() if held.mask is not None}
        for name in self.masks:
            if name not in here:
                raise PatternError(
                    f"a mask is for {name!r}, which is no parameter of this optimizer; give it "
                    "model.named_parameters(), or leave the mask out"
                )

    def _coefficients(self, group: Mapping[str, Any], step: Tensor) -> Tensor:
        """float64 [parameters, 9] for parameters of `group`; step: float64 [parameters], this one counted."""
        if self.defaults["capturable"]:
            return column_table(step, *self._columns(group, step))
        plain = {**group, "lr": float(group["lr"])}
        return row_table(step.tolist(), lambda each: self._columns(plain, each))

    def _trained(self) -> list[Tensor]:
        """The parameters that have a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _rules(self) -> list[str]:
        return [self._rule(group) for group in self.param_groups]

    def _stand(self) -> bool:
        """Whether the launches of the last step are those of this one, too."""
        kept, trained, states = self._prepared, self._trained(), list(self.state.values())
        return (
            kept == (self.masks.version, self._rules())
            and len(trained) == len(self._parameters) and all(map(is_, trained, self._parameters))
            and len(states) == len(self._states) and all(map(is_, states, self._states))
            and all(launch.stands() for launch in self._launches)
        )  # fmt: skip

    def _prepare(self) -> None:
        """Makes the launches for the parameters that have a gradient; their states exist afterwards."""
        found: dict[Key, tuple[list[Held], list[Part]]] = {}
        for group in self.param_groups:
            alike: dict[Key, list[Held]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(self._ready(group, self._held[parameter]), []).append(self._held[parameter])
            for key, each in alike.items():
                held, parts = found.setdefault(key, ([], []))
                held += each
                parts.append(Part(group, [self.state[h.parameter] for h in each]))
        self._launches = [Launch(key[0], key[1], *each) for key, each in found.items()]
        self._prepared = self.masks.version, self._rules()
        self._parameters, self._states = self._trained(), list(self.state.values())

    def _ready(self, group: Mapping[str, Any], held: Held) -> Key:
        """What parameters must have in common for one launch; checks the gradient, and begins or moves the state."""
        held.gradient()
        self._follow(held)
        state, rule = self.state[held.parameter], self._rule(group)
        if "step" not in state:
            self._begin(group, held, state)
        return held.kernel, rule, held.parameter.device, held.parameter.dtype, "master" in state

    def _begin(self, group: Mapping[str, Any], held: Held, state: dict[str, Any]) -> None:
        precise = torch.promote_types(held.local.dtype, torch.float32)
        nothing = torch.zeros_like(held.local, dtype=precise, memory_format=torch.contiguous_format)
        moments = dict.fromkeys(STATES[self._rule(group)], nothing)
        state.update(self._stored(held, {"step": torch.zeros(()), **moments}))

    def _follow(self, held: Held) -> None:
        """Moves the state of a parameter to the mask that `self.masks` has for it by now."""
        if self.masks.get(held.name) is held.mask:  # or has none, then as now
            return
        if held.name not in self.masks:
            raise PatternError(f"the mask of {held.name!r} was taken away; replace it by one that keeps all instead")
        check_shape(held.name, self.masks[held.name], held.parameter)
        state = self.state.get(held.parameter, {})
        dense = {name: held.as_dense(state[name]) for name in state if name not in ("step", "mask")}
        held.take(self.masks[held.name])
        state.update({name: held.as_stored(moment) for name, moment in dense.items()})
        if state:
            state["mask"] = held.bits

"""MaskedOptimizer: what MaskedAdamW and MaskedSGD have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ajour.ops.masked_update.update import Update, UpdateKernel, UpdateOp
from ajour.terms.errors import AjourError, KernelError, PatternError
from ajour.train.held import STORAGES, Held
from ajour.train.mask import Mask
from ajour.train.masks import Masks, check_shape
from ajour.train.prepared import Prepared, launches
from ajour.train.readers import agree
from ajour.train.settings import column_table, row_table
from ajour.train.stored_state import loaded_groups, loaded_states


class MaskedOptimizer(Optimizer):
    """A torch optimizer that leaves masked-out weights at exactly +0.0, whatever their gradients are.

    params: as torch's optimizers take them. A mask belongs to a parameter by name, so give `model.named_parameters()`;
    `model.parameters()` is enough for masks that were made from this very model. Parameters without a mask are updated
    as torch would.
    masks: shared with whoever else was given them: after `masks[name] = ...` the next step goes on under the new mask,
    and so does a MaskedLinear that reads the parameter.
    storage: "dense" keeps a moment for each weight, "compact" for each kept weight alone.
    master: 16-bit weights have a float32 original, which is what is updated; of kept entries alone if compact.
    stochastic_rounding: bfloat16 weights without a master are rounded up or down at random, so that small steps count
    on average; reproducible with `seed`.
    kernel: by name, for tests and comparisons; by default the first that takes the parameters.

    Raises PatternError by name for a mask of a parameter that isn't here or of another shape, and for a parameter under
    two masks or a mask over two parameters; KernelError if no kernel takes a parameter; nothing has changed then.
    Masked-out weights are +0.0 as soon as the optimizer exists, and after every step, whether the parameter had a
    gradient in it or not, was loaded or edited in between. Of a frozen one (requires_grad=False) an edit is noticed if
    torch counts it, which those through `.data` evade. Copies and pickles hold their own parameters under masks of
    their own; a deepcopy of model and optimizer together stays together, as torch's do.
    """

    op: ClassVar[UpdateOp]
    widest: ClassVar[str]  # the rule that has every state which this kind of optimizer may have
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
        self._prepared: Prepared | None = None
        self._complete = False
        super().__init__(params, defaults)
        self._check_names()
        self._complete = True
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: as in torch without hooks, and without launches, which point into memory."""
        own = ("masks", "storage", "master", "stochastic_rounding", "seed", "_kernel", "_complete")
        held = [(each.parameter, each.name, each.mask) for each in self._held.values()]
        return super().__getstate__() | {name: getattr(self, name) for name in own} | {"held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "held"})
        self._prepared = None
        if "held" in state:  # else it is torch's own call, with a part of the state
            self._uploaded, self._held = {}, {}
            for parameter, name, mask in state["held"]:
                self._hold(parameter, name)
                self._held[parameter].take(mask)

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
            self._hold_zeros()
            return loss  # a capturable step leaves that to the kernel, as reading it waits for the device
        prepared = self._ready()
        taken = [launch.take_gradients() for launch in prepared.launches]
        for launch, grads in zip(prepared.launches, taken, strict=True):
            parts = [self._coefficients(part.group, part.advance(found_inf)) for part in launch.parts]
            coefficients = parts[0] if len(parts) == 1 else torch.cat(parts)
            stochastic = self.stochastic_rounding and launch.dtype == torch.bfloat16 and not launch.master
            launch.kernel.run(
                Update(
                    launch.rule, launch.slices, grads, coefficients, stochastic, grad_scale, found_inf, self._uploaded,
                    launch.table,
                )
            )  # fmt: skip
        for launch in prepared.launches:
            launch.finish()
        for held in prepared.idle:
            held.restore()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, all or nothing; masks that were added to `masks` for these parameters hold from now on."""
        super().add_param_group(param_group)
        group, before = self.param_groups[-1], dict(self._held)
        names = group.get("param_names", [None] * len(group["params"]))
        known = self.masks.names_of(group["params"])
        try:
            for parameter, given, found in zip(group["params"], names, known, strict=True):
                name = given if given in self.masks else found
                if name is not None and found is not None and name != found:
                    raise PatternError(
                        f"{name!r} and {found!r} are one tied parameter under two masks; keep one of them"
                    )
                if (twin := self._held.get(parameter)) is not None:
                    raise PatternError(
                        f"{given or found or 'a parameter'!r} is here already as {twin.name!r} (tied?); "
                        "give each parameter once, as model.named_parameters() does"
                    )
                self._hold(parameter, str(name or given or f"parameter {len(self._held)}"))
            if self._complete:
                self._follow()
        except AjourError:
            self.param_groups.pop()
            self._held = before
            raise

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
            named[name].check(mask)
        self.masks.update(masks)
        self._follow()

    def state_dict(self) -> dict[str, Any]:
        """As torch's. A state also holds the `mask` as bits, so that it can be loaded into the other storage; it holds
        that alone for a parameter that has had no gradient yet. The bits are copies: distributed checkpoints load into
        the very tensors that they find here, and a mask never changes.
        """
        self._follow()
        for held in self._held.values():
            if held.bits is not None:
                self.state[held.parameter]["mask"] = held.bits.clone()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state of either storage, or a dense one of torch's own optimizer of this kind.

        The masks of the state hold from now on. Raises FileError by name, before anything changes, for a state of
        another model or another kind of optimizer.
        """
        state_dict = state_dict.copy()
        for prepare in self._optimizer_load_state_dict_pre_hooks.values():
            changed = prepare(self, state_dict)
            state_dict = state_dict if changed is None else changed
        groups = loaded_groups(self.param_groups, state_dict)
        rules = [self._rule(group) for group in groups]
        found = loaded_states(groups, rules, self.widest, self._held, state_dict)
        for parameter, (mask, _) in found.items():
            held = self._held[parameter]
            newer = not held.sharded and self.masks.get(held.name) != mask  # since the last step
            if mask is not None and (newer or held.part != mask):
                self.masks[held.name] = mask
                held.take(mask)
        self.__setstate__({"state": defaultdict(dict), "param_groups": groups})
        for parameter, (_, state) in found.items():
            held = self._held[parameter]
            self.state[parameter] = held.stored_state(state)
        for finish in self._optimizer_load_state_dict_post_hooks.values():
            finish(self)

    def _follow(self) -> None:
        """Moves parameters and states to the masks that `self.masks` has for them by now, and to where the parameters
        are; all is checked first.
        """
        moving = [held for held in self._held.values() if held.moved(self.masks.get(held.name))]
        for held in moving:
            held.check_shape(bool(self.state.get(held.parameter)))
            if held.name in self.masks:
                held.check(self.masks[held.name])
            elif held.mask is not None:
                raise PatternError(
                    f"the mask of {held.name!r} was taken away; replace it by one that keeps all instead"
                )
        kernels = [self._choose(held.parameter) for held in moving]
        for held, kernel in zip(moving, kernels, strict=True):
            state = self.state.get(held.parameter, {})
            dense = held.dense_state(state)
            held.kernel = kernel
            held.take(self.masks.get(held.name))
            state.clear()
            state.update(held.stored_state(dense))

    def _hold_zeros(self) -> None:
        """What a step does that updates nothing."""
        self._follow()
        for held in self._held.values():
            held.restore()

    def _choose(self, parameter: Tensor) -> UpdateKernel:
        return self.op.choose(parameter.device.type, parameter.dtype, self._kernel)

    def _hold(self, parameter: Tensor, name: str) -> None:
        if name in self.masks:
            check_shape(name, self.masks[name], parameter)
        if parameter.is_complex():
            raise KernelError(f"{name!r} is of {parameter.dtype}; expected floating point: leave it to torch")
        if not parameter.is_floating_point():
            return  # an index of a sparse layer: it has no gradient
        self._held[parameter] = Held(
            name, parameter, self._choose(parameter), compact=self.storage == "compact", master=self.master,
            capturable=self.defaults["capturable"],
            seed=(self.seed * 0x85EBCA6B + len(self._held) * 0xC2B2AE35) & 0xFFFFFFFF,
        )  # fmt: skip

    def _check_names(self) -> None:
        """PatternError for a mask of no parameter, or of several."""
        here = Counter(held.name for held in self._held.values())
        for name in self.masks:
            if not here[name]:
                raise PatternError(
                    f"a mask is for {name!r}, which is no parameter of this optimizer; give it "
                    "model.named_parameters(), or leave the mask out"
                )
            if here[name] > 1:
                raise PatternError(f"{here[name]} parameters are called {name!r}, and one mask is; name them apart")

    def _coefficients(self, group: Mapping[str, Any], step: Tensor) -> Tensor:
        """float64 [parameters, 9] for parameters of `group`; step: float64 [parameters], this one counted."""
        if self.defaults["capturable"]:
            return column_table(step, *self._columns(group, step))
        plain = {**group, "lr": float(group["lr"])}
        return row_table(step.tolist(), lambda each: self._columns(plain, each))

    def _ready(self) -> Prepared:
        """The launches of this step: those of the last one if nothing has changed, else new ones; all is checked before
        anything moves.
        """
        if not isinstance(self.masks, Masks):
            raise PatternError(f"optimizer.masks is a train.Masks, found {type(self.masks).__name__}")
        each = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        trained, groups = [p for some in each for p in some], list(zip(self.param_groups, map(len, each), strict=True))
        rules, held = [self._rule(group) for group in self.param_groups], list(self._held.values())
        prepared = self._prepared
        stands = prepared is not None and prepared.stands(
            (self.masks, self.masks.version), rules, groups, trained, list(self.state.values())
        )
        if not stands:
            self._check_names()
            for parameter in trained:
                self._held[parameter].gradient()
            self._follow()
        agree(held)
        if prepared is None or not stands:
            busy = set(map(id, trained))
            self._prepared = prepared = Prepared(
                (self.masks, self.masks.version), rules, groups, trained,
                launches(self.param_groups, rules, self._held, self.state),
                [each for each in held if each.mask is not None and id(each.parameter) not in busy],
                list(self.state.values()),
            )  # fmt: skip
        return prepared

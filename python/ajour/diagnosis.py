"""What this machine has, and whether every kernel that takes it computes rightly: the doctor's findings."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO

import torch
from rich.console import Console
from rich.table import Table

from ajour import _native
from ajour.formats import BitmapMatrix, BlockMatrix, DenseMatrix, NMMatrix, SparseMatrix, SplitMatrix
from ajour.ops import BLOCK_SDDMM, LINEAR_OPS
from ajour.ops.functional import linear, problem_of
from ajour.ops.library import LinearOp
from ajour.ops.masked_update import reference
from ajour.ops.masked_update.op import MASKED_ADAMW, MASKED_SGD
from ajour.ops.masked_update.update import STATES, Slice, Update, UpdateKernel, chunk_offsets
from ajour.planning.correctness import Oracle
from ajour.planning.measuring import FAILURES
from ajour.terms.pattern import NM, Block, Unstructured
from ajour.terms.row_table import make_row_table
from ajour.train import Mask

WIDTH = 120  # where no terminal says otherwise
MARKS = {"ok": "✓", "absent": "·", "broken": "✗"}
SIDE = 128  # of the weights of a self-test
ROWS = (1, 16, 128)
TESTED = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (6001, 130)  # of the parameters of an update: more than one chunk of work, and less
RULES = {  # the optimizers' coefficients, by the columns of ADAMW and SGD
    "adamw": (1.0, 0.99, 0.1, 0.95, 0.05, 2.3, 1e-8, 3e-2, 3.0),
    "momentum": (1.0, 0.02, 0.9, 0.7, 0.0, 0.0, 0.0, 1e-1, 2.0),
}
UNIMPORTABLE = (ImportError, OSError, RuntimeError, AttributeError, ValueError)  # what a broken package may raise
REPORT = "never use this kernel here; please report this line with the ones above"


@dataclass(frozen=True)
class Finding:
    """One line: status is "ok", "absent" (fine, but something is not used) or "broken"."""

    subject: str
    status: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; `ok` unless one is broken."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.status != "broken" for finding in self.findings)

    def to_json(self) -> str:
        """{"ok": bool, "findings": [{"subject", "status", "found", "remedy"}]}."""
        return json.dumps({"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}, indent=2)

    def __str__(self) -> str:
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(3):
            table.add_column(overflow="fold")
        for finding in self.findings:
            found = f"{finding.found} → {finding.remedy}" if finding.remedy else finding.found
            table.add_row(MARKS[finding.status], finding.subject, found)
        terminal = Console()
        out = StringIO()
        Console(file=out, width=terminal.width if terminal.is_terminal else WIDTH, color_system=None).print(table)
        lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
        broken = sum(finding.status == "broken" for finding in self.findings)
        lines.append(
            f"{broken} of {len(self.findings)} are broken" if broken else "nothing is broken (· is not used here)"
        )
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Looks at everything that ajour can use and runs every kernel that takes a small problem here. Takes seconds."""
    machine = [_onednn(), _isa(), _threads(), _cxx(), _compiler(), _cuda_build(), _gpu()]
    return Diagnosis(
        (
            Finding("torch", "ok", torch.__version__),  # an older one than needed is refused at import
            *machine,
            _package("Triton", "triton", "for its kernels on a GPU: pip install 'ajour[triton]'"),
            _package("transformers", "transformers", "for Hugging Face folders and the demo: pip install transformers"),
            _package("matplotlib", "matplotlib.figure", "for pages with charts (--html): pip install matplotlib"),
            *_self_tests(),
        )
    )


def _onednn() -> Finding:
    if torch.backends.mkldnn.is_available():
        return Finding("oneDNN", "ok", "in this torch; the planner times it against torch's own linear")
    return Finding("oneDNN", "absent", "not in this torch", "dense layers run on torch's own linear alone")


def _isa() -> Finding:
    used, best = _native.native.cpu_isa(), _native.native.best_cpu_isa()
    return Finding("instruction set", "ok", f"{used} (the best that is built and usable here: {best})")


def _threads() -> Finding:
    return Finding("thread pool", "ok", f"torch's own, {torch.get_num_threads()} threads")


def _cuda_build() -> Finding:
    if _native.HAS_CUDA:
        return Finding("CUDA kernels", "ok", "built in")
    return Finding("CUDA kernels", "absent", "not built", "put nvcc on the PATH and reinstall ajour with AJOUR_CUDA=ON")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", ", ".join(names))
    if torch.version.cuda is None:
        return Finding("GPU", "absent", "this torch is a CPU build", "for a GPU install a CUDA build of torch")
    return Finding("GPU", "absent", "torch sees none", "check the driver with nvidia-smi")


def _cxx() -> Finding:
    wanted = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    found = next((path for name in wanted if name and (path := shutil.which(name))), None)
    if found:
        return Finding("C++ compiler", "ok", found)
    remedy = "needed only by torch.compile and to build ajour: install g++ or clang++"
    return Finding("C++ compiler", "absent", "none on the PATH", remedy)


def _compiler() -> Finding:
    nvcc = shutil.which("nvcc")
    if nvcc:
        return Finding("CUDA compiler", "ok", nvcc)
    return Finding("CUDA compiler", "absent", "no nvcc on the PATH", "needed only to build ajour's CUDA kernels")


def _package(subject: str, module: str, remedy: str) -> Finding:
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        return Finding(subject, "absent", "not installed", remedy)
    if failure := import_failure(module):
        return Finding(subject, "broken", f"broken: {failure}", f"pip install --force-reinstall {package}")
    return Finding(subject, "ok", importlib.metadata.version(package))


def import_failure(module: str) -> str | None:
    """What importing an installed package raises, in one line; None where it can be used."""
    try:
        importlib.import_module(module)
    except UNIMPORTABLE as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _self_tests() -> Iterator[Finding]:
    """Every kernel on every device here, with each dtype and number of rows that it takes."""
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        matrices = [matrix.to(device) for matrix in _matrices()]
        for op in LINEAR_OPS.values():
            mine = [matrix for matrix in matrices if type(matrix) is op.matrix]
            for name in op.kernels:
                yield _self_test(f"{op.name} · {name} ({device})", _products(op, name, mine))
        blocks = [matrix for matrix in matrices if isinstance(matrix, BlockMatrix)]
        for name in BLOCK_SDDMM.kernels:
            yield _self_test(f"{BLOCK_SDDMM.name} · {name} ({device})", _sampled(name, blocks))
        for update_op, rule in ((MASKED_ADAMW, "adamw"), (MASKED_SGD, "momentum")):
            for kernel in update_op.kernels.values():
                if kernel.run is not reference.run:  # what the others are held against
                    yield _self_test(f"{update_op.name} · {kernel.name} ({device})", _updates(kernel, rule, device))


def _matrices() -> list[SparseMatrix]:
    """A small weight for each format and dtype."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(SIDE, SIDE, generator=generator)
    pairs = w * (torch.arange(SIDE) % 4 < 2)
    blocks = (w.view(-1, 32, SIDE // 32, 32) * torch.eye(SIDE // 32)[:, None, :, None]).reshape(SIDE, SIDE)
    scattered = w * (torch.rand(SIDE, SIDE, generator=generator) < 0.3)
    made: list[SparseMatrix] = []
    for dtype in TESTED:
        made += [kind.from_dense(scattered.to(dtype), Unstructured()) for kind in (BitmapMatrix, SplitMatrix)]
        made.append(NMMatrix.from_dense(pairs.to(dtype), NM(2, 4)))
        made.append(BlockMatrix.from_dense(blocks.to(dtype), Block(32, 32)))
        made.append(DenseMatrix.from_dense(w.to(dtype)))
    return made


_Case = tuple[str, str | None, Callable[[], float]]  # what it is, why it is not taken, its error over the allowed one


def _self_test(subject: str, cases: Iterator[_Case]) -> Finding:
    """One kernel on every problem that it takes; a right answer's error is at most the allowed one."""
    reasons, right = [], 0
    for what, reason, measure in cases:
        if reason:
            reasons.append(reason)
            continue
        try:
            ratio = measure()
        except FAILURES as error:
            return Finding(subject, "broken", f"failed at {what}: {_first_line(error)}", REPORT)
        if not ratio <= 1:
            return Finding(subject, "broken", f"wrong at {what}: {ratio:.3g} times the allowed error", REPORT)
        right += 1
    if not right:
        return Finding(subject, "absent", reasons[0])
    return Finding(subject, "ok", f"self-test right, {right} problems")


def _products(op: LinearOp, name: str, matrices: Sequence[SparseMatrix]) -> Iterator[_Case]:
    """x @ w.T against float64, by the rule that the planner has too."""
    for matrix in matrices:
        for m in ROWS:

            def measure(matrix: SparseMatrix = matrix, m: int = m) -> float:
                x = _random(m, matrix, m)
                return Oracle.of(x, matrix.to_dense(), None).error_ratio(linear(x, matrix, kernel=name))

            yield _what(matrix, m), op.kernels[name].why_not(problem_of(matrix, m)), measure


def _sampled(name: str, matrices: Sequence[BlockMatrix]) -> Iterator[_Case]:
    """dy.T @ x at the live blocks against float64, by the same rule."""
    for matrix in matrices:
        for m in ROWS:

            def measure(matrix: BlockMatrix = matrix, m: int = m) -> float:
                (n, k), (blocks, *index) = matrix.shape, matrix.tensors().values()
                dy, x = _random(m, matrix, m), _random(m, matrix, m + 1)
                entry = (None, name, 0, len(index), "")
                table = str(make_row_table(n, k, str(matrix.dtype)[6:], matrix.pattern, [entry]))

                def dense(values: torch.Tensor) -> torch.Tensor:
                    return BlockMatrix({**matrix.tensors(), "blocks": values}, matrix.pattern, (n, k)).to_dense()

                oracle = Oracle.of(dy.T.contiguous(), x.T.contiguous(), None)
                live = dense(torch.ones_like(blocks)) == 1
                return oracle.error_ratio(torch.where(live, dense(BLOCK_SDDMM.call(dy, x, index, table)), oracle.dense))

            yield _what(matrix, m), BLOCK_SDDMM.kernels[name].why_not(problem_of(matrix, m)), measure


def _updates(kernel: UpdateKernel, rule: str, device: str) -> Iterator[_Case]:
    """A masked step against the reference's, which is in float64: within a few roundings of what is stored."""
    for dtype in TESTED:
        for compact in (False, True):

            def measure(dtype: torch.dtype = dtype, compact: bool = compact) -> float:
                found, wanted = _update(rule, dtype, compact, device), _update(rule, dtype, compact, "cpu")
                kernel.run(found)
                reference.run(wanted)
                pairs = zip(found.slices, wanted.slices, strict=True)
                return max(max(_apart(a.weight, b.weight), *map(_apart, a.states, b.states)) for a, b in pairs)

            yield f"{str(dtype)[6:]}, compact: {compact}", kernel.why_not(device, dtype), measure


def _update(rule: str, dtype: torch.dtype, compact: bool, device: str) -> Update:
    """The same one at every call, on tensors of its own."""
    generator, slices = torch.Generator().manual_seed(0), []
    for size in SIZES:
        kept = torch.rand(size, generator=generator) < 0.3
        bits = Mask.from_dense(kept).bits
        w, g = (torch.randn(size, generator=generator).mul(kept).to(dtype) for _ in range(2))
        whole = [torch.rand(size, generator=generator).mul(kept) for _ in STATES[rule]]
        states = tuple((state[kept] if compact else state).to(device) for state in whole)
        offsets = chunk_offsets(bits).to(device) if compact else None
        slices.append(Slice(w.to(device), g.to(device), bits.to(device), offsets, states, None))
    return Update(rule, slices, torch.tensor([RULES[rule]] * len(slices), dtype=torch.float64))


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference over the allowed one; NaN where either is."""
    allowed = max(torch.finfo(wanted.dtype).eps, 3e-6) * wanted.double().abs() + 3e-7
    return float(((found.cpu().double() - wanted.double()).abs() / allowed).max())


def _random(m: int, matrix: SparseMatrix, seed: int) -> torch.Tensor:
    return torch.randn(m, SIDE, generator=torch.Generator().manual_seed(seed)).to(matrix.device, matrix.dtype)


def _what(matrix: SparseMatrix, m: int) -> str:
    return f"{matrix.pattern}, {str(matrix.dtype)[6:]}, {m} rows"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

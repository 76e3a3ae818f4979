"""What this machine has, and whether every kernel that takes it computes rightly: the doctor's findings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO

import torch
from rich.console import Console
from rich.table import Table

from ajour import _native
from ajour.formats import BitmapMatrix, BlockMatrix, DenseMatrix, NMMatrix, SparseMatrix
from ajour.ops import LINEAR_OPS
from ajour.ops.functional import linear, problem_of
from ajour.ops.library import LinearOp
from ajour.planning.correctness import Oracle
from ajour.planning.measuring import FAILURES
from ajour.terms.pattern import NM, Block, Dense, Unstructured

WIDTH = 120  # where no terminal says otherwise
MARKS = {"ok": "✓", "absent": "·", "broken": "✗"}
SIDE = 128  # of the weights of a self-test
ROWS = (1, 16, 128)
TESTED = (torch.float32, torch.bfloat16, torch.float16)
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
    machine = [_onednn(), _isa(), _threads(), _cxx(), _compiler(), _cuda_build(), _gpu(), _triton()]
    return Diagnosis(
        (
            Finding("torch", "ok", torch.__version__),  # an older one than needed is refused at import
            *machine,
            _extra("transformers", "for Hugging Face folders and the demo"),
            _extra("matplotlib", "for pages with charts (--html)"),
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


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("Triton", "absent", "not installed", "for its kernels on a GPU: pip install 'ajour[triton]'")
    return Finding("Triton", "ok", importlib.metadata.version("triton"))


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


def _extra(package: str, use: str) -> Finding:
    if importlib.util.find_spec(package) is None:
        return Finding(package, "absent", "not installed", f"{use}: pip install {package}")
    return Finding(package, "ok", importlib.metadata.version(package))


def _self_tests() -> Iterator[Finding]:
    """Every kernel on every device here, with each dtype and number of rows that it takes."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        matrices = [matrix.to(device) for matrix in _matrices()]
        for op in LINEAR_OPS.values():
            mine = [matrix for matrix in matrices if type(matrix) is op.matrix]
            yield from (_self_test(f"{op.name} · {name} ({device})", op, name, mine) for name in op.kernels)


def _matrices() -> list[SparseMatrix]:
    """A small weight for each format and dtype."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(SIDE, SIDE, generator=generator)
    pairs = w * (torch.arange(SIDE) % 4 < 2)
    blocks = (w.view(-1, 32, SIDE // 32, 32) * torch.eye(SIDE // 32)[:, None, :, None]).reshape(SIDE, SIDE)
    scattered = w * (torch.rand(SIDE, SIDE, generator=generator) < 0.3)
    made: list[SparseMatrix] = []
    for dtype in TESTED:
        made += [
            NMMatrix.from_dense(pairs.to(dtype), NM(2, 4)), BlockMatrix.from_dense(blocks.to(dtype), Block(32, 32)),
            BitmapMatrix.from_dense(scattered.to(dtype), Unstructured()), DenseMatrix.from_dense(w.to(dtype), Dense()),
        ]  # fmt: skip
    return made


def _self_test(subject: str, op: LinearOp, name: str, matrices: Sequence[SparseMatrix]) -> Finding:
    """One kernel against float64, by the rule that the planner has too."""
    reasons, ratios = [], []
    for matrix in matrices:
        for m in ROWS:
            if reason := op.kernels[name].why_not(problem_of(matrix, m)):
                reasons.append(reason)
                continue
            x = torch.randn(m, SIDE, generator=torch.Generator().manual_seed(m)).to(matrix.device, matrix.dtype)
            what = f"{matrix.pattern}, {str(matrix.dtype)[6:]}, {m} rows"
            try:
                ratio = Oracle.of(x, matrix.to_dense(), None).error_ratio(linear(x, matrix, kernel=name))
            except FAILURES as error:
                return Finding(subject, "broken", f"failed at {what}: {_first_line(error)}", REPORT)
            if not ratio <= 1:
                return Finding(subject, "broken", f"wrong at {what}: {ratio:.3g} times the allowed error", REPORT)
            ratios.append(ratio)
    if not ratios:
        return Finding(subject, "absent", reasons[0])
    return Finding(subject, "ok", f"self-test right, {len(ratios)} problems")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

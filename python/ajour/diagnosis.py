"""What this machine has, and whether every kernel that takes it computes rightly: the doctor's findings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from ajour import _native
from ajour.formats import BitmapMatrix, BlockMatrix, DenseMatrix, NMMatrix, SparseMatrix
from ajour.ops.functional import linear, op_of, problem_of
from ajour.terms.pattern import NM, Block, Dense, Unstructured


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
        table = Table(box=None, pad_edge=False)
        for title in ("", "what", "found", "remedy"):
            table.add_column(title, overflow="fold")
        marks = {"ok": "✓", "absent": "·", "broken": "✗"}
        for finding in self.findings:
            table.add_row(marks[finding.status], finding.subject, finding.found, finding.remedy)
        console = Console()
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip()


def diagnose() -> Diagnosis:
    """Looks at everything that ajour can use and runs every kernel that takes a small problem here. Takes seconds."""
    return Diagnosis(
        (_torch(), _onednn(), _isa(), _threads(), _cuda_build(), _gpu(), _triton(), _compiler(), *_kernels())
    )


def _torch() -> Finding:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        return Finding("torch", "broken", torch.__version__, "ajour needs torch 2.10 or newer: pip install -U torch")
    return Finding("torch", "ok", torch.__version__)


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


def _compiler() -> Finding:
    nvcc = shutil.which("nvcc")
    if nvcc:
        return Finding("CUDA compiler", "ok", nvcc)
    return Finding("CUDA compiler", "absent", "no nvcc on the PATH", "needed only to build ajour's CUDA kernels")


def _matrices() -> list[SparseMatrix]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(64, 64, generator=generator)
    pairs = w * (torch.arange(64) % 4 < 2)
    blocks = (w.view(2, 32, 2, 32) * torch.eye(2)[:, None, :, None]).reshape(64, 64)
    scattered = w * (torch.rand(64, 64, generator=generator) < 0.3)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        NMMatrix.from_dense(pairs, NM(2, 4)).to(device),
        BlockMatrix.from_dense(blocks, Block(32, 32)).to(device),
        BitmapMatrix.from_dense(scattered, Unstructured()).to(device),
        DenseMatrix.from_dense(w, Dense()).to(device),
    ]


def _kernels() -> list[Finding]:
    findings = []
    for matrix in _matrices():
        op = op_of(matrix)
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).to(matrix.device)
        exact = x.double() @ matrix.to_dense().double().T
        for name, kernel in op.kernels.items():
            subject = f"{op.name} · {name}"
            reason = kernel.why_not(problem_of(matrix, 16))
            if reason is not None:
                findings.append(Finding(subject, "absent", reason))
                continue
            error = float((linear(x, matrix, kernel=name).double() - exact).abs().max())
            status, remedy = ("ok", "") if error < 1e-4 else ("broken", "please report this machine and this line")
            findings.append(Finding(subject, status, f"self-test: largest error {error:.1e}", remedy))
    return findings

"""Findings: what the doctor says, one line each, for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import StringIO

from rich.console import Console
from rich.table import Table

WIDTH = 120  # where no terminal says otherwise
MARKS = {"ok": "✓", "absent": "·", "broken": "✗"}


@dataclass(frozen=True)
class Finding:
    """One line: status is "ok", "absent" (fine, but something is not used) or "broken".

    One that is absent and has no remedy is nothing that this machine could use.
    """

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
        elsewhere = [each.subject for each in self.findings if each.status == "absent" and not each.remedy]
        for finding in self.findings:
            if finding.subject in elsewhere:
                continue
            found = f"{finding.found} → {finding.remedy}" if finding.remedy else finding.found
            table.add_row(MARKS[finding.status], finding.subject, found)
        if elsewhere:
            table.add_row(MARKS["absent"], "not for this machine", ", ".join(elsewhere))
        terminal = Console()
        out = StringIO()
        Console(file=out, width=terminal.width if terminal.is_terminal else WIDTH, color_system=None).print(table)
        lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
        broken = sum(finding.status == "broken" for finding in self.findings)
        lines.append(
            f"{broken} of {len(self.findings)} are broken" if broken else "nothing is broken (· is not used here)"
        )
        return "\n".join(lines)

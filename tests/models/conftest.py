"""Real models need transformers; without it these tests are not run, and pytest says so."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")

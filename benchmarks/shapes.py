"""Weights of real models by name: (n, k), the out and in features of a linear layer."""

from __future__ import annotations

CPU_SHAPES = {
    "MiniLM up": (1536, 384),
    "BERT-base attention": (768, 768),
    "BERT-base up": (3072, 768),
    "BERT-base down": (768, 3072),
    "BERT-large up": (4096, 1024),
    "Llama-7B attention": (4096, 4096),
}
GPU_SHAPES = {
    "Llama-3-8B qkv": (6144, 4096),
    "Llama-3-8B out": (4096, 4096),
    "Llama-3-8B up": (14336, 4096),
    "Llama-3-8B down": (4096, 14336),
    "Llama-3-70B qkv": (10240, 8192),
    "Llama-3-70B up": (28672, 8192),
    "Llama-3-70B down": (8192, 28672),
    "Qwen2.5-7B gate and up": (37888, 3584),
    "Qwen2.5-7B down": (3584, 18944),
    "MLP 4096x16384": (4096, 16384),
}
SHAPES = {
    **CPU_SHAPES,
    **GPU_SHAPES,
    "ViT-H qkv": (3840, 1280),
    "ViT-H out": (1280, 1280),
    "ViT-H up": (5120, 1280),
    "ViT-H down": (1280, 5120),
}
TINY = {"tiny": (32, 32)}  # a layer that is nothing but the cost of a call
SMOKE = {"smoke": (96, 64)}


def named(text: str, device: str) -> dict[str, tuple[int, int]]:
    """The shapes whose name holds one of the comma-separated texts, whatever their case; without a text those that
    stand for the device ("cpu", "cuda"). Raises ValueError for a text that names none.
    """
    if not text:
        return {**TINY, **(GPU_SHAPES if device == "cuda" else CPU_SHAPES)}
    every = {**SHAPES, **TINY}
    found = {}
    for part in (each.strip().lower() for each in text.split(",")):
        matching = {name: shape for name, shape in every.items() if part and part in name.lower()}
        if not matching:
            raise ValueError(f"no shape is called like {part!r}; there are {', '.join(every)}")
        found |= matching
    return found

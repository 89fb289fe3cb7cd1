"A state with everything in it, and what it means for two to be the same: shared by the tests and their child processes."
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlstudio.runs.checkpoint import save_checkpoint

FLAT = torch.arange(40.0)
STATE = {
    "algo": {"module": {"actor.0.weight": FLAT[:24].view(4, 6), "actor.0.bias": FLAT[24:28]}, "adam": {"m": FLAT * 1e-5, "t": 7}},
    "streams": {"env/3": {"state": 2**127 + 1, "inc": 2**128 - 1, "has_uint32": 0}}, "best": -math.inf, "loss": 1e-05,
    "envs": [{"obs": np.arange(4, dtype=np.float64), "done": np.array([True, False])}, {"seed": None, "name": "ü\n<b>"}],
    "replay": np.arange(256, dtype=np.uint8).reshape(16, 16), "empty": np.zeros((0, 3), np.int64), "count": torch.tensor(3),
}
META = {"config": "ab" * 32, "level": "exact", "versions": {"torch": "2.13"}}


def save(folder: Path, step: int, **more: Any) -> Path: return save_checkpoint(folder, step, STATE | {"step": step} | more, META)


def same(a: Any, b: Any) -> bool:
    "Equal to the last bit, types included (a tuple counts as a list)"
    if isinstance(a, dict): return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (isinstance(b, np.ndarray) and a.dtype.newbyteorder("=") == b.dtype and a.shape == b.shape
                and a.astype(b.dtype).tobytes() == b.tobytes())
    if isinstance(a, torch.Tensor):
        return (isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
                and bytes(a.detach().contiguous().reshape(-1).view(torch.uint8)) == bytes(b.reshape(-1).view(torch.uint8)))
    return type(a) is type(b) and (a == b or a != a and b != b) and repr(a) == repr(b)

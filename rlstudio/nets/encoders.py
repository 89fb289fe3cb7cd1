# cell
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from rlstudio.core.options import NetConfig
from rlstudio.core.registry import nets
from rlstudio.core.spec import ArraySpec, SpecError
from rlstudio.nets.layers import orthogonal

# cell
class Flat(nn.Module):
    "One row of numbers: tensors, arrays and variables alike; nothing to learn"
    def __init__(self,
        observation_spec: ArraySpec,       # of one observation
        net: NetConfig | None = None,      # not needed
        rng: np.random.Generator | None = None,  # not needed
    ) -> None:
        super().__init__()
        self.out = observation_spec.flat_dim   # numbers in a row

    def forward(self, x: Any) -> Any:   # (B, *shape) → (B, out)
        return x if x.ndim == 2 else x.reshape(x.shape[0], -1)

# cell
def is_frames(
    spec: ArraySpec,  # of one observation
) -> bool:            # (C, H, W) or (H, W, C) bytes?
    "Are these pixels, to be looked at by convolutions?"
    return spec.kind == 'box' and spec.dtype == np.uint8 and len(spec.shape) == 3

# cell
LAYERS = (32, 8, 4), (64, 4, 2), (64, 3, 1)  # filters, size, stride

class NatureCNN(nn.Sequential):
    "The convolutions of Mnih et al. 2015"
    def __init__(self,
        observation_spec: ArraySpec,  # frames (C, H, W) or (H, W, C) of at least 36 × 36 bytes
        net: NetConfig,               # not needed
        rng: np.random.Generator,     # draws the first weights
    ) -> None:
        super().__init__()
        shape = observation_spec.shape
        if not is_frames(observation_spec): raise SpecError(
            f'{observation_spec.name}: given {observation_spec.dtype} of shape {shape}, expected frames (three axes of bytes) '
            'for the encoder nature; fix: net.encoder: flat')
        self.last = shape[-1] < shape[0]  # colours last?
        channels, *sides = [shape[-1], *shape[:-1]] if self.last else shape
        if min(sides) < 36: raise SpecError(
            f'obs: given frames of shape {shape}, expected at least 36 × 36 pixels; fix: '
            'resize them (gymnasium.wrappers.ResizeObservation), '
            'or gymnasium.wrappers.FlattenObservation for small grids')
        for filters, size, stride in LAYERS:
            conv = nn.utils.skip_init(nn.Conv2d, channels, filters, size, stride)
            W = orthogonal(rng, (filters, channels * size * size), math.sqrt(2))
            with torch.no_grad():
                conv.weight.copy_(torch.from_numpy(W).view_as(conv.weight))
                conv.bias.zero_()
            self.append(conv).append(nn.ReLU())
            channels, sides = filters, [(n - size) // stride + 1 for n in sides]
        self.out = channels * math.prod(sides)  # numbers in a row

    def forward(self, frames: torch.Tensor) -> torch.Tensor:  # (B, *shape) → (B, out)
        x = frames.movedim(-1, -3) if self.last else frames
        return super().forward(x.to(next(self.parameters()).dtype) / 255).flatten(1)

# cell
def make_encoder(
    net: NetConfig,               # names it; 'auto': nature for frames, else flat
    observation_spec: ArraySpec,  # of one observation
    rng: np.random.Generator,     # draws the first weights
) -> nn.Module:                   # (B, *shape) → (B, out); `out` is an attribute
    "The encoder that a config names"
    name = net.encoder
    if name == 'auto': name = 'nature' if is_frames(observation_spec) else 'flat'
    encoder = nets.get(name)(observation_spec, net, rng)
    if not hasattr(encoder, 'out'): encoder.out = width_of(encoder, observation_spec)
    return encoder

def width_of(
    encoder: nn.Module,           # anybody's
    observation_spec: ArraySpec,  # of one observation
) -> int:                         # numbers in a row
    "Ask an encoder with one observation how many numbers it gives"
    x = torch.as_tensor(observation_spec.zeros((1,)))
    with torch.no_grad(): row = encoder(x if is_frames(observation_spec) else x.float())
    if getattr(row, 'ndim', 0) == 2 and len(row) == 1: return int(row.shape[1])
    raise SpecError(f'net.encoder: given rows of shape {tuple(getattr(row, "shape", ()))} for one observation, expected '
                    '(1, n); fix: flatten(1) at the end of its forward')

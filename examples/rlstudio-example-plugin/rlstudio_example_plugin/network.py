"An encoder: what stands between an observation and the layers of a network."
import numpy as np
import torch
from torch import nn

from rlstudio.core.options import NetConfig
from rlstudio.core.spec import ArraySpec


class Symlog(nn.Module):
    "Observations of any size on one scale: sign(x) ln(1 + |x|), arXiv:2301.04104 eq. 9"
    def __init__(self, observation_spec: ArraySpec, net: NetConfig, rng: np.random.Generator):
        super().__init__()
        self.out = observation_spec.flat_dim  # numbers that come out, of each observation

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, *shape) → (B, out)
        x = x.reshape(x.shape[0], -1).float()
        return x.sign() * x.abs().log1p()

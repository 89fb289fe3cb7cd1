# cell
import numpy as np
import torch
from torch import nn

from rlstudio.core.options import NetConfig
from rlstudio.core.spec import ArraySpec, Spec, SpecError
from rlstudio.nets.dists import Array, like
from rlstudio.nets.encoders import make_encoder
from rlstudio.nets.layers import MLP

# cell
class UnitActions:
    "The actions of a bounded box, with every component in [-1, 1]"
    def __init__(self,
        spec: Spec,   # of one action: a box, all ends finite
    ) -> None:
        if not (isinstance(spec, ArraySpec) and spec.kind == 'box' and spec.bounded):
            raise SpecError(f'{spec.name}: given {_told(spec)}, expected a box with finite '
                            'bounds; fix: give the action space a finite low and high, or '
                            'use ppo (or dqn, for one choice out of n)')
        low, high = (np.ravel(end).astype(np.float64) for end in (spec.low, spec.high))
        self.shape, self.n = spec.shape, spec.flat_dim
        self.centre = ((low + high) / 2).astype(np.float32)      # c, (n,)
        self.half = ((high - low) / 2).astype(np.float32)        # h, (n,)
        self.inverse = np.divide(1, self.half, out=np.zeros_like(self.half),
                                 where=self.half > 0)            # 1/h, (n,)

    def to_unit(self, action: Array) -> Array:   # env units (B, *shape) → (B, n)
        "From the world's units to [-1, 1], flat"
        a = action if action.ndim == 2 else action.reshape(action.shape[0], self.n)
        return (a - like(self.centre, a)) * like(self.inverse, a)

    def to_env(self, unit: Array) -> Array:      # (B, n) → env units (B, *shape)
        "From [-1, 1] to the world's units and shape"
        a = unit * like(self.half, unit) + like(self.centre, unit)
        return a.reshape(unit.shape[0], *self.shape)

def _told(
    spec: Spec,   # any
) -> str:         # its kind and bounds, for an error
    if not isinstance(spec, ArraySpec): return 'a tree of specs'
    return f'a {spec.kind} with bounds {np.min(spec.low):g} … {np.max(spec.high):g}'

# cell
class TwinCritics(nn.Module):
    "An encoder, and independent MLPs on [features | unit action], each with an opinion of its own"
    def __init__(self,
        observation_spec: ArraySpec,  # of one observation
        action_dim: int,              # components n of an action
        net: NetConfig,               # encoder, hidden sizes and activation
        rng: np.random.Generator,     # draws the first weights, streams['init']
        num: int = 2,                 # how many; 1: a single critic, as in DDPG
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(net, observation_spec, rng)
        sizes = self.encoder.out + action_dim, *net.hidden, 1
        self.nets = nn.ModuleList(MLP(sizes, rng, net.activation, .1, net.layer_norm) for _ in range(num))

    def forward(self,
        x: Array,      # observations, normalised, (B, *shape)
        u: Array,      # actions in [-1, 1], (B, n)
        num: int | None = None,  # ask only the first so many; None: all
    ) -> Array:        # (num, B)
        "What each critic says of each row"
        both = beside(self.encoder(x), u)
        return stacked([q(both) for q in self.nets[:num]])

# cell
def beside(x: Array, u: Array) -> Array:   # (B, n), (B, k) → (B, n + k)
    "Two arrays side by side, of any kind"
    return np.concatenate([x, u], 1) if isinstance(x, np.ndarray) else torch.cat([x, u], -1)
def stacked(columns: list[Array]) -> Array:   # each (B, 1) → (num, B)
    "Columns as rows"
    if isinstance(columns[0], np.ndarray): return np.concatenate(columns, 1).T
    return torch.stack([c.squeeze(-1) for c in columns])

# cell
def td_loss(
    q: Array,                      # Q(s, a) of each critic, (num, B)
    target: Array,                 # y, (B,), without gradient
    weight: Array,                 # of each row, (B,)
) -> Array:                        # a number
    "Summed over critics: as 1802.09477 alg. 1, with the ½ of 1812.05905 eq. 5"
    return .5 * ((q - target).square() * weight).mean(-1).sum()

# cell
def expected_q(
    q: Array,  # (B, n, K), of any kind
) -> Array:    # Q(s, a), (B, n)
    "The value of each action: the mean of its quantiles, arXiv:1710.10044 alg. 1"
    return q[..., 0] if q.shape[-1] == 1 else q.sum(-1) / q.shape[-1]

# cell
def dueling_q(
    streams: Array,  # (B, n + 1, K): V, then A of each action
) -> Array:          # Q, (B, n, K)
    "Join the two streams, arXiv:1511.06581 eq. 9"
    V, A = streams[:, :1], streams[:, 1:]
    return V + (A - A.sum(1)[:, None] / A.shape[1])

# cell
class QNetwork(nn.Module):
    "The value of each action, as a mean or as quantiles"
    def __init__(self,
        observation_spec: ArraySpec,  # of one observation
        n: int,                       # actions
        net: NetConfig,               # encoder, hidden sizes and activation
        rng: np.random.Generator,     # draws the first weights, streams['init']
        dueling: bool = False,        # two streams?
        quantiles: int = 1,           # K; 1: the mean
    ) -> None:
        super().__init__()
        self.n, self.dueling, self.quantiles = n, dueling, quantiles
        self.encoder = make_encoder(net, observation_spec, rng)
        sizes = self.encoder.out, *net.hidden, (n + dueling) * quantiles
        self.mlp = MLP(sizes, rng, net.activation, .01, net.layer_norm)

    def forward(self,
        x: Array,   # observations, normalised, (B, *shape)
    ) -> Array:     # (B, n, K)
        "The values, of the kind that is given"
        q = self.mlp(self.encoder(x)).reshape(-1, self.n + self.dueling, self.quantiles)
        return dueling_q(q) if self.dueling else q

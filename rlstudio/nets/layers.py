# cell
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rlstudio.nets.tape import Pull, Sink, TapeError, Var, on_tape

# cell
def orthogonal(
    rng: np.random.Generator,   # a named stream, such as streams['init']
    shape: tuple[int, int],     # (out, in)
    gain: float = 1.,           # all singular values
) -> np.ndarray:                # (out, in) float32
    "A random matrix with equal singular values (arXiv:1312.6120)"
    rows, cols = max(shape), min(shape)
    Q, R = np.linalg.qr(rng.standard_normal((rows, cols)))
    Q *= np.where(np.diag(R) < 0, -1, 1)
    return (gain * (Q if shape[0] == rows else Q.T)).astype(np.float32)

# cell
def orthogonal_linear(
    rng: np.random.Generator,   # a named stream
    n_in: int,                  # inputs
    n_out: int,                 # outputs
    gain: float = 1.,           # singular values of the weight
) -> nn.Linear:                 # with zero bias
    "An orthogonal layer that never touches torch's global generator"
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(orthogonal(rng, (n_out, n_in), gain)))
        layer.bias.zero_()
    return layer

# cell
def _relu(x: np.ndarray) -> np.ndarray:   # of large arrays, torch's is 5 times faster
    return np.maximum(x, 0, out=x) if x.size < 4096 else torch.relu_(torch.from_numpy(x)).numpy()

def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

def _silu(x: np.ndarray) -> np.ndarray:   # x σ(x), by tanh: no overflow
    return x * (0.5 + 0.5 * np.tanh(0.5 * x))

def _silu_slope(x: np.ndarray) -> np.ndarray:
    s = 0.5 + 0.5 * np.tanh(0.5 * x)
    return s * (1 + x * (1 - s))

@dataclass(frozen=True)
class Activation:
    "A bend between two layers: for tensors, for arrays, and its slope"
    module: type[nn.Module]                        # for tensors
    array: Callable[[np.ndarray], np.ndarray]      # y = f(z) for arrays; may overwrite z
    slope: Callable[[np.ndarray], np.ndarray]      # f' as a function of y, or of z
    of_input: bool = False                         # is the slope a function of z? Then z stays

ACTIVATIONS: dict[str, Activation] = {
    'tanh': Activation(nn.Tanh, lambda z: np.tanh(z, out=z), lambda y: 1 - y * y),
    'relu': Activation(nn.ReLU, _relu, lambda y: y > 0),
    'elu': Activation(nn.ELU, _elu, lambda y: np.where(y > 0, np.float32(1), y + 1)),
    'silu': Activation(nn.SiLU, _silu, _silu_slope, of_input=True),
}

# cell
Step = tuple[np.ndarray, Pull | None]   # a layer's output, and the way back through it

def affine(
    layer: nn.Linear,    # on the CPU
    W: np.ndarray,       # its weight, transposed, (in, out): a view
    b: np.ndarray,       # its bias, (out,): a view
    x: np.ndarray,       # (B, in)
) -> tuple[np.ndarray, Callable[..., np.ndarray | None]]:  # x W + b; pull(G, sink, inputs)
    "A linear layer, and the way back: to weight and bias, and to x if asked"
    y = x.dot(W)
    y += b
    def pull(G: np.ndarray, sink: Sink, inputs: bool = True) -> np.ndarray | None:
        sink.add_product(layer.weight, G.T, x)
        if sink.wants(layer.bias): sink.add(layer.bias, np.add.reduce(G, 0))
        return G.dot(W.T) if inputs else None
    return y, pull

# cell
def normed(
    layer: nn.LayerNorm,  # on the CPU
    x: np.ndarray,        # (B, n)
) -> tuple[np.ndarray, Callable[..., np.ndarray]]:   # (B, n); pull(G, sink) → ∂L/∂x
    "Layer normalisation (arXiv:1607.06450 eq. 4), and the way back"
    γ, β = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    centred = x - x.mean(1, keepdims=True)
    inv_σ = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + np.float32(layer.eps))
    u = centred * inv_σ
    def pull(G: np.ndarray, sink: Sink) -> np.ndarray:
        sink.add(layer.weight, np.add.reduce(G * u, 0))
        sink.add(layer.bias, np.add.reduce(G, 0))
        H = G * γ
        return inv_σ * (H - H.mean(1, keepdims=True) - u * (H * u).mean(1, keepdims=True))
    return u * γ + β, pull

# cell
class MLP(nn.Sequential):
    "Linear layers with an activation between them; takes tensors, arrays, or variables of a tape"
    def __init__(self,
        sizes: Sequence[int],        # inputs, hidden …, outputs
        rng: np.random.Generator,    # draws the first weights
        activation: str = 'tanh',    # tanh, relu, elu or silu
        out_gain: float = 1.,        # of the last layer; the others have √2
        layer_norm: bool = False,    # normalise each hidden layer before its activation?
    ) -> None:
        if activation not in ACTIVATIONS: raise ValueError(
            f'activation: given {activation!r}, expected one of {", ".join(ACTIVATIONS)}')
        self.activation, f = activation, ACTIVATIONS[activation]
        gains = [math.sqrt(2)] * (len(sizes) - 2) + [out_gain]
        layers = [orthogonal_linear(rng, i, o, g) for i, o, g in zip(sizes, sizes[1:], gains)]
        norms = [nn.LayerNorm(n) for n in sizes[1:-1]] if layer_norm else []
        parts = [[layer, *norms[i:i + 1], f.module()] for i, layer in enumerate(layers)]
        super().__init__(*[m for part in parts for m in part][:-1])
        self.linears, self.norms = layers, norms   # plain lists: registered above
        self._at: list[int] = []               # where the parameters were
        self._views: list[np.ndarray] = []     # W₁ᵀ, b₁, …: views of them, weights transposed

    def __getstate__(self) -> dict[str, Any]:   # a copy must not see another's memory
        return self.__dict__ | {'_at': [], '_views': []}

    def views(self) -> list[np.ndarray]:   # W₁ᵀ, b₁, …, W_Lᵀ, b_L
        "The linear layers' parameters as arrays, made anew only if they have moved"
        tensors: list[Any] = [p for m in self.linears for p in m._parameters.values()]
        at = [t.data_ptr() for t in tensors]
        if at != self._at:
            self._at, self._views = at, [t.detach().numpy().T for t in tensors]
        return self._views

    def forward(self, x: Any) -> Any:   # (B, in) → (B, out): of the kind that is given
        if isinstance(x, np.ndarray): return mlp_array(self, x)
        return mlp_node(self, x) if isinstance(x, Var) else super().forward(x)

# cell
def mlp_array(
    mlp: MLP,        # on the CPU
    x: np.ndarray,   # (B, in) float32
) -> np.ndarray:     # (B, out) float32
    "`MLP.forward` for arrays, without a gradient"
    views, f, norms = mlp.views(), ACTIVATIONS[mlp.activation].array, mlp.norms
    for k in range(0, len(views) - 2, 2):
        x = x.dot(views[k]); x += views[k + 1]
        if norms: x = normed(norms[k // 2], x)[0]
        x = f(x)
    x = x.dot(views[-2]); x += views[-1]
    return x

# cell
def mlp_node(
    mlp: MLP,   # on the CPU
    x: Var,     # (B, in)
) -> Var:       # (B, out)
    "A whole MLP as one node of the tape"
    if x.tape is None or not torch.is_grad_enabled(): return Var(mlp_array(mlp, x.value), x.tape)
    views, act, norms = mlp.views(), ACTIVATIONS[mlp.activation], mlp.norms
    y, back = x.value, list[Callable[..., Any]]()
    for k, layer in enumerate(mlp.linears):
        y, pull = affine(layer, views[2 * k], views[2 * k + 1], y)
        back.append(pull)
        if layer is mlp.linears[-1]: break
        if norms:
            y, pull = normed(norms[k], y)
            back.append(pull)
        z = y
        y = act.array(z)
        back.append(bent(act.slope, z if act.of_input else y))

    def pull_all(G: np.ndarray, sink: Sink) -> None:
        for pull in back[:0:-1]: G = pull(G, sink)
        G = back[0](G, sink, x.needs)
        if x.needs: x.receive(G)

    return on_tape(y, pull_all, x.tape)

def bent(
    slope: Callable[[np.ndarray], np.ndarray],   # of an activation
    kept: np.ndarray,                            # what the slope is a function of
) -> Callable[[np.ndarray, Sink], np.ndarray]:   # pull(G, sink) → G times the slope, in place
    "The way back through an activation"
    def pull(G: np.ndarray, sink: Sink) -> np.ndarray:
        G *= slope(kept)
        return G
    return pull

# cell
class GaussianMLP(MLP):
    "An MLP that gives means, followed by log σ that do not depend on the input"
    def __init__(self,
        sizes: Sequence[int],        # inputs, hidden …, n means
        rng: np.random.Generator,    # draws the first weights
        activation: str = 'tanh',    # tanh, relu, elu or silu
        out_gain: float = 1.,        # of the last layer
        layer_norm: bool = False,    # as in `MLP`
        log_std: float = 0.,         # first log σ of each component
    ) -> None:
        super().__init__(sizes, rng, activation, out_gain, layer_norm)
        self.log_std = nn.Parameter(torch.full((sizes[-1],), float(log_std)))

    def forward(self, x: Any) -> Any:   # (B, in) → (B, 2n)
        mean = super().forward(x)
        if isinstance(x, np.ndarray):
            log_std = np.broadcast_to(self.log_std.detach().numpy(), mean.shape)
            return np.concatenate([mean, log_std], -1)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)

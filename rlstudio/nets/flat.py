# cell
import copy
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# cell
@dataclass(frozen=True)
class Slot:
    "Where one parameter lies in the flat vector"
    start: int               # index of its first number, a multiple of 16
    shape: tuple[int, ...]   # of the parameter

    @property
    def size(self) -> int: return math.prod(self.shape)   # numbers in it
    @property
    def pad(self) -> int: return -self.size % 16   # unused numbers after it

def flat_layout(
    shapes: dict[str, tuple[int, ...]],   # of each parameter, in order
) -> tuple[dict[str, Slot], int]:         # their slots, and the length of the vector
    "Lay parameters one after the other, each aligned to 64 bytes"
    slots, at = {}, 0
    for name, shape in shapes.items():
        slots[name] = slot = Slot(at, tuple(shape))
        at += slot.size + slot.pad
    return slots, at

# cell
@dataclass(eq=False)
class FlatParameters:
    "All parameters of a module as one vector, and their gradients as another"
    vector: nn.Parameter          # (P,) give this to the optimiser
    grad: torch.Tensor            # (P,) = vector.grad; backward() adds to it
    slots: dict[str, Slot]        # where each parameter lies
    owners: dict[str, nn.Module]  # the layer that holds each parameter

    def views(self,
        vector: torch.Tensor,   # (P,), any vector with this layout
    ) -> dict[str, torch.Tensor]:   # name → (*shape), for torch.func.functional_call
        "A flat vector as named parameters; differentiable, no copy"
        sizes = [n for s in self.slots.values() for n in (s.size, s.pad)]
        parts = vector.split(sizes)[::2]
        return {k: part.view(s.shape) for (k, s), part in zip(self.slots.items(), parts)}

    @cached_property
    def places(self) -> dict[int, np.ndarray]:   # by the id of the parameter
        "Where the gradient of each parameter goes, as views of `grad`, for a tape on the CPU"
        views = self.views(self.grad)
        return {id(layer._parameters[name.rpartition('.')[2]]): views[name].numpy()
                for name, layer in self.owners.items()}

    def parameters(self) -> list[nn.Parameter]:   # views of `vector`
        "The parameters themselves, in order"
        return [layer.get_parameter(name.rpartition('.')[2]) for name, layer in self.owners.items()]

    def zero_grad(self) -> None:
        "Set the gradient to zero, after a look whether everything is still in place"
        self.grad.zero_()
        for name, layer in self.owners.items():
            p = layer._parameters[name.rpartition('.')[2]]
            s = self.slots[name]
            at = s.start * self.vector.element_size()
            if p is None or p.data_ptr() != self.vector.data_ptr() + at: raise RuntimeError(
                f'parameter {name!r} is no longer part of the flat vector, expected the '
                'module to stay where it was; first module.to(device), then '
                'flatten_parameters, and load with load_state_dict(…, assign=False)')
            if p.grad is None or p.grad.data_ptr() != self.grad.data_ptr() + at:
                p.grad = self.grad[s.start:s.start + s.size].view(s.shape)

# cell
def flatten_parameters(
    module: nn.Module,   # any module, on its final device
) -> FlatParameters:     # the vector that its parameters are views of from now on
    "Move all trainable parameters of a module into one vector"
    params = {k: p for k, p in module.named_parameters() if p.requires_grad}
    types = {(str(p.dtype), str(p.device)) for p in params.values()}
    if len(types) != 1:
        raise ValueError('flatten_parameters: expected trainable parameters of one dtype '
                         f'on one device, given {sorted(types) or "none"}; use module.to')
    slots, length = flat_layout({k: tuple(p.shape) for k, p in params.items()})
    first = next(iter(params.values()))
    vector = nn.Parameter(first.new_zeros(length))
    vector.grad = torch.zeros_like(vector)
    owners = {k: module.get_submodule(k.rpartition('.')[0]) for k in params}
    flat = FlatParameters(vector, vector.grad, slots, owners)
    for name, view in flat.views(vector.data).items():
        view.copy_(params[name].data)
        params[name].data = view
    flat.zero_grad()
    return flat

# cell
class FlatAdam:
    "Adam, arXiv:1412.6980 alg. 1, on one flat vector: `torch.optim.Adam(fused=True)` bit for bit"
    def __init__(self,
        vector: torch.Tensor,     # (P,), with its gradient in `vector.grad` at each step
        lr: float = 1e-3,         # step size η; may be set anew before any step
        eps: float = 1e-8,        # ε
    ):
        self.vector, self.lr, self.eps = vector, lr, eps
        self.count = torch.zeros((), device=vector.device)   # t
        self.mean, self.square = (torch.zeros_like(vector.detach()) for _ in range(2))  # m, v

    def step(self) -> None:
        "Move the vector against its gradient"
        if self.vector.grad is None: raise RuntimeError(
            'FlatAdam.step: given no gradient, expected one in vector.grad; run backward first')
        self.count += 1
        torch._fused_adam_([self.vector.detach()], [self.vector.grad], [self.mean],
                           [self.square], [], [self.count], lr=self.lr, beta1=.9, beta2=.999,
                           weight_decay=0., eps=self.eps, amsgrad=False, maximize=False)

    def state_dict(self) -> dict[str, torch.Tensor]:   # under torch's own names
        "What the next step depends on, besides vector and lr"
        return dict(step=self.count, exp_avg=self.mean, exp_avg_sq=self.square)

    def load_state_dict(self,
        state: dict[str, Any],   # as state_dict gave it; {}: torch's, before its first step
    ) -> None:
        "Go on from a saved state"
        pairs = zip((self.count, self.mean, self.square), ('step', 'exp_avg', 'exp_avg_sq'))
        for mine, name in pairs: mine.copy_(torch.as_tensor(state[name] if state else 0.))

# cell
def weights_sha256(
    module: nn.Module,   # any module, on any device
) -> str:                # 64 hexadecimal digits
    "SHA-256 over name, dtype, shape and bytes of all of `state_dict`, sorted by name"
    h = hashlib.sha256()
    for name, t in sorted(module.state_dict().items()):
        t = t.detach().cpu().contiguous()
        h.update(json.dumps([name, str(t.dtype), list(t.shape)]).encode() + b'\n')
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()

# cell
def polyak_(
    target: Tensor,   # (P,), changed in place
    source: Tensor,   # (P,)
    tau: float,       # τ in [0, 1]: 0 rests, 1 copies
) -> None:
    "target ← (1 − τ) target + τ source, arXiv:1509.02971 alg. 1"
    if not 0 <= tau <= 1: raise ValueError(
        f'polyak_: given tau = {tau}, expected 0 ≤ tau ≤ 1; 0.005 is usual, 1 copies')
    if tau == 1: target.detach().copy_(source.detach())   # lerp: inf − inf is NaN
    else: target.detach().lerp_(source.detach(), tau)

# cell
class TargetNetwork:
    "The slow copy of a module: it is asked, never trained"
    def __init__(self,
        module: nn.Module,   # any module, on its final device
    ) -> None:
        self.module: Any = copy.deepcopy(module)
        self.vector = flatten_parameters(self.module).vector.detach()   # (P,)
        self.module.requires_grad_(False)
        for p in self.module.parameters(): p.grad = None
        self._statistics = [*zip(self.module.buffers(), module.buffers())]

    def update(self,
        source: FlatParameters,   # of the module that was copied
        tau: float,               # τ in [0, 1]; 1 copies
    ) -> None:
        "Move all parameters a little way towards the source; copy its statistics"
        polyak_(self.vector, source.vector, tau)
        for mine, theirs in self._statistics: mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:   # tensors
        "What must be saved"
        return dict(self.module.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:   # as state_dict gave it
        "Go on from a saved state"
        self.module.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})

# cell
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from rlstudio.core.batch import Batch
from rlstudio.core.finite import check_finite
from rlstudio.core.options import AlgoConfig, Config, ConfigError, NetConfig
from rlstudio.core.seeding import Streams
from rlstudio.core.spec import ArraySpec
from rlstudio.envs.vector import VectorEnv
from rlstudio.nets.flat import FlatAdam, TargetNetwork, flatten_parameters
from rlstudio.nets.modules import RLModule
from rlstudio.nets.tape import Tape, TapeError, Var
from rlstudio.train.metrics import register_metric

# cell
Schedule = Literal['constant', 'linear']

def anneal(
    initial: float,     # value at the start
    schedule: Schedule, # 'constant', or 'linear' down to zero
    progress: float,    # 0 → 1 over the training
) -> float:             # value now
    "A hyper-parameter's value at this point of the training"
    return initial * (1 - progress) if schedule == 'linear' else initial

# cell
def clip_gradient_(
    grad: torch.Tensor,  # the flat gradient, cut in place
    max_norm: float,     # largest length allowed
) -> float:              # its length before
    "Cut a gradient to a length; a gradient that is not finite is an error"
    norm = float(grad.norm())
    check_finite('gradient', np.float64(norm))
    if norm > max_norm: grad.mul_(max_norm / norm)
    return norm

# cell
class Part:
    "Parameters that learn together: one flat vector, its Adam, and perhaps a slow copy"
    def __init__(self,
        module: torch.nn.Module,   # on its final device; its parameters become one vector
        learning_rate: float,      # Adam's step size at the start of the training
        eps: float = 1e-8,         # Adam's ε
        max_grad_norm: float | None = None,   # the gradient is cut to this length; None: never
        target: bool = False,      # keep a slow copy?
    ) -> None:
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self.flat = flatten_parameters(module)
        self.adam = FlatAdam(self.flat.vector, learning_rate, eps)
        self.target = TargetNetwork(module) if target else None

    @property
    def slow(self) -> Any: return self.target.module   # the slow copy, to be asked

    def step(self) -> dict[str, float]:   # {'grad/norm': …} where the gradient is cut
        "Cut the gradient, and let Adam move the parameters"
        told = {}
        if self.max_grad_norm is not None: told['grad/norm'] = clip_gradient_(self.flat.grad, self.max_grad_norm)
        self.adam.step()
        return told

    def follow(self,
        tau: float,   # share of the new, in [0, 1]; 1 copies
    ) -> None:
        "Move the slow copy towards what was learned"
        self.target.update(self.flat, tau)

    def state_dict(self) -> dict[str, Any]:   # tensors
        "Adam's memory and the slow copy; the parameters themselves are saved with the module"
        slow = {} if self.target is None else dict(target=self.target.state_dict())
        return dict(adam=self.adam.state_dict()) | slow

    def load_state_dict(self, state: dict[str, Any]) -> None:   # as state_dict gave it
        "Go on from a saved state"
        self.adam.load_state_dict(state['adam'])
        if self.target is not None: self.target.load_state_dict(state['target'])

# cell
Engine = Literal['auto', 'autograd', 'tape']
Told = tuple[str, Any, dict[str, Any]]   # name of a part, its loss, metrics

def differentiate(
    loss: Any,    # one number: a tensor, or a variable of a tape
    part: Part,   # whose gradient is wanted, and nobody else's
) -> None:
    "Put the gradient of a loss into a part's flat gradient"
    if isinstance(loss, Var): return loss.tape.backward(loss, part.flat.places)
    part.flat.zero_grad()
    loss.backward(inputs=part.flat.parameters())

# cell
def given(
    batch: Batch,   # NumPy, (B, …)
    engine: str,    # 'tape' or 'autograd'
    device: str,    # torch device of the learner
) -> Batch:         # variables of a new tape, or tensors
    "A batch as the losses see it"
    if engine == 'autograd': return batch.to(device)
    tape = Tape()
    return batch.map(tape.variable)

# cell
@contextmanager
def torch_seeded(
    seed: int,   # 0 … 2**63 - 1
) -> Iterator[None]:
    "Inside, torch's global generator begins at a seed; afterwards it is where it was"
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield

# cell
def register_rows(
    cls: type,   # an algorithm
) -> None:
    "Add the metrics of an algorithm, and of those that it derives from, to the glossary (idempotent)"
    for base in reversed(cls.__mro__):
        for row in vars(base).get('metrics', ()): register_metric(*row)

# cell
class Learner:
    "What all algorithms share: an agent, its parts, and one gradient step for each loss"
    Config: ClassVar[type[AlgoConfig]] = AlgoConfig
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}   # section → key → value, below what a config says
    actions: ClassVar[tuple[str, ...]] = ()              # kinds of action that it can learn
    metrics: ClassVar[tuple[tuple[Any, ...], ...]] = ()   # rows for the glossary, those of base classes apart
    rounds = 1              # pairs of collect and update in one iteration
    progress = 0.           # 0 → 1 over the training, for schedules

    def __init__(self,
        config: Config,           # the run's config; its `algo` section is of the class `Config`
        env: VectorEnv,           # N environments
        streams: Streams,         # init, action and more by name
        device: str = 'cpu',      # where the learner lives
        engine: Engine = 'auto',  # who differentiates
    ) -> None:
        if problems := config.algo.check(config, env.observation_spec, env.action_spec): raise ConfigError(problems)
        register_rows(type(self))
        self.config: Any = config.algo
        self.total_steps, self.streams, self.device = config.train.total_steps, streams, device
        self.observation_spec, self.action_spec, self.num_envs = env.observation_spec, env.action_spec, env.num_envs
        with torch_seeded(streams.seed('init', 1)):
            self.module: Any = self.make_module(config.net, env.observation_spec, env.action_spec, streams['init']).to(device)
        self.parts = self.build()
        self.engine, self.engine_why = choose_engine(self, engine)

    def make_module(self,
        net: NetConfig,               # the `net` section
        observation_spec: ArraySpec,  # of one observation
        action_spec: ArraySpec,       # of one action
        rng: np.random.Generator,     # draws the first weights
    ) -> RLModule:
        "The agent; a subclass may make another one"
        raise NotImplementedError(f'{type(self).__name__}: define make_module → RLModule')

    def build(self) -> dict[str, Part]:   # by name
        "What learns, cut into parts"
        raise NotImplementedError(f'{type(self).__name__}: define build → {{name: Part}}')

    def losses(self,
        batch: Any,   # Batch of tensors, or of variables of a tape, (B, …)
    ) -> Iterator[Told]:
        "Each loss with its part and its metrics, in order; a part has stepped when the next is asked for"
        raise NotImplementedError(f'{type(self).__name__}: define losses, which yields (part, loss, metrics)')

    def example(self) -> Batch:   # NumPy, (2, …)
        "A batch of the kind that `losses` takes, to try the tape with"
        raise NotImplementedError(f'{type(self).__name__}: define example → Batch')

    def descend(self,
        batch: Batch,   # NumPy, (B, …)
    ) -> dict[str, float]:   # metrics
        "One step for each loss"
        told: dict[str, Any] = {}
        for name, loss, more in self.losses(given(batch, self.engine, self.device)):
            check_finite('loss', number(loss))
            part = self.parts[name]
            differentiate(loss, part)
            told |= more | part.step()
        return {k: number(x) for k, x in told.items()}

    def state_dict(self) -> dict[str, Any]:   # nested dict of tensors
        "Weights and normalisers, and what each part remembers"
        return dict(module=dict(self.module.state_dict()),
                    parts={name: part.state_dict() for name, part in self.parts.items()})

    def load_state_dict(self, state: dict[str, Any]) -> None:   # as state_dict gave it
        "Go on from a saved state"
        self.module.load_state_dict({k: torch.as_tensor(v) for k, v in state['module'].items()})
        for name, part in self.parts.items(): part.load_state_dict(state['parts'][name])

# cell
def number(
    x: Any,   # a number, a tensor or a variable of one element
) -> float:
    "A plain number"
    return x if isinstance(x, float) else float(x.item()) if hasattr(x, 'item') else float(x)

# cell
def try_tape(
    learner: Learner,   # just built
) -> None:
    "All losses of a learner on the tape, on a small batch; nothing is stepped, and no stream moves"
    before = learner.streams.state_dict()
    try:
        for name, loss, _ in learner.losses(given(learner.example(), 'tape', 'cpu')):
            if not isinstance(loss, Var): raise TapeError(f'the loss of {name} is a {type(loss).__name__}')
            differentiate(loss, learner.parts[name])
    finally: learner.streams.load_state_dict(before)

def choose_engine(
    learner: Learner,   # just built
    wanted: Engine,     # of settings.ini
) -> tuple[str, str]:   # 'tape' or 'autograd', and why
    "Who differentiates: the tape if it is wanted and can, else autograd"
    if wanted == 'autograd': return 'autograd', 'engine = autograd'
    why = '' if learner.device == 'cpu' else f'device {learner.device}'
    if not why:
        try: try_tape(learner)
        except (TypeError, AttributeError, NotImplementedError, ValueError, RuntimeError) as e: why = f'{type(e).__name__}: {e}'.split('\n')[0]
    if not why: return 'tape', 'all losses can be differentiated by it'
    if wanted == 'tape': raise EngineError(f'settings.ini: engine = tape: given {type(learner).__name__}, of which the tape cannot differentiate a '
                                           f'loss ({why}); fix: engine = auto, which takes autograd then')
    return 'autograd', why

class EngineError(ValueError):
    "The engine that was asked for cannot do it"

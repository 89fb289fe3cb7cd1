# cell
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rlstudio.core.batch import Batch
from rlstudio.core.options import NetConfig
from rlstudio.core.spec import ArraySpec, SpecError, policy_spec
from rlstudio.nets.critics import QNetwork, TwinCritics, UnitActions, expected_q
from rlstudio.nets.dists import ActionDist, Array, DiagGaussian, dist_for
from rlstudio.nets.encoders import is_frames, make_encoder
from rlstudio.nets.layers import MLP, GaussianMLP
from rlstudio.nets.normalize import RewardScale, RunningNorm
from rlstudio.nets.squashed import SquashedGaussian

# cell
class RLModule(nn.Module):
    "One agent: what it does, with all that it has learned"
    def __init__(self,
        observation_spec: ArraySpec,   # of one observation, a box
        action_spec: ArraySpec,        # of one action
        net: NetConfig | None = None,  # says whether there are normalisers; None: none
        num_envs: int | None = None,   # N of the training envs; None: no normaliser of rewards
    ) -> None:
        super().__init__()
        self.observation_spec, self.action_spec = vector_spec(observation_spec), action_spec
        self.obs_norm: RunningNorm | None = None       # normaliser of observations, if any
        self.reward_scale: RewardScale | None = None   # normaliser of rewards, if any
        self.takes_arrays: bool | None = None          # can its networks read arrays? None: not tried
        if net is None: return
        if net.normalize_obs and not is_frames(observation_spec): self.obs_norm = RunningNorm(observation_spec.shape)
        if net.normalize_reward and num_envs: self.reward_scale = RewardScale(num_envs)

    @property
    def fields(self) -> dict[str, ArraySpec]:
        "What `act` emits, for those who store it"
        return dict(action=policy_spec(self.action_spec))

    def initial_state(self,
        num_envs: int,  # N
    ) -> Batch | None:  # fields (N, …); None: it remembers nothing
        "The agent's state at the start of an episode"
        return None

    def noise(self,
        rng: np.random.Generator,    # a named stream, such as streams['action']
        lead: Sequence[int] = (),    # how many: (N,), or (T, N) for a whole rollout at once
    ) -> np.ndarray:                 # (*lead, k) float32
        "The randomness that `act` needs"
        raise NotImplementedError(f'{type(self).__name__}: define noise → (*lead, k)')

    def act(self,
        seen: Batch,                       # obs (N, *shape), and state and mask if there are any
        noise: np.ndarray | None = None,   # noise(rng, (N,)); not needed if greedy
        greedy: bool = False,              # what it thinks best, without randomness
    ) -> Batch:                            # `fields` (N, …), and the next state if it has one: arrays
        "What to do in each of N states"
        raise NotImplementedError(f'{type(self).__name__}: define act → Batch(action=…)')

    def update_statistics(self,
        obs: np.ndarray,   # raw observations that were just learned from, (*lead, *shape)
    ) -> None:
        "Let the normaliser see them, after the learning"
        if self.obs_norm is not None: self.obs_norm.update(obs)

    def normed(self,
        obs: Array,   # (B, *shape): an array, a tensor or a variable
    ) -> Array:       # the same kind; frames stay bytes
        "Observations as the networks see them"
        if is_frames(self.observation_spec): return obs
        return as_float(obs) if self.obs_norm is None else self.obs_norm(as_float(obs))

    def ask(self,
        network: Callable[..., Any],   # takes what is given, of any one kind
        *arrays: np.ndarray,           # (N, …)
    ) -> Any:                          # arrays, without a gradient
        "Run a network on arrays: as they are if it can, else as tensors on its device"
        if self.takes_arrays is None: self.takes_arrays = can_read(self, network, *arrays)
        if self.takes_arrays: return network(*arrays)
        device = next(self.parameters()).device
        with torch.no_grad(): out = network(*(torch.as_tensor(x, device=device) for x in arrays))
        return tuple(x.numpy(force=True) for x in out) if isinstance(out, tuple) else out.numpy(force=True)

# cell
def vector_spec(
    spec: Any,   # of an observation
) -> ArraySpec:  # the same
    "Refuse what is not one box"
    if not isinstance(spec, ArraySpec): raise SpecError(
        f'{spec.name}: given a {type(spec).__name__}, expected '
        'one ArraySpec; a VectorEnv flattens trees (core.spec.flatten)')
    if spec.nvec: raise SpecError(f'{spec.name}: given kind {spec.kind!r}, expected a '
                                  'box; flatten it to one-hot numbers (core.spec.flatten)')
    return spec

def as_float(
    x: Array,   # of any type and kind
) -> Array:     # float32, or as it is
    "Numbers that a network can work with"
    if isinstance(x, torch.Tensor): return x if x.is_floating_point() else x.float()
    return x if x.dtype.kind == 'f' else x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()

def can_read(
    module: nn.Module,             # whose parameters may be anywhere
    network: Callable[..., Any],   # of it
    *arrays: np.ndarray,           # for a trial
) -> bool:                         # False: give it tensors
    "Can a network read NumPy arrays?"
    if any(p.device.type != 'cpu' for p in module.parameters()): return False
    try: network(*arrays)
    except (TypeError, AttributeError): return False
    return True

# cell
def sample_or_mode(
    dist: ActionDist,            # the family
    params: np.ndarray,          # (N, num_params)
    noise: np.ndarray | None,    # (N, noise_dim); not needed if greedy
    greedy: bool,                # the most probable action?
) -> tuple[np.ndarray, np.ndarray]:   # actions (N, …), their log-probabilities (N,)
    "One action for each row, random or greedy"
    if greedy:
        action = dist.mode(params)
        return action, dist.log_prob(params, action)
    return dist.sample_and_log_prob(params, needed(noise))

def needed(
    noise: np.ndarray | None,   # as given to `act`
) -> np.ndarray:                # the same
    "Refuse an action without noise that is not greedy either"
    if noise is None: raise ValueError(
        'act: given neither noise nor greedy=True, expected one of them; '
        'draw noise with module.noise(rng, (N,))')
    return noise

def checked_obs(
    spec: ArraySpec,   # of one observation
    seen: Batch,       # as given to `act`
) -> np.ndarray:       # its obs
    "Refuse what is not (N, *shape)"
    obs: np.ndarray = seen.obs
    if obs.shape[1:] != spec.shape: raise SpecError(
        f'act: given observations of shape {obs.shape}, expected (N, *{spec.shape}); '
        'a single one needs a leading dimension: obs[None]')
    return obs

# cell
class PolicyValue(RLModule):
    "Policy and value function of one agent; a subclass defines `heads`"
    def __init__(self,
        observation_spec: ArraySpec,   # of one observation
        action_spec: ArraySpec,        # of one action; chooses the distribution `dist`
        net: NetConfig | None = None,  # as in `RLModule`
        num_envs: int | None = None,   # as in `RLModule`
    ) -> None:
        super().__init__(observation_spec, action_spec, net, num_envs)
        self.dist = dist_for(action_spec)

    @property
    def fields(self) -> dict[str, ArraySpec]:
        number = ArraySpec('', (), np.dtype(np.float32))
        return super().fields | dict(log_prob=number, value=number)

    def noise(self, rng: np.random.Generator, lead: Sequence[int] = ()   # stream, how many
              ) -> np.ndarray:   # (*lead, noise_dim) float32
        return self.dist.noise(rng, lead)

    def heads(self,
        obs: Array,     # (B, *shape)
    ) -> tuple[Array, Array]:   # params (B, num_params), value (B,)
        "The network: what to do, and what the state is worth"
        raise NotImplementedError(f'{type(self).__name__}: define heads → (params, value)')

    def act(self, seen: Batch, noise: np.ndarray | None = None, greedy: bool = False   # as `RLModule`
            ) -> Batch:   # action (N, …), log_prob (N,), value (N,): arrays
        params, value = self.ask(self.heads, checked_obs(self.observation_spec, seen))
        action, log_prob = sample_or_mode(self.dist, params, noise, greedy)
        if self.dist.event_shape != self.action_spec.shape:
            action = action.reshape(-1, *self.action_spec.shape)
        return Batch(action=action, log_prob=log_prob, value=value)

    def evaluate(self,
        obs: Array,      # (B, *shape): tensors, or variables of a tape
        action: Array,   # as `act` gave it, (B, …)
    ) -> tuple[Array, Array, Array]:   # log_prob, entropy, value: (B,) each
        "How likely the actions are, how open the policy is, what the states are worth"
        params, value = self.heads(obs)
        if self.dist.event_shape != self.action_spec.shape:
            action = action.reshape(value.shape[0], *self.dist.event_shape)
        return *self.dist.log_prob_and_entropy(params, action), value

    forward = evaluate

    def value(self,
        obs: np.ndarray,   # (N, *shape)
    ) -> np.ndarray:       # (N,)
        "What the critic says"
        return self.ask(self.heads, obs)[1]

# cell
class ActorCritic(PolicyValue):
    "An encoder, and two MLPs on what it says: a policy and a value function"
    def __init__(self,
        observation_spec: ArraySpec,    # a box of any rank
        action_spec: ArraySpec,         # box, discrete, multi_discrete or multi_binary
        net: NetConfig,                 # encoder, hidden sizes, activation, normalisers
        rng: np.random.Generator,       # draws the first weights, streams['init']
        num_envs: int | None = None,    # N of the training envs; None: no reward_scale
    ) -> None:
        super().__init__(observation_spec, action_spec, net, num_envs)
        self.encoder = make_encoder(net, observation_spec, rng)
        inner, how = (self.encoder.out, *net.hidden), (net.activation, .01, net.layer_norm)
        if isinstance(self.dist, DiagGaussian):
            self.actor: MLP = GaussianMLP((*inner, self.dist.n), rng, *how, net.log_std_init)
        else: self.actor = MLP((*inner, self.dist.num_params), rng, *how)
        self.critic = MLP((*inner, 1), rng, net.activation, layer_norm=net.layer_norm)

    def features(self, obs: Array) -> Array:   # (B, *shape) → (B, out)
        "What both networks see"
        return self.encoder(self.normed(obs))
    def heads(self, obs: Array) -> tuple[Array, Array]:   # (B, *shape)
        x = self.features(obs)
        return self.actor(x), self.critic(x).squeeze(-1)
    def value(self, obs: np.ndarray) -> np.ndarray:   # (N, *shape) → (N,), without the actor
        return self.ask(lambda x: self.critic(self.features(x)).squeeze(-1), obs)

# cell
def epsilon_greedy(
    best: np.ndarray,  # the best action of each row, (N,) int64
    u: np.ndarray,     # uniform numbers in [0, 1), (N,)
    epsilon: float,    # ε in [0, 1]
    n: int,            # actions
) -> np.ndarray:       # (N,) int64
    "Explore with probability ε; a pure function of its arguments"
    explore = u < epsilon
    if not np.count_nonzero(explore): return best   # 5 times faster than .any()
    anywhere = np.minimum((u * (n / epsilon)).astype(np.int64), n - 1)
    return np.where(explore, anywhere, best)

# cell
class QModule(RLModule):
    "Takes the action of the highest value, but with probability ε any"
    _epsilon: torch.Tensor  # saved with the weights

    def __init__(self,
        observation_spec: ArraySpec,  # a box of any rank; of bytes with three axes: frames
        action_spec: ArraySpec,       # discrete
        net: NetConfig,               # encoder, sizes, activation, normalisers (not for frames)
        rng: np.random.Generator,     # draws the first weights, streams['init']
        num_envs: int | None = None,  # N of the training envs; None: no reward_scale
        dueling: bool = False,        # two streams?
        quantiles: int = 1,           # K; 1: the mean
    ) -> None:
        super().__init__(observation_spec, action_spec, net, num_envs)
        if action_spec.kind != 'discrete': raise SpecError(
            f'{action_spec.name}: given kind {action_spec.kind!r}, expected discrete: '
            'one value for each action; fix: an algorithm with a policy (sac, td3, ppo)')
        self.q = QNetwork(observation_spec, action_spec.nvec[0], net, rng, dueling, quantiles)
        self.register_buffer('_epsilon', torch.ones(()))

    @property
    def epsilon(self) -> float: return float(self._epsilon)  # ε in [0, 1]
    @epsilon.setter
    def epsilon(self, value: float) -> None:  # in [0, 1]
        if not 0 <= value <= 1: raise ValueError(
            f'epsilon: given {value}, expected a probability, 0 ≤ ε ≤ 1; 0.05 is usual')
        self._epsilon.fill_(value)

    def values(self,
        obs: np.ndarray,  # (N, *shape)
    ) -> np.ndarray:      # Q(s, a), (N, n)
        "What each action is worth"
        return self.ask(lambda x: expected_q(self.q(self.normed(x))), obs)

    def value(self, obs: np.ndarray) -> np.ndarray:  # (N, *shape) → max Q(s, a), (N,)
        "What the state is worth"
        return np.maximum.reduce(self.values(obs), 1)

    def noise(self, rng: np.random.Generator, lead: Sequence[int] = ()  # stream, how many
              ) -> np.ndarray:  # (*lead, 1) float32 in [0, 1)
        return rng.random((*lead, 1), np.float32)

    def act(self, seen: Batch, noise: np.ndarray | None = None, greedy: bool = False   # as `RLModule`
            ) -> Batch:   # action (N,) int64
        Q = self.values(checked_obs(self.observation_spec, seen))
        best, one_each = Q.argmax(1), (len(Q), 1)
        if greedy: return Batch(action=best)
        if noise is None or noise.shape != one_each: raise ValueError(
            f'act: given noise {noise if noise is None else noise.shape} and greedy=False, '
            f'expected shape {one_each}; draw it with module.noise(rng, (N,))')
        return Batch(action=epsilon_greedy(best, noise[:, 0], self.epsilon, Q.shape[1]))

# cell
def apart(
    features: Array,   # of an encoder
) -> Array:            # the same numbers
    "Features through which no gradient flows back"
    return features if isinstance(features, np.ndarray) else features.detach()

# cell
class SquashedModule(RLModule):
    "A squashed Gaussian within the bounds of the action, its critics, and the price of its entropy"
    def __init__(self,
        observation_spec: ArraySpec,  # a box of any rank
        action_spec: ArraySpec,       # a box with finite bounds
        net: NetConfig,               # encoder, hidden sizes, activation, first log σ, normalisers
        rng: np.random.Generator,     # draws the first weights, streams['init']
        num_envs: int | None = None,  # N of the training envs; None: no reward_scale
        alpha: float = 1.,            # first temperature α > 0
    ) -> None:
        super().__init__(observation_spec, action_spec, net, num_envs)
        self.units = UnitActions(action_spec)
        self.dist = SquashedGaussian(self.units.n)
        self.critics = TwinCritics(observation_spec, self.units.n, net, rng)
        sizes = self.critics.encoder.out, *net.hidden, self.dist.num_params
        self.actor = MLP(sizes, rng, net.activation, .01, net.layer_norm)
        with torch.no_grad(): self.actor.linears[-1].bias[self.dist.n:] = net.log_std_init
        self.temperature = nn.ParameterDict(dict(log_alpha=torch.tensor(math.log(alpha))))

    @property
    def log_alpha(self) -> nn.Parameter: return self.temperature['log_alpha']  # log α
    @property
    def alpha(self) -> float: return math.exp(self.log_alpha.item())  # temperature now

    def noise(self, rng: np.random.Generator, lead: Sequence[int] = ()  # stream, how many
              ) -> np.ndarray:  # standard normal, (*lead, n) float32
        return self.dist.noise(rng, lead)

    def params(self, x: Array) -> Array:  # normalised (B, *shape) → (B, 2n)
        "What the actor says: all μ, then all log σ; the encoder learns from the critics alone"
        return self.actor(apart(self.critics.encoder(x)))

    def act(self, seen: Batch, noise: np.ndarray | None = None, greedy: bool = False   # as `RLModule`
            ) -> Batch:   # action (N, *shape), in the env's units
        params = self.ask(lambda x: self.params(self.normed(x)), checked_obs(self.observation_spec, seen))
        unit = self.dist.mode(params) if greedy else self.dist.sample(params, needed(noise))
        return Batch(action=self.units.to_env(unit))

# cell
def drifted(
    x: np.ndarray,        # the process now, (N, n) float32
    normals: np.ndarray,  # standard normal, (N, n)
    theta: float,         # pull towards zero
    dt: float,            # time of one step; the memory is 1 / (theta dt) steps
) -> np.ndarray:          # one step later, (N, n) float32
    "One step of an Ornstein–Uhlenbeck process (Uhlenbeck & Ornstein 1930)"
    θ, Δt = np.float32(theta), np.float32(dt)
    return x - θ * Δt * x + np.sqrt(Δt) * normals

# cell
class DeterministicModule(RLModule):
    "A deterministic policy, its critics, and the noise with which it explores"
    def __init__(self,
        observation_spec: ArraySpec,     # a box of any rank
        action_spec: ArraySpec,          # a box with finite bounds
        net: NetConfig,                  # encoder, hidden sizes, activation, normalisers
        rng: np.random.Generator,        # draws the first weights, streams['init']
        num_envs: int | None = None,     # N of the training envs; None: no reward_scale
        num_critics: int = 2,            # 1: as in DDPG
        sigma: float = .1,               # σ of exploration, in [-1, 1] units
        drift: tuple[float, float] | None = None,   # θ and Δt of an Ornstein–Uhlenbeck process; None: white noise
    ) -> None:
        super().__init__(observation_spec, action_spec, net, num_envs)
        self.units, self.sigma, self.drift = UnitActions(action_spec), np.float32(sigma), drift
        self.critics = TwinCritics(observation_spec, self.units.n, net, rng, num_critics)
        sizes = self.critics.encoder.out, *net.hidden, self.units.n
        self.actor = MLP(sizes, rng, net.activation, .01, net.layer_norm)

    def initial_state(self, num_envs: int) -> Batch | None:  # where the noise starts: at 0
        return Batch(noise=np.zeros((num_envs, self.units.n), np.float32)) if self.drift else None

    def noise(self, rng: np.random.Generator, lead: Sequence[int] = ()   # stream, how many
              ) -> np.ndarray:   # standard normal, (*lead, n) float32
        return rng.standard_normal((*lead, self.units.n), np.float32)

    def policy(self, x: Array) -> Array:   # normalised (B, *shape) → (B, n) in (-1, 1)
        "The best action, in unit coordinates"
        u = self.actor(apart(self.critics.encoder(x)))
        return np.tanh(u) if isinstance(u, np.ndarray) else u.tanh()

    def act(self, seen: Batch, noise: np.ndarray | None = None, greedy: bool = False   # as `RLModule`
            ) -> Batch:   # action (N, *shape) in the env's units, and the noise as it is now
        u = self.ask(lambda x: self.policy(self.normed(x)), checked_obs(self.observation_spec, seen))
        state = {}
        if not greedy:
            e = needed(noise)
            if self.drift:
                e = drifted(seen.state.noise, e, *self.drift)
                state = dict(state=Batch(noise=e))
            u = (u + self.sigma * e).clip(-1, 1)
        elif self.drift: state = dict(state=seen.state)
        return Batch(action=self.units.to_env(u), **state)

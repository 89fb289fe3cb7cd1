# cell
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from rlstudio.algos.common import Part, Told
from rlstudio.algos.off_policy import OffPolicy, OffPolicyConfig, action_problems
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, Count, NetConfig, Positive, Problem, Share, Unit
from rlstudio.core.spec import ArraySpec
from rlstudio.data.rollout import Stepper
from rlstudio.nets.critics import expected_q
from rlstudio.nets.dists import Array, like, pick_rows
from rlstudio.nets.modules import QModule, RLModule

# cell
def linear_epsilon(
    env_steps: int,    # so far
    total_steps: int,  # of the training
    start: float,      # ε at first, in [0, 1]
    end: float,        # ε at the end, in [0, 1]
    fraction: float,   # of the training over which it falls, in [0, 1]
) -> float:            # ε now
    "Probability of a random action"
    if env_steps >= fraction * total_steps: return end
    return start + (end - start) * env_steps / (fraction * total_steps)

# cell
def best_next(
    q_slow: Array,    # what Q⁻ says of s', (B, n, K)
    choosing: Array,  # who chooses: Q for double, Q⁻ itself for plain, (B, n, K)
) -> Array:           # the value of the chosen action, (B, K)
    "What the next state is worth; double Q-learning: arXiv:1509.06461 eq. 4"
    return pick_rows(q_slow, expected_q(choosing).argmax(-1))

# cell
def td_target(
    reward: Array,    # of up to n steps, discounted, (B,)
    discount: Array,  # γ^m, or 0 where the episode terminated, (B,)
    value: Array,     # `best_next`, (B, K)
) -> Array:           # y, (B, K)
    "What Q(s, a) should have said, arXiv:1312.5602 eq. 2"
    return reward[:, None] + discount[:, None] * value

# cell
def huber(
    error: Array,  # δ, any shape
) -> Array:        # ≥ 0, of that shape
    "½δ² near zero, |δ| − ½ beyond one (Huber 1964); its slope is the clipped error"
    held = error.clip(-1, 1)
    return held * (error - .5 * held)

# cell
def levels(
    K: int,        # how many
) -> np.ndarray:   # τ, (K,) float32
    "The middles of K equal parts of [0, 1], arXiv:1710.10044 lemma 2"
    return (np.arange(K, dtype=np.float32) + np.float32(.5)) / np.float32(K)

def quantile_huber(
    theta: Array,    # θ, (B, K)
    target: Array,   # y, (B, K), without gradient
) -> Array:          # (B,)
    "Quantile regression, each θ against each y, arXiv:1710.10044 eq. 10"
    δ = target[:, None, :] - theta[:, :, None]
    τ = like(levels(theta.shape[1]), δ)[:, None]
    return ((τ - (δ < 0).float()).abs() * huber(δ)).mean(-1).sum(-1)

# cell
def dqn_loss(
    q: Array,        # Q(s, ·), (B, n, K)
    action: Array,   # a, (B,) int64
    target: Array,   # y without gradient, (B, K)
    weight: Array,   # of each row, (B,)
) -> tuple[Array, Array]:  # loss, error y − Q(s, a) (B,) without gradient
    "The loss of all forms of DQN"
    θ = pick_rows(q, action)
    each = huber(target - θ)[:, 0] if θ.shape[1] == 1 else quantile_huber(θ, target)
    return (weight * each).mean(), (target - θ).detach().mean(-1)

# cell
@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    "The `algo` section of a config file for DQN."
    learning_rate: Positive = 5e-4      # Adam's step size
    batch_size: Count = 64              # rows of one gradient update
    buffer_size: Annotated[int, Field(ge=1, le=10**12)] = 100_000  # transitions remembered
    train_every: Count = 4              # steps of each env between two bouts of updates
    update_ratio: Positive = 0.25       # gradient updates for each env step
    tau: Share = 1.0                    # share of the new in the target network; 1: copy
    target_every: Count = 100           # gradient updates between two moves of the target
    epsilon_start: Unit = 1.0           # probability of a random action at first
    epsilon_end: Unit = 0.05            # probability of a random action at the end
    epsilon_fraction: Unit = 0.1        # part of the training over which it falls
    max_grad_norm: Positive = 10.0      # length to which the gradient is cut
    double: bool = True                 # the network chooses, the target says the value
    dueling: bool = False               # two streams: state and advantages
    quantiles: Annotated[int, Field(ge=1, le=1000)] = 1  # K, of the return; 1: its mean

    def check(self, config: Config, observation_spec: ArraySpec, action_spec: ArraySpec) -> list[Problem]:   # as `AlgoConfig`
        return action_problems(action_spec, 'discrete', config) or super().check(config, observation_spec, action_spec)

# cell
class DQN(OffPolicy):
    "Deep Q-learning with the parts of Rainbow, for worlds with a handful of actions, arXiv:1312.5602 to arXiv:1710.02298."
    Config, actions = DQNConfig, ('discrete',)
    metrics = (
        ('loss/td', 'Huber or quantile loss of y − Q(s, a)', '', (0, math.inf)),
        ('value/td_error', 'mean |y − Q(s, a)|', 'return', (0, math.inf)),
        ('grad/norm', 'length of the gradient before it is cut', '', (0, math.inf)),
        ('schedule/epsilon', 'probability of a random action', '', (0, 1)),
    )
    config: DQNConfig
    module: QModule
    defaults = dict(env=dict(num_envs=1), net=dict(activation='relu', hidden=(128, 128), normalize_obs=False, normalize_reward=False))

    def make_module(self, net: NetConfig, observation_spec: ArraySpec, action_spec: ArraySpec, rng: np.random.Generator  # as `Learner`
                    ) -> RLModule:
        return QModule(observation_spec, action_spec, net, rng, self.num_envs, self.config.dueling, self.config.quantiles)

    def build(self) -> dict[str, Part]:
        c = self.config
        return dict(q=Part(self.module.q, c.learning_rate, max_grad_norm=c.max_grad_norm, target=True))

    def collect(self, stepper: Stepper) -> Batch:   # as `OffPolicy`, with the ε of this time
        c = self.config
        self.module.epsilon = linear_epsilon(stepper.env_steps, self.total_steps, c.epsilon_start, c.epsilon_end, c.epsilon_fraction)
        return super().collect(stepper)

    def losses(self, b: Any) -> Iterator[Told]:   # (B, …), as `Learner`
        c, m, part = self.config, self.module, self.parts['q']
        with torch.no_grad():
            x = m.normed(b.next_obs)
            q_slow = part.slow(x)
            best = best_next(q_slow, m.q(x) if c.double else q_slow)
            y = td_target(b.reward, b.discount, best)
        loss, self.error = dqn_loss(m.q(m.normed(b.obs)), b.action, y, b.weight)
        yield 'q', loss, {'loss/td': loss, 'value/td_error': self.error.abs().mean(), 'schedule/epsilon': m.epsilon}
        if self.updates % c.target_every == 0: part.follow(c.tau)

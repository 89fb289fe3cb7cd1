# cell
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from rlstudio.algos.common import Part, Told
from rlstudio.algos.off_policy import OffPolicy, OffPolicyConfig, action_problems
from rlstudio.core.options import Config, Count, NetConfig, NonNegative, Positive, Problem
from rlstudio.core.spec import ArraySpec
from rlstudio.nets.critics import td_loss
from rlstudio.nets.dists import Array, like
from rlstudio.nets.modules import DeterministicModule, RLModule

# cell
def smooth(
    u: Array,         # the policy's actions, (B, n) in [-1, 1]
    normals: Array,   # standard normal, (B, n)
    sigma: float,     # σ of the noise
    clip: float,      # c, its largest size
) -> Array:           # (B, n) in [-1, 1]
    "An action nearby: u + clip(σ ε, −c, c), arXiv:1802.09477 §5.3"
    return (u + (sigma * normals).clip(-clip, clip)).clip(-1, 1)

# cell
def policy_loss(
    q: Array,    # Q₁(s, μ(s)), any shape
) -> Array:      # a number
    "−mean Q₁(s, μ(s)), arXiv:1802.09477 alg. 1"
    return -q.mean()

# cell
@dataclass(frozen=True, kw_only=True)
class TD3Config(OffPolicyConfig):
    "The `algo` section of a config file for TD3."
    learning_rate: Positive = 1e-3        # Adam's step size, of actor and critics
    twin: bool = True                     # two critics; false: one, as in DDPG
    policy_delay: Count = 2               # critic updates for one of actor and targets
    target_noise: NonNegative = 0.2       # σ of the smoothing, in [-1, 1] units; 0: none
    target_noise_clip: NonNegative = 0.5  # c, its largest size
    exploration_noise: NonNegative = 0.1  # σ while collecting, in [-1, 1] units
    exploration: Literal['white', 'ou'] = 'white'  # independent, or Ornstein–Uhlenbeck

    def check(self, config: Config, observation_spec: ArraySpec, action_spec: ArraySpec) -> list[Problem]:   # as `AlgoConfig`
        return action_problems(action_spec, 'box', config) or super().check(config, observation_spec, action_spec)

# cell
class TD3(OffPolicy):
    "Twin delayed deep deterministic policy gradient, for real-valued actions between bounds, arXiv:1802.09477 alg. 1."
    Config, actions = TD3Config, ('box',)
    metrics = (
        ('loss/critic', '½ mean (Q − y)², summed over the critics', 'value²', (0, math.inf)),
        ('loss/actor', 'what the actor makes small: −mean Q, for SAC + α mean log π', 'value'),
        ('value/q_mean', 'mean Q of the rows that were learned from', 'value'),
    )
    config: TD3Config
    module: DeterministicModule
    defaults = dict(env=dict(num_envs=1), net=dict(activation='relu', hidden=(256, 256), normalize_obs=False, normalize_reward=False))

    def make_module(self, net: NetConfig, observation_spec: ArraySpec, action_spec: ArraySpec, rng: np.random.Generator  # as `Learner`
                    ) -> RLModule:
        c = self.config
        return DeterministicModule(observation_spec, action_spec, net, rng, self.num_envs, 1 + c.twin, c.exploration_noise,
                                   (.15, .01) if c.exploration == 'ou' else None)

    def build(self) -> dict[str, Part]:
        c, m = self.config, self.module
        return dict(critics=Part(m.critics, c.learning_rate, target=True), actor=Part(m.actor, c.learning_rate, target=True))

    def losses(self, b: Any) -> Iterator[Told]:   # (B, …), as `Learner`
        c, m, critics, actor, x = self.config, self.module, self.parts['critics'], self.parts['actor'], self.module.normed(b.obs)
        with torch.no_grad():
            x_next = m.normed(b.next_obs)
            u = actor.slow(critics.slow.encoder(x_next)).tanh()
            if c.target_noise:
                normals = like(m.noise(self.streams['target'], (len(b),)), u)
                u = smooth(u, normals, c.target_noise, c.target_noise_clip)
            y = b.reward + b.discount * critics.slow(x_next, u).amin(0)
        q = m.critics(x, m.units.to_unit(b.action))
        loss, self.error = td_loss(q, y, b.weight), (q.detach() - y).abs().mean(0)
        yield 'critics', loss, {'loss/critic': loss, 'value/q_mean': q[0].mean()}
        if self.updates % c.policy_delay: return
        loss = policy_loss(m.critics(x, m.policy(x), 1))
        yield 'actor', loss, {'loss/actor': loss}
        for part in self.parts.values(): part.follow(c.tau)

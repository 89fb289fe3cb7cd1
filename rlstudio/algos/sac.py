# cell
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from rlstudio.algos.common import Part, Told
from rlstudio.algos.off_policy import OffPolicy, OffPolicyConfig, action_problems
from rlstudio.core.options import Config, NetConfig, Positive, Problem
from rlstudio.core.spec import ArraySpec
from rlstudio.nets.critics import td_loss
from rlstudio.nets.dists import Array, like
from rlstudio.nets.modules import RLModule, SquashedModule

# cell
def soft_target(
    reward: Array,         # r, (B,)
    discount: Array,       # γ, or 0 where the episode terminated, (B,)
    next_q: Array,         # min Q'(s', a') of the target critics, (B,)
    next_log_prob: Array,  # log π(a'|s') of that a', (B,)
    alpha: float,          # temperature α > 0
) -> Array:                # y, (B,)
    "What a soft critic should have said, arXiv:1812.05905 eq. 3 and 5"
    return reward + discount * (next_q - alpha * next_log_prob)

# cell
def actor_loss(
    log_prob: Array,   # log π(a|s) of a fresh action, (B,)
    q: Array,          # Q(s, a) of both critics, (2, B)
    alpha: float,      # temperature α > 0
) -> Array:            # a number
    "α KL(π ‖ exp(Q/α)/Z) up to a constant, arXiv:1812.05905 eq. 7"
    return (alpha * log_prob - q.amin(0)).mean()

# cell
def temperature_loss(
    log_alpha: Array,       # log α, a number
    log_prob: Array,        # log π(a|s) of fresh actions, (B,)
    target_entropy: float,  # H̄ in nats
) -> Array:                 # a number
    "Rises with α where the policy is more random than asked, arXiv:1812.05905 eq. 18"
    return -(log_alpha * (log_prob.detach().mean() + target_entropy))

# cell
@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    "The `algo` section of a config file for SAC."
    actor_learning_rate: Positive | None = None     # null: as learning_rate, the critics'
    ent_coef: Literal['auto'] | Positive = 'auto'   # α; auto: found by its own steps
    ent_coef_init: Positive = 1.0                   # first α, if auto
    ent_coef_learning_rate: Positive | None = None  # of log α; null: as learning_rate
    target_entropy: float | None = None             # nats, for auto; null: −1 per component

    def check(self, config: Config, observation_spec: ArraySpec, action_spec: ArraySpec) -> list[Problem]:   # as `AlgoConfig`
        return action_problems(action_spec, 'box', config) or super().check(config, observation_spec, action_spec)

# cell
class SAC(OffPolicy):
    "Soft actor-critic: a policy as random as its reward allows, for real-valued actions between bounds, arXiv:1812.05905 alg. 1."
    Config, actions = SACConfig, ('box',)
    metrics = (
        ('loss/critic', '½ mean (Q − y)², summed over the critics', 'value²', (0, math.inf)),
        ('loss/actor', 'what the actor makes small: −mean Q, for SAC + α mean log π', 'value'),
        ('value/q_mean', 'mean Q of the rows that were learned from', 'value'),
        ('policy/temperature', 'α, the price of entropy', 'reward/nat', (0, math.inf)),
        ('policy/sampled_entropy', '−log π of fresh actions, in unit coordinates', 'nats'),
    )
    config: SACConfig
    module: SquashedModule
    defaults = dict(env=dict(num_envs=1), net=dict(activation='relu', hidden=(256, 256), log_std_init=0., normalize_obs=False, normalize_reward=False))

    def make_module(self, net: NetConfig, observation_spec: ArraySpec, action_spec: ArraySpec, rng: np.random.Generator  # as `Learner`
                    ) -> RLModule:
        c = self.config
        alpha = c.ent_coef_init if c.ent_coef == 'auto' else c.ent_coef
        return SquashedModule(observation_spec, action_spec, net, rng, self.num_envs, alpha)

    def build(self) -> dict[str, Part]:
        c, m = self.config, self.module
        self.target_entropy = -m.dist.n if c.target_entropy is None else c.target_entropy
        return dict(critics=Part(m.critics, c.learning_rate, target=True),
                    actor=Part(m.actor, c.actor_learning_rate or c.learning_rate),
                    temperature=Part(m.temperature, c.ent_coef_learning_rate or c.learning_rate))

    def losses(self, b: Any) -> Iterator[Told]:   # (B, …), as `Learner`
        m, critics, alpha, x = self.module, self.parts['critics'], self.module.alpha, self.module.normed(b.obs)
        now, later = m.noise(self.streams['learn'], (2, len(b)))
        with torch.no_grad():
            x_next = m.normed(b.next_obs)
            u, log_prob = m.dist.sample_and_log_prob(m.params(x_next), like(later, b.reward))
            y = soft_target(b.reward, b.discount, critics.slow(x_next, u).amin(0), log_prob, alpha)
        q = m.critics(x, m.units.to_unit(b.action))
        loss, self.error = td_loss(q, y, b.weight), (q.detach() - y).abs().mean(0)
        yield 'critics', loss, {'loss/critic': loss, 'value/q_mean': q.mean()}
        u, log_prob = m.dist.sample_and_log_prob(m.params(x), like(now, b.reward))
        loss = actor_loss(log_prob, m.critics(x, u), alpha)
        yield 'actor', loss, {'loss/actor': loss, 'policy/temperature': alpha, 'policy/sampled_entropy': -log_prob.mean()}
        if self.config.ent_coef == 'auto': yield 'temperature', temperature_loss(m.log_alpha, log_prob, self.target_entropy), {}
        critics.follow(self.config.tau)

# cell
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlstudio.algos.common import Schedule, Told, anneal
from rlstudio.algos.on_policy import OnPolicy, OnPolicyConfig
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, Count, Positive, Problem
from rlstudio.core.spec import ArraySpec
from rlstudio.nets.dists import Array

# cell
def clipped_surrogate(
    log_ratio: Array,    # log π_θ(a|s) − log π_old(a|s), (B,)
    advantage: Array,    # Â, (B,)
    clip_range: float,   # ε > 0
) -> Array:              # L^CLIP, a number to maximise
    "Clipped surrogate objective, arXiv:1707.06347 eq. 7"
    ratio = log_ratio.exp()
    held = ratio.clamp(1 - clip_range, 1 + clip_range)
    return (ratio * advantage).minimum(held * advantage).mean()

# cell
def approx_kl(
    log_ratio: Array,  # log π_θ − log π_old, (B,)
) -> Array:            # nats, ≥ 0
    "Low-variance, unbiased estimate of KL(π_old ‖ π_θ), k₃ of Schulman 2020"
    return (log_ratio.exp() - 1 - log_ratio).mean()

# cell
def value_loss(
    value: Array,                     # V_θ(s), (B,)
    return_: Array,                   # target, (B,)
    old_value: Array | None = None,   # V_old(s), (B,); only for the clip
    clip_range: float | None = None,  # in units of value; None: no clip
) -> Array:                           # ½ mean squared error
    "Half the squared error, clipped or not (Huang et al. 2022, detail 9)"
    error = (value - return_).square()
    if clip_range is not None and old_value is not None:
        near = old_value + (value - old_value).clamp(-clip_range, clip_range)
        error = error.maximum((near - return_).square())
    return .5 * error.mean()

# cell
@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnPolicyConfig):
    "The `algo` section of a config file for PPO."
    num_epochs: Count = 10                        # passes over a rollout
    num_minibatches: Count = 4                    # parts of a rollout in one pass
    clip_range: Positive = 0.2                    # ε
    clip_range_schedule: Schedule = 'constant'    # over the whole training
    clip_range_vf: Positive | None = None         # clip of the critic, in value units; null: off
    target_kl: Positive | None = None             # end the epochs beyond 1.5 × this; null: never

    def check(self, config: Config, observation_spec: ArraySpec, action_spec: ArraySpec) -> list[Problem]:   # as `AlgoConfig`
        return minibatch_problems(self.num_minibatches, self.num_steps, config.env.num_envs)

# cell
def minibatch_problems(
    num_minibatches: int,  # parts
    num_steps: int,        # T
    num_envs: int,         # N
) -> list[Problem]:        # none, or one
    "T × N rows must fall into equal minibatches of two rows or more"
    rows = num_steps * num_envs
    if rows % num_minibatches == 0 and rows > num_minibatches: return []
    near = sorted((k for k in range(1, rows // 2 + 1) if rows % k == 0),
                  key=lambda k: abs(k - num_minibatches))[:3]
    return [Problem('config', 0, 0, 'algo.num_minibatches', f'given {num_minibatches}, '
        f'but a rollout has num_steps × num_envs = {rows} rows; expected a smaller divisor, '
        f'such as {" or ".join(map(str, sorted(near)))}')]

# cell
class PPO(OnPolicy):
    "Proximal policy optimisation (clip): several epochs on each rollout, held near the policy that collected it, arXiv:1707.06347."
    Config = PPOConfig
    metrics = (
        ('policy/approx_kl', 'mean of (r − 1) − log r', 'nats', (0, .05)),
        ('policy/clip_fraction', 'share of |r − 1| > ε', '', (0, .4)),
        ('schedule/clip_range', 'ε now', '', (0, math.inf)),
        ('schedule/epochs', 'passes over the rollout that were made', 'epochs', (1, math.inf)),
    )
    surrogate = staticmethod(clipped_surrogate)  # a subclass may try another objective

    def losses(self, b: Any) -> Iterator[Told]:   # (B, …), as `Learner`
        c, clip_range = self.config, self.clip_range
        log_prob, entropy, value = self.module.evaluate(b.obs, b.action)
        log_ratio = log_prob - b.log_prob
        policy = -self.surrogate(log_ratio, b.advantage, clip_range)
        critic, H = value_loss(value, b.return_, b.value, c.clip_range_vf), entropy.mean()
        with torch.no_grad():
            beyond = ((log_ratio.exp() - 1).abs() > clip_range).float().mean()
            kl = approx_kl(log_ratio)
        yield 'agent', policy + c.vf_coef * critic - c.ent_coef * H, {
            'loss/policy': policy, 'loss/value': critic, 'policy/entropy': H,
            'policy/approx_kl': kl, 'policy/clip_fraction': beyond}

    @property
    def clip_range(self) -> float:
        "ε now"
        return anneal(self.config.clip_range, self.config.clip_range_schedule, self.progress)

    def learn(self,
        data: Batch,         # rows of one rollout, (B, …)
    ) -> dict[str, float]:   # metrics, their means over all steps
        "Epochs of minibatch steps, until the policy has moved far enough"
        c, told = self.config, list[dict[str, float]]()
        for _ in range(c.num_epochs):
            told += [self.descend(self.minibatch(m)) for m in self.shuffled(data)]
            if c.target_kl and told[-1]['policy/approx_kl'] > 1.5 * c.target_kl: break
        return {k: float(np.mean([t[k] for t in told])) for k in told[0]} | {
            'schedule/clip_range': self.clip_range, 'schedule/epochs': len(told) // c.num_minibatches}

    def shuffled(self,
        data: Batch,         # rows to learn from
    ) -> Iterator[Batch]:    # minibatches of one size
        "One pass in random order; where fake steps were left out, a few rows sit it out"
        rows, parts = len(data), self.config.num_minibatches
        order = self.streams['minibatch'].permutation(rows)[:rows - rows % parts]
        return data[order].split(parts)

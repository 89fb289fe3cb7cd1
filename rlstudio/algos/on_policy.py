# cell
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rlstudio.algos.common import Learner, Part, Schedule, anneal
from rlstudio.core.batch import Batch, allocate
from rlstudio.core.finite import check_finite
from rlstudio.core.options import AlgoConfig, Config, Count, NetConfig, NonNegative, Positive, Unit
from rlstudio.core.seeding import Streams
from rlstudio.core.spec import ArraySpec
from rlstudio.data.returns import gae
from rlstudio.data.rollout import RolloutBuffer, Stepper, collect, next_values
from rlstudio.envs.vector import VectorEnv
from rlstudio.nets.dists import Array
from rlstudio.nets.modules import ActorCritic, RLModule
from rlstudio.nets.normalize import RewardScale

# cell
@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(AlgoConfig):
    "What the `algo` sections of all on-policy algorithms share."
    learning_rate: Positive = 3e-4                # Adam's step size
    learning_rate_schedule: Schedule = 'linear'   # over the whole training
    num_steps: Count = 128                        # T, env steps of each env between updates
    gamma: Unit = 0.99                            # discount γ
    gae_lambda: Unit = 0.95                       # trace decay λ
    ent_coef: NonNegative = 0.0                   # c₂, weight of the entropy bonus
    vf_coef: NonNegative = 0.5                    # c₁, weight of the critic's loss
    max_grad_norm: Positive = 0.5                 # length to which the gradient is cut
    normalize_advantage: bool = True              # to mean 0 and deviation 1, in each minibatch

# cell
def normalize_advantage(
    advantage: Array,   # Â, (B,), NumPy or torch
    eps: float = 1e-8,  # for a minibatch where all are equal
) -> Array:             # mean 0, standard deviation 1, (B,)
    "Standardised advantages (Huang et al. 2022, detail 7)"
    centred = advantage - advantage.mean()
    return centred / ((centred * centred).mean() ** .5 + eps)

# cell
def explained_variance(
    value: np.ndarray,    # V(s), any shape
    return_: np.ndarray,  # G, same shape
) -> float:               # ≤ 1; nan where all returns are equal
    "Share of the returns' variance that the critic predicts"
    spread = return_.var()
    return float(1 - (return_ - value).var() / spread) if spread > 0 else float('nan')

# cell
def learning_rows(
    batch: Batch,               # a rollout with next_value, (T, N, …)
    scale: RewardScale | None,  # sees the rewards first, then scales them; None: raw rewards
    gamma: float,               # γ
    gae_lambda: float,          # λ
) -> Batch:                     # obs, action, log_prob, value, advantage, return_: (≤ T·N, …)
    "Targets of one rollout, flat"
    b, reward, valid = batch, batch.reward, batch.fields.get('valid')
    if scale is not None:
        scale.update(reward, b.terminated, b.truncated, gamma, True if valid is None else valid)
        reward = scale.array(reward)
    advantage = gae(reward, b.value, b.next_value, b.terminated, b.truncated, gamma, gae_lambda)
    kept = {k: x for k, x in b.fields.items() if k in ('obs', 'mask', 'state', 'action', 'log_prob', 'value')}
    data = Batch(**kept, advantage=advantage, return_=advantage + b.value).flatten()
    return data if valid is None or valid.all() else data[valid.ravel()]

# cell
class OnPolicy(Learner):
    "Collects a rollout, learns from it, throws it away"
    metrics: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ('loss/policy', 'what the policy makes small: −mean log π(a|s) Â, for PPO −L^CLIP (eq. 7)'),
        ('loss/value', '½ (V − G)²', 'value²', (0, math.inf)),
        ('policy/entropy', 'H[π]: falls slowly, early collapse means no exploration', 'nats'),
        ('grad/norm', 'length of the gradient before it is cut', '', (0, math.inf)),
        ('value/explained_variance', '1 − Var[G − V] / Var[G]; says little where all returns are alike', '',
         (-math.inf, 1)),
        ('schedule/learning_rate', 'step size now', '', (0, math.inf)),
    )
    actions = 'discrete', 'multi_discrete', 'multi_binary', 'box'

    def __init__(self,
        config: Config,           # as `Learner`
        env: VectorEnv,           # as `Learner`
        streams: Streams,         # as `Learner`
        device: str = 'cpu',      # as `Learner`
        engine: Any = 'auto',     # as `Learner`
    ) -> None:
        super().__init__(config, env, streams, device, engine)
        self.buffer = RolloutBuffer(self.config.num_steps, env, self.module.fields)

    def make_module(self, net: NetConfig, observation_spec: ArraySpec, action_spec: ArraySpec, rng: np.random.Generator  # as `Learner`
                    ) -> RLModule:
        return ActorCritic(observation_spec, action_spec, net, rng, self.num_envs)

    def build(self) -> dict[str, Part]:
        return dict(agent=Part(self.module, self.config.learning_rate, 1e-5, self.config.max_grad_norm))

    def example(self) -> Batch:
        number = ArraySpec('', (), np.dtype(np.float32))
        return allocate(dict(obs=self.observation_spec) | self.module.fields | dict(advantage=number, return_=number), (2,))

    def collect(self,
        stepper: Stepper,  # the agent in its environments
    ) -> Batch:            # (T, N, …), on the buffer's own memory
        "Fill the buffer; add the value of each step's true next observation"
        act, buffer = self.module.act, self.buffer
        noise = self.module.noise(self.streams['action'], (buffer.num_steps, buffer.num_envs))
        collect(stepper, buffer, lambda seen, t: act(seen, noise[t]))
        return buffer.batch().replace(next_value=next_values(buffer, lambda seen: self.module.value(seen.obs)))

    def update(self,
        batch: Batch,     # of `collect`
        progress: float,  # 0 → 1 over the training
    ) -> dict[str, float]:  # metrics
        "Learn from one rollout; then the normaliser may move"
        c, self.progress = self.config, progress
        data = learning_rows(batch, self.module.reward_scale, c.gamma, c.gae_lambda)
        adam = self.parts['agent'].adam
        adam.lr = anneal(c.learning_rate, c.learning_rate_schedule, progress)
        told = self.learn(data)
        check_finite('weights', adam.vector.detach())
        self.module.update_statistics(batch.obs)
        return told | {'value/explained_variance': explained_variance(data.value, data.return_),
                       'schedule/learning_rate': adam.lr}

    def learn(self,
        data: Batch,         # rows of one rollout, (B, …)
    ) -> dict[str, float]:   # metrics
        "One gradient step on the whole rollout; PPO makes many smaller ones"
        return self.descend(self.minibatch(data))

    def minibatch(self,
        rows: Batch,   # some rows of a rollout
    ) -> Batch:        # their advantages standardised, if the config says so
        "What one gradient step sees"
        if not self.config.normalize_advantage: return rows
        return rows.replace(advantage=normalize_advantage(rows.advantage))

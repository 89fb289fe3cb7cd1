# cell
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlstudio.algos.common import Told
from rlstudio.algos.on_policy import OnPolicy, OnPolicyConfig
from rlstudio.core.options import Count, Positive, Unit
from rlstudio.nets.dists import Array

# cell
def policy_gradient_loss(
    log_prob: Array,   # log π_θ(a|s), (B,)
    advantage: Array,  # Â, (B,), without gradient
) -> Array:            # a number to make small
    "−mean log π Â: its gradient is the policy gradient, arXiv:1602.01783 sec. 4"
    return -(log_prob * advantage).mean()

# cell
@dataclass(frozen=True, kw_only=True)
class A2CConfig(OnPolicyConfig):
    "The `algo` section of a config file for A2C."
    learning_rate: Positive = 1e-3    # Adam's step size
    num_steps: Count = 8              # T, env steps of each env between updates
    gae_lambda: Unit = 0.95           # trace decay λ

# cell
class A2C(OnPolicy):
    "Advantage actor-critic: one step of the plain policy gradient for each short rollout, arXiv:1602.01783."
    Config = A2CConfig

    def losses(self, b: Any) -> Iterator[Told]:   # (B, …), as `Learner`
        c = self.config
        log_prob, entropy, value = self.module.evaluate(b.obs, b.action)
        policy, critic, H = policy_gradient_loss(log_prob, b.advantage), .5 * (value - b.return_).square().mean(), entropy.mean()
        yield 'agent', policy + c.vf_coef * critic - c.ent_coef * H, {'loss/policy': policy, 'loss/value': critic, 'policy/entropy': H}

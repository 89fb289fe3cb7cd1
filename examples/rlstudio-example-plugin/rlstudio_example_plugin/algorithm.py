"An algorithm: everything of A2C but one line of its loss."
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlstudio.algos.a2c import A2C, A2CConfig
from rlstudio.core.options import Positive


@dataclass(frozen=True, kw_only=True)
class AWRConfig(A2CConfig):
    "The `algo` section of a config: what A2C has, and the two numbers of the weight"
    temperature: Positive = 1.0  # β: smaller values listen more to the best actions
    max_weight: Positive = 20.0  # no action counts for more


class AWR(A2C):
    "Advantage-weighted regression: imitate the actions taken, the good ones more, arXiv:1910.00177"
    Config = AWRConfig

    def losses(self, b: Any) -> Iterator[Any]:
        c = self.config
        log_prob, entropy, value = self.module.evaluate(b, b.action)
        spread = b.advantage.std() + 1e-8
        weight = (b.advantage / (spread * c.temperature)).exp().clip(0, c.max_weight)
        policy = -(weight * log_prob).mean()
        critic = 0.5 * (value - b.return_).square().mean()
        yield "agent", policy + c.vf_coef * critic, {"loss/policy": policy, "loss/value": critic, "policy/entropy": entropy.mean()}

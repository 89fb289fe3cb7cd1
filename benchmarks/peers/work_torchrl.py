"TorchRL: one training of the case ppo with its collector, GAE and clipped loss; the last line of its output is JSON."
import json
import sys
import time
from importlib.metadata import version

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

torch.set_num_threads(1)
task = json.loads(sys.argv[1])
N, T, EPOCHS, PARTS = 8, 128, 4, 4
torch.manual_seed(task["seed"])


def mlp(out: int) -> nn.Sequential: return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))


world = lambda: GymEnv("CartPole-v1", categorical_action_encoding=True)   # noqa: E731
actor = ProbabilisticActor(TensorDictModule(mlp(2), in_keys=["observation"], out_keys=["logits"]), in_keys=["logits"], distribution_class=torch.distributions.Categorical, return_log_prob=True)
critic = ValueOperator(mlp(1), in_keys=["observation"])
envs = SerialEnv(N, world)
envs.set_seed(task["seed"])
updates = task["steps"] // (N * T)
collector = Collector(envs, actor, frames_per_batch=N * T, total_frames=updates * N * T, no_cuda_sync=True)
gae = GAE(gamma=.99, lmbda=.95, value_network=critic, average_gae=False)
loss_of = ClipPPOLoss(actor, critic, clip_epsilon=.2, entropy_bonus=False, critic_coeff=.5, loss_critic_type="l2", normalize_advantage=True)
adam = torch.optim.Adam(loss_of.parameters(), lr=3e-4, eps=1e-5)
start = time.perf_counter()
for data in collector:
    with torch.no_grad(): gae(data)
    rows = data.reshape(-1)
    for _ in range(EPOCHS):
        for part in torch.randperm(N * T).split(N * T // PARTS):
            told = loss_of(rows[part])
            loss = told["loss_objective"] + told["loss_critic"]
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(loss_of.parameters(), .5)
            adam.step()
seconds, returns = time.perf_counter() - start, []
collector.shutdown()
judge = world()
judge.set_seed(10_000 + task["seed"])
with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
    for _ in range(task["episodes"]): returns.append(float(judge.rollout(500, actor)["next", "reward"].sum()))
score = torch.tensor(returns)
print(json.dumps(dict(total_steps=updates * N * T, env_steps_per_second=updates * N * T / seconds, eval_return_mean=float(score.mean()), eval_return_std=float(score.std(unbiased=False)), version=version("torchrl"))))

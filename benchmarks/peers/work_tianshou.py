"Tianshou: one training of the case ppo, its collector and its update in turns; the last line of its output is JSON."
import json
import sys
import time
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from tianshou.utils.torch_utils import policy_within_training_step

torch.set_num_threads(1)
task = json.loads(sys.argv[1])
N, T = 8, 128
np.random.seed(task["seed"])   # noqa: NPY002 (Tianshou draws from it)
torch.manual_seed(task["seed"])
world = gym.make("CartPole-v1")
body = lambda: Net(state_shape=(4,), hidden_sizes=(64, 64), activation=torch.nn.Tanh)   # noqa: E731
actor, critic = DiscreteActor(preprocess_net=body(), action_shape=2, softmax_output=False), DiscreteCritic(preprocess_net=body())
policy = ProbabilisticActorPolicy(actor=actor, dist_fn=lambda logits: torch.distributions.Categorical(logits=logits), deterministic_eval=True, action_space=world.action_space, action_scaling=False)
ppo = PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=3e-4, eps=1e-5), eps_clip=.2, vf_coef=.5, ent_coef=0., max_grad_norm=.5, gae_lambda=.95, gamma=.99, max_batchsize=N * T)
envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")] * N)
collector = Collector(ppo, envs, VectorReplayBuffer(N * T, N))
collector.reset(gym_reset_kwargs=dict(seed=task["seed"]))
updates, start = task["steps"] // (N * T), time.perf_counter()
for _ in range(updates):
    with policy_within_training_step(policy): collector.collect(n_step=N * T)
    with policy_within_training_step(policy): ppo.update(buffer=collector.buffer, batch_size=256, repeat=4)
    collector.reset_buffer(keep_statistics=True)
seconds = time.perf_counter() - start
judge = Collector(ppo, DummyVectorEnv([lambda: gym.make("CartPole-v1")] * N))
judge.reset(gym_reset_kwargs=dict(seed=10_000 + task["seed"]))
returns = judge.collect(n_episode=task["episodes"]).returns
print(json.dumps(dict(total_steps=updates * N * T, env_steps_per_second=updates * N * T / seconds, eval_return_mean=float(np.mean(returns)), eval_return_std=float(np.std(returns)), version=version("tianshou"))))

"skrl: one training of the case ppo with its agent, memory and sequential trainer; the last line of its output is JSON."
import json
import logging
import sys
import tempfile
import time
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn

torch.set_num_threads(1)
logging.getLogger("skrl").setLevel(logging.ERROR)
task = json.loads(sys.argv[1])
N, T = 8, 128
set_seed(task["seed"])


def mlp(out): return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))


class Policy(CategoricalMixin, Model):
    def __init__(self, observation_space, action_space, device):
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device=device)
        CategoricalMixin.__init__(self)
        self.net = mlp(2)

    def compute(self, inputs, role=""): return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    def __init__(self, observation_space, action_space, device):
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device=device)
        DeterministicMixin.__init__(self)
        self.net = mlp(1)

    def compute(self, inputs, role=""): return self.net(inputs["observations"]), {}


raw = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * N)
raw.reset(seed=task["seed"])
env = wrap_env(raw)
spaces = dict(observation_space=env.observation_space, action_space=env.action_space, device="cpu")
models = dict(policy=Policy(**spaces), value=Value(**spaces))
cfg = PPO_CFG(rollouts=T, learning_epochs=4, mini_batches=4, discount_factor=.99, gae_lambda=.95, learning_rate=3e-4, ratio_clip=.2, value_clip=0., entropy_loss_scale=0., value_loss_scale=.5, grad_norm_clip=.5)
folder = tempfile.mkdtemp()
cfg.experiment.directory, cfg.experiment.write_interval, cfg.experiment.checkpoint_interval = folder, 0, 0
agent = PPO(models=models, memory=RandomMemory(memory_size=T, num_envs=N, device="cpu"), cfg=cfg, **spaces)
updates = task["steps"] // (N * T)
trainer = SequentialTrainer(env=env, agents=agent, cfg=dict(timesteps=updates * T, headless=True, disable_progressbar=True, close_environment_at_exit=False))
start = time.perf_counter()
trainer.train()
seconds, returns, world = time.perf_counter() - start, [], gym.make("CartPole-v1")
for episode in range(task["episodes"]):
    seen, total, over = world.reset(seed=10_000 + task["seed"] * 100 + episode)[0], 0., False
    while not over:
        with torch.no_grad(): action = int(models["policy"].net(torch.tensor(seen)).argmax())
        seen, reward, terminated, truncated, _ = world.step(action)
        total, over = total + float(reward), terminated or truncated
    returns.append(total)
print(json.dumps(dict(total_steps=updates * N * T, env_steps_per_second=updates * N * T / seconds, eval_return_mean=float(np.mean(returns)), eval_return_std=float(np.std(returns)), version=version("skrl"))))

"One training of the case ppo in the manner of CleanRL: one file, torch, Gymnasium's SyncVectorEnv; the last line of its output is JSON."
import json
import sys
import time

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

torch.set_num_threads(1)
task = json.loads(sys.argv[1])
N, T, EPOCHS, PARTS = 8, 128, 4, 4
torch.manual_seed(task["seed"])
rng = np.random.default_rng(task["seed"])


def layer(i: int, o: int, gain: float = 2**.5) -> nn.Linear:
    new = nn.Linear(i, o)
    nn.init.orthogonal_(new.weight, gain)
    nn.init.zeros_(new.bias)
    return new


actor = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 2, .01))
critic = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.))
parameters = [*actor.parameters(), *critic.parameters()]
adam = torch.optim.Adam(parameters, lr=3e-4, eps=1e-5)
envs = gym.vector.SyncVectorEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))] * N, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
obs, actions, logs, rewards, dones, values = torch.zeros(T, N, 4), torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N)
now, done = torch.tensor(envs.reset(seed=task["seed"])[0]), torch.zeros(N)
updates, start = task["steps"] // (N * T), time.perf_counter()
for _ in range(updates):
    for t in range(T):
        obs[t], dones[t] = now, done
        with torch.no_grad():
            dist = Categorical(logits=actor(now))
            action = dist.sample()
            actions[t], logs[t], values[t] = action, dist.log_prob(action), critic(now).flatten()
        seen, reward, terminated, truncated, _ = envs.step(action.numpy())
        rewards[t], now, done = torch.tensor(reward), torch.tensor(seen), torch.tensor(terminated | truncated, dtype=torch.float32)
    with torch.no_grad():
        following, last, advantages = critic(now).flatten(), torch.zeros(N), torch.zeros(T, N)
        for t in reversed(range(T)):
            alive, after = (1 - done, following) if t == T - 1 else (1 - dones[t + 1], values[t + 1])
            last = rewards[t] + .99 * after * alive - values[t] + .99 * .95 * alive * last
            advantages[t] = last
        returns = advantages + values
    b = [x.flatten(0, 1) for x in (obs, actions, logs, advantages, returns)]
    for _ in range(EPOCHS):
        for rows in np.split(rng.permutation(N * T), PARTS):
            o, a, old, adv, ret = (x[rows] for x in b)
            dist = Categorical(logits=actor(o))
            ratio = (dist.log_prob(a) - old).exp()
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            policy = torch.max(-adv * ratio, -adv * ratio.clamp(.8, 1.2)).mean()
            loss = policy + .5 * (.5 * (critic(o).flatten() - ret) ** 2).mean() - 0. * dist.entropy().mean()
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, .5)
            adam.step()
seconds, totals = time.perf_counter() - start, []
world = gym.make("CartPole-v1")
for episode in range(task["episodes"]):
    seen, total, over = world.reset(seed=10_000 + task["seed"] * 100 + episode)[0], 0., False
    while not over:
        with torch.no_grad(): action = int(actor(torch.tensor(seen)).argmax())
        seen, reward, terminated, truncated, _ = world.step(action)
        total, over = total + float(reward), terminated or truncated
    totals.append(total)
print(json.dumps(dict(total_steps=updates * N * T, env_steps_per_second=updates * N * T / seconds, eval_return_mean=float(np.mean(totals)), eval_return_std=float(np.std(totals)), version=f"torch {torch.__version__}")))

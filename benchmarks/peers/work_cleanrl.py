"""One training of the case ppo in the manner of CleanRL: one file, torch, Gymnasium's SyncVectorEnv; the last line of its output is JSON.

As `cleanrl-envpool`, EnvPool steps the worlds, in as many threads as there are cores; they are Gymnasium's of the same names: CartPole-v1's 20,000 steps were at most 3e-7 from Gymnasium's, ends and rewards the same, and random
episodes of LunarLander-v3 were as long and as good. EnvPool's step after an end does nothing but reset: such a row is neither learned from nor counted. Returns are summed up in NumPy there, as CleanRL does it with EnvPool.
"""
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
pool = task["library"] == "cleanrl-envpool"
torch.manual_seed(task["seed"])
rng = np.random.default_rng(task["seed"])


def layer(i: int, o: int, gain: float = 2**.5) -> nn.Linear:
    new = nn.Linear(i, o)
    nn.init.orthogonal_(new.weight, gain)
    nn.init.zeros_(new.bias)
    return new


world = gym.make(task["world"])
size, count = world.observation_space.shape[0], int(world.action_space.n)
actor = nn.Sequential(layer(size, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, count, .01))
critic = nn.Sequential(layer(size, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.))
parameters = [*actor.parameters(), *critic.parameters()]
adam = torch.optim.Adam(parameters, lr=3e-4, eps=1e-5)
version = f"torch {torch.__version__}"
if pool:
    import envpool
    envs, version = envpool.make_gymnasium(task["world"], num_envs=N, num_threads=task["cores"], seed=task["seed"]), f"envpool {envpool.__version__}, {version}"
else: envs = gym.vector.SyncVectorEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(task["world"]))] * N, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
obs, actions, logs, rewards, dones, values = torch.zeros(T, N, size), torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N)
now, done = torch.tensor(envs.reset(seed=task["seed"])[0]), torch.zeros(N)
running, finished, steps = np.zeros(N), list[float](), 0
updates, start = task["steps"] // (N * T), time.perf_counter()
for _ in range(updates):
    for t in range(T):
        obs[t], dones[t] = now, done
        with torch.no_grad():
            dist = Categorical(logits=actor(now))
            action = dist.sample()
            actions[t], logs[t], values[t] = action, dist.log_prob(action), critic(now).flatten()
        seen, reward, terminated, truncated, _ = envs.step(action.numpy().astype(np.int32) if pool else action.numpy())
        if pool:
            running += reward
            over = terminated | truncated
            if over.any():
                finished += running[over].tolist()
                running[over] = 0
        rewards[t], now, done = torch.tensor(reward), torch.tensor(seen), torch.tensor(terminated | truncated, dtype=torch.float32)
    with torch.no_grad():
        following, last, advantages = critic(now).flatten(), torch.zeros(N), torch.zeros(T, N)
        for t in reversed(range(T)):
            alive, after = (1 - done, following) if t == T - 1 else (1 - dones[t + 1], values[t + 1])
            last = rewards[t] + .99 * after * alive - values[t] + .99 * .95 * alive * last
            advantages[t] = last
        returns = advantages + values
    use = np.flatnonzero(dones.flatten() == 0) if pool else np.arange(N * T)
    steps += len(use)
    b = [x.flatten(0, 1) for x in (obs, actions, logs, advantages, returns)]
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(use), PARTS):
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
for episode in range(task["episodes"]):
    seen, total, over = world.reset(seed=10_000 + task["seed"] * 100 + episode)[0], 0., False
    while not over:
        with torch.no_grad(): action = int(actor(torch.tensor(seen)).argmax())
        seen, reward, terminated, truncated, _ = world.step(action)
        total, over = total + float(reward), terminated or truncated
    totals.append(total)
print(json.dumps(dict(total_steps=steps, env_steps_per_second=steps / seconds, eval_return_mean=float(np.mean(totals)), eval_return_std=float(np.std(totals)), version=version)))

# ruff: noqa: E402, I001
"Stable-Baselines3, and SBX, which is the same in JAX: one training of a case; the last line of its output is JSON."
import json
import sys
import time

import torch

torch.set_num_threads(1)
task = json.loads(sys.argv[1])
library, case, seed, steps, warm, episodes, envs = (task[k] for k in ("library", "case", "seed", "steps", "warm", "episodes", "envs"))
if library == "sbx": import sbx as peer
else: import stable_baselines3 as peer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

if library == "sbx":
    from flax.linen import tanh
else: tanh = torch.nn.Tanh

def worlds(n, seed):
    if "pixels" not in case: return make_vec_env(task["world"], n_envs=n, seed=seed, **(dict(vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork")) if library == "sb3-subproc" and n > 1 else {}))
    import ale_py
    import gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack
    gymnasium.register_envs(ale_py)
    return VecFrameStack(make_atari_env("ALE/Pong-v5", n_envs=n, seed=seed, env_kwargs=dict(frameskip=1, repeat_action_probability=0)), 4)

models = dict(
    ppo=lambda: peer.PPO("MlpPolicy", worlds(envs, seed), n_steps=128, batch_size=32 * envs, n_epochs=4, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95,
                         clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, seed=seed, device="cpu",
                         policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=tanh)),
    sac=lambda: peer.SAC("MlpPolicy", worlds(1, seed), train_freq=1, gradient_steps=1, batch_size=256, learning_rate=1e-3, learning_starts=100,
                         buffer_size=100_000, gamma=0.99, tau=0.005, ent_coef="auto", seed=seed, device="cpu",
                         policy_kwargs=dict(net_arch=[256, 256])),
    dqn=lambda: peer.DQN("MlpPolicy", worlds(1, seed), train_freq=4, gradient_steps=1, batch_size=64, learning_rate=5e-4, learning_starts=1000,
                         buffer_size=100_000, gamma=0.99, tau=1.0, target_update_interval=1000, exploration_initial_eps=1.0,
                         exploration_final_eps=0.05, exploration_fraction=0.1, max_grad_norm=10, seed=seed, device="cpu",
                         policy_kwargs=dict(net_arch=[64, 64])))
models["ppo-pixels"] = lambda: peer.PPO("CnnPolicy", worlds(8, seed), n_steps=128, batch_size=256, n_epochs=4, learning_rate=2.5e-4, gamma=0.99,
                                        gae_lambda=0.95, clip_range=0.1, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5, seed=seed, device="cpu")
models["dqn-pixels"] = lambda: peer.DQN("CnnPolicy", worlds(1, seed), train_freq=4, gradient_steps=1, batch_size=32, learning_rate=1e-4,
                                        learning_starts=1000, buffer_size=10_000, gamma=0.99, tau=1.0, target_update_interval=1000,
                                        exploration_initial_eps=1.0, exploration_final_eps=0.01, exploration_fraction=0.1, seed=seed, device="cpu")
models["solve"] = lambda: peer.PPO("MlpPolicy", worlds(8, seed), n_steps=32, batch_size=256, n_epochs=20, learning_rate=lambda left: left * 1e-3, clip_range=lambda left: left * 0.2, gamma=0.98,
                                   gae_lambda=0.8, ent_coef=0.0, seed=seed, device="cpu")   # as the zoo of Stable-Baselines3 has tuned it
model, compiles = models.get(case, models["ppo"])(), 0.
if library == "sbx" and case != "solve": warm = max(warm, 1024)   # JAX compiles in the first update
if warm:
    begun = time.perf_counter()
    model.learn(warm)
    compiles = time.perf_counter() - begun if library == "sbx" else 0.   # with the steps that came with it
before, start = (model.num_timesteps, model._n_updates), time.perf_counter()
model.learn(steps - warm, reset_num_timesteps=not warm)
seconds = time.perf_counter() - start
mean, std = evaluate_policy(model, worlds(20 if case == "solve" else 1, seed + 1), n_eval_episodes=episodes)
print(json.dumps(dict(total_steps=model.num_timesteps, env_steps_per_second=(model.num_timesteps - before[0]) / seconds,
                      updates_per_second=(model._n_updates - before[1]) / seconds, eval_return_mean=float(mean), eval_return_std=float(std),
                      compile_seconds=compiles, version=peer.__version__)))

"""RLlib: one training of the case ppo with its new API stack; the last line of its output is JSON.

One process does the work, as is best on few cores: a local env runner with all worlds in one vector, and a local learner; Ray's own processes idle beside it, on the same cores. CartPole-v1 is stepped in Gymnasium's NumPy form of it, a tenth
faster here than a loop over eight; worlds without one are stepped in a loop. Actions are numbers, so nothing normalises or clips them. RLlib stops a rollout at the first vector step that fills it, so it has up to 7 steps too many, and 17
minibatches for 16; what it sampled is what counts. It scales advantages over the rollout, not over a minibatch; the critic's ½ is in its weight. Adam's ε and the first weights are RLlib's own. RLlib asks for an older Gymnasium than ours, with the same versions of these worlds.
"""
import json
import logging
import os
import sys
import time

os.environ |= dict(RAY_USAGE_STATS_ENABLED="0", PYTHONWARNINGS="ignore")
import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

torch.set_num_threads(1)
task = json.loads(sys.argv[1])
N, T = 8, 128
for left in (2, 1, 0):   # a busy machine may need more than the half minute that Ray waits for itself
    try: ray.init(num_cpus=task["cores"], include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception:
        ray.shutdown()
        if not left: raise
    else: break
logging.getLogger("ray.rllib").setLevel(logging.ERROR)
vector = "vector_entry_point" if gym.spec(task["world"]).vector_entry_point else "sync"
config = (PPOConfig().environment(task["world"], normalize_actions=False, clip_actions=False).framework("torch").learners(num_learners=0).debugging(seed=task["seed"], log_level="ERROR")
          .env_runners(num_env_runners=0, num_envs_per_env_runner=N, gym_env_vectorize_mode=vector, rollout_fragment_length=T)
          .training(train_batch_size_per_learner=N * T, minibatch_size=N * T // 4, num_epochs=4, lr=3e-4, gamma=.99, lambda_=.95, clip_param=.2, vf_clip_param=float("inf"), vf_loss_coeff=.25, entropy_coeff=0., use_kl_loss=False,
                    grad_clip=.5, grad_clip_by="global_norm")
          .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)))
algo = config.build_algo()
updates, start = task["steps"] // (N * T), time.perf_counter()
for _ in range(updates): told = algo.train()
seconds, steps = time.perf_counter() - start, int(told["env_runners"]["num_env_steps_sampled_lifetime"])
module, world, returns = algo.get_module(), gym.make(task["world"]), []
for episode in range(task["episodes"]):
    seen, total, over = world.reset(seed=10_000 + task["seed"] * 100 + episode)[0], 0., False
    while not over:
        with torch.no_grad(): action = int(module.forward_inference(dict(obs=torch.tensor(seen)[None]))["action_dist_inputs"].argmax())
        seen, reward, terminated, truncated, _ = world.step(action)
        total, over = total + float(reward), terminated or truncated
    returns.append(total)
algo.stop()
ray.shutdown()
print(json.dumps(dict(total_steps=steps, env_steps_per_second=steps / seconds, eval_return_mean=float(np.mean(returns)), eval_return_std=float(np.std(returns)), version=ray.__version__)))

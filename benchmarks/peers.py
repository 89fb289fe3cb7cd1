#!/usr/bin/env python
"""RLStudio beside Stable-Baselines3, the same PPO work on CartPole-v1, in interleaved rounds, each with one thread.

    python benchmarks/peers.py --rounds 5 --steps 100000

8 environments × 128 steps, 4 minibatches, 4 epochs, two tanh networks of 64 × 64, no normalisation of observations or rewards. What
counts is environment steps per second of the training loop alone. Stable-Baselines3 goes into an environment of its own, which is
thrown away (or kept with --venv); it borrows torch and gymnasium from this one by a path, and nothing is installed here.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, RunFailed, append, record, rlstudio, table

CONFIG = ROOT / "configs" / "ppo" / "cartpole.yaml"
SAME_WORK = [
    "env.num_envs=8", "algo.num_steps=128", "algo.num_minibatches=4", "algo.num_epochs=4", "net.hidden=[64,64]", "net.activation=tanh",
    "net.normalize_obs=false", "net.normalize_reward=false", "algo.learning_rate=0.0003", "algo.learning_rate_schedule=constant", "algo.gamma=0.99", "algo.gae_lambda=0.95",
    "algo.clip_range=0.2", "algo.ent_coef=0.0", "algo.vf_coef=0.5", "algo.max_grad_norm=0.5", "algo.target_kl=null", "eval.episodes=20",
]
SB3 = """
import json, sys, time
import torch
torch.set_num_threads(1)
import stable_baselines3
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

seed, steps = int(sys.argv[1]), int(sys.argv[2])
env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
model = PPO("MlpPolicy", env, n_steps=128, batch_size=256, n_epochs=4, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95, clip_range=0.2,
            ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, seed=seed, device="cpu",
            policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=torch.nn.Tanh))
start = time.perf_counter()
model.learn(steps)
seconds = time.perf_counter() - start
mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=1, seed=seed + 1), n_eval_episodes=20)
print(json.dumps(dict(total_steps=model.num_timesteps, env_steps_per_second=model.num_timesteps / seconds, eval_return_mean=float(mean),
                      eval_return_std=float(std), version=stable_baselines3.__version__)))
"""


def make_venv(folder: Path) -> Path:
    "An environment for the peer: its own packages, and torch and gymnasium borrowed from this one by a path"
    python = folder / "bin" / "python"
    if not python.exists(): subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
    (Path(own.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "stable-baselines3"], check=True,
                   stdout=sys.stderr)
    return python


def peer(python: Path, seed: int, steps: int) -> dict[str, Any]:
    "One run of Stable-Baselines3"
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run([python, "-c", SB3, str(seed), str(steps)], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    if done.returncode: raise RunFailed(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def ours(seed: int, steps: int, runs: str) -> dict[str, Any]:
    "One run of RLStudio"
    result, _ = rlstudio("run", CONFIG, f"train.seed={seed}", f"train.total_steps={steps}", *SAME_WORK, "--runs-dir", runs, "--quiet")
    return {k: result[k] for k in ("total_steps", "env_steps_per_second", "eval_return_mean", "eval_return_std")}


def compare(python: Path, rounds: int, steps: int) -> list[dict[str, Any]]:
    "Rounds of one run each, the first to go alternating, so that a drifting machine is fair to both"
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        for n in range(1, rounds + 1):
            todo = [("rlstudio", lambda n=n: ours(n, steps, runs)), ("sb3", lambda n=n: peer(python, n, steps))]
            row = {name: go() for name, go in todo[::1 if n % 2 else -1]}
            row |= {"round": n, "ratio": row["rlstudio"]["env_steps_per_second"] / row["sb3"]["env_steps_per_second"]}
            print(f"round {n}: {row['ratio']:.2f} ×", flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=102_400, help="env steps of one run (default: 102400)")
    parser.add_argument("--venv", type=Path, help="keep the peer's environment in this folder, outside the project's own")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = compare(make_venv(options.venv or Path(temporary) / "venv"), options.rounds, options.steps)
    for row in rows if not options.no_store else []: append(RESULTS / "peers.jsonl", record(config="ppo CartPole-v1, 8 × 128, 4 × 4, 64-64 tanh", steps=options.steps, **row))
    body = [(r["round"], round(r["rlstudio"]["env_steps_per_second"]), round(r["sb3"]["env_steps_per_second"]), float(r["ratio"]),
             float(r["rlstudio"]["eval_return_mean"]), float(r["sb3"]["eval_return_mean"])) for r in rows]
    print(table(("round", "rlstudio steps/s", "sb3 steps/s", "ratio", "rlstudio return", "sb3 return"), body))
    print(f"\nmedian ratio {statistics.median(r['ratio'] for r in rows):.2f} ×")


if __name__ == "__main__": main()

#!/usr/bin/env python
"""A learning curve of RLStudio's SAC and of Stable-Baselines3's: one seed, the same settings, steps, machine and evaluation.

    python benchmarks/curves.py halfcheetah --library sb3
    python benchmarks/curves.py halfcheetah --library rlstudio

One environment, one update per env step, one thread. Every 5,000 env steps ten greedy episodes are played in an environment of its own, and
both libraries meet the same ten starts. Each run is one line of benchmarks/results/curves.jsonl; its seconds are those of training, without
start-up and evaluation. `curves_figure` draws what is stored.
"""
import argparse
import importlib.metadata as metadata
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import RESULTS, ROOT, RunFailed, append, history, make_venv, one_thread, record, rlstudio, sha256, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORED = RESULTS / "curves.jsonl"
EPISODES = 10
ENVS = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "pendulum": "Pendulum-v1"}
SETTINGS = {  # the published ones (Stable-Baselines3's defaults, and its zoo's warm-up), under our names
    "learning_rate": 3e-4, "buffer_size": 1_000_000, "batch_size": 256, "learning_starts": 10_000, "gamma": 0.99, "tau": 0.005}
SAME = ["env.num_envs=1", "algo.num_steps=500", "algo.train_every=1", "algo.update_ratio=1", "algo.n_step=1", "algo.prioritized=false",
        "net.hidden=[256,256]", "net.activation=relu", "net.normalize_obs=false", "net.normalize_reward=false"]
SB3 = """
import json, sys, time
import torch
torch.set_num_threads(1)
import gymnasium, numpy, stable_baselines3
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

env_id, seed, steps, every, starts, settings = json.loads(sys.argv[1])

class Evaluate(BaseCallback):
    def __init__(self):
        super().__init__()
        self.env, self.points, self.seconds = gymnasium.make(env_id), [], 0.0

    def episode(self, start):
        obs, _ = self.env.reset(seed=start)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = self.env.step(self.model.predict(obs, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
        return total

    def _on_step(self):
        if self.num_timesteps % every: return True
        begin = time.perf_counter()
        returns = [self.episode(start) for start in starts]
        self.points.append((self.num_timesteps, float(numpy.mean(returns)), float(numpy.std(returns))))
        self.seconds += time.perf_counter() - begin
        print(self.points[-1], file=sys.stderr, flush=True)
        return True

model = SAC("MlpPolicy", gymnasium.make(env_id), train_freq=1, gradient_steps=1, ent_coef="auto", seed=seed, device="cpu",
            policy_kwargs=dict(net_arch=[256, 256]), **settings)
evaluate, begin = Evaluate(), time.perf_counter()
model.learn(steps, callback=evaluate)
seconds = time.perf_counter() - begin - evaluate.seconds
print(json.dumps(dict(points=evaluate.points, seconds=seconds, version=stable_baselines3.__version__)))
"""


def config_of(name: str) -> Path:
    "halfcheetah → configs/sac/halfcheetah.yaml"
    return ROOT / "configs" / "sac" / f"{name}.yaml"


def ours(name: str, seed: int, steps: int, every: int) -> dict[str, Any]:
    "The curve of RLStudio"
    settings = [f"algo.{k}={v}" for k, v in SETTINGS.items()]
    measured = [f"train.seed={seed}", f"train.total_steps={steps}", f"eval.every={every}", f"eval.episodes={EPISODES}"]
    with tempfile.TemporaryDirectory() as runs:
        result, _ = rlstudio("run", config_of(name), *SAME, *settings, *measured, "--runs-dir", runs, "--quiet")
        found = json.loads((Path(result["run"]) / "evaluations.json").read_text())
    return {"points": [(e["env_steps"], e["mean"], e["std"]) for e in found], "seconds": result["train_seconds"],
            "config_sha256": sha256(config_of(name)), "weights_sha256": result["weights_sha256"]}


def sb3(name: str, seed: int, steps: int, every: int, python: Path) -> dict[str, Any]:
    "The curve of Stable-Baselines3, evaluated from the starts that ours is evaluated from"
    from rlstudio.core.seeding import Streams
    starts = [Streams(seed).seed("eval", k) for k in range(EPISODES)]
    task = json.dumps([ENVS[name], seed, steps, every, starts, SETTINGS])
    done = subprocess.run([python, "-c", SB3, task], stdout=subprocess.PIPE, text=True, env=one_thread(), stdin=subprocess.DEVNULL)
    if done.returncode: raise RunFailed(f"Stable-Baselines3 ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, library: str, seed: int, steps: int, every: int, venv: Path | None) -> dict[str, Any]:
    "One run of one library, as a line for the history"
    if library == "rlstudio": found, version = ours(name, seed, steps, every), {}
    else:
        with tempfile.TemporaryDirectory() as temporary:
            found = sb3(name, seed, steps, every, make_venv(venv or Path(temporary) / "venv", "stable-baselines3"))
        version = {"stable-baselines3": found.pop("version")}
    if ENVS[name].endswith("-v5"): version["mujoco"] = metadata.version("mujoco")
    return record(env=ENVS[name], algo="sac", library=library, seed=seed, steps=steps, every=every, episodes=EPISODES,
                  settings=SETTINGS) | {"versions": versions() | version} | found


LABELS = {"rlstudio": "RLStudio", "sb3": "Stable-Baselines3"}


def stored(env: str, algo: str = "sac", seed: int = 1, path: Path = STORED) -> dict[str, dict[str, Any]]:
    "The newest line of each library, ours first"
    found = {r["library"]: r for r in history(path) if (r["env"], r["algo"], r["seed"]) == (env, algo, seed)}
    return {name: found[name] for name in LABELS if name in found}


def curves_figure(env: str = "HalfCheetah-v5", algo: str = "sac", seed: int = 1, path: Path = STORED) -> "Figure":
    "Return of the evaluations against env steps, one line for each library, with a band of one deviation of their episodes"
    from matplotlib.figure import Figure

    from rlstudio.runs.pictures import BLUE, RED
    rows = stored(env, algo, seed, path)
    if not rows: raise ValueError(f"no curve of {algo} on {env} with seed {seed} is stored in {path.name}; run benchmarks/curves.py first")
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.add_subplot()
    for library, row in rows.items():
        color = RED if library == "rlstudio" else BLUE
        steps, mean, spread = zip(*row["points"])
        low, high = zip(*((m - s, m + s) for m, s in zip(mean, spread)))
        ax.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        ax.plot(steps, mean, "o-", color=color, ms=3, lw=1.5, label=LABELS[library])
    ax.set(xlabel="env steps", ylabel="return of an episode", xlim=(0, None))
    ax.set_title(f"{algo.upper()} on {env}, seed {seed}: mean ± sd of {row['episodes']} greedy episodes", fontsize="medium", parse_math=False)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=ENVS, default="halfcheetah", help="a config of configs/sac (default: halfcheetah)")
    parser.add_argument("--library", choices=("rlstudio", "sb3"), default="rlstudio")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100_000, help="env steps (default: 100000)")
    parser.add_argument("--every", type=int, default=5_000, help="env steps between two evaluations (default: 5000)")
    parser.add_argument("--venv", type=Path, help="keep the peer's environment in this folder, outside the project's own")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    parser.add_argument("--figure", type=Path, help="run nothing: draw what is stored into this .svg or .png")
    options = parser.parse_args()
    if options.figure:
        from rlstudio.runs.pictures import save_figure
        return save_figure(curves_figure(ENVS[options.name], seed=options.seed), options.figure)
    row = measure(options.name, options.library, options.seed, options.steps, options.every, options.venv)
    if not options.no_store: append(STORED, row)
    for step, mean, std in row["points"]: print(f"{step:>9,} {mean:10.1f} ± {std:.1f}")
    print(f"{row['library']}: {row['seconds']:.0f} s for {options.steps:,} env steps of {row['env']}, seed {row['seed']}")


if __name__ == "__main__": main()

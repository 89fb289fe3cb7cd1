#!/usr/bin/env python
"""What a GPU gives, and what it does not: gradient steps per second and whole trainings, on the CPU and on a GPU of the same machine.

    python benchmarks/gpu.py --out benchmarks/results/gpu.jsonl     # needs a GPU of CUDA; about nine minutes
    python benchmarks/gpu.py --show                                 # the stored figures as tables

Four ways to make the same gradient step are timed in turns, several rounds: the tape on one thread of the CPU, autograd on some threads, autograd on the GPU, and recorded steps (`engine = graphs`). A step includes all that the
training pays for it: moving the minibatch to the GPU, and reading the metrics. Before that, recorded steps are compared with autograd's on the GPU, weight by weight. At the end each algorithm lives from the command line: trained twice, killed and resumed, audited. Where there is no GPU, the script says so and measures nothing.
"""
import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import workspace

from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.batch import Batch
from rlstudio.core.options import config_from_dict
from rlstudio.train.trainer import Trainer

ATARI = dict(id="ALE/Pong-v5", kwargs=dict(repeat_action_probability=0), wrappers=[dict(name="atari")])
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], int]] = {   # name → algorithm, env, its keys, net, rows of a minibatch
    "PPO 64×64, 256 rows": ("ppo", dict(id="CartPole-v1"), {}, dict(hidden=[64, 64]), 256),
    "PPO 256×256, 4,096 rows": ("ppo", dict(id="CartPole-v1"), {}, dict(hidden=[256, 256]), 4096),
    "PPO 1024×1024, 16,384 rows": ("ppo", dict(id="CartPole-v1"), {}, dict(hidden=[1024, 1024]), 16384),
    "PPO Nature CNN, 256 rows": ("ppo", ATARI | dict(num_envs=2), {}, dict(encoder="nature", hidden=[512]), 256),
    "DQN 128×128, 64 rows": ("dqn", dict(id="CartPole-v1"), {}, {}, 64),
    "DQN Nature CNN, 32 rows": ("dqn", ATARI | dict(num_envs=1), dict(buffer_size=1000), dict(encoder="nature", hidden=[512]), 32),
    "SAC 256×256, 256 rows": ("sac", dict(id="Pendulum-v1"), {}, {}, 256),
    "SAC 1024×1024, 1,024 rows": ("sac", dict(id="Pendulum-v1"), {}, dict(hidden=[1024, 1024]), 1024),
    "TD3 256×256, 256 rows": ("td3", dict(id="Pendulum-v1"), {}, {}, 256),
}
WAYS = {   # name → device, engine, threads
    "tape, 1 thread": ("cpu", "tape", 1), "autograd, 8 threads": ("cpu", "autograd", 8), "GPU, autograd": ("cuda", "autograd", 1), "GPU, recorded": ("cuda", "graphs", 1),
}


def learner_of(case: str, device: str, engine: str) -> tuple[Any, Batch]:
    "A learner as a training makes it, and a batch of random numbers"
    algo, env, more, net, rows = CASES[case]
    config = config_from_dict(dict(algo=dict(name=algo) | more, env=env, net=net, train=dict(total_steps=100_000, seed=1)))
    learner = Trainer(config, (), device, engine=engine).algo
    rng = np.random.default_rng(3)
    def fill(x: Any) -> Any:
        shape = (rows, *x.shape[1:])
        if x.dtype.kind == "f": return rng.standard_normal(shape).astype(x.dtype)
        return rng.integers(0, 256 if x.dtype == np.uint8 else 2, shape).astype(x.dtype)
    return learner, learner.example().map(fill)


def one_step(learner: Any, batch: Batch) -> None:
    "What a training pays for a gradient step"
    if hasattr(learner, "updates"): learner.updates += 1
    learner.descend(batch)


def difference(case: str, steps: int = 40) -> dict[str, float]:
    "How far recorded steps lead from autograd's on the same GPU; how far autograd does on the CPU, and once more on the GPU; in shares of the way that the weights have gone"
    ends = []
    for device, engine in (("cuda", "autograd"), ("cuda", "graphs"), ("cpu", "autograd"), ("cuda", "autograd")):
        learner, batch = learner_of(case, device, engine)
        first = torch.cat([p.flat.vector.detach().cpu().clone() for p in learner.parts.values()])
        for _ in range(steps): one_step(learner, batch)
        ends.append(torch.cat([p.flat.vector.detach().cpu() for p in learner.parts.values()]))
    moved = float((ends[0] - first).norm())
    return {name: float((ends[0] - end).norm()) / moved for name, end in zip(("recorded", "cpu", "again"), ends[1:])}


def steps_per_second(case: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    "Every way in turns"
    made: dict[str, Any] = {}
    for way, (device, engine, _) in WAYS.items():
        try: made[way] = learner_of(case, device, engine)
        except ValueError as e: print(f"{case}: {way}: {str(e)[:150]}", flush=True)   # the tape knows no convolution
    found: dict[str, list[float]] = {way: [] for way in made}
    for turn in range(rounds + 1):
        for way, (learner, batch) in made.items():
            with arithmetic_threads(WAYS[way][2]):
                for _ in range(6 if turn == 0 else 1): one_step(learner, batch)
                begin, count = time.perf_counter(), 0
                while time.perf_counter() - begin < (0.05 if turn == 0 else seconds):
                    one_step(learner, batch)
                    count += 1
                if turn: found[way].append(count / (time.perf_counter() - begin))
    return found


def training(config: dict[str, Any], device: str, engine: str) -> dict[str, float]:
    "A whole training: seconds, and what was learned"
    trainer = Trainer(config_from_dict(config), (), device, engine=engine)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    returns = [r for r in (trainer.metrics or {}).items() if r[0] == "episode/return_mean"]
    return {"seconds": seconds, "steps_per_second": trainer.stepper.env_steps / seconds, "return": float(returns[0][1]) if returns else float("nan")}


TRAININGS: dict[str, dict[str, Any]] = {
    "PPO CartPole, 8 envs": dict(algo=dict(name="ppo"), env=dict(id="CartPole-v1", num_envs=8), train=dict(total_steps=102_400, seed=1)),
    "PPO CartPole, 256 envs": dict(algo=dict(name="ppo", num_steps=32, num_minibatches=8), env=dict(id="CartPole-v1", num_envs=256), train=dict(total_steps=409_600, seed=1)),
    "PPO Pong, 8 envs": dict(algo=dict(name="ppo", num_steps=128), env=ATARI | dict(num_envs=8), net=dict(encoder="nature", hidden=[512]), train=dict(total_steps=6_144, seed=1)),
    "SAC Pendulum, 1 env": dict(algo=dict(name="sac"), env=dict(id="Pendulum-v1"), train=dict(total_steps=8_000, seed=1)),
}


LIVES: dict[str, list[str]] = {   # algorithm → what its command line says; small worlds, so that a life takes seconds
    "ppo": ["ppo/cartpole", "train.total_steps=61_440"], "a2c": ["a2c/cartpole", "train.total_steps=40_000"], "dqn": ["dqn/cartpole", "train.total_steps=6_000"],
    "sac": ["sac/pendulum", "train.total_steps=3_000"], "td3": ["td3/pendulum", "train.total_steps=3_000", "algo.learning_starts=1_000"],
}


def life(algo: str, engine: str, device: str) -> dict[str, Any]:
    "Trained twice, a third time killed with SIGKILL halfway and resumed, and audited: by the command line, in processes of their own"
    with tempfile.TemporaryDirectory() as folder:
        home = workspace(folder, engine, device)
        def rlstudio(*args: str) -> subprocess.Popen: return subprocess.Popen([sys.executable, "-c", "from rlstudio.studio.cli import main; main()", *args, "--json"], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        def told(process: subprocess.Popen) -> dict[str, Any]:
            out, err = process.communicate()
            if not out.startswith("{"): raise RuntimeError(f"exit code {process.returncode}: {err[-2000:]}")
            return json.loads(out)
        def train(name: str) -> subprocess.Popen: return rlstudio("run", *LIVES[algo], "checkpoint.every=500", "eval.episodes=3", f"--name={name}")
        ends = [told(process)["weights_sha256"] for process in [train("one"), train("two")]]
        steps, third, metrics = int(LIVES[algo][1].split("=")[1]), train("three"), home / "runs" / "three" / "metrics.jsonl"
        while third.poll() is None and (not metrics.exists() or max((json.loads(line).get("step", 0) for line in metrics.read_text().splitlines(True) if line.endswith("\n")), default=0) < steps / 2): time.sleep(.01)
        third.kill()
        if third.wait() != -signal.SIGKILL: raise RuntimeError(f"it ended before it could be killed: {third.communicate()[1][-2000:]}")
        resumed, audit = told(rlstudio("resume", "three")), told(rlstudio("audit", "one"))
        manifest = json.loads((home / "runs" / "three" / "manifest.json").read_text())
        return dict(env_steps=steps, engine=manifest["engine"], device=manifest["device"], resumes=len(manifest["legs"]), alike=ends[0] == ends[1], resumed_alike=resumed["weights_sha256"] == ends[0],
                    audit="identical" if audit["identical"] else audit["difference"])


def all_lives(write: Callable[..., None], engine: str = "graphs", device: str = "cuda") -> None:
    "Every algorithm's life, all at a time: nothing is timed"
    def one(algo: str) -> None:
        try:
            write(kind="life", case=algo, **(row := life(algo, engine, device)))
            print("life of", algo, row, flush=True)
        except Exception as e: print(f"life of {algo}: {type(e).__name__}: {e}"[:2500], flush=True)
    with ThreadPoolExecutor(len(LIVES)) as pool: list(pool.map(one, LIVES))


def measure(out: Path, rounds: int, seconds: float) -> None:
    "All figures, one line for each"
    def write(**row: Any) -> None:
        with out.open("a") as file: file.write(json.dumps(about | row) + "\n")
    about = dict(gpu=torch.cuda.get_device_name(0), torch=torch.__version__, cuda=torch.version.cuda)
    for case in CASES:
        try:
            write(kind="difference", case=case, **(apart := difference(case)))
            write(kind="steps", case=case, rows=CASES[case][4], rates=(rates := steps_per_second(case, rounds, seconds)))
            print(case, {k: f"{v:.1e}" for k, v in apart.items()}, {k: round(statistics.median(v)) for k, v in rates.items()}, flush=True)
        except Exception as e: print(f"{case}: {type(e).__name__}: {e}"[:600], flush=True)
    for name, config in TRAININGS.items():
        for way, (device, engine, threads) in WAYS.items():
            if (way == "autograd, 8 threads") != ("Pong" in name) and device == "cpu": continue   # the tape knows no convolution
            try:
                with arithmetic_threads(threads): told = training(config, device, engine)
                write(kind="training", case=name, way=way, **told)
                print(name, way, {k: round(v, 1) for k, v in told.items()}, flush=True)
            except Exception as e: print(f"{name}: {way}: {type(e).__name__}: {e}"[:600], flush=True)
    all_lives(write)


def show(path: Path) -> str:
    "The stored figures as Markdown"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if not rows: return "nothing is stored"
    lines = [f"{rows[-1]['gpu']}, torch {rows[-1]['torch']}; gradient steps per second, medians", "", "| step | " + " | ".join(WAYS) + " | difference of weights after 40 steps: recorded, autograd again, autograd on the CPU |", "|---" * (len(WAYS) + 2) + "|"]
    apart = {r["case"]: ", ".join(f"{r[k]:.0e}" if r[k] else "0" for k in ("recorded", "again", "cpu")) for r in rows if r["kind"] == "difference"}
    for r in rows:
        if r["kind"] != "steps": continue
        cells = [f"{(rate := statistics.median(r['rates'][w])):,.{0 if rate >= 10 else 1}f}" if r["rates"].get(w) else "–" for w in WAYS]
        lines.append(f"| {r['case']} | " + " | ".join(cells) + f" | {apart.get(r['case'], '–')} |")
    lines += ["", "| training | way | env steps/s | return at the end |", "|---|---|---|---|"]
    lines += [f"| {r['case']} | {r['way']} | {r['steps_per_second']:,.0f} | {'–' if r['return'] != r['return'] else format(r['return'], '.0f')} |" for r in rows if r["kind"] == "training"]
    lives = [r for r in rows if r["kind"] == "life"]
    if lives: lines += ["", f"Killed with SIGKILL and resumed, and run twice, with recorded steps: {sum(r['alike'] and r['resumed_alike'] for r in lives)} of {len(lives)} algorithms with equal hashes; executed again by `rlstudio audit`, {sum(r['audit'] == 'identical' for r in lives)} of {len(lives)} identical in every update."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each way in each round")
    parser.add_argument("--show", action="store_true", help="only the stored figures")
    options = parser.parse_args()
    if options.show: return print(show(options.out))
    if not torch.cuda.is_available(): raise SystemExit("gpu: given a machine without a GPU of CUDA, expected one; --show prints the stored figures")
    options.out.unlink(missing_ok=True)
    measure(options.out, options.rounds, options.seconds)
    print(show(options.out))


if __name__ == "__main__": main()

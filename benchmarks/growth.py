#!/usr/bin/env python
"""How cost grows: with environments, width, workers, processes, the size of a memory and the number of seeds; each with a model of two numbers, and the roof above it.

    python benchmarks/growth.py --run                  # all of it, about ten minutes on a quiet machine; then the picture and the page
    python benchmarks/growth.py --run --only envs      # one of them
    python benchmarks/growth.py --run --quick          # the smallest case of each, which nobody stores
    python benchmarks/growth.py --show                 # the newest stored figures
    python benchmarks/growth.py --plot                 # docs/images/growth.svg, and the table in docs/pages/howto/fast.md; --check fails if they are not fresh

| axis | the work | model of its cost | roof |
|---|---|---|---|
| envs | PPO on CartPole-v1, minibatches of 256, 4 epochs, 64-64 tanh | a + b / envs | a: what is left when calls are shared by very many |
| width | the same, 8 envs × 128 steps, two layers of this width | a + b × FLOP | its FLOP at the rate of one matrix product of that size |
| workers | 8 × HalfCheetah-v5, stepped in worker processes | a + b / min(workers, cores) | what the worlds themselves take, shared by the cores |
| ranks | PPO on CartPole-v1, 192 envs, in processes that learn together | a × (ranks − 1) + b / min(ranks, cores) | the faster engine in one process, shared by the cores |
| replay | 256 rows from a memory of this size, CartPole's transitions | a + b × log10 size | NumPy's `take` of as many packed rows |
| seeds | `rlstudio study --stack N`: a quick look of 2,048 steps at N seeds | a + b / seeds | a run that starts nothing, as the model tells it: a |

And two ratios: `sampling`, our replay memory beside Stable-Baselines3's `ReplayBuffer`, and `stack`, ten seeds of CartPole in one process beside ten runs.

Points take turns, round by round, forwards and backwards. Costs are processor time, except of workers and ranks, which only wall time can tell, and so only on a machine that has nothing else to do. Each axis is a line in
results/growth.jsonl with every round. A model is fitted to the medians by least squares of relative misses.
"""
# ruff: noqa: E402
import sys

sys.path.append(sys.path.pop(0))   # numba asks for the package `coverage`, and a script beside this one has its name

import argparse
import hashlib
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import RESULTS, RLSTUDIO, ROOT, RunFailed, append, history, make_venv, one_thread, record, table

ROWS, PICTURE, PAGE = RESULTS / "growth.jsonl", ROOT / "docs/images/growth.svg", ROOT / "docs/pages/howto/fast.md"
BEGIN, END = "<!-- growth: written by benchmarks/growth.py -->\n", "<!-- end of growth -->\n"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ENGINES = "tape", "compiled"
Series = dict[str, dict[str, list[float]]]   # name → x → a cost of each round


@dataclass(frozen=True)
class Axis:
    "What grows"
    title: str
    x: str                  # its name
    unit: str               # of the cost
    sizes: tuple[int, ...]  # of the whole run
    quick: tuple[int, ...]  # of the smallest case
    terms: Callable[[float, int], tuple[float, float]]   # x, cores → what a and b are multiplied with
    model: str              # the same in words, with places for a and b
    roof: str               # what it is
    rate: str = ""          # what 1e6 / cost is; "": the cost is shown

    def shown(self, cost: float) -> float: return 1e6 / cost if self.rate else cost


def flop(width: float, outputs: int = 3, seen: int = 4) -> float:
    "Mega-FLOP of an env step of PPO: two networks, forwards once to act, and there and back (three times a forward pass) in four epochs"
    return 13 * 2 * (2 * (seen * width + width * width) + outputs * width) / 1e6


def inverse(x: float, cores: int) -> tuple[float, float]: return 1., 1 / x
def shared(x: float, cores: int) -> tuple[float, float]: return 1., 1 / min(x, cores)
def met(x: float, cores: int) -> tuple[float, float]: return x - 1, 1 / min(x, cores)


STEPS = "env steps a second"
AXES = {
    "envs": Axis("environments", "num_envs", "µs of processor time an env step", (1, 4, 16, 64, 256, 1024, 4096), (1, 16), inverse, "{a} + {b} / envs", "a alone", STEPS),
    "width": Axis("width of a layer", "width", "µs of processor time an env step", (16, 32, 64, 128, 256, 512, 1024), (16, 64), lambda x, cores: (1., flop(x)), "{a} + {b} × MFLOP", "matrix products alone", STEPS),
    "workers": Axis("workers, HalfCheetah", "workers", "µs an env step", (1, 2, 3, 4), (1, 2), shared, "{a} + {b} / min(workers, cores)", "the worlds alone, on all cores", STEPS),
    "ranks": Axis("ranks, one PPO", "ranks", "µs an env step", (1, 2, 3, 4), (1, 2), met, "{a} × (ranks − 1) + {b} / min(ranks, cores)", "the faster engine alone / cores", STEPS),
    "replay": Axis("replay memory", "transitions", "µs of processor time a sample of 256", (10_000, 100_000, 1_000_000, 10_000_000), (1_000, 10_000), lambda x, cores: (1., float(np.log10(x))), "{a} + {b} × log10 size", "NumPy's take of 256 rows"),
    "seeds": Axis("seeds in a stack", "seeds", "s of processor time a run", (1, 4, 16, 64), (1, 2), inverse, "{a} + {b} / seeds", "a alone: a run that starts nothing"),
}


# Models

def fit(axis: Axis, cost: dict[str, list[float]], cores: int) -> tuple[float, float, float]:
    "a, b, neither below zero, and the largest relative miss: least squares of relative misses"
    xs, ys = zip(*((float(x), median(rounds)) for x, rounds in cost.items()))
    A = np.array([axis.terms(x, cores) for x in xs]) / np.array(ys)[:, None]
    best: tuple[float, np.ndarray] | None = None
    for columns in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[columns] = np.linalg.lstsq(A[:, columns], np.ones(len(ys)), rcond=None)[0]
        miss = float(((A @ found - 1) ** 2).sum())
        if (found >= 0).all() and (best is None or miss < best[0]): best = miss, found
    assert best is not None
    a, b = map(float, best[1])
    return a, b, float(np.abs(A @ best[1] - 1).max())


def predicted(axis: Axis, a: float, b: float, x: float, cores: int) -> float:
    "The cost that a model says"
    one, two = axis.terms(x, cores)
    return a * one + b * two


# Taking turns

def in_turns(points: dict[tuple[str, int], Callable[[], float]], rounds: int, axis: str) -> Series:
    "The cost of each point in each round, forwards and backwards"
    costs: Series = {}
    for name, x in points: costs.setdefault(name, {})[str(x)] = []
    for k in range(rounds):
        for (name, x), measure in [*points.items()][::1 if k % 2 == 0 else -1]: costs[name][str(x)].append(float(f"{measure():.5g}"))
        print(f"{axis}: round {k + 1} of {rounds}", file=sys.stderr, flush=True)
    return costs


def cost_of(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    "Seconds of a piece of work"
    start = clock()
    work()
    return clock() - start


def gemm_rate(width: int, rows: int = 256) -> float:
    "MFLOP in a µs of one product (rows, width) × (width, width), the best of nine"
    a, b, out = np.ones((rows, width), np.float32), np.ones((width, width), np.float32), np.empty((rows, width), np.float32)
    number = max(1, int(2e7 / (rows * width * width)))
    def products() -> None:
        for _ in range(number): np.dot(a, b, out)
    return 2 * rows * width * width * number / min(cost_of(products) for _ in range(9)) / 1e12


# Trainings

def trainer(engine: str, width: int = 64, num_envs: int = 8, num_steps: int = 128, minibatch: int = 256, parallel: int = 1) -> Any:
    "PPO on CartPole, nothing normalised, four epochs"
    from rlstudio.core.options import config_from_dict
    from rlstudio.train.trainer import Trainer
    algo = dict(name="ppo", num_steps=num_steps, num_epochs=4, num_minibatches=num_envs * num_steps // minibatch, learning_rate_schedule="constant")
    return Trainer(config_from_dict(dict(env=dict(id="CartPole-v1", num_envs=num_envs), algo=algo, net=dict(hidden=[width, width], activation="tanh", normalize_obs=False, normalize_reward=False),
                                         train=dict(total_steps=10**9, seed=1, parallel=parallel))), engine=engine)


def iterations(t: Any, number: int, clock: Callable[[], float] = time.process_time) -> Callable[[], float]:
    "Go on with a training: µs an env step"
    t.step()   # compiled, and warm
    def measure() -> float:
        before = t.env_steps
        seconds = cost_of(lambda: [t.step() for _ in range(number)], clock)
        return seconds / (t.env_steps - before) * 1e6
    return measure


def run_envs(sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    def one(engine: str, n: int) -> Callable[[], float]: return iterations(trainer(engine, num_envs=n, num_steps=max(8, 1024 // n)), 1)
    costs = in_turns({(engine, n): one(engine, n) for engine in ENGINES for n in sizes}, rounds, "envs")
    return dict(series=costs, roof={})


def run_width(sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    costs = in_turns({(engine, w): iterations(trainer(engine, width=w), 1) for engine in ENGINES for w in sizes}, rounds, "width")
    return dict(series=costs, roof={str(w): flop(w) / gemm_rate(w) for w in sizes})


def run_ranks(sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        points = {}
        for engine in ENGINES:
            for k in sizes:
                t = trainer(engine, num_envs=192, num_steps=32, minibatch=1536, parallel=k)
                points[engine, k] = iterations(t, 4, time.perf_counter)
                stack.callback(t.env.close)
        costs = in_turns(points, rounds, "ranks")
    best = min(median(costs[engine][str(sizes[0])]) for engine in ENGINES) * sizes[0]
    return dict(series=costs, roof={str(k): best / CORES for k in sizes})


def run_workers(sizes: tuple[int, ...], rounds: int, steps: int = 200) -> dict[str, Any]:
    import gymnasium as gym

    from rlstudio.core.options import EnvConfig
    from rlstudio.envs.backends import make_vector
    def stepping(step: Callable[[np.ndarray], object], actions: np.ndarray) -> Callable[[], float]:
        def measure() -> float: return cost_of(lambda: [step(a) for a in actions], time.perf_counter) / actions.size * actions.shape[-1] * 1e6
        for a in actions[:20]: step(a)
        return measure
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 8, 6)).astype(np.float32)
    with ExitStack() as stack:
        points = {}
        for k in sizes:
            env = make_vector(EnvConfig(id="HalfCheetah-v5", num_envs=8, backend="workers", workers=k))
            stack.callback(env.close)
            env.reset(range(8))
            points["workers", k] = stepping(env.step, actions)
        world = gym.make("HalfCheetah-v5").unwrapped
        stack.callback(world.close)
        world.reset(seed=0)
        points["the world alone", 1] = stepping(world.step, actions[:, 0])
        costs = in_turns(points, rounds, "workers")
    alone = median(costs.pop("the world alone")["1"])
    return dict(series=costs, roof={str(k): alone / CORES for k in sizes})


# Replay memories

def memory_of(capacity: int, storage: Any) -> Any:
    "A full memory of CartPole's transitions, episodes of 200 steps"
    import gymnasium as gym

    from rlstudio.core.batch import Batch
    from rlstudio.core.spec import spec_from_space
    from rlstudio.data.replay import ReplayBuffer
    seen, choice = gym.spaces.Box(-np.inf, np.inf, (4,)), gym.spaces.Discrete(2)
    buffer = ReplayBuffer(capacity, 1, spec_from_space(seen), spec_from_space(choice, "action"), storage=storage)
    t = np.arange(min(capacity, 100_000))
    obs, next_obs = (np.repeat((t + k)[:, None], 4, 1).astype(np.float32) for k in (0, 1))
    end = t % 200 == 199
    piece = {k: x[:, None] for k, x in dict(obs=obs, next_obs=next_obs, action=t % 2, reward=np.cos(t).astype(np.float32), terminated=end, truncated=np.zeros_like(end)).items()}
    for _ in range(capacity // len(t)): buffer.add(Batch(**piece))
    return buffer


def run_replay(sizes: tuple[int, ...], rounds: int, number: int = 400) -> dict[str, Any]:
    from rlstudio.fast.replay import compiled_fetch, compiled_places
    rng = np.random.default_rng(0)
    def sampling(buffer: Any) -> Callable[[], float]:
        def measure() -> float: return cost_of(lambda: [buffer.sample(256, rng) for _ in range(number)]) / number * 1e6
        measure()
        return measure
    def taking(rows: np.ndarray) -> Callable[[], float]:
        index = [rng.integers(0, len(rows), 256) for _ in range(number)]
        def measure() -> float: return cost_of(lambda: [rows.take(i) for i in index]) / number * 1e6
        measure()
        return measure
    points: dict[tuple[str, int], Callable[[], float]] = {}
    for n in sizes:
        plain, compiled, disk = memory_of(n, "memory"), memory_of(n, "memory"), memory_of(n, "disk")
        compiled.fetch, compiled.sampler.pick = compiled_fetch, compiled_places
        points |= {("in memory", n): sampling(plain), ("compiled", n): sampling(compiled), ("on disk", n): sampling(disk), ("take", n): taking(plain.memory.arrays.row)}
    costs = in_turns(points, rounds, "replay")
    return dict(series=costs, roof={x: median(c) for x, c in costs.pop("take").items()})


# Runs in processes of their own

@contextmanager
def workspace(engine: str = "compiled") -> Iterator[Path]:
    "A folder with a settings.ini"
    with tempfile.TemporaryDirectory() as home:
        Path(home, "settings.ini").write_text(f"[DEFAULT]\nengine = {engine}\n")
        yield Path(home)


def seconds_of_children() -> float:
    "Processor time of the processes that have ended, and of theirs"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(home: Path, *words: object) -> tuple[dict[str, Any], float, float]:
    "The JSON of a command, its wall and processor seconds"
    cpu, wall = seconds_of_children(), time.perf_counter()
    done = subprocess.run([str(RLSTUDIO), *map(str, words), "--quiet", "--json"], cwd=home, env=one_thread(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode: raise RunFailed(f"{words}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - wall, seconds_of_children() - cpu


def lone(home: Path, seed: int, steps: int, episodes: int) -> tuple[dict[str, Any], float, float]:
    "A run as one starts it by hand"
    return command(home, "run", "ppo/cartpole", f"train.seed={seed}", f"train.total_steps={steps}", f"eval.episodes={episodes}", "--name", f"lone-{seed}")


def stacked(home: Path, seeds: int, steps: int, episodes: int) -> tuple[dict[str, Any], float, float]:
    "A study in one process beside its driver"
    return command(home, "study", "ppo/cartpole", f"train.total_steps={steps}", f"eval.episodes={episodes}", "--seeds", f"1-{seeds}", "--stack", seeds, "--jobs", 1, "--name", "stack")


def run_seeds(sizes: tuple[int, ...], rounds: int, steps: int = 2048) -> dict[str, Any]:
    def study(n: int) -> float:
        with workspace() as home: return stacked(home, n, steps, 5)[2] / n
    def alone() -> float:
        with workspace() as home: return lone(home, 1, steps, 5)[2]
    alone()   # compiles, once on a machine
    costs = in_turns({("study --stack", n): (lambda n=n: study(n)) for n in sizes} | {("a run alone", 1): alone}, rounds, "seeds")
    return dict(series=costs, roof={}, steps=steps)


def run_stack(budgets: tuple[int, ...], rounds: int, seeds: int = 10) -> dict[str, Any]:
    "Ten runs one after the other, and the same ten in a stack"
    found: dict[str, Any] = {}
    for steps in budgets:
        turns, episodes = [], 100 if steps > 50_000 else 10
        for k in range(rounds):
            with workspace() as home:
                def ten(home: Path = home, steps: int = steps, episodes: int = episodes) -> tuple[list[str], float, float]:
                    each = [lone(home, s, steps, episodes) for s in range(1, seeds + 1)]
                    return [r["weights_sha256"] for r, _, _ in each], sum(w for _, w, _ in each), sum(c for _, _, c in each)
                def stack(home: Path = home, steps: int = steps, episodes: int = episodes) -> tuple[list[str], float, float]:
                    result, wall, cpu = stacked(home, seeds, steps, episodes)
                    told = [json.loads(Path(home, result["study"], f"ppo-cartpole_s{s}", "manifest.json").read_text()) for s in range(1, seeds + 1)]
                    return [m["weights_sha256"] for m in told], wall, cpu
                both = {f.__name__: f() for f in ((ten, stack) if k % 2 == 0 else (stack, ten))}
            if both["ten"][0] != both["stack"][0]: raise RunFailed(f"stack: given other weights than the runs alone have: {both}")
            turns.append({name: dict(wall=round(w, 2), cpu=round(c, 2)) for name, (_, w, c) in both.items()})
            print(f"stack, {steps:,} steps: {turns[-1]['ten']['cpu'] / turns[-1]['stack']['cpu']:.2f} × cheaper", file=sys.stderr, flush=True)
        found[str(steps)] = turns
    return dict(seeds=seeds, turns=found)


# Beside Stable-Baselines3

OWN = """
from rlstudio.data.priority import Prioritized
from rlstudio.data.replay import places_between, transitions
from rlstudio.fast.replay import compiled_fetch, compiled_places
def other(capacity=capacity, **options):
    b = ReplayBuffer(capacity, 1, spec, spec_from_space(action_space, "action"), **options)
    for piece in pieces(): b.add(batch(*piece))
    return b
steps, ranked, disk = other(n_step=3), other(sampler=Prioritized(.6)), other(storage="disk")
def drawn(b, fetch=transitions, pick=places_between):
    def sample():
        b.fetch, b.sampler.pick = fetch, pick
        return b.sample(batch_size, rng)
    return sample
compiled = compiled_fetch, compiled_places   # as the engine sets them
serve(held, numpy=drawn(buffer), compiled=drawn(buffer, *compiled), tensors=lambda: tensors(drawn(buffer, *compiled)()), three_steps=drawn(steps), three_steps_compiled=drawn(steps, *compiled),
      priorities=drawn(ranked), disk=drawn(disk))
"""
THEIRS = """
from stable_baselines3.common import buffers
def filled(kind, **options):
    buffer, at = kind(capacity, obs_space, action_space, device="cpu", **options), 0
    for obs, next_obs, action, reward, terminated, truncated in pieces():
        here = slice(at, at := at + len(obs))
        buffer.observations[here, 0], buffer.next_observations[here, 0] = obs, next_obs
        buffer.actions[here, 0] = action.reshape(len(obs), -1)
        buffer.rewards[here, 0], buffer.dones[here, 0], buffer.timeouts[here, 0] = reward, terminated | truncated, truncated
    buffer.full = True
    return buffer
plain = filled(buffers.ReplayBuffer)
tasks = dict(sample=lambda: plain.sample(batch_size))
if hasattr(buffers, "NStepReplayBuffer"):
    steps = filled(buffers.NStepReplayBuffer, n_steps=3, gamma=.99)
    tasks["three_steps"] = lambda: steps.sample(batch_size)
serve(0, **tasks)
"""


def run_sampling(sizes: tuple[int, ...], rounds: int, venv: Path = ROOT / "build" / "peers" / "sb3") -> dict[str, Any]:
    "Samples of 256 from full memories of this size, each library in a process of its own, in turns"
    import replay
    python = make_venv(venv, "stable-baselines3")
    own = replay.OURS.partition("serve(held")[0] + OWN
    content = replay.CONTENT.replace("timeit.repeat(f, number=number, repeat=5)", "timeit.repeat(f, timer=time.process_time, number=number, repeat=5)").replace("import json, sys, timeit", "import json, sys, time, timeit")
    found: dict[str, Any] = {}
    for world in ("cartpole", "halfcheetah"):
        replay.CONTENT, replay.WORLDS[world] = content, sizes[-1]
        with ExitStack() as stack:
            both = {"rlstudio": replay.Worker(sys.executable, own, world, 256), "sb3": replay.Worker(python, THEIRS, world, 256)}
            for w in both.values(): stack.callback(w.close)
            found[world] = [{name: both[name].ask(300) for name in [*both][::1 if k % 2 == 0 else -1]} for k in range(rounds)]
        print(f"sampling, {world}: {median(r['sb3']['sample'] / r['rlstudio']['compiled'] for r in found[world]):.2f} × compiled, "
              f"{median(r['sb3']['sample'] / r['rlstudio']['numpy'] for r in found[world]):.2f} × NumPy", file=sys.stderr, flush=True)
    return dict(transitions=sizes[-1], batch_size=256, worlds=found)


# What is shown

RUNS: dict[str, Callable[[tuple[int, ...], int], dict[str, Any]]] = {
    "envs": run_envs, "width": run_width, "workers": run_workers, "ranks": run_ranks, "replay": run_replay, "seeds": run_seeds, "sampling": run_sampling, "stack": run_stack}
ROUNDS = dict(envs=7, width=7, workers=7, ranks=5, replay=7, seeds=1, sampling=7, stack=1)
RATIOS = {"sampling": ((1_000_000,), (10_000,)), "stack": ((20_480, 122_880), (1_024,))}   # name → what the whole run takes, and the smallest case


def newest() -> dict[str, dict[str, Any]]:
    "The newest row of each axis and ratio"
    rows = {r["axis"]: r for r in history(ROWS)}
    return {name: rows[name] for name in RUNS if name in rows}


def digits(value: float) -> str:
    "Three digits that count"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def models(rows: dict[str, dict[str, Any]]) -> Iterator[tuple[Axis, str, dict[str, Any], dict[str, list[float]], tuple[float, float, float]]]:
    "Each series of each axis, with its model"
    for name, row in rows.items():
        if name not in AXES: continue
        for series, costs in row["series"].items():
            if len(costs) > 1: yield AXES[name], series, row, costs, fit(AXES[name], costs, row["cores"])


def described(axis: Axis, costs: dict[str, list[float]], found: tuple[float, float, float]) -> tuple[str, str, str, str]:
    "From where to where, what was measured there, the model, its largest miss"
    first, last = min(costs, key=int), max(costs, key=int)
    ends = " … ".join(digits(axis.shown(median(costs[x]))) for x in (first, last))
    return f"{int(first):,} … {int(last):,}", ends, axis.model.format(a=digits(found[0]), b=digits(found[1])), f"{100 * found[2]:.0f} %"


def show(rows: dict[str, dict[str, Any]]) -> str:
    "A line a series, and the ratios"
    grid = [(f"{axis.title}, {series}", *described(axis, costs, found)[:2], axis.rate or axis.unit, *described(axis, costs, found)[2:]) for axis, series, _, costs, found in models(rows)]
    return "\n\n".join([table(("what grows", "from … to", "measured", "", "model of the cost", "largest miss"), grid), *ratios(rows)])


def in_words(rows: dict[str, dict[str, Any]]) -> list[str]:
    "A line an axis"
    said: dict[str, list[str]] = {}
    for axis, series, _, costs, found in models(rows):
        sizes, ends, model, miss = described(axis, costs, found)
        said.setdefault(f"- **{axis.title}**, {sizes}, {axis.rate or axis.unit.replace('processor time', 'CPU')}", []).append(f"*{series}* {ends} (cost {model}, at most {miss} off)")
    return [f"{head}: {'; '.join(each)}" for head, each in said.items()]


def ratios(rows: dict[str, dict[str, Any]]) -> list[str]:
    "A sentence about each ratio, medians of rounds"
    out = []
    if row := rows.get("sampling"):
        said = []
        for world, turns in row["worlds"].items():
            def times(task: str, other: str = "sample", turns: list[Any] = turns) -> str: return f"{median(t['sb3'][other] / t['rlstudio'][task] for t in turns):.1f}"
            words = f"{world.replace('cartpole', 'CartPole').replace('halfcheetah', 'HalfCheetah')} {times('compiled')} × with the compiled engine and {times('numpy')} × with NumPy"
            said.append(words + (f" ({times('three_steps_compiled', 'three_steps')} × for three steps)" if "three_steps" in turns[0]["sb3"] else ""))
        own = [f"{median(t['rlstudio'][task] for turns in row['worlds'].values() for t in turns):.0f} µs {words}" for task, words in (("priorities", "with priorities"), ("disk", "from a disk"))]
        out.append(f"A sample of {row['batch_size']} from {row['transitions']:,} transitions, as many times as fast as Stable-Baselines3's `ReplayBuffer` gives its tensors: {'; '.join(said)}. What it has not: {', '.join(own)}.")
    if row := rows.get("stack"):
        said = [f"{int(steps):,} steps each, {median(t['ten']['cpu'] / t['stack']['cpu'] for t in turns):.1f} × less processor time and {median(t['ten']['wall'] / t['stack']['wall'] for t in turns):.1f} × less wall time" for steps, turns in row["turns"].items()]
        out.append(f"{row['seeds']} seeds of CartPole by `rlstudio study --stack {row['seeds']}`, beside as many runs one after the other, with the same weights: {'; '.join(said)}.")
    return out


def mark(rows: dict[str, dict[str, Any]]) -> str:
    "Which rows a picture shows"
    return "rows " + hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


COLOURS = {"tape": "#0077bb", "compiled": "#cc3311", "on disk": "#009988"}


def draw(rows: dict[str, dict[str, Any]], file: Path) -> None:
    "A panel an axis: medians with their least and most, the model, the roof; the same rows give the same file"
    import matplotlib
    from matplotlib.figure import Figure
    shown = [(name, rows[name]) for name in AXES if name in rows]
    down = -(-len(shown) // 2)
    with matplotlib.rc_context({"svg.hashsalt": "rlstudio", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8.4, 2.9 * down), layout="constrained")
        panels = figure.subplots(down, 2, squeeze=False).flat
        for (name, row), ax in zip(shown, panels):
            axis, colours = AXES[name], iter(("#0077bb", "#ee7733"))
            for series, costs in row["series"].items():
                colour = COLOURS.get(series) or next(colours)
                xs = sorted(map(int, costs))
                low, middle, high = ([f([axis.shown(c) for c in costs[str(x)]]) for x in xs] for f in (min, median, max))
                ax.vlines(xs, low, high, color=colour, lw=1)
                ax.plot(xs, middle, "o", ms=4, color=colour, label=series)
                if len(xs) < 2: continue
                a, b, _ = fit(axis, costs, row["cores"])
                fine = np.geomspace(xs[0], xs[-1], 60)
                ax.plot(fine, [axis.shown(predicted(axis, a, b, x, row["cores"])) for x in fine], color=colour, lw=1)
                if not row["roof"]: ax.axhline(axis.shown(a), color=colour, ls=":", lw=1)
            if row["roof"]: ax.plot([int(x) for x in row["roof"]], [axis.shown(y) for y in row["roof"].values()], color="#444444", ls=":", lw=1.2)
            few = name in ("workers", "ranks")
            ax.set(xscale="linear" if few else "log", yscale="linear" if few or name == "replay" else "log", title=axis.title, xlabel=axis.x, ylabel=axis.rate or axis.unit.replace("processor time", "CPU"))
            ax.plot([], [], color="#444444", ls=":", label=f"roof: {axis.roof}")
            if few: ax.set_xticks(sorted({int(x) for c in row["series"].values() for x in c}))
            if few or name == "replay": ax.set_ylim(0, 1.45 * ax.get_ylim()[1])   # room for the words
            ax.legend(fontsize=7, frameon=False, loc="upper left" if few or name == "replay" else "best")
            ax.spines[["right", "top"]].set_visible(False)
        for ax in panels: ax.set_visible(False)   # what is left
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None, "Creator": None, "Description": mark(rows)} if file.suffix == ".svg" else None)


def page(text: str, rows: dict[str, dict[str, Any]]) -> str:
    "The page with today's figures between its marks"
    before, rest = text.split(BEGIN)
    where = sorted({f"{r['machine']['cpu']}, {r['cores']} cores" for r in rows.values()})
    shown = [AXES[name].title for name in AXES if name in rows]
    parts = [f"![How cost grows with {', '.join(shown)}: points, a model of two numbers, and the roof](../../images/growth.svg)",
             f"Points, a model of two numbers for the cost (µs an env step or a sample, s a run), and the roof, dotted ({'; '.join(where)}; [raw numbers](../../../benchmarks/results/growth.jsonl), by [growth.py](../../../benchmarks/growth.py)):",
             "\n".join(in_words(rows)), " ".join(ratios(rows))]
    return before + BEGIN + "\n\n".join(filter(None, parts)) + "\n" + END + rest.split(END)[1]


def stale(rows: dict[str, dict[str, Any]]) -> list[str]:
    "Files that are not what the rows say"
    return [p.name for p, fresh in ((PAGE, page(PAGE.read_text(), rows) == PAGE.read_text()), (PICTURE, PICTURE.exists() and mark(rows) in PICTURE.read_text())) if not fresh]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure, store, and draw")
    parser.add_argument("--only", metavar="NAME,NAME", help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--quick", action="store_true", help="the smallest case, one round: print the figures, store nothing")
    parser.add_argument("--rounds", type=int, help="(default: " + ", ".join(f"{k} {n}" for k, n in ROUNDS.items()) + ")")
    parser.add_argument("--show", action="store_true", help="print the newest figures, with their models")
    parser.add_argument("--plot", action="store_true", help="write the picture and the page from what is stored")
    parser.add_argument("--check", action="store_true", help="fail when the picture or the page is not what the stored rows say")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*RUNS]
    if odd := [n for n in names if n not in RUNS]: parser.error(f"--only: given {', '.join(odd)}, expected some of {', '.join(RUNS)}")
    if not (options.run or options.show or options.plot or options.check): parser.error("given nothing to do, expected --run, --show, --plot or --check")
    measured, failed = dict[str, dict[str, Any]](), list[str]()
    if options.run:
        from rlstudio.core.arithmetic import arithmetic_threads
        for name in names:
            sizes = (AXES[name].sizes, AXES[name].quick) if name in AXES else RATIOS[name]
            load, start = round(os.getloadavg()[0], 1), time.perf_counter()
            try:
                with arithmetic_threads(): found = RUNS[name](sizes[options.quick], options.rounds or (1 if options.quick else ROUNDS[name]))
            except (RunFailed, subprocess.CalledProcessError, ImportError) as e:
                failed.append(name)
                print(f"{name} failed, and is left out: {e}", file=sys.stderr, flush=True)
                continue
            unit = AXES[name].unit if name in AXES else "µs of processor time a sample" if name == "sampling" else "s"
            measured[name] = record(axis=name, unit=unit, cores=CORES, load=load, seconds=round(time.perf_counter() - start, 1), **found)
            if not options.quick: append(ROWS, measured[name])
        print(show(measured))
    if options.show: print(show({n: r for n, r in newest().items() if n in names}))
    if options.plot or options.run and not options.quick:
        rows = newest()
        PAGE.write_text(page(PAGE.read_text(), rows))
        draw(rows, PICTURE)
    if options.check and (found := stale(newest())):
        print(f"{', '.join(found)}: not what {ROWS.name} says; run: python benchmarks/growth.py --plot", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__": sys.exit(main())

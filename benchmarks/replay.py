#!/usr/bin/env python
"""RLStudio's replay buffer beside Stable-Baselines3's and TorchRL's: the same content, in interleaved rounds, each with one thread.

    python benchmarks/replay.py --rounds 7

Three worlds, told as their environments tell them: CartPole (4 float32, a choice of 2) and HalfCheetah (17 float64, 6 actions) with a million
transitions, and Atari (four stacked frames of 84 × 84 bytes) with ten thousand. Each library lives in a process of its own, is filled once,
and is then asked in turn: how long does a sample of 256 take, how long does it take to add one step, how many bytes are held? A sample counts until it is
torch tensors; for RLStudio, whose gradients by hand take NumPy arrays, those are timed as well. The peers go into an environment of
their own, which is thrown away (or kept with --venv); it borrows torch from this one by a path, and nothing is installed here.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, RunFailed, append, make_venv, record, table

WORLDS = {"cartpole": 1_000_000, "halfcheetah": 1_000_000, "atari": 10_000}  # name: transitions
CONTENT = """
import json, sys, timeit
import numpy as np
import torch
from gymnasium import spaces
torch.set_num_threads(1)
world, capacity, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
box = lambda n, dtype, end: spaces.Box(-end, end, (n,), dtype)
obs_space, action_space, length = dict(
    cartpole=(box(4, np.float32, np.inf), spaces.Discrete(2), 200), halfcheetah=(box(17, np.float64, np.inf), box(6, np.float32, 1), 1000),
    atari=(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6), 500))[world]

def content(start, stop):
    "Steps from start to stop: obs, next_obs, action, reward, terminated, truncated; every step another, and every other end is a cut"
    t = np.arange(start, stop)
    if world == "atari":
        def frames(back):  # one byte a frame, the first of an episode repeated
            f = np.stack([np.maximum(t % length + back - k, 0) for k in (3, 2, 1, 0)], 1) % 256
            return np.ascontiguousarray(np.broadcast_to(f[:, :, None, None], (len(t), 4, 84, 84)).astype(np.uint8))
        obs, next_obs = frames(0), frames(1)
    else: obs, next_obs = (np.repeat((t + k)[:, None] % 1e5, *obs_space.shape, 1).astype(obs_space.dtype) for k in (0, 1))
    action = t % 2 if action_space.shape == () else np.repeat(np.sin(t)[:, None], 6, 1).astype(np.float32)
    end = t % length == length - 1
    cut = end & (t // length % 2 == 0)
    return obs, next_obs, action, np.cos(t).astype(np.float32), end & ~cut, cut

def pieces():
    step = min(capacity, 100_000 if world != "atari" else 1000)
    for start in range(0, capacity, step): yield content(start, start + step)

def serve(nbytes, **tasks):
    "For each line on stdin, microseconds of each task"
    for f in tasks.values(): f()
    print(json.dumps(dict(bytes=int(nbytes))), flush=True)
    for line in sys.stdin:
        number = int(line)
        print(json.dumps({name: min(timeit.repeat(f, number=number, repeat=5)) / number * 1e6 for name, f in tasks.items()}), flush=True)
"""
OURS = """
from rlstudio.core.batch import Batch
from rlstudio.core.spec import spec_from_space
from rlstudio.data.replay import ReplayBuffer
from rlstudio.envs.vector import seen_spec
spec = seen_spec(spec_from_space(obs_space))
buffer = ReplayBuffer(capacity, 1, spec, spec_from_space(action_space, "action"), frame_stack=4 if world == "atari" else 1)

def batch(obs, next_obs, action, reward, terminated, truncated):
    one = dict(obs=obs.astype(spec.dtype), next_obs=next_obs.astype(spec.dtype), action=action, reward=reward, terminated=terminated, truncated=truncated)
    return Batch(**{k: x[:, None] for k, x in one.items()})

for piece in pieces(): buffer.add(batch(*piece))
rng, held = np.random.default_rng(0), buffer.nbytes
assert len(buffer) == capacity
x = buffer.gather(np.array([0, length - 1, length]))
assert x.discount[[0, 2]].min() > .9 and (x.next_obs == content(0, capacity)[1][[0, length - 1, length]].astype(spec.dtype)).all()
ring = iter(range(10**9))
one = [batch(*content(t, t + 1)) for t in range(2 * length)]
def tensors(b): return [torch.from_numpy(x) for x in (b.obs, b.action, b.reward, b.next_obs, b.discount)]  # what SB3 gives
serve(held, sample=lambda: tensors(buffer.sample(batch_size, rng)), sample_numpy=lambda: buffer.sample(batch_size, rng), add=lambda: buffer.add(one[next(ring) % len(one)]))
"""
SB3 = """
from stable_baselines3.common.buffers import ReplayBuffer
buffer, at = ReplayBuffer(capacity, obs_space, action_space, device="cpu"), 0
for obs, next_obs, action, reward, terminated, truncated in pieces():
    here = slice(at, at := at + len(obs))
    buffer.observations[here, 0], buffer.next_observations[here, 0] = obs, next_obs
    buffer.actions[here, 0] = action.reshape(len(obs), -1)
    buffer.rewards[here, 0], buffer.dones[here, 0], buffer.timeouts[here, 0] = reward, terminated | truncated, truncated
buffer.full = True
arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts)
one = content(0, 1)
infos = [{}]
serve(sum(x.nbytes for x in arrays), sample=lambda: buffer.sample(batch_size), add=lambda: buffer.add(*one[:4], one[4], infos))
"""
TORCHRL = """
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity), batch_size=batch_size)

def rows(obs, next_obs, action, reward, terminated, truncated):
    after = dict(observation=next_obs, reward=reward[:, None], terminated=terminated[:, None], truncated=truncated[:, None], done=(terminated | truncated)[:, None])
    after = {k: torch.as_tensor(x) for k, x in after.items()}
    return TensorDict({"observation": torch.as_tensor(obs), "action": torch.as_tensor(action), "next": after}, batch_size=[len(obs)])

for piece in pieces(): buffer.extend(rows(*piece))
one = rows(*content(0, 1))[0]
held = sum(x.numel() * x.element_size() for x in buffer.storage._storage.values(True, True))
serve(held, sample=lambda: buffer.sample(), add=lambda: buffer.add(one))
"""


class Worker:
    "A library in a process of its own, which answers questions until it is closed"
    def __init__(self, python: Path | str, code: str, world: str, batch_size: int) -> None:
        env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | {"PYTHONWARNINGS": "ignore"}
        self.errors = tempfile.TemporaryFile("w+")
        command = [python, "-c", CONTENT + code, world, str(WORLDS[world]), str(batch_size)]
        self.process = subprocess.Popen(command, text=True, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.bytes = self.answer()["bytes"]

    def answer(self) -> dict[str, Any]:
        for line in self.process.stdout or ():
            if line.startswith("{"): return json.loads(line)  # TorchRL logs to stdout as well
        self.errors.seek(0)
        raise RunFailed(self.errors.read()[-3000:])

    def ask(self, number: int) -> dict[str, float]:
        "Microseconds of each task, the best of five times `number`"
        assert self.process.stdin
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        if self.process.stdin: self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def compare(python: Path, world: str, rounds: int, batch_size: int) -> list[dict[str, Any]]:
    "Rounds in which each library is asked once, in alternating order, so that a drifting machine is fair to all"
    rows, workers, number = [], {}, 20 if world == "atari" else 500
    with ExitStack() as stack:
        for name, (own, code) in {"rlstudio": (sys.executable, OURS), "sb3": (python, SB3), "torchrl": (python, TORCHRL)}.items():
            workers[name] = Worker(own, code, world, batch_size)
            stack.callback(workers[name].close)
        for n in range(1, rounds + 1):
            row: dict[str, Any] = {}
            for name in [*workers][::1 if n % 2 else -1]: row[name] = workers[name].ask(number) | {"bytes": workers[name].bytes}
            rows.append(row | {"world": world, "round": n})
            print(f"{world} round {n}: sb3 {row['sb3']['sample'] / row['rlstudio']['sample']:.2f} ×, "
                  f"torchrl {row['torchrl']['sample'] / row['rlstudio']['sample']:.2f} ×", flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[list[object]]:
    "One line for each world and library: the medians of its rounds, and the median ratio to ours in the same round"
    lines: list[list[object]] = []
    for world, name in [(w, n) for w in WORLDS for n in ("rlstudio", "sb3", "torchrl")]:
        mine = [r for r in rows if r["world"] == world]
        if not mine: continue
        def middle(task: str, name: str = name, mine: list = mine) -> float: return statistics.median(r[name][task] for r in mine)
        ratio = statistics.median(r[name]["sample"] / r["rlstudio"]["sample"] for r in mine)
        held = mine[0][name]["bytes"]
        lines.append([world, name, middle("sample"), ratio, middle("add"), held / 1e6, held / mine[0]["rlstudio"]["bytes"]])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=256, help="transitions in a sample (default: 256)")
    parser.add_argument("--worlds", default=",".join(WORLDS), help=f"some of {','.join(WORLDS)} (default: all)")
    parser.add_argument("--venv", type=Path, help="keep the peers' environment in this folder, outside the project's own")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        python = make_venv(options.venv or Path(temporary) / "venv", "stable-baselines3")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "torchrl"], check=True, stdout=sys.stderr)
        for world in options.worlds.split(","): rows += compare(python, world, options.rounds, options.batch_size)
    for row in rows if not options.no_store else []:
        append(RESULTS / "replay.jsonl", record(batch_size=options.batch_size, transitions=WORLDS[row["world"]], **row))
    print(table(("world", "library", "sample µs", "× ours", "add µs", "MB", "× ours "), summary(rows)), end="\n\n")
    for world in dict.fromkeys(r["world"] for r in rows):
        mine = [r for r in rows if r["world"] == world]
        own = statistics.median(r["rlstudio"]["sample_numpy"] for r in mine)
        ratio = statistics.median(r["sb3"]["sample"] / r["rlstudio"]["sample_numpy"] for r in mine)
        print(f"rlstudio as NumPy arrays, {world}: {own:.1f} µs, sb3's torch tensors take {ratio:.2f} × as long")


if __name__ == "__main__": main()

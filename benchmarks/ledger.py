#!/usr/bin/env python
"""The ledger: does it find the smallest change there is, and what does it cost?

    python benchmarks/ledger.py --find 50 --cost 12

**Find.** A training is repeated with one difference: at a random update, one number of a random component (weights, first or second moment, slow copy,
experience) moves by one unit in the last place, or a random stream by one draw. Two thirds of the trials have the ledger as it is by default, where the change
comes between two updates; in the others (`ledger = fine`) it comes at a random gradient step *within* an update. Found means: the first line that differs is
that of this update (in a warm-up without gradient steps, where not each update has a line, the next one), and it names this component.

**Cost.** The same training with and without a ledger, in short turns, one thread. Two figures: the CPU time spent in the ledger's own code as a share of the
training's (medians: a busy machine's pauses are left out), and the median ratio of neighbouring turns, which holds everything, and the noise of the machine.
"""
import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, append, record, table

from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.options import Config
from rlstudio.runs.config import load_config
from rlstudio.train.ledger import Difference, Ledger, LedgerFile, first_difference, read_ledger
from rlstudio.train.trainer import Callback, Trainer

CASES = {  # name → config, overrides, updates of a trial
    "ppo": ("ppo/cartpole", [], 10), "dqn": ("dqn/cartpole", ["algo.learning_starts=400"], 8),
    "sac": ("sac/pendulum", ["algo.learning_starts=200"], 3)}
KINDS = "weights", "first moment", "second moment", "slow copy", "streams", "batch"
COMPONENT = {"first moment": "optimizer", "second moment": "optimizer", "slow copy": "optimizer"}


def config_of(case: str, more: tuple[str, ...] = ()) -> Config: return load_config(CASES[case][0], [*CASES[case][1], *more])[0]


class Nudge(Callback):
    "Changes one number by the least amount there is: after an update, or in the middle of one"
    def __init__(self, kind: str, update: int, rng: random.Random, within: bool = False) -> None:
        self.kind, self.update, self.rng, self.within, self.countdown, self.done = kind, update, rng, within, -1, ""

    def pick(self, what: str, x: np.ndarray) -> None:
        "The number, one step up"
        flat = x.reshape(-1)
        i = self.rng.randrange(flat.size)
        flat[i] = np.nextafter(flat[i], np.asarray(np.inf, flat.dtype))
        self.done = f"{what}[{i}]"

    def nudge(self, trainer: Trainer, part: Any = None) -> None:
        algo: Any = trainer.algo
        name = next(n for n, p in algo.parts.items() if p is part) if part else self.rng.choice([n for n, p in algo.parts.items() if self.kind != "slow copy" or p.target])
        part = algo.parts[name]
        if self.kind == "streams": return self.stream(trainer)
        vector = dict(weights=lambda: part.flat.vector.detach(), **{"first moment": lambda: part.adam.mean, "second moment": lambda: part.adam.square, "slow copy": lambda: part.target.vector})[self.kind]()
        used = np.concatenate([np.arange(s.start, s.start + s.size) for s in part.flat.slots.values()])   # not the room between two parameters
        i = int(self.rng.choice(used))
        vector[i] = torch.nextafter(vector[i], torch.tensor(torch.inf))
        self.done = f"{name} {self.kind}[{i}]"

    def stream(self, trainer: Trainer) -> None:
        key = self.rng.choice(sorted(trainer.streams._made))
        state = trainer.streams._made[key].bit_generator.state
        state["state"]["state"] ^= 1
        trainer.streams._made[key].bit_generator.state = state
        self.done = f"stream {key[1]}"

    def on_collect_end(self, trainer: Trainer) -> None:
        if trainer.iteration != self.update - 1 or self.done: return
        if self.kind == "batch":
            if self.countdown < 0: self.countdown = self.rng.randrange(trainer.algo.rounds)   # one of the rounds of this update
            self.countdown -= 1
            if self.countdown >= 0: return
            name = self.rng.choice([k for k in ("obs", "reward", "log_prob", "value", "next_value") if k in trainer.batch.keys()])
            x = trainer.batch.fields[name]
            self.countdown = 0
            return self.pick(f"batch {name}", x)
        if self.within and self.countdown < 0: self.arm(trainer)

    def arm(self, trainer: Trainer) -> None:
        "Stand in for the step of each part, until it is time"
        c, parts = trainer.config.algo, [p for p in trainer.algo.parts.values() if p.target or self.kind != "slow copy"]
        gradients = c.num_epochs * c.num_minibatches if c.name == "ppo" else int(c.num_steps * trainer.env.num_envs * c.update_ratio) * len(parts)
        self.countdown = self.rng.randrange(gradients)
        for part in parts:
            def step(part: Any = part, real: Any = part.step) -> Any:
                told = real()
                if self.countdown == 0 and not self.done: self.nudge(trainer, part)   # after its step, before the ledger is told
                self.countdown -= self.countdown > 0
                return told
            part.step = step

    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == self.update and not self.within and self.kind != "batch": self.nudge(trainer)


def trained(case: str, path: Path, updates: int, mode: str = "on", *callbacks: Callback) -> LedgerFile:
    "The ledger of so many updates"
    config = config_of(case)
    ledger = Ledger(path, {}, mode)
    trainer = Trainer(config, [*callbacks, ledger])
    steps = updates * trainer.algo.rounds * config.algo.round_steps(config.env.num_envs)
    trainer.train(steps)
    trainer.env.close()
    found = read_ledger(path)
    path.unlink()
    return found


def trial(case: str, seed: int, mode: str, known: dict[Any, LedgerFile], folder: Path) -> tuple[str, int, str, Difference | None]:
    "One repetition with one difference: what was changed, in which update, which component, and what the ledgers say"
    rng = random.Random(f"{case} {seed} {mode}")
    kinds = [k for k in KINDS if case != "ppo" or k != "slow copy"]
    if mode == "fine": kinds = [k for k in kinds if k not in ("streams", "batch")]
    kind, last = rng.choice(kinds), CASES[case][2]
    update = rng.randint({"dqn": 4, "sac": 2}.get(case, 1) if mode == "fine" else 1, last)
    if (case, mode) not in known: known[case, mode] = trained(case, folder / "known.jsonl", last + 2, mode)
    nudge = Nudge(kind, update, rng, within=mode == "fine")
    found = first_difference(known[case, mode], trained(case, folder / "nudged.jsonl", update + 2, mode, nudge))
    return nudge.done, update, COMPONENT.get(kind, kind), found


def is_found(update: int, component: str, found: Difference | None, mode: str = "on") -> bool:
    "This update, or the first line since it (in a warm-up not each update has one); the component, or, within an update, what was folded in there"
    return found is not None and found.after < update <= found.iteration and (component in found.components or (mode == "fine" and "losses" in found.components))


def clock_seconds() -> float:
    "CPU time that two looks at the clock count as that of what lies between them"
    found = [-(time.process_time() - time.process_time()) for _ in range(10_000)]
    return statistics.median(found)


CLOCK = clock_seconds()


class Timed(Ledger):
    "A ledger that measures its own CPU time, without that of the clock"
    def on_train_start(self, trainer: Trainer) -> None:
        super().on_train_start(trainer)
        self.times = list[Any]()

    def on_iteration_end(self, trainer: Trainer) -> None:
        time.process_time()   # after an update its code is cold: that is no cost of the ledger
        start, before = time.process_time(), self.last
        super().on_iteration_end(trainer)
        took = time.process_time() - start - CLOCK
        self.times.append((self.last > before, took))


def usual(times: list[float]) -> float:
    "All of them together, if each had taken what is usual: the pauses of a busy machine are charged to whoever runs"
    return len(times) * statistics.median(times) if times else 0.


def witness_seconds() -> float:
    "CPU time to tell the ledger of one gradient step"
    ledger, n = Ledger("unused"), 100_000
    learner = type("Learner", (), dict(witness=ledger.see))()
    start = time.process_time()
    for _ in range(n):
        if learner.witness: learner.witness(None, .5)
    return (time.process_time() - start) / n


def cost(name: str, overrides: list[str], updates: int, turns: int, mode: str, engine: str, folder: Path) -> dict[str, Any]:
    "Share of the ledger's own code, and the median ratio of neighbouring turns"
    config = load_config(name, overrides)[0]
    ledger = Timed(folder / "cost.jsonl", {}, mode)
    plain, watched = Trainer(config, engine=engine), Trainer(config, [ledger], engine=engine)
    trainers, ratios, total = (plain, watched), list[float](), [0., 0.]
    for t in trainers:
        t.emit("train_start")
        while not getattr(t.algo, "updates", 1): t.step()
        t.step()
    ledger.times, gradients, steps = list[Any](), 0, list[float]()
    for turn in range(turns):
        took = [0., 0.]
        for k in (0, 1) if turn % 2 else (1, 0):
            before = sum(float(p.adam.count) for p in trainers[k].algo.parts.values())
            for _ in range(updates):
                start = time.process_time()
                trainers[k].step()
                steps.append(time.process_time() - start)
                took[k] += steps[-1]
                if k: steps.pop()    # only the plain ones
            total[k] += took[k]
            if k: gradients += int(sum(float(p.adam.count) for p in trainers[k].algo.parts.values()) - before)
        ratios.append(took[1] / took[0])
    for t in trainers: t.env.close()
    ledger.close()
    (folder / "cost.jsonl").unlink()
    spent = sum(usual([s for line, s in ledger.times if line == kind]) for kind in (True, False)) + (gradients * witness_seconds() if mode == "on" else 0.)
    return dict(part="cost", config=name, overrides=overrides, engine=engine, mode=mode, updates=updates * turns, lines=sum(line for line, _ in ledger.times), share=round(spent / usual(steps), 5),
                ratio_median=round(statistics.median(ratios), 4), ratio_total=round(total[1] / total[0], 4), ms_per_update=round(1000 * total[0] / updates / turns, 2))


COSTS = [("ppo/cartpole", [], 6), ("dqn/cartpole", [], 3), ("dqn/cartpole", ["net.hidden=[64,64]", "algo.batch_size=32"], 3), ("sac/pendulum", [], 1), ("a2c/cartpole", [], 40)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--find", type=int, default=0, help="trials with a change")
    parser.add_argument("--cost", type=int, default=0, help="turns of each cost")
    parser.add_argument("--mode", default="on", choices=("on", "fine"), help="of the ledger whose cost is measured")
    parser.add_argument("--engine", default="auto", help="of the training whose ledger's cost is measured")
    args = parser.parse_args()
    path, rows = RESULTS / "ledger.jsonl", list[Any]()
    with tempfile.TemporaryDirectory() as place, arithmetic_threads(1):
        known: dict[Any, LedgerFile] = {}
        good = 0
        for seed in range(args.find):
            case, mode = ("ppo", "dqn", "ppo", "dqn", "sac")[seed % 5], "fine" if seed % 3 == 2 else "on"
            done, update, component, found = trial(case, seed, mode, known, Path(place))
            good += is_found(update, component, found, mode)
            print(f"{seed:3} {case} {mode:4} update {update:2} {done:32} {'found' if is_found(update, component, found, mode) else 'NOT FOUND'}: {found}", flush=True)
        if args.find: append(path, record(part="find", trials=args.find, found=good))
        for name, overrides, updates in COSTS if args.cost else []:
            rows.append(row := cost(name, overrides, updates, args.cost, args.mode, args.engine, Path(place)))
            append(path, record(**row))
            print(row, flush=True)
    if rows: print(table(("config", "mode", "ms an update", "lines", "share %", "ratio"), [
        (" ".join([r["config"], *r["overrides"]]), r["mode"], r["ms_per_update"], r["lines"], 100 * r["share"], r["ratio_median"]) for r in rows]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

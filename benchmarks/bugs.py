#!/usr/bin/env python
"""The score of the gate: the classic bugs of reinforcement learning, injected into every algorithm that they fit, and how many are caught.

    nice python benchmarks/bugs.py                 # every bug in every training of the quick gate; goes on where it was stopped
    python benchmarks/bugs.py --controls 10        # sound code against the baseline, fresh seeds each time: false alarms
    python benchmarks/bugs.py --simulate 10000     # the same by simulation, in each of two kinds of scores
    python benchmarks/bugs.py --table              # what is known so far

A bug is a line of the library that is wrong for the time of a training. `rlstudio gate` would notice nearly all of them by its first question, since a bit is no longer what it was. So that question is left out here,
and the statistics have to answer: five fresh seeds, then ten more. Each line of benchmarks/results/bugs.jsonl holds the raw measures. Beside the whole gate stands a gate that looks at returns alone.
"""
import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from common import RESULTS, append, history, record, table

from rlstudio.algos import a2c, on_policy, ppo, sac
from rlstudio.algos.common import Part
from rlstudio.core.batch import Batch
from rlstudio.core.options import config_hash, to_dict
from rlstudio.core.seeding import make_generator
from rlstudio.data import replay
from rlstudio.data.returns import td_error
from rlstudio.data.rollout import next_values
from rlstudio.evidence.gate import (
    ALARM,
    CONFIRM,
    FAIL,
    LATE,
    QUICK,
    RETURN,
    Baseline,
    GateCell,
    fresh_seeds,
    one_verdict,
    read_baseline,
    surprises,
    train_here,
)

STORED = RESULTS / "bugs.jsonl"
Values = dict[str, Any]


@contextmanager
def swapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    "Inside, a function of a module or a class is another one, made from the right one"
    right = vars(owner)[name]
    setattr(owner, name, staticmethod(make(right.__func__)) if isinstance(right, staticmethod) else make(right))
    try: yield
    finally: setattr(owner, name, right)


# One function a bug: how it is injected. Each has the form that it has in real code.

def leaking_gae(right: Any) -> Any:
    "Advantages flow from one episode into the one before"
    def gae(reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, gamma: float, lam: float) -> Any:
        delta = td_error(reward, value, next_value, terminated, gamma)
        advantage, ahead = np.empty_like(delta), np.zeros_like(delta[0])
        for t in reversed(range(len(delta))): advantage[t] = ahead = delta[t] + gamma * lam * ahead
        return advantage
    return gae


def cut_is_terminal(right: Any) -> Any:
    "done = terminated or truncated, and no value beyond either"
    return lambda reward, value, next_value, terminated, truncated, *rest: right(reward, value, next_value, terminated | truncated, truncated & False, *rest)


def one_step_short(right: Any) -> Any:
    "Bootstraps from V(s_t) in the place of V(s_t+1)"
    return lambda reward, value, next_value, *rest: right(reward, value, value, *rest)


def cut_is_terminal_in_replay(right: Any) -> Any:
    "No discount, and so no value, behind any end"
    def discount_table(n_step: int, gamma: float) -> Any:
        discounts = right(n_step, gamma).copy()
        discounts[:, 1:] = 0
        return discounts
    return discount_table


def discount_one_short(right: Any) -> Any:
    "The value behind n steps is discounted by gamma^(n-1)"
    def discount_table(n_step: int, gamma: float) -> Any:
        discounts = right(n_step, gamma)
        return np.concatenate([discounts[:1], discounts[:-1]])
    return discount_table


def frozen_critic(right: Any) -> Any:
    "All values that are bootstrapped from come from the critic of the first day"
    def collect(self: Any, stepper: Any) -> Batch:
        b = right(self, stepper) and self.buffer
        first = self.__dict__.setdefault("first_critic", None) or self.__dict__.update(first_critic=copy.deepcopy(self.module)) or self.first_critic
        obs = b.batch().obs
        b.rows.value[:] = first.value(Batch(obs=obs.reshape(-1, *obs.shape[2:]))).reshape(b.rows.value.shape)
        return b.batch().replace(next_value=next_values(b, first.value))
    return collect


def entropy_pays_less(right: Any) -> Any:
    "+ in the place of − before the entropy bonus"
    def losses(self: Any, b: Any) -> Iterator[Any]:
        for part, loss, told in right(self, b): yield part, loss + 2 * self.config.ent_coef * told["policy/entropy"], told
    return losses


def entropy_pays_less_in_sac(right: Any) -> Any:
    "− in the place of + before α log π"
    return lambda log_prob, q, alpha: right(log_prob, q, -alpha)


def old_log_probs(right: Any) -> Any:
    "Learns from this rollout with the log-probabilities of the one before"
    def learn(self: Any, data: Batch) -> dict[str, float]:
        before, self.kept = getattr(self, "kept", data.log_prob), data.log_prob.copy()
        return dict(right(self, data.replace(log_prob=before)))
    return learn


ON, OFF = ("ppo", "a2c"), ("dqn", "sac", "td3")
BUGS: dict[str, dict[str, tuple[Any, str, Any]]] = {  # bug → algorithm → what is swapped, and for what; none: it does not fit
    "wrong GAE mask": {a: (on_policy.OnPolicy, "advantages", leaking_gae) for a in ON},
    "no advantage normalisation": {a: (on_policy, "normalize_advantage", lambda right: lambda advantage: advantage) for a in ON},
    "truncated treated as terminal": {a: (on_policy.OnPolicy, "advantages", cut_is_terminal) for a in ON} | {a: (replay, "discount_table", cut_is_terminal_in_replay) for a in OFF},
    "target never updated": {a: (on_policy.OnPolicy, "collect", frozen_critic) for a in ON} | {a: (Part, "follow", lambda right: lambda self, tau: None) for a in OFF},
    "sign of the entropy": {"ppo": (ppo.PPO, "losses", entropy_pays_less), "a2c": (a2c.A2C, "losses", entropy_pays_less), "sac": (sac, "actor_loss", entropy_pays_less_in_sac)},
    "stale log-probs": {"ppo": (ppo.PPO, "learn", old_log_probs)},
    "off-by-one n-step": {a: (on_policy.OnPolicy, "advantages", one_step_short) for a in ON} | {a: (replay, "discount_table", discount_one_short) for a in OFF},
    "learning rate × 10": {a: (None, "", None) for a in (*ON, *OFF)},
}


def trained(bug: str, algo: str, config: Values, seeds: Sequence[int]) -> list[dict[str, float]]:
    "The measures of some seeds, with the bug in the library; '' is no bug"
    if not bug: return train_here(config, seeds)
    owner, name, make = BUGS[bug][algo]
    if owner is None: return train_here(config | dict(algo=config["algo"] | dict(learning_rate=10 * config["algo"]["learning_rate"])), seeds)
    with swapped(owner, name, make): return train_here(config, seeds)


def two_stages(stored: Mapping[str, Sequence[float]], fresh: Sequence[dict[str, float]], cells: int) -> tuple[str, list[dict[str, Any]]]:
    "The verdict on 5 or 15 fresh seeds, as `check_cell` comes to it; 'alarm' where there are only 5 yet"
    if not all(fresh): return "broken", []
    if not surprises(stored, fresh[:QUICK], ALARM): return "alike", []
    if len(fresh) < QUICK + CONFIRM: return "alarm", []
    found = surprises(stored, fresh, FAIL / cells)
    return one_verdict(found), [vars(f) for f in found]


def ask(bug: str, name: str, cell: GateCell, round: int = 0) -> dict[str, Any]:
    "One bug in one training, with as many seeds as the gate asks for"
    config, seeds, algo = to_dict(cell.now()), fresh_seeds(cell, round), name.partition("/")[0]
    returns = {m: v for m, v in cell.scores.items() if m in (RETURN, LATE)}
    again = trained(bug, algo, config, cell.seeds[:1])[0]   # on the arithmetic of the baseline: does a bit differ at all?
    fresh = trained(bug, algo, config, seeds[:QUICK])
    if "alarm" in (two_stages(cell.scores, fresh, 1)[0], two_stages(returns, fresh, 1)[0]): fresh += trained(bug, algo, config, seeds[QUICK:])
    return record(kind="bug" if bug else "control", gate="quick", cell=name, algo=algo, bug=bug, round=round, config_hash=config_hash(cell.now()),
                  reached=any(again.get(m) != v for m, v in cell.stored(0).items()), seeds=len(fresh), measures=fresh)


CAUGHT = ("worse", "changed", "broken")


def judged(row: Values, baseline: Baseline) -> Values:
    "A line with its verdicts: that of the gate, and that of returns alone"
    stored = baseline[row["cell"]].scores
    returns = {m: v for m, v in stored.items() if m in (RETURN, LATE)}
    verdict, found = two_stages(stored, row["measures"], len(baseline))
    return row | dict(verdict=verdict, found=found, returns_alone=two_stages(returns, row["measures"], len(baseline))[0])


def known(kind: str) -> list[Values]:
    "The newest line of each bug in each training as it is in the baseline, or of each round, with its verdicts"
    baseline = read_baseline("quick")
    rows = {(r["cell"], r["bug"], r["round"]): r for r in history(STORED) if r["kind"] == kind and r["cell"] in baseline and r.get("config_hash") == config_hash(baseline[r["cell"]].now())}
    return [judged(r, baseline) for r in rows.values()]


def summary() -> str:
    "A table, bug by algorithm: in which trainings of how many it is caught"
    rows, algos = known("bug"), (*ON, *OFF)
    def entry(bug: str, algo: str) -> str:
        mine = [r for r in rows if r["bug"] == bug and r["algo"] == algo and r.get("reached", True)]   # else no line that is wrong has run
        if algo not in BUGS[bug]: return "–"
        if not mine: return "?"
        return ("caught" if any(r["verdict"] in CAUGHT for r in mine) else "missed") + (", by its return" if any(r["returns_alone"] in CAUGHT for r in mine) else "")
    lines = [[bug, *(entry(bug, a) for a in algos)] for bug in BUGS]
    def score(algo: str) -> str:
        fits = [entry(b, algo) for b in BUGS if algo in BUGS[b]]
        return f"{sum(e.startswith('caught') for e in fits)} of {len(fits)}"
    controls, simulated = known("control"), [r for r in history(STORED) if r["kind"] == "simulation"]
    said = [table(("bug", *algos), [*lines, ["caught", *map(score, algos)]]), ""]
    if controls: said.append(f"sound code, real trainings: {sum(r['verdict'] in CAUGHT for r in controls)} failures, {sum(r['verdict'] != 'alike' for r in controls)} alarms in {len(controls)} comparisons")
    said += [f"\nsimulated, {r['scores']}: {r['failures']} failures, {r['alarms']} alarms in {r['comparisons']:,} comparisons" for r in simulated]
    return "\n".join(said)


def simulate(times: int) -> None:
    "Comparisons in which nothing has changed: correlated bell curves, and returns of which most are the best one"
    rng, measures = make_generator("numpy", 0, "false alarms"), 8
    def bells() -> Any: return rng.normal(size=(measures, 45)) + rng.normal(size=(1, 45))
    def solved() -> Any: return np.minimum(500, np.round(495 + 10 * bells()))
    for name, draw in (("correlated measures", bells), ("mostly equal returns", solved)):
        alarms = failures = 0
        for _ in range(times):
            values = draw()
            stored = {f"m{i}": v[15:] for i, v in enumerate(values)}
            fresh = [{f"m{i}": v[j] for i, v in enumerate(values)} for j in range(15)]
            alarm = bool(surprises(stored, fresh[:QUICK], ALARM))
            alarms += alarm
            failures += alarm and bool(surprises(stored, fresh, FAIL))   # a gate of this one training: the largest rate that is allowed
        append(STORED, record(kind="simulation", scores=name, comparisons=times, alarms=alarms, failures=failures, allowed=FAIL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", help="only this training of the quick gate")
    parser.add_argument("--controls", type=int, default=0, metavar="N", help="N rounds of fresh seeds for each of the on-policy trainings, without a bug")
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="N comparisons without a change, for each kind of scores")
    parser.add_argument("--table", action="store_true", help="only show what is known")
    options = parser.parse_args()
    baseline = read_baseline("quick")
    names = [n for n in baseline if options.cell in (None, n)]
    if options.simulate: simulate(options.simulate)
    if options.controls: todo = [("", n, r) for n in names if n.startswith(ON) for r in range(1, options.controls + 1)]
    else: todo = [(b, n, 0) for n in names for b in BUGS if n.partition("/")[0] in BUGS[b]]
    if options.table or options.simulate: todo = []
    there = {(r["bug"], r["cell"], r["round"]) for r in known("bug") + known("control")}
    for bug, name, round in todo:
        if (bug, name, round) in there: continue
        row = ask(bug, name, baseline[name], round)
        append(STORED, row)
        row = judged(row, baseline)
        print(f"{name}, {bug or 'sound code'}: {row['verdict']} ({row['seeds']} seeds; returns alone: {row['returns_alone']})", flush=True)
    print(f"\n{summary()}")


if __name__ == "__main__": main()

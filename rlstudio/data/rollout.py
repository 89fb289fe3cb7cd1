# cell
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from rlstudio.core.batch import Batch, allocate
from rlstudio.core.finite import check_finite
from rlstudio.core.spec import Spec, to_env
from rlstudio.envs.vector import VectorEnv
from rlstudio.nets.modules import RLModule

# cell
class EpisodeTally:
    "Return and length of the episodes in flight, and of those that ended since last asked"
    def __init__(self,
        num_envs: int,  # environments N
    ) -> None:
        self.running_return = np.zeros(num_envs)            # (N,) float64
        self.running_length = np.zeros(num_envs, np.int64)  # (N,) env steps
        self.ended: list[tuple[int, float, int]] = []       # (env, return, length), in order

    def add(self,
        reward: np.ndarray,  # this step's rewards, (N,)
        done: np.ndarray,    # did the episode end here?, (N,) bool
        valid: np.ndarray | None = None,  # False where the step never happened, (N,)
    ) -> None:
        "Count one step of each environment"
        self.running_return += reward
        self.running_length += 1 if valid is None else valid
        if not np.count_nonzero(done): return
        for i in done.nonzero()[0].tolist():
            self.ended.append((i, float(self.running_return[i]), int(self.running_length[i])))
        self.running_return[done] = 0
        self.running_length[done] = 0

    def pop(self) -> list[tuple[int, float, int]]:  # (env, return, length) of each
        "The episodes that ended since the last call"
        ended, self.ended = self.ended, []
        return ended

# cell
def put(
    target: Any,  # an array, or a Batch of arrays
    at: Any,      # an index into the first dimensions
    value: Any,   # of the same structure
) -> None:
    "`target[at] = value`, field by field where they are batches"
    if not isinstance(target, Batch): target[at] = value
    else:
        for name, array in target.fields.items(): put(array, at, value.fields[name])

def check_all(
    source: str,  # what x is, for the message
    x: Any,       # an array, or a Batch of arrays
    step: int,    # env steps so far
) -> None:
    "`check_finite`, field by field"
    if not isinstance(x, Batch): check_finite(source, x, step)
    else:
        for part in x.fields.values(): check_all(source, part, step)

# cell
def check_step(
    world: Batch,  # what an env gave
    step: int,     # env steps so far
) -> None:
    "Refuse numbers that are not finite, where somebody will learn from them"
    check_finite('reward', world.reward, step)
    check_all('observation', world.obs, step)
    if np.count_nonzero(world.truncated):  # faster than truncated.any()
        check_all('observation', world.final_obs[world.truncated], step)

# cell
class Stepper:
    "An agent in N environments: steps them, keeps the agent's state, counts steps and episodes"
    def __init__(self,
        env: VectorEnv,     # N environments
        module: RLModule,   # the agent, for its `initial_state`
        seeds: list[int],   # one for each environment, for its own generator
    ) -> None:
        self.env, self.tally = env, EpisodeTally(env.num_envs)
        self.env_steps, self.env_seconds = 0, 0.  # s spent in the environments
        self.first = module.initial_state(env.num_envs)  # at the start of an episode; None: no state
        self.restart(seeds)

    def restart(self,
        seeds: list[int],  # one for each environment
    ) -> None:
        "Begin new episodes everywhere"
        self.world = self.env.reset(seeds)  # the env's own batch
        check_all('observation', self.world.obs, self.env_steps)
        self.look(self.first if self.first is None else self.first.map(np.copy))

    def look(self,
        state: Batch | None,  # of the agent now
    ) -> None:
        "Lay out what the agent sees next: `seen`"
        given = {k: x for k, x in self.world.fields.items() if k in ('obs', 'mask')}
        self.state = state
        self.seen = Batch(**given) if state is None else Batch(**given, state=state)

    def step(self,
        out: Batch,  # of `module.act`: action, and the next state if the agent has one
    ) -> Batch:      # reward, terminated, truncated, final_obs …: the env's own batch
        "One step of each environment"
        check_finite('action', out.action, self.env_steps)
        start = perf_counter()
        self.world = world = self.env.step(to_env(self.env.action_spec, out.action))
        self.env_seconds += perf_counter() - start
        valid, done = world.fields.get('valid'), world.terminated | world.truncated
        self.env_steps += self.env.num_envs if valid is None else int(valid.sum())
        check_step(world, self.env_steps)
        self.tally.add(world.reward, done, valid)
        if self.first is not None:
            if np.count_nonzero(done): put(out.state, done, self.first[done])
            self.look(out.state)
        return world

    def state_dict(self) -> dict[str, Any]:  # arrays and plain values
        "All that a later process needs to go on from here"
        t = self.tally
        state = {} if self.state is None else dict(state=self.state.fields)
        return dict(env=self.env.state_dict(), env_steps=self.env_steps,
                    running_return=t.running_return, running_length=t.running_length,
                    ended=[list(e) for e in t.ended]) | state

    def load_state_dict(self, state: dict[str, Any]) -> None:  # as state_dict gave it
        "Go on from a saved state"
        self.env.load_state_dict(state['env'])
        self.env_steps, t = state['env_steps'], self.tally
        t.running_return[:] = state['running_return']
        t.running_length[:] = state['running_length']
        t.ended = [(i, r, n) for i, r, n in state['ended']]
        self.world = self.env.out
        self.look(self.first and Batch(**{k: np.array(x) for k, x in state['state'].items()}))

# cell
class RolloutBuffer:
    "T steps of N environments as a struct of arrays, allocated once and written in place"
    def __init__(self,
        num_steps: int,                  # steps T of each environment
        env: VectorEnv,                  # whose fields are stored: obs, reward, terminated …
        emitted: dict[str, Spec],        # what `act` gives and shall be stored: action …
    ) -> None:
        self.num_steps, self.num_envs = num_steps, env.num_envs
        world = {k: spec for k, spec in env.fields.items() if k not in ('obs', 'mask', 'final_obs')}
        seen = {k: spec for k, spec in env.fields.items() if k in ('obs', 'mask')}
        self.seen = allocate(seen, (num_steps + 1, env.num_envs))     # one more: what follows
        self.rows = allocate(emitted | world, (num_steps, env.num_envs))
        self.finals: list[tuple[int, int, Any]] = []  # (t, env, final_obs) where episodes ended

    def batch(self) -> Batch:  # time-major (T, N, …)
        "What was stored, on the buffer's own memory"
        return Batch(**self.seen[:-1].fields, **self.rows.fields)

    def next_obs(self) -> Any:  # (T, N, …), own memory
        "The true next observation of each step, even at an end"
        after = self.seen.obs[1:]
        after = after.map(np.copy) if isinstance(after, Batch) else after.copy()
        for t, i, final in self.finals: put(after, (t, i), final)
        return after

# cell
def collect(
    stepper: Stepper,                      # where to step
    buffer: RolloutBuffer,                 # where to write
    act: Callable[[Batch, int], Batch],    # (what is seen, t) → what the agent emits
) -> None:
    "Fill the buffer with the next T steps of N environments"
    seen, rows, buffer.finals = buffer.seen, buffer.rows.fields, []
    for t in range(buffer.num_steps):
        put(seen, t, stepper.seen)
        out = act(stepper.seen, t)
        world = stepper.step(out)
        for name, x in rows.items(): put(x, t, out.fields[name] if name in out.fields else world.fields[name])
        for i in (world.terminated | world.truncated).nonzero()[0].tolist():
            final = world.final_obs[i]
            buffer.finals.append((t, i, final.map(np.copy) if isinstance(final, Batch) else final.copy()))
    put(seen, -1, stepper.seen)

# cell
def next_values(
    buffer: RolloutBuffer,               # a full one, with a field `value`
    value: Callable[[Any], np.ndarray],  # the critic: obs (B, …) → (B,)
) -> np.ndarray:                         # V(s_{t+1}), (T, N) float32
    "The value of each step's true next observation, arXiv:1712.00378 sec. 3.1"
    N, rows = buffer.num_envs, buffer.rows
    cuts = [(t, i, obs) for t, i, obs in buffer.finals if rows.truncated[t, i]]
    asked = value(np.concatenate([buffer.seen.obs[-1], *(o[None] for _, _, o in cuts)]))
    out = np.concatenate([rows.value[1:], asked[None, :N]])
    for (t, i, _), v in zip(cuts, asked[N:]): out[t, i] = v
    return out
Collector = Stepper

# cell
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from rlstudio.algos.common import Learner, Schedule, anneal
from rlstudio.core.batch import Batch, allocate
from rlstudio.core.options import AlgoConfig, Config, Count, Positive, Problem, Share, Unit, fault
from rlstudio.core.seeding import Streams
from rlstudio.core.spec import ArraySpec
from rlstudio.data.hindsight import Hindsight
from rlstudio.data.priority import Prioritized
from rlstudio.data.replay import ReplayBuffer
from rlstudio.data.rollout import RolloutBuffer, Stepper, collect
from rlstudio.data.storage import ReplayError
from rlstudio.envs.vector import VectorEnv
from rlstudio.nets.dists import as_plain
from rlstudio.train.trainer import mean_of

# cell
def updates_due(
    env_steps: int,        # taken so far, of all environments together
    learning_starts: int,  # env steps of the warm-up
    update_ratio: float,   # gradient updates for each env step after it
    made: int,             # updates so far
) -> int:                  # how many to make now, ≥ 0
    "Keep the ratio of updates to env steps"
    return max(0, math.floor((env_steps - learning_starts) * update_ratio) - made)

# cell
def random_actions(
    spec: ArraySpec,             # of one action
    rng: np.random.Generator,    # a named stream, streams['action']
    num_envs: int,               # N
) -> np.ndarray:                 # (N, *shape), int64 or float32
    "Any action, each as likely; real numbers without bounds: standard normal"
    lead = num_envs, *spec.shape
    if spec.kind == 'box':
        if not spec.bounded: return rng.standard_normal(lead, np.float32)
        return (spec.low + rng.random(lead, np.float32) * (spec.high - spec.low)).astype(np.float32)
    options = np.reshape(spec.nvec or 2, spec.shape if spec.nvec else ())
    return rng.integers(0, options, lead)

# cell
@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(AlgoConfig):
    "What the `algo` sections of all off-policy algorithms share."
    learning_rate: Positive = 3e-4               # Adam's step size
    learning_rate_schedule: Schedule = 'constant'  # or linear, down to 0 over the training
    gamma: Unit = 0.99                           # discount γ
    tau: Share = 0.005                           # Polyak: share of the new in the target network
    batch_size: Count = 256                      # rows of one gradient update
    update_ratio: Positive = 1.0                 # gradient updates for each env step
    train_every: Count = 1                       # steps of each env between two bouts of updates
    learning_starts: Annotated[int, Field(ge=0, le=10**12)] = 1_000   # env steps at random before the first update
    num_steps: Count = 256                       # steps of each env in one iteration (record)
    n_step: Count = 1                            # rewards summed before the target bootstraps
    buffer_size: Annotated[int, Field(ge=1, le=10**12)] = 1_000_000   # transitions remembered, of all envs
    buffer_storage: Literal['memory', 'disk'] = 'memory'  # where; disk: beyond the memory
    frame_stack: Count = 1                       # frames in an observation (k, …) of bytes; each is stored once
    prioritized: bool = False                    # learn more from what surprises
    priority_alpha: Unit = 0.6                   # 0: uniform, 1: in proportion to the error
    priority_beta: Unit = 0.4                    # correction of the bias at first, 1 at the end
    hindsight: Unit = 0.0                        # share of rows with a goal reached later

    def check(self, config: Config, observation_spec: ArraySpec, action_spec: ArraySpec) -> list[Problem]:   # as `AlgoConfig`
        return [*pace_problems(self, config.env.num_envs, config.train.total_steps), *frame_problems(self, observation_spec)]

# cell
def pace_problems(
    config: OffPolicyConfig,  # the `algo` section
    num_envs: int,            # N
    total_steps: int,         # env steps of the training
) -> list[Problem]:           # keys that contradict each other
    "What cannot work, and what would learn nothing"
    c, bout, found = config, config.train_every * num_envs, list[tuple[str, str]]()
    if c.num_steps % c.train_every:
        found.append(('num_steps', f'given {c.num_steps}, expected a multiple of train_every = '
                      f'{c.train_every}, such as {c.train_every * max(1, c.num_steps // c.train_every)}'))
    if c.batch_size > c.buffer_size:
        found.append(('batch_size', f'given {c.batch_size:,}, expected at most buffer_size = '
                      f'{c.buffer_size:,}; fix: make one smaller, or the other larger'))
    if c.buffer_size < bout:
        found.append(('buffer_size', f'given {c.buffer_size:,}, expected at least {bout:,}: the '
                      'steps of one bout, train_every × num_envs'))
    elif c.n_step > c.buffer_size // num_envs:
        found.append(('n_step', f'given {c.n_step:,}, expected at most {c.buffer_size // num_envs:,}: '
                      'the steps of each env that are remembered'))
    if not updates_due(total_steps, c.learning_starts, c.update_ratio, 0):
        found.append(('learning_starts', f'given {c.learning_starts:,}, and update_ratio '
                      f'{c.update_ratio:g}: no update would be due within train.total_steps = '
                      f'{total_steps:,}; expected a shorter warm-up, such as {total_steps // 10:,}, or more steps'))
    return [Problem('config', 0, 0, f'algo.{key}', why) for key, why in found]

def frame_problems(
    config: OffPolicyConfig,      # the `algo` section
    observation_spec: ArraySpec,  # of one observation
) -> list[Problem]:               # none, or one
    "A stack of frames must be one"
    k, o = config.frame_stack, observation_spec
    if k == 1 or (o.dtype == np.uint8 and o.shape[:1] == (k,)): return []
    return [Problem('config', 0, 0, 'algo.frame_stack', f'given {k}, but an observation is {o.dtype} of shape {o.shape}; '
                    f'expected {k} frames of bytes on the first axis; fix: frame_stack: 1')]

# cell
def action_problems(
    spec: ArraySpec,  # of one action
    kind: str,        # 'discrete' or 'box'
    config: Config,   # names env and algorithm
) -> list[Problem]:   # none, or one
    "A world whose actions an algorithm cannot choose"
    which, instead = '', 'ppo'
    if spec.kind == 'discrete': instead = 'dqn or ppo'
    if spec.kind == 'box':
        with np.errstate(over='ignore'): bounded = np.isfinite(np.subtract(spec.high, spec.low)).all()
        which, instead = ('', 'sac, td3 or ppo') if bounded else (' without bounds', 'ppo')
    if spec.kind == kind and not which: return []
    words = dict(discrete='one choice out of n (Discrete)', box='real numbers between bounds (Box)')
    return [Problem('config', 0, 0, 'algo.name', f'given {config.algo.name!r}, but the actions of {config.env.id} are of kind '
                    f'{spec.kind!r}{which}; expected {words[kind]}; use {instead}')]

# cell
def make_replay(
    config: OffPolicyConfig,  # the `algo` section
    env: VectorEnv,           # whose steps it remembers
) -> ReplayBuffer:            # with the sampler and the relabelling that the config asks for
    "The memory that a config asks for; `ConfigError` if it does not fit"
    c = config
    if c.hindsight and env.goal is None:
        raise fault('algo.hindsight', f'given {c.hindsight}, but {env.env_id} has no goals; expected 0, or a world '
                    'whose observations are a Dict with achieved_goal and desired_goal')
    try:
        return ReplayBuffer(
            c.buffer_size, env.num_envs, env.observation_spec, env.action_spec, n_step=c.n_step, gamma=c.gamma,
            frame_stack=c.frame_stack, storage=c.buffer_storage,
            sampler=Prioritized(c.priority_alpha, c.priority_beta) if c.prioritized else None,
            relabel=Hindsight(env.goal, c.hindsight) if c.hindsight and env.goal else None)
    except ReplayError as e: raise fault('algo.buffer_size', str(e)) from None

# cell
class OffPolicy(Learner):
    "Acts, remembers, and learns from the memory"
    config: OffPolicyConfig
    updates = 0                     # gradient updates so far
    error: Any = None               # of each row, for a memory that asks for it; set by `losses`

    def __init__(self,
        config: Config,           # as `Learner`
        env: VectorEnv,           # as `Learner`
        streams: Streams,         # as `Learner`
        device: str = 'cpu',      # as `Learner`
        engine: Any = 'auto',     # as `Learner`
    ) -> None:
        super().__init__(config, env, streams, device, engine)
        c = self.config
        self.replay, self.env_steps = make_replay(c, env), 0
        self.buffer = RolloutBuffer(c.train_every, env, {'action': self.module.fields['action']})
        self.rounds = c.num_steps // c.train_every

    def example(self) -> Batch:
        number = ArraySpec('', (), np.dtype(np.float32))
        return allocate(dict(obs=self.observation_spec, action=self.module.fields['action'], reward=number,
                             next_obs=self.observation_spec, discount=number, weight=number), (2,))

    def act(self,
        seen: Batch,      # obs, and the state if there is one, (N, …)
    ) -> Batch:           # action (N, …), and the next state
        "What to do while collecting: at random during the warm-up"
        rng, n = self.streams['action'], self.num_envs
        if self.env_steps >= self.config.learning_starts: return self.module.act(seen, self.module.noise(rng, (n,)))
        action = random_actions(self.action_spec, rng, n)
        return Batch(action=action, **{k: x for k, x in seen.fields.items() if k == 'state'})

    def collect(self,
        stepper: Stepper,      # the agent in its environments
    ) -> Batch:                # (train_every, N, …), on the buffer's own memory
        "The next steps, of all environments"
        self.env_steps = stepper.env_steps
        collect(stepper, self.buffer, lambda seen, t: self.act(seen))
        self.env_steps = stepper.env_steps
        return self.buffer.batch().replace(next_obs=self.buffer.next_obs())

    def update(self,
        batch: Batch,     # of `collect`
        progress: float,  # 0 → 1 over the training
    ) -> dict[str, float]:  # metrics; {} if no update was due
        "Remember; then make the updates that are due"
        b, c, scale, self.progress = batch, self.config, self.module.reward_scale, progress
        self.replay.add(b)
        told = self.learn_what_is_due()
        self.module.update_statistics(b.obs)
        if scale is not None:
            scale.update(b.reward, b.terminated, b.truncated, c.gamma, b.fields.get('valid', True))
        return told

    def learn_what_is_due(self) -> dict[str, float]:  # metrics; {} if no update was due
        "As many updates as the ratio asks for"
        c = self.config
        due = updates_due(self.env_steps, c.learning_starts, c.update_ratio, self.updates)
        if not due: return {}
        for part in self.parts.values():
            part.adam.lr = anneal(part.learning_rate, c.learning_rate_schedule, self.progress)
        if c.prioritized: self.replay.sampler.beta = c.priority_beta + (1 - c.priority_beta) * self.progress
        return mean_of([self.learn() for _ in range(due)])

    def learn(self) -> dict[str, float]:   # metrics
        "One update: a step for each loss, on rows of the memory"
        self.updates += 1
        batch, scale = self.replay.sample(self.config.batch_size, self.streams['replay']), self.module.reward_scale
        if scale is not None: batch = batch.replace(reward=batch.reward / np.float32(scale.scale()))
        told = self.descend(batch)
        if self.config.prioritized: self.replay.report(batch.index, as_plain(self.error))
        return told

    def state_dict(self) -> dict[str, Any]:  # nested dict of arrays and plain values
        "What was learned, what is remembered, and how many updates were made"
        return super().state_dict() | dict(replay=self.replay.state_dict(), updates=self.updates, env_steps=self.env_steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:  # as state_dict gave it
        super().load_state_dict(state)
        self.replay.load_state_dict(state['replay'])
        self.updates, self.env_steps = state['updates'], state['env_steps']

"""Reinforcement learning you can read like a book, run like a benchmark, and replay bit for bit

Where to begin: `nbs/prologue/` explains reinforcement learning in three notebooks without the library, the last of them a whole PPO on one page. `nbs/tutorials/` trains, changes and uses agents. Each module below is generated from the
chapter `nbs/NN_package.module.ipynb`, in which it is derived, pictured and tested. `from rlstudio import Run` is the door for programs, `rlstudio --help` that for a shell.

Modules:

- `rlstudio.algos.a2c`: Advantage actor-critic: make the actions that went better than expected likelier, a little after every few steps.
- `rlstudio.algos.common`: An agent, its parts, and one gradient step for each loss: an algorithm says what its losses are, and this chapter does the rest.
- `rlstudio.algos.dqn`: Deep Q-learning, from the plain form of 2013 to Rainbow: learn what each action is worth from what is remembered, and take the best.
- `rlstudio.algos.off_policy`: What DQN, SAC and TD3 have in common: act, remember, and learn many times from what is remembered.
- `rlstudio.algos.on_policy`: Collect with the present policy, learn from it, throw it away.
- `rlstudio.algos.ppo`: Proximal policy optimisation: improve the policy with the data at hand, but not further than the data can be trusted.
- `rlstudio.algos.sac`: Soft actor-critic: as much reward as possible, acting as randomly as that allows.
- `rlstudio.algos.td3`: Twin delayed deep deterministic policy gradient: a policy that climbs its critic, and three precautions against a critic that is wrong.
- `rlstudio.core.arithmetic`: Computers round, and they do not all round alike. One thread makes results exact, and an identity names the arithmetic behind them.
- `rlstudio.core.batch`: Arrays that belong together travel together.
- `rlstudio.core.files`: One way to read a file and one way to write it. Reading trusts nothing: no link, no pipe, no size. Writing leaves nothing half done.
- `rlstudio.core.finite`: The first NaN or infinity stops the run, and the error says where it came up and what usually causes it.
- `rlstudio.core.masks`: Which actions are legal now? One row of bools says so, however the environment reports it.
- `rlstudio.core.options`: An experiment is one checked value: each field has a type, a range and a default, and all mistakes are reported at once.
- `rlstudio.core.registry`: Algorithms, environments, networks and sinks are found by name. Plugins are listed, and loaded only if you allow them.
- `rlstudio.core.seeding`: One seed for a run, and from it a separate random stream for every purpose. A checkpoint keeps the exact state of each.
- `rlstudio.core.spec`: A spec says once what an array must be: its name, shape, type and range. Everything else is refused.
- `rlstudio.data.hindsight`: A failed episode still reached some goal. Hindsight replays it as if that goal had been the wanted one.
- `rlstudio.data.priority`: Transitions that surprised the critic most are drawn more often, and a weight corrects for it.
- `rlstudio.data.replay`: The last million transitions, drawn again and again, exactly as they happened.
- `rlstudio.data.returns`: From rewards to learning targets, exact at every end of an episode.
- `rlstudio.data.rollout`: One loop steps the agent in its environments and writes each step once, into arrays that the learner reads without a copy.
- `rlstudio.data.sequences`: A network with a memory learns from sequences: pieces of a rollout in the order of time, each with the memory at its start.
- `rlstudio.data.storage`: Where a million transitions lie: one packed row each, in a ring, nothing twice.
- `rlstudio.envs.atari`: The frames of an Atari game as a learner wants them, by one name in a config: `wrappers: [{name: atari}]`.
- `rlstudio.envs.backends`: Any Gymnasium id, and any of Gymnasium's own vector envs, behind the one contract.
- `rlstudio.envs.check`: Does an environment keep the rules of Gymnasium? A few seconds of checks say so, and each problem comes with its fix.
- `rlstudio.envs.classic`: Gymnasium's five classic environments as arrays of N: the same episodes, number for number, for little more than the price of one.
- `rlstudio.envs.goals`: A goal world has two goals in each observation, the wanted one and the reached one. This chapter finds both, and asks for the reward of any pair.
- `rlstudio.envs.make`: From a config to a Gymnasium environment, or to an error that says what to write instead.
- `rlstudio.envs.memory`: Two worlds in which the present observation is not enough: a corridor whose first step shows which way to turn, and a pole whose speed is hidden.
- `rlstudio.envs.snapshot`: Save and restore any environment exactly: keep its random state at the last reset and the actions since, and play them again.
- `rlstudio.envs.toy`: Tiny environments whose random, best and in-between returns are known exactly, so that an algorithm can be proved and not just watched.
- `rlstudio.envs.vector`: N environments behind one contract: arrays in, a batch of declared fields out, and no last observation is ever lost.
- `rlstudio.envs.workers`: Slow worlds on all cores: `backend: workers` steps the same episodes in other processes, bit for bit, and if one of them dies, the error names the world.
- `rlstudio.evidence.audit`: Train a run once more in a fresh process, and compare the two ledgers line by line: they are identical, or you learn which update went another way first.
- `rlstudio.evidence.compare`: Is B better than A? A table, a difference with its interval, and one honest sentence: yes, no, or how many more seeds it takes.
- `rlstudio.evidence.drift`: Does this machine compute the bits that others computed? A matrix of tiny trainings with known results answers in seconds.
- `rlstudio.evidence.gate`: Does the code still learn as well as it did? A few short trainings against a reviewed file of scores, with a false-alarm rate that is stated and holds.
- `rlstudio.evidence.migrate`: An old run is rewritten for the present version: beside its place, tried out, and swapped in with one step. The old run is kept.
- `rlstudio.evidence.report`: A run or a study becomes one HTML file that needs nothing else: the verdict, curves, every seed, films, the config, and what all of it rests on.
- `rlstudio.evidence.search`: Better hyperparameters from many short runs: say where to look, let Optuna propose, stop what is hopeless, and lose nothing when a process dies.
- `rlstudio.evidence.stats`: How good is it really? The scores of a few seeds become a number, an interval that covers as often as it claims, and an answer to "is B better than A?"
- `rlstudio.evidence.study`: Many seeds, several configs, a grid of values: one folder, one command, and whatever dies on the way, the same command again.
- `rlstudio.evidence.table`: Thousands of runs in one tidy table: a row for each run, the seeds of a config grouped as an arm, curves side by side. A broken folder is named and skipped.
- `rlstudio.evidence.variance`: Where does the spread between seeds come from: first weights, worlds, actions or minibatches? And a proof that none comes from processes, workers and kills.
- `rlstudio.evidence.verify`: `verify` compares every file of a run with the hash from the day it was written. One flipped bit is enough: it names the file.
- `rlstudio.fast.critics`: SAC and TD3 are bound by their matrix products. This chapter does the products that a gradient step needs, and hardly anything else.
- `rlstudio.fast.graphs`: A GPU spends a small gradient step waiting for orders from Python: record the step once, and repeat it as one order.
- `rlstudio.fast.kernels`: The same gradients from machine code: the hot pieces of a gradient step, compiled once on a machine and chosen by one line of settings.ini.
- `rlstudio.fast.parallel`: Several processes collect, each in its own worlds, and take every gradient step together: one training on several cores.
- `rlstudio.fast.portable`: The same SHA-256 of the weights on every processor: nothing takes part that chooses its routine by the machine.
- `rlstudio.fast.profile`: A training says where its seconds went, what holds it back, and what to change, with the gain that can be expected.
- `rlstudio.fast.replay`: DQN makes four steps and one small gradient step, again and again. In Python that is more than a thousand calls a time; here it becomes a fifth of them.
- `rlstudio.fast.rollout`: Acting, drawing and stepping in one loop of machine code: a step in a small world costs less than a call of a function in Python.
- `rlstudio.fast.worlds`: Your own world as one function of numbers: NumPy steps eight copies of it at once, and the engine `compiled` makes a loop of it.
- `rlstudio.nets.critics`: How good is this action in this state? Two critics judge actions that are numbers; one network judges all actions of a choice at once.
- `rlstudio.nets.dists`: From the numbers that a network puts out to actions, their probabilities, and back.
- `rlstudio.nets.encoders`: From an observation of any shape to one row of numbers: by name, ours or yours.
- `rlstudio.nets.flat`: All parameters of a network in one vector: one step of Adam, one slow copy, one name.
- `rlstudio.nets.layers`: One network for tensors, for arrays and for variables of a tape, with weights that start well.
- `rlstudio.nets.memory`: An agent with a memory: a GRU or an LSTM carries what it saw before into what it does now.
- `rlstudio.nets.modules`: One contract for every agent: observations go in, actions come out, and the network between them may be ours or yours.
- `rlstudio.nets.normalize`: Observations and rewards on a common scale, by statistics that are part of the model.
- `rlstudio.nets.squashed`: Normal numbers pressed into an interval, with their exact density: a random policy for actions that have bounds.
- `rlstudio.nets.tape`: Backpropagation on one page: write a loss once, and run it on torch tensors or, for small networks two to three times faster, on NumPy arrays.
- `rlstudio.runs.background`: Train in a thread and keep working: stop the training, pause it, wait for it, or watch one of another process.
- `rlstudio.runs.checkpoint`: The whole state of a run on disk: complete or absent, verified to the last bit, never able to run code.
- `rlstudio.runs.config`: Configs come from YAML and from `section.key=value`. Whatever is wrong with one, now or later, is reported with its line and column.
- `rlstudio.runs.export`: An agent leaves its run: as a folder that runs no code, as an ONNX file that needs no Python of ours, or as a `torch.export` program.
- `rlstudio.runs.folder`: One folder holds everything that is known about a run. It can be read at any time, even while another process trains.
- `rlstudio.runs.hub`: Share an agent: `push` puts it on the Hugging Face Hub with a model card, and `load_agent('hf://owner/name')` brings it back.
- `rlstudio.runs.legs`: Continue a run with a larger budget, or begin a new one from the weights of another. Every change is noted, and what cannot change is refused.
- `rlstudio.runs.pictures`: What a run leaves for the eye: a curve, a short film, and a line of blocks for the terminal.
- `rlstudio.runs.run`: A `Run` is one folder with the whole experiment: its config, all results, and everything that is needed to go on.
- `rlstudio.runs.yaml`: Read and write YAML, with the line and column of every key. A file can only ever become plain data.
- `rlstudio.studio.cards`: End a cell with a run, a config or a batch, and the notebook shows a small card. A card only shows: nothing in it can act.
- `rlstudio.studio.catalog`: Find, list, sort and compare the runs in a folder, thousands perhaps, and delete them with care.
- `rlstudio.studio.cli`: A few commands over the same objects that the notebooks use: run, resume, evaluate, export, push, check-env, show, list, delete.
- `rlstudio.studio.console`: A training in a terminal: a header, five lines that update, a verdict, and the commands to type next.
- `rlstudio.studio.explorer`: Choose arms, runs, metric, axis and smoothing in a notebook, and see the curves at once; the one under the mouse says which seed it is.
- `rlstudio.studio.panel`: A training in a notebook shows its curve, its health and its film while it runs, and has buttons that work.
- `rlstudio.studio.plugins`: What others have written for the library: seen before it runs, tried before it is trusted, and begun from a template that works.
- `rlstudio.train.agent`: What was learned, in your hands: an observation goes in, an action of the world comes out, and nothing else is needed.
- `rlstudio.train.callbacks`: Enough is enough: stop when the goal is reached, when nothing improves or when time is up, and turn a knob on the way.
- `rlstudio.train.evaluate`: How good the agent is, asked apart from training: its own worlds, its own seeds, every episode kept.
- `rlstudio.train.ledger`: After an update, a training writes down the hashes of its weights, its optimiser, its random streams and its experience, each line chained to the one before; so the first update that went another way can be named.
- `rlstudio.train.metrics`: What a run says about itself: named, explained, and safe on disk whatever kills it.
- `rlstudio.train.trackers`: W&B, MLflow and trackio as sinks: a run logs to the tool that you use already, and an error there never ends the training.
- `rlstudio.train.trainer`: One loop for every algorithm: a state machine that can stop after any iteration and go on elsewhere, bit for bit."""

__api__ = "1.0"  # what plugins rely on: MAJOR.MINOR (docs/adr/0018); tests/public_names.txt lists it
__version__ = "0.1.0"

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlstudio.core.batch import Batch
    from rlstudio.core.options import Config
    from rlstudio.core.spec import Spec
    from rlstudio.envs.backends import make_vector
    from rlstudio.envs.check import check_env
    from rlstudio.envs.vector import VectorEnv
    from rlstudio.evidence.compare import compare_sides, comparison_figure
    from rlstudio.evidence.report import write_report
    from rlstudio.evidence.study import Study
    from rlstudio.evidence.table import plot_arms, read_table
    from rlstudio.evidence.verify import verify
    from rlstudio.runs.config import Settings, load_config, packaged_configs
    from rlstudio.runs.export import export_agent, load_agent
    from rlstudio.runs.run import Run
    from rlstudio.train.agent import Agent
    from rlstudio.train.evaluate import Evaluation, evaluate
    from rlstudio.train.trainer import Callback, Trainer

__all__ = ['Agent', 'Batch', 'Callback', 'Config', 'Evaluation', 'Run', 'Settings', 'Spec', 'Study', 'Trainer', 'VectorEnv', 'check_env',
           'compare_sides', 'comparison_figure', 'evaluate', 'export_agent', 'load_agent', 'load_config', 'make_vector', 'packaged_configs',
           'plot_arms', 'read_table', 'verify', 'write_report']
_HOMES = {'Agent': 'train.agent', 'Batch': 'core.batch', 'Callback': 'train.trainer', 'Config': 'core.options', 'Evaluation': 'train.evaluate',
          'Run': 'runs.run', 'Settings': 'runs.config', 'Spec': 'core.spec', 'Study': 'evidence.study', 'Trainer': 'train.trainer',
          'VectorEnv': 'envs.vector', 'check_env': 'envs.check', 'compare_sides': 'evidence.compare', 'comparison_figure': 'evidence.compare',
          'evaluate': 'train.evaluate', 'export_agent': 'runs.export', 'load_agent': 'runs.export', 'load_config': 'runs.config',
          'make_vector': 'envs.backends', 'packaged_configs': 'runs.config', 'plot_arms': 'evidence.table', 'read_table': 'evidence.table',
          'verify': 'evidence.verify', 'write_report': 'evidence.report'}
_PARTS = ['algos', 'core', 'data', 'envs', 'evidence', 'fast', 'nets', 'runs', 'studio', 'train']


def __getattr__(name: str) -> Any:
    "The names that most programs begin with, imported when they are asked for: `import rlstudio` itself costs nothing"
    from importlib import import_module
    if name in _PARTS: return import_module(f'rlstudio.{name}')
    if name in _HOMES:
        from rlstudio.core.registry import collector_rests
        with collector_rests(): return getattr(import_module(f'rlstudio.{_HOMES[name]}'), name)
    raise _no_such(name, sys._getframe(1))


def _no_such(name: str, frame: Any) -> Exception:
    "The error about a name that is not here: it says where it is. `from rlstudio import PPO` would hide the message of an AttributeError"
    from opcode import opmap
    from rlstudio._modidx import d
    names: Any = d['syms']
    home = '' if name.startswith('_') else next((module for module in names if f'{module}.{name}' in names[module]), '')
    fix = f'it is in {home}: from {home} import {name}' if home else f'it has {", ".join(__all__)}'
    asked = frame.f_code.co_code[frame.f_lasti] == opmap['IMPORT_FROM']
    return ImportError(f'cannot import name {name!r} from {__name__!r}; {fix}') if asked else AttributeError(f'module {__name__!r} has no attribute {name!r}; {fix}')


def __dir__() -> list[str]:
    "What one needs, and nothing that only this file needs"
    return sorted({*__all__, *_PARTS, 'load_ipython_extension', *(name for name in globals() if name.startswith('__'))})


def load_ipython_extension(shell: Any) -> None:
    "`%load_ext rlstudio`: our objects show themselves as cards in this shell"
    from rlstudio.studio.cards import register_cards
    register_cards(shell)


if (_shell := sys.modules['IPython'].get_ipython() if hasattr(sys.modules.get('IPython'), 'get_ipython') else None) and hasattr(_shell, 'kernel'):
    load_ipython_extension(_shell)  # a notebook

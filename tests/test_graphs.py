"Gradient steps that a GPU records: what holds where there is a GPU, and what is said where there is none"
import numpy as np
import pytest
import torch

from rlstudio.algos.common import EngineError
from rlstudio.core.options import config_from_dict
from rlstudio.fast.graphs import Graphs
from rlstudio.nets.flat import weights_sha256
from rlstudio.train.trainer import Trainer

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of CUDA here")
CASES = [("ppo", "CartPole-v1", {}), ("a2c", "Pendulum-v1", {}), ("dqn", "CartPole-v1", dict(learning_starts=100)), ("sac", "Pendulum-v1", dict(learning_starts=100)),
         ("td3", "Pendulum-v1", dict(learning_starts=100))]


def trainer_of(algo, world, more, device, engine):
    return Trainer(config_from_dict(dict(algo=dict(name=algo) | more, env=dict(id=world), train=dict(total_steps=3000, seed=1))), (), device, engine=engine)


def test_without_a_gpu_it_is_refused():
    with pytest.raises(EngineError, match="given device cpu, expected a GPU of CUDA; fix: --device cuda"): trainer_of("ppo", "CartPole-v1", {}, "cpu", "graphs")


@gpu
@pytest.mark.parametrize(("algo", "world", "more"), CASES)
def test_recorded_steps_lead_where_autograd_leads(algo, world, more):
    ends = []
    for engine in ("autograd", "graphs"):
        learner = trainer_of(algo, world, more, "cuda", engine).algo
        rng = np.random.default_rng(3)
        batch = learner.example().map(lambda x, rng=rng: rng.standard_normal((64, *x.shape[1:])).astype(x.dtype) if x.dtype.kind == "f" else np.zeros((64, *x.shape[1:]), x.dtype))
        for _ in range(20):
            if hasattr(learner, "updates"): learner.updates += 1
            learner.descend(batch)
        ends.append(torch.cat([p.flat.vector.detach().cpu() for p in learner.parts.values()]))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-4


@pytest.mark.parametrize(("algo", "world", "more"), CASES[2:])
def test_the_twin_acts_as_the_agent_would(algo, world, more):
    ends = []
    for by_twin in (False, True):
        trainer = trainer_of(algo, world, more | dict(num_steps=48), "cpu", "autograd")
        engine = Graphs.__new__(Graphs)   # its acting needs no GPU
        engine.learner, engine.twin = trainer.algo, None
        if by_twin: trainer.algo.gather = engine.gather
        for _ in range(4): trainer.step()
        assert trainer.algo.updates > 10 and trainer.algo.module is not getattr(engine.twin, "module", None)
        ends.append(weights_sha256(trainer.algo.module))
    assert ends[0] == ends[1]


@gpu
@pytest.mark.parametrize(("algo", "world", "more"), CASES)
def test_equal_trainings_end_equal(algo, world, more):
    def end():
        trainer = trainer_of(algo, world, more, "cuda", "graphs")
        trainer.train()
        return weights_sha256(trainer.algo.module)
    assert end() == end()

"An engine: who does the arithmetic of a gradient step, `engine = wide` in settings.ini."
from functools import partial
from typing import Any

from rlstudio.algos.common import Kit, Part, clip_gradient_


class Wide(Kit):
    "Adam with 64 bits inside, so that a step is rounded once, at its end; losses and gradients are those of the tape"
    why = "the tape, and Adam with 64 bits inside"

    def __init__(self, learner: Any):
        for part in learner.parts.values(): part.mover = partial(step, part)


def step(part: Part) -> dict[str, float]:
    "Move a part against its gradient; its memory is Adam's own, so that a checkpoint holds it"
    adam = part.adam
    metrics = {} if part.max_grad_norm is None else {"grad/norm": clip_gradient_(part.flat.grad, part.max_grad_norm)}
    adam.count += 1
    t, g = float(adam.count), part.flat.grad.double()
    mean, square = adam.mean.double().lerp(g, 1 - .9), adam.square.double().lerp(g * g, 1 - .999)
    move = adam.lr * (mean / (1 - .9 ** t)) / ((square / (1 - .999 ** t)).sqrt() + adam.eps)
    for kept, new in ((adam.mean, mean), (adam.square, square), (adam.vector.detach(), adam.vector.detach().double() - move)): kept.copy_(new)
    return metrics

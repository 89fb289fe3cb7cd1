from collections.abc import Callable
from typing import Any
import numpy as np
import torch

Pull = Callable[..., Any]   # pull(G, sink): the way back from a result

class TapeError(TypeError):
    "The tape was asked for something that it cannot do: autograd can"

class Sink:
    "Where the gradients of parameters go: the first one is written, others are added"
    def __init__(self, places):     # id of a parameter -> its part of a flat gradient
        self.places, self.written = places, set()
    def add(self, parameter, gradient):
        at, key = self.places.get(id(parameter)), id(parameter)
        if at is None: return
        if key in self.written: at += gradient
        else: at[...] = gradient
        self.written.add(key)
    def add_product(self, parameter, a, b):
        at, key = self.places.get(id(parameter)), id(parameter)
        if at is None: return
        if key in self.written or not a.dtype == b.dtype == at.dtype: self.add(parameter, a.dot(b))
        else:
            np.dot(a, b, out=at)
            self.written.add(key)
    def wants(self, parameter): return id(parameter) in self.places
    def fill(self):
        "Zero where nothing arrived"
        for key, at in self.places.items():
            if key not in self.written: at[...] = 0

class Tape(list):
    "What was computed, in order: pairs of a result and the way back from it"
    def variable(self, x): return Var(np.asarray(x), self)
    def backward(self, loss, places):
        if not isinstance(loss, Var) or loss.value.size != 1: raise TapeError('backward: given ..., expected one number')
        sink = Sink(places)
        loss.grad = np.ones_like(loss.value)
        for out, pull in reversed(self):
            if out.grad is not None: pull(out.grad, sink)
            out.grad = None
        sink.fill()
        self.clear()

def on_tape(value, pull, tape):
    "A result that parameters depend on"
    out = Var(value, tape, True)
    tape.append((out, pull))
    return out

def node(value, pull, *parents):
    "Note a result on the tape of what it was computed from"
    for p in parents:
        if p.needs and torch.is_grad_enabled():
            out = Var(value, p.tape, True)
            p.tape.append((out, pull))
            return out
    return Var(value, parents[0].tape)

def shrink(G, shape):
    "Sum a gradient over the axes that were stretched (NumPy's broadcasting)"
    if G.shape == shape: return G
    G = np.add.reduce(G, tuple(range(G.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and G.shape[i] != 1)
    return np.add.reduce(G, axes, keepdims=True) if axes else G

def other(x, tape):
    "The other operand: a variable, a parameter or a constant"
    if isinstance(x, Var): return x
    if isinstance(x, torch.Tensor): return parameter(x, tape)
    return Var(x if isinstance(x, (np.ndarray, np.generic)) else x, tape)   # a python number stays one

def parameter(p, tape):
    "A torch parameter on the CPU as a variable; its gradient goes to the sink"
    x = Var(p.detach().numpy(), tape, p.requires_grad and torch.is_grad_enabled() and tape is not None)
    if x.needs: tape.append((x, lambda G, sink: sink.add(p, G)))
    return x


def unary(f, slope):      # slope(x, y): dy/dx
    def method(self):
        x = self.value
        y = f(x)
        return node(y, lambda G, _: self.receive(G * slope(x, y)), self)
    return method

def binary(f, slope_a, slope_b):      # slopes: (G, a, b) -> gradient of each operand
    def method(self, x):
        o, a = other(x, self.tape), self.value
        b = o.value
        def pull(G, _):
            if self.needs: self.receive(shrink(slope_a(G, a, b), a.shape))
            if o.needs: o.receive(shrink(slope_b(G, a, b), b.shape))
        return node(f(a, b), pull, self, o)
    return method

def compare(f):
    def method(self, x): return Var(f(self.value, x.value if isinstance(x, Var) else x), self.tape)
    return method

def softmax_log(x):
    z = x - np.maximum.reduce(x, -1, keepdims=True)
    return z - np.log(np.add.reduce(np.exp(z), -1, keepdims=True))

class Var:
    "An array whose history is on a tape; its methods are named as torch's are"
    __slots__ = 'value', 'tape', 'needs', 'grad'
    __array_ufunc__ = None      # `array - variable` is the variable's business

    def __init__(self, value, tape=None, needs=False):
        self.value, self.tape, self.needs, self.grad = value, tape, needs, None

    def receive(self, G):
        if self.needs: self.grad = G if self.grad is None else self.grad + G

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)
    def __len__(self): return len(self.value)
    def __repr__(self): return f'Var({self.value!r})'

    # element by element
    exp = unary(np.exp, lambda x, y: y)
    log = unary(np.log, lambda x, y: 1 / x)
    square = unary(lambda x: x * x, lambda x, y: 2 * x)
    sqrt = unary(np.sqrt, lambda x, y: .5 / y)
    abs = unary(np.abs, lambda x, y: np.sign(x))
    tanh = unary(np.tanh, lambda x, y: 1 - y * y)
    sigmoid = unary(lambda x: .5 + .5 * np.tanh(.5 * x), lambda x, y: y * (1 - y))
    relu = unary(lambda x: np.maximum(x, 0), lambda x, y: y > 0)
    log1p = unary(np.log1p, lambda x, y: 1 / (1 + x))
    __neg__ = neg = unary(np.negative, lambda x, y: -1)

    __add__ = __radd__ = add = binary(lambda a, b: a + b, lambda G, a, b: G, lambda G, a, b: G)
    __sub__ = sub = binary(lambda a, b: a - b, lambda G, a, b: G, lambda G, a, b: -G)
    __rsub__ = binary(lambda a, b: b - a, lambda G, a, b: -G, lambda G, a, b: G)
    __mul__ = __rmul__ = mul = binary(lambda a, b: a * b, lambda G, a, b: G * b, lambda G, a, b: G * a)
    __truediv__ = div = binary(lambda a, b: a / b, lambda G, a, b: G / b, lambda G, a, b: -G * a / (b * b))
    minimum = binary(np.minimum, lambda G, a, b: G * (a <= b), lambda G, a, b: G * (b < a))
    maximum = binary(np.maximum, lambda G, a, b: G * (a >= b), lambda G, a, b: G * (b > a))
    __lt__, __gt__ = compare(np.less), compare(np.greater)
    __le__, __ge__ = compare(np.less_equal), compare(np.greater_equal)
    __eq__, __ne__ = compare(np.equal), compare(np.not_equal)
    __hash__ = object.__hash__

    def clamp(self, min=None, max=None):
        x = self.value
        y = np.minimum(np.maximum(x, min), max) if None not in (min, max) else np.maximum(x, min) if max is None else np.minimum(x, max)
        return node(y, lambda G, _: self.receive(G * (x == y)), self)
    clip = clamp

    # sums
    def sum(self, dim=None, keepdim=False):
        x = self.value
        y = np.add.reduce(x, dim, keepdims=keepdim)
        def pull(G, _):
            if dim is not None and not keepdim: G = np.expand_dims(G, dim)
            self.receive(np.broadcast_to(G, x.shape))
        return node(y, pull, self)
    def mean(self, dim=None, keepdim=False):
        x = self.value
        if dim is not None: return self.sum(dim, keepdim) * (1 / x.shape[dim])
        n = x.size
        return node(np.add.reduce(x, None) / n, lambda G, _: self.receive(np.full_like(x, G / n)), self)
    def amin(self, dim):
        x = self.value
        y = np.minimum.reduce(x, dim, keepdims=True)
        def pull(G, _):
            least = x == y
            self.receive(least * (np.expand_dims(G, dim) / np.add.reduce(least, dim, keepdims=True).astype(G.dtype)))
        return node(y.squeeze(dim), pull, self)
    def log_softmax(self, dim=-1):
        y = softmax_log(self.value)
        return node(y, lambda G, _: self.receive(G - np.exp(y) * np.add.reduce(G, -1, keepdims=True)), self)

    # places
    def reshape(self, *shape):
        x = self.value
        return node(x.reshape(*shape), lambda G, _: self.receive(G.reshape(x.shape)), self)
    view = reshape
    def squeeze(self, dim):
        return node(self.value.squeeze(dim), lambda G, _: self.receive(np.expand_dims(G, dim)), self)
    def unsqueeze(self, dim):
        return node(np.expand_dims(self.value, dim), lambda G, _: self.receive(G.squeeze(dim)), self)
    def __getitem__(self, i):
        i = tuple([j.value if isinstance(j, Var) else j for j in (i if isinstance(i, tuple) else (i,))])
        x, fancy = self.value, any([isinstance(j, (np.ndarray, list)) for j in i])
        def pull(G, _):
            full = np.zeros_like(x)
            if fancy: np.add.at(full, i, G)   # rows may repeat
            else: full[i] = G
            self.receive(full)
        return node(x[i], pull, self)
    def gather(self, dim, index):
        x, i = self.value, index.value if isinstance(index, Var) else index
        rows = np.arange(len(x))[:, None]
        def pull(G, _):
            full = np.zeros_like(x)
            if i.shape[1] == 1: full[rows, i] = G
            else: np.add.at(full, (rows, i), G)
            self.receive(full)
        return node(x[rows, i], pull, self)
    def expand_as(self, other):
        x = self.value
        return node(np.broadcast_to(x, other.value.shape), lambda G, _: self.receive(shrink(G, x.shape)), self)

    def argmax(self, dim=None): return Var(self.value.argmax(dim), self.tape)
    def detach(self): return Var(self.value, self.tape)
    def float(self): return Var(self.value.astype(np.float32), self.tape)
    def item(self): return self.value.item()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name, kwargs = function.__name__, kwargs or {}
        if name in FUNCTIONS: return FUNCTIONS[name](*args, **kwargs)
        method = getattr(cls, name, None)
        if method is None: raise TapeError(f'torch.{name}: the tape has no such function')
        tape = next(a.tape for a in args if isinstance(a, Var))
        return method(other(args[0], tape), *args[1:], **kwargs)

def cat(parts, dim=0):
    tape = next(p.tape for p in parts if isinstance(p, Var))
    vs = [other(p, tape) for p in parts]
    ends = np.cumsum([v.value.shape[dim] for v in vs])[:-1]
    def pull(G, _):
        for v, g in zip(vs, np.split(G, ends, dim)): v.receive(g)
    return node(np.concatenate([v.value for v in vs], dim), pull, *vs)

def stack(parts, dim=0):
    return cat([p.unsqueeze(dim) for p in parts], dim)

def where(condition, a, b):
    c = condition.value if isinstance(condition, Var) else condition
    tape = next(p.tape for p in (condition, a, b) if isinstance(p, Var))
    a, b = other(a, tape), other(b, tape)
    def pull(G, _):
        if a.needs: a.receive(shrink(np.where(c, G, 0).astype(G.dtype), a.value.shape))
        if b.needs: b.receive(shrink(np.where(c, 0, G).astype(G.dtype), b.value.shape))
    return node(np.where(c, a.value, b.value), pull, a, b)

def linear(x, W, b=None):
    if not isinstance(x, Var): raise TapeError('linear: ...')
    w, x_ = W.detach().numpy(), x.value
    y = x_.dot(w.T) if b is None else x_.dot(w.T) + b.detach().numpy()
    def pull(G, sink):
        sink.add_product(W, G.T, x_)
        if b is not None: sink.add(b, np.add.reduce(G, 0))
        if x.needs: x.receive(G.dot(w))
    needs = torch.is_grad_enabled() and W.requires_grad and x.tape is not None
    if not (needs or x.needs): return Var(y, x.tape)
    out = Var(y, x.tape, True)
    x.tape.append((out, pull))
    return out

def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    if weight is None or bias is None or len(shape) != 1: raise TapeError('layer_norm')
    gamma, beta = parameter(weight, x.tape), parameter(bias, x.tape)
    centred = x - x.mean(-1, True)
    return centred / (centred.square().mean(-1, True) + np.float32(eps)).sqrt() * gamma + beta

def log_sigmoid(x):
    y = -np.logaddexp(0, -x.value)
    return node(y, lambda G, _: x.receive(G * (1 - np.exp(y))), x)

FUNCTIONS = dict(layer_norm=layer_norm, log_sigmoid=log_sigmoid, cat=cat, concat=cat, stack=stack, where=where, linear=linear)

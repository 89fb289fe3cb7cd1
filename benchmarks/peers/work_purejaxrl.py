# ruff: noqa: E402
"""One training of the case ppo as PureJaxRL does it: world (gymnax), policy and update in one compiled program; the last line of its output is JSON.

PureJaxRL is a file to copy and no package, so this is its work in our words: a scan over updates, in it one over steps and one over epochs and minibatches.
"""
import json
import os
import sys
import time
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
task = json.loads(sys.argv[1])
if task.get("cores", 1) == 1: os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen.initializers import constant, orthogonal
from flax.training.train_state import TrainState

N, T, PARTS = int(task.get("envs", 8)), 128, 4
EPOCHS, RATE, GAMMA, LAMBDA = (10, 1e-3, .98, .9) if task.get("case") == "solve" else (4, 3e-4, .99, .95)   # to solve it: what our packaged config says
updates = task["steps"] // (N * T)
env, how = gymnax.make("CartPole-v1")


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        def mlp(y, out, gain):
            for _ in range(2): y = nn.tanh(nn.Dense(64, kernel_init=orthogonal(2**.5), bias_init=constant(0.))(y))
            return nn.Dense(out, kernel_init=orthogonal(gain), bias_init=constant(0.))(y)
        return mlp(x, 2, .01), mlp(x, 1, 1.)[..., 0]


net = ActorCritic()
pick = lambda table, a: jnp.take_along_axis(jax.nn.log_softmax(table), a[..., None], -1)[..., 0]   # noqa: E731
reset, step = jax.vmap(env.reset, in_axes=(0, None)), jax.vmap(env.step, in_axes=(0, 0, 0, None))


def loss_of(params, obs, action, old, value, advantage, target):
    logits, v = net.apply(params, obs)
    log = jax.nn.log_softmax(logits)
    ratio = jnp.exp(pick(logits, action) - old)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = -jnp.minimum(ratio * advantage, ratio.clip(.8, 1.2) * advantage).mean()
    return policy + .5 * .5 * jnp.square(v - target).mean() - 0. * (-(jnp.exp(log) * log).sum(-1).mean())


def train(key):
    key, k1, k2 = jax.random.split(key, 3)
    state = TrainState.create(apply_fn=net.apply, params=net.init(k1, jnp.zeros(env.observation_space(how).shape)), tx=optax.chain(optax.clip_by_global_norm(.5), optax.adam(RATE, eps=1e-5)))
    obs, world = reset(jax.random.split(k2, N), how)

    def act(carry, _):
        state, world, obs, key = carry
        key, k1, k2 = jax.random.split(key, 3)
        logits, value = net.apply(state.params, obs)
        action = jax.random.categorical(k1, logits)
        after, world, reward, terminated, truncated, _ = step(jax.random.split(k2, N), world, action, how)
        done = terminated | truncated   # as PureJaxRL does: a cut counts as an end
        return (state, world, after, key), (obs, action, pick(logits, action), value, reward, done)

    def update(carry, _):
        (state, world, obs, key), rows = jax.lax.scan(act, carry, None, T)
        value, reward, done = rows[3:]
        last = net.apply(state.params, obs)[1]

        def back(carry, row):
            gae, following = carry
            value, reward, done = row
            gae = reward + GAMMA * following * (1 - done) - value + GAMMA * LAMBDA * (1 - done) * gae
            return (gae, value), gae
        advantage = jax.lax.scan(back, (jnp.zeros_like(last), last), (value, reward, done), reverse=True, unroll=16)[1]
        flat = jax.tree.map(lambda x: x.reshape(N * T, *x.shape[2:]), (*rows[:4], advantage, advantage + value))

        def epoch(carry, _):
            state, key = carry
            key, k = jax.random.split(key)
            order = jax.random.permutation(k, N * T)
            parts = jax.tree.map(lambda x: x[order].reshape(PARTS, -1, *x.shape[1:]), flat)
            return (jax.lax.scan(lambda s, b: (s.apply_gradients(grads=jax.grad(loss_of)(s.params, *b)), None), state, parts)[0], key), None
        state, key = jax.lax.scan(epoch, (state, key), None, EPOCHS)[0]
        return (state, world, obs, key), None

    return jax.lax.scan(update, (state, world, obs, key), None, updates)[0][0].params


def episode(params, key):
    "The return of one greedy episode"
    obs, world = env.reset(key, how)

    def one(carry, key):
        obs, world, alive, total = carry
        obs, world, reward, terminated, truncated, _ = env.step(key, world, net.apply(params, obs)[0].argmax(), how)
        return (obs, world, alive * (1 - (terminated | truncated)), total + alive * reward), None
    return jax.lax.scan(one, (obs, world, 1., 0.), jax.random.split(key, 500))[0][3]


key, start = jax.random.PRNGKey(task["seed"]), time.perf_counter()
program = jax.jit(train).lower(key).compile()
compiled = time.perf_counter() - start
start = time.perf_counter()
params = jax.block_until_ready(program(key))
seconds = time.perf_counter() - start
totals = np.array(jax.jit(jax.vmap(episode, in_axes=(None, 0)))(params, jax.random.split(jax.random.PRNGKey(10_000 + task["seed"]), task["episodes"])))
print(json.dumps(dict(total_steps=updates * N * T, env_steps_per_second=updates * N * T / seconds, compile_seconds=compiled, eval_return_mean=float(totals.mean()), eval_return_std=float(totals.std()),
                      version=f"jax {jax.__version__}, gymnax {version('gymnax')}")))

"A room that loses heat, and a heater that is on or off."
import gymnasium as gym
import numpy as np


class Room(gym.Env):
    "Keep a room at 20 °C: each step costs the distance from it, in degrees, and heating costs a little"
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gym.spaces.Box(np.array([-30, -20], np.float32), np.array([60, 20], np.float32))  # °C inside, °C outside
    action_space = gym.spaces.Discrete(2)  # heater off, on

    def __init__(self, steps: int = 96, price: float = 0.1, render_mode: str | None = None):
        self.steps, self.price, self.render_mode = steps, price, render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.inside, self.outside, self.left = float(self.np_random.uniform(10, 30)), float(self.np_random.uniform(-10, 10)), self.steps
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.outside = float(np.clip(self.outside + self.np_random.normal(0, 0.5), -20, 20))
        self.inside += 0.1 * (self.outside - self.inside) + 4.0 * int(action)
        self.left -= 1
        return self._seen(), -abs(self.inside - 20) / 10 - self.price * int(action), False, self.left == 0, {}

    def render(self) -> np.ndarray:
        picture = np.full((64, 64, 3), 255, np.uint8)
        height = int(np.clip((self.inside + 20) * 64 / 60, 1, 64))
        picture[64 - height:, 24:40] = 200, 60, 40
        picture[64 - int(40 * 64 / 60), :] = 0
        return picture

    def _seen(self) -> np.ndarray:
        return np.array([self.inside, self.outside], np.float32)

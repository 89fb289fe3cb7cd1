"What a plugin should test of itself: its world keeps Gymnasium's rules, and RLStudio finds nothing wrong with what it brings."
from gymnasium.utils.env_checker import check_env
from rlstudio_example_plugin.world import Room

from rlstudio.studio.plugins import check_plugins


def test_the_room() -> None: check_env(Room(), skip_render_check=True)


def test_what_it_brings() -> None: assert check_plugins(["rlstudio-example-plugin"], allowed=["rlstudio-example-plugin"])[0].ok

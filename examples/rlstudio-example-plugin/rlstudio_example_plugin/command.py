"A command: `rlstudio heat RUN`."
from typing import Annotated

import typer

from rlstudio.studio.cli import RunArgument


def heat(
    run: RunArgument,
    steps: Annotated[int, typer.Option(min=1, help="Steps to show.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Of the room.")] = 0,
) -> None:
    "Watch the agent of a run heat a room, a line for each step"
    from rlstudio.runs.run import Run  # torch comes with it: not before it is needed

    from .world import Room
    agent, room = Run.open(run).agent(), Room(steps)
    seen, _ = room.reset(seed=seed)
    for _ in range(steps):
        action = int(agent(seen))
        print(f"inside {room.inside:5.1f} °C, outside {room.outside:5.1f} °C: {'on' if action else 'off'}")
        seen, *_ = room.step(action)

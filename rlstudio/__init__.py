__version__ = "0.1.0.dev0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlstudio.core.config import Config, load_config
    from rlstudio.train.run import Run

__all__ = ['Config', 'Run', 'load_config']
_HOMES = {'Config': 'rlstudio.core.config', 'load_config': 'rlstudio.core.config', 'Run': 'rlstudio.train.run'}


def __getattr__(name: str) -> Any:
    "The three names that most programs begin with, imported when they are asked for: `import rlstudio` itself costs nothing"
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')
    from importlib import import_module
    return getattr(import_module(_HOMES[name]), name)

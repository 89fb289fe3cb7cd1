# The commands that people use, with `just` (https://just.systems); each line below also works as it is in a shell.
# `just` alone lists them.

_list:
    @just --list --unsorted

# set up everything, once: environment, tools, hooks
setup:
    python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[dev]' && pre-commit install

# train the first agent
demo:
    rlstudio run configs/ppo/cartpole.yaml

# JupyterLab with the book
lab:
    jupyter lab nbs

# the package, the README and the generated pages from the notebooks
export:
    nbdev-export && nbdev-clean && python docs/make_readme.py && python docs/make_faults.py && python docs/make_kpi.py

# run one chapter and store what it prints, such as: just store nbs/30_data.returns.ipynb
store notebook:
    nbdev-test --save {{notebook}} && python tests/run_notebook.py "$PWD/{{notebook}}" --stored

# lint and types
lint:
    ruff check . && mypy

# some tests, such as: just test tests/test_cli.py -k resume
test *which:
    pytest --no-cov -q -n 0 {{which}}

# everything, as CI does it, on a bare copy
ci:
    .ci/run

# the key figures, measured and stored
kpi:
    python benchmarks/kpi.py && python docs/make_kpi.py

# build a release twice, compare, and try the wheel on every Python that is here
release out="":
    .ci/release {{out}}

#!/usr/bin/env bash
# optuna 5.0.0: workers that share a GridSampler run points of the grid twice, since each looks at what is left by itself; and
# optimize() on a grid that is finished runs one point more.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet optuna==5.0.0
cd "$folder"
cat > grid.py <<'PYTHON'
import multiprocessing
import time
from collections import Counter

import optuna
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

GRID = {"a": list(range(8)), "b": list(range(5))}


def storage():
    return JournalStorage(JournalFileBackend("grid.log"))


def objective(trial):
    for name, values in GRID.items():
        trial.suggest_categorical(name, values)
    time.sleep(0.02)
    return 0.0


def work():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="grid", storage=storage(), sampler=GridSampler(GRID, seed=0))
    study.optimize(objective)


def points():
    study = optuna.load_study(study_name="grid", storage=storage())
    return Counter(tuple(trial.params.items()) for trial in study.trials)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="grid", storage=storage())
    workers = [multiprocessing.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counts = points()
    twice = sum(count > 1 for count in counts.values())
    print(f"{len(counts)} of 40 points, {sum(counts.values())} trials: {twice} points ran more than once")
    work()
    more = sum(points().values()) - sum(counts.values())
    print(f"optimize() on the finished grid ran {more} more")
    if not twice or not more:
        raise SystemExit("changed: each point of a shared grid runs once")
PYTHON
"$folder/bin/python" -W ignore grid.py

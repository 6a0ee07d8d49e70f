#!/usr/bin/env bash
# optuna 5.0.0 on SQLite: study.ask() gives one waiting trial to two workers. The trial's state is read, found to be WAITING and
# set to RUNNING under SELECT ... FOR UPDATE, which SQLite does not have; the second worker's tell then fails. So a queue of
# enqueued trials is no lock there.
#
# Seen, 200 trials and three workers: 6 trials were given to two workers
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet optuna==5.0.0
cd "$folder"
cat > race.py <<'PYTHON'
import multiprocessing
from collections import Counter

import optuna
from optuna.trial import TrialState

URL = "sqlite:///race.db"


def work(given):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="race", storage=URL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        trial = study.ask()
        given.append(trial.user_attrs.get("cell"))
        try:
            study.tell(trial, 1.0)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another worker has told it
            pass


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="race", storage=URL)
    for cell in range(200):
        study.enqueue_trial({}, user_attrs={"cell": cell})
    with multiprocessing.Manager() as manager:
        given = manager.list()
        workers = [multiprocessing.Process(target=work, args=(given,)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        counts = Counter(cell for cell in given if cell is not None)
    twice = sum(count > 1 for count in counts.values())
    print(f"{len(counts)} trials were given, {twice} of them to two workers")
    if not twice:
        raise SystemExit("changed: each waiting trial was given once")
PYTHON
"$folder/bin/python" -W ignore race.py

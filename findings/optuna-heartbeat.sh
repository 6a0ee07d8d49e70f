#!/usr/bin/env bash
# optuna 5.0.0: a worker's death is noticed by heartbeats, which only RDBStorage has: JournalStorage does not. And there, a
# trial whose worker dies before its first heartbeat, such as one that ask() gave, has no row to grow old, and stays RUNNING for
# ever. The callback that queues such trials again is RetryHeartbeatStaleTrialCallback; RetryFailedTrialCallback, its old name,
# is deprecated.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet optuna==5.0.0
cd "$folder"
cat > beat.py <<'PYTHON'
import multiprocessing
import os
import time
import warnings

import optuna
from optuna.storages import JournalStorage, RDBStorage, RetryFailedTrialCallback, fail_stale_trials
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage():
    return RDBStorage("sqlite:///beat.db", heartbeat_interval=1, grace_period=2)


def die_before_the_first(_):
    optuna.load_study(study_name="beat", storage=storage()).ask()
    os._exit(1)


def die_after(seconds):
    def objective(trial):
        time.sleep(seconds)
        os._exit(1)

    optuna.load_study(study_name="beat", storage=storage()).optimize(objective, n_trials=1)


if __name__ == "__main__":
    study = optuna.create_study(study_name="beat", storage=storage())
    for target in (die_before_the_first, die_after):
        worker = multiprocessing.Process(target=target, args=(1.5,))
        worker.start()
        worker.join()
    time.sleep(5)
    fail_stale_trials(study)
    never, once = (trial.state for trial in study.trials)
    print(f"died before its first heartbeat: {never.name}; after: {once.name}")
    journal = JournalStorage(JournalFileBackend("beat.log"))
    print(f"JournalStorage has heartbeats: {hasattr(journal, 'record_heartbeat')}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RetryFailedTrialCallback()
    deprecated = any(issubclass(warning.category, FutureWarning) for warning in caught)
    print(f"RetryFailedTrialCallback is deprecated: {deprecated}")
    if never != TrialState.RUNNING or once != TrialState.FAIL or hasattr(journal, "record_heartbeat") or not deprecated:
        raise SystemExit("changed")
PYTHON
"$folder/bin/python" -W ignore beat.py

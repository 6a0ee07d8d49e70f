"""Opening the Optuna storage of a sweep, and knowing that it is this sweep's."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from bayes_lora.errors import StorageError

SCHEMA_VERSION = 1
"""Of what a sweep keeps in a storage; see `open_storage`."""

_SECONDS_LOCKED = 60  # that a process waits for another to be done with an SQLite file
_TRIES = 5
_SQLITE, _GRPC = "sqlite", "grpc"
_ABOUT = "bayes_lora"


def shown_url(url: str) -> str:
    """A storage's address without its password."""
    if url.startswith(f"{_GRPC}://"):
        return url
    return make_url(url).render_as_string(hide_password=True)


class Storage:
    """The trials of one sweep.

    Attributes:
        backend: Optuna's, on which all processes agree.
        study_id: of the sweep there.
        name: of the sweep.
        url: of the storage.
    """

    def __init__(self, backend: BaseStorage, name: str, url: str) -> None:
        self.backend, self.name, self.url = backend, name, url
        self.study_id: int = backend.get_study_id_from_name(name)

    def trials(self, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        """All of them, or those in some states; they are not to be changed."""
        return self.backend.get_all_trials(self.study_id, deepcopy=False, states=states)

    def close(self) -> None:
        """Leave the database."""
        if isinstance(self.backend, RDBStorage):
            self.backend.remove_session()
            self.backend.engine.dispose()

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Around what must be seen as one step by all processes.

        On a server, a row that is claimed is locked. SQLite ignores that: two processes read that a trial waits, and
        both take it; so a file beside the database is locked.
        """
        path = _sqlite_file(self.url)
        with nullcontext() if path is None else FileLock(path.with_name(f".{path.name}.lock")):
            yield


def open_storage(url: str, name: str, about: Mapping[str, Any] | None, *, create: bool = False) -> Storage:
    """A sweep in a storage.

    Args:
        url: of any database that Optuna takes, or ``grpc://host:port`` of an Optuna proxy.
        name: of the sweep.
        about: what it depends on, plain data: a sweep of this name that is there must say the same. None takes any.
        create: whether it is made where it is not there.

    Raises:
        StorageError: the storage cannot be opened, is of another version of Optuna or of this library, holds another
            sweep of this name, or none and none is to be made.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path, wanted = _sqlite_file(url), None
    if about is not None:
        wanted = {"schema_version": SCHEMA_VERSION, **json.loads(json.dumps(about))}
    if path is not None and not path.exists() and not create:
        raise StorageError(f"{path} is not there, so no sweep has been started in its folder.")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may make the tables at once.
    with nullcontext() if path is None else FileLock(path.with_name(f".{path.name}.lock")):
        backend = _backend(url)
        if create and wanted is not None:
            _make(backend, name, wanted)
    try:
        storage = Storage(backend, name, url)
    except KeyError as error:
        raise StorageError(
            f"{shown_url(url)} has no sweep {name!r}. Give the storage that it was started with."
        ) from error
    found = backend.get_study_user_attrs(storage.study_id).get(_ABOUT)
    _require_same(found, wanted, name, url)
    return storage


def _make(backend: BaseStorage, name: str, about: Mapping[str, Any]) -> None:
    try:
        study_id = backend.create_new_study([optuna.study.StudyDirection.MINIMIZE], study_name=name)
    except optuna.exceptions.DuplicatedStudyError:
        _wait_for_attributes(backend, name)
        return
    backend.set_study_user_attr(study_id, _ABOUT, dict(about))


def _wait_for_attributes(backend: BaseStorage, name: str) -> None:
    """Whoever made the study an instant ago has not said yet what it is."""
    study_id = backend.get_study_id_from_name(name)
    for _ in range(_TRIES):
        if _ABOUT in backend.get_study_user_attrs(study_id):
            return
        time.sleep(0.5)


def _require_same(found: Any, wanted: Mapping[str, Any] | None, name: str, url: str) -> None:
    where = f"the study {name!r} in {shown_url(url)}"
    if not isinstance(found, dict):
        raise StorageError(f"{where} is no sweep of this library. Give another --storage, or the recipe another name.")
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"{where} was started by another version of this library (its format is {version!r}, this one's "
            f"{SCHEMA_VERSION}). Go on with that version, or start anew with another --storage."
        )
    wanted = found if wanted is None else wanted
    odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if odd:
        raise StorageError(
            f"{where} is another sweep: {', '.join(odd)} differ. To go on with that one give its recipe and rows; for "
            "a new one give another --storage, or the recipe another name."
        )


def _backend(url: str) -> BaseStorage:
    problem: Exception
    for attempt in range(_TRIES):
        try:
            if url.startswith(f"{_GRPC}://"):
                return _proxy(url)
            waits = {"connect_args": {"timeout": _SECONDS_LOCKED}} if _sqlite_file(url) is not None else None
            return RDBStorage(url, engine_kwargs=waits)
        except (ImportError, ArgumentError, ValueError) as error:
            raise StorageError(
                f"--storage {url!r} cannot be opened ({type(error).__name__}: {error}). Give an address such as "
                "sqlite:///sweep.db or postgresql+psycopg://user@host/database, and install its driver."
            ) from error
        except RuntimeError as error:  # Optuna's own tables
            raise StorageError(
                f"{shown_url(url)} is of another version of Optuna ({error}). Go on with that version, or start anew "
                "with another --storage."
            ) from error
        except SQLAlchemyError as error:
            problem = error  # its tables may be made by another process at this instant
            time.sleep(0.2 * attempt)
    raise StorageError(f"{shown_url(url)} cannot be reached ({problem}). Is its server there?") from problem


def _proxy(url: str) -> BaseStorage:
    host, _, port = url.removeprefix(f"{_GRPC}://").partition(":")
    proxy = GrpcStorageProxy(host=host, port=int(port))
    proxy.wait_server_ready(timeout=30)
    return proxy


def _sqlite_file(url: str) -> Path | None:
    if not url.startswith(_SQLITE):
        return None
    database = make_url(url).database
    return Path(database).absolute() if database else None

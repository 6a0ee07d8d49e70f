"""Where, when and from which commit the jobs of a study were done."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from bayes_lora.experiments.runs.machine import machine
from bayes_lora.files import read_json, write_json

SESSIONS_FILE = "sessions.json"


@dataclass
class Session:
    """One process that works on a study: the last entry of the list in its folder's `sessions.json`.

    An entry holds the facts of `machine`, the command line, seconds since the start, and what is said of each job. It
    is written anew after every job, so that what was done before a kill is there.
    """

    folder: Path
    earlier: list[dict[str, Any]]
    about: dict[str, Any]
    jobs: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=perf_counter)

    @classmethod
    def start(cls, folder: Path, **about: Any) -> "Session":
        """The next session of the study in this folder, with what else there is to say about it."""
        path = folder / SESSIONS_FILE
        earlier = read_json(path) if path.is_file() else []
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return cls(folder, earlier, {"command": command, **machine(), **about})

    def done(self, **job: Any) -> None:
        """Record a job, with what tells it from others."""
        self.jobs.append(job)
        entry = {**self.about, "seconds": round(perf_counter() - self.started, 1), "jobs": self.jobs}
        write_json(self.folder / SESSIONS_FILE, [*self.earlier, entry])

"""One subprocess a job, with a limit on time and memory, several at once; nothing that a job does can end the others."""
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path


class Phase:
    """Where a job is, kept in a file so that the parent can name it when the job is killed."""

    def __init__(self, path):
        self.path, self.started, self.name, self.seconds = path, time.monotonic(), "start", {}

    def __call__(self, name):
        now = time.monotonic()
        self.seconds[self.name] = round(self.seconds.get(self.name, 0) + now - self.started, 2)
        self.started, self.name = now, name
        self.path.write_text(name)


def run_all(items, work, done, jobs=1, timeout=900, memory=12):
    """Calls `work(item, phase)` in a subprocess for every item and `done(item, result)` here, in order of completion.

    `work` returns a dict. A job that raises, is killed, or exceeds `timeout` seconds or `memory` GB gives
    {"error": one line, "phase": where}."""
    running, waiting = {}, list(items)
    with tempfile.TemporaryDirectory(prefix="vitq-zoo-") as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                item = waiting.pop(0)
                base = Path(folder) / str(len(waiting))
                sys.stdout.flush()
                sys.stderr.flush()
                pid = os.fork()
                if pid == 0:
                    _child(item, work, base, memory)
                running[pid] = (item, base, time.monotonic())
            time.sleep(0.05)
            for pid, (item, base, started) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                late = time.monotonic() - started > timeout
                if not ended and not late:
                    continue
                if not ended:
                    os.killpg(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                del running[pid]
                done(item, _result(base, status, late, timeout))


def _result(base, status, late, timeout):
    try:
        return json.loads(base.with_suffix(".json").read_text())
    except (OSError, ValueError):
        pass
    try:
        phase = base.with_suffix(".phase").read_text()
    except OSError:
        phase = "start"
    why = f"no result after {timeout} s" if late else f"ended with status {os.waitstatus_to_exitcode(status)}"
    return {"error": why, "phase": phase}


def _child(item, work, base, memory):
    code = 1
    try:
        os.setpgid(0, 0)
        limit = int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        # What libraries print, from C too, is noise here.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        phase = Phase(base.with_suffix(".phase"))
        try:
            result = work(item, phase)
        except BaseException as e:
            result = {"error": one_line(e), "phase": phase.name, "trace": traceback.format_exc()[-2000:]}
        part = base.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(base.with_suffix(".json"))
        code = 0
    finally:
        os._exit(code)


def one_line(error, length=300):
    """The kind of an error and its message's first meaningful line."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:length]

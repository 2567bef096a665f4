"""Several processes, one a host or one an accelerator: how they join, divide a batch, agree, and stop together.

All processes run the same program and do together, in the same order, what takes all of them: updates, evaluations,
checkpoints. What takes one, writing records and results, process 0 does. They share one folder of storage.
"""

import contextlib
import functools
import glob
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from hhh_jax.errors import UserError

if TYPE_CHECKING:  # jax is imported late, so that --help stays quick
    import numpy as np
    from jax.sharding import Mesh, Sharding

LOST = os.EX_UNAVAILABLE
"""Exit status of a process that stops because it lost another one: start all of them again."""

SUPERVISOR = "HHH_JAX_SUPERVISOR"
"""Environment variable that tells a process that the one of this id watches over it."""

AGAIN = "start all processes again with the same command: the run goes on from its last checkpoint"


@contextlib.contextmanager
def joined(coordinator: str, num_processes: int, process_id: int, heartbeat_timeout_seconds: int) -> Iterator[None]:
    """Within, this process is one of several, if the arguments or the environment say so; else nothing is done.

    The environments are those that `jax.distributed.initialize` knows: TPU VMs and GKE, a SLURM step of several tasks,
    an indexed Kubernetes job. What goes wrong within ends the process at once, so that the others notice, and so does
    the loss of another process, with status `LOST`. Comes before the first use of a device.

    Args:
      coordinator: HOST:PORT that process 0 listens on; "" leaves this and the next two to the environment.
      num_processes, process_id: how many there are, and which one this is; -1 if not given.
      heartbeat_timeout_seconds: how long a process may be silent before all others stop.
    """
    given = (coordinator != "", num_processes != -1, process_id != -1)
    if any(given) and not all(given):
        raise UserError("give all of --coordinator=HOST:PORT, --num_processes=N and --process_id=I, or none of them")
    if not any(given) and not in_cluster():
        yield
        return
    if any(given) and not (0 <= process_id < num_processes and re.fullmatch(r".+:\d+", coordinator)):
        raise UserError(
            f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: "
            "give HOST:PORT of process 0, and an id from 0 to one less than their number"
        )
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes if any(given) else None,
            process_id if any(given) else None,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except ValueError as error:
        if "JOB_COMPLETION_INDEX" in os.environ:
            raise UserError(f"cannot join the Kubernetes job ({error}): pip install jax[k8s], or give flags") from error
        yield  # a TPU of one host
        return
    except RuntimeError as error:  # one that did not come, or died on the way: to be tried again, not mended
        _leave(f"error: cannot join the other processes ({str(error).splitlines()[0]}); {AGAIN}", LOST)
    if jax.default_backend() == "tpu":
        threading.Thread(target=_await_preemption, daemon=True).start()
    try:
        yield
    except UserError as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if is_loss(error):
            reason = " ".join(str(error).split())[:200]
            _leave(f"error: lost another process, which died or cannot be reached ({reason}); {AGAIN}", LOST)
        _leave(traceback.format_exc(), 1)


def in_cluster() -> bool:
    """Whether the environment is likely that of one of several processes; jax then looks more closely."""
    env = os.environ
    slurm = "SLURM_STEP_NODELIST" in env and env.get("SLURM_NTASKS", "1") != "1"
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    device_files = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    tpu = bool(device_files) and importlib.util.find_spec("libtpu") is not None
    return slurm or kubernetes or (tpu and not env.get("JAX_PLATFORMS", "").startswith("cpu"))


def supervise() -> None:
    """Starts the same command again and ends as it does, with a last line if a signal killed it; there it does nothing.

    When a process dies, jax's service aborts the others from a thread that no Python code can stop, behind pages of
    stack traces; and none can say of itself that it was killed for want of memory. For a program that is one of several
    processes, before its flags are read, which imports jax.
    """
    if SUPERVISOR in os.environ:
        threading.Thread(target=_follow, args=(int(os.environ.pop(SUPERVISOR)),), daemon=True).start()
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    child = subprocess.Popen(command, env=os.environ | {SUPERVISOR: str(os.getpid())})
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    code = child.wait()
    if code < 0:
        name = signal.Signals(-code).name
        lost = "lost another process, which died or cannot be reached (see above)"
        print(f"error: {lost if name == 'SIGABRT' else f'killed by {name}'}; {AGAIN}", file=sys.stderr, flush=True)
    os._exit(code if code >= 0 else LOST)


def _follow(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def is_loss(error: Exception) -> bool:
    """Whether a collective operation or a barrier failed, which they do when a process dies."""
    signs = r"Gloo|[Hh]eartbeat|[Cc]oordination ?[Ss]ervice|[Bb]arrier|Connection (closed|reset|refused)|NCCL"
    return re.search(signs, str(error)) is not None


def _leave(message: str, code: int) -> None:
    """Ends the process without the farewell at exit, for which it would wait for processes that wait for it."""
    import jax

    print(f"{message.rstrip()} (process {jax.process_index()} of {jax.process_count()})", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        time.sleep(2)  # with its service the others end, which may have something to say, too
    os._exit(code)


def several() -> bool:
    """Whether there is more than one process."""
    import jax

    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes records and results."""
    import jax

    return jax.process_index() == 0


def share() -> slice:
    """This process's part of a list that all processes have: each item is in one part."""
    import jax

    return slice(jax.process_index(), None, jax.process_count())


def agree(value: Any) -> Any:
    """Process 0's `value`, a JSON value of at most 1000 bytes, in all processes, which all call this together."""
    import jax

    if jax.process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value if jax.process_index() == 0 else None).encode()
    if len(text) > 1000:
        raise ValueError(f"too long to agree on: {text[:100]!r}...")
    text_N = np.frombuffer(text.ljust(1000), np.uint8)  # one size, one program
    return json.loads(multihost_utils.broadcast_one_to_all(text_N).tobytes())


def anywhere(here: bool) -> bool:
    """Whether `here` is true in any process; all call this together."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(here)).any())


@functools.lru_cache(maxsize=64)
def rows_here(mesh: "Mesh", n_rows: int) -> "np.ndarray":
    """Which of a batch's `n_rows` rows lie on this process's devices, ascending."""
    import numpy as np

    from hhh_jax.sharding import batch_sharding

    places = batch_sharding(mesh).addressable_devices_indices_map((1, n_rows)).values()
    rows_N = np.arange(n_rows)
    return np.unique(np.concatenate([rows_N[place[1]] for place in places if place is not None]))


def place_rows(batch: Any, rows_N: "np.ndarray", n_rows: int, mesh: "Mesh") -> Any:
    """The global batch ``[G, n_rows, ...]`` on the mesh, of the rows ``[G, N, ...]`` that each process has of it."""
    import jax
    import numpy as np

    from hhh_jax.sharding import batch_sharding

    everywhere = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, everywhere)

    def place(x_GxN: "np.ndarray") -> "jax.Array":
        def part(index: tuple[slice, ...] | None) -> "np.ndarray":
            start, stop, _ = index[1].indices(n_rows) if index else (0, n_rows, 1)
            return x_GxN[:, np.searchsorted(rows_N, start) : np.searchsorted(rows_N, stop)]

        return jax.make_array_from_callback((len(x_GxN), n_rows, *x_GxN.shape[2:]), everywhere, part)

    return jax.tree.map(place, batch)


def place(tree: Any, sharding: "Sharding") -> Any:
    """Numpy arrays that every process has in full, as global arrays."""
    import jax

    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


class Stopped(SystemExit):
    """A run was asked to stop, and can go on where it is. Its code is the status to exit with."""


class StopSignal:
    """SIGTERM, a TPU's preemption notice or a first Ctrl-C, heeded between two updates; a context manager.

    Of several processes all stop before the same update, whichever was told to. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.code = 0  # to exit with: a Ctrl-C is no success
        self._told = False
        self._several = False

    def __enter__(self) -> "StopSignal":
        import jax

        self._several = jax.distributed.is_initialized()  # then SIGTERM goes to jax's preemption service
        if not self._several:
            signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        print("stopping after this update; Ctrl-C again stops at once, without saving", file=sys.stderr, flush=True)
        self.code = 128 + signal.SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def before(self, step: int) -> bool:
        """Whether to stop before update `step`; every process asks before every update."""
        if not self._several:
            return self._told
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def at_once(self, message: str) -> None:
        """From now on nothing is left to save: stop with this message where the program is, or now if told already."""

        def stop(*_: object) -> None:
            print(message, file=sys.stderr, flush=True)
            if self._several:  # the others may not have been told, and would be waited for at exit
                os._exit(self.code)
            raise Stopped(self.code)

        if self._told:
            stop()
        signal.signal(signal.SIGTERM, stop)


def _await_preemption() -> None:
    """Sends this process SIGTERM when the metadata server of Google Cloud says that its machine is being taken away."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    preempted = False
    while not preempted:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
            preempted = answer.read() == b"TRUE"
        time.sleep(0 if preempted else 2)
    os.kill(os.getpid(), signal.SIGTERM)

"""sbatch, srun and scontrol of a SLURM cluster that runs each job at once, on this machine.

FAKE_CLOUD names its folder: calls.jsonl has every call. A file refuse holds how many jobs are taken before others are
refused. A file preempt, made by a job's process, has all processes of its step told to stop, as SLURM does before a
preemption and before the time limit. A job queued again runs again.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
FLAGS = {  # of SLURM 22.05; True: takes a value
    "sbatch": {
        "parsable": False, "job-name": True, "chdir": True, "output": True, "open-mode": True, "requeue": False,
        "signal": True, "cpus-per-task": True, "time": True, "nodes": True, "ntasks-per-node": True,
        "gpus-per-node": True, "array": True, "dependency": True, "partition": True,
    },
    "srun": {
        "kill-on-bad-exit": True, "wait": True, "cpus-per-task": True, "gpu-bind": True, "open-mode": True,
        "output": True,
    },
}  # fmt: skip


def parse(program: str, argv: list[str]) -> tuple[dict[str, str], list[str]]:
    flags: dict[str, str] = {}
    while argv and argv[0].startswith("--"):
        name, equals, value = argv.pop(0).removeprefix("--").partition("=")
        if FLAGS[program].get(name) != bool(equals):
            sys.exit(f"{program}: unrecognized option '--{name}'")
        flags[name] = value
    return flags, argv


def run_job(number: int, task: int | None, flags: dict[str, str], script: list[str]) -> int:
    first, _, last = flags.get("array", "0-0").partition("-")
    tasks = int(flags["nodes"]) * int(flags["ntasks-per-node"])
    environment = os.environ | {
        "SLURM_JOB_ID": str(number), "SLURM_JOB_NAME": flags["job-name"], "SLURM_NTASKS": str(tasks),
        "SLURM_CPUS_PER_TASK": flags["cpus-per-task"], "SLURM_RESTART_COUNT": "0",
    }  # fmt: skip
    if "gpus-per-node" in flags:
        environment["SLURM_GPUS_ON_NODE"] = flags["gpus-per-node"]
    if task is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        environment["SLURM_ARRAY_TASK_COUNT"] = str(int(last) - int(first) + 1)
    names = {"%x": flags["job-name"], "%j": str(number), "%A": str(number), "%a": str(task)}
    output = re.sub("%.", lambda match: names[match[0]], flags["output"])
    spooled = CLOUD / "spool"  # SLURM runs a copy of the script
    spooled.write_bytes(Path(script[0]).read_bytes())
    while True:
        with open(output, "a") as log:  # as SLURM, without making its folder
            command = ["bash", str(spooled), *script[1:]]
            code = subprocess.run(command, cwd=flags["chdir"], env=environment, stdout=log, stderr=log).returncode
        again = CLOUD / f"requeue.{number}"
        if not again.exists():
            return code
        again.unlink()
        environment["SLURM_RESTART_COUNT"] = str(int(environment["SLURM_RESTART_COUNT"]) + 1)


def sbatch(argv: list[str]) -> None:
    flags, script = parse("sbatch", argv)
    number = len(list(CLOUD.glob("job.*"))) + 1
    if (CLOUD / "refuse").exists() and number > int((CLOUD / "refuse").read_text()):
        sys.exit("sbatch: error: Batch job submission failed: Invalid account specified")
    codes = CLOUD / f"job.{number}"
    if "dependency" in flags:
        kind, _, other = flags["dependency"].partition(":")
        assert kind == "afterany" and (CLOUD / f"job.{other}").exists()
    first, _, last = flags.get("array", "0-0").partition("-")
    tasks: list[int | None] = [*range(int(first), int(last) + 1)] if "array" in flags else [None]
    codes.write_text(json.dumps([run_job(number, task, flags, script) for task in tasks]))
    print(f"{number};cluster")


def srun(argv: list[str]) -> None:
    flags, command = parse("srun", argv)
    processes = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        with open(flags["output"].replace("%t", str(task)), "a") as log:
            environment = os.environ | {"SLURM_PROCID": str(task)}
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
    while any(process.poll() is None for process in processes):
        if (CLOUD / "preempt").exists():
            (CLOUD / "preempt").unlink()
            for process in processes:
                os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    sys.exit(max(process.returncode for process in processes))


if __name__ == "__main__":
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1] == "scontrol":
        assert sys.argv[2] == "requeue"
        (CLOUD / f"requeue.{sys.argv[3]}").touch()
    else:
        {"sbatch": sbatch, "srun": srun}[sys.argv[1]](sys.argv[2:])

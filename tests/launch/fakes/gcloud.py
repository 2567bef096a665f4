"""A Cloud TPU of folders and processes behind gcloud's command line, of which it takes what launch/tpu.sh may use.

FAKE_CLOUD names its folder: scenario.json says what goes wrong, queue.json is the queued resource, calls.jsonl every
call, and vms/NODE/WORKER the home of a worker, whose processes are found by FAKE_VM in their environment.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
QUEUE, VMS = CLOUD / "queue.json", CLOUD / "vms"
FLAGS = {  # of gcloud 528.0.0; True: takes a value
    "queued-resources create": {
        "accelerator-type": True, "runtime-version": True, "node-id": True, "node-count": True, "node-prefix": True,
        "valid-until-duration": True, "spot": False, "reserved": False, "internal-ips": False,
    },
    "queued-resources describe": {},
    "queued-resources delete": {"force": False},
    "tpu-vm describe": {},
    "tpu-vm ssh": {"worker": True, "command": True, "internal-ip": False, "ssh-flag": True},
    "tpu-vm scp": {"worker": True, "internal-ip": False},
}  # fmt: skip
COMMON = {"zone": True, "project": True, "quiet": False, "format": True}


def refuse(text: str, code: int = 1) -> None:
    print(f"ERROR: (gcloud.compute.tpus) {text}", file=sys.stderr)
    sys.exit(code)


def parse(argv: list[str]) -> tuple[str, list[str], dict[str, str]]:
    if argv[:2] != ["compute", "tpus"] or " ".join(argv[2:4]) not in FLAGS:
        refuse(f"Invalid choice: {argv}", 2)
    command, names, flags = " ".join(argv[2:4]), [], {}
    known = FLAGS[command] | COMMON
    for argument in argv[4:]:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            names.append(argument)
        elif known.get(name) != bool(equals):
            refuse(f"unrecognized arguments: {argument}", 2)
        else:
            flags[name] = value
    return command, names, flags


def processes() -> list[int]:
    """Of all workers."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"FAKE_VM={VMS}/".encode() in Path("/proc", pid, "environ").read_bytes():
                found.append(int(pid))
    return found


def power_off() -> None:
    """As a spot TPU's end: SIGTERM to all processes, soon after SIGKILL, and the disks are gone."""
    import shutil
    import signal

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 0.5
        while processes() and time.monotonic() < deadline:
            time.sleep(0.05)
    shutil.rmtree(VMS, ignore_errors=True)


def scenario() -> dict:
    return json.loads((CLOUD / "scenario.json").read_text())


def write_queue(queue: dict) -> None:
    part = CLOUD / f"queue.{os.getpid()}"
    part.write_text(json.dumps(queue))
    part.replace(QUEUE)


def look() -> dict:
    """The queued resource, one step further than when it was looked at before."""
    if not QUEUE.exists():
        refuse("NOT_FOUND: Resource 'queuedResources' was not found")
    queue = json.loads(QUEUE.read_text())
    if queue["state"] != "ACTIVE" and queue["ahead"]:
        queue["state"] = queue["ahead"].pop(0)
        if queue["state"] == "ACTIVE":
            for node in queue["nodes"]:
                for worker in range(scenario()["workers"]):
                    (VMS / node / str(worker)).mkdir(parents=True)
    elif queue["state"] == "ACTIVE" and (CLOUD / "preempt").exists():
        (CLOUD / "preempt").unlink()
        power_off()
        queue |= {"state": "SUSPENDED"}
    write_queue(queue)
    return queue


def create(names: list[str], flags: dict[str, str]) -> None:
    if error := scenario().get("create_error"):
        refuse(error)
    if QUEUE.exists():
        refuse(f"ALREADY_EXISTS: Resource '{names[0]}' already exists")
    if ("node-id" in flags) == ("node-count" in flags) or "runtime-version" not in flags:
        refuse("Exactly one of (--node-id | --node-count) must be specified", 2)
    count = int(flags.get("node-count", "1"))
    nodes = [f"{flags['node-prefix']}-{i}" for i in range(count)] if count > 1 else [flags["node-id"]]
    write_queue({"nodes": nodes, "type": flags["accelerator-type"], "state": "CREATING", "ahead": scenario()["ahead"]})


def describe(names: list[str], flags: dict[str, str]) -> None:
    queue = look()
    count = len(queue["nodes"]) if len(queue["nodes"]) > 1 else ""
    values = {
        "state.state": queue["state"],
        "tpu.nodeSpec[0].multisliceParams.nodeCount": count,
        "tpu.nodeSpec[0].node.acceleratorType": queue["type"],
        "state.failedData.error.message": "no capacity in this zone" if queue["state"] == "FAILED" else "",
    }
    names = flags["format"].removeprefix("value(").removesuffix(")").split(",")
    print(*(values[name] for name in names), sep="\t")


def delete(names: list[str], flags: dict[str, str]) -> None:
    queue = look()
    if queue["state"] == "ACTIVE" and "force" not in flags:
        refuse("FAILED_PRECONDITION: the queued resource has nodes")
    power_off()
    QUEUE.unlink()


def describe_node(names: list[str], flags: dict[str, str]) -> None:
    assert flags["format"] == "value(state,networkEndpoints.len())", flags["format"]
    workers = list((VMS / names[0]).glob("*"))
    if not workers:
        refuse(f"NOT_FOUND: Resource '{names[0]}' was not found")
    print("READY", len(workers), sep="\t")


def ssh(names: list[str], flags: dict[str, str]) -> None:
    """The command on all workers at once, their output mixed; one that hangs holds up the others' end."""
    import subprocess  # not above: describe is called often, and half of its time would be imports
    import threading

    codes = {}

    def connect(worker: int, vm: Path) -> None:
        where = f"{names[0]}:{worker}"
        if where in scenario().get("hang", []):
            time.sleep(1000)
        there = {"HOME": str(vm), "FAKE_VM": str(vm), "FAKE_WORKER": str(worker), "FAKE_NODE": names[0]}
        process = subprocess.Popen(["bash", "-c", flags["command"]], cwd=vm, env=os.environ | there)
        drop = CLOUD / f"dropped.{where}"
        if where in scenario().get("drop", []) and "worker.sh start" in flags["command"] and not drop.exists():
            time.sleep(0.6)
            drop.touch()
            process.kill()  # this end of the connection only
            codes[worker] = 255
        else:
            codes[worker] = 255 if process.wait() < 0 else process.returncode
        if codes[worker]:
            print(f"worker {worker}: exit status {codes[worker]}", file=sys.stderr)

    assert flags["worker"] == "all"
    vms = sorted((VMS / names[0]).glob("*"), key=lambda vm: int(vm.name))
    if not vms:
        refuse("the TPU is in state PREEMPTED")
    threads = [threading.Thread(target=connect, args=(int(vm.name), vm), daemon=True) for vm in vms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(next((codes[worker] for worker in sorted(codes) if codes[worker]), 0))


def scp(names: list[str], flags: dict[str, str]) -> None:
    assert flags["worker"] == "all"
    node, _, path = names[1].partition(":")
    for vm in (VMS / node).glob("*"):
        (vm / path / Path(names[0]).name).write_bytes(Path(names[0]).read_bytes())


if __name__ == "__main__":
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    command, names, flags = parse(sys.argv[2:])
    assert flags["zone"]
    {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm describe": describe_node,
        "tpu-vm ssh": ssh,
        "tpu-vm scp": scp,
    }[command](names, flags)

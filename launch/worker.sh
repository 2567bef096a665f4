#!/usr/bin/env bash
# What runs on each machine of a launch; tpu.sh, slurm.sh and the examples start it.
#
#   worker.sh supervise COMMAND...  runs it. Exit code 75 if it was told to stop (SIGTERM) and has to go on later, else
#                                   its own; a program that saved and exited 0 is not taken for a finished one.
#   worker.sh start JOB COMMAND...  starts it once, detached, so that a lost connection does no harm, and follows it:
#                                   its output as lines "@WORKER NUMBER TEXT", at its end "@WORKER exit CODE"
#   worker.sh log JOB               the output so far, likewise
#   worker.sh stop JOB SECONDS      SIGTERM, and SIGKILL for what is left after so many seconds; JOB's code is 130
#   worker.sh setup                 makes the environment, with a Python that the project runs on
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
metadata() { curl -sf -m 5 -H Metadata-Flavor:Google "http://metadata.google.internal/computeMetadata/v1/instance/$1"; }

supervise() { # COMMAND...
    local code=0 stopped=""
    child=""
    # Some platforms signal this shell only, some every process: a program may see SIGTERM twice.
    trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
    "$@" 9>&- &
    child=$!
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # the signal ended the wait, not the program
        code=0
        wait "$child" || code=$?
    done
    if [ -n "$stopped" ] && [ "$code" -ne 2 ]; then code=75; fi
    return "$code"
}

detached() { # COMMAND...: the other side of start
    local code=0
    echo $$ >"$job/pid.part"
    mv "$job/pid.part" "$job/pid"
    PATH=$root/.venv/bin:$HOME/.local/bin:$PATH supervise "$@" || code=$?
    if [ "$code" -eq 0 ] && [ "$(metadata preempted)" = TRUE ]; then code=75; fi
    if [ -e "$job/stop" ]; then code=130; fi
    echo "$code" >"$job/exit.part"
    mv "$job/exit.part" "$job/exit"
}

running() { [ ! -e "$job/exit" ] && ! flock -n "$job/lock" true; }

number_lines() {
    local number=0 line
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        printf '@%s %d %s\n' "$worker" "$number" "$line"
    done
}

follow() {
    while [ ! -e "$job/pid" ] && running; do sleep 0.1; done
    if running; then
        tail -n +1 -s 0.2 -f --pid="$(cat "$job/pid")" "$job/log" | number_lines
    else
        number_lines <"$job/log"
    fi
    local code=1 # of a job that was killed, or lost when its machine was started anew
    if [ -e "$job/exit" ]; then code=$(cat "$job/exit"); elif [ -e "$job/stop" ]; then code=130; fi
    printf '@%s exit %s\n' "$worker" "$code"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
supervise)
    code=0
    supervise "$@" || code=$?
    exit "$code"
    ;;
setup)
    export PATH=$HOME/.local/bin:$PATH
    found=""
    for name in python3.13 python3.12 python3.11; do
        "$name" -c 'import ensurepip, venv' 2>/dev/null && found=$name
    done
    if [ -z "$found" ]; then # as on the TPU images of Ubuntu 22.04, which have 3.10
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user -q uv
        uv python install -q 3.12
    fi
    exec bash "$root/launch/local.sh" setup
    ;;
start | log | stop | detached) ;;
*)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac

job=$HOME/.hhh_jax/$1
shift
cd -- "$root"
worker=$(metadata attributes/agent-worker-number) || { echo "no metadata server: is this a TPU VM?" >&2 && exit 1; }
case $command in
detached) detached "$@" ;;
log) number_lines <"$job/log" ;;
start)
    mkdir -p "$job"
    exec 9>>"$job/lock" # held by the job for as long as it lives
    if flock -n 9 && [ ! -e "$job/pid" ]; then
        printf 'worker %s is %s:%s\n' "$worker" "$HOSTNAME" "$(printf ' %q' "$@")" >"$job/log"
        setsid bash launch/worker.sh detached "$(basename "$job")" "$@" >>"$job/log" 2>&1 </dev/null &
    fi
    exec 9>&-
    follow
    ;;
stop)
    [ -e "$job/pid" ] && running || exit 0
    pid=$(cat "$job/pid")
    : >"$job/stop"
    kill -TERM -- "-$pid" || true
    for ((i = 0; i < $1 * 5; i++)); do
        if ! running; then exit; fi
        sleep 0.2
    done
    kill -KILL -- "-$pid" || true
    ;;
esac

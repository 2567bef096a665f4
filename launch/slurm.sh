#!/usr/bin/env bash
# Submits a run, or a study in shares, to a SLURM cluster whose nodes all see this checkout:
#
#   bash launch/slurm.sh run --nodes=2 --gpus=8 --time=24:00:00 [options] -- COMMAND...
#   bash launch/slurm.sh study --shards=16 --time=4:00:00 [options] -- --config=FILE.py --workdir=DIR
#
# run starts one process a GPU, which find each other (jax.distributed reads SLURM's variables). study is a job array,
# python -m hhh_jax.study --shard=i/n in each task, and a job after it that does what they left and gathers the report.
# A job that is preempted or reaches its time limit gets SIGTERM, saves, and is queued again until it is finished.
#
#   --nodes=1  --gpus=0 a node  --cpus=8 a process  --time=, as sbatch takes it
#   --shards=N               tasks of the array
#   --name=hhh_jax           of the job
#   --max_restarts=3         failures that COMMAND is started again after, in the same job; 0 for a study, whose
#                            last job retries what failed
#   --backoff=30             seconds before the first restart, doubled for each further one
#   --grace=120              seconds between SIGTERM and the time limit; give what a checkpoint takes
#   --logs=runs/slurm        folder: NAME-JOB.log of a job and NAME-JOB/task-N.log of its processes
#   --sbatch_flag=F          more for sbatch, as --sbatch_flag=--partition=gpu; several allowed
#   --dry_run                prints every command and runs none
#
# Don't change the checkout while jobs wait: they run what is there when they start.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
[ "${1:-}" != batch ] || root=$PWD # SLURM runs a copy of this file, in the checkout
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$root/launch/common.sh"

batch() { # LOGS MAX_RESTARTS BACKOFF COMMAND...: what a job does, on its first node
    local logs=$1/${SLURM_JOB_NAME:-NAME}-${SLURM_JOB_ID:-JOB} max_restarts=$2 backoff=$3 code failures=0
    shift 3
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        logs=${logs%-*}-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        set -- "$@" "--shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    fi
    run bash launch/local.sh setup || exit 2
    run mkdir -p "$logs"
    export PATH=$PWD/.venv/bin:$PATH
    while :; do
        code=0
        # A process that ends does not end the others at once: they may be saving. Each sees all GPUs of its node.
        run srun --kill-on-bad-exit=0 --wait=600 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
            ${SLURM_GPUS_ON_NODE:+--gpu-bind=none} --open-mode=append --output="$logs/task-%t.log" \
            bash launch/worker.sh supervise "$@" || code=$?
        case $code in
        0 | 2 | 126 | 127) exit "$code" ;; # finished, or an error to mend
        75)
            say "told to stop: queued again"
            scontrol requeue "$SLURM_JOB_ID"
            exit 75
            ;;
        esac
        failures=$((failures + 1))
        [ "$failures" -le "$max_restarts" ] || exit "$code"
        say "failed with exit code $code; restart $failures of $max_restarts"
        sleep $((backoff << (failures < 6 ? failures - 1 : 5)))
    done
}

submit() { # SBATCH_FLAGS... -- COMMAND...: prints the job's number
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1") && shift; done
    shift
    run bounded sbatch --parsable --job-name="$name" --chdir="$root" --open-mode=append --requeue \
        --signal="TERM@$grace" --cpus-per-task="$cpus" ${time:+--time="$time"} "${flags[@]}" \
        "${sbatch_flag[@]+"${sbatch_flag[@]}"}" launch/slurm.sh batch "$logs" "$max_restarts" "$backoff" "$@"
}

action=${1:-help}
[ $# -eq 0 ] || shift
case $action in
run | study) ;;
batch) batch "$@" ;; # which ends the job
help | -h | --help)
    usage
    exit
    ;;
*) usage_error "no command '$action'; bash launch/slurm.sh help lists them" ;;
esac

name=hhh_jax time="" logs=$root/runs/slurm sbatch_flag=()
nodes=1 gpus=0 cpus=8 shards=0 max_restarts="" backoff=30 grace=120
texts="name time logs"
numbers="nodes gpus cpus shards max_restarts backoff grace"
switches=dry_run
lists=sbatch_flag
parse_options "$@"
[ ${#command[@]} -gt 0 ] || usage_error "give the command after --"
[ -n "$dry_run" ] || command -v sbatch >/dev/null || usage_error "no sbatch here: this is for a login node of a SLURM cluster"
cd -- "$root"
run mkdir -p "$logs"
tasks=(--nodes="$nodes" --ntasks-per-node="$((gpus > 0 ? gpus : 1))")
[ "$gpus" -eq 0 ] || tasks+=(--gpus-per-node="$gpus")


submitted() { # TEXT JOB; a dry run's JOB is the command
    if [ -n "$dry_run" ]; then printf '%s\n' "$2"; else say "$1: job ${2%%;*}"; fi
}
case $action in
run)
    : "${max_restarts:=3}"
    job=$(submit "${tasks[@]}" --output="$logs/%x-%j.log" -- "${command[@]}")
    submitted "submitted" "$job"
    ;;
study)
    [ "$shards" -gt 0 ] && [ "$nodes" -eq 1 ] && [ "$gpus" -le 1 ] ||
        usage_error "a study takes --shards=N, each one process: --nodes=1 and --gpus=0 or 1"
    : "${max_restarts:=0}"
    command=(python -m hhh_jax.study "${command[@]}")
    array=$(submit "${tasks[@]}" --output="$logs/%x-%A_%a.log" --array="0-$((shards - 1))" -- "${command[@]}")
    submitted "submitted $shards shares" "$array"
    [ -z "$dry_run" ] || array=ARRAY
    job=$(submit "${tasks[@]}" --output="$logs/%x-%j.log" --dependency="afterany:${array%%;*}" -- "${command[@]}")
    submitted "submitted what gathers them" "$job"
    ;;
esac
if [ -n "$dry_run" ]; then
    echo "# in each job:"
    export SLURM_CPUS_PER_TASK=$cpus
    [ "$gpus" -eq 0 ] || export SLURM_GPUS_ON_NODE=$gpus
    batch "$logs" "$max_restarts" "$backoff" "${command[@]}"
fi
say "logs: $logs; squeue --me shows the jobs, scancel JOB ends one"

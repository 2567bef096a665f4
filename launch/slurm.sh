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
#   --max_restarts=3         failures that COMMAND is started again after, in the same job; 0 for a study, whose last job
#                            retries what failed
#   --backoff=30             seconds before the first restart, doubled for each further one
#   --grace=120              seconds between SIGTERM and the time limit; give what a checkpoint takes
#   --logs=runs/slurm        folder: NAME-JOB.log of a job and NAME-JOB/task-N.log of its processes
#   --sbatch_flag=F          more for sbatch, as --sbatch_flag=--partition=gpu; several allowed
#   --dry_run                prints every command and runs none
#
# Don't change the checkout while jobs wait: they run what is there when they start.
set -euo pipefail

say() { printf 'slurm.sh: %s\n' "$*" >&2; }
usage_error() {
    say "$*"
    exit 2
}
quote() { # WORDS: as one line for a shell
    local word out="" safe='^[A-Za-z0-9_./:=,@%+-]+$'
    for word; do
        if [[ $word == *[[:cntrl:]]* ]]; then
            word=$(printf %q "$word")
        elif ! [[ $word =~ $safe ]]; then
            word="'${word//\'/\'\\\'\'}'"
        fi
        out="$out $word"
    done
    printf '%s\n' "${out# }"
}
run() { # COMMAND...: or prints it
    if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}

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
        sleep $((backoff << (failures - 1)))
    done
}

submit() { # SBATCH_FLAGS... -- COMMAND...: prints the job's number
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1") && shift; done
    shift
    run sbatch --parsable --job-name="$name" --chdir="$root" --open-mode=append --requeue \
        --signal="TERM@$grace" --cpus-per-task="$cpus" ${time:+--time="$time"} "${flags[@]}" \
        "${sbatch_flags[@]+"${sbatch_flags[@]}"}" launch/slurm.sh batch "$logs" "$max_restarts" "$backoff" "$@"
}

action=${1:-help} dry_run=""
[ $# -eq 0 ] || shift
case $action in
run | study) ;;
batch) batch "$@" ;;
help | -h | --help)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit
    ;;
*) usage_error "no command '$action'; bash launch/slurm.sh help lists them" ;;
esac

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
name=hhh_jax nodes=1 gpus=0 cpus=8 time="" shards="" max_restarts="" backoff=30 grace=120 logs=$root/runs/slurm sbatch_flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    key=${1%%=*} value=${1#*=}
    key=${key#--} && key=${key//-/_}
    case $1 in --*=*) option=$key= ;; --*) option=$key ;; *) option="" ;; esac
    case $option in
    name= | time= | logs=) printf -v "$key" %s "$value" ;;
    nodes= | gpus= | cpus= | shards= | max_restarts= | backoff= | grace=)
        [[ $value =~ ^[0-9]+$ ]] || usage_error "$1: give a whole number"
        printf -v "$key" %d "$value"
        ;;
    sbatch_flag=) sbatch_flags+=("$value") ;;
    dry_run) dry_run=yes ;;
    *) usage_error "no option $1, or its value is missing; bash launch/slurm.sh help lists them" ;;
    esac
    shift
done
[ $# -gt 1 ] || usage_error "give the command after --"
shift
command -v sbatch >/dev/null || usage_error "no sbatch here: this is for a login node of a SLURM cluster"
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
    submitted "submitted" "$(submit "${tasks[@]}" --output="$logs/%x-%j.log" -- "$@")"
    ;;
study)
    [ "${shards:-0}" -gt 0 ] && [ "$nodes" -eq 1 ] && [ "$gpus" -le 1 ] ||
        usage_error "a study takes --shards=N, each one process: --nodes=1 and --gpus=0 or 1"
    : "${max_restarts:=0}"
    set -- python -m hhh_jax.study "$@"
    array=$(submit "${tasks[@]}" --output="$logs/%x-%A_%a.log" --array="0-$((shards - 1))" -- "$@")
    submitted "submitted $shards shares" "$array"
    [ -z "$dry_run" ] || array=ARRAY
    submitted "submitted what gathers them" \
        "$(submit "${tasks[@]}" --output="$logs/%x-%j.log" --dependency="afterany:${array%%;*}" -- "$@")"
    ;;
esac
if [ -n "$dry_run" ]; then
    echo "# in each job:"
    export SLURM_CPUS_PER_TASK=$cpus
    [ "$gpus" -eq 0 ] || export SLURM_GPUS_ON_NODE=$gpus
    batch "$logs" "$max_restarts" "$backoff" "$@"
fi
say "logs: $logs; squeue --me shows the jobs, scancel JOB ends one"

#!/usr/bin/env bash
# Runs a command on every worker of a Cloud TPU slice, or of several, until it is finished:
#
#   bash launch/tpu.sh run --name=NAME --type=v5p-128 --zone=ZONE [options] -- COMMAND...
#   bash launch/tpu.sh status|logs|stop|delete --name=NAME --zone=ZONE [--project=PROJECT] [--logs=FOLDER]
#
# run asks for the TPUs (a queued resource), waits for them, copies the committed code, makes the environment and starts
# COMMAND on all workers at once. Given again, it goes on where an interrupted launcher was. stop ends COMMAND (SIGTERM)
# and leaves the TPUs; delete gives them back. Exit code: 0 finished, 1 failed, 2 an error that you have to mend.
#
#   --project=P            instead of gcloud's
#   --slices=1             slices of --type
#   --spot                 spot TPUs: after a preemption they are asked for anew and COMMAND is started again
#   --max_restarts=3       failures in a row that COMMAND is started again after; preemptions don't count, and a
#                          failure after an hour is a first one
#   --delete_when_done     gives the TPUs back at the end, however it ends; but not when the terminal is closed
#   --dry_run              prints every command and runs none
#   --logs=runs/tpu/NAME   folder on this machine, with a file for each worker
#   --runtime_version=V    instead of the usual one of --type
#   --create_flag=F        more for queued-resources create, as --create_flag=--reserved; several allowed
#   --ssh_flag=F           more for tpu-vm ssh and scp, as --ssh_flag=--internal-ip; several allowed
#
# In seconds: --wait=86400 for TPUs, then the request expires; --start_timeout=300 for the first line of each worker;
# --setup_timeout=1800; --stop_timeout=300 for workers to end when another has failed, or at stop; --poll=30 between looks;
# --backoff=30 before the first restart, doubled for each further one.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source-path=SCRIPTDIR source=tpu_workers.sh
. "$root/launch/tpu_workers.sh"

name="" type="" zone="" project="" logs="" runtime_version="" spot="" delete_when_done="" dry_run=""
slices=1 max_restarts=3 wait=86400 start_timeout=300 setup_timeout=1800 stop_timeout=300 poll=30 backoff=30
create_flags=() ssh_flags=()

say() { printf 'tpu.sh: %s\n' "$*" >&2; }
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
run() { # COMMAND...: for at most 10 minutes (gcloud hangs at times), or printed
    if [ -n "$dry_run" ]; then quote "$@"; elif command -v timeout >/dev/null; then timeout 600 "$@"; else "$@"; fi
}

action=${1:-help}
[ $# -eq 0 ] || shift
case $action in
run | status | logs | stop | delete) ;;
help | -h | --help)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit
    ;;
*) usage_error "no command '$action'; bash launch/tpu.sh help lists them" ;;
esac
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    key=${1%%=*} value=${1#*=}
    key=${key#--} && key=${key//-/_}
    case $1 in --*=*) option=$key= ;; --*) option=$key ;; *) option="" ;; esac
    case $option in
    name= | type= | zone= | project= | logs= | runtime_version= | poll=) printf -v "$key" %s "$value" ;;
    slices= | max_restarts= | wait= | backoff= | start_timeout= | setup_timeout= | stop_timeout=)
        [[ $value =~ ^[0-9]+$ ]] || usage_error "$1: give a whole number"
        printf -v "$key" %d "$value"
        ;;
    create_flag=) create_flags+=("$value") ;;
    ssh_flag=) ssh_flags+=("$value") ;;
    spot) spot=--spot ;;
    delete_when_done | dry_run) printf -v "$key" yes ;;
    *) usage_error "no option $1, or its value is missing; bash launch/tpu.sh help lists them" ;;
    esac
    shift
done
[ $# -eq 0 ] || shift
[ -n "$name" ] && [ -n "$zone" ] || usage_error "give --name=NAME and --zone=ZONE"
: "${logs:=$root/runs/tpu/$name}"
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
state="" reason="" may_create=yes nodes=() ready=() workers=()

describe() { # sets `state` of the queued resource ("" if unknown, DELETED if there is none), `reason` and `nodes`
    local out i
    out=$(run "${queue[@]}" describe "$name" "${where[@]}" \
        '--format=value(state.state,tpu.nodeSpec[0].multisliceParams.nodeCount,state.failedData.error.message)' \
        2>"$err") || {
        state=""
        if grep -q NOT_FOUND "$err"; then state=DELETED; else cat "$err" >&2; fi
        return
    }
    if [ -n "$dry_run" ]; then # as if there were none at first
        printf '%s\n' "$out"
        out=$([ "$dry_run" = yes ] && echo DELETED || echo ACTIVE)$'\t'$slices
        dry_run=created
    fi
    IFS=, read -r state slices reason <<<"${out//$'\t'/,}"
    slices=${slices:-1} nodes=("$name")
    [ "$slices" -eq 1 ] || nodes=()
    for ((i = 0; i < slices && slices > 1; i++)); do nodes+=("$name-$i"); done
}

look_at_nodes() { # sets `ready`: the workers of each node; 0 if it was taken away, -1 if in between or unknown
    local node out
    ready=()
    for node in "${nodes[@]}"; do
        out=$(run "${vm[@]}" describe "$node" "${where[@]}" '--format=value(state,networkEndpoints.len())' \
            2>"$err") || out=""
        if [ -n "$dry_run" ]; then printf '%s\n' "$out" && out="READY 1"; fi
        case $out in
        READY*) ready+=("${out##*[[:space:]]}") ;;
        PREEMPTED* | TERMINATED* | STOP* | DELETING* | HID*) ready+=(0) ;;
        *) ready+=(-1) ;;
        esac
    done
}

create() {
    local node=(--node-id="$name")
    [ "$slices" -eq 1 ] || node=(--node-count="$slices" --node-prefix="$name")
    run "${queue[@]}" create "$name" "${where[@]}" "${node[@]}" --accelerator-type="$type" \
        --runtime-version="$runtime_version" --valid-until-duration="${wait}s" --quiet \
        ${spot:+"$spot"} "${create_flags[@]+"${create_flags[@]}"}"
}
delete() {
    run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet || return 1
    may_create=yes
}

obtain() { # takes the next step toward nodes that are all ready, until they are; fails if that cannot be
    local deadline=$((SECONDS + wait)) before="" asked=$slices
    while :; do
        describe
        [ "$state" = "$before" ] || say "$name: ${state:-state unknown}"
        before=$state
        case $state in
        DELETED)
            if [ -z "$may_create" ]; then # somebody else deleted it, and does not want it back
                outcome=deleted
                return 1
            fi
            slices=$asked
            [ -n "$dry_run" ] || rm -f "$logs/current"
            create || return 1
            continue
            ;;
        SUSPENDED) delete || return 1 ;;
        FAILED)
            say "the request for $name failed: $reason"
            delete || true
            return 1
            ;;
        ACTIVE)
            look_at_nodes
            case " ${ready[*]} " in
            *" 0 "*) delete || return 1 ;;
            *" -1 "*) ;;
            *)
                workers=("${ready[@]}") may_create=""
                return 0
                ;;
            esac
            ;;
        esac
        if [ $SECONDS -ge "$deadline" ]; then
            say "no TPUs in $wait s; the request is withdrawn"
            delete || true
            return 1
        fi
        sleep "$poll"
    done
}

finish() { # CODE: ends the launcher
    trap - INT TERM HUP
    end_sessions
    if [ -n "$delete_when_done" ]; then
        delete || say "could not delete $name: see to it, it costs money"
    elif [ -z "$dry_run" ] && [ "$state" != DELETED ]; then
        say "$name costs money until you give it back: bash launch/tpu.sh delete --name=$name ${where[*]}"
    fi
    exit "$1"
}

copy_code() { # fails if a node did not get it
    local node
    [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] || say "the workers get commit $commit without the changes since"
    run git -C "$root" bundle create -q "$logs/hhh_jax.bundle" HEAD
    for node in "${nodes[@]}"; do
        run "${vm[@]}" scp "$logs/hhh_jax.bundle" "$node:" "${where[@]}" --worker=all \
            "${ssh_flags[@]+"${ssh_flags[@]}"}" --quiet || return 1
    done
}

attempt() { # COMMAND...: runs it once; sets `outcome`
    outcome=failed
    if ! obtain; then
        [ -n "$id" ] || finish 1 # later on it counts as a failure
        return 0
    fi
    if [ -z "$dry_run" ] && [ -e "$logs/current" ]; then
        { read -r id && read -r running; } <"$logs/current"
        [ "$running" = "$(quote "$@")" ] ||
            usage_error "$name is at another command: $running; to end that: bash launch/tpu.sh stop"
        say "following what was started before; logs: $logs/$id"
    else
        id=$(date -u +%Y%m%dT%H%M%S)-$RANDOM
        on_all "$logs/$id/hello" 0 "echo @\$(curl -s -H Metadata-Flavor:Google $number) exit 0"
        [ "$outcome" = finished ] || return 0
        outcome=failed
        copy_code || return 0
        on_all "$logs/$id/setup" "$setup_timeout" "git init -q hhh_jax && cd hhh_jax && git fetch -q ../hhh_jax.bundle HEAD \
&& git checkout -qf $commit && bash launch/worker.sh start $id-setup bash launch/worker.sh setup"
        [ "$outcome" = finished ] || return 0
        [ -n "$dry_run" ] || printf '%s\n' "$id" "$(quote "$@")" >"$logs/current"
        say "starting on all workers; logs: $logs/$id"
    fi
    on_all "$logs/$id" 0 "bash hhh_jax/launch/worker.sh start $id $(quote "$@")"
    case $outcome in failed | silent) tell 60 "$logs/$id" "bash hhh_jax/launch/worker.sh stop $id 5" ;; esac
    rm -f "$logs/current"
}

run_until_done() { # COMMAND...
    local failures=0 began
    while :; do
        began=$SECONDS
        attempt "$@"
        case $outcome in
        finished)
            say "finished"
            finish 0
            ;;
        stopped) say "ended by tpu.sh stop" && finish 1 ;;
        mend) say "this is an error to mend, so it is not started again" && finish 2 ;;
        silent) finish 1 ;;
        deleted) say "$name was deleted" && finish 1 ;;
        preempted) say "preempted; going on when there are TPUs again" ;;
        failed)
            [ $((SECONDS - began)) -lt 3600 ] || failures=0
            failures=$((failures + 1))
            [ "$failures" -le "$max_restarts" ] || { say "failed $failures times in a row" && finish 1; }
            say "failed; restart $failures of $max_restarts in $((backoff << (failures - 1))) s"
            sleep $((backoff << (failures - 1)))
            ;;
        esac
    done
}

id=""
if [ -n "$dry_run" ]; then err=/dev/null; else mkdir -p "$logs" && err=$logs/gcloud.err; fi
case $action in
delete)
    delete
    exit
    ;;
status | logs | stop)
    dry_run=${dry_run:+created}
    describe
    say "$name: ${state:-state unknown}"
    [ "$state" = ACTIVE ] || exit 0
    look_at_nodes
    say "workers of${nodes[*]/#/ }: ${ready[*]}"
    last=("$logs"/2*/)
    id=$(basename "${last[${#last[@]} - 1]}")
    case $action in
    stop) tell $((stop_timeout + 60)) "$logs/$id" "bash hhh_jax/launch/worker.sh stop $id $stop_timeout" ;;
    logs) tell 600 "$logs/$id" "bash hhh_jax/launch/worker.sh log $id" ;;
    esac
    [ -n "$dry_run" ] || show_workers "$logs/$id"
    exit
    ;;
esac

[ $# -gt 0 ] || usage_error "give the command after --"
case $type in
v2-* | v3-* | v4-*) : "${runtime_version:=tpu-ubuntu2204-base}" ;;
v5litepod-*) : "${runtime_version:=v2-alpha-tpuv5-lite}" ;;
v5p-*) : "${runtime_version:=v2-alpha-tpuv5}" ;;
v6e-*) : "${runtime_version:=v2-alpha-tpuv6e}" ;;
tpu7x*) usage_error "$type is to be had on GKE: see launch/examples/gke_jobset.yaml" ;;
*) [ -n "$type" ] && [ -n "$runtime_version" ] || usage_error "give --type, as v5litepod-16, v5p-128 or v6e-256" ;;
esac
command -v gcloud >/dev/null || usage_error "needs gcloud: https://cloud.google.com/sdk/docs/install"
commit=$(git -C "$root" rev-parse HEAD) || usage_error "$root is no git checkout: the workers get a commit"
number=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
trap 'say "interrupted; the command goes on, and the same line follows it again" || true; finish 130' INT TERM
trap 'delete_when_done=""; finish 129' HUP
run_until_done "$@"

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
# --setup_timeout=1800; --stop_timeout=300 for workers to end when another has failed, or at stop; --poll=30 between
# looks; --backoff=30 before the first restart, doubled for each further one.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$root/launch/common.sh"
# shellcheck source-path=SCRIPTDIR source=tpu_queue.sh
. "$root/launch/tpu_queue.sh"
# shellcheck source-path=SCRIPTDIR source=tpu_workers.sh
. "$root/launch/tpu_workers.sh"

action=${1:-help}
[ $# -eq 0 ] || shift
case $action in
run | status | logs | stop | delete) ;;
help | -h | --help)
    usage
    exit
    ;;
*) usage_error "no command '$action'; bash launch/tpu.sh help lists them" ;;
esac
name="" type="" zone="" project="" logs="" runtime_version="" spot="" delete_when_done="" create_flag=() ssh_flag=()
slices=1 max_restarts=3 wait=86400 start_timeout=300 setup_timeout=1800 stop_timeout=300 poll=30 backoff=30
texts="name type zone project logs runtime_version poll"
numbers="slices max_restarts wait start_timeout setup_timeout stop_timeout backoff"
switches="spot delete_when_done dry_run"
lists="create_flag ssh_flag"
parse_options "$@"
[ -n "$name" ] && [ -n "$zone" ] || usage_error "give --name=NAME and --zone=ZONE"
: "${logs:=$root/runs/tpu/$name}"
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

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

interrupted() {
    [ -n "$delete_when_done" ] || say "interrupted; what was started goes on, and the same line follows it again"
    finish 130
}

copy_code() { # fails if a node did not get it
    local node
    [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] ||
        say "the workers get commit $commit, without the changes since"
    run git -C "$root" bundle create -q "$logs/hhh_jax.bundle" HEAD
    for node in "${nodes[@]}"; do
        run bounded "${vm[@]}" scp "$logs/hhh_jax.bundle" "$node:" "${where[@]}" --worker=all \
            "${ssh_flag[@]+"${ssh_flag[@]}"}" --quiet || return 1
    done
}

attempt() { # COMMAND...: runs it once; sets `outcome`
    local checkout running
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
        checkout="git init -q hhh_jax && cd hhh_jax && git fetch -q ../hhh_jax.bundle HEAD && git checkout -qf $commit"
        on_all "$logs/$id/setup" "$setup_timeout" \
            "$checkout && bash launch/worker.sh start $id-setup bash launch/worker.sh setup"
        [ "$outcome" = finished ] || return 0
        if [ -z "$dry_run" ]; then
            printf '%s\n' "$id" "$(quote "$@")" >"$logs/current"
            say "starting on all workers; logs: $logs/$id"
        fi
    fi
    began=$SECONDS
    on_all "$logs/$id" 0 "bash hhh_jax/launch/worker.sh start $id $(quote "$@")"
    case $outcome in failed | silent) tell 60 "$logs/$id" "bash hhh_jax/launch/worker.sh stop $id 5" ;; esac
    [ -n "$dry_run" ] || rm -f "$logs/current"
}

run_until_done() { # COMMAND...
    local failures=0 began=$SECONDS pause
    while :; do
        attempt "$@"
        case $outcome in
        finished)
            if [ -z "$dry_run" ]; then say "finished"; elif [ -n "$spot" ]; then
                echo "# after a preemption: queued-resources delete, and all of this again"
            fi
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
            pause=$((backoff << (failures < 6 ? failures - 1 : 5)))
            say "failed; restart $failures of $max_restarts in $pause s"
            sleep "$pause"
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
    [ -d "${last[0]}" ] || exit 0
    id=$(basename "${last[${#last[@]} - 1]}")
    case $action in
    stop) tell $((stop_timeout + 60)) "$logs/$id" "bash hhh_jax/launch/worker.sh stop $id $stop_timeout" ;;
    logs) tell 600 "$logs/$id" "bash hhh_jax/launch/worker.sh log $id" ;;
    esac
    [ -n "$dry_run" ] || show_workers "$logs/$id"
    exit
    ;;
esac

[ ${#command[@]} -gt 0 ] || usage_error "give the command after --"
case $type in
v2-* | v3-* | v4-*) : "${runtime_version:=tpu-ubuntu2204-base}" ;;
v5litepod-*) : "${runtime_version:=v2-alpha-tpuv5-lite}" ;;
v5p-*) : "${runtime_version:=v2-alpha-tpuv5}" ;;
v6e-*) : "${runtime_version:=v2-alpha-tpuv6e}" ;;
tpu7x*) usage_error "$type is to be had on GKE: see launch/examples/gke_jobset.yaml" ;;
*) [ -n "$type" ] && [ -n "$runtime_version" ] || usage_error "give --type, as v5litepod-16, v5p-128 or v6e-256" ;;
esac
[ -n "$dry_run" ] || command -v gcloud >/dev/null || usage_error "needs gcloud: https://cloud.google.com/sdk/docs/install"
commit=$(git -C "$root" rev-parse HEAD) || usage_error "$root is no git checkout: the workers get a commit"
number=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
trap interrupted INT TERM
trap 'delete_when_done=""; finish 129' HUP
run_until_done "${command[@]}"

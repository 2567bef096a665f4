# shellcheck shell=bash disable=SC2154 # tpu.sh sets the options and the nodes
# The workers' side of tpu.sh, which sources this file: connections to all of them, their logs, how they ended.
#
# What a worker does is a job of worker.sh there. It goes on when a connection breaks, and each connection tells its
# output from the first line on as "@WORKER NUMBER TEXT", so that lines of many workers may mix and come twice.

sessions=() silent="" going="" codes=""

connect() { # NODE COMMAND: on all workers of a node at once
    run "${vm[@]}" ssh "$1" "${where[@]}" --worker=all --ssh-flag=-oServerAliveInterval=30 \
        "${ssh_flag[@]+"${ssh_flag[@]}"}" --quiet --command="$2" </dev/null
}

split_lines() { # PREFIX: each line once to its worker's PREFIX.workerW.log, an exit code to .exit; worker 0's also here
    local line worker number text seen=() pattern='^@([0-9]+) ([0-9]+|exit) ?(.*)$'
    while IFS= read -r line; do
        [[ $line =~ $pattern ]] || continue
        worker=${BASH_REMATCH[1]} number=${BASH_REMATCH[2]} text=${BASH_REMATCH[3]}
        if [ "$number" = exit ]; then
            printf '%s\n' "$text" >"$1.worker$worker.exit"
            continue
        fi
        [ -n "${seen[worker]:-}" ] || seen[worker]=$(($(cat "$1.worker$worker.log" 2>/dev/null | wc -l)))
        [ "$number" -gt "${seen[worker]}" ] || continue
        seen[worker]=$number
        printf '%s\n' "$text" >>"$1.worker$worker.log"
        [ "$worker" != 0 ] || [ "${1##*/}" != "${nodes[0]}" ] || printf '%s\n' "$text"
    done
}

session() { # INDEX FOLDER COMMAND: connects to a node again until all its workers have told an exit code
    local node=${nodes[$1]}
    while kill -0 $$ 2>/dev/null; do # the launcher
        connect "$node" "$3" 2>>"$2/gcloud.log" | split_lines "$2/$node" || true
        [ "$(find "$2" -maxdepth 1 -name "$node.worker*.exit" | wc -l)" -lt "${workers[$1]}" ] || return 0
        sleep "$poll"
    done
}
once() { # INDEX FOLDER COMMAND: connects to a node once
    connect "${nodes[$1]}" "$3" 2>>"$2/gcloud.log" | split_lines "$2/${nodes[$1]}" >/dev/null || true
}
begin_sessions() { # session|once FOLDER COMMAND: one a node, in the background
    local i
    if [ -n "$dry_run" ]; then
        for i in "${!nodes[@]}"; do connect "${nodes[$i]}" "$3"; done
        return
    fi
    mkdir -p "$2"
    for i in "${!nodes[@]}"; do
        set -m # a process group of its own, which Ctrl-C does not reach and end_sessions does
        "$1" "$i" "$2" "$3" &
        set +m
        sessions+=($!)
        disown
    done
}
end_sessions() {
    local pid
    for pid in "${sessions[@]+"${sessions[@]}"}"; do kill -- "-$pid" 2>/dev/null || true; done
    sessions=()
}

tell() { # SECONDS FOLDER COMMAND: on all workers, waiting for so long at most
    local pid deadline=$((SECONDS + $1))
    begin_sessions once "$2" "$3"
    for pid in "${sessions[@]+"${sessions[@]}"}"; do
        while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep "$poll"; done
    done
    end_sessions
}

look_at_workers() { # FOLDER: sets `silent` and `going`, their names, and `codes` of those that ended
    local i w file
    silent="" going="" codes=" "
    for i in "${!nodes[@]}"; do
        for ((w = 0; w < workers[i]; w++)); do
            file=$1/${nodes[$i]}.worker$w
            if [ -e "$file.exit" ]; then
                codes="$codes$(cat "$file.exit") "
            elif [ -e "$file.log" ]; then
                going="$going ${file##*/}"
            else
                silent="$silent ${file##*/}"
            fi
        done
    done
}

on_all() { # FOLDER SECONDS COMMAND: on all workers at once, for at most so long (0: any time); sets `outcome`
    local began=$SECONDS failed_at=""
    begin_sessions session "$1" "$3"
    outcome=${dry_run:+finished}
    while [ -z "$outcome" ]; do
        sleep "$poll"
        look_at_workers "$1"
        case $codes in *" "[1-9]*) failed_at=${failed_at:-$SECONDS} ;; esac
        case "$silent$going/$codes" in # nothing before the slash: all have ended
        /*" 130 "*) outcome=stopped ;;
        /*" 2 "* | /*" 126 "* | /*" 127 "*) outcome=mend ;;
        /*" 75 "*) outcome=preempted ;;
        /*" "[1-9]*) outcome=failed ;;
        /*) outcome=finished ;;
        *) is_taken_away ;;
        esac
        [ -z "$outcome" ] || break
        if [ -n "$silent" ] && [ $((SECONDS - began)) -ge "$start_timeout" ]; then
            say "did not start in $start_timeout s:$silent; see $1/gcloud.log"
            outcome=silent
        elif [ -n "$failed_at" ] && [ $((SECONDS - failed_at)) -ge "$stop_timeout" ]; then
            say "did not end in $stop_timeout s after another worker had failed:$silent$going"
            outcome=failed
        elif [ "$2" -gt 0 ] && [ $((SECONDS - began)) -ge "$2" ]; then
            say "did not end in $2 s:$silent$going"
            outcome=failed
        fi
    done
    end_sessions
    case $outcome in failed | mend) show_first_failure "$1" ;; esac
}

is_taken_away() { # sets `outcome` if so
    describe
    case $state in
    DELETED | DELETING) outcome=deleted ;;
    SUSPEND* | FAILED) outcome=preempted ;;
    ACTIVE)
        look_at_nodes
        case " ${ready[*]} " in *" 0 "*) outcome=preempted ;; esac
        ;;
    esac
}

show_first_failure() { # FOLDER
    local file first=""
    for file in "$1"/*.exit; do
        [ -e "$file" ] && [ "$(cat "$file")" != 0 ] || continue
        if [ -z "$first" ] || [ "$file" -ot "$first" ]; then first=$file; fi
    done
    [ -n "$first" ] || return 0
    say "${first##*/}: $(cat "$first"), the first of$codes; the end of its log:"
    tail -n 5 "${first%.exit}.log" >&2 || true
}

show_workers() { # FOLDER
    local file
    for file in "$1"/*.log; do
        case $file in */gcloud.log) continue ;; esac
        printf '%s: %s: %s\n' "$(basename "${file%.log}")" \
            "$(if [ -e "${file%.log}.exit" ]; then echo "exit $(cat "${file%.log}.exit")"; else echo running; fi)" \
            "$(tail -n 1 "$file")"
    done
}

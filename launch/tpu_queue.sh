# shellcheck shell=bash disable=SC2154,SC2034 # tpu.sh sets the options, and reads what is set here
# The TPUs' side of tpu.sh, which sources this file: the queued resource and its nodes, one node a slice.

queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
state="" is_type="" reason="" may_create=yes nodes=() ready=() workers=()

describe() { # sets `state` ("" if unknown, DELETED if there is none), `slices`, `is_type`, `reason` and `nodes`
    local out i spec='tpu.nodeSpec[0]'
    out=$(run bounded "${queue[@]}" describe "$name" "${where[@]}" "--format=value(\
state.state,$spec.multisliceParams.nodeCount,$spec.node.acceleratorType,state.failedData.error.message)" 2>"$err") || {
        state=""
        if grep -q NOT_FOUND "$err"; then state=DELETED; else cat "$err" >&2; fi
        return
    }
    if [ -n "$dry_run" ]; then # as if there were none at first
        printf '%s\n' "$out"
        out=$([ "$dry_run" = yes ] && echo DELETED || echo ACTIVE)$'\t'$slices$'\t'$type
        dry_run=created
    fi
    IFS=, read -r state slices is_type reason <<<"${out//$'\t'/,}"
    slices=${slices:-1} nodes=("$name")
    [ "$slices" -eq 1 ] || nodes=()
    for ((i = 0; i < slices && slices > 1; i++)); do nodes+=("$name-$i"); done
}

look_at_nodes() { # sets `ready`: the workers of each node; 0 if it was taken away, -1 if in between or unknown
    local node out
    ready=()
    for node in "${nodes[@]}"; do
        out=$(run bounded "${vm[@]}" describe "$node" "${where[@]}" '--format=value(state,networkEndpoints.len())' \
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
    run bounded "${queue[@]}" create "$name" "${where[@]}" "${node[@]}" --accelerator-type="$type" \
        --runtime-version="$runtime_version" --valid-until-duration="${wait}s" --quiet \
        ${spot:+--spot} "${create_flag[@]+"${create_flag[@]}"}"
}
delete() {
    may_create=yes
    run bounded "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

obtain() { # takes the next step toward nodes that are all ready, until they are; fails if that cannot be
    local deadline=$((SECONDS + wait)) before="" asked=$slices
    while :; do
        describe
        [ -n "$state$before$id" ] || return 1 # gcloud has told why
        [ "$state" = "$before" ] || [ -n "$dry_run" ] || say "$name: ${state:-state unknown}"
        before=$state
        case $state in
        DELETED)
            if [ -z "$may_create" ]; then # somebody else deleted it, and does not want it back
                outcome=deleted
                return 1
            fi
            slices=$asked
            [ -n "$dry_run" ] || rm -f "$logs/current"
            create && continue
            describe # gcloud may have given up on a request that was made
            [ "$state" != DELETED ] || return 1
            ;;
        SUSPENDED) delete || return 1 ;;
        FAILED)
            say "the request for $name failed: $reason"
            delete || true
            return 1
            ;;
        ACTIVE)
            [ "$slices $is_type" = "$asked $type" ] ||
                usage_error "$name has $slices of $is_type, not $asked of $type; delete it, or take another name"
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

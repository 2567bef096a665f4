# shellcheck shell=bash disable=SC2154,SC2034 # the scripts that source this name their options, and read `command`
# What tpu.sh and slurm.sh share: options, and commands that are printed instead of run.

dry_run="" command=()

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
usage_error() {
    say "$*"
    exit 2
}
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"; }

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
run() { # [bounded] COMMAND...: or prints it
    if [ -n "$dry_run" ] && [ "$1" = bounded ]; then shift; fi
    if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}

bounded() { # COMMAND...: for at most 10 minutes; gcloud and sbatch hang at times
    if command -v timeout >/dev/null; then timeout 600 "$@"; else "$@"; fi
}
among() { case " $2 " in *" $1 "*) return 0 ;; *) return 1 ;; esac; } # WORD WORDS

parse_options() { # ARGUMENTS...: sets the variables that `texts`, `numbers`, `switches` and `lists` name, and `command`
    local key value
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        key=${1%%=*} value=${1#*=}
        key=${key#--} && key=${key//-/_}
        if [[ $1 == --*=* ]] && among "$key" "$texts"; then
            printf -v "$key" %s "$value"
        elif [[ $1 == --*=* ]] && among "$key" "$numbers"; then
            [[ $value =~ ^[0-9]+$ ]] || usage_error "$1: give a whole number"
            printf -v "$key" %d "$((10#$value))"
        elif [[ $1 == --*=* ]] && among "$key" "$lists"; then
            eval "$key+=(\"\$value\")"
        elif [[ $1 == --* && $1 != *=* ]] && among "$key" "$switches"; then
            printf -v "$key" yes
        else
            usage_error "no option $1, or its value is missing; bash launch/${0##*/} help lists them"
        fi
        shift
    done
    [ $# -eq 0 ] || command=("${@:2}")
}

#!/usr/bin/env bash
# Makes the project's environment on this machine and runs one thing in it:
#
#   bash launch/local.sh study [arguments]    the embedded study; --preset=full is the same in hours.
#                                             It resumes, and writes below runs/ or $HHH_JAX_WORKDIR.
#   bash launch/local.sh gallery [NAME...]    the embedded form of every study of configs/studies/ (or of those named), and
#                                             one page with all figures, gallery/gallery.html in the same folder. It
#                                             resumes; beyond the study above it takes about a minute a study.
#   bash launch/local.sh test [arguments]     the tests; arguments go to pytest. The slowest are left out: -m slow runs
#                                             those, -m "" all
#   bash launch/local.sh parity [arguments]   the tests against PyTorch and transformers (installed first), and those on
#                                             the real data in the folder that $HHH_JAX_DATA names
#   bash launch/local.sh bench [NAME...]      benchmarks, all or those named, against PyTorch and TRL (installed first) and
#                                             on the real data in the folder that $HHH_JAX_DATA names
#   bash launch/local.sh lint                 ruff and mypy
#   bash launch/local.sh setup                nothing but the environment
#
# Everything runs in the checkout's folder: paths in arguments are relative to it, those in variables to where you are.
# The environment is .venv in the checkout, with the versions of constraints/, with the cuda extra where nvidia-smi
# answers and the tpu extra where there are a TPU's device files. It is made anew when the packages that pyproject.toml
# and constraints/ ask for change, or when an installation was interrupted; otherwise nothing is installed and no
# network is needed.
set -euo pipefail

here=$PWD
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
venv=$root/.venv
python=$venv/bin/python

say() { printf 'local.sh: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

absolute() { # PATH: as seen from where the user is
    case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '%s' "$here/$1" ;;
    esac
}

find_python() {
    local name found="" lacking="" path=":$PATH:"
    path=${path//:"$venv/bin":/:} # an activated .venv is about to be replaced
    path=${path#:}
    PATH=${path%:}
    for name in python3 python3.13 python3.12 python3.11 python; do
        found=$("$name" -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) and print(sys.executable)' \
            2>/dev/null) || continue
        [ -n "$found" ] || continue
        if "$found" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s' "$found"
            return
        fi
        lacking=$found
    done
    [ -z "$lacking" ] || fail "$lacking cannot make environments: its modules venv and ensurepip are missing" \
        "(on Debian and Ubuntu: apt install python3-venv)"
    fail "needs Python 3.11, 3.12 or 3.13 and finds none as python3, python3.13, python3.12, python3.11 or python"
}

recipe() { # EXTRAS: all that an environment is made from; it is up to date if made from the same
    printf 'hhh_jax[%s] in %s\n' "$1" "$root"
    sed '/^\[tool\./,$d' "$root/pyproject.toml"
    cat "$root"/constraints/*.txt
}
made_from() { # STAMP EXTRAS
    [ -x "$python" ] && [ "$(cat "$venv/$1" 2>/dev/null)" = "$(recipe "$2")" ]
}
pip_install() { "$python" -m pip --disable-pip-version-check install -qq -c "$root/constraints/default.txt" "$@"; }

make_environment() {
    local extras=test base
    if nvidia-smi >/dev/null 2>&1; then
        extras=test,cuda
    elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        extras=test,tpu
    fi
    # An environment with CUDA also serves a machine of the same cluster that has no GPU.
    if made_from installed "$extras" || made_from installed test,cuda; then return; fi

    { : >"$root/.venv.lock"; } 2>/dev/null || fail "cannot write to $root: use a checkout of your own"
    if command -v flock >/dev/null; then
        exec 9>"$root/.venv.lock"
        flock -n 9 || { say "waiting for another local.sh that is installing" && flock 9; }
        if made_from installed "$extras"; then
            exec 9>&-
            return
        fi
    fi
    if [ -e "$venv" ] && [ ! -e "$venv/made-by-local.sh" ]; then
        fail "$venv is not of this script's making: move it away and start again"
    fi
    base=$(find_python)
    say "making .venv with $("$base" --version) and hhh_jax[$extras]; this takes a few minutes, once"
    mkdir -p "$venv"
    : >"$venv/made-by-local.sh"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name made-by-local.sh -exec rm -rf {} +
    "$base" -m venv "$venv" || fail "could not make $venv"
    pip_install -e "${root}[$extras]" || fail "the installation failed; the next start makes .venv anew"
    recipe "$extras" >"$venv/installed"
    say "installed in ${SECONDS} s"
    exec 9>&-
}

add_parity() {
    if made_from installed-parity parity; then return; fi
    say "adding PyTorch and transformers to .venv"
    pip_install -r "$root/constraints/parity.txt" || fail "the installation of PyTorch and transformers failed"
    recipe parity >"$venv/installed-parity"
}

add_bench() {
    if made_from installed-bench bench; then return; fi
    say "adding PyTorch and TRL to .venv"
    pip_install -r "$root/constraints/parity.txt" -r "$root/constraints/bench.txt" ||
        fail "the installation of PyTorch and TRL failed"
    recipe bench >"$venv/installed-bench"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
study | gallery | test | parity | bench | lint | setup) ;;
help | -h | --help)
    usage
    exit
    ;;
*)
    say "unknown command '$command'"
    usage >&2
    exit 2
    ;;
esac

make_environment
cd -- "$root"
if [ -n "${HHH_JAX_DATA:-}" ]; then
    HHH_JAX_DATA=$(absolute "$HHH_JAX_DATA")
    export HHH_JAX_DATA
fi

case $command in
study)
    preset=embedded
    config=configs/studies/embedded.py
    for argument; do # takes --preset out of the arguments and leaves the others in order
        shift
        case $argument in
        --preset=full) preset=full config=$config:full ;;
        --preset=embedded) ;;
        --preset=*) fail "unknown preset '${argument#--preset=}': there are embedded and full" ;;
        *) set -- "$@" "$argument" ;;
        esac
    done
    exec "$python" -m hhh_jax.study --config="$config" --workdir="$(absolute "${HHH_JAX_WORKDIR:-$root/runs}")/$preset" "$@"
    ;;
gallery)
    runs=$(absolute "${HHH_JAX_WORKDIR:-$root/runs}")
    if [ $# -eq 0 ]; then
        first="embedded objectives prompting reranking pmp pmp_needs discriminator beyond"
        for name in $first; do
            [ ! -f "configs/studies/$name.py" ] || set -- "$@" "$name"
        done
        for config in configs/studies/*.py; do # whatever else there is
            name=$(basename "$config" .py)
            case " $first " in *" $name "*) ;; *) set -- "$@" "$name" ;; esac
        done
    fi
    for name; do
        [ -f "configs/studies/$name.py" ] || fail "no study '$name': there is no configs/studies/$name.py"
    done
    trap 'exit 130' INT TERM # one study that was stopped must not start the next
    broken=()
    for name; do
        "$python" -m hhh_jax.study --config="configs/studies/$name.py" --workdir="$runs/$name" || broken+=("$name")
    done
    "$python" -m hhh_jax.gallery --studies="$runs" --out="$runs/gallery" || broken+=(gallery)
    [ ${#broken[@]} -eq 0 ] || fail "broken: ${broken[*]}; the same command tries again"
    ;;
test)
    exec "$python" -m pytest "$@"
    ;;
parity)
    add_parity
    exec "$python" -m pytest -m "parity or real_data" "$@"
    ;;
bench)
    add_bench
    exec "$python" -m hhh_jax.bench "$@"
    ;;
lint)
    status=0
    "$python" -m ruff check . || status=1
    "$python" -m mypy || status=1
    exit $status
    ;;
setup)
    say "ready: $python"
    ;;
esac

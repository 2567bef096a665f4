#!/usr/bin/env bash
# Makes the data of the prompting study from published files and runs it:
#
#   bash docs/prompting-real/reproduce.sh DATA WORK
#
# DATA holds the published files in folders named hhh_alignment, truthfulqa, lambada, realtoxicityprompts and humaneval;
# WORK gets prepared folders and the study. Both steps resume. Toxicity is judged by the scorer beside this file, which
# is no Detoxify. Sizes are those of an hour on 2 cores. What the models write as code is run, in the project's sandbox.
set -euo pipefail
data=$(realpath "$1") work=$(realpath -m "$2") here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
cd "$here/../.."
export DATA="$work/data"
mkdir -p "$DATA"

prepare() { # FOLDER SOURCE KIND INPUT
    [ -d "$DATA/$1" ] || python -m hhh_jax.data.prepare --output="$DATA/$1" --source="$2" --kind="$3" --input="$4"
}
prepare hhh_alignment hhh_alignment choices "$data/hhh_alignment"
prepare truthfulqa truthfulqa choices "$data/truthfulqa"
prepare lambada lambada prompts "$data/lambada/lambada_test.jsonl,$data/lambada/lambada_test_plain_text.txt"
prepare toxicity toxicity prompts "$data/realtoxicityprompts"
prepare humaneval humaneval prompts "$data/humaneval/HumanEval.jsonl.gz"

python -m hhh_jax.study --config="configs/studies/prompting.py:data=$DATA" --workdir="$work/study" \
    --config.rungs="('12k', '98k', '332k')" --config.tokens=2e5 --config.teacher_rows=64 \
    --config.limits.scored=50 --config.limits.toxicity=40 --config.toxicity="$here/scorer.py:score" \
    --config.limits.code=10 --config.run_untrusted_code=True

#!/usr/bin/env bash
# Makes the data of the objectives study from published files and runs it:
#
#   bash docs/objectives-real/reproduce.sh DATA WORK
#
# DATA holds samples of the published files, in folders named ethics/TASK, hellaswag, learn_to_summarize/comparisons
# and text/books; WORK gets prepared folders and the study. Both steps resume. Where a sample has no training split
# (comparisons of summaries, commonsense), splits are cut anew by post or item.
set -euo pipefail
data=$(realpath "$1") work=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p "$work/published" "$work/data"

prepare() { # FOLDER ARGUMENTS...
    [ -d "$work/$1" ] || python -m hhh_jax.data.prepare --output="$work/$1" "${@:2}"
}
cut_anew() { # NAME HELD_OUT ARGUMENTS...
    prepare "published/$1" "${@:3}"
    prepare "data/$1" --source=mix --input="$work/published/$1" --option=splits=cut --held_out="$2"
}

for task in utilitarianism deontology justice virtue; do
    prepare "data/ethics_$task" --source=ethics --option=task=$task --input="$data/ethics/$task"
done
cut_anew ethics_commonsense 0.15 --source=ethics --option=task=commonsense --input="$data/ethics/commonsense"
cut_anew summarize 0.2 --source=summarize --input="$data/learn_to_summarize/comparisons"
prepare data/hellaswag --source=hellaswag --kind=pairs --input="$data/hellaswag"

# To pretrain on: books, and the prose and code of the Python standard library.
library=$work/published/stdlib.jsonl
[ -f "$library" ] || python - "$library" <<'END'
import json, sys
from hhh_jax.data import stdlib
with open(sys.argv[1] + ".partial", "w", encoding="utf-8") as out:
    for split in ("train", "validation", "test"):
        for document in stdlib.documents(split):
            out.write(json.dumps({"text": document.text, "id": document.id}) + "\n")
END
[ -f "$library" ] || mv "$library.partial" "$library"
prepare published/books --source=text --input="$data/text/books"
prepare published/stdlib --source=text --input="$library"
prepare data/lm --source=mix --kind=documents --input="$work/published/books,$work/published/stdlib"

python -m hhh_jax.study --config="configs/studies/objectives.py:data=$work/data" --workdir="$work/study"

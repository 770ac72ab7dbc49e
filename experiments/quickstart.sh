#!/usr/bin/env bash
# quickstart.sh [--quick] [FOLDER]: the paper in miniature, without a download. It installs
# requirements.txt in .venv, generates an artificial language, pre-trains a small BERT on it,
# finds tickets, trains them and the controls, evaluates the line between two trainings, and prints
# Table 2, Figure 2 and the claims that the runs show. All files go to FOLDER (default: miniature).
# Three seeds take at most five minutes on two cores; one seed (--quick) at most three. Rerun it to
# resume. PYTHON=python: use this Python and install nothing. TASKS=MLM: only MLM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds=3
if [ "${1:-}" = --quick ]; then seeds=1; shift; fi
folder=${1:-miniature}
read -ra tasks <<< "${TASKS:-CoLA MLM}"
chosen=("${tasks[@]}")
sparsity=0.5
jobs=$(nproc)

if [ -z "${PYTHON:-}" ]; then
    echo "== Python packages, in .venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "quickstart.sh needs Python 3.11" >&2; exit 2; }
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
    PYTHON=.venv/bin/python
fi
PATH=$(cd "$(dirname "$(command -v "$PYTHON")")" && pwd):$PATH
export PATH CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1  # the model is too small for a GPU or for more threads
SECONDS=0

echo "== An artificial language: each word has a kind and a gender, which only its neighbours show"
python experiments/miniature.py "$folder"
text=$folder/data/pretrain_data

echo "== Pre-training a BERT of 3 layers on it: theta_0"
OMP_NUM_THREADS=2 python -u pretrain_trans.py --dir rand --config_name "$folder/bert" --tokenizer_name "$folder/bert" --mlm \
    --train_data_file "$text/en.train" --eval_data_file "$text/en.valid" --block_size 32 --do_train --do_eval \
    --evaluate_during_training --logging_steps 200 --max_steps 1200 --per_gpu_train_batch_size 32 \
    --learning_rate 2e-3 --warmup_steps 100 --output_dir "$folder/model" --seed 1

for what in table2 figure2 connectivity; do
    own=""  # flags of this list alone
    case $what in
        table2) own="--controls shuffle" ;;
        connectivity) own="--sparsities $sparsity" chosen=("${tasks[@]: -1}") seeds=1 ;;  # one line
    esac
    echo "== The commands of $what ($folder/$what.list), $jobs in parallel"
    python experiments/plan.py "$what" --preset mini --tasks "${chosen[@]}" --seeds "$seeds" --sparsity "$sparsity" \
        $own --imp_to 0.7 --lr CoLA=1e-3 --steps MLM=100 --length 32 \
        --model "$folder/model" --data "$folder/data" --out "$folder/runs" > "$folder/$what.list"
    bash experiments/run_local.sh "$folder/$what.list" --jobs "$jobs"
done

echo "== Results (Figure 2 also at $sparsity: the miniature has few weights to spare)"
python experiments/tables.py "$folder/runs" --only table2 figure2 --tasks "${tasks[@]}" --sparsity "$sparsity" --no_paper
python experiments/verdict.py "$folder/runs" --tasks "${tasks[@]}" --sparsity "$sparsity"
echo "$SECONDS s. Tables: $folder/runs/tables; every run, with its results.jsonl and masks: $folder/runs; logs: $folder/*.logs"

#!/usr/bin/env bash
# lists.sh FOLDER: write the lists of commands behind RESULTS.md, one or more per study (README.md).
# MODEL=minilm DATA=data: the pre-trained BERT, and the folder with glue_data, SQuAD, pretrain_data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
lists=${1:?usage: lists.sh FOLDER}
model=${MODEL:-minilm} data=${DATA:-data}
mkdir -p "$lists"

plan() {  # STUDY, the words of plan.py
    study=$1 && shift
    python experiments/plan.py "$@" --data "$data" --out "runs/$study" --flags '--bf16 --logging_steps 0'
}
glue() {  # WHAT, more words: the recipe of the GLUE tasks (batches of 8, see RESULTS.md)
    plan "$study" "$@" --tasks "${tasks[@]}" --model "$model" --batch 8 --lr "$rate" --steps "${steps[@]}"
}
settle() {  # NAME: the full network alone
    study=settle/$1
    glue table4 --seeds 1 | grep -e '^#' -e pre.full > "$lists/settle-$1.list"
}

tasks=(CoLA RTE WNLI MRPC STS-B SST-2)
steps=(CoLA=1069 RTE=622 WNLI=160 MRPC=459 STS-B=720 SST-2=1500)  # one epoch; RTE and WNLI: two; SST-2: a fifth
for rate in 5e-5 1e-4 2e-4; do settle "$rate"; done
tasks=(CoLA RTE) steps=(CoLA=3207 RTE=1866) rate=1e-4  # three times as long
settle 1e-4-epochs3

study=glue
tasks=(CoLA RTE WNLI MRPC STS-B SST-2)
steps=(CoLA=3207 RTE=622 WNLI=160 MRPC=459 STS-B=720 SST-2=1500)
glue table2 --seeds 3 --mask_seeds 2 --imp_to 0.7 --sparsity 0.5 --controls all > "$lists/table2-50.list"
glue table2 --seeds 3 --mask_seeds 2 --imp_to 0.7 --sparsity 0.3 --controls all --shuffles > "$lists/table2-30.list"
glue figure2 --seeds 1 --imp_to 0.7 --sparsity 0.5 > "$lists/figure2.list"
joined() {  # NAME ENCODER POOLER: make a mask from two masks, and train it as the ticket $imp in $line
    mask=$root/masks/$1-$task-seed$seed.pt
    echo "python -m experiments.reproduce.pooler $2 $3 --output $mask"
    sed "s#$imp#$mask#; s#pre.imp[^/]*#pre.$1#" <<< "$line"
}
{
    grep "masks/omp-50$" "$lists/table2-50.list"
    for task in STS-B MRPC; do for seed in 1 2 3; do
        line=$(grep "/$task[^ ]*/pre.imp-$task[^ ]*/seed$seed " "$lists/table2-50.list")
        imp=${line#*--mask_dir } && imp=${imp%% *} root=${imp%/"$task"*}
        joined omp-encoder "$root/masks/omp-50/mask.pt" "$imp"
        joined omp-pooler "$imp" "$root/masks/omp-50/mask.pt"
    done; done
} > "$lists/pooler.list"
tasks=(STS-B MRPC)
glue table3 --seeds 1 --imp_to 0.7 --sparsity 0.5 > "$lists/table3.list"
glue connectivity --seeds 3 --mask_seeds 1 --imp_to 0.7 --sparsities 0 0.3 0.5 0.7 > "$lists/connectivity.list"

plan squad table2 --tasks SQuAD --model "$model" --seeds 1 --sparsity 0.4 --imp_to 0.4 --shuffles --steps 752 --lr 2e-4 > "$lists/squad.list"

text=(--train_data_file "$data/pretrain_data/en.train" --eval_data_file "$data/pretrain_data/en.valid")
echo python -u pretrain_trans.py --dir pre --model_name_or_path "$model" --output_dir runs/mlm-model --mlm "${text[@]}" --do_train --do_eval \
    --block_size 128 --per_gpu_train_batch_size 8 --seed 1 --max_steps 900 --warmup_steps 50 --learning_rate 7e-4 \
    --evaluate_during_training --logging_steps 150 --bf16 > "$lists/mlm-model.list"
for sparsity in 0.5 0.7; do
    plan mlm table2 --tasks MLM --model runs/mlm-model --seeds 1 --sparsity $sparsity --imp_to 0.7 --batch 8 --length 128 \
        --steps 120 --lr 3e-4 > "$lists/mlm-${sparsity#0.}0.list"
done

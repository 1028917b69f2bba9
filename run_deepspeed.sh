#!/usr/bin/env bash
# Train a model of the paper on several GPUs with DeepSpeed ZeRO-3.
# Needs pip install 'gistkit[deepspeed]'.
#   ./run_deepspeed.sh llama-7b 4 training.gist.num_gist_tokens=2 wandb.tag=mine
# Arguments: a group of gistkit/conf/model, the number of GPUs, settings.
set -euo pipefail

usage="usage: run_deepspeed.sh MODEL [GPUS] [SETTING...]"
model=${1:?$usage}
gpus=4
shift
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    gpus=$1
    shift
fi

exec deepspeed --num_gpus="$gpus" --no_local_rank --module gistkit.train \
    "+model=$model" "deepspeed=$(dirname "$0")/ds_configs/stage3.json" "$@"

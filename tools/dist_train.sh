#!/usr/bin/env bash
# Train on several GPUs, of one machine or of several:
#   bash tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# On each of several machines, with NODE_RANK counted from 0 and MASTER_ADDR the first one's name:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node1 bash tools/dist_train.sh CONFIG 8
# PORT (29500) is what the processes meet at: another one for each run on the same machine.
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"

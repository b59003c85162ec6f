#!/usr/bin/env bash
# Test on several GPUs, of one machine or of several:
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On each of several machines, with NODE_RANK counted from 0 and MASTER_ADDR the first one's name:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node1 bash tools/dist_test.sh CONFIG CHECKPOINT 8
# PORT (29500) is what the processes meet at: another one for each run on the same machine.
set -euo pipefail
if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
shift 3
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"

#!/usr/bin/env bash
# Run the fast tests on the oldest supported torch, then on the pinned one.
#
#   bash .ci/oldest_torch.sh [FOLDER]      FOLDER keeps the environment (default: a new one, removed)
#
#   TORCH=2.10.0 TORCHVISION=0.25.0         another pair
#   PINNED=.venv/bin/python                the interpreter with the pinned versions; empty: not run
#   PYTHON=python3                         the interpreter that makes the environment
#   ARGS='-k op'                           more arguments of pytest
#
# About 5 GB are downloaded the first time. Needs no accelerator.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=${TORCH:-2.10.0}
TORCHVISION=${TORCHVISION:-0.25.0}
PINNED=${PINNED-.venv/bin/python}
# What the operator, the models, checkpoints and tools' parts do, and what differs most between
# releases of torch: reading files of others and several processes.
FAST=(tests/ops tests/models tests/checkpoints tests/compat tests/engine tests/visualization
  tests/apis/test_start.py tests/apis/test_config.py tests/test_errors.py
  tests/integration/test_survival.py tests/integration/test_distributed.py)

if [ $# -gt 0 ]; then
  folder=$1
  mkdir -p "$folder"
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
constraints=$folder/constraints.txt
grep -viE '^(torch|torchvision|triton|sympy|fsspec|setuptools)==' constraints.txt > "$constraints"
printf 'torch==%s\ntorchvision==%s\n' "$TORCH" "$TORCHVISION" >> "$constraints"

python=$folder/venv/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder/venv"
echo "== installing torch $TORCH into $folder/venv"
"$python" -m pip install --quiet --progress-bar off -c "$constraints" torch torchvision numpy \
  onedl-mmengine onedl-mmcv onedl-mmpretrain onedl-mmdetection onedl-mmsegmentation scikit-learn \
  scikit-image hypothesis safetensors huggingface_hub pytest pytest-timeout
"$python" -m pip check

run() {
  echo "== fast tests with $("$1" -W ignore -c 'import torch; print("torch", torch.__version__)')"
  # The checkout itself, whatever is installed.
  OMP_NUM_THREADS=1 MPLBACKEND=Agg PYTHONPATH=$PWD "$1" -m pytest -q -p no:cacheprovider \
    "${FAST[@]}" ${ARGS:-}
}
run "$python"
[ -z "$PINNED" ] || run "$PINNED"

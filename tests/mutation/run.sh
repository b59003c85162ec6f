#!/usr/bin/env bash
# Mutation testing: change the code in small ways, one by one, and see whether a test notices.
#
#   tests/mutation/run.sh operator|converter FOLDER [SHARE]
#
# FOLDER gets a copy of what is committed and keeps the results: run again to go on after an
# interruption. SHARE: of the mutants of the operator, evenly drawn (default 1, all of them).
# Needs mutmut (pip install 'mutmut>=3.8'). Survivors are listed at the end; see one with
#   cd FOLDER && mutmut show NAME
set -euo pipefail

target=${1:?operator or converter} folder=${2:?a folder for the copy and the results} share=${3:-1}
here=$(cd "$(dirname "$0")" && pwd)
config=$here/$target.cfg
[ -f "$config" ] || { echo "no such target: $target (operator or converter)" >&2; exit 2; }
command -v mutmut > /dev/null || { echo "mutmut is missing: pip install 'mutmut>=3.8'" >&2; exit 2; }

if [ ! -d "$folder" ]; then
    mkdir -p "$folder"
    git -C "$here/../.." archive --format=tar HEAD | tar -x -C "$folder"
    cat "$config" >> "$folder/setup.cfg"
fi
cd "$folder"
unset COC_MM_BACKEND
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=$PWD/tests/mutation
names=()
if [ "$share" != 1 ]; then
    mapfile -t names < <("$(dirname "$(command -v mutmut)")/python" tests/mutation/sample.py "$share")
fi
mutmut run "${names[@]}"
mutmut results

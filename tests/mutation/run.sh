#!/usr/bin/env bash
# Mutation testing: change the code in small ways, one by one, and see whether a test notices.
#
#   tests/mutation/run.sh operator|converter FOLDER
#
# FOLDER gets a copy of what is committed and keeps the results: run again to go on after an
# interruption. Needs mutmut (pip install 'mutmut>=3.8'). Survivors are listed at the end; see one with
#   cd FOLDER && mutmut show NAME
set -euo pipefail

target=${1:?operator or converter} folder=${2:?a folder for the copy and the results}
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
mutmut run
mutmut results

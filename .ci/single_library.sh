#!/usr/bin/env bash
# Install this package with one task library at a time, and use it.
#
#   bash .ci/single_library.sh [EXTRA ...]   cls, det, seg; default: all three
#
#   SHARED=FOLDER     a site-packages folder whose torch, torchvision and what they need are used
#                     instead of being installed anew for each library (several GB)
#   PYTHON=python3    the interpreter that makes the environments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
declare -A libraries=([cls]=mmpretrain [det]=mmdet [seg]=mmseg)
[ $# -gt 0 ] || set -- cls det seg

for extra in "$@"; do
  library=${libraries[$extra]:?"unknown extra $extra: cls, det or seg"}
  venv=$folder/$extra
  python=$venv/bin/python
  "${PYTHON:-python3}" -m venv "$venv"
  echo "== pip install -e .[$extra]"
  if [ -n "${SHARED:-}" ]; then
    # Links, as a whole folder on the path would bring its task libraries along.
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    for path in "$SHARED"/{torch,torchgen,functorch,torchvision,triton,nvidia,cuda,cusparselt}* \
      "$SHARED"/{sympy,mpmath,networkx,fsspec,filelock,jinja2,markupsafe,typing_extensions}* \
      "$SHARED"/{Jinja2,MarkupSafe}*; do
      [ ! -e "$path" ] || ln -sfn "$path" "$site/"
    done
  fi
  "$python" -m pip install --quiet --progress-bar off -c constraints.txt -e ".[$extra]"
  # The stack asks for OpenCV twice; without a display library only the headless one loads.
  "$python" -c 'import cv2' 2> /dev/null || "$python" -m pip install --quiet --force-reinstall \
    --no-deps "$(grep -i '^opencv-python-headless==' constraints.txt)"
  (cd "$folder" && OMP_NUM_THREADS=1 "$python" -W ignore "$OLDPWD/tests/integration/one_library.py" \
    "$library")
done
echo "$# libraries passed, 0 failed"

#!/bin/sh
# Makes .exp/venv-trl: TRL beside the product's own packages, which it sees and does not change. Safe to repeat.
set -eu
cd "$(dirname "$0")/../.."
main=$(.exp/venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
python=$(.exp/venv/bin/python -c 'import sys; print(sys._base_executable)')
"$python" -m venv --without-pip .exp/venv-trl
own=$(.exp/venv-trl/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
.exp/venv/bin/python -m pip install --quiet --no-deps --upgrade --target "$own" --requirement bench/trainer/requirements.txt
echo "$main" > "$own/main.pth"
.exp/venv-trl/bin/python -c 'import trl, torch; print("trl", trl.__version__, "torch", torch.__version__)'

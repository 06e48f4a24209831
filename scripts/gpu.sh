#!/usr/bin/env bash
# `make gpu`: the tests of tests/gpu and the speed bench, with a python3 that has a CUDA torch and little else. What lithe
# imports beside torch comes from that python, from wheels in .whl/ where there is no network, or from the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=${SITE:-${TMPDIR:-/tmp}/lithe-gpu}
export PYTHONPATH="src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

fail() { printf 'gpu: %s\n' "$*" >&2; exit 1; }
missing() { # the names, as they are installed, of what this python lacks
  "$python" - <<'PY'
from importlib.util import find_spec
needs = {"numpy": "numpy", "pydantic": "pydantic", "typer": "typer", "rich": "rich", "tqdm": "tqdm", "yaml": "pyyaml",
         "safetensors": "safetensors", "tokenizers": "tokenizers", "transformers": "transformers",
         "huggingface_hub": "huggingface_hub", "pytest": "pytest"}  # none of which asks pip for another torch
print(*[name for module, name in needs.items() if find_spec(module) is None])
PY
}

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
  fail "$python has no torch that sees a GPU; name one that does: make gpu PYTHON=/path/to/python"
lacking=$(missing)
if [ -n "$lacking" ]; then
  printf 'gpu: installing %s into %s\n' "$lacking" "$site" >&2
  if [ -d .whl ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl || fail "the wheels in .whl do not fit this python"
  else # shellcheck disable=SC2086
    "$python" -m pip install --quiet --target "$site" $lacking || fail "could not install $lacking: put their wheels into .whl/"
  fi
  lacking=$(missing); [ -z "$lacking" ] || fail "still missing: $lacking; put their wheels into .whl/"
fi
# Warnings of other versions than the pinned ones are none of this test's business.
ok=0
"$python" -m pytest -q -p no:cacheprovider -o filterwarnings=default -o addopts=--import-mode=importlib tests/gpu || ok=$?
"$python" scripts/gpu.py "$@" || ok=$? # numbers are worth having beside a test that failed
exit "$ok"

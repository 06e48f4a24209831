#!/usr/bin/env bash
# Makes .venv ready: uv, Python 3.12, the pinned dependencies, lithe itself (editable), and the libraries with which MuJoCo
# renders without a display. Says nothing and returns at once when nothing changed since the last call. It is not an
# installer for users: they `pip install lithe`. Everything it prints goes to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.8 # only when no uv is on PATH
PYTHON_VERSION=3.12
RENDER_PACKAGES=(libosmesa6 libegl1 libgl1)
# Trust what this machine trusts (a company's proxy has its own authority), where it has a list of authorities at all.
[ -e /etc/ssl/certs/ca-certificates.crt ] && export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The checkout's path is part of the stamp: a copied tree carries a .venv whose scripts point at the original.
stamp() { { cat pyproject.toml plugins/*/pyproject.toml constraints.txt scripts/setup.sh; pwd -P; } | cksum | tr -d ' '; }

as_root() { # runs a command as root where that needs no password
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() {
  command -v apt-get >/dev/null && as_root true || return 1
  say "installing $* with apt-get"
  local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y)
  as_root "${get[@]}" install --no-install-recommends "$@" </dev/null >/dev/null 2>&1 && return
  as_root "${get[@]}" update </dev/null >/dev/null 2>&1 || true # a fresh container has no package lists
  as_root "${get[@]}" install --no-install-recommends "$@" </dev/null >&2
}

can_render() {
  local known; known=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null) || return 1
  [[ $known == *libOSMesa.so* && $known == *libEGL.so.1* && $known == *libGL.so.1* ]]
}

find_uv() { # prints the path of a uv that runs; bootstraps one into .uv when there is none
  if uv --version >/dev/null 2>&1; then command -v uv; return; fi
  local here=.uv/bin/uv
  if ! "$here" --version 2>/dev/null | grep -qF " $UV_VERSION"; then
    command -v python3 >/dev/null || fail "no python3 on PATH; install it first (Debian, Ubuntu: apt-get install python3 python3-venv)"
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null && ! apt_install python3-venv; then
      fail "this python3 cannot make virtual environments; run 'apt-get install python3-venv' as root (or put uv on PATH), then try again"
    fi
    say "bootstrapping uv $UV_VERSION into .uv"
    rm -rf .uv
    python3 -m venv .uv >&2 || fail "'python3 -m venv .uv' failed; run 'apt-get install python3-venv' as root (or put uv on PATH), then try again"
    .uv/bin/pip install --quiet "uv==$UV_VERSION" >&2 || fail "pip could not install uv $UV_VERSION (see above); put a uv on PATH, then try again"
  fi
  printf '%s\n' "$PWD/$here"
}

is_wanted_python() { "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$PYTHON_VERSION')" >/dev/null 2>&1; }

find_python() { # prints an interpreter that runs, else the bare version for uv to find or fetch
  local candidate
  for candidate in "python$PYTHON_VERSION" python3; do # a pyenv shim may exist and yet not run
    if is_wanted_python "$candidate"; then command -v "$candidate"; return; fi
  done
  local pyenv_root="${PYENV_ROOT:-$HOME/.pyenv}"
  if command -v pyenv >/dev/null; then pyenv_root=$(pyenv root); fi
  for candidate in "$pyenv_root"/versions/"$PYTHON_VERSION"*/bin/python; do # uv does not see those not activated
    if is_wanted_python "$candidate"; then printf '%s\n' "$candidate"; return; fi
  done
  printf '%s\n' "$PYTHON_VERSION"
}

main() {
  local done_file; done_file=".venv/.lithe-$(stamp)"
  [ -e "$done_file" ] && .venv/bin/python -c '' 2>/dev/null && return

  local uv python
  uv=$(find_uv)
  if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    say "making .venv with Python $python"
    "$uv" venv --quiet --clear --python "$python" .venv >&2 ||
      fail "no Python $PYTHON_VERSION here and uv could not fetch one; install it (pyenv install $PYTHON_VERSION, or apt-get install python$PYTHON_VERSION where it is packaged), then try again"
  elif ! is_wanted_python .venv/bin/python; then
    fail ".venv holds another Python than $PYTHON_VERSION, for which the pins are; remove .venv, then try again"
  fi
  say "installing the pinned dependencies (several GB the first time)"
  "$uv" pip install --quiet --python .venv/bin/python -e ".[all]" -e plugins/lerobot_policy_lithe -c constraints.txt >&2 ||
    fail "the dependencies could not be installed (see above)"
  if ! can_render && { ! apt_install "${RENDER_PACKAGES[@]}" || ! can_render; }; then
    say "simulators cannot render here: run 'apt-get install ${RENDER_PACKAGES[*]}' as root; everything else works"
  fi
  rm -f .venv/.lithe-*
  : >"$done_file"
  say "ready"
}

need_browser() { # the page that `lithe report` writes is tested in a real browser
  command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null && return
  apt_install chromium || say "no chromium here: run 'apt-get install chromium' as root; without it the page is not tested"
}

main
if [ "${1:-}" = browser ]; then need_browser; fi

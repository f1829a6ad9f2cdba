#!/usr/bin/env bash
# Sets up all that DBEX needs, once: `make setup` calls it, and so do the other targets.
#
#   setup/install.sh           install what is missing, say what is being done
#   setup/install.sh --where   print the folder of the Python to use, nothing else
#
# An active conda environment that has dxtbx and dials is used as it is. Otherwise Debian 12 provides them, and the
# rest goes into .venv on top of Debian's Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

debian_packages=(python3-dials python3-jinja2 python3-plotly python3-venv g++ make)
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

conda_has_dials() {
    [[ -n "${CONDA_PREFIX:-}" && -x "$CONDA_PREFIX/bin/python" ]] && "$CONDA_PREFIX/bin/python" -c '
import importlib.util, sys
sys.exit(not all(importlib.util.find_spec(name) for name in ("dxtbx", "dials")))'
}

if conda_has_dials; then bin="$CONDA_PREFIX/bin"; else bin=".venv/bin"; fi
if [[ "${1:-}" == --where ]]; then echo "$bin"; exit 0; fi

# The stamp holds everything that decides what is installed: a change of any of it, or of the folder, installs again.
stamp="$(dirname "$bin")/.dbex-installed"
[[ "$bin" == .venv/bin ]] || stamp="build/conda-installed"
wanted="$( (pwd; echo "$bin"; cat pyproject.toml setup/debian-constraints.txt setup/install.sh) | sha256sum)"
if [[ -x "$bin/python" && -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && "$bin/python" -c '' 2>/dev/null; then
    say "nothing to do ($bin)"
    exit 0
fi

missing_debian_packages() {
    local package
    for package in "${debian_packages[@]}"; do
        [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || echo "$package"
    done
}

install_debian_packages() {
    local missing
    command -v dpkg-query >/dev/null || fail "this is no Debian system: make a conda environment from environment.yml" \
        "(conda env create -f environment.yml), activate it, and run this again."
    mapfile -t missing < <(missing_debian_packages)
    (( ${#missing[@]} )) || return 0
    (( EUID == 0 )) || fail "Debian packages are missing and only root can install them: ask for" \
        "\"apt-get install ${missing[*]}\", or activate a conda environment made from environment.yml."
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

make_venv() {
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        say "making the virtual environment .venv on top of Debian's Python"
        /usr/bin/python3 -m venv --clear --system-site-packages .venv
    fi
    # libtbx looks for its environment, lib/cctbx, under the interpreter's prefix, which is now .venv.
    ln -sfn /usr/lib/cctbx .venv/lib/cctbx
    # Some DIALS programs import this module, which Debian does not build; none of what DBEX uses calls it.
    local site
    site="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    : > "$site/xfel_mono_sim_ext.py"
}

# Twice --quiet leaves errors only: pip warns of the folder names of Debian's own packages at every call.
pip_install() { "$bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }

if [[ "$bin" == .venv/bin ]]; then
    install_debian_packages
    make_venv
    say "installing torch and the other Python packages into .venv (minutes, the first time)"
    pip_install --constraint setup/debian-constraints.txt --editable '.[dev]'
else
    say "installing DBEX into the conda environment $CONDA_PREFIX"
    pip_install --editable '.[dev]'
    mkdir -p build
fi
"$bin/python" -c 'import cctbx.miller, dials, dxtbx.model, gemmi, h5py, torch' \
    || fail "the environment $bin was installed but does not work: the error is above."
echo "$wanted" > "$stamp"
say "done ($bin)"

#!/usr/bin/env bash
# Installs mmjax on a Cloud TPU VM, a CUDA machine or a CPU machine. Can be rerun: it reuses an existing .venv.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./tpu_setup.sh [--tpu | --gpu | --cpu] [--data=DIR]

Creates the virtual environment .venv with the tested version of every package and the data folder, runs a matrix
multiplication on every chip of this machine, and then `mmjax doctor`.

  --tpu       a Cloud TPU VM (the default)
  --gpu       a machine with NVIDIA GPUs and their driver
  --cpu       any machine, no accelerator
  --data=DIR  folder for datasets and caches (default: $MMJAX_CACHE or ~/.cache/mmjax)
  --help      show this text

Requires Python 3.11 to 3.13 and prefers 3.12; PYTHON=/path/to/python selects another. If none is installed, the script
installs one with apt (Debian and Ubuntu, with sudo).

On a TPU slice of several hosts, run it on all of them at once, because JAX waits for all chips of the slice:

  gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='cd mmjax && ./tpu_setup.sh'
EOF
}

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'tpu_setup.sh: error: %s\n' "$*" >&2
  exit 2
}

machine=tpu
data="${MMJAX_CACHE:-$HOME/.cache/mmjax}"
for argument in "$@"; do
  case "$argument" in
    --tpu | --gpu | --cpu) machine="${argument#--}" ;;
    --data=?*) data="${argument#--data=}" ;;
    --help | -h) usage && exit 0 ;;
    *) fail "unknown argument '$argument'; choose from --tpu, --gpu, --cpu, --data=DIR and --help" ;;
  esac
done
if [[ $data == \~/* ]]; then # bash does not expand ~ after --data=
  data="$HOME/${data:2}"
elif [[ $data != /* ]]; then
  data="$PWD/$data"
fi
cd "$(dirname "${BASH_SOURCE[0]}")"

# Accepts final releases of the tested versions that can create virtual environments: Debian and Ubuntu package ensurepip
# separately, and Ubuntu 22.04 ships a release candidate of 3.11.
is_suitable() {
  "$1" -c '
import sys, venv, ensurepip
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13) and sys.version_info.releaselevel == "final"))
' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    is_suitable "$PYTHON" && command -v "$PYTHON"
    return
  fi
  for candidate in python3.12 python3.13 python3.11 python3; do
    if is_suitable "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

install_python() {
  command -v apt-get >/dev/null ||
    fail "no Python 3.11 to 3.13 with venv; install one, or set PYTHON=/path/to/python"
  local sudo=() version
  if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || fail "installing Python needs root; run: apt-get install python3-venv"
    sudo=(sudo)
  fi
  # On a fresh VM, automatic updates hold apt's lock for the first minutes.
  local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 --yes --quiet)
  say "no Python 3.11 to 3.13 with venv found: installing one with apt"
  "${apt[@]}" update
  for version in 3.12 3.13 3.11; do
    if "${apt[@]}" install "python$version" "python$version-venv" && is_suitable "python$version"; then
      return
    fi
  done
  if grep -q '^ID=ubuntu' /etc/os-release; then
    say "not in this Ubuntu release: adding ppa:deadsnakes/ppa, which builds Python for old Ubuntu releases"
    "${apt[@]}" install software-properties-common
    "${sudo[@]}" add-apt-repository --yes ppa:deadsnakes/ppa
    "${apt[@]}" install python3.12 python3.12-venv
  fi
}

if [[ -x .venv/bin/python ]] && is_suitable .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; then
  say "using the existing .venv: $(.venv/bin/python --version)"
else
  python="$(find_python)" || {
    [[ -z ${PYTHON:-} ]] || fail "$PYTHON is not Python 3.11 to 3.13 with venv; unset PYTHON or set another"
    install_python
    python="$(find_python)" || fail "apt has no Python 3.11 to 3.13; set PYTHON=/path/to/python"
  }
  # Never `pip install` outside a virtual environment: Debian 12 and Ubuntu 24.04 refuse it.
  say "creating .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
fi

case "$machine" in
  tpu) extras=tpu,demo ;;
  gpu) extras=cuda,demo ;;
  cpu) extras=demo ;;
esac
say "installing mmjax[$extras] (a minute or two; some minutes with CUDA)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"

say "data folder $data"
mkdir -p "$data"
[[ -w "$data" ]] || fail "cannot write to $data; give another folder with --data=DIR"
# Export MMJAX_CACHE when .venv is activated. Rewritten on each run, so that the last --data counts.
sed -i '/# data folder of mmjax$/d' .venv/bin/activate
printf 'export MMJAX_CACHE=%q # data folder of mmjax\n' "$data" >>.venv/bin/activate
export MMJAX_CACHE="$data"

say "smoke test: matrix multiplication on every chip of this machine"
if [[ $machine == cpu ]]; then
  export JAX_PLATFORMS=cpu
fi
smoke_test=0
timeout 300 .venv/bin/python - "$machine" <<'EOF' || smoke_test=$?
import sys
import time

import jax
import jax.numpy as jnp

machine = sys.argv[1]
if jax.default_backend() != machine:
    sys.exit(f"JAX found {jax.default_backend()} devices, but --{machine} was requested; is the driver installed?")
for device in jax.devices():
    print(device, device.device_kind, f"host {device.process_index}")
size = 512 if machine == "cpu" else 8192
for device in jax.local_devices():
    memory = (device.memory_stats() or {}).get("bytes_limit")
    ones = jax.device_put(jnp.ones((size, size), jnp.bfloat16), device)
    multiply = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    assert (multiply(ones, ones) == size).all(), f"{device} computes wrong products"
    start = time.perf_counter()
    product = ones
    for _ in range(8):
        product = multiply(ones, ones)
    product.block_until_ready()
    rate = 8 * 2 * size**3 / (time.perf_counter() - start) / 1e12
    capacity = f"{memory / 2**30:.1f} GiB" if memory else "the host's memory"
    print(f"{device}: {capacity}, {size} x {size} bfloat16 matmul correct, about {rate:.2f} TFLOP/s")
EOF
if [[ $smoke_test -eq 124 ]]; then
  fail "the devices did not start within 5 minutes; on a slice of several hosts, run this script on all of them (see --help)"
elif [[ $smoke_test -ne 0 ]]; then
  printf 'tpu_setup.sh: error: the smoke test failed (see above); check that no other process uses the chips\n' >&2
  exit 1
fi

say "mmjax doctor"
.venv/bin/mmjax doctor

say "done. Next:"
echo "  source .venv/bin/activate"
echo "  mmjax --help"

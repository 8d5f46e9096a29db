#!/usr/bin/env bash
# Sets mmjax up on a Cloud TPU VM, a CUDA machine or a plain one. Safe to run again: it keeps what is there already.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./tpu_setup.sh [--tpu | --gpu | --cpu] [--data=DIR]

Makes the virtual environment .venv with the tested versions of everything, makes the data folder, multiplies matrices
on every chip of this machine and ends with `mmjax doctor`.

  --tpu       a Cloud TPU VM (the default)
  --gpu       a machine with NVIDIA GPUs and their driver
  --cpu       any machine, no accelerator
  --data=DIR  where datasets and caches go (default: $MMJAX_CACHE or ~/.cache/mmjax); give a disk with room
  --help      this text

It needs Python 3.11 to 3.13 and chooses the newest of the tested ones; PYTHON=/path/to/python chooses another. Where
there is none, it asks apt for one (Debian and Ubuntu, with sudo).

On a TPU slice of several hosts, run it on all of them at once, because the chips start only together:

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
    *) fail "unknown argument '$argument'; known are --tpu, --gpu, --cpu, --data=DIR and --help" ;;
  esac
done
if [[ $data == \~/* ]]; then # bash leaves ~ as it is after --data=
  data="$HOME/${data:2}"
elif [[ $data != /* ]]; then
  data="$PWD/$data"
fi
cd "$(dirname "${BASH_SOURCE[0]}")"

# A Python will do if it is a final release of a version that we test, and can make virtual environments: Debian and
# Ubuntu keep ensurepip in a package of its own, and Ubuntu 22.04 ships a release candidate of 3.11.
suitable() {
  "$1" -c '
import sys, venv, ensurepip
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13) and sys.version_info.releaselevel == "final"))
' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    suitable "$PYTHON" && command -v "$PYTHON"
    return
  fi
  for candidate in python3.12 python3.13 python3.11 python3; do
    if suitable "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

install_python() {
  command -v apt-get >/dev/null ||
    fail "no Python 3.11 to 3.13 with venv; install one, or name it with PYTHON=/path/to/python ./tpu_setup.sh"
  local sudo=() version
  if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || fail "installing Python needs root; run: apt-get install python3-venv"
    sudo=(sudo)
  fi
  # A fresh VM holds apt's lock for its own updates during its first minutes.
  local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 --yes --quiet)
  say "no Python 3.11 to 3.13 with venv here: installing one with apt"
  "${apt[@]}" update
  for version in 3.12 3.13 3.11; do
    if "${apt[@]}" install "python$version" "python$version-venv" && suitable "python$version"; then
      return
    fi
  done
  if grep -q '^ID=ubuntu' /etc/os-release; then
    say "this Ubuntu has none: adding the package archive ppa:deadsnakes/ppa, which builds Python for old Ubuntu releases"
    "${apt[@]}" install software-properties-common
    "${sudo[@]}" add-apt-repository --yes ppa:deadsnakes/ppa
    "${apt[@]}" install python3.12 python3.12-venv
  fi
}

if [[ -x .venv/bin/python ]] && suitable .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; then
  say "using .venv, which is there already: $(.venv/bin/python --version)"
else
  python="$(find_python)" || {
    [[ -z ${PYTHON:-} ]] || fail "$PYTHON is no Python 3.11 to 3.13 with venv; leave PYTHON out or name another"
    install_python
    python="$(find_python)" || fail "apt has no Python 3.11 to 3.13; name one with PYTHON=/path/to/python ./tpu_setup.sh"
  }
  # Never `pip install` outside a virtual environment: Debian 12 and Ubuntu 24.04 refuse it.
  say "making .venv with $("$python" --version)"
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
# Whoever activates .venv gets the folder too. Written anew each time, so that the last --data counts.
sed -i '/# data folder of mmjax$/d' .venv/bin/activate
printf 'export MMJAX_CACHE=%q # data folder of mmjax\n' "$data" >>.venv/bin/activate
export MMJAX_CACHE="$data"

say "smoke test: every chip of this machine multiplies two matrices"
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
    sys.exit(f"JAX found {jax.default_backend()} devices, but --{machine} was asked for; is the driver installed?")
for device in jax.devices():
    print(device, device.device_kind, f"host {device.process_index}")
size = 512 if machine == "cpu" else 8192
for device in jax.local_devices():
    memory = (device.memory_stats() or {}).get("bytes_limit")
    ones = jax.device_put(jnp.ones((size, size), jnp.bfloat16), device)
    multiply = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    assert (multiply(ones, ones) == size).all(), f"{device} gives wrong products"
    start = time.perf_counter()
    product = ones
    for _ in range(8):
        product = multiply(ones, ones)
    product.block_until_ready()
    rate = 8 * 2 * size**3 / (time.perf_counter() - start) / 1e12
    room = f"{memory / 2**30:.1f} GiB" if memory else "memory of the host"
    print(f"{device}: {room}, {size} x {size} bfloat16 matmul right, about {rate:.2f} TFLOP/s")
EOF
if [[ $smoke_test -eq 124 ]]; then
  fail "the devices did not start within 5 minutes; on a slice of several hosts, run this on all of them (see --help)"
elif [[ $smoke_test -ne 0 ]]; then
  printf 'tpu_setup.sh: error: the smoke test failed (see above); is another process using the chips?\n' >&2
  exit 1
fi

say "mmjax doctor"
.venv/bin/mmjax doctor

say "done. Now:"
echo "  source .venv/bin/activate"
echo "  mmjax --help"

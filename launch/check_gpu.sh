#!/usr/bin/env bash
# Runs the tests that need a GPU (pytest -m gpu) on a machine with one, also one without a network.
#
#   launch/check_gpu.sh                   # with the packages of this machine
#   launch/check_gpu.sh --wheels FOLDER   # where there is a network: downloads what a bare machine lacks, for Python 3.12
#   launch/check_gpu.sh --from FOLDER     # on the bare machine: unpacks these wheels into .gpu/ and uses them
#
# A bare machine has Python, jax with its CUDA plugin, flax, optax, orbax-checkpoint, scikit-learn, matplotlib, Pillow.
# The first line names the card. Exits with pytest's code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
  array_record beartype clu dm_tree docstring_parser espeakng_loader execnet googleapis_common_protos grain immutabledict
  importlib_resources iniconfig jaxtyping ml_collections pluggy portpicker promise pytest pytest_xdist rich simple_parsing
  tensorboardX tensorflow_datasets tensorflow_metadata termcolor toml wadler_lindig
)
python=${PYTHON:-python3}

case "${1:-}" in
  --wheels)
    folder=${2:?usage: launch/check_gpu.sh --wheels FOLDER}
    # promise has no wheel; it is pure Python.
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" -c constraints.txt promise
    for package in "${packages[@]}"; do
      [[ $package == promise ]] || "$python" -m pip download --quiet --no-deps --dest "$folder" -c constraints.txt \
        --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" "$package"
    done
    ls "$folder"
    exit
    ;;
  --from)
    folder=${2:?usage: launch/check_gpu.sh --from FOLDER}
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target .gpu "$folder"/*.whl
    export PYTHONPATH="$PWD/.gpu:${PYTHONPATH:-}"
    ;;
  "") ;;
  *)
    echo "check_gpu.sh: error: $1: unknown option; give --wheels FOLDER, --from FOLDER or nothing" >&2
    exit 2
    ;;
esac

export PYTHONPATH="$PWD:${PYTHONPATH:-}"
# Sums in a fixed order: bit-equal runs need them. The autotuner's choice may differ between processes.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} XLA_PYTHON_CLIENT_PREALLOCATE=false
export MMJAX_CACHE=${MMJAX_CACHE:-$PWD/.gpu/cache}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$MMJAX_CACHE/compiled-gpu}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || echo "nvidia-smi is not installed"
"$python" -m pytest -m gpu -n 0 --durations=0 -rs tests/test_on_gpu.py

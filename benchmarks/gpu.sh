#!/bin/sh
# The batched policy step on an accelerator: tests that concern it, and the forward benchmark.
#
#   benchmarks/gpu.sh [DIRECTORY]
#
# Self-contained: makes a virtual environment that sees the machine's own JAX (0.11 is what such
# machines have), and installs from the package index only what is missing there. Where there is
# no network, missing packages are named and the script ends with status 3. Prints the card's
# name, the versions, and where every log is; never falls back to the CPU. Exit status 2 means
# that JAX sees no accelerator, 1 that a test failed.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
logs=${1:-$root/gpu}
python=${PYTHON:-python3}
mkdir -p "$logs"
cd "$root"

if [ ! -d "$logs/venv" ]; then
  "$python" -m venv --system-site-packages "$logs/venv"
fi
python=$logs/venv/bin/python

# Distribution and module of what the tests and the benchmark import.
missing=""
for pair in numpy:numpy jax:jax flax:flax optax:optax jraph:jraph chex:chex \
  orbax-checkpoint:orbax.checkpoint protobuf:google.protobuf psutil:psutil \
  pydantic-settings:pydantic_settings rich:rich safetensors:safetensors typer:typer \
  hypothesis:hypothesis jaxtyping:jaxtyping beartype:beartype pytest:pytest \
  pytest-timeout:pytest_timeout redis:redis; do
  "$python" -c "import ${pair#*:}" > "$logs/import.log" 2>&1 || missing="$missing ${pair%%:*}"
done
if [ -n "$missing" ]; then
  echo "missing here:$missing"
  # The machine's JAX stays: it is what is measured.
  "$python" -c "import jax, jaxlib; print(f'jax=={jax.__version__}\njaxlib=={jaxlib.__version__}')" \
    > "$logs/keep.txt" 2> "$logs/import.log" || : > "$logs/keep.txt"
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet --constraint "$logs/keep.txt" $missing > "$logs/pip.log" 2>&1 || {
    echo "could not be installed:$missing (see $logs/pip.log)"
    exit 3
  }
fi

# The package from this tree, with as much metadata as its version needs.
site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
mkdir -p "$site/tamiyo_jax-0.1.0.dist-info"
printf 'Metadata-Version: 2.1\nName: tamiyo_jax\nVersion: 0.1.0\n' \
  > "$site/tamiyo_jax-0.1.0.dist-info/METADATA"
echo "$root" > "$site/tamiyo_jax.pth"

export JAX_PLATFORMS=cuda
"$python" - > "$logs/device.txt" 2> "$logs/device.log" <<'PYTHON' || {
import jax
import jaxlib

(device, *_) = jax.devices()
if device.platform != "gpu":
    raise SystemExit(f"JAX sees {device.platform}")
print(f"card: {device.device_kind}, jax {jax.__version__}, jaxlib {jaxlib.__version__}")
PYTHON
  echo "JAX sees no GPU (see $logs/device.log)"
  exit 2
}
cat "$logs/device.txt"

status=0
# Kernels may use TF32 for f32 products; the tests compare with exact results.
export JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS=
for tests in tests/policy tests/graph tests/inference tests/service/test_step_many.py; do
  log=$logs/$(echo "$tests" | tr / -).log
  if "$python" -m pytest -q -p no:cacheprovider "$tests" -m "not slow" > "$log" 2>&1; then
    result=passed
  else
    result=FAILED
    status=1
  fi
  echo "$tests $result: $(tail -n 1 "$log")"
done

# As a user gets it: default precision.
unset JAX_DEFAULT_MATMUL_PRECISION
PYTHONPATH=$root/benchmarks "$python" benchmarks/forward.py --json > "$logs/forward.json" || status=1
PYTHONPATH=$root/benchmarks "$python" benchmarks/policy_batches.py --json > "$logs/batches.json" \
  || status=1
cat "$logs/forward.json" "$logs/batches.json"
exit "$status"
